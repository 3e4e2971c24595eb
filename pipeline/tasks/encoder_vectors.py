"""Text encoders that a learner has made of the task's, and their vectors: each made once in a process.

Champion, challenger and the first model of a lineage are restored again and again in one job, and to make an encoder
costs as much as a small update.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

_HELD = 4  # encoders at once: of champion, challenger and the lineage's first model, and one to spare


class Vectors(Protocol):
    """Gives the vectors of texts (`pipeline.texts.TextVectors`)."""

    def of(self, texts: Sequence[str | None]) -> np.ndarray:
        """[n, dimension] float32."""

    def known(self, hashes: Sequence[str]) -> np.ndarray:
        """[n, dimension] float32 of texts by their content hash, zeros for one that was never embedded."""


@dataclass(frozen=True)
class Weights:
    """Arrays by name that are equal where their bytes are."""

    digest: bytes
    arrays: Mapping[str, np.ndarray] = field(compare=False)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Weights:
        """Those of a checkpoint."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(arrays):
            digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
        return cls(digest.digest(), arrays)


@lru_cache(maxsize=_HELD)
def adapted(pretrained: Any, factors: Weights) -> Any:
    """The encoder with low-rank changes (models/text_adapters.py)."""
    from models import text_adapters

    return text_adapters.adapted(pretrained, factors.arrays)


@lru_cache(maxsize=_HELD)
def cut(pretrained: Any, share: float) -> Any:
    """The encoder of the first blocks alone."""
    return pretrained.cut(share)


@lru_cache(maxsize=_HELD)
def changed(pretrained: Any, changes: Weights) -> Any:
    """The encoder that was taught by messages (models/text_openings.py)."""
    from models import text_openings

    return text_openings.changed(pretrained, changes.arrays)


@lru_cache(maxsize=_HELD)
def vectors_of(cached: Callable[..., Vectors], *encoder: Any) -> Vectors:
    """What `cached` gives of an encoder, with what was read and embedded before."""
    return cached(*encoder)
