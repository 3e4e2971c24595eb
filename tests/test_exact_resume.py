"""Two steps, a checkpoint in MLflow and a third step in a new process are three steps in a row, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint import Checkpoint, load, save
from pipeline.lake import open_lake
from pipeline.lesson import Lesson, lesson_of_change, lesson_of_everything
from pipeline.registry import open_registry
from pipeline.settings import Settings
from pipeline.snapshot import Snapshot
from pipeline.sources.simulator import ShopSimulator
from pipeline.tasks.catalogue import task_named
from tests.small_shop import publish_hours, settings_of, small_shop

pytestmark = pytest.mark.slow  # trains a shop and its updates

ROOT = Path(__file__).parents[1]
# nothing is launched in the history, and six items in the hour after it: the tables grow
SHOP = {"items": 254, "history_days": 2, "history_events": 3_000, "history_launches_per_day": 0, "launches_per_hour": 6}


def shop() -> ShopSimulator:
    return small_shop(**SHOP)


def lessons(settings: Settings) -> tuple[Lesson, Lesson]:
    """The base's lesson and that of the hour after it, at fixed versions."""
    lake = open_lake(settings)
    task = task_named("recommend", settings, lake)
    base = lesson_of_everything(task, Snapshot(lake, {"events": 1, "items": 1}), None, None)
    hour = lesson_of_change(task, Snapshot(lake, {"events": 2, "items": 2}), 1, base.ledger, 1, seed=7)
    return base, hour


def steps(learner: Any, lesson: Lesson, count: int, seed: int) -> None:
    batches = learner.batches(lesson.train, 64, np.random.default_rng(seed))
    for _ in range(count):
        learner.train_step(next(batches), 1e-2)


def third_step(learner: Any, base: Lesson, hour: Lesson, grown: bool) -> None:
    if grown:
        learner.grow(hour.context, hour.new)
    steps(learner, hour if grown else base, 1, seed=2)


def hashes(learner: Any) -> dict[str, str]:
    """sha256 of each array, with its type and shape."""
    return {
        name: f"{array.dtype} {array.shape} {hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()}"
        for name, array in learner.state().arrays.items()
    }


@dataclass
class Runs:
    """The arrays' hashes after two and three steps: in a row in one process, and resumed in another."""

    in_a_row: dict[bool, tuple[dict[str, str], dict[str, str]]]
    resumed: dict[bool, tuple[dict[str, str], dict[str, str]]]
    rows: dict[bool, int]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A history, an hour after it, a checkpoint of two steps in MLflow, and both ways on from there."""
    home = tmp_path_factory.mktemp("resume")
    settings = settings_of(home)
    publish_hours(settings, shop(), 0, 48)
    publish_hours(settings, shop(), 48)
    task = task_named("recommend", settings, open_lake(settings))
    base, hour = lessons(settings)
    runs = Runs({}, {}, {})
    for grown in (False, True):
        learner = task.learner(7)
        learner.grow(base.context, base.new)
        steps(learner, base, 2, seed=1)
        two = hashes(learner)
        if not grown:
            save(Checkpoint(learner.state(), base.ledger), home / "checkpoint")
            package = learner.package(home / "package")
            open_registry(settings).register("recommend", package, home / "checkpoint", tags={}, metrics={})
        third_step(learner, base, hour, grown)
        runs.in_a_row[grown] = two, hashes(learner)
        runs.rows[grown] = len(learner.state().arrays["items/rows"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_exact_resume", str(home)], env=environment, cwd=ROOT, capture_output=True,
        text=True, check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for grown, line in zip((False, True), done.stdout.splitlines()[-2:], strict=True):
        runs.resumed[grown] = tuple(json.loads(line))
    return runs


@pytest.mark.parametrize("grown", [False, True], ids=["same vocabulary", "vocabulary and tables grown"])
def test_a_new_process_takes_the_third_step_from_mlflow_bit_for_bit(runs: Runs, grown: bool) -> None:
    (two, three), (resumed_two, resumed_three) = runs.in_a_row[grown], runs.resumed[grown]
    assert resumed_two == two
    assert resumed_three == three
    changed = {name for name in three if three[name] != two.get(name)}
    assert {
        "recommender/user_tower/hidden_kernel", "items/rows", "items/first", "optimizer/iteration", "seed_generator/0"
    } <= changed
    counters = {"vocabulary/items/offsets", "trends/counts", "neighbours/value"}
    assert counters & changed == (counters if grown else set())
    assert runs.rows[grown] == (261 if grown else 255)


def resume(home: Path) -> None:
    """In the new process: what MLflow holds, and the third step from it."""
    settings = settings_of(home)
    folder = open_registry(settings).load_checkpoint("recommend", 1, home / "copy")
    task = task_named("recommend", settings, open_lake(settings))
    for grown in (False, True):
        learner = task.restore(load(folder).state)
        two = hashes(learner)
        third_step(learner, *lessons(settings), grown)
        print(json.dumps([two, hashes(learner)]))


if __name__ == "__main__":
    resume(Path(sys.argv[1]))
