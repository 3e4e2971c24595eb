"""Beyond one machine in figures, written to results/serving.json: `make bench-beyond PARTS="workers celery spark"`.

`celery` is told of in beyond_celery.py, `spark` and a further part, `checks`, in beyond_spark.py.

`workers2`: one retrain's lesson is trained by one process and by two, from the same learner; the figure is the largest
difference between any two of their weights, item rows, moments and counters included, after one pass. Once over a small
catalogue (every item a candidate of the softmax) and once over a large one (sampled). `…_whole_retrain` is the same
after all passes: two ways of adding the same numbers part by rounding, and Adam divides small differences by small
moments, so it grows with the steps; the tuning losses beside it say whether the models are still one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.lake import open_lake
from pipeline.lesson import lesson_of_everything
from pipeline.settings import Settings
from pipeline.snapshot import Snapshot
from pipeline.tasks.catalogue import task_named
from pipeline.tasks.contract import State
from pipeline.training import Trained
from pipeline.workers import train_with
from tests.benchmarks.bench_serving import write
from tests.benchmarks.beyond_celery import measure_celery
from tests.benchmarks.beyond_spark import measure_checks, measure_spark
from tests.small_shop import publish_hours, settings_of, small_shop

SMALL = {"items": 300, "users": 400}
LARGE = {"items": 9_000, "users": 400}  # more than recommend_batches.EXACT_ITEMS
HOURS = 72
PROTOCOLS = {
    "workers": "one and two processes on one machine of two cores, each from the same learner",
    "celery": "two workers in network namespaces of one machine of two cores, one killed in the middle of an update, "
              "twice: kill -9, then its cable cut and kill -9",
    "spark": "Online Retail's log once and several times, with other customers; both engines on one machine, two cores",
    "checks": "a million random events, some of them bad; two cores, Spark has started before",
}


def trained_by(settings: Settings, workers: int, steps: int, passes: int = 1) -> tuple[Trained, float]:
    """What so many workers make of the lake's lesson in at least `steps` steps and `passes` passes, and the seconds."""
    lake = open_lake(settings)
    task = task_named("recommend", settings, lake)
    tables = Snapshot(lake, {table: lake.version(table) for table in ("events", "items")})
    lesson = lesson_of_everything(task, tables, None, None)
    learner = task.learner(settings.seed)
    learner.grow(lesson.context, lesson.new)
    schedule = replace(task.base_schedule, epochs=passes, least_steps=steps)
    started = time.monotonic()
    trained = train_with(
        replace(settings, workers=workers), task, learner, lesson.train, lesson.tune, schedule, seed=settings.seed,
        report=print,
    )
    return trained, time.monotonic() - started


def difference(one: State, other: State) -> float:
    """The largest absolute difference between any two numbers of the states."""
    assert one.arrays.keys() == other.arrays.keys()
    numbers = [name for name in one.arrays if np.issubdtype(one.arrays[name].dtype, np.number)]
    apart = {name: np.abs(one.arrays[name].astype(np.float64) - other.arrays[name]) for name in numbers}
    return max(float(values.max(initial=0.0)) for values in apart.values())


def measure_workers() -> dict[str, float]:
    """Two workers beside one, on both kinds of catalogue."""
    figures: dict[str, float] = {}
    for kind, size in (("small", SMALL), ("large", LARGE)):
        with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
            settings = settings_of(Path(folder))
            publish_hours(settings, small_shop(history_days=3, history_events=5_000, **size), 0, HOURS)
            figures |= _beside(settings, f"_{kind}_catalogue", 1)
            if kind == "small":
                figures |= _beside(settings, "_whole_retrain", 200)
    kinds = [figures[f"workers2.max_abs_difference_{kind}_catalogue"] for kind in ("small", "large")]
    return {"workers2.max_abs_difference": max(kinds), **figures}


def _beside(settings: Settings, name: str, steps: int) -> dict[str, float]:
    (alone, seconds), (both, seconds_both) = (trained_by(settings, workers, steps) for workers in (1, 2))
    assert (alone.steps, alone.best_epoch) == (both.steps, both.best_epoch)
    return {
        f"workers2.max_abs_difference{name}": difference(alone.learner.state(), both.learner.state()),
        f"workers2.steps{name}": float(both.steps), f"workers2.seconds{name}": seconds_both,
        f"workers2.seconds_alone{name}": seconds,
        f"workers2.tuning_loss{name}": both.tuning_losses[-1],
        f"workers2.tuning_loss_alone{name}": alone.tuning_losses[-1],
    }


def main() -> None:
    """Measures all or what is named."""
    parts = {
        "workers": measure_workers, "celery": measure_celery, "spark": measure_spark, "checks": measure_checks,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure (default: all)")
    chosen = parser.parse_args().parts or list(parts)
    for name in chosen:
        print(f"measuring {name}", flush=True)
        figures = parts[name]()
        below = "beyond" if name == "workers" else f"beyond_{name}"
        write(figures, [name], f"make bench-beyond PARTS={name}; {PROTOCOLS[name]}", below=below)


if __name__ == "__main__":
    sys.exit(main())
