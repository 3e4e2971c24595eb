"""How the parts of a recommendation are weighed once more, by what was foreseen before it was taught.

Training fits what it knows the answer of, and trusts most what it can learn by heart: a customer's vector, at the cost
of what was counted. How much each deserves shows in examples that come after all that was learnt, so a few weights are
fitted on those alone, each once, before it is taught (stacked generalization: Wolpert, Neural Networks 1992; foreseen
first, then learnt: Dawid, "prequential", JRSS A 1984). recommend_blend.py fits them; here they are put to use. They
speak of what is recommended for a history; without one there is nothing to weigh, and a search is for its words.

    outside of the history:  outside x logit + whole x log1p(whole history's neighbours / scale) + trend . w
    within it:               own x logit + own_bonus                                             + trend . w

Numpy alone: consumers compute it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

PLAIN = 4  # outside, own, own_bonus, whole; behind them one for each span of the trend
TREND_SPANS = 4  # as many as TREND_DAYS in layers.py, which needs TensorFlow


def untouched() -> np.ndarray:
    """[PLAIN + TREND_SPANS] float32: the weights that leave every logit as it is."""
    return np.array([1.0, 1.0, 0.0, 0.0] + [0.0] * TREND_SPANS, np.float32)


@dataclass(frozen=True)
class Blend:
    """The weights of some requests, [batch, 1] float32 each; where a request is not weighed they change nothing.

    Attributes:
        outside, own: what the logits of items outside and within the history are multiplied with.
        bonus: what is added to those within.
        whole: what the neighbours of the whole history count for an item outside, beside their own gain.
        trend: how much of the weighed trend is added.
    """

    outside: np.ndarray
    own: np.ndarray
    bonus: np.ndarray
    whole: np.ndarray
    trend: np.ndarray

    @classmethod
    def of(cls, weights: np.ndarray, weighed: np.ndarray) -> Blend:
        """From all weights, and which requests they hold for ([batch] bool)."""
        there = weighed.astype(np.float32)[:, None]
        outside, own, bonus, whole = (there * one for one in weights[:PLAIN] - untouched()[:PLAIN])
        return cls(1.0 + outside, 1.0 + own, bonus, whole, there)


def weighed_requests(index: np.ndarray, has_query: np.ndarray | None) -> np.ndarray:
    """[batch] bool: which requests have a history ([batch, length] int, 0: none) and no query."""
    there = np.asarray((index > 0).any(axis=1))
    return there if has_query is None else there & ~has_query


def trend_weights(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """[TREND_SPANS] float32: the last of a recommender's `blend`."""
    return arrays["blend"][PLAIN:]
