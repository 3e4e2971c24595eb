"""One way of keeping a model fresh over a shop's log: what it learnt, how well it foresaw each step, what it cost.

Everything is Evergreen's own: lessons, growth, training, the gate. A step is scored before anything learns it, on the
examples that arrive with it, over all items seen so far.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from pipeline.checkpoint import Checkpoint, load
from pipeline.evaluation import mrr_at_k, ndcg_at_k, recall_at_k
from pipeline.lesson import Lesson, lesson_of_change, lesson_of_everything
from pipeline.registry import open_registry
from pipeline.tasks.contract import Examples, Learner, Schedule
from pipeline.training import fine_tune
from pipeline.updating import promote, retrain, update
from tests.benchmarks.shop_log import ShopLog

K = 20
NOW = datetime(2026, 1, 1, tzinfo=UTC)  # of the decisions in the registry


@dataclass
class Cost:
    """CPU-seconds of all threads of this process.

    Attributes:
        lesson: from tables to examples.
        learning: growth and training.
        compiled: whether the steps were compiled in it, which happens once for each learner that lives at a time.
    """

    lesson: float = 0.0
    learning: float = 0.0
    compiled: bool = False

    @property
    def total(self) -> float:
        """Both."""
        return self.lesson + self.learning


@dataclass
class Lineage:
    """A model and its updates.

    Attributes:
        shop: what it learns.
        schedule: of the updates.
        seed: of weights, shuffling and replay.
        costs: by step, of learning it.
        lessons: lessons that lineages with the same first model and replay share, so that each is made once; None:
            each lineage makes its own, and its cost counts.
    """

    shop: ShopLog
    schedule: Schedule
    seed: int
    costs: dict[int, Cost] = field(default_factory=dict)
    lessons: dict[tuple[Any, ...], Lesson] | None = None

    def begin(self, step: int) -> Lineage:
        """Trains from the base on everything up to `step`."""
        started = time.process_time()
        lesson = lesson_of_everything(self.shop.task, self.shop.tables(step), None, None)
        lessoned = time.process_time()
        learner = self.shop.task.learner(self.seed)
        traces = traces_of(learner)
        learner.adapt(lesson.context, lesson.train, self.shop.task.base_schedule.methods)
        learner.grow(lesson.context, lesson.new)
        trained = fine_tune(
            learner, self.shop.task.restore, lesson.train, lesson.tune, self.shop.task.base_schedule, seed=self.seed
        )
        ended = time.process_time()
        self.costs[step] = Cost(lessoned - started, ended - lessoned, traces_of(learner) > traces)
        self.learner, self.ledger, self.passes = trained.learner, lesson.ledger, trained.best_epoch
        return self

    def copy(self, schedule: Schedule | None = None) -> Lineage:
        """Another lineage that goes on from here: the same bits."""
        other = Lineage(self.shop, schedule or self.schedule, self.seed)
        other.learner, other.ledger = self.shop.task.restore(self.learner.state()), self.ledger
        return other

    def adopt(self, other: Lineage) -> None:
        """Takes another lineage's first training for its own."""
        self.learner, self.ledger, self.costs = other.learner, other.ledger, dict(other.costs)

    def update(self, step: int) -> Lesson:
        """Learns what came with `step`."""
        started = time.process_time()
        lesson = self.lesson(step)
        lessoned, learner = time.process_time(), self.learner
        traces = traces_of(learner)
        learner.grow(lesson.context, lesson.new)
        trained = fine_tune(
            learner, self.shop.task.restore, lesson.train, lesson.tune, self.schedule,
            seed=self.seed + lesson.ledger.updates,
        )
        trained.learner.count(lesson.new)  # type: ignore[attr-defined]  # a recommender
        ended = time.process_time()
        self.costs[step] = Cost(lessoned - started, ended - lessoned, traces_of(learner) > traces)
        self.learner, self.ledger = trained.learner, lesson.ledger
        return lesson

    def lesson(self, step: int) -> Lesson:
        """What an update of `step` would read."""
        schedule = self.schedule
        replay = (schedule.replay_ratio, schedule.least_replayed, schedule.filled_up_to, schedule.methods.replay)
        key = (self.seed, step, *replay)
        if self.lessons is None or self.schedule.methods.replay == "loss":
            return self._lesson(step)
        if key not in self.lessons:
            self.lessons[key] = self._lesson(step)
        return self.lessons[key]

    def _lesson(self, step: int) -> Lesson:
        task = _WithSchedule(self.shop.task, self.schedule)
        start = self.ledger.versions[task.table]
        return lesson_of_change(
            task, self.shop.tables(step), 1, self.ledger, start, self.seed,
            losses=lambda examples: self.learner.losses(examples, self.schedule.batch_size, learnt=True),
        )

    def on_first_day(self, step: int) -> tuple[float, int]:
        """How many first-day sales of a step's new items are foreseen, and how many there are.

        The model takes in the catalogue as it is after the step, but nothing that was chosen in it; what the customer
        had before is left out of the answers, as a new item never is among it.
        """
        shop, task = self.shop, self.shop.task
        arrived = Step.of(shop, step, set()).examples
        before = shop.items_before(step)
        days = arrived.table["time"].to_numpy().astype("datetime64[D]")
        first: dict[str, np.datetime64] = {}
        for day, targets in zip(days, arrived.table["targets"].to_pylist(), strict=True):
            for item in targets:
                if item not in before:
                    first.setdefault(item, day)
        learner = task.restore(self.learner.state())
        learner.grow(task.context(shop.tables(step), self.ledger.versions), arrived.take(np.arange(0)))
        answers = learner.answers(arrived, new_only=True)
        found, wanted = 0.0, 0
        for day, targets, answer in zip(days, arrived.table["targets"].to_pylist(), answers, strict=True):
            new = [item for item in targets if first.get(item) == day]
            found, wanted = found + len(set(new) & set(answer)), wanted + len(new)
        return found, wanted


