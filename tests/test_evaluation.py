"""The judge's numbers: metrics against literals made by hand, intervals against what theory says."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from pipeline.evaluation import (
    UnitMean,
    interval,
    mrr_at_k,
    ndcg_at_k,
    recall_at_k,
    resampled_means,
    unit_means,
)

RANKED = np.array([[7, 3, 9], [1, 2, 3], [4, 5, -1], [4, 5, 6]])
TARGETS = np.array([[3, 9, 8, -1], [1, -1, -1, -1], [-2, 4, -1, -1], [-2, -1, -1, -1]])
# hits at places: example 0: 2 and 3 of 3 targets; 1: 1 of 1; 2: 1 of 2, the other unknown; 3: none


def test_recall_counts_targets_among_the_first_k() -> None:
    np.testing.assert_allclose(recall_at_k(RANKED, TARGETS, 3), [2 / 3, 1, 1 / 2, 0])
    np.testing.assert_allclose(recall_at_k(RANKED, TARGETS, 2), [1 / 2, 1, 1 / 2, 0])


def test_ndcg_discounts_by_place_and_divides_by_the_best_possible() -> None:
    at2, at3 = 1 / math.log2(3), 1 / math.log2(4)
    expected = [(at2 + at3) / (1 + at2 + at3), 1, 1 / (1 + at2), 0]
    np.testing.assert_allclose(ndcg_at_k(RANKED, TARGETS, 3), expected)
    # with one place, the best possible of three targets is one hit
    np.testing.assert_allclose(ndcg_at_k(RANKED, TARGETS, 1), [0, 1, 1, 0])


def test_mrr_is_one_over_the_place_of_the_first_hit() -> None:
    np.testing.assert_allclose(mrr_at_k(RANKED, TARGETS, 3), [1 / 2, 1, 1, 0])
    np.testing.assert_allclose(mrr_at_k(RANKED, TARGETS, 1), [0, 1, 1, 0])


@pytest.mark.parametrize("metric", [recall_at_k, ndcg_at_k, mrr_at_k])
def test_padding_of_both_sides_is_no_hit_and_no_target_is_no_number(metric: object) -> None:
    ranked, targets = np.array([[-1, -1], [-1, -2]]), np.array([[5, -1], [-2, -1]])
    np.testing.assert_array_equal(metric(ranked, targets, 2), [0, 0])
    assert np.isnan(metric(ranked[:1], np.array([[-1, -1]]), 2)).all()


def test_wrong_shapes_say_which_are_right() -> None:
    with pytest.raises(ValueError, match=r"ranked must be \[n, at least k\].*k=4"):
        recall_at_k(RANKED, TARGETS, 4)


def test_each_unit_counts_the_same_however_many_examples_it_brought() -> None:
    np.testing.assert_allclose(unit_means(np.array([1.0, 0.0, 0.0, 0.0]), ["b", "a", "a", "b"]), [0.5, 0.0])
    mean, low, high = interval(np.array([1.0] + [0.0] * 9), ["a"] + ["b"] * 9, seed=1)
    assert (mean, low, high) == (0.5, 0.0, 1.0)


def test_the_interval_of_a_mean_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, 4_000)
    mean, low, high = interval(values, range(4_000), seed=4)
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / math.sqrt(4_000)
    assert (mean - low, high - mean) == (pytest.approx(half, rel=0.08), pytest.approx(half, rel=0.08))


def test_drawing_by_counts_and_drawing_by_unit_agree() -> None:
    """Shared values are drawn by multinomial counts; a jitter makes them distinct and drawn one by one."""
    values = np.repeat([0.0, 0.5, 1.0], [300, 60, 40])
    jitter = values + np.arange(400) * 1e-9
    counted, drawn = resampled_means(values, seed=5), resampled_means(jitter, seed=6)
    assert counted.mean() == pytest.approx(drawn.mean(), abs=0.002)
    assert counted.std() == pytest.approx(drawn.std(), rel=0.06)
    assert counted.std() == pytest.approx(values.std() / 20, rel=0.06)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(7).random(50)
    assert interval(values, range(50), seed=8) == interval(values, range(50), seed=8)
    assert interval(values, range(50), seed=8) != interval(values, range(50), seed=9)


def test_pairing_takes_out_how_hard_a_unit_is() -> None:
    generator = np.random.default_rng(10)
    hardness = generator.random(500)
    champion = hardness + generator.normal(0, 0.01, 500)
    difference = UnitMean.of(champion + 0.005 - champion)
    assert difference.mean == pytest.approx(0.005)
    assert difference.low(0.05) == pytest.approx(0.005) and difference.high(0.05) == pytest.approx(0.005)
    assert interval(champion, range(500), seed=11)[2] - interval(champion, range(500), seed=11)[1] > 0.04


def test_the_bounds_of_a_mean_are_students() -> None:
    mean = UnitMean.of(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (mean.mean, mean.deviation) == (3.0, pytest.approx(math.sqrt(2.5)))
    # Student's 95 % quantile with 4 degrees of freedom is 2.1318
    assert mean.low(0.05) == pytest.approx(3.0 - 2.1318 * math.sqrt(0.5), abs=1e-4)
    assert mean.high(0.05) == pytest.approx(3.0 + 2.1318 * math.sqrt(0.5), abs=1e-4)


def test_two_imagined_units_widen_the_bounds_and_leave_the_mean() -> None:
    """Squares 10 and 2 * 3 ** 2 over 4 + 2 degrees of freedom."""
    mean = UnitMean.of(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), swing=3.0)
    assert (mean.mean, mean.deviation, mean.units) == (3.0, pytest.approx(math.sqrt(28 / 6)), 5)
    assert UnitMean.of(np.array([1.0]), swing=0.5).deviation == pytest.approx(0.5)


def test_a_chance_and_a_bound_are_two_sides_of_one_test() -> None:
    mean = UnitMean.of(np.random.default_rng(1).gamma(0.5, size=40))
    for error_rate in (0.001, 0.05, 0.3):
        assert mean.chance_at_least(mean.high(error_rate)) == pytest.approx(error_rate)
        assert mean.chance_at_least(mean.low(error_rate)) == pytest.approx(1 - error_rate)


def test_units_that_all_agree_leave_no_doubt() -> None:
    mean = UnitMean.of(np.ones(2))
    assert (mean.low(0.05), mean.high(0.05), mean.deviation) == (1.0, 1.0, 0.0)
    assert (mean.chance_at_least(1.0), mean.chance_at_least(1.1)) == (1.0, 0.0)


def test_bounds_cover_at_the_stated_rate_where_few_units_lose_all() -> None:
    """Of a hundred users three lose all; without the imagined units the low bound is missed 20 % of the time."""
    generator, trials = np.random.default_rng(12), 2_000
    values = generator.choice([0.0, -1.0], p=[0.97, 0.03], size=(trials, 100))
    missed = sum(UnitMean.of(row, swing=1.0).low(0.05) > -0.03 for row in values)
    assert missed / trials <= 0.05 + 2.33 * math.sqrt(0.05 * 0.95 / trials)  # the 1 % tail of the binomial


def test_many_units_stay_within_bounded_memory() -> None:
    values = np.random.default_rng(13).random(20_000)
    tracemalloc.start()
    resampled_means(values, seed=14)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # all draws at once: 40 million indices and values, 480 MB


def test_missing_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        interval(np.array([]), [], seed=1)
    with pytest.raises(ValueError, match="2 values and 1 units"):
        unit_means(np.zeros(2), ["a"])
