"""Ways of keeping a model fresh, side by side on a log: each foresees a step, then learns it.

Compared are: never updated, updated with new data only, Evergreen's update (of the first seed its whole job, gate and
registry included), a full retrain at each step, the frequency baseline of the gate, and rivals from PyPI, trained anew
at each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluation import interval
from tests.benchmarks.lineage import Lineage, ServedLineage, Step, judged, measured_compilation
from tests.benchmarks.rivals_on_log import rival_answers
from tests.benchmarks.shop_log import ShopLog

Figures = dict[str, float]


def side_by_side(shop: ShopLog, seeds: Sequence[int]) -> tuple[Figures, dict[str, Any], list[Lineage]]:
    """All ways of keeping a model fresh and the rivals, on each of the log's test steps; figures carry its name.

    The last is Evergreen's way, a lineage a seed, after the last step.
    """
    log = shop.protocol.name
    steps = judged_steps(shop, shop.protocol.first_test_step)
    first = shop.before(steps[0].number)
    compilation = measured_compilation(shop, first)
    ours: list[Any] = [ServedLineage.begin(shop, first)]
    here = [Lineage(shop, shop.task.update_schedule, seed).begin(first) for seed in seeds[1:] or seeds]
    ours += here if len(seeds) > 1 else []  # of a single seed the served one is judged, and the other tells the cost
    start = here[0]
    alone = replace(shop.task.update_schedule, replay_ratio=0.0, least_replayed=0, filled_up_to=0)
    ways: dict[str, list[Any]] = {
        "ours": ours, "never updated": [start.copy()], "new data only": [start.copy(alone)],
    }
    frames: dict[str, list[list[pd.DataFrame]]] = {name: [[] for _ in way] for name, way in ways.items()}
    full = [Lineage(shop, shop.task.update_schedule, seed) for seed in seeds]
    frames |= {"full retrain": [[] for _ in full], "most bought": [[]]}
    rivals_cpu: dict[str, float] = {}
    for step in steps:
        for one in full:
            same = next((other for other in here if other.seed == one.seed), None)
            if step is steps[0] and same is not None:
                one.adopt(same)
            else:
                one.begin(shop.before(step.number))
        for name, lineages in {**ways, "full retrain": full}.items():
            for place, lineage in enumerate(lineages):
                frames[name][place].append(answered(step, lineage.learner))
        frames["most bought"][0].append(baseline_scores(shop, step))
        for name, (answers, fresh, cpu) in rival_answers(shop, step).items():
            frames.setdefault(name, [[]])[0].append(judged(step, answers, fresh))
            rivals_cpu[name] = rivals_cpu.get(name, 0.0) + cpu
        for lineage in (ours[0], *here, *ways["new data only"]):
            lineage.update(step.number)
        say(f"{log}, step {step.number}: ours {frames['ours'][0][-1]['recall'].mean():.3f}")
    pooled = {name: [pd.concat(one) for one in runs] for name, runs in frames.items()}
    learnt = [step.number for step in steps[:-1]]  # the steps that a full retrain learnt too
    cost = {
        "ours": float(np.mean([mean_learning(one, learnt, compilation) for one in here])),
        "new data only": mean_learning(ways["new data only"][0], learnt, compilation),
        "full retrain": float(np.mean([mean_learning(one, learnt, compilation) for one in full])),
        **{name: cpu / len(steps) for name, cpu in rivals_cpu.items()},
    }
    lessons = {
        "ours": float(np.mean([one.costs[number].lesson for one in here for number in learnt])),
        "full retrain": float(np.mean([one.costs[number].lesson for one in full for number in learnt])),
    }
    table = {name: summary(runs) | {"cpu_s_per_step": cost.get(name, 0.0)} for name, runs in pooled.items()}
    ours_mean, full_mean = mean_of(pooled["ours"], "recall"), mean_of(pooled["full retrain"], "recall")
    figures = {
        f"{log}.recall_at_20": ours_mean,
        f"{log}.ndcg_at_20": mean_of(pooled["ours"], "ndcg"),
        f"{log}.quality_vs_full": ours_mean / full_mean,
        f"{log}.cost_vs_full": cost["ours"] / cost["full retrain"],
    }
    if beside := mean_of(pooled["item-kNN"], "fresh_recall"):
        figures[f"{log}.new_to_user_vs_item_knn"] = mean_of(pooled["ours"], "fresh_recall") / beside
    served = ours[0]
    return figures, {
        log: table, f"{log}_by_week": {name: by_step(runs) for name, runs in pooled.items()},
        f"{log}_served": {
            "decisions": served.decisions, "whole_job_cpu_s": served.job_cpu_s, "compilation_cpu_s": compilation,
            "recall": mean_of(pooled["ours"][:1], "recall"),
            "lesson_cpu_s": lessons,
        },
    }, here


def judged_steps(shop: ShopLog, first: int) -> list[Step]:
    """The steps from `first` on, to be foreseen."""
    known = shop.items_before(first) if first in shop.versions else shop.items_before(shop.steps_from(first)[0])
    return [Step.of(shop, number, known) for number in shop.steps_from(first)]


def answered(step: Step, learner: Any, *, fresh: bool = True) -> pd.DataFrame:
    """What a model foresees of a step."""
    answers = learner.answers(step.examples)
    return judged(step, answers, learner.answers(step.examples, new_only=True) if fresh else None)


def recall(step: Step, lineage: Lineage) -> float:
    """A lineage's recall@20 on a step."""
    return float(judged(step, lineage.learner.answers(step.examples))["recall"].mean())


