"""Ingest: the windows of each feed go from landing zone to table, or a window is stopped and nothing of it changes.

land → clean → first copies → check → publish → record. An hour and a year are the same call: many windows go in
chunks that fit memory, each chunk with one publish. Nothing is remembered between two calls but what the lake
holds, so a call that was killed is simply made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cleaning import FAULTS_SCHEMA, Cleaned, clean
from pipeline.lake import Lake, Published, open_lake
from pipeline.landing import Landed, LandingZone, land, quarantined
from pipeline.masking import Mask
from pipeline.schema import FEEDS, WINDOWS_SCHEMA, Feed
from pipeline.settings import Settings, read_settings
from pipeline.window import Window, windows_between

if TYPE_CHECKING:
    from pipeline.quality import Checked, WindowBreach

# A chunk's rows are in memory several times over (lines, text, typed, difference): 256 MiB of JSON lines are a
# million events, and take about 2 GB.
_CHUNK_BYTES = 256 << 20
_UNPACKING_FACTOR = 8  # gzip on such logs: 6 to 10
_SENTENCES_KEPT = 20  # of a bulk's warnings in the result; the window log has all
_HISTORY_WEEKS, _HISTORY_DAYS = 4, 7
_SUMMED = ("files", "rows_in", "published", "quarantined", "duplicates", "late")


class AccountingError(RuntimeError):
    """Rows were lost or counted twice: an error of this program, never of the data.

    Attributes:
        feed: the feed's name.
        window: the first window whose rows do not add up.
    """

    def __init__(
        self, feed: str, window: Window, rows_in: int, published: int, quarantined: int, duplicates: int
    ) -> None:
        self.feed = feed
        self.window = window
        super().__init__(
            f"{feed} {window}: rows in must be published + quarantined + duplicates; received {rows_in} rows in, "
            f"{published} + {quarantined} + {duplicates}. Keep the landing files and report this."
        )


@dataclass(frozen=True)
class Ingested:
    """What ingest did with one feed.

    Attributes:
        feed: its name.
        windows: how many windows were replaced.
        table_version: of its table afterwards; -1: there is none yet.
        files, rows_in, published, quarantined, duplicates, late: sums over the windows, as in the window log.
        inserted, changed, gone: rows by which the table differs from before.
        warnings: expectations of severity below critical that were not met, and files not as agreed.
        page: path of the page that shows the check (of the last chunk); None: nothing was checked.
        missing: an expected feed brought no file in any of the windows.
    """

    feed: str
    windows: int
    table_version: int
    files: int = 0
    rows_in: int = 0
    published: int = 0
    quarantined: int = 0
    duplicates: int = 0
    late: int = 0
    inserted: int = 0
    changed: int = 0
    gone: int = 0
    warnings: tuple[str, ...] = ()
    page: str | None = None
    missing: bool = False

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self) | {"warnings": list(self.warnings)}


def ingest(
    windows: Sequence[Window],
    settings: Settings,
    report: Callable[[str], None] = print,
    feeds: Sequence[str] | None = None,
) -> tuple[Ingested, ...]:
    """Replaces `windows` in the tables of the feeds (all if None), items first.

    Raises:
        WindowStopped: windows break a critical expectation; all other windows and feeds are published.
        AccountingError: rows do not add up.
    """
    from pipeline.quality import WindowStopped

    ordered = sorted(set(windows))
    if not ordered:
        raise ValueError("Ingest needs at least one window; received none. Name the hours to ingest.")
    unknown = sorted(set(feeds or ()) - set(FEEDS))
    if unknown:
        raise ValueError(f"A feed is one of {list(FEEDS)}; received {unknown}.")
    lake = open_lake(settings)
    done: list[Ingested] = []
    stopped: dict[str, list[WindowBreach]] = {}
    for feed in FEEDS.values():
        if feeds is not None and feed.name not in feeds:
            continue
        door = _Door(feed, settings, lake, report)
        done.append(door.replace(ordered))
        if door.stopped:
            stopped[feed.name] = door.stopped
    if stopped:
        (first, breaches), *others = stopped.items()
        said = " ".join(f"{name}: {breach}" for name, more in others for breach in more)
        page = next(one.page for one in done if one.feed == first)
        raise WindowStopped(first, tuple(breaches), said, page)
    return tuple(done)


@dataclass
class _Door:
    """One feed's way in during one call."""

    feed: Feed
    settings: Settings
    lake: Lake
    report: Callable[[str], None]
    stopped: list[WindowBreach] = field(default_factory=list)
    _usual: _UsualRows | None = None

    def replace(self, windows: Sequence[Window]) -> Ingested:
        self._usual = _UsualRows.of(self.lake, self.feed)
        parts = [self._chunk(chunk) for chunk in _chunks(self.feed, windows, self.settings.landing)]
        total = {
            name: sum(getattr(part, name) for part in parts)
            for name in ("windows", "inserted", "changed", "gone", *_SUMMED)
        }
        warnings = [said for part in parts for said in part.warnings]
        kept = warnings[:_SENTENCES_KEPT]
        if len(warnings) > len(kept):
            kept.append(f"and {len(warnings) - len(kept)} more; the window log has all")
        result = Ingested(
            feed=self.feed.name,
            table_version=parts[-1].table_version,
            warnings=tuple(kept),
            page=parts[-1].page,
            missing=self.feed.name in self.settings.expected_feeds and all(part.missing for part in parts),
            **total,
        )
        self.report(_sentence(result, windows))
        return result

    def _chunk(self, windows: Sequence[Window]) -> Ingested:
        from pipeline.pages import write_page
        from pipeline.quality import check

        landed = land(self.feed, windows, self.settings.landing)
        mask = Mask(self.settings.mask_key)
        catalogue = self._catalogue()
        cleaned = clean(
            self.feed, landed.rows, mask, self.settings.lateness_hours, self.settings.absent_columns, catalogue
        )
        rows, copies = first_copies(cleaned.rows, self.feed)
        unknown = _unknown(rows, catalogue) if catalogue is not None else None
        assert self._usual is not None
        facts = _facts(self.feed, windows, landed, cleaned, catalogue, self._usual)
        checked = check(self.feed, rows, facts, self.settings.absent_columns, unknown)
        breaches = _breaches(rows, checked)
        rows = _without(rows, checked)

        def judge(some: pa.Table) -> tuple[pa.Table, pa.Table]:
            verdict = check(
                self.feed,
                some,
                facts,
                self.settings.absent_columns,
                _unknown(some, catalogue) if catalogue is not None else None,
            )
            return _without(some, verdict), _breaches(some, verdict)

        rows, copies, more = usable_copies(rows, copies, self.feed, judge)
        faults = pa.concat_tables([cleaned.faults, breaches, more])
        quarantine = quarantined(self.feed, landed, faults, mask)
        critical = [breach for breach in checked.window_breaches if breach.severity == "critical"]
        self.stopped.extend(critical)
        page = write_page(
            self.feed.name, windows, checked.results, _counts(facts, rows, quarantine, copies), self.settings.reports
        )
        kept = sorted(set(windows) - {breach.window for breach in critical})
        if not kept:
            return Ingested(self.feed.name, 0, self.lake.version(self.feed.name), page=str(page))
        names = self.feed.table_schema.names
        published = self.lake.publish(
            self.feed,
            kept,
            _of(rows.select(names), kept),
            _of(copies.select(names), kept),
            _of(quarantine, kept),
            lateness_hours=self.settings.lateness_hours,
        )
        return self._record(kept, landed, facts, published, checked, str(page))

    def _catalogue(self) -> pa.Table | None:
        """The catalogue's items with their prices over time, for the events."""
        if self.feed.name != "events":
            return None
        return self.lake.arrow("items", columns=["item_id", "change_id", "change_time", "price"])

    def _record(
        self,
        windows: Sequence[Window],
        landed: Landed,
        facts: pa.Table,
        published: Published,
        checked: Checked,
        page: str,
    ) -> Ingested:
        """Counts the rows of each window and enters the windows into the log."""
        rows_in = dict(zip(facts["landed_window"].to_pylist(), facts["rows_in"].to_pylist(), strict=True))
        said: dict[Window, list[str]] = {window: list(landed.warnings.get(window, ())) for window in windows}
        for breach in checked.window_breaches:
            if breach.window in said and breach.severity == "warning":
                said[breach.window].append(str(breach))
        log = []
        for window in windows:
            counts = {
                "rows_in": rows_in[window.start],
                "published": published.published[window],
                "quarantined": published.quarantined[window],
                "duplicates": published.duplicates[window],
            }
            if counts["rows_in"] != counts["published"] + counts["quarantined"] + counts["duplicates"]:
                raise AccountingError(self.feed.name, window, **counts)
            manifest = landed.manifests[window]
            log.append(
                {
                    "feed": self.feed.name,
                    "landed_window": window.start,
                    "landed_date": window.start.date(),
                    "files": len(manifest),
                    **counts,
                    "late": published.late[window],
                    "table_version": published.table_version,
                    "manifest": json.dumps(manifest, sort_keys=True),
                    "warnings": json.dumps(said[window]) if said[window] else None,
                }
            )
        table = pa.Table.from_pylist(log, WINDOWS_SCHEMA)
        self.lake.record_windows(table)
        sums = {name: pc.sum(table[name]).as_py() for name in _SUMMED}
        return Ingested(
            feed=self.feed.name,
            windows=len(windows),
            table_version=published.table_version,
            inserted=published.inserted,
            changed=published.changed,
            gone=published.gone,
            warnings=tuple(sentence for window in windows for sentence in said[window]),
            page=page,
            missing=sums["files"] == 0,
            **sums,
        )