class ServedLineage:
    """A lineage that lives in the registry: the jobs that the DAGs call, with gate, registration and promotion.

    Attributes:
        decisions: by step, what the gate decided.
        job_cpu_s: by step, CPU-seconds of the whole job: reading, training, scoring, packing, registering.
    """

    def __init__(self, shop: ShopLog) -> None:
        """Nothing serves yet."""
        self.shop = shop
        self.decisions: dict[str, str] = {}
        self.job_cpu_s: dict[str, float] = {}

    @classmethod
    def begin(cls, shop: ShopLog, step: int) -> ServedLineage:
        """The first champion, of everything up to `step`."""
        served = cls(shop)
        served._act(step, lambda: retrain(
            "recommend", shop.settings, NOW, "benchmark", report=_quiet, versions=shop.versions[step]
        ))
        return served

    def update(self, step: int) -> None:
        """An update from the champion up to `step`, and what the gate says of it."""
        champion = open_registry(self.shop.settings).champion("recommend")
        plan = {
            "task": "recommend", "champion": champion, "versions": self.shop.versions[step],
            "start": self._checkpoint(champion).ledger.versions[self.shop.task.table],
        }
        self._act(step, lambda: update(plan, self.shop.settings, NOW, report=_quiet))

    @property
    def learner(self) -> Learner:
        """The champion's."""
        champion = open_registry(self.shop.settings).champion("recommend")
        return self.shop.task.restore(self._checkpoint(champion).state)

    def _act(self, step: int, job: Callable[[], Mapping[str, Any]]) -> None:
        started = time.process_time()
        done = job()
        promote("recommend", int(done["version"]), self.shop.settings, NOW)
        self.decisions[str(step)], self.job_cpu_s[str(step)] = done["decision"], time.process_time() - started

    def _checkpoint(self, version: int) -> Checkpoint:
        with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
            return load(open_registry(self.shop.settings).load_checkpoint("recommend", version, Path(scratch)))


class WithoutText:
    """A task whose items have no text: their vectors are zero."""

    def __init__(self, task: Any) -> None:
        """Takes the task."""
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def context(self, tables: Any, since: Any) -> pa.Table:
        """The task's, with zeros for text."""
        context = self._task.context(tables, since)
        place, kind = context.schema.get_field_index("text_vector"), context.schema.field("text_vector").type
        zeros = pa.array(np.zeros(len(context) * kind.list_size, np.float32))
        return context.set_column(place, "text_vector", pa.FixedSizeListArray.from_arrays(zeros, kind.list_size))


def traces_of(learner: Any) -> int:
    """How often the learner's training step has been compiled."""
    return int(learner._trainer._train.experimental_get_tracing_count())


def measured_compilation(shop: ShopLog, step: int) -> float:
    """CPU-seconds that a process spends once on compiling the steps: a first epoch of a few examples less a second.

    Args:
        shop: whose examples.
        step: they are of what came up to it.
    """
    tables = shop.tables(step)
    rows = shop.task.teaching(tables, tables.arrow("events").slice(0, 200))
    few = shop.task.examples(tables, rows)
    learner = shop.task.learner(0)
    learner.grow(shop.task.context(tables, None), few)
    seconds = []
    for _ in range(2):
        started = time.process_time()
        for batch in learner.batches(few, 256, np.random.default_rng(0)):
            learner.train_step(batch, 0.0)
        learner.loss(few, 256)
        seconds.append(time.process_time() - started)
    return seconds[0] - seconds[1]


