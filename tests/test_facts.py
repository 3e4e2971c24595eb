"""What a window is known by beside its own rows: its prices by the catalogue's, and how wide its users are."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from pipeline.facts import price_ratios, user_widths
from pipeline.schema import TIME

EARLY, LATE = (datetime(2026, 1, day, tzinfo=UTC) for day in (1, 4))
CATALOGUE = pa.table({
    "item_id": ["lamp", "lamp", "desk", "free"], "change_id": ["a", "b", "c", "d"],
    "change_time": pa.array([LATE, EARLY, EARLY, EARLY], TIME), "price": [2.0, 50.0, 4.0, 0.0],
})


def rows_of(*rows: tuple[datetime, str | None, str | None, float | None]) -> pa.Table:
    windows, users, items, prices = zip(*rows, strict=True)
    return pa.table({
        "landed_window": pa.array(windows, TIME), "user_id": pa.array(users, pa.string()),
        "item_id": pa.array(items, pa.string()), "price": pa.array(prices, pa.float64()),
    })


def test_a_price_is_held_beside_the_newest_that_the_catalogue_has() -> None:
    rows = rows_of(
        (LATE, "u", "lamp", 3.0), (LATE, "u", "desk", 400.0), (LATE, "u", "free", 1.0), (LATE, "u", "new", 1.0),
        (LATE, "u", "lamp", None), (LATE, "u", None, 1.0), (LATE, "u", "lamp", 0.0),
    )
    assert price_ratios(rows, CATALOGUE).to_pylist() == [1.5, 100.0, None, None, None, None, None]
    assert price_ratios(rows, CATALOGUE.slice(0, 0)).null_count == len(rows)


def test_a_price_that_moves_all_day_is_held_beside_the_nearest_of_its_last_ones() -> None:
    hours = [datetime(2026, 1, 4, hour, tzinfo=UTC) for hour in range(3)]
    moving = pa.table({
        "item_id": ["lamp"] * 3, "change_id": ["a", "b", "c"], "change_time": pa.array(hours, TIME),
        "price": [1.0, 50.0, 100.0],
    })
    rows = rows_of(*[(LATE, "u", "lamp", price) for price in (1.0, 30.0, 0.5, 400.0)])
    assert price_ratios(rows, moving).to_pylist() == [1.0, 1.0, 0.5, 4.0]


def test_of_many_prices_some_are_taken_from_all_over_the_window() -> None:
    rows = rows_of(*[(LATE, "u", "lamp", 2.0)] * 10_000)
    known = np.flatnonzero(price_ratios(rows, CATALOGUE).is_valid().to_numpy(zero_copy_only=False))
    assert 2_000 <= len(known) <= 2_500 and known[0] < 10 and known[-1] >= 9_990


def test_a_users_width_is_of_items_not_of_rows_and_of_one_hour() -> None:
    catalogue = pa.table({"item_id": [f"i{number}" for number in range(100)] * 2})
    wide = [(LATE, "bot", f"i{number}", 1.0) for number in range(60)]
    keen = [(LATE, "keen", "i1", 1.0)] * 60
    often = [(hour, "often", f"i{number}", 1.0) for hour in (EARLY, LATE) for number in range(19)]
    guests = [(LATE, None, f"i{number}", 1.0) for number in range(60)]
    widths = user_widths(rows_of(*wide, *keen, *often, *guests), catalogue).to_pylist()
    assert widths == [0.6] * 60 + [0.01] * 60 + [None] * 98


def test_in_a_small_catalogue_nobody_is_wide() -> None:
    rows = rows_of(*[(LATE, "u", item, 1.0) for item in ("lamp", "desk", "free")])
    assert user_widths(rows, CATALOGUE).null_count == 3