def _sentence(done: Ingested, windows: Sequence[Window]) -> str:
    span = str(windows[0]) if len(windows) == 1 else f"{windows[0]} to {windows[-1]} ({done.windows} windows)"
    if done.missing:
        return f"{done.feed} {span}: no file landed, though this feed is expected"
    return (
        f"{done.feed} {span}: {done.rows_in} rows in {done.files} files: {done.published} published, "
        f"{done.quarantined} quarantined, {done.duplicates} duplicates; table version {done.table_version} "
        f"(+{done.inserted} ~{done.changed} -{done.gone})"
    )


def _chunks(feed: Feed, windows: Sequence[Window], landing: str) -> Iterator[list[Window]]:
    """The windows in groups whose files fit memory; a window is never divided."""
    if len(windows) == 1:
        yield list(windows)
        return
    sizes: dict[Window, int] = {}
    for file in LandingZone(landing).files(feed.name, windows):
        packed = not file.name.endswith((".jsonl", ".ndjson", ".json", ".csv", ".tsv"))
        sizes[file.window] = sizes.get(file.window, 0) + file.size_bytes * (_UNPACKING_FACTOR if packed else 1)
    chunk: list[Window] = []
    size = 0
    for window in windows:
        if chunk and size + sizes.get(window, 0) > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(window)
        size += sizes.get(window, 0)
    yield chunk


