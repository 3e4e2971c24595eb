"""The rivals from PyPI on a shop's log: trained anew on everything before a step, asked what the step brings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tasks.recommend_examples import target_types
from tests.benchmarks.lineage import Step
from tests.benchmarks.rivals import als, item_knn, sequence
from tests.benchmarks.rivals.exchange import TESTS, TRAIN
from tests.benchmarks.shop_log import ShopLog


def rival_answers(shop: ShopLog, step: Step) -> Mapping[str, tuple[np.ndarray, np.ndarray, float]]:
    """What each rival answers to a step's examples.

    Returns:
        name -> answers [n, 20], the same without what the history holds, and CPU-seconds of training and ranking.
    """
    tables = shop.tables(shop.before(step.number))
    train = _baskets(tables.arrow("events", ["user_id", "event_time", "item_id"]))
    tests = _tests(shop, step)
    catalogue = pc.unique(pc.list_flatten(train["items"])).to_pylist()
    alpha = als.BASKETS_ALPHA if target_types(shop.tables(step.number)) == ("purchase",) else als.CLICKS_ALPHA
    answers = {}
    for name, rank in (
        ("item-kNN", lambda **more: item_knn.rank(train, tests, catalogue, 0, **more)),
        ("ALS", lambda **more: als.rank(train, tests, catalogue, 0, alpha=alpha, **more)),
    ):
        ranked = rank()
        answers[name] = (ranked.items, rank(new_only=True).items, ranked.train_cpu_s + ranked.rank_cpu_s)
    if sequence.PYTHON.exists():  # minutes a step, and an environment of its own: `make bench-rivals-env`
        ranked, new = sequence.rank_both(train, tests, catalogue, 0, shop.settings.home / "rivals")
        answers["SASRec"] = (ranked.items, new.items, ranked.train_cpu_s + ranked.rank_cpu_s)
    return answers


def _baskets(events: pa.Table) -> pa.Table:
    """The events as baskets: one a user and moment, in order of time."""
    grouped = events.filter(pc.and_(pc.is_valid(events["user_id"]), pc.is_valid(events["item_id"]))).group_by(
        ["user_id", "event_time"], use_threads=False
    ).aggregate([("item_id", "list")])
    baskets = grouped.rename_columns(["user", "time", "items"]).sort_by([("time", "ascending"), ("user", "ascending")])
    return baskets.select(TRAIN.names).cast(TRAIN)


def _tests(shop: ShopLog, step: Step) -> pa.Table:
    """The step's examples with all that each user had before, oldest first."""
    table = step.examples.table
    events = shop.tables(step.number).arrow(
        "events", ["user_id", "event_time", "item_id"],
        filter=pc.field("user_id").isin(pc.unique(table["unit"])),
    ).sort_by([("event_time", "ascending"), ("item_id", "ascending")])
    before: dict[str, list[tuple[object, str]]] = {}
    columns = (events[name].to_pylist() for name in ("user_id", "event_time", "item_id"))
    for user, time, item in zip(*columns, strict=True):
        before.setdefault(user, []).append((time, item))
    histories = [
        [item for moment, item in before[user] if moment < time]
        for user, time in zip(table["unit"].to_pylist(), table["time"].to_pylist(), strict=True)
    ]
    return pa.table([table["unit"], table["time"], pa.array(histories, pa.list_(pa.string()))], schema=TESTS)
