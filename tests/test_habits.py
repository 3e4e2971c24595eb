"""A habit: how often an item was bought, each purchase worth less by the visits since; the same wherever it is told."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.habits import habits
from models.recommender_service import RecommenderService
from pipeline.lake import Lake
from pipeline.locking import file_locks
from pipeline.schema import EVENTS, QUARANTINE_SCHEMA
from pipeline.snapshot import Snapshot
from pipeline.tasks import recommend_examples
from pipeline.user_profile_facts import facts_of
from pipeline.window import Window
from tests.benchmarks.bench_recommend import random_recommender
from tests.test_recommend_examples import NOON, event

KNOWN = 30  # items, item-0 to item-29
MINUTE = timedelta(minutes=1)

# What was bought how many minutes before noon: three visits with a purchase, the oldest of two items half an hour
# apart, the newest of an item that no longer exists.
BOUGHT = [("gone", 700), ("item-1", 1440), ("item-2", 14_370), ("item-1", 14_400), ("item-1", 14_400)]
LOOKED_AT = [("item-3", 300), ("item-2", 5000)]  # between them, and no visit with a purchase
# after the newest visit 1, after one more 0.9, after two 0.81
HABITS = {"gone": 1.0, "item-1": 0.9 + 0.81 + 0.81, "item-2": 0.81}

Bought = list[tuple[str, float]]


def drawn(seed: int) -> Bought:
    """Purchases of a year in whole minutes, often half an hour apart, or a minute less or more."""
    draw = np.random.default_rng(seed)
    pauses = np.where(draw.random(90) < 0.6, draw.choice([0, 1, 29, 30, 31], 90), draw.integers(32, 20_000, 90))
    items = draw.integers(0, KNOWN + 3, 90)  # three are not known
    return [(f"item-{item}", float(minutes)) for item, minutes in zip(items, np.cumsum(pauses) + 40, strict=True)]


def service() -> RecommenderService:
    return RecommenderService(random_recommender(KNOWN, np.random.default_rng(0)), SimpleNamespace)


def by_service(bought: Bought) -> dict[str, float]:
    history = {"history": [item for item, _ in bought], "history_days": [minutes / 1440 for _, minutes in bought]}
    asked = service()
    index, *_, strength = asked._history(history)
    return dict(zip(asked._recommender.ids[index[0]], strength[0].tolist(), strict=True))


def by_graph(bought: Bought) -> dict[str, float]:
    """Beside another history that is longer, so that this one is filled up."""
    import tensorflow as tf

    from models.recommender_graph import RecommenderGraph

    padding = 7
    items = [[*(item for item, _ in bought), *[""] * padding], ["item-5"] * (len(bought) + padding)]
    days = [[*(minutes / 1440 for _, minutes in bought), *[0.0] * padding], [1.0] * (len(bought) + padding)]
    graph = RecommenderGraph(random_recommender(KNOWN, np.random.default_rng(0)))
    index, _, _, strength = graph._distinct(tf.constant(items), tf.constant(days, tf.float32))
    ids = [one.decode() for one in graph._ids.numpy()]
    return {ids[row]: float(value) for row, value in zip(index[0].numpy(), strength[0].numpy(), strict=True) if row}


def tables_of(folder: Path, rows: list[dict[str, Any]]) -> tuple[Snapshot, pa.Table]:
    table = pa.Table.from_pylist(rows, schema=EVENTS.table_schema)
    lake = Lake(str(folder / "lake"), file_locks(folder / "locks"))
    nothing = QUARANTINE_SCHEMA.empty_table()
    version = lake.publish(EVENTS, [Window(NOON)], table, table.slice(0, 0), nothing).table_version
    return Snapshot(lake, {"events": version, "items": -1}), table


def rows_of(bought: Bought, looked_at: Bought) -> list[dict[str, Any]]:
    told = [*(("purchase", *one) for one in bought), *(("view", *one) for one in looked_at)]
    return [event(number, kind, item, -minutes) for number, (kind, item, minutes) in enumerate(told)]


def by_examples(folder: Path, bought: Bought, looked_at: Bought) -> dict[str, float]:
    """As the newest example has it: someone who buys something else at noon; what comes after says nothing."""
    later = [event(1000, "purchase", "else", 0), event(1001, "purchase", "item-1", 100)]
    tables, rows = tables_of(folder, [*rows_of(bought, looked_at), *later])
    found = recommend_examples.examples(tables, rows).table.to_pylist()
    (asked,) = (one for one in found if one["time"] == NOON)
    return dict(zip(asked["history_items"], asked["history_habits"], strict=True))


def by_profile(folder: Path, bought: Bought, looked_at: Bought, as_of: datetime = NOON) -> dict[str, float]:
    tables, _ = tables_of(folder, rows_of(bought, looked_at))
    nothing = pa.table({"item_id": pa.array([], pa.string()), "category": pa.array([], pa.string()),
                        "usual_price": pa.array([], pa.float64())})
    (facts,) = facts_of(tables, ["u"], nothing, None, as_of).to_pylist()
    return dict(zip(facts["history_items"], facts["history_habits"], strict=True))


def test_a_purchase_is_worth_less_by_a_tenth_for_each_visit_since() -> None:
    items, strength = habits(np.array([7, 4, 2, 4, 4]), np.array([minutes for _, minutes in BOUGHT]) / 1440)
    np.testing.assert_array_equal(items, [2, 4, 7])
    np.testing.assert_allclose(strength, [0.81, 2.52, 1.0])


def test_the_order_in_which_purchases_are_told_changes_nothing() -> None:
    rows, days = np.array([1, 2, 1, 3]), np.array([9.0, 0.5, 0.0, 9.02])
    told = [habits(rows[order], days[order]) for order in (np.arange(4), np.array([3, 1, 0, 2]))]
    for one, other in zip(*told, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(told[0][1], [1.0 + 0.81, 0.9, 0.81])


def test_who_has_bought_nothing_has_no_habit() -> None:
    items, strength = habits(np.empty(0, np.int64), np.empty(0))
    assert (items.shape, strength.shape) == ((0,), (0,))


def test_the_service_counts_the_visits_for_items_that_it_does_not_know() -> None:
    assert by_service(BOUGHT) == pytest.approx({item: HABITS[item] for item in ("item-1", "item-2")})
    assert by_service([("", 1), *BOUGHT]) == by_service(BOUGHT)  # no id, no purchase


def test_histories_side_by_side_keep_their_habits() -> None:
    asked = service()
    rows = [{"history": ["item-1", "item-1"]}, {"history": ["item-2"]}, {}]
    together = [asked.many(rows, 5)[1], np.array([asked.one(row, 5)[1] for row in rows])]
    np.testing.assert_allclose(*together, atol=1e-4)


def test_an_example_has_the_habits_of_before_and_none_for_what_was_only_looked_at(tmp_path: Path) -> None:
    assert by_examples(tmp_path, BOUGHT, LOOKED_AT) == pytest.approx({**HABITS, "item-3": 0.0})


def test_the_visits_of_items_beyond_those_that_a_history_keeps_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommend_examples, "HISTORY_ITEMS", 2)
    looked_at = [("item-3", 60), ("item-2", 90)]
    assert by_examples(tmp_path, BOUGHT, looked_at) == pytest.approx({"item-3": 0.0, "item-2": 0.81})


def test_a_users_six_thousandth_visit_is_a_number_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommend_examples, "_MOST_VISITS", 1)
    found = by_examples(tmp_path, [("item-1", 300), ("item-1", 200), ("item-1", 100)], [])
    assert found == pytest.approx({"item-1": 1.0 + 1.0 + 0.9})


def test_a_profile_has_the_same_habits(tmp_path: Path) -> None:
    assert by_profile(tmp_path, BOUGHT, LOOKED_AT) == pytest.approx({**HABITS, "item-3": 0.0})


@pytest.mark.parametrize("seed", range(3))
def test_examples_profiles_the_service_and_its_graph_agree(tmp_path: Path, seed: int) -> None:
    bought = drawn(seed)
    expected = by_examples(tmp_path / "examples", bought, LOOKED_AT)
    assert by_profile(tmp_path / "profile", bought, LOOKED_AT) == pytest.approx(expected)
    known = {item: habit for item, habit in expected.items() if habit and int(item.removeprefix("item-")) < KNOWN}
    assert len(known) > KNOWN / 2
    assert by_service(bought) == pytest.approx(known)
    assert by_graph(bought) == pytest.approx(known, rel=1e-5)