# -- copies --------------------------------------------------------------------------------------------------


def first_copies(rows: pa.Table, feed: Feed) -> tuple[pa.Table, pa.Table]:
    """Rows divided into the first of each key, in order of landing, and the copies that landed after it."""
    connection = duckdb.connect()
    connection.register("landed", pa.table({"key": rows[feed.key], "number": pa.array(np.arange(len(rows)))}))
    first = (
        connection.sql("SELECT min(number) AS number FROM landed GROUP BY key").to_arrow_table()["number"].to_numpy()
    )
    if len(first) == len(rows):
        return rows, rows.slice(0, 0)
    counts = np.zeros(len(rows), bool)
    counts[first] = True
    return rows.filter(pa.array(counts)), rows.filter(pa.array(~counts))


def usable_copies(
    rows: pa.Table, copies: pa.Table, feed: Feed, judge: Callable[[pa.Table], tuple[pa.Table, pa.Table]]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Lets the next copy of a row count where the first was refused by the check.

    Otherwise a corrected copy would be thrown away as the duplicate of a row that nobody can see.

    Returns:
        rows, copies, and the faults of copies that are refused as well.
    """
    faults = FAULTS_SCHEMA.empty_table()
    while len(copies):
        orphans = pc.invert(pc.is_in(copies[feed.key], rows[feed.key].combine_chunks()))
        if not pc.any(orphans).as_py():
            break
        next_copies, later = first_copies(copies.filter(orphans), feed)
        good, bad = judge(next_copies)
        rows = pa.concat_tables([rows, good])
        copies = pa.concat_tables([copies.filter(pc.invert(orphans)), later])
        faults = pa.concat_tables([faults, bad])
    return rows, copies, faults


# -- the check ---------------------------------------------------------------------------------------------


def _breaches(rows: pa.Table, checked: Checked) -> pa.Table:
    found = checked.row_breaches
    return pa.table([rows["landed_row"].take(found["row"]), found["reason"], found["detail"]], schema=FAULTS_SCHEMA)


def _without(rows: pa.Table, checked: Checked) -> pa.Table:
    if not len(checked.row_breaches):
        return rows
    good = np.ones(len(rows), bool)
    good[checked.row_breaches["row"].to_numpy()] = False
    return rows.filter(pa.array(good))


def _unknown(rows: pa.Table, catalogue: pa.Table) -> pa.Array:
    """Whether each row's item is one that the catalogue has never described; null where it names none."""
    known = pc.is_in(rows["item_id"], pc.unique(catalogue["item_id"]))
    unknown = pc.if_else(pc.is_valid(rows["item_id"]), pc.invert(known), None)
    return unknown.combine_chunks() if isinstance(unknown, pa.ChunkedArray) else unknown


@dataclass
class _UsualRows:
    """How many rows landed in the hours before: the window log, and the windows of this call."""

    rows_in: dict[datetime, int]

    @classmethod
    def of(cls, lake: Lake, feed: Feed) -> _UsualRows:
        log = lake.window_log()
        log = log.filter(pc.equal(log["feed"], feed.name))
        return cls(dict(zip(log["landed_window"].to_pylist(), log["rows_in"].to_pylist(), strict=True)))

    def before(self, start: datetime) -> float | None:
        """The median of the same hour: of up to 4 same weekdays before, else of up to 7 days before."""
        for step, count in ((timedelta(weeks=1), _HISTORY_WEEKS), (timedelta(days=1), _HISTORY_DAYS)):
            past = [start - step * number for number in range(1, count + 1)]
            found = [self.rows_in[hour] for hour in past if hour in self.rows_in]
            if found:
                return float(median(found))
        return None


def _facts(
    feed: Feed,
    windows: Sequence[Window],
    landed: Landed,
    cleaned: Cleaned,
    catalogue: pa.Table | None,
    usual: _UsualRows,
) -> pa.Table:
    """WINDOW_FACTS of the windows, each as if it had come alone: a bulk is judged like its hours."""
    from pipeline.quality import WINDOW_FACTS

    starts = np.array([window.start.timestamp() for window in windows]) * 1e6

    def place(table: pa.Table) -> np.ndarray:
        return np.searchsorted(starts, table["landed_window"].cast(pa.int64()).to_numpy())

    def count(table: pa.Table, where: pa.Array | pa.ChunkedArray | None = None) -> np.ndarray:
        chosen = table.select(["landed_window"])
        return np.bincount(place(chosen if where is None else chosen.filter(where)), minlength=len(windows))

    refused = count(landed.refused) + count(landed.rows.select(["landed_window"]).take(cleaned.faults["landed_row"]))
    readable = count(cleaned.rows)
    rows_in = readable + refused
    newest = np.zeros(len(windows))
    latest = cleaned.rows.group_by("landed_window").aggregate([(feed.time, "max")])
    newest[place(latest)] = latest[f"{feed.time}_max"].cast(pa.int64()).to_numpy()
    minutes = np.where(readable > 0, (starts + 3.6e9 - newest) / 6e7, np.nan)
    late = pc.less(cleaned.rows["hour"], cleaned.rows["landed_window"])
    usual.rows_in |= {window.start: int(n) for window, n in zip(windows, rows_in, strict=True)}
    unknown = pa.nulls(len(cleaned.rows), pa.bool_()) if catalogue is None else _unknown(cleaned.rows, catalogue)
    columns = {
        "landed_window": [window.start for window in windows],
        "files": [len(landed.manifests[window]) for window in windows],
        "rows_in": rows_in,
        "readable": readable,
        "quarantined": refused,
        "duplicates": readable - count(_keys_by_window(cleaned.rows, feed)),
        "late": count(cleaned.rows, late),
        "usual_rows": [usual.before(window.start) for window in windows],
        "newest_minutes": pa.array(minutes, from_pandas=True),
        "item_rows": count(cleaned.rows, pc.is_valid(unknown)),
        "unknown_items": count(cleaned.rows, unknown),
        "hour_of_week": [window.start.weekday() * 24 + window.start.hour for window in windows],
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in WINDOW_FACTS], schema=WINDOW_FACTS)


