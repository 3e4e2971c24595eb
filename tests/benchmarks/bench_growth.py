"""What growth costs: an update's learning job as catalogue or history grow, a learner's memory at a million items, and
from how many items on a sampled softmax is cheaper than the exact one.

Run it: `python tests/benchmarks/bench_growth.py [cost] [memory] [steps]` (all three if none is named).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.lake import Lake
from pipeline.lesson import lesson_of_change, lesson_of_everything
from pipeline.locking import locks_of
from pipeline.schema import EVENTS, ITEMS, QUARANTINE_SCHEMA, TIME
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples
from pipeline.tasks.recommend import Recommend
from pipeline.tasks.recommend_examples import EXAMPLES_SCHEMA
from pipeline.training import fine_tune
from pipeline.window import HOUR, Window

START = datetime(2024, 1, 1, tzinfo=UTC)
TEXT = 384  # MiniLM's
REPEATS = 15  # on a slow, shared machine ten times the history cost 1.20 x in five rounds, 1.06 and 1.07 x in others
FULL, AT_FIRST, STEP = 1_000_000, 500_000, 50_000  # items of the memory's measurement
STEP_SIZES = (2_000, 4_000, 8_000, 16_000, 32_000, 64_000)


# -- cost -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShopSize:
    """A shop whose items are chosen by a power law; its last hour is the change."""

    items: int
    days: int
    events_per_day: int = 4_000
    users: int = 4_000
    events_of_change: int = 2_000
    new_items: int = 20


class HashEncoder:
    """Unit vectors drawn by the text: what an encoder costs is no part of this."""

    dimension = TEXT
    identity = "hash"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        seeds = np.array([zlib.crc32(text.encode()) for text in texts], np.uint64)
        vectors = np.random.default_rng(0).normal(size=(64, TEXT)).astype(np.float32)
        mixed = vectors[seeds % 64] + 0.5 * vectors[(seeds >> 8) % 64] + 0.25 * vectors[(seeds >> 16) % 64]
        return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


def measure_cost(base: ShopSize, ten_times: ShopSize, repeats: int = REPEATS) -> dict[str, float]:
    """CPU-seconds of one update's learning job in two shops that have the same change.

    Timed: reading the lesson of the change (`lesson_of_change`: what arrived, joined, is replayed and judges, the
    context), `learner.grow` and `fine_tune`, all cores together, in one process. Not timed: loading the champion,
    scoring and the gate, packing and registering. The shops take turns, after one round that warms up.

    Returns:
        `base_s`, `ten_times_s` (medians), `ratio`.
    """
    with tempfile.TemporaryDirectory() as folder:
        jobs = [_Job.of(size, Path(folder) / name) for name, size in (("base", base), ("ten", ten_times))]
        rounds = [[job.run() for job in jobs] for _ in range(repeats + 1)][1:]
        print(*rounds[-1], sep="\n", file=sys.stderr)
    seconds = np.array([[sum(parts[name] for name in ("lesson", "grow", "tune")) for parts in one] for one in rounds])
    one, ten = np.median(seconds, axis=0)
    return {"base_s": float(one), "ten_times_s": float(ten), "ratio": float(ten / one)}


class _Job:
    """The update of one shop, from the same champion each time."""

    def __init__(self, lake: Lake, champion: Any, ledger: Any) -> None:
        self.lake, self.champion, self.ledger = lake, champion, ledger
        self.versions = {"events": lake.version("events"), "items": lake.version("items")}

    @classmethod
    def of(cls, size: ShopSize, folder: Path) -> _Job:
        lake = Lake(str(folder), locks_of(folder, None))
        _publish_shop(lake, size)
        task = task_of(lake)
        before = Snapshot(lake, {"events": lake.version("events"), "items": lake.version("items")})
        lesson = lesson_of_everything(task, before, 1, None)  # a day's examples: the base need not be good
        learner = task.learner(0)
        learner.grow(lesson.context, lesson.new)
        _train(learner, lesson.new, 1)  # who was never trained foresees nothing
        _publish_change(lake, size)
        return cls(lake, learner.state(), lesson.ledger)

    def run(self) -> dict[str, float]:
        """CPU-seconds of the update, by part; restoring the champion is not part of the job."""
        task = task_of(self.lake)
        started = time.process_time()
        learner = task.restore(self.champion)
        restored = time.process_time()
        lesson = lesson_of_change(
            task, Snapshot(self.lake, self.versions), 1, self.ledger, self.ledger.versions["events"], seed=0
        )
        read = time.process_time()
        learner.grow(lesson.context, lesson.new)
        grown = time.process_time()
        done = fine_tune(learner, task.restore, lesson.train, lesson.tune, task.update_schedule, seed=0)
        done.learner.count(lesson.new)  # type: ignore[attr-defined]  # a recommender
        ended = time.process_time()
        return {
            "restore": restored - started, "lesson": read - restored, "grow": grown - read, "tune": ended - grown,
            "steps": done.steps, "train": len(lesson.train), "tune_examples": len(lesson.tune),
            "context": len(lesson.context),
        }


def task_of(lake: Lake) -> Recommend:
    """The recommender with the cheap encoder, nothing of it in memory yet."""
    task = Recommend(lake, "")
    task.__dict__["_encoder"] = HashEncoder()
    return task


def _publish_shop(lake: Lake, size: ShopSize) -> None:
    days = [Window(START + HOUR * 24 * day) for day in range(size.days)]
    lake.publish(ITEMS, days[:1], *_of(_items(np.arange(size.items), days[0])))
    draw = np.random.default_rng(0)
    for first in range(0, size.days, 30):
        some = days[first : first + 30]
        events = pa.concat_tables([_events(draw, size, day, size.events_per_day) for day in some])
        lake.publish(EVENTS, some, *_of(events))


def _publish_change(lake: Lake, size: ShopSize) -> None:
    hour = Window(START + HOUR * 24 * size.days)
    lake.publish(ITEMS, [hour], *_of(_items(np.arange(size.items, size.items + size.new_items), hour)))
    lake.publish(EVENTS, [hour], *_of(_events(np.random.default_rng(1), size, hour, size.events_of_change)))


def _of(rows: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table]:
    return rows, rows.slice(0, 0), QUARANTINE_SCHEMA.empty_table()


def _items(numbers: np.ndarray, window: Window) -> pa.Table:
    names = numbers.astype(str)
    return _table(ITEMS.table_schema, window, len(numbers), {
        "change_id": np.char.add("c", names), "item_id": np.char.add("i", names), "change_time": window.start,
        "title": np.char.add("a title of some words ", names), "category": np.char.add("k", (numbers % 50).astype(str)),
        "description": np.char.add("what a shop says of it in a sentence or two, as long as such texts are ", names),
        "price": 1.0 + numbers % 97,
    })


def _events(draw: np.random.Generator, size: ShopSize, window: Window, count: int) -> pa.Table:
    # the popular head is the same whatever the catalogue's size, so that the change is: 5,000 items of Zipf's law
    items = np.minimum((draw.pareto(0.8, count) * 10).astype(int), 4_999)
    # customers come and go: a longer history is that of more customers, and those of the change are of the last month
    generation = (size.days - 1 - min((window.start - START).days, size.days - 1)) // 30
    times = np.sort(draw.integers(0, 3600 * 1_000_000, count)) + int(window.start.timestamp() * 1e6)
    return _table(EVENTS.table_schema, window, count, {
        "event_id": np.char.add(f"{window.folder}-", np.arange(count).astype(str)),
        "event_type": np.array(["purchase", "view"])[draw.integers(0, 2, count)],
        "event_time": pa.array(times, pa.int64()).cast(TIME),
        "user_id": np.char.add(f"u{generation}-", draw.integers(0, size.users, count).astype(str)),
        "item_id": np.char.add("i", items.astype(str)), "quantity": np.ones(count), "price": np.ones(count),
    })


def _table(schema: pa.Schema, window: Window, count: int, columns: Mapping[str, Any]) -> pa.Table:
    given = {**columns, "hour": window.start, "landed_window": window.start, "landed_date": window.start.date(),
             "source_file": f"{window.folder}/a.jsonl", "source_row": np.arange(1, count + 1)}
    arrays = []
    for field in schema:
        value = given.get(field.name)
        if isinstance(value, (np.ndarray, pa.Array)):
            arrays.append(pa.array(value).cast(field.type))
        else:
            arrays.append(pa.array([value] * count, field.type))
    return pa.table(arrays, schema=schema)


# -- memory ---------------------------------------------------------------------------------------------------


def measure_memory() -> float:
    """GB (1e9 bytes) that a process needs at its peak to grow and train a learner of a million items.

    The process's largest resident memory, TensorFlow's own included: items of 64 dimensions with text vectors of 384
    kept as 128, every one admitted, with neighbours and trends. It knows half a million, then each hour 50,000 more
    come and three steps are trained; at last four weeks pass, a trend remembered each day. A copy for early stopping
    is not held.
    """
    command = [sys.executable, str(Path(__file__)), "memory-child"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    print(done.stderr, file=sys.stderr)
    return float(json.loads(done.stdout)["peak_gb"])


def _memory_child(full: int = FULL, at_first: int = AT_FIRST, step: int = STEP) -> None:
    from pipeline.tasks.recommend_learner import RecommenderLearner

    learner = RecommenderLearner(seed=0, text_dimension=TEXT, encoder=lambda: None)
    draw = np.random.default_rng(0)
    for stage, first in enumerate(range(0, full, step)):
        _take_in(learner, draw, first, step, day=stage * 7)
        if first + step >= at_first:
            _taught(learner, synthetic_examples(draw, first + step, 128, day=stage * 7))
        print(f"{first + step} items: {_peak_gb():.3f} GB", file=sys.stderr, flush=True)
    nothing, days = catalogue(draw, 0, 0), full // step * 7
    for day in range(28):
        _grown(learner, nothing, synthetic_examples(draw, full, 200, day=days + day))
    _taught(learner, synthetic_examples(draw, full, 384, day=days + 28))
    assert learner._tables.items.admitted.sum() == full
    assert (learner._counters.neighbours.index[1:] > 0).any(axis=1).all()
    print(json.dumps({"peak_gb": _peak_gb()}))


def _taught(learner: Any, examples: Examples) -> None:
    """Three steps, and before them what is learnt from how the examples are foreseen."""
    learner.foresee(examples)
    _train(learner, examples, 3)


def _take_in(learner: Any, draw: np.random.Generator, first: int, count: int, day: int) -> None:
    """`count` new items, each of them chosen three times by the hour's examples, five thousand examples at once."""
    _grown(learner, catalogue(draw, first, count), synthetic_examples(draw, first + count, 10, day))
    new = draw.permutation(np.tile(np.arange(first, first + count), 3))
    for start in range(0, len(new), 10_000):
        few = new[start : start + 10_000]
        hour = synthetic_examples(draw, first + count, len(few) // 2, day, few, length=4)
        _grown(learner, catalogue(draw, 0, 0), hour)


def _grown(learner: Any, context: pa.Table, examples: Examples) -> None:
    """An hour of which nothing is taught."""
    learner.grow(context, examples)
    learner.count(examples)


def catalogue(draw: np.random.Generator, first: int, count: int) -> pa.Table:
    """The context of items `first` to `first + count`."""
    vectors = draw.standard_normal((count, TEXT), np.float32)
    vectors /= np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]  # np.linalg.norm squares into a copy
    numbers = np.arange(first, first + count)
    return pa.table({
        "item_id": pa.array(np.char.add("item-", numbers.astype(str)), pa.string()),
        "category": pa.array(np.char.add("k", (numbers % 500).astype(str)), pa.string()),
        "price": pa.array(1.0 + numbers % 97, pa.float64()),
        "last_seen": pa.array([START + timedelta(days=first // STEP * 7)] * count, TIME),
        "text_vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), TEXT),
    })


def synthetic_examples(
    draw: np.random.Generator, items: int, count: int, day: int, targets: np.ndarray | None = None, length: int = 16
) -> Examples:
    """`count` users with a history of `length` and a basket of two (`targets`, or drawn)."""
    chosen = draw.integers(0, items, 2 * count) if targets is None else targets
    history = draw.integers(0, items, length * count)
    times = pa.array([START + timedelta(days=day, seconds=place) for place in range(count)], TIME)
    table = pa.table({
        "example_id": pa.array([f"e{place}" for place in range(count)]), "unit": pa.array(["u"] * count),
        "time": times, "hour": times, "landed_window": times, "rows": pa.array([2] * count, pa.int64()),
        "history_items": _lists(_ids(history), length),
        **{name: _lists(pa.array(np.ones(len(history), np.float32)), length)
           for name in ("history_counts", "history_views", "history_days", "history_habits")},
        "targets": _lists(_ids(chosen), 2), "query": pa.nulls(count, pa.string()),
        "rating_item": pa.nulls(count, pa.string()), "rating": pa.nulls(count, pa.float32()),
    }, schema=EXAMPLES_SCHEMA)
    return Examples(table.append_column("query_vector", pa.nulls(count, pa.list_(pa.float32(), TEXT))))


def _ids(numbers: np.ndarray) -> pa.Array:
    return pa.array(np.char.add("item-", numbers.astype(str)), pa.string())


def _lists(values: pa.Array, width: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, width), pa.int32()), values)


def _train(learner: Any, examples: Examples, steps: int) -> None:
    batches = learner.batches(examples, 128, np.random.default_rng(0))
    for _, batch in zip(range(steps), batches, strict=False):
        learner.train_step(batch, 1e-3)


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


# -- exact or sampled -----------------------------------------------------------------------------------------


def measure_steps(sizes: Sequence[int] = STEP_SIZES, rounds: int = 3) -> dict[str, Any]:
    """CPU-seconds of a training step of 128 examples (histories of 16) by items: exact and sampled softmax."""
    from pipeline.tasks import recommend_batches
    from pipeline.tasks.recommend_learner import RecommenderLearner

    given, found = recommend_batches.EXACT_ITEMS, {}
    for items in sizes:
        draw = np.random.default_rng(0)
        learner = RecommenderLearner(seed=0, text_dimension=TEXT, encoder=lambda: None)
        taught = synthetic_examples(draw, items, 128 * 6, day=1)
        learner.grow(catalogue(draw, 0, items), taught)
        seconds: dict[str, list[float]] = {"exact": [], "sampled": []}
        for turn in range(rounds + 1):
            for name, most in (("exact", items + 1), ("sampled", 0)):
                recommend_batches.EXACT_ITEMS = most
                took = _cpu_seconds(lambda: _train(learner, taught, 6)) / 6  # noqa: B023 - called at once
                if turn:  # the first traces the step
                    seconds[name].append(took)
        found[str(items)] = {name: float(np.median(values)) for name, values in seconds.items()}
        print(items, found[str(items)], file=sys.stderr, flush=True)
    recommend_batches.EXACT_ITEMS = given
    return found


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main(parts: Sequence[str]) -> int:
    """Prints the figures as JSON."""
    if parts == ["memory-child"]:
        _memory_child()
        return 0
    figures: dict[str, Any] = {}
    if not parts or "memory" in parts:  # first: a child's peak begins at what its parent held when it was started
        figures["growth.memory_gb_at_1m_items"] = measure_memory()
    if not parts or "cost" in parts:
        base = ShopSize(items=20_000, days=30)
        catalogue_cost = measure_cost(base, ShopSize(items=200_000, days=30))
        history_cost = measure_cost(base, ShopSize(items=20_000, days=300))
        figures["growth.cost_at_10x_catalogue"] = catalogue_cost["ratio"]
        figures["growth.cost_at_10x_history"] = history_cost["ratio"]
        figures["cost_s"] = {"catalogue": catalogue_cost, "history": history_cost}
    if not parts or "steps" in parts:
        figures["step_s"] = measure_steps()
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
