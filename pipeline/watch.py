"""The watch: what serves, how fresh, how good against the baseline, what drifts and ages, what was refused and is due.

It trains nothing and judges no challenger: it scores what no update has scored, profiles what landed and what the
champion answers, reads the lake's tables and the registry's aliases, raises one alert for each condition that has
begun and settles it when it ends (`conditions.py`), and says for which tasks a full retrain is due.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.aging import Age, Scored, aging_curve
from pipeline.alerts import ask, open_alerts, raise_alert, settle_alert
from pipeline.arrival import score_what_no_update_has
from pipeline.checkpoint import Ledger
from pipeline.conditions import (
    RETRAIN_AGAIN_HOURS,
    Condition,
    alerts_of_removed,
    conditions_of,
    feed_conditions,
    retrain_due,
    task_conditions,
)
from pipeline.decisions import OF_CHAMPION
from pipeline.drift import LEAST_REFERENCES, Fall, Gain, Shift, fall_of, shifts
from pipeline.forgetting import learnt_from_deleted
from pipeline.lake import Lake, open_lake
from pipeline.model_card import note_moves
from pipeline.own_health import OwnHealth, own_health, users_by_segment
from pipeline.profiles import (
    KEPT_DAYS,
    UNKNOWN,
    Answering,
    Counts,
    Profile,
    append_profile,
    profile_windows,
    read_profiles,
    summed,
)
from pipeline.registry import Registry, open_registry
from pipeline.registry_errors import VersionMissing
from pipeline.report import WindowLine, metric_of, newest_window, recent_log, window_lines
from pipeline.schema import FEEDS, TIME
from pipeline.settings import DERIVED, Settings
from pipeline.snapshot import Snapshot
from pipeline.surge import tell_surges
from pipeline.tasks.catalogue import TASKS, entry, task_named
from pipeline.tasks.contract import Explained, Outgrows, Task
from pipeline.unscorable import of_the_machine
from pipeline.window import HOUR, Window, windows_between

# A day of a shop's rhythm, so that a quiet night alone decides nothing.
WINDOWS_JUDGED = 24

# Four weeks of hours: what a fall of quality is told from, and as long as the picture shows.
_HOURS_FOLLOWED = 24 * 28

# Half a year: each age of the curve up to eight weeks is met often enough, and a shop of two years ago is another one.
_AGES_FOLLOWED = timedelta(weeks=26)

# The oldest hour that an operator would still backfill by hand on being told.
_DAYS_WITHOUT_GAP = 7

_SHARE_OF_HOURS = 0.75  # of a day that must have been taken in before, for that day to be compared with


@dataclass(frozen=True)
class TaskHealth:
    """The state of one task.

    Attributes:
        task: its name.
        champion, previous: versions; None: there is none.
        knows: newest landed window that the champion has learnt from or was compared on.
        landed: newest landed window that brought rows.
        newest_known, newest_landed: when the newest row of those windows happened.
        lines: the last `WINDOWS_JUDGED` windows that were scored on arrival, oldest first.
        scored: every model's score of each window of the last four weeks, oldest first.
        gains: the champion's lead over the baseline by window, of the last four weeks since the last retrain.
        fall: of that lead, if there was one.
        aging: loss by age.
        answers: how far what the champion answers moved.
        unknown_share: of the last day's rows, those on items that the champion does not know.
        decisions: the newest rows of `decisions`, newest first.
        refused_in_a_row: how many updates since the last promotion were not promoted.
        retrained: when the newest full retrain was decided on.
        learnt_from_deleted: whether the champion may have learnt from rows that were deleted on request.
        fault: why champion or first of its lineage could not score or answer what is new; empty: they could; None:
            nothing was scored, so nobody knows.
        short: whether that was for want of memory, disk or network, which no retrain mends.
        own: what the task says of itself.
        outgrown: rows that the lineage's full retrain read, and that it has read by now; None: none is due for that.
    """

    task: str
    champion: int | None
    previous: int | None
    knows: datetime | None
    landed: datetime | None
    newest_known: datetime | None = None
    newest_landed: datetime | None = None
    lines: tuple[WindowLine, ...] = ()
    scored: tuple[Scored, ...] = ()
    gains: tuple[Gain, ...] = ()
    fall: Fall | None = None
    aging: tuple[Age, ...] = ()
    answers: tuple[Shift, ...] = ()
    unknown_share: float | None = None
    decisions: tuple[dict[str, Any], ...] = ()
    refused_in_a_row: int = 0
    retrained: datetime | None = None
    learnt_from_deleted: bool = False
    fault: str | None = ""
    short: bool = False
    own: OwnHealth = field(default_factory=OwnHealth)
    outgrown: tuple[int, int] | None = None

    @property
    def hours_behind(self) -> float | None:
        """Hours between the newest landed window and the newest that the champion knows."""
        if self.knows is None or self.landed is None:
            return None
        return max((self.landed - self.knows) / HOUR, 0.0)

    @property
    def whole_day(self) -> bool:
        """Whether a day's windows were scored."""
        return len(self.lines) >= WINDOWS_JUDGED


