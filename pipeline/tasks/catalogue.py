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
    """Where a task is, which table's changes wake it, and what its models are not for (for the model card)."""

    module: str
    name: str
    table: str
    limits: tuple[str, ...] = ()


TASKS = {
    "recommend": Entry("pipeline.tasks.recommend", "Recommend", "events", (
        "What is shown is chosen more often, and so learnt: before it decides what a shop stocks, measure that apart.",
        "Scores rank the items of one request; they are no probabilities, and those of two requests do not compare.",
        "Searches are as good as the text encoder's language: the default one reads English.",
    )),
    "demand": Entry("pipeline.tasks.demand", "DemandTask", "events", (
        "Foresees 1, 7 and 28 days; beyond, the last pace is carried on.",
        "A price range holds within the guard rails about usual prices; *no advice* means that, not the present price.",
        "Elasticities come from the shop's own price changes; what others' prices do is not seen.",
    )),
    "support": Entry("pipeline.tasks.support", "Support", "messages", (
        "Where `hand_over` is true a person must read the message; confidences are right on average, not for each.",
        "It knows the intents that people have named; of a new kind it can only be unsure.",
        "It proposes answers that were approved for similar messages; it writes none.",
    )),
    "sentiment": Entry("pipeline.tasks.sentiment", "Sentiment", "messages", (
        "Meant for shares over many messages; a single customer must not be judged by it.",
        "Learnt from few labels: irony and mixed messages are often told wrongly.",
    )),
}


def entry(name: str) -> Entry:
    """The entry of a task.

    Raises:
        SettingsError: there is no such task.
    """
    if name not in TASKS:
        raise SettingsError(
            f"A task is one of {', '.join(sorted(TASKS))}; received {name!r}. Correct EVERGREEN_TASKS or --task."
        )
    return TASKS[name]


def task_named(name: str, settings: Settings, lake: Lake) -> Task:
    """The task `name` of an installation.

    Raises:
        SettingsError: there is no such task.
    """
    there = entry(name)
    return cast("Task", getattr(import_module(there.module), there.name)(lake, settings.encoder))
