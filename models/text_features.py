"""Hashed n-grams of a text: which words and parts of words it has, beside the encoder's vector of what it means.

A frozen sentence encoder tells meanings apart and blurs names, numbers and single words, on which close intents often
turn ("top up by card", "top up by transfer"). Counts of words, pairs of words and parts of words say just that. They
are hashed with a sign into a fixed number of buckets (Weinberger et al., ICML 2009), so that no vocabulary has to grow
with the shop's language, and nothing of the texts themselves stays in a model. Numpy alone: the same code serves.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PART_LENGTHS = (3, 4, 5)  # characters: stems and endings, as in fastText (Bojanowski et al., TACL 2017)
_WORDS = re.compile(r"\w+")
_BASE = np.uint64(1_099_511_628_211)  # FNV's prime, odd: a rolling hash that keeps 64 bits
_MIXERS = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # MurmurHash3's finaliser
_MOST_CHARACTERS = 1_000  # the encoder reads at most 128 tokens; a letter's rest says little more


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of texts as sparse rows.

    Attributes:
        offsets: [n + 1] int64, where each text's entries begin.
        buckets: [entries] int32.
        values: [entries] float32; each text's have length 1, or it has none.
        width: how many buckets there are.
    """

    offsets: np.ndarray
    buckets: np.ndarray
    values: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """[m, width] float32 of the texts at `rows` ([m] int)."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        starts = np.repeat(self.offsets[rows] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        entries = starts + np.arange(counts.sum())
        filled = np.zeros((len(rows), self.width), np.float32)
        filled[np.repeat(np.arange(len(rows)), counts), self.buckets[entries]] = self.values[entries]
        return filled


def hashed_ngrams(texts: Sequence[str], width: int) -> Ngrams:
    """Words, pairs of neighbouring words and parts of words, of each text, hashed into `width` buckets.

    Args:
        texts: of any language; a language without blanks has its parts.
        width: how many buckets.
    """
    buckets, values, lengths = [], [], np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        found, signs = _hashed(text[:_MOST_CHARACTERS].lower())
        place = (found % np.uint64(width)).astype(np.int64)
        summed = np.bincount(place, signs, width) if len(place) else np.zeros(width)
        there = np.flatnonzero(summed)
        # the logarithm of a count: a word said thrice is not three times as telling (Salton and Buckley 1988)
        logs = np.sign(summed[there]) * np.log1p(np.abs(summed[there]))
        norm = float(np.sqrt(logs @ logs))
        buckets.append(there.astype(np.int32))
        values.append((logs / norm if norm else logs).astype(np.float32))
        lengths[row] = len(there)
    return Ngrams(
        np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([np.zeros(0, np.int32), *buckets]),
        np.concatenate([np.zeros(0, np.float32), *values]), width,
    )


def _hashed(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all n-grams of a text [k] uint64, and the sign of each [k] float64."""
    words = _WORDS.findall(text)
    whole = [*words, *(f"{one} {other}" for one, other in zip(words, words[1:], strict=False))]
    of_words = np.array([zlib.crc32(word.encode()) for word in whole], np.uint64)
    letters = np.frombuffer(f" {' '.join(words)} ".encode("utf-32-le"), np.uint32).astype(np.uint64)
    hashes = [of_words + np.uint64(1 << 40)]  # apart from the parts of the same letters
    with np.errstate(over="ignore"):
        for length in PART_LENGTHS:
            count = len(letters) - length + 1
            if count < 1:
                break
            rolling = np.full(count, np.uint64(length))
            for place in range(length):
                rolling = rolling * _BASE + letters[place : place + count]
            hashes.append(rolling)
        mixed = np.concatenate(hashes)
        mixed = (mixed ^ (mixed >> np.uint64(33))) * _MIXERS[0]
        mixed = (mixed ^ (mixed >> np.uint64(33))) * _MIXERS[1]
    mixed ^= mixed >> np.uint64(33)
    return mixed, np.where(mixed >> np.uint64(63), -1.0, 1.0)
