"""The recommender's layers: by hand on small literals, and the same after a round trip through their config."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.layers import (
    HISTORY_FEATURES,
    TREND_DAYS,
    USER_FEATURES,
    CopyHead,
    ItemTower,
    NeighbourHead,
    TrendHead,
    UserTower,
    history_features,
    user_features,
)


def test_history_features_say_how_often_how_lately_and_in_which_place() -> None:
    one = history_features(*(tf.constant([[value, 9.0]]) for value in (3.0, 1.0, 7.0)), tf.constant([[1.0, 0.0]]))
    expected = [1, 0, np.log(8), 0, np.log(3), np.log(2), np.log(8), 1, *np.exp([-7, -1, -7 / 30, -7 / 90])]
    np.testing.assert_allclose(one[0, 0], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(one[0, 1], np.zeros(12))


def test_user_features_say_how_much_is_chosen_at_a_time_and_how_often() -> None:
    # two items of the visit of yesterday, ten minutes apart, one looked at only; one item a week before, and a gap
    days = tf.constant([[1.0, 1.007, 5.0, 8.0], [0.0, 0.0, 0.0, 0.0]])
    present = tf.constant([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    features = user_features(
        tf.constant([[2.0, 0.0, 7.0, 1.0]] * 2), tf.constant([[0.0, 5.0, 7.0, 0.0]] * 2), days, present
    )
    #        items purchases others visits, items of the last one, events a visit, days since, days between
    amounts = [3, 3, 5, 2, 2, 4, 1, 7]
    np.testing.assert_allclose(features, [[1, *np.log1p(amounts)], [0] * 9], rtol=1e-6)


def test_an_untrained_item_is_its_row_and_the_first_directions_of_its_text() -> None:
    tower = ItemTower(3, 2)
    tower.build()
    rows, text = tf.constant([[0.0, 0.0], [5.0, 5.0]]), tf.constant([[1.0, 2.0, 9.0], [0.0, 1.0, 9.0]])
    vectors = tower(rows, text=text, price=tf.ones((2, 3)))
    np.testing.assert_array_equal(vectors, [[1.0, 2.0], [5.0, 6.0]])


def test_an_items_price_moves_it_along_a_learnt_direction() -> None:
    tower = ItemTower(2, 2)
    tower.build()
    tower.price_kernel.assign([[1.0, 0.0], [0.0, 2.0], [0.0, 10.0]])
    vectors = tower(tf.zeros((1, 2)), text=tf.zeros((1, 2)), price=tf.constant([[-0.5, 0.25, 1.0]]))
    np.testing.assert_array_equal(vectors, [[-0.5, 10.5]])


def test_an_untrained_trend_of_all_spans_alike_is_the_popularity_itself() -> None:
    head = TrendHead()
    head.build()
    popularity = head(tf.constant([[-3.0], [1.5]]) * tf.ones((1, len(TREND_DAYS))))
    np.testing.assert_allclose(popularity, [-3.0, 1.5], rtol=1e-6)



def no_steps(size: int, rows: int) -> dict[str, tf.Tensor]:
    """What a head reads where no step leads anywhere."""
    return {"far": tf.zeros((size, rows)), "whole": tf.zeros((size, rows))}


def neighbour_head(gain: tuple[float, float], log_scale: tuple[float, float] = (0.0, 0.0)) -> NeighbourHead:
    """One that weighs all items of a history alike."""
    head = NeighbourHead()
    head.build()
    head.weigh_features.assign(tf.zeros_like(head.weigh_features))
    head.gain.assign(gain)
    head.log_scale.assign(log_scale)
    return head


@pytest.mark.parametrize(("gain", "expected"), [
    ((1.0, 0.0), [0.0, np.log(1 + 2 / 4), np.log(1 + 1 / 4 + 3 / 9), 0.0]),  # shares of the history item's choices
    ((0.0, 2.0), [0.0, 2 * np.log(1 + 2 / 2 / 4), 2 * np.log(1 + (1 / 2 + 3 / 3) / 5), 0.0]),  # cosines
], ids=["share", "cosine"])
def test_neighbours_of_a_history_add_up_by_hand(gain: tuple[float, float], expected: list[float]) -> None:
    given = {
        # the first item of the second history goes with the columns 1 (twice) and 2, the second with 2 (three times)
        "entries": tf.constant([[1, 1, 0], [1, 2, 0], [1, 2, 1], [1, 3, 2]]), "values": tf.constant([2.0, 1, 3, 7]),
        "seen_from": tf.constant([[1.0, 1.0, 1.0], [4.0, 9.0, 1.0]]), "seen_to": tf.constant([0.0, 16.0, 25.0, 36.0]),
        "features": tf.ones((2, 3, HISTORY_FEATURES)), "present": tf.constant([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]),
        **no_steps(2, 4),
    }
    head = neighbour_head(gain)
    head.own_gain.assign(3.0 * np.array(gain))
    outside, within = head(**given)
    np.testing.assert_allclose(outside, [np.zeros(4), expected], rtol=1e-6)
    np.testing.assert_allclose(within, [np.zeros(4), 3.0 * np.array(expected)], rtol=1e-6)


def test_of_neighbours_a_smaller_scale_makes_more() -> None:
    given = {
        "entries": tf.constant([[0, 1, 0]]), "values": tf.constant([2.0]), "seen_from": tf.constant([[4.0]]),
        "seen_to": tf.constant([0.0, 1.0]), "features": tf.ones((1, 1, HISTORY_FEATURES)), "present": tf.ones((1, 1)),
        **no_steps(1, 2),
    }
    logits, _ = neighbour_head((1.0, 0.0), (float(np.log(0.1)), 0.0))(**given)
    np.testing.assert_allclose(logits, [[0.0, np.log(1 + 0.5 / 0.1)]], rtol=1e-6)


def test_the_second_step_adds_up_by_hand_to_what_is_outside_of_the_history_alone() -> None:
    given = {
        "entries": tf.constant([[0, 1, 0]]), "values": tf.constant([2.0]), "seen_from": tf.constant([[4.0]]),
        "seen_to": tf.constant([0.0, 1.0, 1.0]), "features": tf.ones((1, 1, HISTORY_FEATURES)),
        "present": tf.ones((1, 1)),
        "far": tf.constant([[0.0, 0.02, 0.04]]), "whole": tf.zeros((1, 3)),
    }
    head = neighbour_head((1.0, 0.0))
    alone, _ = head(**given)
    np.testing.assert_allclose(alone, [[0.0, np.log(1 + 0.5), 0.0]], rtol=1e-6)  # untrained: the first step alone
    head.far_gain.assign(2.0)
    head.own_gain.assign([1.0, 0.0])
    outside, within = head(**given)
    far = [0.0, 2 * np.log(1 + 0.02 / 0.02), 2 * np.log(1 + 0.04 / 0.02)]
    np.testing.assert_allclose(outside, [[0.0, np.log(1 + 0.5) + far[1], far[2]]], rtol=1e-6)
    np.testing.assert_allclose(within, [[0.0, np.log(1 + 0.5), 0.0]], rtol=1e-6)


def test_the_whole_history_adds_up_by_hand_by_gains_of_its_own_within_and_outside() -> None:
    given = {
        "entries": tf.zeros((0, 3), tf.int32), "values": tf.zeros(0), "seen_from": tf.constant([[4.0]]),
        "seen_to": tf.constant([0.0, 1.0, 1.0]), "features": tf.ones((1, 1, HISTORY_FEATURES)),
        "present": tf.ones((1, 1)), "far": tf.zeros((1, 3)), "whole": tf.constant([[0.0, 0.5, 2.0]]),
    }
    head = neighbour_head((1.0, 1.0))
    head.whole_log_scale.assign(np.log(0.25))
    np.testing.assert_array_equal(np.stack(head(**given)), np.zeros((2, 1, 3)))  # untrained: nothing
    head.whole_gain.assign([1.0, 2.0])
    outside, within = head(**given)
    np.testing.assert_allclose(outside, [np.log([1.0, 3.0, 9.0])], rtol=1e-6)
    np.testing.assert_allclose(within, [2.0 * np.log([1.0, 3.0, 9.0])], rtol=1e-6)


def test_an_untrained_neighbour_head_listens_most_to_the_newest_item() -> None:
    head = NeighbourHead()
    head.build()
    present = tf.ones((1, 2))
    features = history_features(present, tf.zeros((1, 2)), tf.constant([[1.0, 50.0]]), present)
    outside, within = head(
        tf.constant([[0, 1, 0], [0, 2, 1]]), values=tf.ones(2), seen_from=4 * present, seen_to=4 * tf.ones(3),
        features=features, present=present, **no_steps(1, 3),
    )
    logits = outside.numpy()[0]
    np.testing.assert_array_equal(within, np.zeros((1, 3)))
    assert logits[1] > logits[2] > logits[0] == 0.0


def test_an_untrained_user_wants_nothing_in_particular() -> None:
    tower = UserTower(4, 2, 8, 0.1, seed=3)
    tower.build()
    wish = tower(
        tf.ones((1, 3, 4)), features=tf.ones((1, 3, HISTORY_FEATURES)), user=tf.ones((1, USER_FEATURES)),
        present=tf.ones((1, 3)),
    )
    np.testing.assert_array_equal(wish, np.zeros((1, 4)))


def test_padding_does_not_change_a_users_vector() -> None:
    tower = UserTower(4, 2, 8, 0.0, seed=3)
    tower.build()
    tower.direct_kernel.assign(np.random.default_rng(0).normal(size=tower.direct_kernel.shape))
    items = np.random.default_rng(1).normal(size=(1, 5, 4)).astype(np.float32)
    features, user = np.ones((1, 5, HISTORY_FEATURES), np.float32), np.ones((1, USER_FEATURES), np.float32)
    present = np.ones((1, 5), np.float32)
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
    copied = head(
        tf.zeros((1, 2, 2)), popularity=popularity, trend=tf.ones((1, 2, len(TREND_DAYS))), features=features,
        user=tf.zeros((1, USER_FEATURES)), present=present,
    )
    expected = [[2.5 + np.log(3 / 4) + 2, 2.5 + np.log(1 / 4) + 5]]
    np.testing.assert_allclose(copied, expected, rtol=1e-6)


def test_what_is_copied_to_an_item_depends_on_its_trend_once_learnt() -> None:
    head = CopyHead(2, 4, seed=0)
    head.build()
    present = tf.constant([[1.0, 0.0]])
    features = history_features(*([tf.ones((1, 2))] * 3), present)

    def copied(trend: float) -> np.ndarray:
        return head(
            tf.zeros((1, 2, 2)), popularity=tf.zeros((1, 2)), trend=trend * tf.ones((1, 2, len(TREND_DAYS))),
            features=features, user=tf.zeros((1, USER_FEATURES)), present=present,
        ).numpy()[0]

    np.testing.assert_array_equal(copied(1.0), copied(-2.0))
    head.output_kernel.assign([1.0, 2.0, 3.0, 4.0])
    difference = copied(1.0) - copied(-2.0)
    assert abs(difference[0]) > 0.1
    assert difference[1] == 0.0  # nobody's place


@pytest.mark.parametrize("layer", [
    ItemTower(3, 2, name="items"),
    TrendHead(name="trend"),
    NeighbourHead(name="neighbours"),
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
