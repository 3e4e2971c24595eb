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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import CommitProperties, write_deltalake

from pipeline.difference import Plan, difference, miscounted, same_rows, sql_windows
from pipeline.locking import locks_of
from pipeline.schema import (
    DELETED,
    QUARANTINE_SCHEMA,
    WINDOWS_SCHEMA,
    Feed,
)
from pipeline.settings import Settings
from pipeline.stores import storage_options
from pipeline.tables import Tables, sql_text, text_field
from pipeline.window import Window

if TYPE_CHECKING:
    from deltalake.table import TableMerger

_COUNTED = ("landed_window", "hour")  # what a window's rows are counted by


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


class Lake(Tables):
    """The tables of a shop: its feeds, window by window, and what the pipeline keeps beside them."""

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

    def delete(self, feed: Feed, column: str, identifier: str) -> None:
        """Deletes all rows of a feed whose `column` is `identifier`, also those that count as duplicates.

        Each table in one transaction. In the quarantine a deleted row keeps its place and nothing else, as a backfill
        of its window would leave it, so that the window log still adds up. A killed call is made again.
        """
        with self._locks(f"publish-{feed.name}"):
            chosen, where = text_field(column) == identifier, f"{column} = {sql_text(identifier)}"
            tables = [name for name in (feed.name, f"duplicates_{feed.name}") if self.version(name) >= 0]
            for name in tables:
                self._quarantine_deleted(feed, self.arrow(name, columns=feed.table_schema.names, filter=chosen))
            for name in tables:
                self._open(name).delete(where)
            if column == "user_id" and self.version("quarantine") >= 0:
                self._open("quarantine").update(
                    {"raw": "CAST(NULL AS STRING)", "detail": "CAST(NULL AS STRING)"},
                    predicate=f"feed = '{feed.name}' AND contains(raw, {sql_text(identifier)})",
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

    # -- inside -------------------------------------------------------------------------------------------

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


def open_lake(settings: Settings) -> Lake:
    """The lake of an installation."""
    return Lake(
        settings.lake, locks_of(settings.home, settings.lock_url), storage_options(settings.lake), settings.engine
    )


def _refuse_outdated(feed: str, is_current: Callable[[], bool]) -> None:
    if not is_current():
        raise Outdated(f"The source of {feed} changed while it was taken in: what was read of it is not published.")


def _days_around(windows: Sequence[Window], lateness_hours: int) -> tuple[date, date]:
    """The first and the last day on which a row of `windows` can have landed before or again."""
    span = timedelta(hours=lateness_hours + 1)  # one that a clock ahead of time let land early, too
    return (windows[0].start - span).date(), (windows[-1].end + span).date()


def _per_window(rows: pa.Table, windows: Sequence[Window]) -> dict[Window, int]:
    counts = rows.group_by("landed_window").aggregate([([], "count_all")])
    found = dict(zip(counts["landed_window"].to_pylist(), counts["count_all"].to_pylist(), strict=True))
    return {window: found.get(window.start, 0) for window in windows}


def _late(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.less(rows["hour"], rows["landed_window"]))


def deleted_rows(feed: Feed, rows: pa.Table) -> pa.Table:
    """QUARANTINE_SCHEMA of rows of a feed's table that had to be forgotten: where they were, and nothing of them."""
    count = len(rows)
    return pa.table({
        "feed": pa.array([feed.name] * count, pa.string()),
        **{name: rows[name] for name in ("landed_window", "landed_date", "source_file", "source_row")},
        "reason": pa.array([DELETED] * count, pa.string()), "detail": pa.nulls(count, pa.string()),
        "raw": pa.nulls(count, pa.string()), "raw_bytes": pa.array([0] * count, pa.int64()),
    }).cast(QUARANTINE_SCHEMA)


