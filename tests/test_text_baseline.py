"""The plain method that every text model must not fall below: it answers whatever the texts are made of."""

from __future__ import annotations

import numpy as np

from pipeline.tasks.text_baseline import fitted


def test_words_tell_the_classes_apart() -> None:
    texts = ["lost card", "card is lost", "great thanks", "thanks a lot"]
    names, chances = fitted(texts, list("bbaa"), ["a lost card"])
    assert names == ["a", "b"]
    assert chances[0, 1] > 0.5


def test_a_single_class_is_certain() -> None:
    names, chances = fitted(["lost card"], ["a"], ["one", "two"])
    assert (names, chances.tolist()) == (["a"], [[1.0], [1.0]])


def test_texts_of_signs_alone_give_the_classes_shares() -> None:
    names, chances = fitted(["👍", "!!!", "👍👍", "?"], ["good", "good", "good", "bad"], ["👎", "fine"])
    assert names == ["bad", "good"]
    np.testing.assert_allclose(chances, [[0.25, 0.75], [0.25, 0.75]])
