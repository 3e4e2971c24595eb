"""What the champion answers, in counts, from the files that consumers load."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.tasks.recommend_answers import answers_in_counts, load_compact
from pipeline.tasks.recommend_examples import EXAMPLES_SCHEMA
from tests.benchmarks.bench_recommend import random_recommender

NOW = datetime(2026, 1, 5, tzinfo=UTC)


def asks(user: str, history: list[str]) -> dict:
    ones = [1.0] * len(history)
    return {
        "example_id": user + str(len(history)), "unit": user, "time": NOW, "hour": NOW, "landed_window": NOW, "rows": 1,
        "history_items": history, "history_counts": ones, "history_views": ones, "history_days": ones,
        "history_habits": ones, "targets": [],
    }


def test_each_users_newest_moment_is_answered_and_counted(tmp_path: Path) -> None:
    compact = random_recommender(40, np.random.default_rng(0))
    compact.save(tmp_path / "recommender")
    ids = compact.ids[1:].tolist()
    moments = pa.Table.from_pylist(
        [asks("ann", ids[:1]), asks("ann", [*ids[:3], "gone"]), asks("bob", []), asks("eve", ids[5:9])], EXAMPLES_SCHEMA
    )
    even = dict.fromkeys(ids[::2], "even")
    counts = answers_in_counts(load_compact(tmp_path), moments, even, asked=[*ids[:7], "new", "newer"])
    assert {name: sum(bins.values()) for name, bins in counts.items()} == {
        "category": 60, "popularity": 60, "new to them": 60, "sure": 3, "asked for": 9
    }
    assert counts["asked for"] == {"known": 7, "unknown": 2}
    assert set(counts["category"]) == {"even", "missing"}
    assert 0 < counts["new to them"]["known"] <= 7 and counts["popularity"].keys() <= {
        "top 1 %", "next 9 %", "the rest"
    }
    assert all(name.startswith("1/") for name in counts["sure"])


def test_a_window_in_which_nobody_chose_anything_is_counted_all_the_same() -> None:
    compact = random_recommender(40, np.random.default_rng(0))
    counts = answers_in_counts(compact, EXAMPLES_SCHEMA.empty_table(), {}, asked=["new"])
    assert counts["asked for"] == {"unknown": 1} and counts["category"] == {}
