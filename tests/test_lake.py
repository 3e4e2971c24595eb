"""The lake's promises: windows replaced in one transaction, rows counted once in whatever order they come."""

from __future__ import annotations

import itertools
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyarrow.dataset import Dataset

from pipeline.few_rows import rows_with
from pipeline.lake import Lake
from pipeline.locking import file_locks
from pipeline.schema import EVENTS, QUARANTINE_SCHEMA
from pipeline.snapshot import Snapshot
from pipeline.tables import LakeError
from pipeline.window import Window

T0 = datetime(2026, 1, 5, 22, tzinfo=UTC)


def window(hours: int) -> Window:
    return Window(T0 + timedelta(hours=hours))


def events(*rows: tuple[str, int, float], file: str = "a.jsonl") -> pa.Table:
    """Rows (event id, landed hour, price) of one user who buys one item."""
    records = []
    for number, (event_id, landed, price) in enumerate(rows, start=1):
        start = window(landed).start
        records.append({
            "event_id": event_id, "event_type": "purchase", "event_time": T0, "user_id": "u", "session_id": None,
            "item_id": "i", "quantity": 1.0, "price": price, "rating": None, "query": None, "basket_id": None,
            "hour": T0, "landed_window": start, "landed_date": start.date(), "source_file": file,
            "source_row": number, "imputed": None,
        })
    return pa.Table.from_pylist(records, schema=EVENTS.table_schema)


NONE = events()
NO_QUARANTINE = QUARANTINE_SCHEMA.empty_table()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"), file_locks(tmp_path / "locks"))


def held(lake: Lake) -> list[tuple[str, datetime, float]]:
    table = lake.arrow("events")
    return sorted(zip(*(table[name].to_pylist() for name in ("event_id", "landed_window", "price")), strict=True))


def test_an_unchanged_window_is_no_commit(lake: Lake) -> None:
    first = lake.publish(EVENTS, [window(0)], events(("e1", 0, 1.0), ("e2", 0, 2.0)), NONE, NO_QUARANTINE)
    again = lake.publish(
        EVENTS, [window(0)], events(("e2", 0, 2.0), ("e1", 0, 1.0), file="b.jsonl"), NONE, NO_QUARANTINE
    )
    assert (first.inserted, again.inserted, again.changed, again.gone) == (2, 0, 0, 0)
    assert again.table_version == first.table_version


def test_a_corrected_window_changes_only_the_rows_that_differ(lake: Lake) -> None:
    before = lake.publish(
        EVENTS, [window(0)], events(("e1", 0, 1.0), ("e2", 0, 2.0), ("e3", 0, 3.0)), NONE, NO_QUARANTINE
    )
    after = lake.publish(
        EVENTS, [window(0)], events(("e1", 0, 1.0), ("e2", 0, 9.0), ("e4", 0, 4.0)), NONE, NO_QUARANTINE
    )
    assert (after.inserted, after.changed, after.gone) == (1, 1, 1)
    changes = lake.changes("events", before.table_version, after.table_version)
    found = dict(zip(changes["event_id"].to_pylist(), changes["change"].to_pylist(), strict=True))
    assert found == {"e2": "update", "e3": "delete", "e4": "insert"}
    assert [row[0] for row in held(lake)] == ["e1", "e2", "e4"]


def test_what_was_corrected_back_is_no_change(lake: Lake) -> None:
    lake.publish(EVENTS, [window(0)], events(("e1", 0, 1.0)), NONE, NO_QUARANTINE)
    start = lake.version("events")
    lake.publish(EVENTS, [window(0)], events(("e1", 0, 5.0), ("e2", 0, 1.0)), NONE, NO_QUARANTINE)
    lake.publish(EVENTS, [window(0)], events(("e1", 0, 1.0)), NONE, NO_QUARANTINE)
    assert lake.version("events") == start + 2
    assert len(lake.changes("events", start, start + 2)) == 0


