"""Hashed n-grams: the same words give the same row, shared words a likeness, no words nothing."""

from __future__ import annotations

import numpy as np

from models.text_features import hashed_ngrams


def test_texts_that_share_words_are_alike_and_others_are_not() -> None:
    rows = hashed_ngrams(["refund my order", "Refund my ORDER!", "my order is late", "blue velvet chair"], 4096).dense(
        np.arange(4)
    )
    products = rows @ rows.T
    np.testing.assert_allclose(products[0, 1], 1.0, atol=1e-6)
    assert 0.25 < products[0, 2] < 0.9
    assert abs(products[0, 3]) < 0.15


def test_every_row_has_length_one_and_a_text_without_words_has_none() -> None:
    ngrams = hashed_ngrams(["a", "", "!?", "我要退货", "x" * 5_000], 256)
    lengths = np.linalg.norm(ngrams.dense(np.arange(5)), axis=1)
    np.testing.assert_allclose(lengths, [1.0, 0.0, 0.0, 1.0, 1.0], atol=1e-6)


def test_rows_are_taken_in_the_order_asked_for() -> None:
    ngrams = hashed_ngrams(["one two", "", "three"], 128)
    everything = ngrams.dense(np.array([0, 1, 2]))
    np.testing.assert_array_equal(ngrams.dense(np.array([2, 0, 2])), everything[[2, 0, 2]])
