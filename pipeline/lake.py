"""The lake: Delta tables addressed by version, each window of a feed replaced in one transaction.

A window is published as the difference to what the table holds: inserted, changed and gone rows by key,
in one MERGE. An unchanged re-run is therefore no commit at all, and the change feed of a feed's table
(`delta.enableChangeDataFeed`) is by row, which is what the learner reads.

A row belongs to the earliest window in which it landed. The others are kept in `duplicates_<feed>`, so
that the tables end the same in whatever order windows are ingested, and nothing is lost when an earlier
window is corrected and no longer has the row. Every write below is safe to repeat: a process killed
between two of them leaves nothing that a second run does not complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, TypeVar, cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from pipeline.difference import Plan, difference, miscounted, net_changes, same_rows, sql_windows
from pipeline.locking import Locks, locks_of
from pipeline.schema import (
    DECISIONS_SCHEMA,
    DELETED,
    DELETIONS_SCHEMA,
    FEEDS,
    LABELS_SCHEMA,
    LABELS_WANTED_SCHEMA,
    PROFILES_SCHEMA,
    QUALITY_SCHEMA,
    QUARANTINE_SCHEMA,
    READINGS_SCHEMA,
    TEXT_VECTORS_SCHEMA,
    USER_PROFILES_SCHEMA,
    WINDOWS_SCHEMA,
    Feed,
)
from pipeline.settings import Settings
from pipeline.stores import storage_options, tree_at
from pipeline.window import Window

if TYPE_CHECKING:
    from deltalake.table import TableMerger

T = TypeVar("T")

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
_COUNTED = ("landed_window", "hour")  # what a window's rows are counted by
_DAILY = ["landed_date"]  # one folder a day keeps a window's predicate to a few files


class LakeError(RuntimeError):
    """A table or version that was asked for is not there; the message says which and what is."""


class Outdated(RuntimeError):
    """What was to be published had changed at its source since it was read; nothing was published. Read it again."""


@dataclass(frozen=True)
class Published:
    """What one call of `Lake.publish` did.

    Attributes:
        table_version: the feed's table after it (unchanged if nothing differed).
        inserted, changed, gone: rows by which the table differs from before.
        published: rows that count, for each window of the call.
        duplicates: rows of each window whose key counts elsewhere.
        late: published rows of each window that happened before it.
        quarantined: rows of each window in the quarantine.
    """

    table_version: int
    inserted: int
    changed: int
    gone: int
    published: Mapping[Window, int] = field(default_factory=dict)
    duplicates: Mapping[Window, int] = field(default_factory=dict)
    late: Mapping[Window, int] = field(default_factory=dict)
    quarantined: Mapping[Window, int] = field(default_factory=dict)


class Lake:
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

        To put files together is a version too, and nothing to learn. -1 where the table does not exist yet.
        """
        try:
            opened = self._open(table)
        except TableNotFoundError:
            return -1
        commits = opened.history(_LOOKED_BACK)
        if all(one["operation"] in _UPKEEP for one in commits):
            commits = opened.history()
        return next(int(one["version"]) for one in commits if one["operation"] not in _UPKEEP)

    def dataset(self, table: str, version: int | None = None) -> ds.Dataset:
        """`table` at `version` (newest if None) as an Arrow dataset; an empty one at version -1.

        Raises:
            LakeError: the table has no such version.
        """
        empty = ds.dataset(_schema_of(table).empty_table())
        if version == -1:
            return empty
        try:
            return self._open(table, version).to_pyarrow_dataset(filesystem=tree_at(self._uri(table)))
        except TableNotFoundError:
            if version is None:
                return empty
            raise
        except DeltaError as error:  # deltalake has no type of its own for a version that is not there
            raise LakeError(
                f"Table {table!r} must have version {version}; it has up to {self.version(table)}."
            ) from error

    def days(self, table: str, version: int) -> ds.Dataset:
        """`dataset` of a table by days, which knows the day of each file and no other of its statistics.

        Opening the table so costs a hundredth: of 300 daily files deltalake's dataset takes 0.85 CPU-seconds, this 0.01
        (two cores). Filters that are not by day are answered from the files' own footers.
        """
        if version == -1 or "landed_date" not in _schema_of(table).names:
            return self.dataset(table, version)
        try:
            opened = self._open(table, version)
        except DeltaError:
            return self.dataset(table, version)  # which says why
        tree, form = tree_at(self._uri(table)), ds.ParquetFileFormat()
        files = pa.table(opened.get_add_actions(flatten=True))
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
        except DeltaError as error:
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
                self._open(table).delete(f"{key} = {_sql_text(identifier)}")

    # -- publishing ---------------------------------------------------------------------------------------

    def publish(
        self,
        feed: Feed,
        windows: Sequence[Window],
        rows: pa.Table,
        duplicates: pa.Table,
        quarantine: pa.Table,
        lateness_hours: int = 48,
        is_current: Callable[[], bool] = lambda: True,
    ) -> Published:
        """Replaces `windows` of `feed` by `rows` in one transaction of its table.

        Args:
            feed: the feed.
            windows: the windows that are replaced, in order; those without rows end empty.
            rows: `feed.table_schema`, unique by key, each row's landed_window among `windows`.
            duplicates: the same columns: rows of these windows whose key is in `rows` already.
            quarantine: QUARANTINE_SCHEMA: rows of these windows that cannot be used.
            lateness_hours: the same key can land again within this many hours only, so this far to either
                side of the windows is looked for it.
            is_current: asked while no other process can publish: whether the rows are still what their source says.
                Two processes may take in one window at once; without it the one that read first could write last.

        Raises:
            Outdated: they are not.
        """
        schema = feed.table_schema
        with self._locks(f"publish-{feed.name}"):
            _refuse_outdated(feed.name, is_current)
            self._create(feed.name, schema)
            days = _days_around(windows, lateness_hours)
            plan = difference(
                feed, windows, rows.select(schema.names), duplicates.select(schema.names),
                held=self._of_days(feed.name, days), spare=self._of_days(f"duplicates_{feed.name}", days),
            )
            self._replace_windows("quarantine", windows, quarantine.select(QUARANTINE_SCHEMA.names), feed.name)
            self._replace_duplicates(feed, plan.spare_before, plan.spare_until_then)
            version = self._merge(feed, plan, days, windows)
            self._replace_duplicates(feed, plan.spare_until_then, plan.spare_after)
            return Published(
                table_version=version,
                inserted=len(plan.inserted), changed=len(plan.changed), gone=len(plan.gone),
                published=_per_window(plan.counted, windows),
                duplicates=_per_window(plan.duplicates, windows),
                late=_per_window(_late(plan.counted), windows),
                quarantined=_per_window(quarantine, windows),
            )

    def record_windows(self, log: pa.Table, is_current: Callable[[], bool] = lambda: True) -> None:
        """Puts rows (WINDOWS_SCHEMA) into the window log, in the place of those of the same feed and window.

        Raises:
            Outdated: `is_current`, asked while no other process can record, says so.
        """
        if not len(log):
            return
        with self._locks("publish-windows"):
            _refuse_outdated(log["feed"][0].as_py(), is_current)
            self._create("windows", WINDOWS_SCHEMA)
            merge = self._merge_log(log.select(WINDOWS_SCHEMA.names).cast(WINDOWS_SCHEMA))
            merge.when_matched_update_all().when_not_matched_insert_all().execute()

    def recount_windows(self, feed: Feed, windows: Sequence[Window], lateness_hours: int = 48) -> int:
        """Corrects the log of the windows around `windows` that have lost rows to them or got some back.

        What a row of the log says is counted anew in the table, not added to, so that a process killed between
        publishing and this leaves nothing that a second run does not correct. Two columns of the days around are
        read (12 million rows in 5 days: 0.4 s); nothing is written where the log is right.

        Returns:
            how many rows of the log were corrected.
        """
        days = _days_around(windows, lateness_hours)
        with self._locks(f"publish-{feed.name}"), self._locks("publish-windows"):
            wrong = miscounted(self._of_days(feed.name, days, _COUNTED), self._of_days("windows", days), feed)
            if len(wrong):
                counts = {name: f"s.{name}" for name in ("published", "duplicates", "late")}
                self._merge_log(wrong).when_matched_update(counts).execute()
            return len(wrong)

    def _merge_log(self, log: pa.Table) -> TableMerger:
        return self._open("windows").merge(
            log, source_alias="s", target_alias="t",
            predicate="t.feed = s.feed AND t.landed_window = s.landed_window AND t.landed_date = s.landed_date",
        )

    def window_log(self, days: Collection[date] | None = None, since: date | None = None) -> pa.Table:
        """The window log: WINDOWS_SCHEMA, one row a feed and window, in order of window.

        Args:
            days: of these days alone.
            since: from this day on alone; an hour's job reads no year of hours.
        """
        day, chosen = ds.field("landed_date"), []
        chosen += [] if days is None else [day.isin(pa.array(sorted(days), pa.date32()))]
        chosen += [] if since is None else [day >= pa.scalar(since)]
        log = self.arrow("windows", columns=WINDOWS_SCHEMA.names, filter=reduce(and_, chosen) if chosen else None)
        return log.sort_by([("landed_window", "ascending"), ("feed", "ascending")])

    def newest_day(self, table: str) -> date | None:
        """The newest day on which rows of `table` landed, from its log."""
        version = self.version(table)
        newest = None if version < 0 else pc.max(self.files(table, version)["partition.landed_date"]).as_py()
        return cast("date | None", newest)

    def append(self, table: str, rows: pa.Table) -> int:
        """Appends `rows` to a table that nothing rewrites, such as `decisions`; returns its version."""
        self._create(table, rows.schema)
        write_deltalake(self._open(table), rows, mode="append", storage_options=self._storage)
        return self.version(table)

    def delete(self, feed: Feed, column: str, identifier: str) -> None:
        """Deletes all rows of a feed whose `column` is `identifier`, also those that count as duplicates.

        Each table in one transaction. In the quarantine a deleted row keeps its place and nothing else, as a backfill
        of its window would leave it, so that the window log still adds up. A killed call is made again.
        """
        with self._locks(f"publish-{feed.name}"):
            chosen, where = text_field(column) == identifier, f"{column} = {_sql_text(identifier)}"
            tables = [name for name in (feed.name, f"duplicates_{feed.name}") if self.version(name) >= 0]
            for name in tables:
                self._quarantine_deleted(feed, self.arrow(name, columns=feed.table_schema.names, filter=chosen))
            for name in tables:
                self._open(name).delete(where)
            if column == "user_id" and self.version("quarantine") >= 0:
                self._open("quarantine").update(
                    {"raw": "CAST(NULL AS STRING)", "detail": "CAST(NULL AS STRING)"},
                    predicate=f"feed = '{feed.name}' AND contains(raw, {_sql_text(identifier)})",
                )
            with self._locks("publish-windows"):
                self._recount_deleted(feed)

    def correct(self, feed: Feed, keys: Sequence[str], corrected: Callable[[pa.Table], pa.Table]) -> int:
        """Puts other content into rows that a feed's table holds, in one transaction; how many differ.

        Args:
            feed: the feed.
            keys: of the rows; those that the table does not hold are passed over.
            corrected: gives the rows as they should be, in the same order.
        """
        with self._locks(f"publish-{feed.name}"):
            names = feed.table_schema.names
            held = self.arrow(feed.name, columns=names, filter=text_field(feed.key).isin(list(keys)))
            wanted = corrected(held).select(names).cast(feed.table_schema)
            differs = [one != other for one, other in zip(held.to_pylist(), wanted.to_pylist(), strict=True)]
            wanted = wanted.filter(pa.array(differs, pa.bool_()))
            if len(wanted):
                self._open(feed.name).merge(
                    wanted, source_alias="s", target_alias="t",
                    predicate=f"t.{feed.key} = s.{feed.key} AND t.landed_date = s.landed_date",
                ).when_matched_update({name: f"s.{name}" for name in names}).execute()
            return len(wanted)

    def _quarantine_deleted(self, feed: Feed, rows: pa.Table) -> None:
        places = ["feed", "landed_window", "source_file", "source_row"]
        deleted = deleted_rows(feed, rows)
        if self.version("quarantine") >= 0:
            held = self.arrow("quarantine", columns=places, filter=text_field("reason") == DELETED)
            deleted = deleted.join(held, places, join_type="left anti").select(QUARANTINE_SCHEMA.names)
        if len(deleted):
            self.append("quarantine", deleted.cast(QUARANTINE_SCHEMA))

    def _recount_deleted(self, feed: Feed) -> None:
        """Counts the windows anew in the log that have lost rows to a deletion."""
        if min(self.version("quarantine"), self.version("windows")) < 0:
            return
        of_feed = text_field("feed") == feed.name
        lost = self.arrow("quarantine", columns=["landed_date"], filter=of_feed & (text_field("reason") == DELETED))
        days = ds.field("landed_date").isin(pc.unique(lost["landed_date"]))
        log = self.arrow("windows", columns=WINDOWS_SCHEMA.names, filter=of_feed & days)
        refused = self.arrow("quarantine", columns=["landed_window"], filter=of_feed & days)
        counts = refused.group_by("landed_window").aggregate([([], "count_all")]).to_pydict()
        quarantined = dict(zip(counts["landed_window"], counts["count_all"], strict=True))
        at = log.schema.get_field_index("quarantined")
        counted = [quarantined.get(window, 0) for window in log["landed_window"].to_pylist()]
        log = log.set_column(at, WINDOWS_SCHEMA.field("quarantined"), pa.array(counted, pa.int64()))
        wrong = miscounted(self.arrow(feed.name, columns=_COUNTED, filter=days), log, feed)
        if len(wrong):
            changed = {name: f"s.{name}" for name in ("published", "quarantined", "duplicates", "late")}
            self._merge_log(wrong).when_matched_update(changed).execute()

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
            retention_hours=int(age / timedelta(hours=1)), dry_run=dry_run, enforce_retention_duration=False
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
        names = _schema_of(table).names if columns is None else columns
        if self.version(table) == -1:
            return _schema_of(table).empty_table().select(names)
        day = ds.field("landed_date")
        return self.arrow(
            table, columns=names,
            filter=(day >= pa.scalar(days[0])) & (day <= pa.scalar(days[1])),
        )

    def _replace_windows(self, table: str, windows: Sequence[Window], rows: pa.Table, feed: str) -> None:
        self._create(table, rows.schema)
        predicate = f"feed = '{feed}' AND ({sql_windows(windows)})"
        held = duckdb.arrow(self._of_days(table, (windows[0].start.date(), windows[-1].start.date())))
        held = held.filter(predicate).to_arrow_table()
        if same_rows(held, rows):
            return
        if not len(held):
            write_deltalake(self._open(table), rows, mode="append", storage_options=self._storage)
            return
        write_deltalake(
            self._open(table), rows, mode="overwrite", predicate=predicate, storage_options=self._storage
        )

    def _replace_duplicates(self, feed: Feed, before: pa.Table, after: pa.Table) -> None:
        table = f"duplicates_{feed.name}"
        if before is after or same_rows(before, after):
            return
        self._create(table, feed.table_schema)
        days = sorted(set(before["landed_date"].to_pylist()) | set(after["landed_date"].to_pylist()))
        write_deltalake(
            self._open(table), after, mode="overwrite", storage_options=self._storage,
            predicate=" OR ".join(f"landed_date = DATE '{day}'" for day in days),
        )

    def _merge(
        self, feed: Feed, plan: Plan, days: tuple[date, date], windows: Sequence[Window]
    ) -> int:
        if not (len(plan.inserted) or len(plan.changed) or len(plan.gone)):
            return self.version(feed.name)
        note = CommitProperties(custom_metadata={
            "evergreen.windows": json.dumps([str(windows[0]), str(windows[-1])]),
            "evergreen.rows": json.dumps([len(plan.inserted), len(plan.changed), len(plan.gone)]),
        })
        if not (len(plan.changed) or len(plan.gone)):
            write_deltalake(
                self._open(feed.name), plan.inserted, mode="append", commit_properties=note,
                storage_options=self._storage,
            )
            return self.version(feed.name)
        source = pa.concat_tables([
            part.append_column("op", pa.array([op] * len(part), pa.string()))
            for part, op in ((plan.inserted, "insert"), (plan.changed, "change"), (plan.gone, "delete"))
        ])
        merge = self._open(feed.name).merge(
            source, source_alias="s", target_alias="t", commit_properties=note,
            predicate=f"t.{feed.key} = s.{feed.key} AND t.landed_date >= DATE '{days[0]}' "
                      f"AND t.landed_date <= DATE '{days[1]}'",
        )
        values = {name: f"s.{name}" for name in feed.table_schema.names}
        (
            merge.when_matched_delete(predicate="s.op = 'delete'")
            .when_matched_update(values, predicate="s.op = 'change'")
            .when_not_matched_insert(values, predicate="s.op = 'insert'")
            .execute()
        )
        return self.version(feed.name)


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


