"""Tables of a lake as they stood at given versions: what a job reads, so that it sees one state of the world."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.few_rows import rows_with
from pipeline.lake import Lake
from pipeline.schema import FEEDS, TIME

if TYPE_CHECKING:
    import ibis.expr.types as ir

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """Tables of a lake, each at a fixed version: what a task reads, so that a job sees one state of the world.

    Attributes:
        lake: where the tables are.
        versions: table -> version; -1 for a table that does not exist yet.
    """

    lake: Lake
    versions: Mapping[str, int]
    _datasets: dict[str, ds.Dataset] = field(default_factory=dict, repr=False, compare=False)
    _expected: dict[tuple[str, str], set[Any]] = field(default_factory=dict, repr=False, compare=False)
    _facts: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _held: dict[tuple[str, ...], tuple[set[Any], pa.Table]] = field(default_factory=dict, repr=False, compare=False)

    def dataset(self, table: str) -> ds.Dataset:
        """`Lake.dataset` at this snapshot's version, opened once."""
        if table not in self._datasets:
            self._datasets[table] = self.lake.dataset(table, self.versions[table])
        return self._datasets[table]

    def arrow(
        self, table: str, columns: Sequence[str] | None = None, filter: ds.Expression | None = None  # noqa: A002
    ) -> pa.Table:
        """`table` in memory: chosen columns, rows that meet `filter`."""
        return self.dataset(table).to_table(
            columns=list(columns) if columns is not None else None, filter=filter
        )

    def expect(self, table: str, column: str, values: pa.ChunkedArray) -> None:
        """Says that `rows_of` will be asked for rows with these texts in `column`, so that one reading serves all."""
        self._expected.setdefault((table, column), set()).update(pc.unique(values).drop_null().to_pylist())

    def rows_of(
        self, table: str, column: str, values: pa.ChunkedArray, columns: Sequence[str], most_held: int
    ) -> pa.Table:
        """The rows of `table` whose text `column` is one of `values`.

        Reading them costs a pass over the table, so those of other values that are expected, up to `most_held` values
        in all, are read along and kept until the next pass.

        Args:
            table: which.
            column: of text; one of `columns`.
            values: any texts; null finds nothing.
            columns: what is read.
            most_held: distinct values whose rows may be held in memory at once.
        """
        place = (table, column, *columns)
        wanted = set(pc.unique(values).drop_null().to_pylist())
        known, rows = self._held.get(place, (set(), None))
        if rows is None or not wanted <= known:
            known = wanted | self._expected.get((table, column), set())
            known = known if len(known) <= most_held else wanted
            rows = rows_with(self.dataset(table), column, sorted(known), columns)
            self._held[place] = known, rows
        if wanted == known:
            return rows
        return rows.filter(pc.is_in(rows[column].cast(pa.string()), pa.array(sorted(wanted), pa.string())))

    def remembered(self, name: str, found: Callable[[], T]) -> T:
        """What `found` returns, asked once: a fact that cannot change while the versions are the same."""
        if name not in self._facts:
            self._facts[name] = found()
        return cast("T", self._facts[name])

    def connected(self) -> Any:
        """A connection to the engine that this lake's whole tables are worked on with."""
        from pipeline.engine import connected  # with Ibis, which most readers of a snapshot do without

        return connected(self.lake.engine)

    def ibis(self, connection: Any, table: str) -> ir.Table:
        """`table` as an Ibis table of `connection`, read lazily."""
        from pipeline.engine import files_of, is_spark, table_of

        if not is_spark(connection):
            return table_of(connection, table, self.dataset(table))
        root, files = self.lake.places(table, self.versions[table])
        if not files:
            return table_of(connection, table, self.dataset(table).schema.empty_table())
        return files_of(connection, table, root, files, self.dataset(table).schema)

    def rows_by_day(self, table: str) -> pa.Table:
        """`landed_date`, `count_all`: rows of each day that has some, from the table's log; no file is opened."""
        version = self.versions[table]
        if version < 0:
            return pa.table({"landed_date": pa.array([], pa.date32()), "count_all": pa.array([], pa.int64())})
        files = self.lake.files(table, version)
        counted = files.select(["partition.landed_date", "num_records"]).rename_columns(["landed_date", "count_all"])
        days = counted.group_by("landed_date").aggregate([("count_all", "sum")])
        days = days.rename_columns(["landed_date", "count_all"])
        return days.filter(pc.greater(days["count_all"], 0)).sort_by([("landed_date", "ascending")])

    def rows_from(
        self, table: str, since: datetime, until: datetime | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """The rows that happened in the hours `[since, until)`, in order of their key.

        A row lands in the hour in which it happened or later, so days that landed before are not read.
        """
        hour = ds.field("hour")
        chosen = (ds.field("landed_date") >= pa.scalar(since.date())) & (hour >= pa.scalar(since, TIME))
        if until is not None:
            chosen &= hour < pa.scalar(until, TIME)
        names = list(columns) if columns is not None else FEEDS[table].table_schema.names
        key = FEEDS[table].key
        rows = self.arrow(table, list(dict.fromkeys([*names, key])), chosen)
        return rows.sort_by([(key, "ascending")]).select(names)
