"""Search in a shop that has no log of searches: what making searches of titles gives (`Methods.title_queries`).

The simulated shop's customers search in words of their own; the log of it is withheld from the learner, or not, and the
real searches of the day after are answered. Online Retail has no searches: there, fragments of titles are held out.
Each way is a first model, trained once; a lexical search (the gate's TF-IDF) stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation import interval
from pipeline.lesson import lesson_of_everything
from pipeline.sources.shop import ShopSize
from pipeline.tasks.contract import Examples, Methods
from pipeline.tasks.recommend import Recommend
from tests.benchmarks.lineage import Lineage, Step, judged
from tests.benchmarks.method_rows import NOTHING
from tests.benchmarks.shop_log import ShopLog

# A quarter of the demo's events over twice its catalogue, so that twenty places are one in fifty.
SEARCHED_SHOP = ShopSize(users=1_500, items=1_000, history_days=10, history_events=60_000, hours=24)
SHARES = (0.25, 1.0)
LORA_RANK, LORA_STEPS = 4, 50  # a quarter of the default steps: on two shared cores each takes half a second
LORA = f"its log of searches, and LoRA of rank {LORA_RANK} in the encoder ({LORA_STEPS} steps)"


class _Silent(Recommend):
    """The recommender of a shop that writes down no searches."""

    def teaching(self, tables: Any, rows: pa.Table) -> pa.Table:
        """What teaches, but for searches."""
        return super().teaching(tables, rows.filter(pc.not_equal(rows["event_type"], "search")))

    def examples(self, tables: Any, rows: pa.Table) -> Examples:
        """The examples of the others."""
        return super().examples(tables, rows.filter(pc.not_equal(rows["event_type"], "search")))


def searches_withheld(shop: ShopLog, seed: int) -> dict[str, Any]:
    """The simulated shop: the real searches of its last day, by models that learnt everything before."""
    last = shop.protocol.last_test_step
    asked = Step.of(shop, last, set()).examples
    asked = asked.keep(pc.is_valid(asked.table["query"]).to_numpy())
    first = shop.before(last)
    silent = _Silent(shop.lake, shop.settings.encoder)
    ways = {"its log of searches": shop.task, NOTHING: silent} | {
        f"searches made of titles {share}": _with(silent, title_queries=share) for share in SHARES
    } | {LORA: _with(shop.task, lora_rank=LORA_RANK, lora_steps=LORA_STEPS)}
    found = {name: _answered(shop, task, first, asked, seed) for name, task in ways.items()}
    return _table(found, _lexical(shop, first, asked))


def fragments_held_out(shop: ShopLog, step: Step, seed: int) -> dict[str, Any]:
    """Online Retail: fragments of the titles that a week's customers chose, none of which was taught."""
    first = shop.before(step.number)
    making = _with(shop.task, title_queries=SHARES[0])
    generator = np.random.default_rng([seed, 1])
    asked = making.made(shop.tables(step.number), step.examples, Methods(title_queries=0.5), generator)
    taught = pc.unique(lesson_of_everything(making, shop.tables(first), None, None).made.table["query"])
    asked = asked.keep(pc.invert(pc.is_in(asked.table["query"], taught)).to_numpy())
    ways = {NOTHING: shop.task, f"searches made of titles {SHARES[0]}": making}
    found = {name: _answered(shop, task, first, asked, seed) for name, task in ways.items()}
    return _table(found, _lexical(shop, first, asked))


def _with(task: Any, **chosen: Any) -> Any:
    """The task with some methods switched on in its retrain."""
    other = copy(task)
    other.base_schedule = replace(task.base_schedule, methods=replace(task.base_schedule.methods, **chosen))
    return other


def _with_task(shop: ShopLog, task: Any) -> ShopLog:
    other = ShopLog(shop.protocol, shop.settings, shop.versions)
    other.__dict__["task"] = task
    return other


def _answered(shop: ShopLog, task: Any, first: int, asked: Examples, seed: int) -> tuple[pd.DataFrame, float]:
    """Recall of each search by a first model, and what its training cost."""
    lineage = Lineage(_with_task(shop, task), task.update_schedule, seed).begin(first)
    step = Step(first, asked, np.zeros(len(asked), bool))
    return judged(step, lineage.learner.answers(asked)), lineage.costs[first].learning


def _lexical(shop: ShopLog, first: int, asked: Examples) -> float:
    return float(shop.task.baseline(shop.tables(first), asked).frame["recall@20"].mean())


def _table(found: Mapping[str, tuple[pd.DataFrame, float]], lexical: float) -> dict[str, Any]:
    nothing = found[NOTHING][0]
    rows = {}
    for name, (frame, cpu_s) in found.items():
        difference = (frame["recall"] - nothing["recall"]).to_numpy()
        mean, low, high = interval(difference, frame["unit"].to_numpy(), seed=0)
        rows[name] = {
            "recall": float(frame["recall"].mean()), "difference": mean, "interval": [low, high], "cpu_s": cpu_s,
        }
    return {"searches": len(nothing), "lexical": lexical, "ways": rows}
