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
from datetime import timedelta

import pyarrow.compute as pc

from pipeline.alerts import raise_alert, settle_alert
from pipeline.ingest import ingest
from pipeline.lake import open_lake
from pipeline.landing import LandedFile, LandingZone
from pipeline.schema import FEEDS, Feed
from pipeline.settings import Settings
from pipeline.window import Window, windows_between


def take_in_late(before: Window, settings: Settings, report: Callable[[str], None] = print) -> dict[str, list[Window]]:
    """Takes in again the hours before `before` that have got a file since they were taken in.

    As far back as a late row still counts (`lateness_hours`). An hour that cannot be taken in again, because it breaks
    a critical rule, because files of it are gone or for whatever reason, keeps the rows that it had, and an alert says
    so until it is corrected: `before` must not fail for it.

    Returns:
        feed -> its hours that had late files, oldest first; feeds without any are not in it.
    """
    found = {}
    for feed in FEEDS.values():
        condition = f"late-files-{feed.name}"
        try:
            hours = _with_late_files(feed, before, settings, report)
        except Exception as error:  # whatever an old hour's folder cannot do, `before` must still be taken in
            report(str(error))
            raise_alert(settings, condition, f"Late files of the feed {feed.name} cannot be looked for: {error}")
            continue
        faults = [f"{hour}: {_gone(names)}" for hour, names in hours.items() if names]
        whole = [hour for hour, names in hours.items() if not names]
        if hours:
            found[feed.name] = list(hours)
        if whole:
            try:
                ingest(whole, settings, report, feeds=[feed.name])
            except Exception as error:  # a rule that is broken, a file that cannot be read or is being written
                faults.append(str(error))
        if faults:
            said = " ".join(faults)
            report(said)
            raise_alert(settings, condition, f"A file came after its hour was taken in, and with it: {said}")
        else:
            settle_alert(settings, condition)
    return found


def _gone(names: Sequence[str]) -> str:
    return (
        f"{len(names)} of the files that the hour's rows came from are gone ({names[0]}), so it is not taken in again. "
        "Put them back, or backfill the hour if what is there now is all of it."
    )


def _with_late_files(
    feed: Feed, before: Window, settings: Settings, report: Callable[[str], None]
) -> dict[Window, list[str]]:
    """The hours with late files, oldest first -> those of the files that their rows came from which are gone."""
    first = before.start - timedelta(hours=settings.lateness_hours)
    log = open_lake(settings).window_log(since=first.date())
    log = log.filter(pc.equal(log["feed"], feed.name))
    logged = log.select(["landed_window", "manifest", "rows_in"]).to_pylist()
    taken_in = {Window(one["landed_window"]): json.loads(one["manifest"]) for one in logged}
    with_rows = {Window(one["landed_window"]) for one in logged if one["rows_in"]}
    zone = LandingZone(settings.landing)
    hours = [window for window in windows_between(first, before.start) if window in taken_in]
    listed = zone.files(feed.name, hours)
    late = [file for file in listed if _is_late(file, taken_in[file.window], zone)]
    for file in late:
        report(f"{feed.name} {file.window}: {file.name} came after the hour was taken in")
    there = {file.name for file in listed}  # a name begins with its hour's folder
    return {
        window: sorted(taken_in[window].keys() - there) if window in with_rows else []
        for window in sorted({file.window for file in late})
    }


def _is_late(file: LandedFile, manifest: dict[str, dict[str, int | str]], zone: LandingZone) -> bool:
    """Whether a file is new, or of another size; what cannot be opened is in no manifest and is refused once."""
    if not file.well_named or file.size_bytes < 0 or zone.leaves(file):
        return False
    return file.name not in manifest or manifest[file.name]["bytes"] != file.size_bytes
