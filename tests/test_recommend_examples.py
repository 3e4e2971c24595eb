"""The examples of `recommend`: what was known before a moment, and nothing of the answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.lake import Lake
from pipeline.locking import file_locks
from pipeline.schema import EVENTS, QUARANTINE_SCHEMA
from pipeline.snapshot import Snapshot
from pipeline.tasks import recommend_examples
from pipeline.window import Window

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def event(number: int, kind: str, item: str | None, minutes: float, user: str | None = "u", **more: Any) -> dict:
    time = NOON + timedelta(minutes=minutes)
    return {
        **dict.fromkeys(EVENTS.table_schema.names), "event_id": f"e{number}", "event_type": kind, "item_id": item,
        "event_time": time, "user_id": user, "hour": time.replace(minute=0, second=0), "landed_window": NOON,
        "landed_date": NOON.date(), "source_file": "a", "source_row": number, **more,
    }


def examples_of(tmp_path: Path, *events: dict) -> list[dict]:
    rows = pa.Table.from_pylist(list(events), schema=EVENTS.table_schema)
    lake = Lake(str(tmp_path / "lake"), file_locks(tmp_path / "locks"))
    nothing = QUARANTINE_SCHEMA.empty_table()
    version = lake.publish(EVENTS, [Window(NOON)], rows, rows.slice(0, 0), nothing).table_version
    tables = Snapshot(lake, {"events": version, "items": -1})
    return recommend_examples.examples(tables, rows).table.to_pylist()


def test_a_baskets_history_counts_purchases_views_and_days(tmp_path: Path) -> None:
    (first, second) = examples_of(
        tmp_path, event(1, "purchase", "a", -2880), event(2, "view", "b", -1440), event(3, "view", "a", -60),
        event(4, "purchase", "c", 0), event(5, "purchase", "a", 0),
    )
    assert (first["targets"], first["history_items"], first["rows"]) == (["a"], [], 1)
    assert second["targets"] == ["a", "c"]
    assert second["rows"] == 2
    assert second["history_items"] == ["a", "b"]
    assert second["history_counts"] == [1.0, 0.0]
    assert second["history_views"] == [1.0, 1.0]
    assert second["history_days"] == pytest.approx([60 / 1440, 1.0])


def test_the_visit_that_ends_in_a_purchase_is_part_of_the_answer(tmp_path: Path) -> None:
    (example,) = examples_of(
        tmp_path, event(1, "view", "a", -31), event(2, "view", "b", -29), event(3, "cart", "b", -1),
        event(4, "purchase", "b", 0),
    )
    assert example["history_items"] == ["a"]


def test_a_search_knows_the_visit_so_far(tmp_path: Path) -> None:
    (searched, _) = examples_of(
        tmp_path, event(1, "view", "a", -2), event(2, "search", "b", 0, query="red mug"), event(3, "purchase", "c", 90),
    )
    assert (searched["query"], searched["history_items"], searched["targets"]) == ("red mug", ["a"], ["b"])


def test_in_a_log_without_purchases_each_view_is_foreseen_from_the_views_before_it(tmp_path: Path) -> None:
    found = examples_of(tmp_path, event(1, "view", "a", 0), event(2, "view", "b", 1), event(3, "view", "c", 2))
    assert [(one["history_items"], one["targets"]) for one in found] == [
        ([], ["a"]), (["a"], ["b"]), (["b", "a"], ["c"]),
    ]


def test_guests_and_searches_that_led_nowhere_teach_nothing(tmp_path: Path) -> None:
    found = examples_of(
        tmp_path, event(1, "purchase", "a", 0, user=None), event(2, "search", None, 1, query="x"),
        event(3, "purchase", "b", 2),
    )
    assert [one["targets"] for one in found] == [["b"]]


def test_a_rating_is_an_example_of_its_own(tmp_path: Path) -> None:
    found = examples_of(tmp_path, event(1, "purchase", "a", -90), event(2, "rating", "a", 0, rating=4.0))
    rated = next(one for one in found if one["rating_item"])
    assert (rated["rating_item"], rated["rating"], rated["targets"], rated["history_items"]) == ("a", 4.0, [], ["a"])


def test_the_order_of_the_rows_changes_nothing(tmp_path: Path) -> None:
    events = [event(n, "purchase", item, -n * 100) for n, item in enumerate("abcab")]
    assert examples_of(tmp_path / "1", *events) == examples_of(tmp_path / "2", *reversed(events))


@pytest.mark.parametrize("rows_at_once", [1, 7, 1_000])
def test_an_id_for_all_guests_is_remembered_by_its_newest_rows_before_each_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(recommend_examples, "HISTORY_ROWS", 3)
    monkeypatch.setattr(recommend_examples, "_ROWS_AT_ONCE", {"duckdb": rows_at_once})
    events = [event(number, "purchase", item, number, user="guest") for number, item in enumerate("abacdeb")]
    others = [event(10 + number, "purchase", item, number, user="person") for number, item in enumerate("fgh")]
    found = {(one["unit"], one["targets"][0], one["time"]): one for one in examples_of(tmp_path, *events, *others)}
    told = [
        ("".join(one["history_items"]), one["history_counts"]) for (unit, *_), one in found.items() if unit == "guest"
    ]
    assert told == [
        ("", []), ("a", [1.0]), ("ba", [1.0, 1.0]), ("ab", [2.0, 1.0]), ("cab", [1.0, 1.0, 1.0]),
        ("dca", [1.0, 1.0, 1.0]), ("edc", [1.0, 1.0, 1.0]),
    ]
    assert ["".join(one["history_items"]) for (unit, *_), one in found.items() if unit == "person"] == ["", "f", "gf"]


def test_a_correction_of_one_users_row_finds_that_users_history(tmp_path: Path) -> None:
    """DuckDB then hands a filter to Arrow for a file that MERGE has rewritten, which Arrow cannot apply."""
    lake = Lake(str(tmp_path / "lake"), file_locks(tmp_path / "locks"))

    def publish(events: list[dict]) -> int:
        rows = pa.Table.from_pylist(events, schema=EVENTS.table_schema)
        nothing = QUARANTINE_SCHEMA.empty_table()
        return lake.publish(EVENTS, [Window(NOON)], rows, rows.slice(0, 0), nothing).table_version

    events = [
        event(n, "purchase" if n % 3 else "view", f"i{n}", n - 5000, user=f"{n % 20:032x}") for n in range(100)
    ]
    before = publish(events)
    events[7]["price"] = 9.0
    corrected = publish([*events, event(1000, "purchase", "new", 0, user=events[7]["user_id"])])
    change = lake.changes("events", before, corrected).drop_columns(["change"])
    tables = Snapshot(lake, {"events": corrected, "items": -1})
    (_, newest) = recommend_examples.examples(tables, change).table.to_pylist()
    assert newest["targets"] == ["new"]
    assert sorted(newest["history_items"]) == ["i27", "i47", "i67", "i7", "i87"]
