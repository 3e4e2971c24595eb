"""Other wordings of a text: a part of it, some words left out, or near words of the catalogue in their place.

Random deletion and replacement by synonyms are Wei and Zou's easy data augmentation (EMNLP 2019). A shop's words are in
no thesaurus, so what is near is taken from the catalogue itself: words of two titles or more whose vectors are close. A
title's fragments are also what a customer might search for, where no log says what customers do search for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline.tasks.methods import Methods
from pipeline.texts import content_hash

# Of all pairs of the 1,241 words of Online Retail's titles 99 % have a cosine below 0.45, 99.9 % below 0.62 (MiniLM):
# mug and cup 0.71, candle and candles 0.89, vintage and retro 0.63, lantern and lamp 0.48; but red and blue 0.73 too.
NEAR_COSINE = 0.6
_NEAR_WORDS = 3
_MOST_WORDS = 4096  # the most frequent: 1,241 cost 15 CPU-seconds, once
_WORD = re.compile(r"[^\W\d_]{3,}")


def reworded(text: str, methods: Methods, near: Mapping[str, Sequence[str]]) -> str:
    """The text in another wording by the methods' text_crop, text_mask and text_synonym; the same text, the same one.

    Args:
        text: of any length; one without words stays as it is.
        methods: say how much is changed.
        near: lower-case word -> words that may take its place.
    """
    words = text.split()
    if not words:
        return text
    generator = np.random.default_rng(int(content_hash(text), 16))
    length = int(np.ceil((1.0 - methods.text_crop) * len(words)))
    start = int(generator.integers(len(words) - length + 1))
    words = words[start : start + length]
    kept = generator.random(len(words)) >= methods.text_mask
    kept[generator.integers(len(words))] = True
    words = [word for word, stays in zip(words, kept, strict=True) if stays]
    for place in np.flatnonzero(generator.random(len(words)) < methods.text_synonym):
        others = near.get(words[place].lower(), ())
        if others:
            words[place] = others[int(generator.integers(len(others)))]
    return " ".join(words)


def fragment(title: str, generator: np.random.Generator) -> str:
    """Some words of a title in one piece, from one to all of them, each number as likely; empty where it has none."""
    words = title.split()
    if not words:
        return ""
    length = int(generator.integers(1, len(words) + 1))
    start = int(generator.integers(len(words) - length + 1))
    return " ".join(words[start : start + length])


def near_words(
    texts: Sequence[str | None], embed: Callable[[Sequence[str]], np.ndarray]
) -> dict[str, tuple[str, ...]]:
    """Word -> the nearest other words of the texts, nearest first; only words with some.

    Args:
        texts: the catalogue's.
        embed: [n, dimension] float32 of n words, unit length.
    """
    counts = Counter(word for text in texts for word in set(_WORD.findall((text or "").lower())))
    words = sorted((word for word, texts_with in counts.items() if texts_with > 1), key=lambda one: (-counts[one], one))
    words = words[:_MOST_WORDS]
    if len(words) < 2:
        return {}
    vectors = embed(words)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)
    found = {}
    for place, row in enumerate(cosines):
        nearest = [other for other in np.argsort(-row, kind="stable")[:_NEAR_WORDS] if row[other] >= NEAR_COSINE]
        if nearest:
            found[words[place]] = tuple(words[other] for other in nearest)
    return found
