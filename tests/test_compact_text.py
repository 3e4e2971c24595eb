"""Confidences, thresholds and answers of the classifier in plain arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.compact_text import CompactTextClassifier, Threshold, fitted_temperature, fitted_threshold


def test_the_temperature_of_logits_that_are_three_times_too_sure_is_three() -> None:
    generator = np.random.default_rng(0)
    honest = generator.normal(size=(20_000, 4)) * 2.0
    chances = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    classes = (chances.cumsum(axis=1) > generator.random((20_000, 1))).argmax(axis=1)
    assert fitted_temperature(3.0 * honest, classes) == pytest.approx(3.0, rel=0.05)
    assert fitted_temperature(honest[:0], classes[:0]) == 1.0


@pytest.mark.parametrize(("count", "shown"), [(31, False), (32, True)])
def test_95_percent_is_shown_by_32_right_messages_and_not_by_31(count: int, shown: bool) -> None:
    # Wilson's lower bound of n of n is n / (n + 1.2816 ** 2): 31 -> 0.9497, 32 -> 0.9512
    threshold = fitted_threshold(np.full(count, 0.9), np.ones(count, bool), precision=0.95, error_rate=0.1)
    assert (threshold.least == 0.9) == shown
    assert (threshold.least > 1.0) == (not shown)


def test_the_threshold_is_the_least_confidence_that_still_shows_the_precision() -> None:
    confidences = np.concatenate([np.linspace(0.9, 0.99, 100), np.full(50, 0.5)])
    right = np.concatenate([np.ones(100, bool), np.zeros(50, bool)])
    threshold = fitted_threshold(confidences, right, precision=0.95, error_rate=0.1)
    assert (threshold.least, threshold.answered, threshold.right, threshold.held_out) == (
        pytest.approx(0.9), 100, 100, 150
    )
    assert threshold.reason(0.6) == (
        "Confidence 0.60 is below 0.90, from which on 100 of 100 held-out messages were right (wanted: 95%)."
    )
    assert "at least 0.90" in threshold.reason(0.93)
    assert "a person reads every message" in Threshold(precision=0.95, held_out=3).reason(1.0)


def test_a_rare_class_is_told_where_it_is_likely_against_its_share_with_its_own_chance() -> None:
    chances = np.array([[0.6, 0.4], [0.95, 0.05]])
    shares = np.log([0.9, 0.1])
    plain, fair = (
        CompactTextClassifier({}, {"tone": ("good", "bad")}, {"tone": 1.0}, Threshold(), handicaps=handicaps)
        for handicaps in ({}, {"tone": tuple(shares)})
    )
    for classifier, places, sure in ((plain, [0, 0], [0.6, 0.95]), (fair, [1, 0], [0.4, 0.95])):
        told, confidence = classifier.told("tone", chances)
        assert told.tolist() == places and confidence.tolist() == sure
    assert [one.tolist() for one in fair.told("tone", np.zeros((2, 0)))] == [[0, 0], [0.0, 0.0]]  # knows no class


def test_the_nearest_answers_are_distinct_and_come_best_first(tmp_path: Path) -> None:
    arrays = {
        "adapter_in": np.zeros((2, 3), np.float32), "adapter_bias": np.zeros(3, np.float32),
        "adapter_out": np.zeros((3, 2), np.float32), "intent_vectors": np.eye(2, dtype=np.float32),
        "intent_ngrams": np.zeros((8, 2), np.float32), "intent_bias": np.zeros(2, np.float32),
        "answer_vectors": np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float16), "answer_of": np.array([0, 0, 1]),
    }
    classifier = CompactTextClassifier(
        arrays, {"intent": ("a", "b")}, {"intent": 2.0}, Threshold(), ("yes", "no"), {"intent": (-0.5, 0.0)}
    )
    assert classifier.nearest_answers(np.array([0.0, 1.0], np.float32), 3) == (
        ["no", "yes"], [1.0, pytest.approx(0.6, abs=1e-3)]
    )
    chances = classifier.probabilities(np.array([[1.0, 0.0]], np.float32), ["hello"])["intent"]
    np.testing.assert_allclose(chances, [[1 / (1 + np.exp(-8.0)), 1 / (1 + np.exp(8.0))]], rtol=1e-6)  # 16 / 2
    classifier.save(tmp_path)
    again = CompactTextClassifier.load(tmp_path)
    assert (again.classes, again.answers, again.threshold) == (classifier.classes, ("yes", "no"), Threshold())
    assert again.handicaps == {"intent": (-0.5, 0.0)}
    np.testing.assert_array_equal(again.arrays["answer_vectors"], arrays["answer_vectors"])