def _keys_by_window(rows: pa.Table, feed: Feed) -> pa.Table:
    """The different keys of each window: `landed_window` once for each."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("landed", rows.select(["landed_window", feed.key]))
    return connection.sql(f"SELECT DISTINCT landed_window, {feed.key} FROM landed").to_arrow_table()


def _counts(facts: pa.Table, rows: pa.Table, quarantine: pa.Table, copies: pa.Table) -> Mapping[str, int]:
    reasons = pc.value_counts(quarantine["reason"]).to_pylist()
    return {
        "files": pc.sum(facts["files"]).as_py(),
        "rows_in": pc.sum(facts["rows_in"]).as_py(),
        "passed": len(rows),
        "quarantined": len(quarantine),
        "duplicates": len(copies),
        **{f"reason.{one['values']}": one["counts"] for one in reasons},
    }


def _of(table: pa.Table, windows: Sequence[Window]) -> pa.Table:
    """The rows that landed in `windows`."""
    starts = pa.array([window.start for window in windows], table.schema.field("landed_window").type)
    kept = pc.is_in(table["landed_window"], starts)
    return table if pc.all(kept).as_py() else table.filter(kept)


# -- command line --------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m pipeline.ingest`: one window or a range of them."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.ingest", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--from", dest="first", required=True, metavar="HOUR", help="first window, 2011-11-14T09:00Z")
    parser.add_argument("--to", dest="end", metavar="HOUR", help="end of the range, exclusive; default: one window")
    parser.add_argument("--feed", action="append", choices=list(FEEDS), help="only this feed (may be repeated)")
    chosen = parser.parse_args(arguments)
    from pipeline.quality import WindowStopped
    from pipeline.settings import SettingsError

    try:
        settings = read_settings()
        first = Window.parse(chosen.first)
        end = Window.parse(chosen.end) if chosen.end else Window(first.end)
    except (SettingsError, ValueError) as error:
        parser.error(str(error))
    windows = list(windows_between(first.start, end.start))
    if not windows:
        parser.error(f"--to must be after --from; received {chosen.first} and {chosen.end}")
    try:
        _with_progress(windows, settings, chosen.feed)
    except WindowStopped as error:
        print(error)
        return 1
    return 0


def _with_progress(windows: Sequence[Window], settings: Settings, feeds: Sequence[str] | None) -> None:
    """Ingests with a bar that moves feed by feed."""
    from rich.progress import Progress

    with Progress() as progress:
        bar = progress.add_task(f"{len(windows)} windows", total=len(feeds or FEEDS))

        def report(said: str) -> None:
            progress.console.print(said, highlight=False)
            progress.advance(bar)

        ingest(windows, settings, report, feeds)


if __name__ == "__main__":
    raise SystemExit(main())
