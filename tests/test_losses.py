"""The recommender's losses on literals worked out by hand."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from models.losses import candidate_cross_entropy, rating_cross_entropy

NO_ITEM = -1e9
NOT_DRAWN = -1e9


def loss(
    shared: list[float], targets: list[int], own: tuple[float, ...] = (NO_ITEM,), own_column: tuple[int, ...] = (0,),
    own_targets: tuple[int, ...] = (), correction: list[float] | None = None,
) -> float:
    """Of one example. `shared`: what each candidate weighs, column 0 nobody's; `own`: logits."""
    width = max(len(targets), len(own_targets))
    padded = [[*given, *[0] * (width - len(given))] for given in (targets, own_targets)]
    [value] = candidate_cross_entropy(
        tf.math.log(tf.constant([shared])), own=tf.constant([own]), own_column=tf.constant([own_column]),
        correction=tf.constant(correction or [0.0] * len(shared)), targets=tf.constant(padded[:1]),
        own_targets=tf.constant(padded[1:]),
    ).numpy()
    return value


def test_a_basket_costs_the_mean_surprise_of_its_items() -> None:
    np.testing.assert_allclose(loss([0.5, 0.5, 0.25, 0.25], [1, 2]), (np.log(2) + np.log(4)) / 2, rtol=1e-6)


def test_an_example_without_targets_costs_nothing() -> None:
    assert loss([1.0, 3.0, 1.0], [0, 0]) == 0.0


def test_column_0_is_nobodys() -> None:
    own = {"own": (float(np.log(4.0)),), "own_column": (2,)}
    assert loss([1e9, 3.0, 1.0], [1], **own) == loss([1e-9, 3.0, 1.0], [1], **own)


def test_an_item_of_the_users_own_counts_with_its_own_logit_and_once() -> None:
    own = (float(np.log(4.0)), NO_ITEM)
    everything = 1.0 + 3.0 + 4.0  # the 2 of column 2, the same item, is not in it
    as_other = loss([9.0, 1.0, 2.0, 3.0], [3], own=own, own_column=(2, 0))
    again = loss([9.0, 1.0, 2.0, 3.0], [], own=own, own_column=(2, 0), own_targets=(1,))
    both = loss([9.0, 1.0, 2.0, 3.0], [3], own=own, own_column=(2, 0), own_targets=(1,))
    np.testing.assert_allclose([as_other, again], np.log([everything / 3, everything / 4]), rtol=1e-6)
    np.testing.assert_allclose(both, (as_other + again) / 2, rtol=1e-6)


def test_an_item_of_the_users_own_that_is_no_candidate_counts_too() -> None:
    value = loss([9.0, 1.0], [1], own=(float(np.log(4.0)), NO_ITEM), own_column=(0, 0))
    np.testing.assert_allclose(value, np.log(5.0), rtol=1e-6)


def test_a_candidate_counts_for_as_many_as_it_stands_for() -> None:
    drawn_every_third_time = float(-np.log(1 / 3))
    value = loss([9.0, 1.0, 2.0], [1], correction=[0.0, 0.0, drawn_every_third_time])
    np.testing.assert_allclose(value, np.log(1.0 + 3 * 2.0), rtol=1e-6)


def test_a_target_counts_once_and_as_it_is_whether_it_was_drawn_or_not() -> None:
    drawn = loss([9.0, 1.0, 2.0], [1], correction=[0.0, 5.0, 0.0])
    not_drawn = loss([9.0, 1.0, 2.0], [1], correction=[0.0, NOT_DRAWN, 0.0])
    np.testing.assert_allclose([drawn, not_drawn], np.log(3.0), rtol=1e-6)


def test_another_examples_target_that_was_not_drawn_counts_nothing() -> None:
    np.testing.assert_allclose(loss([9.0, 1.0, 2.0], [1], correction=[0.0, 0.0, NOT_DRAWN]), 0.0, atol=1e-6)


def test_a_rating_costs_the_surprise_of_its_stars() -> None:
    logits = tf.math.log(tf.constant([[0.1, 0.1, 0.1, 0.2, 0.5]] * 3))
    loss = rating_cross_entropy(logits, tf.constant([5.0, 4.0, 0.0]))
    np.testing.assert_allclose(loss, [np.log(2), np.log(5), 0.0], rtol=1e-6)
