"""The watch: what serves, how fresh, how good against the baseline, what was refused, and what is due.

It trains nothing and judges no challenger: it reads the lake's tables and the registry's aliases, raises one alert
for each condition that has begun and settles it when it ends, and says for which tasks a full retrain is due.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow.dataset as ds

from pipeline.alerts import raise_alert, settle_alert
from pipeline.forgetting import learnt_from_deleted
from pipeline.lake import Lake, open_lake
from pipeline.registry import Registry, open_registry
from pipeline.report import WindowLine, newest_window, pooled, window_lines
from pipeline.schema import TIME
from pipeline.settings import Settings
from pipeline.tasks.catalogue import entry
from pipeline.window import Window

# Windows looked back on: a day of a shop's rhythm, so that a quiet night alone decides nothing.
WINDOWS_JUDGED = 24

# An update takes minutes and a hold is followed by the next within the hour; half a working day of landed hours that
# the champion does not know is more than chance.
MOST_HOURS_BEHIND = 6

# The gate errs in one of twenty; six refusals in a row are no chance (0.05 ** 6) and no single bad hour.
MOST_REFUSALS_IN_A_ROW = 6

_ASK_FOR_RETRAIN = ("below-baseline", "forgotten")


@dataclass(frozen=True)
class TaskHealth:
    """The state of one task.

    Attributes:
        task: its name.
        champion, previous: versions; None: there is none.
        knows: newest landed window that the champion has learnt from or was compared on.
        landed: newest landed window that brought rows.
        lines: the last `WINDOWS_JUDGED` windows that an update has scored, oldest first.
        decisions: the newest rows of `decisions`, newest first.
        conditions: name -> sentence, of what is not as it should be.
        retrain_because: why a full retrain is due; None: it is not.
    """

    task: str
    champion: int | None
    previous: int | None
    knows: datetime | None
    landed: datetime | None
    lines: tuple[WindowLine, ...]
    decisions: tuple[dict[str, Any], ...]
    conditions: dict[str, str]
    retrain_because: str | None

    @property
    def hours_behind(self) -> float | None:
        """Hours between the newest landed window and the newest that the champion knows."""
        if self.knows is None or self.landed is None:
            return None
        return max((self.landed - self.knows) / timedelta(hours=1), 0.0)


def watch(settings: Settings) -> dict[str, Any]:
    """Looks at every task, raises and settles alerts, writes the health page.

    Returns:
        `page` (its path), `retrain` (task -> reason, for those whose condition has just begun: a condition that
        lasts does not ask again each hour), `conditions` (all sentences).
    """
    from pipeline.health import write_health_page

    lake, registry = open_lake(settings), open_registry(settings)
    healths = [task_health(lake, registry, task) for task in settings.tasks]
    retrain = {}
    for health in healths:
        for name in ("no-champion", "behind", "refused", *_ASK_FOR_RETRAIN):
            condition = f"{name}-{health.task}"
            if name not in health.conditions:
                settle_alert(settings, condition)
            elif raise_alert(settings, condition, health.conditions[name]) and name in _ASK_FOR_RETRAIN:
                retrain[health.task] = health.conditions[name]
    page = write_health_page(healths, quarantine_counts(lake), settings)
    sentences = [sentence for health in healths for sentence in health.conditions.values()]
    return {"page": str(page), "retrain": retrain, "conditions": sentences}


def task_health(lake: Lake, registry: Registry, task: str) -> TaskHealth:
    """The state of one task, from lake and registry alone."""
    table = entry(task).table
    champion = registry.champion(task)
    tags = registry.tags(task, champion) if champion is not None else {}
    knows = datetime.fromisoformat(tags["evergreen.window"]) if "evergreen.window" in tags else None
    landed = newest_window(lake, table)
    lines = scored_lines(lake, task, table)
    decisions = registry.decisions(task).to_pylist()[::-1]
    health = TaskHealth(
        task, champion, registry.previous(task), knows, landed, lines, tuple(decisions[:10]), {}, None
    )
    conditions = _conditions(health, decisions)
    if champion is not None and learnt_from_deleted(lake, registry, task, table, champion):
        conditions["forgotten"] = (
            f"{task}: version {champion} may have learnt from rows that were deleted on request since: a full retrain "
            "is due, whose model is without them."
        )
    return TaskHealth(
        task, champion, health.previous, knows, landed, lines, health.decisions, conditions,
        next((conditions[name] for name in _ASK_FOR_RETRAIN if name in conditions), None),
    )


def scored_lines(lake: Lake, task: str, table: str) -> tuple[WindowLine, ...]:
    """The last windows that an update of the task has scored on arrival."""
    rows = lake.arrow(
        "quality", columns=["window"], filter=(ds.field("task") == task) & (ds.field("scored_on") == "window")
    )
    windows = sorted({Window(time) for time in rows["window"].to_pylist()})[-WINDOWS_JUDGED:]
    return tuple(window_lines(lake, task, table, windows))


def quarantine_counts(lake: Lake) -> dict[tuple[str, str], int]:
    """Rows in the quarantine by feed and reason, of the week before the newest landed window."""
    newest = max((row["landed_window"] for row in lake.window_log().to_pylist()), default=None)
    if newest is None:
        return {}
    import pyarrow as pa

    since = ds.field("landed_window") > pa.scalar(newest - timedelta(days=7), TIME)
    rows = lake.arrow("quarantine", columns=["feed", "reason"], filter=since)
    counted = rows.group_by(["feed", "reason"]).aggregate([([], "count_all")]).to_pylist()
    found = {(row["feed"], row["reason"]): int(row["count_all"]) for row in counted}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _conditions(health: TaskHealth, decisions: Sequence[dict[str, Any]]) -> dict[str, str]:
    if health.champion is None:
        return {"no-champion": f"{health.task} has no champion: run the DAG retrain_{health.task}."}
    found = {}
    behind = health.hours_behind
    if behind is not None and behind > MOST_HOURS_BEHIND:
        found["behind"] = (
            f"{health.task}: the champion does not know the last {behind:.0f} hours that landed (allowed "
            f"{MOST_HOURS_BEHIND}); look at update_{health.task} and at the newest refusals."
        )
    refused = 0
    for row in decisions:
        if row["action"] not in ("hold", "reject"):
            break
        refused += 1
    if refused >= MOST_REFUSALS_IN_A_ROW:
        found["refused"] = (
            f"{health.task}: {refused} updates in a row were not promoted (allowed {MOST_REFUSALS_IN_A_ROW - 1}), "
            f"the newest because: {' '.join(json.loads(decisions[0]['reasons']))}"
        )
    updated, plain = pooled(health.lines, "champion"), pooled(health.lines, "baseline")
    if len(health.lines) >= WINDOWS_JUDGED and updated < plain:
        found["below-baseline"] = (
            f"{health.task}: over the last {len(health.lines)} scored hours the champion reached {updated:.3f}, the "
            f"plain baseline {plain:.3f}: a full retrain is due."
        )
    return found
