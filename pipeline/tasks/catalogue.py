"""The tasks that there are. A new one is one line here, beside its file in this folder and its network.

DAG files read this list each time they are parsed, so nothing heavy is imported before a task is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from pipeline.settings import Settings, SettingsError

if TYPE_CHECKING:
    from pipeline.lake import Lake
    from pipeline.tasks.contract import Task


@dataclass(frozen=True)
class Entry:
    """Where a task is and which table's changes wake it."""

    module: str
    name: str
    table: str


TASKS = {
    "recommend": Entry("pipeline.tasks.recommend", "Recommend", "events"),
    "demand": Entry("pipeline.tasks.demand", "DemandTask", "events"),
    "support": Entry("pipeline.tasks.support", "Support", "messages"),
    "sentiment": Entry("pipeline.tasks.sentiment", "Sentiment", "messages"),
}


def entry(name: str) -> Entry:
    """The entry of a task.

    Raises:
        SettingsError: there is no such task.
    """
    if name not in TASKS:
        raise SettingsError(f"A task is one of {sorted(TASKS)}; received {name!r}. Correct EVERGREEN_TASKS.")
    return TASKS[name]


def task_named(name: str, settings: Settings, lake: Lake) -> Task:
    """The task `name` of an installation.

    Raises:
        SettingsError: there is no such task.
    """
    there = entry(name)
    return cast("Task", getattr(import_module(there.module), there.name)(lake, settings.encoder))
