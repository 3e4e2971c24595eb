"""How many users it takes to tell that an update is not worse, by several metrics of the same answers.

The gate compares two models on the same customers. A metric that moves by chance (a target in place 19 or 21) needs
more of them than one that looks deeper and counts a place for what it is worth, and a small shop has few. What is asked
here of real updates: how many users would show an equal model to be not worse (`gate.units_needed`), how many updates
the users that there were did show so, and whether the metric sees as large a loss as others do where a model is never
updated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.evaluation import UnitMean, ndcg_at_k, recall_at_k, unit_means
from pipeline.gate import units_needed
from pipeline.tasks.contract import Examples, Learner
from tests.benchmarks.lineage import Lineage
from tests.benchmarks.shop_log import ShopLog

DEEPEST = 500
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "recall@20": partial(recall_at_k, k=20), "recall@100": partial(recall_at_k, k=100),
    "ndcg@20": partial(ndcg_at_k, k=20), "ndcg@50": partial(ndcg_at_k, k=50), "ndcg@100": partial(ndcg_at_k, k=100),
    "ndcg@500": partial(ndcg_at_k, k=DEEPEST),
}


def judging_metrics(shop: ShopLog, first: int, halves: int, seed: int) -> dict[str, Any]:
    """For each half of the steps from `first` on (the second begins with `halves`) and each metric, what it tells.

    The metric is chosen on the first half; the second, which `make bench-learning PARTS=online_retail` judges, says
    whether that holds.
    """
    lineage = Lineage(shop, shop.task.update_schedule, seed).begin(shop.before(first))
    never, found = lineage.copy().learner, []
    for step in shop.steps_from(first):
        before = lineage.copy().learner
        lesson = lineage.update(step)
        judges = lesson.gate.keep(pc.greater(pc.list_value_length(lesson.gate.table["targets"]), 0).to_numpy())
        roles = {"before": before, "after": lineage.learner, "never": never}
        found.append((step, _scored(judges, roles)))
    return {
        f"steps {steps[0]} to {steps[-1]}": {
            name: _told([scores[name] for step, scores in found if step in steps], shop) for name in METRICS
        }
        for steps in (
            [step for step, _ in found if step < halves], [step for step, _ in found if step >= halves],
        )
    }


def _scored(judges: Examples, learners: dict[str, Learner]) -> dict[str, dict[str, np.ndarray]]:
    """metric -> role -> `[units]`, the units' means."""
    numbers: dict[str, int] = {}

    def numbered(ids: list[Any], missing: int) -> list[int]:
        return [missing if one is None else numbers.setdefault(one, len(numbers)) for one in ids]

    wanted = judges.table["targets"].to_pylist()
    longest = max(len(one) for one in wanted)
    targets = np.array([numbered(one, -1) + [-1] * (longest - len(one)) for one in wanted])
    ranked = {
        role: np.array([numbered(list(row), -2) for row in learner.answers(judges, k=DEEPEST)])  # type: ignore[attr-defined]
        for role, learner in learners.items()
    }
    units = judges.table["unit"].to_pylist()
    return {
        name: {role: unit_means(metric(answers, targets), units) for role, answers in ranked.items()}
        for name, metric in METRICS.items()
    }


def _told(steps: list[dict[str, np.ndarray]], shop: ShopLog) -> dict[str, float]:
    rules, needed, shown, gains, lead = shop.task.gate, [], [], [], []
    for scores in steps:
        change, mean = scores["after"] - scores["before"], float(scores["before"].mean())
        edge = UnitMean.of(change + rules.margin * scores["before"], swing=float(np.abs(change).max()))
        needed.append(units_needed(edge.deviation, rules.margin * mean, rules.error_rate))
        shown.append(edge.low(rules.error_rate) >= 0.0)
        gains.append(float(change.mean()) / mean)
        lead.append(float(scores["after"].mean() / scores["never"].mean()) - 1.0)
    return {
        "units": float(np.median([len(scores["after"]) for scores in steps])),
        "units_needed": float(np.median([one for one in needed if one is not None])),
        "shown_not_worse": float(np.mean(shown)), "gain": float(np.mean(gains)),
        "over_never_updated": float(np.mean(lead)),
    }