LANDINGS = {  # e1 lands in three windows over midnight, e2 in two
    0: events(("e1", 0, 1.0)),
    1: events(("e2", 1, 2.0)),
    3: events(("e1", 3, 1.5), ("e2", 3, 2.5), ("e3", 3, 3.0)),
    4: events(("e1", 4, 1.7)),
}


@pytest.mark.parametrize("order", list(itertools.permutations(LANDINGS))[::3])
def test_the_table_ends_the_same_in_whatever_order_windows_come(lake: Lake, order: tuple[int, ...]) -> None:
    for hour in order:
        lake.publish(EVENTS, [window(hour)], LANDINGS[hour], NONE, NO_QUARANTINE)
    assert held(lake) == [
        ("e1", window(0).start, 1.0), ("e2", window(1).start, 2.0), ("e3", window(3).start, 3.0)
    ]
    lake.publish(EVENTS, [window(0)], NONE, NONE, NO_QUARANTINE)  # window 0 is corrected: e1 was not in it
    assert held(lake)[0] == ("e1", window(3).start, 1.5)
    lake.publish(EVENTS, [window(3)], NONE, NONE, NO_QUARANTINE)
    assert held(lake) == [("e1", window(4).start, 1.7), ("e2", window(1).start, 2.0)]


def test_a_row_that_landed_minutes_before_its_hour_counts_once_when_it_comes_again_at_the_latest(lake: Lake) -> None:
    early, latest = window(1), window(2 + 48)  # 23:00, and 48 hours after the midnight at which it happened
    for hour, price in ((1, 1.0), (50, 5.0)):
        lake.publish(EVENTS, [window(hour)], events(("e1", hour, price)), NONE, NO_QUARANTINE)
    assert held(lake) == [("e1", early.start, 1.0)]
    lake.publish(EVENTS, [early], NONE, NONE, NO_QUARANTINE)
    assert held(lake) == [("e1", latest.start, 5.0)]


def test_rows_of_a_window_are_published_or_duplicates(lake: Lake) -> None:
    lake.publish(EVENTS, [window(0)], LANDINGS[0], NONE, NO_QUARANTINE)
    done = lake.publish(EVENTS, [window(3)], LANDINGS[3], NONE, NO_QUARANTINE)
    assert (done.published[window(3)], done.duplicates[window(3)]) == (2, 1)
    assert done.late[window(3)] == 2


