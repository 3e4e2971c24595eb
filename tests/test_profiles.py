"""Profiles: what a window held, counted once, again when it changed, and what of it was new or unknown."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.lake import Lake
from pipeline.locking import file_locks
from pipeline.profiles import append_profile, profile_windows, read_profiles, summed
from pipeline.schema import EVENTS, ITEMS
from tests.small_shop import T0, hour, log_windows, publish


def event(number: int, name: str, **values: object) -> dict[str, object]:
    start = hour(number).start
    return {
        "event_id": f"{name}-{number}", "event_type": "view", "event_time": start, "user_id": "u1", "item_id": "i1",
        "hour": start, "landed_window": start, "landed_date": start.date(), "source_file": "a", "source_row": 1,
        **values,
    }


def change(item: str, number: int, category: str | None) -> dict[str, object]:
    start = hour(number).start
    return {
        "change_id": f"c-{item}-{number}", "item_id": item, "change_time": start, "title": "Red lamp",
        "category": category, "price": 8.0, "hour": start, "landed_window": start, "landed_date": start.date(),
        "source_file": "a", "source_row": 1,
    }


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Hour 0 describes an item, hours 0 and 400 have events, hour 399 describes another item."""
    lake = Lake(str(tmp_path / "lake"), file_locks(tmp_path / "locks"))
    land(lake, ITEMS, change("i1", 0, "lamps"))
    land(lake, ITEMS, change("i2", 399, None))
    land(lake, EVENTS, event(0, "a"))
    land(
        lake, EVENTS,
        event(400, "a", event_type="purchase", quantity=2.0, price=8.0),
        event(400, "b", event_type="purchase", price=9.0, item_id="i2", user_id="u2"),
        event(400, "c", item_id="i3", user_id=None),
        event(400, "d", event_type="search", query="red lamp", item_id=None),
    )
    return lake


def land(lake: Lake, feed: object, *rows: dict[str, object]) -> None:
    table = pa.Table.from_pylist(list(rows), schema=feed.table_schema)
    windows = {row["landed_window"] for row in rows}
    number = int((windows.pop() - T0) / timedelta(hours=1))
    publish(lake, feed, [hour(number)], table)
    log_windows(lake, feed, hour(number))


def test_each_column_is_counted_by_bins_and_nulls(lake: Lake) -> None:
    assert profile_windows(lake) == 4
    (found,) = [one for one in read_profiles(lake, "events", T0).values() if one.window == hour(400).start]
    assert found.rows == 4
    assert found.counts["event_type"] == {"view": 1, "purchase": 2, "search": 1}
    assert found.counts["price"] == {"6": 2}  # 8 to 11.3: half octaves 2 ** 3 to 2 ** 3.5
    assert found.counts["quantity"] == {"2": 1, "missing": 1}
    assert found.counts["query length"] == {"6": 1}  # 8 characters
    assert found.counts["category"] == {"lamps": 1, "missing": 2}


def test_what_is_new_and_what_is_unknown_is_told_apart(lake: Lake) -> None:
    profile_windows(lake)
    held = read_profiles(lake, "events", T0)
    assert held[hour(400).start].counts["item"] == {"known": 1, "new": 1, "unknown": 1}
    assert held[hour(400).start].counts["user"] == {"returning": 2, "new": 1, "guest": 1}
    assert held[hour(0).start].counts["item"] == {"known": 1}  # a first catalogue is not new in anything
    assert held[hour(0).start].counts["user"] == {"new": 1}


def test_a_window_is_profiled_once_and_again_when_it_has_changed(lake: Lake) -> None:
    profile_windows(lake)
    version = lake.version("window_profiles")
    assert profile_windows(lake) == 0 and lake.version("window_profiles") == version
    land(lake, EVENTS, event(400, "a"))
    assert profile_windows(lake) == 1
    found = read_profiles(lake, "events", T0)[hour(400).start]
    assert (found.rows, found.counts["event_type"]) == (1, {"view": 1})


def test_windows_that_are_too_old_to_be_compared_with_are_left(lake: Lake) -> None:
    land(lake, EVENTS, event(400 + 37 * 24, "z"))
    assert profile_windows(lake) == 1
    assert list(read_profiles(lake, "events", T0)) == [hour(400 + 37 * 24).start]


def test_profiles_add_up_and_the_newest_version_counts(lake: Lake) -> None:
    append_profile(lake, "answers-x", hour(1).start, 1, {"category": {"lamps": 3}})
    append_profile(lake, "answers-x", hour(1).start, 2, {"category": {"lamps": 4}})
    append_profile(lake, "answers-x", hour(2).start, 2, {"category": {"lamps": 1, "beds": 2}})
    held = read_profiles(lake, "answers-x", T0)
    assert (held[hour(1).start].version, held[hour(1).start].rows) == (2, 4)
    assert summed(one.counts for one in held.values()) == {"category": {"lamps": 5, "beds": 2}}


def test_the_small_files_of_days_that_are_over_are_put_together(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.profiles._FILES_BEFORE_COMPACTION", 2)
    for place in range(4):
        append_profile(lake, "answers-x", hour(300).start, place, {"category": {"lamps": 1}})
    profile_windows(lake)
    days = lake.files("window_profiles", lake.version("window_profiles"))["partition.landed_date"].to_pylist()
    assert days.count(hour(300).start.date()) == 1
    assert read_profiles(lake, "answers-x", T0)[hour(300).start].version == 3
