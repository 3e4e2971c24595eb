"""Files that came into an hour's folder after the hour had been taken in: their hours are taken in again.

A file that is written as its hour ends is often there a few seconds too late, and an exporter that stood still delivers
what it owes. The window log has the files of each hour (its manifest), so a look into the landing zone shows what came
since. An hour that was never taken in is not looked at: how many were missed, an operator sees and backfills. A file
that was taken away asks for nothing: what removes old files must not remove rows (the rule `files_gone`). Where one
comes late beside such, the hour is not taken in again, because nobody can say whether it is the rest or all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.alerts import open_alerts, raise_alert, settle_alert
from pipeline.ingest import ingest
from pipeline.lake import Lake, open_lake
from pipeline.landing import LandedFile, LandingZone
from pipeline.schema import FEEDS, Feed
from pipeline.settings import Settings
from pipeline.tables import text_field
from pipeline.window import Window, windows_between


@dataclass(frozen=True)
class _Hour:
    """An hour's folder beside what the hour was taken in from.

    Attributes:
        window: the hour.
        late: names of the files that came or grew since.
        gone: names of the files that its rows came from which are no longer there.
        unusable: names of what came since and is refused unread: no file, a link outside, a name that cannot be shown.
    """

    window: Window
    late: tuple[str, ...]
    gone: tuple[str, ...]
    unusable: tuple[str, ...]


def take_in_late(before: Window, settings: Settings, report: Callable[[str], None] = print) -> dict[str, list[Window]]:
    """Takes in again the hours before `before` that have got a file since they were taken in.

    As far back as a late row still counts (`lateness_hours`). An hour that cannot be taken in again, because it breaks
    a critical rule, because files of it are gone or for whatever reason, keeps the rows that it had: `before` must not
    fail for it. An alert says so, one an hour, until a backfill has taken in its late files or they are gone again. For
    what is refused unread no hour is taken in again: it is the alert alone.

    Returns:
        feed -> its hours that had late files, oldest first; feeds without any are not in it.
    """
    found: dict[str, list[Window]] = {}
    reach = list(windows_between(before.start - timedelta(hours=settings.lateness_hours), before.start))
    for feed in FEEDS.values():
        alerts = f"late-files-{feed.name}"
        refused = _windows_of_alerts(f"{alerts}-", settings)
        try:
            hours = _looked_at(feed, sorted({*reach, *refused}), settings)
        except Exception as error:  # whatever an old hour's folder cannot do, `before` must still be taken in
            report(str(error))
            raise_alert(settings, alerts, f"Late files of the feed {feed.name} cannot be looked for: {error}")
            continue
        settle_alert(settings, alerts)
        for hour in hours:
            if hour.late and hour.window not in reach:
                continue  # its alert stays, for an operator
            if hour.late:
                found.setdefault(feed.name, []).append(hour.window)
            fault = _fault_of_taking_in(feed, hour, settings, report)
            if fault is not None:
                report(fault)
                raise_alert(settings, f"{alerts}-{hour.window}", fault)
            elif hour.window in refused:
                settle_alert(settings, f"{alerts}-{hour.window}")
    return found


def _windows_of_alerts(prefix: str, settings: Settings) -> set[Window]:
    conditions = [one["condition"] for one in open_alerts(settings)]
    return {Window.parse(one.removeprefix(prefix)) for one in conditions if one.startswith(prefix)}


def _fault_of_taking_in(feed: Feed, hour: _Hour, settings: Settings, report: Callable[[str], None]) -> str | None:
    """Takes an hour in again that has late files; why one that came cannot be taken in, None where all is done."""
    for name in hour.late:
        report(f"{feed.name} {hour.window}: {name} came after the hour was taken in")
    if not hour.late and not hour.unusable:
        return None
    came = f"{feed.name} {hour.window}: {(hour.late or hour.unusable)[0]} came after the hour was taken in"
    if not hour.late:
        return (
            f"{came} and is not read. A landed file is a regular file inside the landing zone, and its name has no "
            "control characters: rename it, or remove it."
        )
    if hour.gone:
        return (
            f"{came}, and {len(hour.gone)} of the files that its rows came from are gone ({hour.gone[0]}), so it is "
            "not taken in again. Put them back, or backfill the hour if what is there now is all of it."
        )
    try:
        ingest([hour.window], settings, report, feeds=[feed.name])
    except Exception as error:  # a rule that is broken, a file that cannot be read or is being written
        return f"{came}, and with it: {error}"
    return None


def _looked_at(feed: Feed, windows: Sequence[Window], settings: Settings) -> list[_Hour]:
    """Those of some hours that were ever taken in, oldest first."""
    lake = open_lake(settings)
    log = lake.window_log(days={window.start.date() for window in windows})
    chosen = {window.start: window for window in windows}
    log = log.filter(pc.equal(log["feed"], feed.name)).select(["landed_window", "manifest", "rows_in"])
    taken_in = {chosen[one["landed_window"]]: one for one in log.to_pylist() if one["landed_window"] in chosen}
    zone = LandingZone(settings.landing)
    readable: dict[Window, list[LandedFile]] = {window: [] for window in taken_in}
    others: dict[Window, list[LandedFile]] = {window: [] for window in taken_in}
    for file in zone.files(feed.name, sorted(taken_in)):
        is_read = file.well_named and file.size_bytes >= 0 and not zone.leaves(file)
        (readable if is_read else others)[file.window].append(file)
    refused = _refused_files(feed, [window for window, files in others.items() if files], lake)
    hours = []
    for window, files in readable.items():
        manifest = json.loads(taken_in[window]["manifest"])
        late = [file.name for file in files if file.size_bytes != manifest.get(file.name, {}).get("bytes")]
        gone = sorted(manifest.keys() - {file.name for file in files}) if taken_in[window]["rows_in"] else []
        unusable = [file.name for file in others[window] if file.name not in refused]
        hours.append(_Hour(window, tuple(late), tuple(gone), tuple(unusable)))
    return hours


def _refused_files(feed: Feed, windows: Sequence[Window], lake: Lake) -> set[str]:
    """The names of the files of which the quarantine has something, on the days of some hours."""
    if not windows:
        return set()
    days = ds.field("landed_date").isin(pa.array(sorted({window.start.date() for window in windows}), pa.date32()))
    of_feed = text_field("feed") == feed.name
    return set(lake.arrow("quarantine", columns=["source_file"], filter=days & of_feed)["source_file"].to_pylist())
