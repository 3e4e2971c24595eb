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
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cleaning import FAULTS_SCHEMA, clean
from pipeline.copies import first_copies, usable_copies
from pipeline.facts import USUAL_AFTER, LandedBefore, price_ratios, unknown_items, user_widths, window_facts
from pipeline.forgetting import Forgotten
from pipeline.labels import Labels
from pipeline.lake import Lake, Outdated, Published, deleted_rows, open_lake
from pipeline.landing import Landed, LandedFile, LandingZone, land, quarantined
from pipeline.masking import Mask
from pipeline.schema import FEEDS, TIME, WINDOWS_SCHEMA, Feed
from pipeline.settings import Settings, read_settings
from pipeline.window import Window, windows_between

if TYPE_CHECKING:
    from pipeline.quality import Checked, WindowBreach

# A chunk's rows are in memory several times over (lines, text, typed, difference): 256 MiB of JSON lines are a
# million events, and take about 2 GB.
_CHUNK_BYTES = 256 << 20
_UNPACKING_FACTOR = 8  # gzip on such logs: 6 to 10
# A file that is written in place, against the rule, changes while it is read; after so many readings the run fails and
# is tried again by Airflow minutes later.
_READINGS = 5
_SENTENCES_KEPT = 20  # of a bulk's warnings in the result; the window log has all
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
        Outdated: files change all the time while they are read.
    """
    from pipeline.quality import WindowStopped

    ordered = sorted(set(windows))
    if not ordered:
        raise ValueError("Ingest needs at least one window; received none. Name the hours to ingest.")
    unknown = sorted(set(feeds or ()) - set(FEEDS))
    if unknown:
        raise ValueError(f"A feed is one of {list(FEEDS)}; received {unknown}.")
    # of Arrow's allocators, the one whose first gigabytes come quickest: a task is a new process each hour
    # (a million events: 5.4 s, with Arrow's own choice 7.0 s)
    pa.set_memory_pool(pa.system_memory_pool())
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
    _before: LandedBefore | None = None

    def replace(self, windows: Sequence[Window]) -> Ingested:
        self._before = LandedBefore.of(self.lake.window_log(since=(windows[0].start - USUAL_AFTER).date()), self.feed)
        parts = [self._newest(chunk) for chunk in _chunks(self.feed, windows, self.settings.landing)]
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

    def _newest(self, windows: Sequence[Window]) -> Ingested:
        """Takes the windows in, again where they were corrected or a row was to be forgotten meanwhile."""
        for _ in range(_READINGS - 1):
            stopped = list(self.stopped)
            try:
                return self._chunk(windows)
            except Outdated as outdated:
                self.stopped = stopped
                self.report(f"{outdated} It is read again.")
        return self._chunk(windows)

    def _source(self, windows: Sequence[Window]) -> tuple[list[LandedFile], int, int]:
        """What the published rows depend on and others may change at any moment: files, what is forgotten, labels."""
        files = LandingZone(self.settings.landing).files(self.feed.name, windows)
        return files, self.lake.version("deletions"), self.lake.version("labels")

    def _chunk(self, windows: Sequence[Window]) -> Ingested:
        from pipeline.pages import write_page

        source = self._source(windows)

        def is_current() -> bool:
            return self._source(windows) == source

        landed = land(self.feed, windows, self.settings.landing)
        mask = Mask(self.settings.mask_key)
        rows, faults = self._cleaned(landed, mask)
        facts, rows, copies, checked, breaches = self._checked(windows, landed, rows, faults)
        quarantine = quarantined(self.feed, landed, pa.concat_tables([faults, breaches]), mask)
        rows, copies, quarantine = self._without_forgotten(rows, copies, quarantine)
        if self.feed.name == "messages":
            labels = Labels.of(self.lake)
            rows, copies = labels.on(rows), labels.on(copies)
        page = write_page(
            self.feed.name, windows, checked.results, _counts(facts, rows, quarantine, copies), self.settings.reports
        )
        critical = [breach for breach in checked.window_breaches if breach.severity == "critical"]
        self.stopped.extend(critical)
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
            is_current=is_current,
        )
        return self._record(kept, landed, facts, published, checked, str(page), is_current)

    def _cleaned(self, landed: Landed, mask: Mask) -> tuple[pa.Table, pa.Table]:
        """The typed rows with `landed_row` and what is known of them from elsewhere, and the faults.

        That is `unknown` (whether nobody has described the item), `price_ratio` and `user_width` (`facts`).
        """
        catalogue = self._catalogue()
        cleaned = clean(
            self.feed, landed.rows, mask, self.settings.lateness_hours, self.settings.absent_columns, catalogue
        )
        rows, count = cleaned.rows, len(cleaned.rows)
        unknown, ratios, widths = (pa.nulls(count, kind) for kind in (pa.bool_(), pa.float64(), pa.float64()))
        if catalogue is not None:
            ratios = price_ratios(rows, catalogue)
        if catalogue is not None and self.feed.name == "events":
            unknown, widths = unknown_items(rows, catalogue), user_widths(rows, catalogue)
        for name, values in (("unknown", unknown), ("price_ratio", ratios), ("user_width", widths)):
            rows = rows.append_column(name, values)
        return rows, cleaned.faults

    def _checked(
        self, windows: Sequence[Window], landed: Landed, rows: pa.Table, faults: pa.Table
    ) -> tuple[pa.Table, pa.Table, pa.Table, Checked, pa.Table]:
        """The windows' facts, the rows that count, their copies, the verdict, and the rows that it refused."""
        from pipeline.quality import check

        assert self._before is not None
        firsts, copies = first_copies(rows, self.feed)
        refused = [landed.refused["landed_window"], landed.rows["landed_window"].take(faults["landed_row"])]
        files = {window: landed.manifests[window].keys() for window in windows}
        at = pa.chunked_array([chunk for column in refused for chunk in column.chunks], TIME)
        facts = window_facts(self.feed, files, rows, copies, at, self._before)

        def verdict(some: pa.Table, *, of_copies: bool = False) -> Checked:
            given = [some[name].combine_chunks() for name in ("unknown", "user_width")]
            unknown, widths = given if self.feed.name == "events" else (None, None)
            return check(
                self.feed, some, facts, self.settings.absent_columns, unknown, widths, of_copies=of_copies,
                spark_rows=self.settings.spark_rows,
            )

        checked = verdict(firsts)
        good, copies, more = usable_copies(
            _without(firsts, checked), copies, self.feed, lambda some: _breaches(some, verdict(some, of_copies=True))
        )
        return facts, good, copies, checked, pa.concat_tables([_breaches(firsts, checked), more])

    def _without_forgotten(
        self, rows: pa.Table, copies: pa.Table, quarantine: pa.Table
    ) -> tuple[pa.Table, pa.Table, pa.Table]:
        """What remains of rows that were found good, after those of users and items that are to be forgotten."""
        forgotten = Forgotten.of(self.lake)
        if forgotten.empty:
            return rows, copies, quarantine
        of_rows, of_copies = forgotten.among(rows), forgotten.among(copies)
        deleted = pa.concat_tables([rows.filter(of_rows), copies.filter(of_copies)])
        quarantine = pa.concat_tables([forgotten.blanked(quarantine), deleted_rows(self.feed, deleted)])
        return rows.filter(pc.invert(of_rows)), copies.filter(pc.invert(of_copies)), quarantine

    def _catalogue(self) -> pa.Table | None:
        """The catalogue's items with their prices over time, for events and for changes of the catalogue itself."""
        if self.feed.name not in ("events", "items"):
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
        is_current: Callable[[], bool],
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
        self.lake.record_windows(table, is_current)
        self.lake.recount_windows(self.feed, windows, self.settings.lateness_hours)
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