def measured_steps(shop: ShopLog, step: int, seed: int, rounds: int = 5) -> dict[str, float]:
    """Steps a second of the training loop, and of a bare loop over the same compiled step with its arrays made before.

    Returns:
        `loop_steps_per_s`, `bare_steps_per_s`, `vs_bare_loop` (1 would be as fast), `outside_the_step` (share of the
        loop's time), medians of `rounds` interleaved passes.
    """
    lesson = lesson_of_everything(shop.task, shop.tables(step), 56, None)
    learner = shop.task.learner(seed)
    learner.grow(lesson.context, lesson.new)
    schedule = replace(shop.task.update_schedule, epochs=1)
    batches = [dict(one) for one in learner.batches(lesson.new, schedule.batch_size, np.random.default_rng(seed))]
    bare = [(tf.constant(learner._tables.rows(one["rows"])), {
        name: tf.constant(value) for name, value in one.items() if name != "rows"
    }) for one in batches]
    times: dict[str, list[float]] = {"loop": [], "bare": []}
    nothing, rate = lesson.new.take(np.arange(0)), tf.constant(schedule.learning_rate, tf.float32)
    for _ in range(rounds + 1):
        started = time.perf_counter()
        fine_tune(learner, shop.task.restore, lesson.new, nothing, schedule, seed)
        times["loop"].append(time.perf_counter() - started)
        started = time.perf_counter()
        for rows, arrays in bare:
            learner._trainer._train(rows, arrays, rate)[0].numpy()
        times["bare"].append(time.perf_counter() - started)
    loop, alone = (float(np.median(times[name][1:])) for name in ("loop", "bare"))  # the first compiles
    return {
        "loop_steps_per_s": len(batches) / loop, "bare_steps_per_s": len(batches) / alone,
        "vs_bare_loop": alone / loop, "outside_the_step": 1.0 - alone / loop,
    }


def _quiet(line: str) -> None:
    """Reports to nobody."""


class _WithSchedule:
    """A task whose updates have another schedule."""

    def __init__(self, task: object, schedule: Schedule) -> None:
        self._task, self.update_schedule = task, schedule

    def __getattr__(self, name: str) -> object:
        return getattr(self._task, name)


@dataclass(frozen=True)
class Step:
    """A step's examples as a judge sees them.

    Attributes:
        number: of the step.
        examples: that are judged: with a history and a target.
        unseen: [n] bool, a target is no item that was seen before the step.
    """

    number: int
    examples: Examples
    unseen: np.ndarray

    @classmethod
    def of(cls, shop: ShopLog, step: int, known: set[str], share: float = 1.0) -> Step:
        """The examples that came with a step; `share` of the units, by the hash of the split.

        Args:
            shop: whose log.
            step: which.
            known: ids of the items seen before; those of the step are added.
            share: of the units.
        """
        task, tables = shop.task, shop.tables(step)
        before = shop.versions[shop.before(step)]
        changes = shop.lake.changes(task.table, before[task.table], tables.versions[task.table])
        rows = changes.filter(pc.not_equal(changes["change"], "delete")).drop_columns(["change"])
        rows = rows.sort_by([("event_id", "ascending")])
        if share < 1.0:
            units = pc.unique(rows["user_id"]).to_pylist()
            chosen = [unit for unit in units if unit and int(unit[:8], 16) < share * 16**8]  # masked: hex digits
            rows = rows.filter(pc.is_in(rows["user_id"], pa.array(chosen, pa.string())))
        examples = task.examples(tables, rows)
        table = examples.table
        judged = (pc.list_value_length(table["history_items"]).to_numpy() > 0) & (
            pc.list_value_length(table["targets"]).to_numpy() > 0
        )
        examples = examples.keep(judged)
        unseen = np.array([not known.issuperset(targets) for targets in examples.table["targets"].to_pylist()], bool)
        known.update(pc.unique(changes["item_id"]).to_pylist())
        return cls(step, examples, unseen)


def judged(step: Step, answers: np.ndarray, fresh: np.ndarray | None = None) -> pd.DataFrame:
    """The metrics of each example: `step`, `unit`, `unseen`, `recall`, `ndcg`, `mrr`, and `fresh_recall`.

    Args:
        step: the examples.
        answers: [n, K] object, item ids, None after the end.
        fresh: the same without what the history holds; `fresh_recall` is then the recall of the targets outside the
            history (nan where there are none).
    """
    table = step.examples.table
    numbers: dict[str, int] = {}
    targets = table["targets"].to_pylist()
    ranked = _numbered(answers, numbers)
    wanted = _padded(targets, numbers)
    frame = pd.DataFrame({
        "step": step.number, "unit": table["unit"].to_pylist(), "unseen": step.unseen,
        "recall": recall_at_k(ranked, wanted, K), "ndcg": ndcg_at_k(ranked, wanted, K),
        "mrr": mrr_at_k(ranked, wanted, K),
    })
    if fresh is not None:
        outside = [
            sorted(set(chosen) - set(history))
            for chosen, history in zip(targets, table["history_items"].to_pylist(), strict=True)
        ]
        frame["fresh_recall"] = recall_at_k(_numbered(fresh, numbers), _padded(outside, numbers), K)
    return frame


def _numbered(answers: np.ndarray, numbers: dict[str, int]) -> np.ndarray:
    flat = [-1 if item is None else numbers.setdefault(item, len(numbers)) for item in answers.ravel()]
    return np.array(flat, np.int64).reshape(answers.shape)


def _padded(targets: list[list[str]], numbers: dict[str, int]) -> np.ndarray:
    table = np.full((len(targets), max((len(one) for one in targets), default=1) or 1), -1, np.int64)
    for row, one in enumerate(targets):
        table[row, : len(one)] = [numbers.setdefault(item, len(numbers)) for item in one]
    return table
