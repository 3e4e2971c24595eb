"""Delta tables below one root, addressed by version: read, changed and kept up, whatever they hold.

What is particular to the feeds, whose windows are replaced in one transaction, is `lake.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from pipeline.difference import net_changes
from pipeline.locking import Locks
from pipeline.schema import FEEDS, schemas_of_tables
from pipeline.stores import tree_at

# A ledger may look back over the retention of a year of hourly updates and then some; vacuum and log
# clean-up must not take away a version of a feed's table that it names.
_KEPT = timedelta(days=400)
# Of the other tables only the newest version is ever read, and a reader that holds an older one is done within hours.
LOGS_KEPT = timedelta(days=7)
# Whoever opens a table reads the commits since its last checkpoint one by one. With Delta's 100 between two, opening
# cost up to 0.08 CPU-seconds and a commit 0.1; with 10, 0.01 and 0.03 (195 commits of 100 rows, deltalake 1.6.6). A
# checkpoint names every file that is kept, and the feeds' are kept for a year: they have fewer.
_COMMITS_BETWEEN_CHECKPOINTS, _OF_A_FEED = 20, 50
_APPEND_ONLY = ("decisions", "deletions")  # Delta itself refuses to change or delete a row of these
_LOOKED_BACK = 4  # commits: upkeep makes one to three a day
_UPKEEP = ("OPTIMIZE", "VACUUM START", "VACUUM END")  # commits that change no row
_DAILY = ["landed_date"]  # one folder a day keeps a window's predicate to a few files


class LakeError(RuntimeError):
    """A table or version that was asked for is not there; the message says which and what is."""


class Tables:
    """The Delta tables below `root` (a folder or an object store's URL)."""

    def __init__(
        self, root: str, locks: Locks, storage_options: Mapping[str, str] | None = None, engine: str = "duckdb"
    ) -> None:
        """Takes the place, what locks there, what the store is told, and what works on whole tables (engine.py)."""
        self.root = root.rstrip("/")
        self.engine = engine
        self._locks = locks
        self._storage = dict(storage_options) if storage_options else None

    # -- reading ------------------------------------------------------------------------------------------

    def version(self, table: str) -> int:
        """The newest version of `table`; -1 where it does not exist yet."""
        try:
            return self._open(table).version()
        except TableNotFoundError:
            return -1

    def rows_version(self, table: str) -> int:
        """The newest version of `table` that changed a row: where a ledger stands when it has learnt everything.

        To put files together is a version too, and nothing to learn. Of a table that nothing came into for as long as
        its log is kept, the log has upkeep alone: then the oldest version that can be read, with the same rows. -1
        where the table does not exist yet.
        """
        try:
            opened = self._open(table)
        except TableNotFoundError:
            return -1
        commits = opened.history(_LOOKED_BACK)
        if all(one["operation"] in _UPKEEP for one in commits):
            commits = opened.history()
        changed = (int(one["version"]) for one in commits if one["operation"] not in _UPKEEP)
        return next(changed, int(commits[-1]["version"]))

    def dataset(self, table: str, version: int | None = None) -> ds.Dataset:
        """`table` at `version` (newest if None) as an Arrow dataset; an empty one at version -1.

        Of a table by days it knows the day of each file and no other of its statistics. Opening it so costs a
        hundredth: of 300 daily files deltalake's dataset takes 0.85 CPU-seconds, this 0.01 (two cores). Filters that
        are not by day are answered from the files' own footers.

        Raises:
            LakeError: the table has no such version.
        """
        empty = ds.dataset(schema_of(table).empty_table())
        if version == -1:
            return empty
        try:
            opened = self._open(table, version)
        except TableNotFoundError:
            if version is None:
                return empty
            raise
        except DeltaError as error:  # deltalake has no type of its own for a version that is not there
            raise LakeError(
                f"Table {table!r} must have version {version}; it has up to {self.version(table)}."
            ) from error
        tree = tree_at(self._uri(table))
        if "landed_date" not in schema_of(table).names:
            return opened.to_pyarrow_dataset(filesystem=tree)
        form, files = ds.ParquetFileFormat(), pa.table(opened.get_add_actions(flatten=True))
        fragments = [
            form.make_fragment(path, filesystem=tree, partition_expression=ds.field("landed_date") == day)
            for path, day in zip(files["path"].to_pylist(), files["partition.landed_date"], strict=True)
        ]
        return ds.FileSystemDataset(fragments, pa.schema(opened.schema().to_arrow()), form, tree)

    def arrow(
        self,
        table: str,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        filter: ds.Expression | None = None,  # noqa: A002 - pyarrow's own word
    ) -> pa.Table:
        """`table` at `version` in memory: chosen columns, rows that meet `filter`."""
        return self.dataset(table, version).to_table(
            columns=list(columns) if columns is not None else None, filter=filter
        )

    def files(self, table: str, version: int) -> pa.Table:
        """The files of `table` at `version` with their partitions and row counts (Delta's add actions, flattened)."""
        return pa.table(self._open(table, version).get_add_actions(flatten=True))

    def extent(self, table: str, version: int) -> tuple[int, datetime | None, datetime | None]:
        """Rows of a table at `version`, and its first and last landed window, from the log; no file is opened."""
        if version < 0:
            return 0, None, None
        files = self.files(table, version)
        first, last = (pc.min_max(files[f"{end}.landed_window"])[end].as_py() for end in ("min", "max"))
        return pc.sum(files["num_records"]).as_py() or 0, first, last

    def places(self, table: str, version: int) -> tuple[str, list[str]]:
        """Where `table` lies, and the addresses of the files of which `version` consists; none at version -1."""
        return self._uri(table), [] if version < 0 else self._open(table, version).file_uris()

    def changes(self, table: str, after_version: int, to_version: int) -> pa.Table:
        """The net change of a feed's table over the versions `(after_version, to_version]`.

        Returns:
            The table's columns (of the row as it is now; for a deleted one as it was) and `change`:
            `insert`, `update` or `delete`, one row a key. A row that ends with the content it had is no
            change, even if it was rewritten or moved to another landing window in between.
        """
        feed = FEEDS[table]
        columns = feed.table_schema.names
        if to_version <= after_version or to_version < 0:
            return feed.table_schema.append(pa.field("change", pa.string())).empty_table()
        if after_version < 0:
            everything = self.arrow(table, to_version, columns)
            return everything.append_column("change", pa.array(["insert"] * len(everything), pa.string()))
        log = self._open(table, to_version).load_cdf(
            starting_version=after_version + 1, ending_version=to_version
        )
        return net_changes(pa.table(log), feed)

    def images(self, table: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Every image of every row in a table's change data, a batch at a time; nothing of a table that is not there.

        Args:
            table: its name.
            columns: of the table, and `_change_type`, `_commit_version` where they are wanted.

        Raises:
            LakeError: the log no longer reaches back to the table's first version.
        """
        if self.version(table) < 0:
            return
        try:
            log = self._open(table).load_cdf(starting_version=0, columns=list(columns))
            for batch in pa.RecordBatchReader.from_stream(log):
                yield batch.cast(_without_views(batch.schema))
        except (DeltaError, pa.ArrowInvalid) as error:  # the latter where a file of theirs is gone
            raise LakeError(
                f"The change data of {table!r} must reach back to its first version; they do not ({error}). Delta "
                f"keeps them for {_KEPT.days} days: what was learnt from older changes is in the "
                "ledgers' counts alone."
            ) from error

    def touched(self, table: str, column: str, after_version: int, to_version: int) -> list[str]:
        """The texts that a column has in any image, before or after, of the rows that the versions changed, sorted.

        A row that went from one user to another changes both, which `changes` does not tell: it has the row as it is.

        Args:
            table: of a feed.
            column: of text; null is no value.
            after_version: of `(after_version, to_version]`; -1: everything that the table holds.
            to_version: see after_version.

        Raises:
            LakeError: the log no longer reaches back to `after_version`.
        """
        if to_version <= after_version:
            return []
        if after_version < 0:
            found = self.arrow(table, to_version, [column])[column]
        else:
            try:
                log = self._open(table, to_version).load_cdf(
                    starting_version=after_version + 1, ending_version=to_version, columns=[column]
                )
            except DeltaError as error:
                raise LakeError(
                    f"The change data of {table!r} must reach back to version {after_version + 1}; they do not "
                    f"({error}). Compute anew from the whole table."
                ) from error
            found = pa.table(log)[column]
        return sorted(pc.unique(found.cast(pa.string())).drop_null().to_pylist())

    # -- tables of one row a key ----------------------------------------------------------------------------

    def mark(self, table: str, name: str) -> int | None:
        """What `keep` noted last under `name`; None: nothing."""
        if self.version(table) < 0:
            return None
        noted: int | None = self._open(table).transaction_version(f"evergreen.{name}")
        return noted

    def keep(
        self, table: str, key: str, rows: pa.Table, gone: Sequence[str], marks: Mapping[str, int],
        refused: Callable[[], Collection[str]],
    ) -> int:
        """Puts `rows` in the place of those with the same key and takes `gone` out, in one transaction with `marks`.

        The marks are transaction identifiers in Delta's sense: how far a job has come and what it wrote can never
        differ, wherever it is killed. Nothing is written, marks neither, where there is nothing to put or take.

        Args:
            table: with one row a key.
            key: its column of text.
            rows: the table's columns.
            gone: keys.
            marks: name -> number.
            refused: keys whose rows must not come in, asked while no other process can write or delete.

        Returns:
            the table's version after it.
        """
        with self._locks(f"publish-{table}"):
            self._create(table, rows.schema)
            source = _puts_and_takes(rows, key, gone, refused())
            if len(source):
                values = {name: f"s.{name}" for name in rows.schema.names}
                note = CommitProperties(app_transactions=[
                    Transaction(f"evergreen.{name}", number) for name, number in marks.items()
                ])
                merge = self._open(table).merge(
                    source, f"t.{key} = s.{key}", source_alias="s", target_alias="t", commit_properties=note
                )
                (
                    merge.when_matched_delete(predicate="s.op = 'take'")
                    .when_matched_update(values, predicate="s.op = 'put'")
                    .when_not_matched_insert(values, predicate="s.op = 'put'")
                    .execute()
                )
            return self.version(table)

    def drop(self, table: str, key: str, identifier: str) -> None:
        """Deletes the row of a key from a table of one row a key; nothing where there is none."""
        with self._locks(f"publish-{table}"):
            if self.version(table) >= 0:
                self._open(table).delete(f"{key} = {sql_text(identifier)}")

    def remove(self, table: str, where: str) -> None:
        """Deletes the rows that meet a condition (SQL) from a table that others only append to, in one transaction."""
        with self._locks(f"publish-{table}"):
            if self.version(table) >= 0:
                self._open(table).delete(where)

    # -- changing and upkeep ---------------------------------------------------------------------------------

    def append(self, table: str, rows: pa.Table) -> int:
        """Appends `rows` to a table that nothing rewrites, such as `decisions`; returns its version."""
        self._create(table, rows.schema)
        write_deltalake(self._open(table), rows, mode="append", storage_options=self._storage)
        return self.version(table)

    def compact(self, table: str, before: date | None = None) -> None:
        """Puts the small files of a table together, of the days before `before`; contents and change feed stay.

        Nobody rewrites the files meanwhile, and appending to a table is no conflict.
        """
        filters = None if before is None else [("landed_date", "<", before.isoformat())]
        with ExitStack() as held:
            for lock in _writing_locks(table):
                held.enter_context(self._locks(lock))
            if self.version(table) >= 0:
                self._open(table).optimize.compact(partition_filters=filters)

    def vacuum(self, table: str, needed: timedelta, *, dry_run: bool = False) -> int:
        """Deletes files that only versions of a table need which nobody may ask for any more; how many those are.

        Change data are files too, with the rows that were deleted: Delta's log names them as nothing that was removed,
        so that all files are looked at (`full`). Those of a writer that was killed go with them.

        Args:
            table: its name.
            needed: age of the oldest version of a feed's table that anyone may ask for: it stays, as does what is
                younger than a table's own retention.
            dry_run: only counts.
        """
        if self.version(table) < 0:
            return 0
        age = max(needed, _KEPT) if table in FEEDS else LOGS_KEPT
        return len(self._open(table).vacuum(
            retention_hours=int(age / timedelta(hours=1)), dry_run=dry_run, enforce_retention_duration=False, full=True,
        ))

    # -- inside -------------------------------------------------------------------------------------------

    def _uri(self, table: str) -> str:
        return f"{self.root}/{table}"

    def _open(self, table: str, version: int | None = None) -> DeltaTable:
        return DeltaTable(self._uri(table), version=version, storage_options=self._storage)

    def _create(self, table: str, schema: pa.Schema) -> None:
        if self.version(table) == -1:
            DeltaTable.create(
                self._uri(table), schema, mode="ignore", configuration=_configuration(table),
                partition_by=_DAILY if "landed_date" in schema.names else None, storage_options=self._storage,
            )

    def _of_days(self, table: str, days: tuple[date, date], columns: Sequence[str] | None = None) -> pa.Table:
        names = schema_of(table).names if columns is None else columns
        if self.version(table) == -1:
            return schema_of(table).empty_table().select(names)
        day = ds.field("landed_date")
        return self.arrow(
            table, columns=names,
            filter=(day >= pa.scalar(days[0])) & (day <= pa.scalar(days[1])),
        )


def _configuration(table: str) -> dict[str, str | None]:
    """What Delta is told of a table when it is created."""
    of_feed = table in FEEDS
    kept = f"interval {(_KEPT if of_feed else LOGS_KEPT).days} days"
    return {
        "delta.enableChangeDataFeed": str(of_feed).lower(),  # learners read the changes of feeds alone
        "delta.deletedFileRetentionDuration": kept, "delta.logRetentionDuration": kept,
        "delta.checkpointInterval": str(_OF_A_FEED if of_feed else _COMMITS_BETWEEN_CHECKPOINTS),
        **({"delta.appendOnly": "true"} if table in _APPEND_ONLY else {}),
    }


def _writing_locks(table: str) -> list[str]:
    """The locks that are held by whoever rewrites files of a table, in the order in which they are taken."""
    if table == "quarantine":
        return [f"publish-{feed}" for feed in FEEDS]
    return [f"publish-{table.removeprefix('duplicates_')}"]


def _puts_and_takes(rows: pa.Table, key: str, gone: Sequence[str], refused: Collection[str]) -> pa.Table:
    """`rows` without those of refused keys (`op` is put), and rows of nothing but their key for `gone` (take)."""
    columns = pa.schema([one.with_nullable(True) for one in rows.schema])
    put = rows.cast(columns).filter(pc.invert(pc.is_in(rows[key], pa.array(sorted(refused), pa.string()))))
    take = pa.Table.from_pylist([{key: one} for one in gone], columns)
    ops = pa.array(["put"] * len(put) + ["take"] * len(take), pa.string())
    return pa.concat_tables([put, take]).append_column("op", ops)


def text_field(name: str) -> ds.Expression:
    """A text column for filters.

    Files that MERGE, DELETE and UPDATE have written hold `string_view`, which Arrow compares with no text ("no kernel
    matching input types (string, string_view)"; deltalake 1.6.6, pyarrow 25.0.1).
    """
    return ds.field(name).cast(pa.string())


def _without_views(schema: pa.Schema) -> pa.Schema:
    """The schema with plain text columns: few of Arrow's functions know `string_view`."""
    views = {pa.string_view(): pa.string()}
    return pa.schema([one.with_type(views.get(one.type, one.type)) for one in schema])


def sql_text(text: str) -> str:
    """A text as SQL's literal."""
    return "'" + text.replace("'", "''") + "'"


def schema_of(table: str) -> pa.Schema:
    """The schema of a table that need not exist yet."""
    schemas = schemas_of_tables()
    if table not in schemas:
        raise LakeError(f"A table is one of {sorted(schemas)}; received {table!r}.")
    return schemas[table]
