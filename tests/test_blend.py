"""The weights of what was foreseen: what they change of an answer, and what they leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.blend import AGE, HABIT, NEW_DAYS, PLAIN, all_weights, untouched
from models.compact_recommender import CompactRecommender, Times
from tests.benchmarks.bench_recommend import random_recommender

ITEMS = 60
HISTORY = np.array([[7, 3, 11, 0], [5, 0, 0, 0], [0, 0, 0, 0]])
HABITS = np.array([[1.9, 0.3, 1.0, 0.0], [0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
WEIGHTS = np.array([0.6, 0.8, 1.5, 0.7, 0.1, -0.2, 0.3, -0.4, 0.9, 0.2, 0.7], np.float32)


def recommender(weights: np.ndarray) -> CompactRecommender:
    return random_recommender(ITEMS, np.random.default_rng(3)).under({"blend": weights})


def logits(weights: np.ndarray, **asked: Any) -> np.ndarray:
    return recommender(weights).logits(*histories(), **asked)


def histories() -> tuple[np.ndarray, ...]:
    counts = (HISTORY > 0).astype(np.float32)
    return HISTORY, counts, 0.0 * counts, 3.0 * counts, HABITS


def changed(place: int, value: float) -> np.ndarray:
    weights = untouched()
    weights[place] = value
    return weights


def own() -> np.ndarray:
    """[requests, items] bool, row 0 none."""
    inside = np.zeros((len(HISTORY), ITEMS + 1), bool)
    np.put_along_axis(inside, HISTORY, True, axis=1)
    inside[:, 0] = False
    return inside


def outside() -> np.ndarray:
    others = ~own()
    others[:, 0] = False
    return others


def test_own_items_are_scaled_and_raised_and_no_others() -> None:
    plain, weighed = logits(untouched()), logits(all_weights(np.array([1.0, 0.8, 1.5], np.float32)))
    np.testing.assert_allclose(weighed[own()], 0.8 * plain[own()] + 1.5, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(weighed[outside()], plain[outside()], rtol=1e-5, atol=1e-5)


def test_what_is_outside_of_a_history_is_scaled_where_there_is_one() -> None:
    plain, weighed = logits(untouched()), logits(changed(0, 0.5))
    np.testing.assert_allclose(weighed[:2][outside()[:2]], 0.5 * plain[:2][outside()[:2]], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(weighed[own()], plain[own()], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(weighed[2], plain[2])


def test_the_trend_is_added_to_all_items_of_a_history() -> None:
    plain, weighed = logits(untouched()), logits(changed(PLAIN + 2, 0.3))
    trend = recommender(untouched()).arrays["trend"][:, 2]
    np.testing.assert_allclose(weighed[:2] - plain[:2], np.tile(0.3 * trend, (2, 1)), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(weighed[2], plain[2])


def test_the_trend_that_is_added_is_that_of_the_moment_asked_for() -> None:
    trend = np.random.default_rng(4).normal(size=(2, ITEMS + 1, 4)).astype(np.float32)
    times = Times(trend, np.zeros((2, ITEMS + 1), np.float32), np.array([1, 0, 1]))
    difference = logits(changed(PLAIN, 0.5), times=times) - logits(untouched(), times=times)
    np.testing.assert_allclose(difference[0], 0.5 * trend[1, :, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(difference[1], 0.5 * trend[0, :, 0], rtol=1e-3, atol=1e-4)


def test_the_whole_historys_neighbours_outside_of_it_gain() -> None:
    difference = logits(changed(3, 0.7)) - logits(untouched())
    gain = recommender(untouched()).arrays["neighbour_whole_gain"]
    without = recommender(untouched()).under({"neighbour_whole_gain": np.zeros_like(gain)})
    alone = without.under({"neighbour_whole_gain": np.array([0.7, 0.0], np.float32)})
    expected = alone.logits(*histories()) - without.logits(*histories())
    assert (expected[:2] > 0).sum() > 20
    np.testing.assert_allclose(difference, expected, rtol=1e-3, atol=1e-4)


def test_the_habits_of_own_items_count_and_only_theirs() -> None:
    difference = logits(changed(HABIT, 0.9)) - logits(untouched())
    np.testing.assert_allclose(difference[0, [7, 3, 11]], 0.9 * HABITS[0, :3], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(difference[1, 5], 0.9 * HABITS[1, 0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(difference[outside()], 0.0, atol=1e-5)


@pytest.mark.parametrize("other_times", [False, True])
def test_the_ages_of_items_outside_of_a_history_count_and_only_theirs(other_times: bool) -> None:
    held = recommender(untouched()).arrays
    days, asked = held["ages"], {}
    if other_times:
        days = np.random.default_rng(6).uniform(0.0, 90.0, (2, ITEMS + 1)).astype(np.float32)
        asked = {"times": Times(np.stack([held["trend"]] * 2), days, np.array([1, 0, 1]))}
        days = days[[1, 0, 1]]
    weights = untouched()
    weights[AGE] = 0.2, 0.7
    difference = logits(weights, **asked) - logits(untouched(), **asked)
    expected = np.broadcast_to(-0.2 * np.log1p(days) + 0.7 * np.exp(-days / NEW_DAYS), difference.shape)
    np.testing.assert_allclose(difference[:2][outside()[:2]], expected[:2][outside()[:2]], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(difference[own()], 0.0, atol=1e-4)
    np.testing.assert_array_equal(difference[2], 0.0)


def test_a_search_is_not_weighed() -> None:
    words = np.random.default_rng(5).normal(size=(3, 128)).astype(np.float32)
    asked = {"query_vector": words, "has_query": np.array([True, False, True])}
    plain, weighed = logits(untouched(), **asked), logits(WEIGHTS, **asked)
    np.testing.assert_allclose(weighed[[0, 2]], plain[[0, 2]], rtol=1e-5, atol=1e-5)
    assert np.abs(weighed[1] - plain[1]).max() > 0.1


@pytest.mark.parametrize("searching", [True, False])
def test_the_reasons_of_a_weighed_answer_add_up_to_its_logit(searching: bool) -> None:
    words = np.random.default_rng(5).normal(size=(1, 128)).astype(np.float32) if searching else None
    history, columns = HISTORY[:1, :3], np.arange(1, ITEMS + 1)
    counts, days = np.array([[2.0, 1.0, 1.0]], np.float32), np.array([[1.0, 4.0, 9.0]], np.float32)
    model, habits = recommender(WEIGHTS), HABITS[:1, :3]
    scores = model.logits(
        history, counts, 0.0 * counts, days, habits, query_vector=words,
        has_query=np.ones(1, bool) if searching else None,
    )[0, 1:]
    parts = model.reasons(history, counts, days, habits, words, columns)
    parts.pop("because")
    np.testing.assert_allclose(sum(parts.values()), scores, rtol=1e-4, atol=1e-4)
    assert parts["again"][[2, 6, 10]].all() and not np.delete(parts["again"], [2, 6, 10]).any()


def test_a_package_of_before_is_not_weighed() -> None:
    arrays = dict(recommender(untouched()).arrays)
    arrays.pop("blend")
    arrays.pop("ages")
    older = CompactRecommender(recommender(untouched()).ids, arrays)
    np.testing.assert_array_equal(older.logits(*histories()), logits(untouched()))


def test_a_package_of_fewer_weights_is_weighed_by_those_that_it_has() -> None:
    arrays = dict(recommender(untouched()).arrays)
    arrays.pop("ages")
    arrays["blend"] = WEIGHTS[:HABIT]
    older = CompactRecommender(recommender(untouched()).ids, arrays)
    np.testing.assert_array_equal(older.logits(*histories()), logits(all_weights(WEIGHTS[:HABIT])))