def open_lake(settings: Settings) -> Lake:
    """The lake of an installation."""
    return Lake(
        settings.lake, locks_of(settings.home, settings.lock_url), storage_options(settings.lake), settings.engine
    )


def _puts_and_takes(rows: pa.Table, key: str, gone: Sequence[str], refused: Collection[str]) -> pa.Table:
    """`rows` without those of refused keys (`op` is put), and rows of nothing but their key for `gone` (take)."""
    columns = pa.schema([one.with_nullable(True) for one in rows.schema])
    put = rows.cast(columns).filter(pc.invert(pc.is_in(rows[key], pa.array(sorted(refused), pa.string()))))
    take = pa.Table.from_pylist([{key: one} for one in gone], columns)
    ops = pa.array(["put"] * len(put) + ["take"] * len(take), pa.string())
    return pa.concat_tables([put, take]).append_column("op", ops)


def _refuse_outdated(feed: str, is_current: Callable[[], bool]) -> None:
    if not is_current():
        raise Outdated(f"The source of {feed} changed while it was taken in: what was read of it is not published.")


def _days_around(windows: Sequence[Window], lateness_hours: int) -> tuple[date, date]:
    """The first and the last day on which a row of `windows` can have landed before or again."""
    span = timedelta(hours=lateness_hours)
    return (windows[0].start - span).date(), (windows[-1].end + span).date()