def test_a_year_in_one_call_equals_hour_by_hour(lake: Lake, tmp_path: Path) -> None:
    rows = [(f"e{n}", n // 3, float(n)) for n in range(60)]
    lake.publish(EVENTS, [window(h) for h in range(20)], events(*rows), NONE, NO_QUARANTINE)
    other = Lake(str(tmp_path / "other"), file_locks(tmp_path / "locks"))
    for hour in range(20):
        other.publish(EVENTS, [window(hour)], events(*(r for r in rows if r[1] == hour)), NONE, NO_QUARANTINE)
    assert held(lake) == held(other)
    assert (lake.version("events"), other.version("events")) == (1, 20)


def test_old_change_data_are_deleted_and_younger_ones_tell_a_held_update_what_changed(
    lake: Lake, tmp_path: Path
) -> None:
    def told() -> set[Path]:
        return set((tmp_path / "lake" / "events" / "_change_data").rglob("*.parquet"))

    first = lake.publish(EVENTS, [window(0)], events(("e1", 0, 1.0), ("e2", 0, 2.0)), NONE, NO_QUARANTINE)
    lake.publish(EVENTS, [window(0)], events(("e1", 0, 1.5), ("e2", 0, 2.0)), NONE, NO_QUARANTINE)
    old = told()
    for file in old:
        os.utime(file, (time.time() - 500 * 86_400,) * 2)
    second = lake.publish(EVENTS, [window(0)], events(("e1", 0, 1.5), ("e2", 0, 2.5)), NONE, NO_QUARANTINE)
    assert len(old) == 1 and len(told()) == 2
    lake.vacuum("events", timedelta(0))
    assert len(told()) == 1 and told().isdisjoint(old)
    changes = lake.changes("events", second.table_version - 1, second.table_version)
    assert changes.select(["event_id", "price", "change"]).to_pylist() == [
        {"event_id": "e2", "price": 2.5, "change": "update"}
    ]
    with pytest.raises(LakeError, match="must reach back to its first version"):
        list(lake.images("events", ["event_id"]))
    assert held(lake) == [("e1", window(0).start, 1.5), ("e2", window(0).start, 2.5)] and first.inserted == 2


def test_a_table_into_which_nothing_came_for_as_long_as_its_log_is_kept_has_a_version_to_learn_up_to(
    lake: Lake, tmp_path: Path
) -> None:
    for number in range(3):
        lake.publish(EVENTS, [window(number)], events((f"e{number}", number, 1.0)), NONE, NO_QUARANTINE)
    lake.compact("events")
    table = DeltaTable(str(tmp_path / "lake" / "events"))
    table.create_checkpoint()
    for file in (tmp_path / "lake" / "events" / "_delta_log").glob("*.json"):
        os.utime(file, (time.time() - 500 * 86_400,) * 2)
    table.cleanup_metadata()
    assert [one["operation"] for one in table.history()] == ["OPTIMIZE"]
    learnt = lake.rows_version("events")
    assert len(lake.arrow("events", learnt)) == 3
    newer = lake.publish(EVENTS, [window(3)], events(("e3", 3, 1.0)), NONE, NO_QUARANTINE).table_version
    assert lake.rows_version("events") == newer
    assert lake.changes("events", learnt, newer)["event_id"].to_pylist() == ["e3"]


def test_a_version_that_is_not_there_is_named(lake: Lake) -> None:
    lake.publish(EVENTS, [window(0)], events(("e1", 0, 1.0)), NONE, NO_QUARANTINE)
    with pytest.raises(LakeError, match="version 99; it has up to 1"):
        lake.arrow("events", version=99)


def test_rows_of_some_values_are_read_once_with_those_that_are_expected(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.publish(EVENTS, [window(0)], events(*((f"e{number}", 0, 1.0) for number in range(6))), NONE, NO_QUARANTINE)
    tables = Snapshot(lake, {"events": lake.version("events")})
    reads: list[str] = []

    def counted(rows: Dataset, column: str, *rest: Any) -> pa.Table:
        reads.append(column)
        return rows_with(rows, column, *rest)

    def found(*values: str | None, most_held: int = 4) -> list[str]:
        wanted = pa.chunked_array([pa.array(values, pa.string())])
        rows = tables.rows_of("events", "event_id", wanted, ["event_id", "price"], most_held)
        return sorted(rows["event_id"].to_pylist())

    monkeypatch.setattr("pipeline.snapshot.rows_with", counted)
    tables.expect("events", "event_id", pa.chunked_array([pa.array(["e1", "e2", None, "e3"], pa.string())]))
    assert found("e1", None, "e9") == ["e1"] and len(reads) == 1
    assert found("e2", "e3") == ["e2", "e3"] and found() == [] and len(reads) == 1
    assert found("e4", "e1") == ["e1", "e4"] and len(reads) == 2  # e4 was not expected
    assert found("e0", "e1", most_held=1) == ["e0", "e1"] and len(reads) == 3  # too many: without the expected ones
    assert found("e2", most_held=1) == ["e2"] and len(reads) == 4


def test_a_fact_of_a_snapshot_is_asked_for_once(lake: Lake) -> None:
    tables = Snapshot(lake, {"events": -1})
    answers = iter((1, 2))
    assert [tables.remembered("one", lambda: next(answers)) for _ in range(2)] == [1, 1]
    assert tables.remembered("other", lambda: next(answers)) == 2
