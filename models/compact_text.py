"""The text classifier in plain arrays, as consumers use it: numpy alone, no training library.

Confidences are calibrated by one temperature a head, fitted on messages that were held out (Guo et al., ICML 2017).
Where rare classes count as much as frequent ones, what is told is not the likeliest class but the one that is likeliest
against its share of what was learnt (Menon et al., ICLR 2021); the confidence remains the chance that it is right.
Beside the classes it may hold approved answers: the messages that they answered, as vectors, and their texts. Which
message a person should read is decided by a threshold of the confidence, whose reason is told with every answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from .contacts import without_contacts
from .text_features import Ngrams, hashed_ngrams

SCALE = 16.0  # the network's
_AT_ONCE = 256


@dataclass(frozen=True)
class Threshold:
    """From which confidence on a model answers by itself.

    Attributes:
        least: the confidence; above 1: it never does.
        precision: of the answered held-out messages, so many had to be right.
        answered, right, held_out: how many held-out messages reach it, how many of them were right, how many there
            were.
    """

    least: float = 2.0
    precision: float = 1.0
    answered: int = 0
    right: int = 0
    held_out: int = 0

    def reason(self, confidence: float) -> str:
        """Why a message of this confidence is answered or handed to a person."""
        if self.least > 1.0:
            return (
                f"No confidence was shown to be right {self.precision:.0%} of the time on the {self.held_out} held-out "
                "messages: a person reads every message."
            )
        side = "at least" if confidence >= self.least else "below"
        return (
            f"Confidence {confidence:.2f} is {side} {self.least:.2f}, from which on {self.right} of {self.answered} "
            f"held-out messages were right (wanted: {self.precision:.0%})."
        )


@dataclass(frozen=True)
class CompactTextClassifier:
    """What tells the classes of a text.

    Attributes:
        arrays: `adapter_in`, `adapter_bias`, `adapter_out`; for each head `<head>_vectors` [dimension, classes],
            `<head>_ngrams` [buckets, classes], `<head>_bias` [classes]; `answer_vectors` [answered, dimension] and
            `answer_of` [answered] int, which answer each message got.
        classes: head -> names, in the order of the columns.
        temperature: head -> what logits are divided by.
        threshold: of the first head.
        answers: texts; empty: there are none.
        handicaps: head -> what is taken from each class's log chance before one is told; no head: nothing is.
    """

    arrays: Mapping[str, np.ndarray]
    classes: Mapping[str, tuple[str, ...]]
    temperature: Mapping[str, float]
    threshold: Threshold
    answers: tuple[str, ...] = ()
    handicaps: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def heads(self) -> tuple[str, ...]:
        """What is told, the main thing first."""
        return tuple(self.classes)

    def as_learnt(self, texts: Sequence[str]) -> list[str]:
        """Messages as customers write them, as they were learnt: without addresses and numbers (contacts.py)."""
        return [without_contacts(text) for text in texts]

    def probabilities(self, vectors: np.ndarray, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Head -> calibrated probabilities [n, classes] float64 of texts with these vectors [n, dimension]."""
        logits = self.logits(vectors, texts)
        return {head: softmax(values / self.temperature[head]) for head, values in logits.items()}

    def told(self, head: str, chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The class that is told of each text [n] int, and its chance [n] float64; of no class 0 and 0.

        Args:
            head: which.
            chances: [n, classes] float, its calibrated probabilities.
        """
        if not chances.shape[1]:
            return np.zeros(len(chances), np.int64), np.zeros(len(chances))
        logs = np.log(np.maximum(chances, 1e-12)) - np.array(self.handicaps.get(head, 0.0))
        best = logs.argmax(axis=1)
        return best, chances[np.arange(len(chances)), best]

    def logits(self, vectors: np.ndarray, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Head -> logits [n, classes] float32 before any temperature."""
        return self.logits_of(vectors, hashed_ngrams(texts, len(self.arrays[f"{self.heads[0]}_ngrams"])))

    def logits_of(self, vectors: np.ndarray, ngrams: Ngrams) -> dict[str, np.ndarray]:
        """The same, of texts whose n-grams are hashed already."""
        parts: dict[str, list[np.ndarray]] = {head: [] for head in self.heads}
        for start in range(0, len(vectors), _AT_ONCE):
            rows = np.arange(start, min(start + _AT_ONCE, len(vectors)))
            adapted, grams = self._adapted(vectors[rows]), ngrams.dense(rows)
            for head in self.heads:
                parts[head].append(
                    SCALE * (adapted @ self.arrays[f"{head}_vectors"] + grams @ self.arrays[f"{head}_ngrams"])
                    + self.arrays[f"{head}_bias"]
                )
        nothing = {head: np.zeros((0, len(self.classes[head])), np.float32) for head in self.heads}
        return {head: np.concatenate([nothing[head], *parts[head]]) for head in self.heads}

    def _adapted(self, vectors: np.ndarray) -> np.ndarray:
        scaled = vectors * np.float32(vectors.shape[1] ** 0.5)
        values = scaled @ self.arrays["adapter_in"] + self.arrays["adapter_bias"]
        hidden = 0.5 * values * (1.0 + np.tanh(np.float32(0.7978845608) * (values + 0.044715 * values**3)))  # GELU
        adapted = vectors + hidden @ self.arrays["adapter_out"]
        return adapted / np.maximum(np.linalg.norm(adapted, axis=1, keepdims=True), 1e-6)

    def nearest_answers(self, vector: np.ndarray, k: int) -> tuple[list[str], list[float]]:
        """The k answers whose questions are nearest to a text's vector [dimension], with the cosines, best first."""
        if not self.answers or k < 1:
            return [], []
        best = np.full(len(self.answers), -np.inf, np.float32)
        np.maximum.at(best, self.arrays["answer_of"], self.arrays["answer_vectors"].astype(np.float32) @ vector)
        order = np.argsort(-best, kind="stable")[:k]
        return [self.answers[place] for place in order], [float(best[place]) for place in order]

    def save(self, folder: Path) -> None:
        """Writes `arrays.safetensors` and `classifier.json` below `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(array) for name, array in self.arrays.items()},
                  folder / "arrays.safetensors")
        (folder / "classifier.json").write_text(json.dumps({
            "classes": {head: list(names) for head, names in self.classes.items()},
            "temperature": dict(self.temperature), "threshold": vars(self.threshold), "answers": list(self.answers),
            "handicaps": {head: list(values) for head, values in self.handicaps.items()},
        }, ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> CompactTextClassifier:
        """What `save` wrote."""
        notes: dict[str, Any] = json.loads((folder / "classifier.json").read_text())
        return cls(
            load_file(folder / "arrays.safetensors"),
            {head: tuple(names) for head, names in notes["classes"].items()}, notes["temperature"],
            Threshold(**notes["threshold"]), tuple(notes["answers"]),
            {head: tuple(values) for head, values in notes.get("handicaps", {}).items()},
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """[n, classes] float64 probabilities of logits [n, classes]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(axis=1, keepdims=True)


def fitted_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """The temperature at which held-out classes [n] int are likeliest, searched by golden section on its logarithm.

    Args:
        logits: [n, classes] float.
        classes: [n] int, what was right; none: 1.
    """
    if not len(classes):
        return 1.0
    rows = np.arange(len(classes))

    def loss(log: float) -> float:
        chances = softmax(logits / np.exp(log))[rows, classes]
        return float(-np.log(np.maximum(chances, 1e-12)).mean())

    low, high, ratio = np.log(0.2), np.log(5.0), (5.0**0.5 - 1.0) / 2.0
    while high - low > 0.01:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return float(np.exp((low + high) / 2.0))


def fitted_threshold(confidences: np.ndarray, right: np.ndarray, precision: float, error_rate: float) -> Threshold:
    """The least confidence from which on the share of right ones is shown to be at least `precision`.

    The shown share is the lower bound of Wilson's interval (1927), so that a handful of lucky messages shows nothing.

    Args:
        confidences: [n] float of held-out messages.
        right: [n] bool.
        precision: wanted.
        error_rate: of the one-sided bound.
    """
    from statistics import NormalDist

    order = np.argsort(-confidences, kind="stable")
    answered = np.arange(1, len(order) + 1, dtype=np.float64)
    hits = np.cumsum(right[order])
    z = NormalDist().inv_cdf(1.0 - error_rate)
    share = hits / np.maximum(answered, 1.0)
    centre, spread = share + z * z / (2 * answered), z * np.sqrt(
        share * (1 - share) / answered + z * z / (4 * answered**2)
    )
    shown = (centre - spread) / (1.0 + z * z / answered) >= precision
    sorted_confidences = confidences[order]
    last = np.append(sorted_confidences[1:] < sorted_confidences[:-1], True)[: len(order)]  # equal ones go together
    there = np.flatnonzero(shown & last)
    if not len(there):
        return Threshold(precision=precision, held_out=len(order))
    place = int(there[-1])
    return Threshold(
        float(sorted_confidences[place]), precision, int(answered[place]), int(hits[place]), len(order)
    )
