"""The plain method of the recommender's gate: the order that it gives, read through its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from pipeline.tasks.contract import Examples
from pipeline.tasks.recommend_baseline import score_baseline
from pipeline.tasks.recommend_examples import EXAMPLES_SCHEMA

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CATALOGUE = pa.table({"item_id": ["mug", "cup", "lamp"], "text": ["blue tea mug", "tea cup", "desk lamp"]})


def found(
    target: str, bought: Mapping[str, tuple[float, float]], chosen: Sequence[tuple[date, str, int]], query: str = ""
) -> float:
    """The target's discounted gain: 1 in the first place, 1 / log2(place + 1) in a later one, 0 beyond.

    Args:
        target: what is then chosen.
        bought: how often, and days since the last time, of each item of the history.
        chosen: day, item and how often all users chose it.
        query: what is searched for.
    """
    row = dict.fromkeys(EXAMPLES_SCHEMA.names) | {
        "example_id": "1", "unit": "u", "time": NOW, "hour": NOW, "landed_window": NOW, "rows": 1,
        "history_items": list(bought), "history_counts": [count for count, _ in bought.values()],
        "history_views": [0.0] * len(bought), "history_days": [days for _, days in bought.values()],
        "history_habits": [count for count, _ in bought.values()],
        "targets": [target], "query": query or None,
    }
    by_day = pa.table({
        "day": pa.array([day for day, _, _ in chosen], pa.date32()),
        "item_id": pa.array([item for _, item, _ in chosen], pa.string()),
        "chosen": pa.array([count for *_, count in chosen], pa.int64()),
    })
    scores = score_baseline(Examples(pa.Table.from_pylist([row], EXAMPLES_SCHEMA)), by_day, CATALOGUE)
    return float(scores.frame["ndcg@20"].iloc[0])


def test_own_items_come_by_count_then_by_what_all_chose_in_four_weeks_then_latest() -> None:
    bought = {"late": (1.0, 1.0), "early": (1.0, 30.0), "popular": (1.0, 60.0), "often": (2.0, 90.0)}
    chosen = [(date(2026, 2, 20), "popular", 5), (date(2026, 2, 20), "new", 9)]
    order = ["often", "popular", "late", "early", "new"]

    gains = [found(item, bought, chosen) for item in order]

    assert gains == pytest.approx([1.0, 0.6309, 0.5, 0.4307, 0.3869], abs=1e-4)


def test_popular_is_what_was_chosen_in_the_four_weeks_before_that_day() -> None:
    chosen = [(date(2026, 1, 31), "too old", 9), (date(2026, 3, 1), "that day", 9), (date(2026, 2, 1), "inside", 1)]

    assert found("inside", {}, chosen) == 1.0
    assert found("too old", {}, chosen) == found("that day", {}, chosen) == 0.0


def test_a_search_is_answered_by_its_words_and_equal_matches_by_popularity() -> None:
    chosen = [(date(2026, 2, 20), "lamp", 9)]

    assert found("mug", {"lamp": (5.0, 1.0)}, chosen, query="blue mug") == 1.0
    assert found("lamp", {}, chosen, query="no such words") == 1.0