def baseline_scores(shop: ShopLog, step: Step) -> pd.DataFrame:
    """The gate's plain baseline; it knows what was popular until the day before each basket."""
    frame = shop.task.baseline(shop.tables(step.number), step.examples).frame
    return pd.DataFrame({
        "step": step.number, "unit": frame["unit"], "unseen": step.unseen, "recall": frame["recall@20"],
        "ndcg": frame["ndcg@20"], "mrr": frame["mrr@20"], "fresh_recall": np.nan,
    })


def mean_learning(lineage: Lineage, steps: Sequence[int], compilation: float) -> float:
    """CPU-seconds of growth and training, less those of compiling, mean over those of the steps that it learnt."""
    costs = [lineage.costs[number] for number in steps if number in lineage.costs]
    return float(np.mean([one.learning - compilation * one.compiled for one in costs]))


def mean_of(runs: Sequence[pd.DataFrame], metric: str) -> float:
    """The mean over examples, mean over runs."""
    return float(np.mean([one[metric].mean() for one in runs]))


def summary(runs: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """Means over examples and runs; the interval is a bootstrap over users of the first run (users weigh alike)."""
    first = runs[0]
    _, low, high = interval(first["recall"].to_numpy(), first["unit"].to_numpy(), seed=0)
    metrics = [
        name for name in ("recall", "ndcg", "mrr", "fresh_recall") if name in first and first[name].notna().any()
    ]
    return {name: mean_of(runs, name) for name in metrics} | {
        "recall_by_seed": [float(one["recall"].mean()) for one in runs], "user_interval": [low, high],
        "examples": [len(one) for one in runs],
    }


def by_step(runs: Sequence[pd.DataFrame]) -> dict[str, float]:
    """Recall by step, mean over runs."""
    means = [one.groupby("step")["recall"].mean() for one in runs]
    return {str(number): float(value) for number, value in (sum(means) / len(means)).items()}


def say(line: str) -> None:
    """Progress for people, with the time."""
    print(f"{datetime.now():%H:%M:%S} {line}", flush=True)


def as_text(table: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of `summary`, best way first, as people read it."""
    ordered = sorted(table.items(), key=lambda way: -way[1]["recall"])
    lines = [f"{'':16}{'Recall@20':>10}{'NDCG@20':>10}{'new to user':>13}{'CPU-s a step':>14}"]
    for name, row in ordered:
        fresh = f"{row['fresh_recall']:.3f}" if "fresh_recall" in row else ""
        cost = f"{row['cpu_s_per_step']:.1f}" if row["cpu_s_per_step"] else ""
        lines.append(f"{name:16}{row['recall']:>10.3f}{row['ndcg']:>10.3f}{fresh:>13}{cost:>14}")
    return "\n".join(lines)
