"""Steps over what is chosen together, by hand."""

from __future__ import annotations

import numpy as np

from models.item_steps import FIRST_STEPS, cosines, first_steps, second_steps

# 1 goes with 2 (four times) and 3 (once), 2 with 4 (twice); each was chosen four times, 4 once
INDEX = np.array([[0, 0], [2, 3], [4, 1], [1, 0], [2, 0]], np.int32)
VALUE = np.array([[0, 0], [4, 1], [2, 4], [1, 0], [2, 0]], np.float32)
SEEN = np.array([0, 4, 4, 4, 1], np.float32)


def test_steps_are_cosines_and_an_older_place_counts_less() -> None:
    newest = np.array([[3, 1, 0]])
    strength = first_steps(cosines(newest, INDEX[newest], VALUE[newest], SEEN))
    np.testing.assert_allclose(strength, [[[0.25, 0.0], [1.0 / 2, 0.25 / 2], [0.0, 0.0]]])


def test_the_second_step_is_the_product_of_both_cosines() -> None:
    near = INDEX[[[1]]]
    reached, score = second_steps(near, np.array([[[1.0, 0.25]]], np.float32), INDEX, VALUE, SEEN)
    np.testing.assert_array_equal(reached[0], [[4, 1], [1, 0]])
    np.testing.assert_allclose(score[0], [[1.0 * 2 / np.sqrt(4 * 1), 1.0 * 4 / 4], [0.25 * 1 / 4, 0.0]])


def test_what_is_barred_is_not_gone_on_from() -> None:
    _, score = second_steps(INDEX[[[1]]], np.zeros((1, 1, 2), np.float32), INDEX, VALUE, SEEN)
    np.testing.assert_array_equal(score, np.zeros_like(score))


def test_only_the_strongest_first_steps_are_gone_on_from() -> None:
    many = FIRST_STEPS + 8
    near = np.arange(1, many + 1, dtype=np.int32)[None, None]
    index = np.arange(many + 1, dtype=np.int32)[:, None]
    strength = np.linspace(1.0, 0.1, many, dtype=np.float32)[None, None, ::-1]  # the last ones are the strongest
    reached, _ = second_steps(near, strength, index, np.ones((many + 1, 1), np.float32), np.ones(many + 1, np.float32))
    assert sorted(reached.ravel()) == list(range(9, many + 1))
