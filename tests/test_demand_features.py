"""The features of demand by hand on a tiny item: the week that is drawn from its days, and no look into the future."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tasks.demand_features import FEATURES, DailySales, features_of

DAYS = 140
HISTORY = 112


def sales(units: np.ndarray, **changed: np.ndarray) -> DailySales:
    """One item that has been known for long, an order on each day with units."""
    units = np.asarray(units, np.float32)[None]
    given: dict = {
        "units": units, "orders": (units > 0).astype(np.float32), "in_stock": np.ones_like(units),
        "log_price": np.zeros_like(units), "price_moved": np.zeros(units.shape, bool),
        "known_from": np.array([-1000]), "shop": np.ones(units.shape[1]),
    }
    return DailySales(items=np.array(["a"], object), first_day=0, shop_first_day=0, **given | changed)


def feature(name: str, sold: DailySales, origin: int = DAYS) -> float:
    return float(features_of(sold, np.array([0]), np.array([origin]))[0, FEATURES.index(name)])


def drawn_week(sold: DailySales, origin: int = DAYS) -> float:
    return float(np.expm1(feature("drawn_week", sold, origin)))


def test_a_week_like_all_others_is_drawn_as_it_is() -> None:
    """Two units on four days a week, on the same weekdays: every draw has eight."""
    assert drawn_week(sales(np.tile([2, 2, 0, 2, 2, 0, 0], DAYS // 7))) == pytest.approx(8.0, rel=1e-5)


def test_a_bulk_order_hardly_moves_the_drawn_week() -> None:
    """It comes up in one draw of eight; the mean of the four weeks is at 257 units."""
    units = np.ones(DAYS)
    units[-3] = 1_000.0
    assert drawn_week(sales(units)) == pytest.approx(7.0, rel=1e-5)


def test_the_drawn_week_goes_at_the_pace_of_the_last_four_weeks() -> None:
    """Eight weeks: four without a sale, four of a unit a day: days are one unit in half the draws, the pace doubles."""
    units = np.concatenate([np.zeros(DAYS - 28), np.ones(28)])
    assert drawn_week(sales(units)) == pytest.approx(7.0, abs=1.1)


def test_days_out_of_stock_do_not_slow_the_drawn_week() -> None:
    """Two of the last four weeks could not be bought: six weeks of eight have units, at their own pace."""
    units, stock = np.ones(DAYS), np.ones((1, DAYS), np.float32)
    units[-14:], stock[:, -14:] = 0.0, 0.0
    there = drawn_week(sales(units, in_stock=stock))
    assert there == pytest.approx(7.0, abs=1.1)
    assert drawn_week(sales(units)) == pytest.approx(there / 2, rel=1e-3), "where they could be bought they count"


def test_an_item_that_never_sold_has_a_drawn_week_of_nothing() -> None:
    assert drawn_week(sales(np.zeros(DAYS))) == 0.0


def test_what_happens_from_the_origin_on_changes_no_feature() -> None:
    draw = np.random.default_rng(0)
    units = draw.poisson(3.0, DAYS).astype(float)
    later = units.copy()
    later[HISTORY + 14 :] = 1_000.0
    origin = np.array([HISTORY + 14])
    before, after = (features_of(sales(one), np.array([0]), origin) for one in (units, later))
    np.testing.assert_array_equal(before, after)


def test_many_pairs_have_the_features_of_each_alone() -> None:
    sold = sales(np.random.default_rng(1).poisson(2.0, DAYS).astype(float))
    origins = np.arange(HISTORY, DAYS)
    rows = np.zeros(len(origins), int)
    alone = [features_of(sold, rows[:1], np.array([origin])) for origin in origins]
    np.testing.assert_allclose(features_of(sold, rows, origins), np.concatenate(alone), rtol=1e-6)


def test_features_have_distinct_names() -> None:
    assert len(set(FEATURES)) == len(FEATURES)