def _per_window(rows: pa.Table, windows: Sequence[Window]) -> dict[Window, int]:
    counts = rows.group_by("landed_window").aggregate([([], "count_all")])
    found = dict(zip(counts["landed_window"].to_pylist(), counts["count_all"].to_pylist(), strict=True))
    return {window: found.get(window.start, 0) for window in windows}


def _late(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.less(rows["hour"], rows["landed_window"]))


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


def deleted_rows(feed: Feed, rows: pa.Table) -> pa.Table:
    """QUARANTINE_SCHEMA of rows of a feed's table that had to be forgotten: where they were, and nothing of them."""
    count = len(rows)
    return pa.table({
        "feed": pa.array([feed.name] * count, pa.string()),
        **{name: rows[name] for name in ("landed_window", "landed_date", "source_file", "source_row")},
        "reason": pa.array([DELETED] * count, pa.string()), "detail": pa.nulls(count, pa.string()),
        "raw": pa.nulls(count, pa.string()), "raw_bytes": pa.array([0] * count, pa.int64()),
    }).cast(QUARANTINE_SCHEMA)


def _sql_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _schema_of(table: str) -> pa.Schema:
    """The schema of a table that need not exist yet."""
    schemas = schemas_of_tables()
    if table not in schemas:
        raise LakeError(f"A table is one of {sorted(schemas)}; received {table!r}.")
    return schemas[table]


def schemas_of_tables() -> dict[str, pa.Schema]:
    """All tables of a lake, whether they exist yet or not, with their columns."""
    schemas = {
        "quarantine": QUARANTINE_SCHEMA, "windows": WINDOWS_SCHEMA, "decisions": DECISIONS_SCHEMA,
        "quality": QUALITY_SCHEMA, "text_vectors": TEXT_VECTORS_SCHEMA, "deletions": DELETIONS_SCHEMA,
        "window_profiles": PROFILES_SCHEMA, "user_profiles": USER_PROFILES_SCHEMA,
        "labels": LABELS_SCHEMA, "labels_wanted": LABELS_WANTED_SCHEMA, "readings": READINGS_SCHEMA,
    }
    for feed in FEEDS.values():
        schemas[feed.name] = schemas[f"duplicates_{feed.name}"] = feed.table_schema
    return schemas