@dataclass(frozen=True)
class FeedHealth:
    """The state of one feed.

    Attributes:
        feed: its name.
        newest: the newest window that was taken in; None: none was.
        hours_silent: between its end and now; None where the shop is a replayed log. As an ingest takes in all feeds,
            those that are expected stand for the others.
        rows: of the last day's windows: rows in, published, quarantined.
        hourly: published rows of each hour of the last week, oldest first; 0 where none was taken in.
        shifts: how far each column moved in the last day, the farthest first.
        strangers: `new items`, `unknown items`, `new users`, `guests` -> share in each of those hours; nan: no rows.
        not_taken_in: hours of the last week between the first and the newest that no ingest has taken in; of a feed
            that is not expected those alone that were taken in of another.
    """

    feed: str
    newest: datetime | None
    hours_silent: float | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    hourly: tuple[int, ...] = ()
    shifts: tuple[Shift, ...] = ()
    strangers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    not_taken_in: tuple[Window, ...] = ()


def watch(settings: Settings, at: datetime, run: str) -> dict[str, Any]:
    """Looks at every feed and task, raises and settles alerts, writes the health page.

    Args:
        settings: of the installation.
        at: when this look is made.
        run: its name: a run that was killed and is repeated asks for the same again.

    Returns:
        `page` (its path), `retrain` (task -> reason, for those that are asked for now), `conditions` (all sentences).
    """
    from pipeline.health import write_health_page

    lake, registry = open_lake(settings), open_registry(settings)
    profile_windows(lake)
    feeds = [feed_health(lake, feed, settings, at) for feed in FEEDS]
    tasks = []
    for name in settings.tasks:
        fault, short = _measured(lake, registry, name, settings)
        health = replace(task_health(lake, registry, name, fault), short=short)
        task = task_named(name, settings, lake)
        tasks.append(replace(health, own=_own_health(lake, health, task), outgrown=_outgrown(registry, health, task)))
        note_moves(name, settings)
    opened = _opened(settings)
    of_feeds = {one.feed: feed_conditions(one, opened) for one in feeds}
    of_tasks = {one.task: task_conditions(one, opened) for one in tasks}
    found = [*(one for some in of_tasks.values() for one in some), *(one for some in of_feeds.values() for one in some)]
    removed = [name for name in TASKS if name not in settings.tasks]  # from EVERGREEN_TASKS: nobody looks at them
    possible = {
        *conditions_of(settings.tasks, "task"), *conditions_of(list(FEEDS), "feed"), *alerts_of_removed(removed),
        *(f"missing-feed-{feed}" for feed in FEEDS if feed not in settings.expected_feeds),  # no ingest looks any more
        *(f"failed-{name}" for name in DERIVED if name not in settings.derived),  # and their DAGs are gone
    }
    unknown = {f"cannot-score-{one.task}" for one in tasks if one.fault is None}  # neither begun nor over
    _tell(settings, found, sorted(possible - unknown), at)
    surges = tell_surges(lake, settings, at)
    retrain = _requests(settings, {
        task: [*some, *of_feeds[entry(task).table]] for task, some in of_tasks.items()
    }, at, run)
    page = write_health_page(tasks, feeds, quarantine_counts(lake), settings, at, users_by_segment(lake))
    return {"page": str(page), "retrain": retrain, "conditions": [*(str(one) for one in found), *surges]}


