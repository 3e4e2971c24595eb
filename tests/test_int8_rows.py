"""Rows of int8: what rounding costs, and what growing, writing and a checkpoint leave of them."""

from __future__ import annotations

import numpy as np
import pytest

from models.int8_rows import Int8Rows, from_int8, to_int8


@pytest.fixture
def texts() -> np.ndarray:
    """[100, 128] unit vectors whose first directions say most, as principal directions do."""
    drawn = np.random.default_rng(0).normal(size=(100, 128)) / np.sqrt(1.0 + np.arange(128))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def test_no_number_moves_by_more_than_half_a_step_of_its_row_and_a_cosine_by_a_thousandth(texts: np.ndarray) -> None:
    rounded = from_int8(*to_int8(texts))

    step = np.abs(texts).max(axis=1, keepdims=True) / 127.0
    assert (np.abs(rounded - texts) <= 0.5001 * step).all()
    moved = np.abs(rounded @ rounded.T - texts @ texts.T)
    assert moved.mean() < 2e-3 and moved.max() < 1e-2
    assert not from_int8(*to_int8(np.zeros((2, 3), np.float32))).any()


def test_rows_that_were_rounded_stay_as_they_are(texts: np.ndarray) -> None:
    table = Int8Rows.of(texts)
    again = Int8Rows.of(table.floats(np.arange(100)))

    assert np.array_equal(again.values, table.values)
    assert again.scale == pytest.approx(table.scale, rel=1e-6)


def test_a_table_grows_is_written_and_comes_back_from_a_checkpoint(texts: np.ndarray) -> None:
    table = Int8Rows.zeros(1, 128)
    table.grow(101)
    table[np.arange(1, 101)] = Int8Rows.of(texts)

    back = Int8Rows.from_arrays(table.arrays("text", len(table)), "text")
    back.grow(5_000)

    assert np.array_equal(back.floats(np.arange(1, 101)), from_int8(*to_int8(texts)))
    assert not back.floats(np.array([0, 101, 4_999])).any()


def test_a_checkpoint_of_float16_rows_is_read(texts: np.ndarray) -> None:
    table = Int8Rows.from_arrays({"text": texts.astype(np.float16)}, "text")

    assert table.values.dtype == np.int8
    assert table.floats(np.arange(100)) == pytest.approx(texts, abs=4e-3)
