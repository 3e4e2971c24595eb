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

import pyarrow.compute as pc

from pipeline.alerts import open_alerts, raise_alert, settle_alert
from pipeline.ingest import ingest
from pipeline.lake import open_lake
from pipeline.landing import LandedFile, LandingZone
from pipeline.schema import FEEDS, Feed
from pipeline.settings import Settings
from pipeline.window import Window, windows_between


@dataclass(frozen=True)
class _Hour:
    """An hour's folder beside what the hour was taken in from.

    Attributes:
        window: the hour.
        late: names of the files that came or grew since.
        gone: names of the files that its rows came from which are no longer there.
    """

    window: Window
    late: tuple[str, ...]
    gone: tuple[str, ...]


def take_in_late(before: Window, settings: Settings, report: Callable[[str], None] = print) -> dict[str, list[Window]]:
    """Takes in again the hours before `before` that have got a file since they were taken in.

    As far back as a late row still counts (`lateness_hours`). An hour that cannot be taken in again, because it breaks
    a critical rule, because files of it are gone or for whatever reason, keeps the rows that it had: `before` must not
    fail for it. An alert says so, one an hour, until a backfill has taken in its late files or they are gone again.

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
            fault = None
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
    """Takes an hour in again; why that cannot be done, None where it is done."""
    for name in hour.late:
        report(f"{feed.name} {hour.window}: {name} came after the hour was taken in")
    came = f"{feed.name} {hour.window}: {hour.late[0]} came after the hour was taken in"
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
    log = open_lake(settings).window_log(days={window.start.date() for window in windows})
    chosen = {window.start: window for window in windows}
    log = log.filter(pc.equal(log["feed"], feed.name)).select(["landed_window", "manifest", "rows_in"])
    taken_in = {chosen[one["landed_window"]]: one for one in log.to_pylist() if one["landed_window"] in chosen}
    zone = LandingZone(settings.landing)
    there: dict[Window, list[LandedFile]] = {window: [] for window in taken_in}
    for file in zone.files(feed.name, sorted(taken_in)):
        there[file.window].append(file)
    hours = []
    for window, files in there.items():
        manifest = json.loads(taken_in[window]["manifest"])
        late = [file.name for file in files if _is_late(file, manifest, zone)]
        gone = sorted(manifest.keys() - {file.name for file in files}) if taken_in[window]["rows_in"] else []
        hours.append(_Hour(window, tuple(late), tuple(gone)))
    return hours


def _is_late(file: LandedFile, manifest: dict[str, dict[str, int | str]], zone: LandingZone) -> bool:
    """Whether a file is new, or of another size; what cannot be opened is in no manifest and is refused once."""
    if not file.well_named or file.size_bytes < 0 or zone.leaves(file):
        return False
    return file.name not in manifest or manifest[file.name]["bytes"] != file.size_bytes
