"""The recommender's losses on literals worked out by hand."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from models.losses import catalogue_cross_entropy, rating_cross_entropy

NO_ITEM = -1e9


def test_a_basket_costs_the_mean_surprise_of_its_items() -> None:
    logits = tf.math.log(tf.constant([[1e-30, 0.5, 0.25, 0.25]]))  # probabilities, column 0 nobody's
    loss = catalogue_cross_entropy(logits, tf.constant([[1, 2, 0]]))
    np.testing.assert_allclose(loss, [(np.log(2) + np.log(4)) / 2], rtol=1e-6)


def test_an_example_without_targets_costs_nothing() -> None:
    loss = catalogue_cross_entropy(tf.constant([[NO_ITEM, 3.0, 1.0]]), tf.constant([[0, 0]]))
    np.testing.assert_array_equal(loss, [0.0])


def test_a_rating_costs_the_surprise_of_its_stars() -> None:
    logits = tf.math.log(tf.constant([[0.1, 0.1, 0.1, 0.2, 0.5]] * 3))
    loss = rating_cross_entropy(logits, tf.constant([5.0, 4.0, 0.0]))
    np.testing.assert_allclose(loss, [np.log(2), np.log(5), 0.0], rtol=1e-6)
