"""The methods of the field, one at a time beside the default update: what each gives, what it costs, on or off and why.

Online Retail's weeks 44 to 53, each foreseen before it is learnt, as in the part `online_retail`. Every way begins at
the same first model and reads the same lessons, so what differs is the method; the difference is of the same baskets,
and its interval is over users. What another draw of batches, dropout and replay changes is a row of its own: no method
is read closer than that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluation import interval
from tests.benchmarks.lineage import Lineage, Step, judged
from tests.benchmarks.method_rows import DEFAULT, METHODS, Method
from tests.benchmarks.shop_log import ShopLog


@dataclass
class Comparison:
    """The ways of one log beside each other.

    Attributes:
        shop: whose log.
        steps: that are foreseen and then learnt.
        starts: the first model of each seed.
        lessons: shared by all ways that read the same.
    """

    shop: ShopLog
    steps: Sequence[Step]
    starts: Sequence[Lineage]
    lessons: dict[tuple[Any, ...], Any]

    @classmethod
    def begin(cls, shop: ShopLog, steps: Sequence[Step], seeds: Sequence[int]) -> Comparison:
        """Trains the first model of each seed."""
        first = shop.before(steps[0].number)
        starts = [Lineage(shop, shop.task.update_schedule, seed).begin(first) for seed in seeds]
        return cls(shop, steps, starts, {})

    def run(self, method: Method) -> tuple[pd.DataFrame, float]:
        """Each example's metrics, mean over seeds, with its `unit`; and CPU-seconds of an update (the median)."""
        runs, costs = [], []
        for start in self.starts:
            lineage = self._lineage(start, method)
            frames = []
            for step in self.steps:
                frames.append(judged(step, lineage.learner.answers(step.examples)))
                lineage.update(step.number)
            runs.append(pd.concat(frames))
            costs += [lineage.costs[step.number].learning for step in self.steps]
        means = np.mean([run[["recall", "ndcg"]].to_numpy() for run in runs], axis=0)
        frame = pd.DataFrame({"unit": runs[0]["unit"].to_numpy(), "recall": means[:, 0], "ndcg": means[:, 1]})
        frame.attrs["by_seed"] = [float(run["recall"].mean()) for run in runs]
        return frame, float(np.median(costs))  # one of them compiles the step

    def _lineage(self, start: Lineage, method: Method) -> Lineage:
        schedule = method.change(self.shop.task.update_schedule)
        if not method.from_base:
            lineage = start.copy(schedule)
            lineage.seed, lineage.lessons = start.seed + method.seed, self.lessons
            return lineage
        task = copy(self.shop.task)
        task.base_schedule, task.update_schedule = method.change(task.base_schedule), schedule
        shop = ShopLog(self.shop.protocol, self.shop.settings, self.shop.versions)
        shop.__dict__["task"] = task
        return Lineage(shop, schedule, start.seed + method.seed).begin(shop.before(self.steps[0].number))


def row(frame: pd.DataFrame, cpu_s: float, default: pd.DataFrame) -> dict[str, Any]:
    """A method's figures beside the default update on the same examples; the difference is the mean over users."""
    mean, low, high = interval((frame["recall"] - default["recall"]).to_numpy(), default["unit"].to_numpy(), seed=0)
    return {
        "recall": float(frame["recall"].mean()), "ndcg": float(frame["ndcg"].mean()),
        "recall_by_seed": frame.attrs["by_seed"], "difference": mean, "interval": [low, high], "cpu_s": cpu_s,
    }


def compare(
    shop: ShopLog, steps: Sequence[Step], seeds: Sequence[int], done: Mapping[str, Mapping[str, Any]],
    wanted: Collection[str], commit: str, keep: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Runs the methods that are `wanted` and not `done` by the same code and seeds.

    Args:
        shop: whose log.
        steps: that are foreseen and learnt.
        seeds: of the lineages.
        done: rows that are there.
        wanted: names; none: all.
        commit: of the code.
        keep: is given all rows whenever there is one more.

    Raises:
        ValueError: a method is wanted that is none.
    """
    if unknown := [name for name in wanted if name not in METHODS]:
        raise ValueError(f"A method must be one of {', '.join(METHODS)}; received {', '.join(unknown)}.")
    same = {"commit": commit, "seeds": list(seeds)}
    rows = dict(done)
    missing = [
        name for name in METHODS
        if name != DEFAULT and name in (wanted or METHODS) and {**rows.get(name, {}), **same} != rows.get(name)
    ]
    if not missing:
        return rows
    comparison = Comparison.begin(shop, steps, seeds)
    default, cpu_s = comparison.run(METHODS[DEFAULT])
    for name in [DEFAULT, *missing]:
        frame, cost = (default, cpu_s) if name == DEFAULT else comparison.run(METHODS[name])
        found = row(frame, cost, default) | {"default_recall": float(default["recall"].mean()), "default_cpu_s": cpu_s}
        rows[name] = found | same | {"done": datetime.now(UTC).isoformat(timespec="seconds")}
        keep({one: rows[one] for one in METHODS if one in rows})
    return {one: rows[one] for one in METHODS if one in rows}
