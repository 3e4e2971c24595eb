"""The scores of one job: several models on the same examples, kept with the version, put into the table `quality`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.arrival import arrival_rows, as_table, by_window, quality_rows
from pipeline.examples import few_of_each_window
from pipeline.lake import Lake
from pipeline.registry import Registry
from pipeline.schema import TIME
from pipeline.snapshot import Snapshot
from pipeline.unscorable import asking

if TYPE_CHECKING:
    from pipeline.lesson import Lesson
    from pipeline.remembering import Remembered
    from pipeline.tasks.contract import Examples, Learner, Scores, Task


class Judged:
    """Scores of several models on the same examples: the newly landed ones by window, and the gate's.

    Of a window in which many landed, as many are scored as the gate judges by at most: each is ranked among the whole
    catalogue, by each model.
    """

    def __init__(self, arrived: Examples, gate: Examples, window: datetime) -> None:
        self.validation: dict[str, Scores] = {}
        self.old: Remembered | None = None
        self._arrived, self._gate, self._window = few_of_each_window(arrived), gate, window
        self._on_arrival: dict[str, Scores] = {}
        self._versions: dict[str, int] = {}

    @classmethod
    def of(cls, task: Task, tables: Snapshot, lesson: Lesson) -> Judged:
        """With the baseline's scores."""
        judged = cls(lesson.arrived, lesson.gate, lesson.ledger.window)
        judged.validation["baseline"] = task.baseline(tables, lesson.gate)
        judged._versions["baseline"] = 0
        if len(judged._arrived):
            judged._on_arrival["baseline"] = task.baseline(tables, judged._arrived)
        return judged

    def add(self, role: str, version: int, learner: Learner) -> None:
        """Scores a model in a role, on everything."""
        self._versions[role] = version
        with asking(version):
            self.validation[role] = learner.score(self._gate)
            if len(self._arrived):
                self._on_arrival[role] = learner.score(self._arrived)
            if self.old is not None:
                self.old.add("reference" if role == "never_updated" else role, learner)

    def also(self, role: str, same_as: str) -> None:
        """A model that has two roles is scored once."""
        self._versions[role] = self._versions[same_as]
        self.validation[role] = self.validation[same_as]
        if same_as in self._on_arrival:
            self._on_arrival[role] = self._on_arrival[same_as]

    def score(self, challenger: Learner) -> Scores:
        """The challenger, on the gate's examples only: what arrived it has learnt."""
        return challenger.score(self._gate)

    def rows(self, challenger: Scores, seed: int) -> list[dict[str, Any]]:
        """Rows of the lake's `quality`, without the challenger's version, in JSON's types."""
        rows = [
            row for role, scores in self.validation.items()
            for row in quality_rows(scores, "validation", self._window, role, self._versions[role], seed)
        ]
        rows += quality_rows(challenger, "validation", self._window, "challenger", 0, seed)
        for role, scores in self._on_arrival.items():
            rows += arrival_rows(scores, self._arrived, role, self._versions[role], seed)
        return rows

    def arrived_by_window(self, role: str) -> dict[datetime, Scores]:
        """A role's scores on what arrived, by the window in which it landed, in order; none where it was not asked."""
        scores = self._on_arrival.get(role)
        return {} if scores is None else by_window(scores, self._arrived)


def publish_quality(lake: Lake, registry: Registry, task_name: str, version: int) -> None:
    """Puts a version's quality rows into the lake, once.

    A held update is followed by one that scores its windows again; all readers take a window's first scores, and with
    each update's the table would grow with the square of the hours that are held.
    """
    held = lake.arrow(
        "quality", columns=["challenger"], filter=(ds.field("task") == task_name) & (ds.field("challenger") == version)
    )
    if len(held):
        return
    with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
        folder = registry.load_checkpoint(task_name, version, Path(scratch))
        rows = json.loads((folder / "quality.json").read_text())
    parent = registry.tags(task_name, version)["evergreen.parent"]
    if parent:
        siblings = [child.number for child in registry.children(task_name, int(parent))]
        rows = _first_scores(lake, task_name, siblings, rows)
    lake.append("quality", as_table([
        {**row, "model_version": version if row["role"] == "challenger" else row["model_version"]} for row in rows
    ], task_name, version))


def _first_scores(
    lake: Lake, task_name: str, siblings: Sequence[int], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows without those of a landed window that a sibling's update has scored, in the same role and metric."""
    windows = [datetime.fromisoformat(row["window"]) for row in rows if row["scored_on"] == "window"]
    if not windows:
        return rows
    keys = ["window", "role", "metric"]
    held = lake.arrow("quality", columns=keys, filter=(
        (ds.field("task") == task_name) & (ds.field("scored_on") == "window") & ds.field("challenger").isin(siblings)
        & (ds.field("window") >= pa.scalar(min(windows), TIME))
    ))
    known = set(zip(*(held[name].to_pylist() for name in keys), strict=True))
    return [
        row for row in rows if row["scored_on"] != "window"
        or (datetime.fromisoformat(row["window"]), row["role"], row["metric"]) not in known
    ]
