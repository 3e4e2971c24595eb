"""The demand benchmark's rival that learns nothing, on orders whose median is known."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from tests.benchmarks.task_demand import _figures, compound_poisson
from tests.test_demand_examples import START, land, sale

__all__ = ["land"]  # a fixture


def test_the_median_of_a_compound_poisson_week(land) -> None:
    """Two orders a day of three units: 14 a week, whose Poisson median is 14, hence 42 units. `b` sold long ago."""
    rows = [sale("a", day, hour, units=3.0) for day in range(60) for hour in (3, 9)] + [sale("b", 0)]
    _, tables = land(rows)
    medians = compound_poisson(tables, ["a", "b", "unknown"], START + timedelta(days=60))
    assert medians[0] == pytest.approx(42.0, abs=3.0)
    assert medians[1:].tolist() == [0.0, 0.0]


def test_it_takes_its_rate_from_four_weeks_and_its_sizes_from_eight(land) -> None:
    """Days 4 to 31 sold two lines of one unit, days 32 to 59 one of nine: a line a day, one in three of nine units."""
    rows = [sale("a", day, hour) for day in range(4, 32) for hour in (3, 9)]
    rows += [sale("a", day, units=9.0) for day in range(32, 60)]
    _, tables = land(rows)
    median = compound_poisson(tables, ["a"], START + timedelta(days=60))[0]
    # 7 lines of 11/3 units in the mean: 25.7, the median a little below
    assert 19.0 <= median <= 27.0


def test_what_sells_from_the_week_on_is_not_seen(land) -> None:
    _, before = land([sale("a", day) for day in range(30)])
    origin = START + timedelta(days=30)
    first = compound_poisson(before, ["a"], origin)
    _, after = land([sale("a", day, units=500.0) for day in range(30, 37)])
    np.testing.assert_array_equal(compound_poisson(after, ["a"], origin), first)


def test_it_is_none_of_the_baselines_that_the_wanted_ratio_is_against() -> None:
    wapes = {"seed 0": 0.5, "no prices 0": 0.5, "trees, squared error": 0.6, "compound poisson": 0.4}
    figures = _figures(wapes, [0.8])
    assert figures["wape_vs_best_baseline"] == pytest.approx(0.5 / 0.6)
    assert figures["wape_vs_compound_poisson"] == pytest.approx(0.5 / 0.4)
    assert figures["wape_compound_poisson"] == 0.4
