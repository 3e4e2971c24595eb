"""What is not as it should be: each condition with its threshold, the reason for that, and what an operator does.

A condition is raised at one level and settled at another, so that a value that trembles about a threshold is one
alert. Conditions that ask for a full retrain say so; how often one is asked for is `RETRAIN_AGAIN_HOURS`.
How often each raises a false alarm and how late it sees a change is measured by `make bench-trust PARTS=watch`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.aging import expected_loss
from pipeline.decisions import OF_CHAMPION
from pipeline.profiles import NUMBERED
from pipeline.report import pooled

if TYPE_CHECKING:
    from pipeline.drift import Shift
    from pipeline.watch import FeedHealth, TaskHealth


@dataclass(frozen=True)
class Threshold:
    """A condition begins at `raises` and lasts until the value is below `settles`."""

    raises: float
    settles: float

    def met(self, value: float, *, is_open: bool) -> bool:
        """Whether the condition holds, given whether it held before."""
        return value >= (self.settles if is_open else self.raises)


# An update takes minutes and a hold is followed by the next within the hour; half a working day of landed hours that
# the champion does not know is more than chance. Caught up to three hours, the rest comes with the next update.
HOURS_BEHIND = Threshold(7, 4)

# The gate errs in one of twenty; six refusals in a row are no chance (0.05 ** 6) and no single bad hour. One promotion
# ends the row.
REFUSALS = Threshold(6, 1)

# 3 % is what the gate calls worse (GateRules.margin); half of that is within what a day's mean moves by itself.
LOSS = Threshold(0.03, 0.015)

# One row in ten is elsewhere. The simulated shop's days differ by up to 0.05 (a new collection each day), Online
# Retail's by more; what a shop's own days differ by is taken into account besides (drift.TIMES_USUAL).
SHARE_MOVED = Threshold(0.10, 0.07)

# Updates follow a new world by themselves; one that lasts for two days is no sale and no holiday.
DRIFT_PATIENCE_HOURS = 48.0

# A row on an item that the champion does not know is one that it cannot foresee: one in ten costs three times what the
# gate lets pass. An hour's launches are 1 to 2 % of the simulated shop's rows.
UNKNOWN_ITEMS = Threshold(0.10, 0.05)

# The baseline pooled over a day: below it a model is worse than none. The champion must be 2 % above it again, because
# a day's mean has an error of about 1 %.
BELOW_BASELINE = Threshold(0.0, -0.02)

# Ingest runs at each full hour, and takes a minute: three hours without a window are no delay.
HOURS_SILENT = Threshold(3, 2)

# A retrain may take 12 hours (its time-out) and its first day shows whether it helped.
RETRAIN_AGAIN_HOURS = 36.0


@dataclass(frozen=True)
class Condition:
    """One thing to look at.

    Attributes:
        name: of the alert, such as `behind-recommend`: one alert while it lasts.
        text: what was seen, what is allowed.
        remedy: what to do.
        retrain_after_hours: asks for a full retrain once it has lasted so long; None: it does not.
    """

    name: str
    text: str
    remedy: str
    retrain_after_hours: float | None = None

    def __str__(self) -> str:
        return f"{self.text} → {self.remedy}"


def task_conditions(health: TaskHealth, opened: Mapping[str, datetime]) -> list[Condition]:
    """What is not as it should be with a task; `opened`: since when each alert is open."""
    if health.champion is None:
        retrain = f"un the DAG retrain_{health.task}."
        # whoever deletes the version that serves takes its alias along, and leaves that of the one before
        remedy = f"R{retrain}" if health.previous is None else (
            f"Put version {health.previous} back, which served before (the DAG rollback), or r{retrain}"
        )
        return [Condition(f"no-champion-{health.task}", f"{health.task} has no champion.", remedy)]
    found = (judge(health, f"{name}-{health.task}", f"{name}-{health.task}" in opened)
             for name, judge in _OF_A_TASK.items())
    return [one for one in found if one is not None]


def feed_conditions(health: FeedHealth, opened: Mapping[str, datetime]) -> list[Condition]:
    """What is not as it should be with a feed; `opened`: since when each alert is open."""
    found = (judge(health, f"{name}-{health.feed}", f"{name}-{health.feed}" in opened)
             for name, judge in _OF_A_FEED.items())
    return [one for one in found if one is not None]


def conditions_of(names: Sequence[str], kind: str) -> list[str]:
    """The names of all conditions that there can be, of tasks or of feeds (`kind`)."""
    kinds = ("no-champion", *_OF_A_TASK) if kind == "task" else tuple(_OF_A_FEED)
    return [f"{condition}-{name}" for name in names for condition in kinds]


def alerts_of_removed(names: Sequence[str]) -> list[str]:
    """The names of all alerts that there can be of tasks which are served no more, those of their DAGs too."""
    return [*conditions_of(names, "task"), *(f"failed-{dag}_{name}" for name in names for dag in ("update", "retrain"))]


def retrain_due(conditions: Sequence[Condition], opened: Mapping[str, datetime], at: datetime) -> str | None:
    """Why a full retrain is due; None: it is not."""
    for one in conditions:
        since = min(opened.get(one.name, at), at)  # an update may have raised it after the look began
        if one.retrain_after_hours is not None and at - since >= timedelta(hours=one.retrain_after_hours):
            return one.text
    return None


# -- of a task --------------------------------------------------------------------------------------------------


def _behind(health: TaskHealth, name: str, is_open: bool) -> Condition | None:
    hours = health.hours_behind
    if hours is None or not HOURS_BEHIND.met(hours, is_open=is_open):
        return None
    return Condition(
        name, f"{health.task}: the champion does not know the last {hours:.0f} hours that landed (allowed are fewer "
        f"than {HOURS_BEHIND.raises:.0f}).", f"Look at update_{health.task} and at the newest refusals.",
    )


def _refused(health: TaskHealth, name: str, is_open: bool) -> Condition | None:
    refused = health.refused_in_a_row
    if not REFUSALS.met(refused, is_open=is_open):
        return None
    done = (row["reasons"] for row in health.decisions if row.get("action") not in OF_CHAMPION)
    why = " ".join(json.loads(next(done, "[]")))
    return Condition(
        name, f"{health.task}: {refused} updates in a row were not promoted (allowed are {REFUSALS.raises - 1:.0f}), "
        f"the newest because: {why}", "A full retrain is asked for.", 0.0,
    )


def _below_baseline(health: TaskHealth, name: str, is_open: bool) -> Condition | None:
    updated, plain = pooled(health.lines, "champion"), pooled(health.lines, "baseline")
    if not health.whole_day or not plain > 0 or not BELOW_BASELINE.met((plain - updated) / plain, is_open=is_open):
        return None
    return Condition(
        name, f"{health.task}: over the last {len(health.lines)} scored hours the champion reached {updated:.3f}, the "
        f"plain baseline {plain:.3f}.", "A full retrain is asked for.", 0.0,
    )


def _quality_fell(health: TaskHealth, name: str, is_open: bool) -> Condition | None:
    fall = health.fall
    if fall is None or not LOSS.met(fall.loss, is_open=is_open):
        return None
    return Condition(
        name, f"{health.task}: beside the plain baseline the champion has lost {fall.loss:.1%} since about "
        f"{fall.seen:%Y-%m-%d %H:00} (its lead was {fall.before:.3f} and is {fall.after:.3f}; allowed is a loss of "
        f"{LOSS.raises:.0%}).", "A full retrain is asked for; look at what drifted.", 0.0,
    )


def _aging(health: TaskHealth, name: str, is_open: bool) -> Condition | None:
    hours = health.hours_behind or 0.0
    age = expected_loss(health.aging, hours)
    if age is None or not LOSS.met(age.least, is_open=is_open):
        return None
    return Condition(
        name, f"{health.task}: the champion's data ended {hours:.0f} hours before the newest that landed; models of "
        f"that age have lost {age.loss:.1%} (at least {age.least:.1%}; allowed are {LOSS.raises:.0%}).",
        f"Look why update_{health.task} promotes nothing; a full retrain is asked for.", 0.0,
    )


def _answers_drift(health: TaskHealth, name: str, is_open: bool) -> Condition | None:
    moved = _moved(health.answers, is_open=is_open)
    if not moved:
        return None
    return Condition(
        name, f"{health.task}: what the champion answers has changed against the same hours before: {moved}.",
        "Look at the decisions since and at what drifted in the feeds; roll back if it is wrong.", DRIFT_PATIENCE_HOURS,
    )


def _unknown_items(health: TaskHealth, name: str, is_open: bool) -> Condition | None:
    share = health.unknown_share
    if share is None or not UNKNOWN_ITEMS.met(share, is_open=is_open):
        return None
    return Condition(
        name, f"{health.task}: {share:.1%} of the last day's rows are on items that the champion does not know "
        f"(allowed are {UNKNOWN_ITEMS.raises:.0%}).",
        "Does the feed of items still come? A full retrain is asked for.", 0.0,
    )


def _cannot_score(health: TaskHealth, name: str, is_open: bool) -> Condition | None:
    if not health.fault:
        return None
    seen = (
        f"{health.task}: version {health.champion}, or the first of its lineage, could not score or answer what is new "
        f"({health.fault})."
    )
    if health.short:
        return Condition(name, seen, "Look at this machine's memory, disk and network; the next look tries again.")
    return Condition(
        name, seen,
        "Roll back if it serves badly; a full retrain is asked for.", 0.0,
    )


def _forgotten(health: TaskHealth, name: str, is_open: bool) -> Condition | None:
    if not health.learnt_from_deleted:
        return None
    return Condition(
        name, f"{health.task}: version {health.champion} may have learnt from rows that were deleted on request since.",
        "A full retrain is asked for, whose model is without them.", 0.0,
    )


def _outgrown(health: TaskHealth, name: str, is_open: bool) -> Condition | None:
    if health.outgrown is None:
        return None
    before, now = health.outgrown
    return Condition(
        name, f"{health.task}: the last full retrain has read {before:,} rows, its lineage has read {now:,} by now.",
        "A full retrain is asked for, which learns from all of them what updates do not.", 0.0,
    )


_OF_A_TASK: dict[str, Callable[[TaskHealth, str, bool], Condition | None]] = {
    "behind": _behind, "refused": _refused, "below-baseline": _below_baseline, "quality-fell": _quality_fell,
    "aging": _aging, "answers-drift": _answers_drift, "unknown-items": _unknown_items, "cannot-score": _cannot_score,
    "forgotten": _forgotten, "outgrown": _outgrown,
}


# -- of a feed --------------------------------------------------------------------------------------------------


def _drift(health: FeedHealth, name: str, is_open: bool) -> Condition | None:
    moved = _moved(health.shifts, is_open=is_open)
    if not moved:
        return None
    return Condition(
        name, f"{health.feed}: the last day differs from the same hours before: {moved}.",
        "Did the shop change, or its exporter? A full retrain is asked for if it lasts for "
        f"{DRIFT_PATIENCE_HOURS:.0f} hours.", DRIFT_PATIENCE_HOURS,
    )


def _gap(health: FeedHealth, name: str, is_open: bool) -> Condition | None:
    if not health.not_taken_in:
        return None
    first, last, hours = health.not_taken_in[0], health.not_taken_in[-1], len(health.not_taken_in)
    which = f"the hour {first} was" if hours == 1 else f"{hours} hours from {first} to {last} were"
    return Condition(
        name, f"{health.feed}: {which} never taken in.",
        "Backfill them: DAG ingest, Trigger, Backfill.",
    )


def _silent(health: FeedHealth, name: str, is_open: bool) -> Condition | None:
    hours = health.hours_silent
    if hours is None or not HOURS_SILENT.met(hours, is_open=is_open):
        return None
    return Condition(
        name, f"{health.feed}: the newest hour that was taken in ended {hours:.0f} hours ago (allowed are fewer than "
        f"{HOURS_SILENT.raises:.0f}).", "Look at the DAG ingest: is it paused, does it fail?",
    )


_OF_A_FEED: dict[str, Callable[[FeedHealth, str, bool], Condition | None]] = {
    "drift": _drift, "gap": _gap, "silent": _silent,
}


def _moved(shifts: Sequence[Shift], *, is_open: bool) -> str:
    """The columns that drifted, in words; empty: none did."""
    least = SHARE_MOVED.settles if is_open else SHARE_MOVED.raises
    return "; ".join(shift_in_words(one) for one in shifts if one.exceeds(least))


def shift_in_words(shift: Shift) -> str:
    """Such as `price: 14 % of the rows moved (usual: up to 3 %); 8 to 11 from 20 % to 31 %`."""
    name, before, after = max(shift.grew, shift.fell, key=lambda told: abs(told[2] - told[1]))
    return (
        f"{shift.column}: {shift.share:.0%} of {shift.rows:,} moved (usual: up to {shift.usual:.0%}), most "
        f"{bin_in_words(shift.column, name)} from {before:.0%} to {after:.0%}"
    )


def bin_in_words(column: str, name: str) -> str:
    """A column's bin as a person reads it: half octaves as what they span."""
    if column not in NUMBERED or not name.removeprefix("-").isdecimal():
        return name
    power = int(name)
    spanned = f"{2 ** (power / 2):.3g}–{2 ** ((power + 1) / 2):.3g}"
    return spanned if power else f"0 or {spanned}"  # what is not above 0 is counted there too
