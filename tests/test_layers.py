"""The recommender's layers: by hand on small literals, and the same after a round trip through their config."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.layers import CopyHead, ItemTower, UserTower, history_features, user_features


def test_history_features_say_how_often_how_lately_and_in_which_place() -> None:
    one = history_features(*(tf.constant([[value, 9.0]]) for value in (3.0, 1.0, 7.0)), tf.constant([[1.0, 0.0]]))
    expected = [1, 0, np.log(8), 0, np.log(3), np.log(2), np.log(8), 1, *np.exp([-7, -1, -7 / 30, -7 / 90])]
    np.testing.assert_allclose(one[0, 0], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(one[0, 1], np.zeros(12))


def test_user_features_tell_an_empty_history_from_a_full_one() -> None:
    present = tf.constant([[1.0, 1.0], [0.0, 0.0]])
    features = user_features(tf.constant([[2.0, 1.0]] * 2), tf.zeros((2, 2)), present)
    np.testing.assert_allclose(features, [[1, np.log(3), np.log(4), 0], [0, 0, 0, 0]], rtol=1e-6)


def test_an_item_that_is_not_admitted_has_the_vector_of_its_text_alone() -> None:
    tower = ItemTower(2, 1, 2, 2, seed=0)
    tower.build()
    tower.text_adapter.assign(np.eye(2))
    tower.id_rows.assign([[5.0, 5.0], [5.0, 5.0]])
    text = tf.constant([[1.0, 0.0], [0.0, 1.0]])
    vectors = tower(text, admitted=tf.constant([0.0, 1.0]), price=tf.zeros((2, 3)), category=tf.constant([0, 0]))
    np.testing.assert_array_equal(vectors, [[1.0, 0.0], [5.0, 6.0]])


def test_an_untrained_user_wants_nothing_in_particular() -> None:
    tower = UserTower(4, 2, 8, 0.1, seed=3)
    tower.build()
    wish = tower(tf.ones((1, 3, 4)), features=tf.ones((1, 3, 12)), user=tf.ones((1, 4)), present=tf.ones((1, 3)))
    np.testing.assert_array_equal(wish, np.zeros((1, 4)))


def test_padding_does_not_change_a_users_vector() -> None:
    tower = UserTower(4, 2, 8, 0.0, seed=3)
    tower.build()
    tower.direct_kernel.assign(np.random.default_rng(0).normal(size=tower.direct_kernel.shape))
    items = np.random.default_rng(1).normal(size=(1, 5, 4)).astype(np.float32)
    features, user, present = np.ones((1, 5, 12), np.float32), np.ones((1, 4), np.float32), np.ones((1, 5), np.float32)
    present[0, 3:] = 0
    padded = tower(items, features=features, user=user, present=present)
    bare = tower(items[:, :3], features=features[:, :3], user=user, present=present[:, :3])
    np.testing.assert_allclose(padded, bare, rtol=1e-5)


def test_an_untrained_copy_head_undoes_popularity_and_puts_in_the_share_of_purchases() -> None:
    head = CopyHead(2, 4, seed=0)
    head.build()
    present = tf.ones((1, 2))
    features = history_features(tf.constant([[3.0, 1.0]]), tf.zeros((1, 2)), tf.zeros((1, 2)), present)
    popularity = tf.constant([[-2.0, -5.0]])
    copied = head(tf.zeros((1, 2, 2)), popularity=popularity, features=features, user=tf.zeros((1, 4)), present=present)
    expected = [[2.5 + np.log(3 / 4) + 2, 2.5 + np.log(1 / 4) + 5]]
    np.testing.assert_allclose(copied, expected, rtol=1e-6)


@pytest.mark.parametrize("layer", [
    ItemTower(4, 2, 3, 2, seed=0, name="items"),
    UserTower(2, 2, 4, 0.1, seed=1, name="user"),
    CopyHead(2, 4, seed=1, name="copy"),
])
def test_a_layer_is_the_same_after_a_round_trip_through_its_config(layer: keras.layers.Layer) -> None:
    layer.build()
    twin = type(layer).from_config(layer.get_config())
    twin.build()
    assert twin.get_config() == layer.get_config()
    twin.set_weights(layer.get_weights())
    for one, other in zip(layer.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
