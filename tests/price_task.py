"""A second task, as small as one can be: what an item costs, by a number for each item. Numpy only.

It shares nothing with `recommend` but the contract, so what the mechanism does with it, it does for any task.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.lake import Lake
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples, GateRules, Methods, Package, Schedule, Scores, State

SCALE = 3.0  # a price that is off by so much is worth 1 / e


class PriceLearner:
    """One number an item, with momentum; an item that was never seen costs the mean of the first lesson."""

    def __init__(self, seed: int) -> None:
        self.items: list[str] = []
        self.prices, self.momentum = np.zeros(0), np.zeros(0)
        self.noise = np.random.PCG64(seed)
        self.steps = 0
        self.start = 0.0

    def grow(self, context: pa.Table, examples: Examples) -> Mapping[str, int]:
        new = [item for item in context["item_id"].to_pylist() if item not in set(self.items)]
        if not self.items:
            self.start = float(pc.mean(examples.table["price"]).as_py() or 0.0)
        self.items += new
        self.prices = np.append(self.prices, np.full(len(new), self.start))
        self.momentum = np.append(self.momentum, np.zeros(len(new)))
        return {"items_new": len(new)}

    def use(self, methods: Methods, train: Examples) -> None:
        """Has only those of fine_tune itself."""

    def batches(self, examples: Examples, batch_size: int, generator: np.random.Generator) -> Iterator[Any]:
        rows, prices = self._rows(examples), examples.table["price"].to_numpy()
        order = generator.permutation(len(rows))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            yield rows[chosen], prices[chosen]

    def train_step(self, batch: Any, learning_rate: float) -> float:
        rows, prices = batch
        errors = self.prices[rows] - prices + 1e-3 * np.random.Generator(self.noise).normal(size=len(rows))
        slope = np.bincount(rows, errors, len(self.prices)) / np.maximum(np.bincount(rows, None, len(self.prices)), 1)
        self.momentum = 0.5 * self.momentum + slope
        self.prices = self.prices - learning_rate * self.momentum
        self.steps += 1
        return float((errors**2).mean())

    def loss(self, examples: Examples, batch_size: int) -> float:
        return float(np.abs(self._errors(examples)).mean()) if len(examples) else 0.0

    def losses(self, examples: Examples, batch_size: int, *, learnt: bool) -> np.ndarray:
        return np.abs(self._errors(examples))

    def weights(self) -> Collection[str]:
        return ("prices",)

    def score(self, examples: Examples) -> Scores:
        return scores_of(examples, self._errors(examples))

    def state(self) -> State:
        arrays = {"prices": self.prices.copy(), "momentum": self.momentum.copy()}
        noise = self.noise.state  # 128-bit numbers: JSON holds them
        return State(arrays, {"items": self.items, "steps": self.steps, "start": self.start, "noise": noise})

    @classmethod
    def restore(cls, state: State) -> PriceLearner:
        learner = cls(0)
        learner.items, learner.steps = list(state.meta["items"]), state.meta["steps"]
        learner.start = state.meta["start"]
        learner.prices, learner.momentum = state.arrays["prices"].copy(), state.arrays["momentum"].copy()
        learner.noise.state = state.meta["noise"]
        return learner

    def package(self, folder: Path) -> Package:
        folder.mkdir(parents=True)
        (folder / "prices.json").write_text(json.dumps(dict(zip(self.items, self.prices.tolist(), strict=True))))
        asked = self.items[:2]
        return Package(
            model_code=Path(__file__).with_name("price_service.py"), code_folders=(),
            artifacts={"prices": folder / "prices.json"}, config={}, requirements=("mlflow", "pandas"),
            input_example=pd.DataFrame({"item_id": asked}),
            output_example=pd.DataFrame({"price": self.prices[: len(asked)]}), parameters={"digits": 6},
        )

    def _rows(self, examples: Examples) -> np.ndarray:
        place = {item: number for number, item in enumerate(self.items)}
        return np.array([place.get(item, 0) for item in examples.table["item_id"].to_pylist()], np.int64)

    def _errors(self, examples: Examples) -> np.ndarray:
        return self.prices[self._rows(examples)] - examples.table["price"].to_numpy()


def scores_of(examples: Examples, errors: np.ndarray) -> Scores:
    """`closeness`: 1 for the right price."""
    frame = pd.DataFrame({
        "example_id": examples.table["example_id"].to_pylist(), "unit": examples.table["unit"].to_pylist(),
        "hour": pd.to_datetime(examples.table["hour"].to_pylist(), utc=True),
        "closeness": np.exp(-np.abs(errors) / SCALE), "slice:cheap": examples.table["price"].to_numpy() < 10.0,
    })
    return Scores(frame, ("closeness",))


class PriceTask:
    """Fulfils `pipeline.tasks.contract.Task`."""

    name = "price"
    table = "events"
    context_tables: tuple[str, ...] = ()
    unit_column = "user_id"
    teaching_columns = ("event_type", "user_id", "price")
    gate = GateRules(metric="closeness", margin=0.05, error_rate=0.05, least_units=20, slice_margin=0.1)
    base_schedule = Schedule(learning_rate=0.3, warmup_steps=2, epochs=8, patience_epochs=2, batch_size=64)
    update_schedule = Schedule(
        learning_rate=0.3, warmup_steps=2, epochs=3, patience_epochs=3, batch_size=16, replay_ratio=1.0,
        least_replayed=8,
    )

    def __init__(self, lake: Lake, encoder_preset: str) -> None:
        """Needs neither."""

    def teaching(self, tables: Snapshot, rows: pa.Table) -> pa.Table:
        return rows.filter(pc.and_(pc.equal(rows["event_type"], "purchase"), pc.is_valid(rows["user_id"])))

    def examples(self, tables: Snapshot, rows: pa.Table) -> Examples:
        rows = self.teaching(tables, rows)
        return Examples(pa.table({
            "example_id": rows["event_id"], "unit": rows["user_id"], "time": rows["event_time"], "hour": rows["hour"],
            "rows": pa.array(np.ones(len(rows), np.int64)), "landed_window": rows["landed_window"],
            "item_id": rows["item_id"], "price": rows["price"],
        }))

    def context(self, tables: Snapshot, since: Mapping[str, int] | None) -> pa.Table:
        rows = tables.arrow("events", ["item_id"]) if since is None else tables.lake.changes(
            "events", since["events"], tables.versions["events"]
        )
        return pa.table({"item_id": pc.unique(rows["item_id"]).sort()})

    def learner(self, seed: int) -> PriceLearner:
        return PriceLearner(seed)

    def restore(self, state: State) -> PriceLearner:
        return PriceLearner.restore(state)

    def baseline(self, tables: Snapshot, examples: Examples) -> Scores:
        mean = pc.mean(tables.arrow("events", ["price"])["price"]).as_py()
        return scores_of(examples, mean - examples.table["price"].to_numpy())