def _measured(lake: Lake, registry: Registry, name: str, settings: Settings) -> tuple[str | None, bool]:
    """Has the models score and answer what is new; why they could not (see TaskHealth: fault, short)."""
    faults: list[Exception] = []
    scored = []
    try:
        scored = score_what_no_update_has(lake, registry, name, settings)
    except Exception as error:  # whatever a model cannot do, the page must still be written
        faults.append(error)
    try:
        profile_answers(lake, registry, name, settings)
    except Exception as error:
        faults.append(error)
    told = [f"{type(error).__name__}: {error}" for error in faults]
    return told[0] if told else "" if scored else None, bool(faults) and all(map(of_the_machine, faults))


def _outgrown(registry: Registry, health: TaskHealth, task: Task) -> tuple[int, int] | None:
    """Rows that came for the champion's lineage: in its base, and in all; None where the task wants no retrain."""
    if health.champion is None or not isinstance(task, Outgrows):
        return None
    ledger = Ledger.of_tags(registry.tags(health.task, health.champion))
    try:
        base = ledger if ledger.base is None else Ledger.of_tags(registry.tags(health.task, ledger.base))
    except VersionMissing:  # deleted in MLflow by hand
        return None
    before, now = base.rows.inserted, ledger.rows.inserted
    return (before, now) if task.outgrown(before, now) else None


def _own_health(lake: Lake, health: TaskHealth, task: Task) -> OwnHealth:
    words = task.measures if isinstance(task, Explained) else {}
    return own_health(lake, health.task, words, [line.window.start for line in health.lines])


def _opened(settings: Settings) -> dict[str, datetime]:
    return {one["condition"]: datetime.fromisoformat(one["at"]) for one in open_alerts(settings)}


def _tell(settings: Settings, found: Iterable[Condition], possible: Iterable[str], at: datetime) -> None:
    """Raises what has begun and settles what is over."""
    texts, opened = {one.name: str(one) for one in found}, _opened(settings)
    for name in possible:
        if name in texts:
            raise_alert(settings, name, texts[name], at)
        elif name in opened:
            settle_alert(settings, name, at)


def _requests(
    settings: Settings, conditions: Mapping[str, list[Condition]], at: datetime, run: str
) -> dict[str, str]:
    """Task -> reason, of the full retrains that are asked for now."""
    opened = _opened(settings)
    found = {}
    for task, some in conditions.items():
        reason = retrain_due(some, opened, at)
        if reason is not None and ask(settings, f"retrain-{task}", reason, at, run, RETRAIN_AGAIN_HOURS):
            found[task] = reason
    return found


# -- tasks ------------------------------------------------------------------------------------------------------


def task_health(lake: Lake, registry: Registry, task: str, fault: str | None = "") -> TaskHealth:
    """The state of one task, from lake and registry alone; `fault`: what measuring its models came to."""
    table = entry(task).table
    champion = registry.champion(task)
    tags = registry.tags(task, champion) if champion is not None else {}
    knows = datetime.fromisoformat(tags["evergreen.window"]) if "evergreen.window" in tags else None
    landed = newest_window(lake, table)
    decisions = registry.decisions(task).to_pylist()[::-1]
    scored = [] if landed is None else _scored(lake, task, landed - _AGES_FOLLOWED)
    gains = _gains(scored, decisions)
    answers = read_profiles(lake, f"answers-{task}", landed - timedelta(days=KEPT_DAYS)) if landed else {}
    return TaskHealth(
        task, champion, registry.previous(task), knows, landed,
        newest_known=_newest_row(lake, table, knows), newest_landed=_newest_row(lake, table, landed),
        lines=_scored_lines(lake, task, table, scored), scored=_of_last_weeks(scored), gains=gains, fall=fall_of(gains),
        aging=aging_curve(scored, _data_ends(decisions)), answers=tuple(_shifts_of(answers)),
        unknown_share=_unknown_share(answers), decisions=tuple(decisions[:10]),
        refused_in_a_row=_refused_in_a_row(decisions),
        retrained=next((row["decided_at"] for row in decisions if row["who"] == "retrain"), None),
        learnt_from_deleted=champion is not None and learnt_from_deleted(lake, registry, task, table, champion),
        fault=fault,
    )


