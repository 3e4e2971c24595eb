"""Adam for rows: by hand, lazily, and as Keras' where the two are the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from models.int8_rows import from_int8
from models.optimizers import RowMoments


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_first_step_moves_a_row_against_its_gradient_over_the_root_of_its_mean_square() -> None:
    table, moments = np.zeros((3, 2), np.float32), RowMoments.zeros(3, 2)
    moments.step(table, np.array([1]), np.array([[3.0, 4.0]], np.float32), 0.1)
    scale = np.sqrt((9.0 + 16.0) / 2)
    np.testing.assert_allclose(table, [[0.0, 0.0], [-0.3 / scale, -0.4 / scale], [0.0, 0.0]], rtol=1e-5)


def test_a_second_step_by_hand() -> None:
    table, moments = np.zeros((1, 2), np.float32), RowMoments.zeros(1, 2)
    for gradient in ([[3.0, 4.0]], [[-1.0, 1.0]]):
        moments.step(table, np.array([0]), np.array(gradient, np.float32), 0.1)
    first = np.array([0.9 * 0.3 - 0.1, 0.9 * 0.4 + 0.1]) / (1 - 0.9**2)
    second = (0.999 * 0.001 * 12.5 + 0.001 * 1.0) / (1 - 0.999**2)
    before = -0.1 * np.array([3.0, 4.0]) / np.sqrt(12.5)
    np.testing.assert_allclose(table[0], before - 0.1 * first / np.sqrt(second), rtol=1e-2)  # the first is int8


def test_rows_that_a_step_does_not_touch_keep_value_and_moments_bit_for_bit() -> None:
    table, moments = random(6, 3), RowMoments.zeros(6, 3)
    moments.step(table, np.arange(6), random(6, 3, seed=1), 1e-2)
    arrays = (table, moments.first.values, moments.first.scale, moments.second, moments.steps)
    before = [array.copy() for array in arrays]
    moments.step(table, np.array([4, 1]), random(2, 3, seed=2), 1e-2)
    rest = [0, 2, 3, 5]
    for old, new in zip(before, arrays, strict=True):
        assert old[rest].tobytes() == new[rest].tobytes()
        assert (old[[1, 4]] != new[[1, 4]]).any(axis=tuple(range(1, old.ndim))).all()


def test_a_row_that_is_touched_late_moves_as_it_would_have_early() -> None:
    early, late = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    moments = RowMoments.zeros(2, 3)
    moments.step(early, np.array([1]), random(1, 3), 1e-2)
    moments = RowMoments.zeros(2, 3)
    for seed in range(10):
        moments.step(late, np.array([0]), random(1, 3, seed=seed), 1e-2)
    moments.step(late, np.array([1]), random(1, 3), 1e-2)
    np.testing.assert_array_equal(late[1], early[1])


def test_rows_of_width_1_that_every_step_touches_move_as_with_keras() -> None:
    table, moments = random(5, 1), RowMoments.zeros(5, 1)
    variable = keras.Variable(table)
    optimizer = keras.optimizers.Adam(3e-2)
    for seed in range(1, 30):
        gradient = random(5, 1, seed=seed)
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        moments.step(table, np.arange(5), gradient, 3e-2)
    np.testing.assert_allclose(table, variable.numpy(), rtol=1e-2, atol=1e-3)  # of width 1 an int8 is exact


def test_a_step_of_no_rows_is_none() -> None:
    table, moments = random(2, 3), RowMoments.zeros(2, 3)
    before = table.copy()
    moments.step(table, np.zeros(0, np.int64), np.zeros((0, 3), np.float32), 1e-2)
    np.testing.assert_array_equal(table, before)


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_first_moments_of_older_checkpoints_are_read(kind: str) -> None:
    table, moments = random(6, 8), RowMoments.zeros(6, 8)
    moments.step(table, np.arange(6), random(6, 8, seed=1), 1e-2)
    written = moments.arrays("rows", 6)
    first = from_int8(written["rows/first"], written.pop("rows/first_scale"))
    written["rows/first"] = first if kind == "float32" else (first.view(np.uint32) >> 16).astype(np.uint16)

    back = RowMoments.from_arrays(written, "rows")

    step = np.abs(first).max(axis=1, keepdims=True) / 127.0
    assert (np.abs(back.first.floats(np.arange(6)) - first) <= 2.0 * step).all()
    np.testing.assert_array_equal(back.second, moments.second)
    np.testing.assert_array_equal(back.steps, moments.steps)
