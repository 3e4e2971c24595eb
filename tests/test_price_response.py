"""What price changes say of demand: known elasticities come back, season and promotion do not pass for price."""

from __future__ import annotations

import numpy as np
import pytest

from models.price_response import PriceResponse, elasticity_of

DAYS = 28


def windows(
    elasticity: float, count: int, seed: int = 0, lift: float = 0.0, price: np.ndarray | None = None,
    level: np.ndarray | None = None, mean: float = 5.0,
) -> np.ndarray:
    """[count, 3, DAYS]: purchases drawn from a known answer to prices that move every few days."""
    draw = np.random.default_rng(seed)
    if price is None:
        price = np.repeat(draw.choice([0.0, -0.02, -0.1, -0.2, -0.3, 0.1], (count, 7)), 4, axis=1)
    level = np.ones((count, DAYS)) if level is None else level
    expected = mean * level * np.exp(elasticity * price + lift * (price < -0.05))
    return np.stack([price, draw.poisson(expected), level], axis=1).astype(np.float32)


def learnt(*lessons: np.ndarray, category: list[int] | None = None) -> PriceResponse:
    """Items 1, 2, … have learnt their windows together."""
    response = PriceResponse()
    response.grow(len(lessons) + 1)
    rows = np.repeat(np.arange(1, len(lessons) + 1), [len(lesson) for lesson in lessons])
    kinds = np.array([0, *(category or [1] * len(lessons))])
    assert response.learn(rows, np.concatenate(lessons), kinds, 1.0)
    return response


def test_a_known_elasticity_comes_back() -> None:
    response = learnt(windows(-2.0, 40, seed=1), windows(-0.7, 40, seed=2), category=[1, 2])
    eta, deviation = response.posterior(np.array([0, 1, 2]))
    assert elasticity_of(eta)[1:] == pytest.approx([-2.0, -0.7], abs=0.25)
    assert (deviation[1:] < 0.4).all()


def test_no_elasticity_is_positive_even_where_dearer_days_sold_more() -> None:
    response = learnt(windows(+1.5, 40))
    assert elasticity_of(response.posterior(np.array([0, 1]))[0]).max() < 0


def test_an_item_without_history_leans_on_its_category() -> None:
    dear_ones = [windows(-2.5, 20, seed=seed) for seed in range(4)]
    cheap_ones = [windows(-0.5, 20, seed=9 + seed) for seed in range(4)]
    response = learnt(*dear_ones, *cheap_ones, category=[1] * 4 + [2] * 4)
    response.grow(11)
    kinds = np.array([0, 1, 1, 1, 1, 2, 2, 2, 2, 1, 2])
    eta, deviation = response.posterior(kinds)
    dear, cheap = elasticity_of(eta)[9:]
    assert dear < -1.7 and cheap > -0.9
    assert deviation[9] > deviation[1]


def test_a_season_does_not_pass_for_a_price() -> None:
    """The shop sells thrice as much on the days on which the item is cheap; the item's own answer is weak."""
    price = np.tile(np.where(np.arange(DAYS) < 14, 0.0, -0.2), (60, 1))
    level = np.tile(np.where(np.arange(DAYS) < 14, 1.0, 3.0), (60, 1))
    response = learnt(windows(-0.5, 60, price=price, level=level))
    eta, _ = response.posterior(np.array([0, 1]))
    assert elasticity_of(eta)[1] == pytest.approx(-0.5, abs=0.45)


def test_a_promotions_own_lift_is_told_from_its_price() -> None:
    response = learnt(*(windows(-1.0, 30, seed=seed, lift=0.4) for seed in range(6)))
    assert response.lift == pytest.approx(0.4, abs=0.12)
    eta, _ = response.posterior(np.array([0, *[1] * 6]))
    assert elasticity_of(eta)[1:].mean() == pytest.approx(-1.0, abs=0.3)


def test_a_day_out_of_stock_says_nothing() -> None:
    whole = windows(-2.0, 30)
    part = whole.copy()
    part[:, 1, ::2] = 999.0  # whatever was written there
    part[:, 2, ::2] = 0.0
    assert elasticity_of(learnt(part).posterior(np.array([0, 1]))[0])[1] == pytest.approx(-2.0, abs=0.5)


def test_a_price_that_never_moved_teaches_nothing() -> None:
    response = PriceResponse()
    response.grow(2)
    still = windows(-2.0, 10, price=np.zeros((10, DAYS)))
    assert response.learn(np.ones(10, int), still, np.array([0, 1]), 1.0) == 0
    assert response.precision[1] == 0


def test_what_was_learnt_survives_the_checkpoint() -> None:
    response = learnt(windows(-1.5, 10))
    again = PriceResponse.from_arrays(response.arrays("price"), "price")
    np.testing.assert_array_equal(again.posterior(np.array([0, 1])), response.posterior(np.array([0, 1])))
    assert again.lift == response.lift
    np.testing.assert_array_equal(again.overdispersion, response.overdispersion)