def _scored_lines(lake: Lake, task: str, table: str, scored: Iterable[Scored]) -> tuple[WindowLine, ...]:
    """The last windows that were scored on arrival."""
    windows = [Window(time) for time in sorted({one.window for one in scored})[-WINDOWS_JUDGED:]]
    return tuple(window_lines(lake, task, table, windows))


def profile_answers(lake: Lake, registry: Registry, name: str, settings: Settings) -> bool:
    """Profiles what the champion answers to those of the newest window, once a window; whether it did."""
    task, champion = task_named(name, settings, lake), registry.champion(name)
    newest = newest_window(lake, task.table)
    if not isinstance(task, Answering) or champion is None or newest is None:
        return False
    if newest in read_profiles(lake, f"answers-{name}", newest):
        return False
    tables = Snapshot(lake, {table: lake.rows_version(table) for table in (task.table, *task.context_tables)})
    rows = tables.arrow(task.table, FEEDS[task.table].table_schema.names, _landed(newest))
    with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
        counts = task.answered(registry.load_artifacts(name, champion, Path(scratch)), tables, rows)
    append_profile(lake, f"answers-{name}", newest, champion, counts)
    return True


def _landed(window: datetime) -> ds.Expression:
    day = ds.field("landed_date") == pa.scalar(window.date())
    return day & (ds.field("landed_window") == pa.scalar(window, TIME))


def _newest_row(lake: Lake, table: str, window: datetime | None) -> datetime | None:
    """When the newest row of a window happened."""
    if window is None:
        return None
    time = FEEDS[table].time
    newest: datetime | None = pc.max(lake.arrow(table, columns=[time], filter=_landed(window))[time]).as_py()
    return newest


def _scored(lake: Lake, task: str, since: datetime) -> list[Scored]:
    """Every model's first score of each window from `since` on by the task's first metric, in order of window."""
    rows = lake.arrow("quality", columns=["window", "challenger", "role", "model_version", "mean", "examples"], filter=(
        (ds.field("task") == task) & (ds.field("scored_on") == "window") & (ds.field("metric") == metric_of(lake, task))
        & (ds.field("window") >= pa.scalar(since, TIME))
    )).sort_by([("window", "ascending"), ("challenger", "ascending")])
    first: dict[tuple[datetime, str], Scored] = {}
    for row in rows.to_pylist():
        one = Scored(row["window"], row["role"], row["model_version"], row["mean"], row["examples"])
        first.setdefault((one.window, one.role), one)
    return list(first.values())


def _gains(scored: Iterable[Scored], decisions: list[dict[str, Any]]) -> tuple[Gain, ...]:
    """The champion's lead by window, since the last retrain that was promoted: a new lineage has a lead of its own.

    The gate may have promoted it, or a person by force.
    """
    retrained = {row["version"] for row in decisions if row["who"] == "retrain"}
    began = next((
        row["window"] for row in decisions if row["action"] in ("promote", "force") and row["version"] in retrained
    ), None)
    best = {one.window: one for one in scored if one.role == "champion" and (began is None or one.window > began)}
    plain = {one.window: one.mean for one in scored if one.role == "baseline"}
    return tuple(
        Gain(window, best[window].mean - plain[window], best[window].mean, best[window].examples)
        for window in sorted(best.keys() & plain.keys())
    )[-_HOURS_FOLLOWED:]


def _of_last_weeks(scored: list[Scored]) -> tuple[Scored, ...]:
    since = scored[-1].window - _HOURS_FOLLOWED * HOUR if scored else None
    return tuple(one for one in scored if since is not None and one.window > since)


def _data_ends(decisions: Iterable[Mapping[str, Any]]) -> dict[int, datetime]:
    """Version -> the newest window that it has learnt from."""
    made = [row for row in decisions if row["action"] not in ("rollback", "set-aside", "force")]
    return {row["version"]: row["window"] for row in made if row["window"] is not None}


def _refused_in_a_row(decisions: Iterable[Mapping[str, Any]]) -> int:
    """Newest first: how many were not promoted before one was."""
    refused = 0
    for row in decisions:
        if row["action"] in ("hold", "reject"):
            refused += 1
        elif row["action"] not in OF_CHAMPION:
            break
    return refused


