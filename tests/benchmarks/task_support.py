"""The task `support` on banking77 (Casanueva et al. 2020): its intents arrive in 8 steps, then all are asked for.

The intents are divided at random into 8 steps. The first trains from the base; each further one is an update that sees
the new intents' messages and four replayed old ones for each, by the task's own schedules. Beside it stands the same
learner trained from the base on all messages at once ("joint"). A tenth of the training messages tunes and is not
learnt. Cost is CPU-seconds of growth and training, the texts' vectors taken from the cache in both; an update's beside
the joint training's.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pipeline.evaluation import interval
from pipeline.tasks.contract import Examples, Schedule, together
from pipeline.tasks.support import Support
from pipeline.tasks.text_baseline import fitted
from pipeline.training import fine_tune
from tests.benchmarks.text_data import data_set, embedded, examples_of, no_context, text_lake, tunes

PROTOCOL = " ".join((__doc__ or "").split("\n\n", 1)[-1].split())
SEEDS = (0, 1, 2)
STEPS = 8


def measure(seeds: tuple[int, ...] = SEEDS) -> dict[str, float]:
    """Means over the seeds: accuracy after the last step, points below joint, cost of an update beside it; and more."""
    train, test = (data_set(f"banking77_{part}.parquet") for part in ("train", "test"))
    embedding = Support(text_lake(), "minilm").embedding
    learnt, asked = (
        embedded(examples_of(part["text"].tolist(), intent=part["category"].tolist()), embedding)
        for part in (train, test)
    )
    runs = [_run(learnt, asked, seed) for seed in seeds]
    figures = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    names, chances = fitted(train["text"].tolist(), train["category"].tolist(), test["text"].tolist())
    figures["tfidf_accuracy"] = float((np.array(names)[chances.argmax(axis=1)] == test["category"]).mean())
    return figures


def _run(learnt: Examples, asked: Examples, seed: int) -> dict[str, float]:
    task = Support(text_lake(), "minilm")
    generator = np.random.default_rng(seed)
    tuning = tunes(learnt)
    train, tune = learnt.keep(~tuning), learnt.keep(tuning)
    joint, joint_seconds = _trained(task, task.learner(seed), train, train.keep(np.zeros(len(train), bool)), tune,
                                    task.base_schedule, seed)
    steps = _steps(train, generator)
    learner, first = _trained(task, task.learner(seed), steps[0], steps[0].keep(np.zeros(len(steps[0]), bool)),
                              _of_same(tune, steps[:1]), task.base_schedule, seed)
    seconds, forgotten = [], []
    for number in range(1, STEPS):
        before = together(*steps[:number])
        schedule = task.update_schedule
        wanted = schedule.replayed_beside(len(steps[number]))
        replayed = before.take(np.sort(generator.permutation(len(before))[:wanted]))
        learner, spent = _trained(task, learner, steps[number], replayed, _of_same(tune, steps[: number + 1]),
                                  schedule, seed + number)
        seconds.append(spent)
        of_first = learner.score(_of_same(asked, steps[:1])).frame["accuracy"].mean()
        forgotten.append(float(of_first))
    scores, of_joint = learner.score(asked).frame, joint.score(asked).frame
    mean, low, high = interval(scores["accuracy"].to_numpy(), scores["unit"], seed)
    threshold = learner.compact().threshold
    chances = learner.compact().probabilities(
        np.stack(asked.table["text_vector"].to_pylist()).astype(np.float32), asked.table["text"].to_pylist()
    )["intent"]
    right = scores["accuracy"].to_numpy() > 0.5
    sure = chances.max(axis=1) >= threshold.least
    return {
        "accuracy": mean, "accuracy_low": low, "accuracy_high": high,
        "joint_accuracy": float(of_joint["accuracy"].mean()),
        "gap_to_joint": 100.0 * float(of_joint["accuracy"].mean() - mean),
        "cost_vs_joint": float(np.mean(seconds)) / joint_seconds, "joint_cpu_s": joint_seconds,
        "all_steps_cost_vs_joint": (first + sum(seconds)) / joint_seconds,
        "first_intents_accuracy_at_end": forgotten[-1], "first_intents_accuracy_after_step_2": forgotten[0],
        "calibration_error": calibration_error(chances.max(axis=1), right),
        "answered_share": float(sure.mean()), "answered_precision": float(right[sure].mean()) if sure.any() else 1.0,
    }


def _trained(
    task: Support, learner: Any, new: Examples, replayed: Examples, tune: Examples, schedule: Schedule, seed: int
) -> tuple[Any, float]:
    started = time.process_time()
    learner.grow(no_context(new), new)
    train = together(new.marked(replayed=False), replayed.marked(replayed=True))
    trained = fine_tune(learner, task.restore, train, tune, schedule, seed)
    return trained.learner, time.process_time() - started


def _steps(examples: Examples, generator: np.random.Generator) -> list[Examples]:
    names = np.array(examples.table["intent"].to_pylist())
    groups = np.array_split(generator.permutation(np.unique(names)), STEPS)
    return [examples.keep(np.isin(names, group)) for group in groups]


def _of_same(examples: Examples, steps: list[Examples]) -> Examples:
    """Those of the intents of some steps."""
    known = {name for step in steps for name in step.table["intent"].to_pylist()}
    return examples.keep(np.array([name in known for name in examples.table["intent"].to_pylist()]))


def calibration_error(confidences: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error: mean distance of confidence and accuracy over bins of confidence.

    Args:
        confidences: [n] float.
        right: [n] bool.
        bins: 15, as in Guo et al. 2017.
    """
    place = np.minimum((confidences * bins).astype(int), bins - 1)
    gaps = [
        abs(float(confidences[place == one].mean() - right[place == one].mean())) * float((place == one).mean())
        for one in np.unique(place)
    ]
    return float(sum(gaps))
