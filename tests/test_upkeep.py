"""The daily upkeep of the lake: an hour costs what changed, and nothing that anyone reads is another afterwards."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from pipeline import tables, updating
from pipeline.lake import Lake, open_lake
from pipeline.report import newest_window, recent_log
from pipeline.retention import tidy
from pipeline.schema import EVENTS, ITEMS
from pipeline.settings import Settings
from pipeline.window import Window
from tests.same_tables import rows_differing
from tests.small_shop import hour, log_windows, publish_purchases, settings_of

HOURS = (0, 1, 2, 3, 24, 25)  # four of one day, two of the next
SETTLED = datetime(2026, 1, 9, 12, tzinfo=UTC)  # three days after the first of them, not after the second


def filled(home: Path) -> Lake:
    """Each hour in a commit of its own, its log as well."""
    lake = open_lake(settings_of(home))
    for number in HOURS:
        publish_purchases(lake, number)
        log_windows(lake, EVENTS, hour(number))
    return lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return filled(tmp_path)


def files_by_day(lake: Lake, table: str) -> dict[date, int]:
    days = lake.files(table, lake.version(table))["partition.landed_date"].to_pylist()
    return {day: days.count(day) for day in sorted(set(days))}


def by_key(rows: pa.Table) -> list[dict[str, object]]:
    return rows.sort_by([("event_id", "ascending")]).to_pylist()


def test_the_files_of_a_settled_day_become_one_and_say_the_same(lake: Lake, tmp_path: Path) -> None:
    first, second = hour(0).start.date(), hour(24).start.date()
    assert files_by_day(lake, "events") == {first: 4, second: 2}
    version = lake.version("events")
    before = [by_key(lake.arrow("events", one)) for one in range(version + 1)]
    changes = by_key(lake.changes("events", 0, version))
    tidy(lake, SETTLED, timedelta(days=1))
    assert files_by_day(lake, "events") == {first: 1, second: 2}
    assert files_by_day(lake, "windows") == {first: 1, second: 1}  # small, and read each hour: it need not have settled
    assert [by_key(lake.arrow("events", one)) for one in range(version + 1)] == before
    assert by_key(lake.changes("events", 0, lake.version("events"))) == changes
    assert rows_differing(lake, filled(tmp_path / "untouched")) == {}


def test_what_is_tidy_is_left_alone(lake: Lake) -> None:
    tidy(lake, SETTLED, timedelta(days=1))
    versions = {table: lake.version(table) for table in ("events", "windows")}
    tidy(lake, SETTLED, timedelta(days=1))
    assert {table: lake.version(table) for table in versions} == versions


def test_a_corrected_hour_of_a_tidied_day_changes_its_rows_alone(lake: Lake) -> None:
    tidy(lake, SETTLED, timedelta(days=1))
    done = publish_purchases(lake, 1, factor=2.0)
    assert (done.inserted, done.gone) == (0, 0) and done.changed == 12
    assert len(lake.changes("events", done.table_version - 1, done.table_version)) == 12


@pytest.mark.slow
def test_to_put_files_together_is_nothing_to_learn(price_shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = open_lake(price_shop)
    publish_purchases(lake, 101)
    done = updating.update(updating.plan("price", price_shop), price_shop, SETTLED, report=lambda line: None)
    updating.promote("price", done["version"], price_shop, SETTLED)
    learnt = lake.version("events")
    tidy(lake, SETTLED + timedelta(days=9), timedelta(days=1))
    assert lake.version("events") > learnt == lake.rows_version("events")
    assert "nothing_because" in updating.plan("price", price_shop)
    monkeypatch.setattr(tables, "_LOOKED_BACK", 1)  # as after many days without a row
    assert lake.rows_version("events") == learnt
    assert lake.rows_version("messages") == -1


def test_a_tables_extent_is_what_its_rows_say(lake: Lake) -> None:
    tidy(lake, SETTLED, timedelta(days=1))
    publish_purchases(lake, 26)
    for version in (2, lake.version("events")):
        span = pc.min_max(lake.arrow("events", version)["landed_window"]).as_py()
        assert lake.extent("events", version) == (len(lake.arrow("events", version)), span["min"], span["max"])
    assert lake.extent("items", -1) == (0, None, None)


def test_the_log_is_asked_for_some_days(lake: Lake) -> None:
    second = hour(24).start.date()
    assert [row["landed_window"] for row in lake.window_log([second]).to_pylist()] == [hour(24).start, hour(25).start]
    assert lake.window_log(since=second).equals(lake.window_log([second]))
    assert len(lake.window_log()) == len(HOURS) and lake.newest_day("windows") == second


def test_a_feed_that_is_silent_for_weeks_keeps_its_newest_window(lake: Lake) -> None:
    later = hour(24 * 30)
    log_windows(lake, ITEMS, later)  # an hour without rows of items
    assert newest_window(lake, "events") == hour(25).start
    assert newest_window(lake, "items") is None
    assert [Window(row["landed_window"]) for row in recent_log(lake, "items")] == [later]
    assert len(recent_log(lake, "events")) == len(HOURS)


def test_logs_are_kept_for_a_week_and_feeds_for_as_long_as_ledgers_look_back(lake: Lake) -> None:
    told = {name: DeltaTable(f"{lake.root}/{name}").metadata().configuration for name in ("events", "windows")}
    assert told["events"]["delta.logRetentionDuration"] == "interval 400 days"
    assert told["windows"]["delta.logRetentionDuration"] == "interval 7 days"
    assert told["windows"]["delta.enableChangeDataFeed"] == "false"