def _unknown_share(answers: Mapping[datetime, Profile]) -> float | None:
    newest = sorted(answers)[-WINDOWS_JUDGED:]
    asked = summed(answers[window].counts for window in newest).get("asked for")
    return asked[UNKNOWN] / asked.total() if asked else None


# -- feeds ------------------------------------------------------------------------------------------------------


def feed_health(lake: Lake, feed: str, settings: Settings, at: datetime) -> FeedHealth:
    """The state of one feed, from the lake alone."""
    log = {row["landed_window"]: row for row in recent_log(lake, feed)}
    if not log:
        return FeedHealth(feed, None)
    newest = max(log)
    profiles = read_profiles(lake, feed, newest - timedelta(days=KEPT_DAYS))
    week = [window for window in sorted(log) if window > newest - timedelta(days=_DAYS_WITHOUT_GAP)]
    day = [log[window] for window in week if window > newest - WINDOWS_JUDGED * HOUR]
    hours = list(windows_between(week[0], newest + HOUR))
    missed = [one for one in hours if one.start not in log]
    if feed not in settings.expected_feeds:  # it was stopped alone: hours that brought nothing are in the log as well
        taken_in = set(lake.window_log(since=week[0].date())["landed_window"].to_pylist())
        missed = [one for one in missed if one.start in taken_in]
    live = settings.schedule_end is None and feed in settings.expected_feeds
    return FeedHealth(
        feed, newest, hours_silent=(at - (newest + HOUR)) / HOUR if live else None,
        rows={name: sum(row[name] for row in day) for name in ("rows_in", "published", "quarantined", "duplicates")},
        hourly=tuple(log[one.start]["published"] if one.start in log else 0 for one in hours),
        shifts=tuple(_shifts_of(profiles)), strangers=_strangers([profiles.get(one.start) for one in hours]),
        not_taken_in=tuple(missed),
    )


def _shifts_of(profiles: Mapping[datetime, Profile]) -> list[Shift]:
    """How far the newest day moved from the same hours of the same weekdays before, or of the days before."""
    if not profiles:
        return []
    newest = max(profiles)
    recent = [window for window in profiles if window > newest - WINDOWS_JUDGED * HOUR]
    for step, most in ((timedelta(weeks=1), 4), (timedelta(days=1), 7)):
        references = [_same_hours(profiles, recent, step * number) for number in range(1, most + 1)]
        there = [one for one in references if one]
        if len(there) >= LEAST_REFERENCES:
            return shifts(summed(profiles[window].counts for window in recent), there)
    return []


def _same_hours(profiles: Mapping[datetime, Profile], recent: list[datetime], before: timedelta) -> Counts:
    found = [profiles[window - before].counts for window in recent if window - before in profiles]
    return summed(found) if len(found) >= _SHARE_OF_HOURS * len(recent) else {}


def _strangers(profiles: Sequence[Profile | None]) -> dict[str, tuple[float, ...]]:
    """Shares by hour of what is new or unknown; nan: an hour that does not tell. Only what some hour has."""
    told = {"new items": ("item", "new"), "unknown items": ("item", UNKNOWN), "new users": ("user", "new"),
            "guests": ("user", "guest")}
    found = {}
    for name, (column, label) in told.items():
        bins = [one.counts.get(column, {}) if one else {} for one in profiles]
        if any(label in one for one in bins):
            found[name] = tuple(one.get(label, 0) / sum(one.values()) if one else math.nan for one in bins)
    return found


def quarantine_counts(lake: Lake) -> dict[tuple[str, str], int]:
    """Rows in the quarantine by feed and reason, of the week before the newest landed window."""
    day = lake.newest_day("windows")
    if day is None:
        return {}
    newest = pc.max(lake.window_log([day])["landed_window"]).as_py()
    since = ds.field("landed_window") > pa.scalar(newest - timedelta(days=7), TIME)
    days = ds.field("landed_date") >= pa.scalar((newest - timedelta(days=7)).date())
    rows = lake.arrow("quarantine", columns=["feed", "reason"], filter=days & since)
    counted = rows.group_by(["feed", "reason"]).aggregate([([], "count_all")]).to_pylist()
    found = {(row["feed"], row["reason"]): int(row["count_all"]) for row in counted}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
