"""Stock advice and price ranges, by hand on small numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from models.demand_service import ANSWER, PARAMETERS, Curve, DemandService, RequestRefused, price_range

ASKED = {**PARAMETERS, "stock": np.nan, "price": np.nan, "cost": np.nan}


class OneItem:
    """Two a day, for sure within a factor; costs 10, elasticity about -2."""

    horizons_days = (1, 7, 28)

    def __init__(self) -> None:
        self.index = {"a": 1}
        self.arrays = {
            "price": np.array([1.0, 10.0]), "usual_price": np.array([1.0, 10.0]), "lift": np.array([0.0]),
            "eta": np.array([0.0, 1.8545]), "eta_deviation": np.array([1.0, 0.1]), "priced": np.array([0, 1]),
        }

    def forecast(self, rows: np.ndarray) -> np.ndarray:
        units = np.array([[2.0, 1.0, 2.0, 4.0], [14.0, 10.0, 14.0, 20.0], [56.0, 40.0, 56.0, 80.0]])
        return np.repeat(units[None], len(rows), axis=0)


def answer(**row: object) -> pd.Series:
    return DemandService(OneItem()).answer(pd.DataFrame([{"item_id": "a", **row}]), {}).iloc[0]


def test_a_forecast_lies_between_the_horizons_and_goes_on_beyond_them() -> None:
    assert answer(horizon_days=7.0)["mean"] == pytest.approx(14.0)
    assert answer(horizon_days=17.5)["mean"] == pytest.approx(35.0)
    assert answer(horizon_days=56.0)["mean"] == pytest.approx(112.0)


def test_stock_runs_out_when_the_mean_demand_has_taken_it() -> None:
    curve = Curve(OneItem.horizons_days, OneItem().forecast(np.zeros(1))[0])
    assert curve.runs_out(14.0) == pytest.approx(7.0)
    assert curve.runs_out(0.0) == 0.0
    assert curve.runs_out(10_000.0) == 365.0
    assert curve.runs_out(112.0) == pytest.approx(56.0)


def test_the_order_covers_delivery_and_review_at_the_service_level() -> None:
    """Lead time 0 and review of a week: what is below the nine tenths of a week's demand."""
    said = answer(stock=5.0, lead_time_days=0.0, service_level=0.9)
    assert said.reorder_units == 15.0
    assert answer(stock=500.0, lead_time_days=0.0, service_level=0.9).reorder_units == 0.0
    assert answer(stock=5.0, lead_time_days=7.0, service_level=0.9).reorder_units > said.reorder_units


def test_a_planned_price_moves_the_forecast_by_the_elasticity() -> None:
    assert answer(price=20.0)["mean"] == pytest.approx(14.0 / 4.0, rel=0.01)


def test_the_best_margin_of_elasticity_two_is_at_twice_the_cost() -> None:
    said = answer(cost=5.0)
    assert said.price_best == pytest.approx(10.0, abs=0.4)
    assert 9.0 > said.price_low > 7.0 and 11.0 < said.price_high <= 13.0
    assert said.revenue_change == pytest.approx(0.0, abs=0.01)


def test_revenue_of_elastic_goods_is_best_at_the_lower_guard_rail() -> None:
    said = price_range(1.8545, 0.05, 10.0, 10.0, True, ASKED)
    assert said["price_best"] == pytest.approx(7.0)
    assert said["revenue_change"] > 0.3


def test_without_evidence_there_is_no_advice_and_a_reason() -> None:
    loose = price_range(1.0, 1.5, 10.0, 10.0, True, ASKED)
    assert "price_best" not in loose and "too few price changes" in loose["advice"]
    assert "no price is known" in price_range(1.0, 0.1, 10.0, 10.0, False, ASKED)["advice"]


def test_no_price_is_advised_at_which_every_unit_loses_money() -> None:
    said = answer(cost=20.0)
    assert said.advice.startswith("no advice") and "20.00" in said.advice and np.isnan(said.price_best)
    assert said.elasticity == pytest.approx(-2.0, rel=0.01) and said["mean"] == pytest.approx(14.0)
    assert answer(cost=12.9).price_best == pytest.approx(13.0)


def test_an_unknown_item_is_answered_and_a_wrong_number_refused() -> None:
    unknown = DemandService(OneItem()).answer(pd.DataFrame({"item_id": ["b", None]}), {})
    assert list(unknown.advice) == ["unknown item"] * 2 and unknown[list(ANSWER)].isna().all(axis=None)
    with pytest.raises(RequestRefused, match="service_level"):
        answer(stock=1.0, service_level=2.0)
    with pytest.raises(RequestRefused, match="price"):
        answer(price=10**400)
    with pytest.raises(RequestRefused, match="item_id"):
        DemandService(OneItem()).answer(pd.DataFrame({"stock": [1.0]}), {})
