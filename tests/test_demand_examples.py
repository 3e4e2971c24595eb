"""Examples of demand: every day of an item is taught once, from what was known, and no stock-out passes for a zero."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.lake import Lake, open_lake
from pipeline.schema import EVENTS, ITEMS
from pipeline.snapshot import Snapshot
from pipeline.tasks import demand_examples
from pipeline.tasks.contract import Examples
from pipeline.tasks.demand_examples import HORIZONS_DAYS, PRICE_DAYS, array_of
from pipeline.tasks.demand_features import FEATURES
from pipeline.window import Window
from tests.small_shop import publish, settings_of

START = datetime(2026, 1, 5, tzinfo=UTC)


def sale(item: str, day: int, hour: int = 9, units: float = 1.0, price: float = 10.0) -> dict[str, object]:
    at = START + timedelta(days=day, hours=hour)
    return {
        "event_id": f"{day:03d}-{hour:02d}-{item}", "event_type": "purchase", "event_time": at, "user_id": "0" * 32,
        "item_id": item, "quantity": units, "price": price, "hour": at, "landed_window": at, "landed_date": at.date(),
        "source_file": "a", "source_row": 1,
    }


def change(item: str, day: int, hour: int = 0, **said: object) -> dict[str, object]:
    at = START + timedelta(days=day, hours=hour)
    return {
        "change_id": f"{day:03d}-{hour:02d}-{item}", "item_id": item, "change_time": at, "title": item, "hour": at,
        "landed_window": at, "landed_date": at.date(), "source_file": "a", "source_row": 1, **said,
    }


@pytest.fixture
def land(tmp_path: Path) -> Callable[..., tuple[Lake, Snapshot]]:
    """Publishes sales and catalogue changes, and gives the tables as they are then."""
    lake = open_lake(settings_of(tmp_path))

    def landed(sales: list[dict], changes: list[dict] = ()) -> tuple[Lake, Snapshot]:  # type: ignore[assignment]
        for feed, rows in ((ITEMS, changes), (EVENTS, sales)):
            if rows:
                table = pa.Table.from_pylist(rows, schema=feed.table_schema)
                windows = [Window(hour) for hour in sorted(pc.unique(table["landed_window"]).to_pylist())]
                publish(lake, feed, windows, table)
        return lake, Snapshot(lake, {name: lake.version(name) for name in ("events", "items")})

    return landed


def taught(tables: Snapshot, rows: pa.Table | None = None) -> Examples:
    return demand_examples.examples(tables, tables.arrow("events") if rows is None else rows)


def days_of(examples: Examples, item: str) -> list[int]:
    first = (START - datetime(1970, 1, 1, tzinfo=UTC)).days
    ids = [one.split("|") for one in examples.table["example_id"].to_pylist()]
    return sorted(int(day) - first for name, day in ids if name == item)


def test_the_days_of_a_silence_are_taught_with_their_zeros(land) -> None:
    _, tables = land([sale("a", 0), sale("a", 1), sale("a", 30, units=5.0)], [change("a", 0, price=10.0)])
    examples = taught(tables)
    held = days_of(examples, "a")
    assert len(held) >= 9 and max(held) <= 29 and min(held) >= 0
    assert np.diff(held).min() == 3
    units = array_of(examples.table, "units", len(HORIZONS_DAYS))
    assert units[-1, 0] == 0 and units[-1, 2] <= 2, "the five units of day 30 belong to no horizon that has ended"


def test_hours_teach_the_same_together_and_one_by_one(land) -> None:
    rows = [sale(item, day, hour) for item in ("a", "b") for day in range(0, 21, 4 + (item == "b")) for hour in (3, 15)]
    _, tables = land(rows)
    whole = taught(tables)
    table = tables.arrow("events")
    parts = [taught(tables, table.filter(pc.equal(table["hour"], hour))) for hour in pc.unique(table["hour"])]
    together = pa.concat_tables([part.table for part in parts]).sort_by([("example_id", "ascending")])
    assert together.equals(whole.table.sort_by([("example_id", "ascending")]))
    assert len(set(whole.table["example_id"].to_pylist())) == len(whole)


@pytest.mark.parametrize("late", [(6, 8), (4, 20)])
def test_an_event_that_lands_late_teaches_no_day_again(land, late) -> None:
    """On day 6 an event of hour 10 has taught all days since day 0; two hours later one of before it lands."""
    items = "abcdefgh"  # of some the later event falls into another part than the first one
    early = [sale(item, day, 10) for item in items for day in (0, 6)]
    lake, tables = land(early)
    before = taught(tables)
    landed = START + timedelta(days=6, hours=12)
    _, tables = land([sale(item, *late) | {"landed_window": landed} for item in items])
    came = lake.changes("events", lake.version("events") - 1, lake.version("events")).drop_columns(["change"])
    assert len(came) == len(items) and not len(taught(tables, came))
    assert taught(tables).table["example_id"].equals(before.table["example_id"])


def test_each_row_that_teaches_is_counted_once(land) -> None:
    rows = [sale(item, day, hour) for item in ("a", "b", "c") for day in range(20) for hour in (3, 4)]
    _, tables = land(rows)
    table = tables.arrow("events")
    teaching = demand_examples.teaching(tables, table)
    assert 0 < len(teaching) < len(table)
    assert taught(tables).taught_rows == len(teaching)
    assert taught(tables, teaching).table.equals(taught(tables).table)
    assert set(pc.unique(teaching["hour"]).to_pylist()) <= {START + timedelta(days=day, hours=3) for day in range(20)}


def test_what_happens_later_changes_no_input(land) -> None:
    rows = [sale("a", day, units=float(1 + day % 3)) for day in range(40)]
    _, before = land(rows)
    first = taught(before)
    rows_then = before.arrow("events")
    _, after = land([sale("a", day, units=500.0, price=1.0) for day in range(40, 60)])
    again = taught(after, rows_then)
    assert again.table.equals(first.table)


def test_a_zero_without_stock_is_no_zero_of_demand(land) -> None:
    rows = [sale("a", day, units=2.0) for day in range(20)] + [sale("a", 40, units=2.0)]
    _, tables = land(rows, [
        change("a", 0, price=10.0, stock=50.0), change("a", 20, stock=0.0), change("a", 39, stock=50.0),
    ])
    examples = taught(tables)
    weight = array_of(examples.table, "weight", len(HORIZONS_DAYS))
    held = days_of(examples, "a")
    gone = [place for place, day in enumerate(held) if 21 <= day < 39]
    assert gone and not weight[gone, 0].any() and not weight[gone, 2].any()
    rate = array_of(examples.table, "features", len(HORIZONS_DAYS), len(FEATURES))[:, 0, FEATURES.index("rate_10")]
    steady = [place for place, day in enumerate(held) if day in (18, 19, 20)]
    assert rate[gone[-1]] == pytest.approx(rate[steady[0]], abs=0.25), "days out of stock do not pull the rate down"


def test_horizons_before_an_item_was_known_do_not_count(land) -> None:
    _, tables = land([sale("a", day) for day in range(10, 30)] + [sale("z", 0)], [change("a", 10, price=3.0)])
    examples = taught(tables)
    weight = array_of(examples.table, "weight", len(HORIZONS_DAYS))
    for day, counts in zip(days_of(examples, "a"), weight, strict=True):
        assert counts.tolist() == [1.0, float(day >= 16), 0.0]


def test_a_day_on_which_the_price_moved_says_nothing_of_the_answer_to_it(land) -> None:
    _, tables = land(
        [sale("a", day, price=10.0 if day < 20 else 8.0) for day in range(30)],
        [change("a", 0, price=10.0), change("a", 20, hour=12, price=8.0)],
    )
    examples = taught(tables)
    last = array_of(examples.table, "price_days", 3, PRICE_DAYS)[-1]
    day = days_of(examples, "a")[-1]
    moved = PRICE_DAYS - 1 - (day - 20)
    assert last[2, moved] == 0.0 and last[2, moved - 1] > 0.0 and last[2, moved + 1] > 0.0
    assert last[0, moved + 1] - last[0, moved - 1] == pytest.approx(np.log(0.8), abs=1e-5)


def test_an_hour_of_lost_searches_alone_teaches_nothing(land) -> None:
    lost = sale("a", 1) | {"item_id": None, "event_type": "search", "query": "lamp", "quantity": None}
    _, tables = land([sale("a", 0), lost], [change("a", 0, price=10.0)])
    events = tables.arrow("events")
    rows = events.filter(pc.is_null(events["item_id"]))
    assert len(rows) == 1 and len(demand_examples.teaching(tables, rows)) == 0
