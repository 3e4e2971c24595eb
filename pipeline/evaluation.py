"""Metrics of ranked lists and bootstrap intervals over units, in numpy alone.

Examples of one user are not independent of each other, so users (units) are what is resampled: every
interval here is over the means of the units, in which each unit counts the same however many examples it
brought (cluster bootstrap; Davison and Hinkley 1997, section 3.8). Two models are compared on the same
examples by the difference within each unit, which takes out how hard a unit is (paired bootstrap of
evaluation measures; Sakai, SIGIR 2006; Koehn, EMNLP 2004). Intervals are percentile intervals (Efron and
Tibshirani 1993, ch. 13).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

# 1,000 draws are the least for percentile intervals (Efron and Tibshirani 1993, section 14.3). The gate asks
# for tails of 5 % divided by about ten comparisons: 2,000 draws leave ten draws beyond that bound.
DRAWS = 2_000

# So many values are resampled at once: 32 MB of float64, whatever the number of units.
_CELLS_AT_ONCE = 2**22


def recall_at_k(ranked: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """The share of an example's targets, or of `k` where it has more, that are among its first `k` ranked items.

    With that denominator a basket of fifty items can be answered in full, as in Mult-VAE (Liang et al., WWW 2018).

    Args:
        ranked: [n, at least k] int, distinct item numbers, best first; negative where there is none.
        targets: [n, T] int, distinct item numbers; -1 is padding, any other negative number a target that no
            model can name (an unknown item): it counts as missed.
        k: how many places count.

    Returns:
        [n] float64 in 0..1; nan for an example without a target.
    """
    hits = _hits(ranked, targets, k).sum(axis=1)
    return _ratio(hits.astype(np.float64), np.minimum(_target_counts(targets), k).astype(np.float64))


def ndcg_at_k(ranked: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """The discounted gain of the first `k` places over the best that was possible, each target worth 1.

    A target at place p (from 1) gains 1 / log2(p + 1) (Järvelin and Kekäläinen, TOIS 2002); the best possible
    has min(k, targets) hits in front. Arguments and result as for `recall_at_k`.
    """
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    best = np.concatenate([[0.0], np.cumsum(discounts)])
    return _ratio(_hits(ranked, targets, k) @ discounts, best[np.minimum(_target_counts(targets), k)])


def mrr_at_k(ranked: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """One over the place of the first hit; 0 where the first `k` places have none (Voorhees, TREC-8 1999).

    Arguments and result as for `recall_at_k`.
    """
    hits = _hits(ranked, targets, k)
    first = np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1), 0.0)
    return np.where(_target_counts(targets) > 0, first, np.nan)


def unit_means(values: np.ndarray, units: Iterable[Hashable]) -> np.ndarray:
    """The mean of each unit's values: [distinct units], in the order in which the units first appear.

    Args:
        values: [n] float, one an example.
        units: [n], whose example it is.
    """
    numbers: dict[Hashable, int] = {}
    places = np.fromiter((numbers.setdefault(unit, len(numbers)) for unit in units), np.int64)
    if len(places) != len(values):
        raise ValueError(f"Each value needs its unit; received {len(values)} values and {len(places)} units.")
    return np.bincount(places, np.asarray(values, np.float64), len(numbers)) / np.bincount(places)


def resampled_means(unit_values: np.ndarray, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Means of `draws` samples of the units, taken with replacement: [draws] float64.

    The same seed and number of units draw the same units. Values that many units share are drawn by their
    multinomial counts, which is the same distribution at a cost that follows the number of distinct values.
    """
    generator = np.random.default_rng(seed)
    units = len(unit_values)
    distinct, counts = np.unique(unit_values, return_counts=True)
    if len(distinct) * 4 <= units:  # a multinomial count costs four times a draw (measured)
        return generator.multinomial(units, counts / units, size=draws) @ distinct / units
    means = np.empty(draws)
    at_once = max(1, _CELLS_AT_ONCE // units)
    for start in range(0, draws, at_once):
        stop = min(start + at_once, draws)
        chosen = generator.integers(units, size=(stop - start, units), dtype=np.int32)
        means[start:stop] = unit_values[chosen].mean(axis=1)
    return means


def interval(
    values: np.ndarray, units: Iterable[Hashable], seed: int, confidence: float = 0.95
) -> tuple[float, float, float]:
    """The mean over units and its two-sided bootstrap interval.

    Args:
        values: [n] float, one an example, n > 0.
        units: [n], whose example it is.
        seed: of the resampling.
        confidence: share of such intervals that hold the true mean.

    Returns:
        Mean, low, high.
    """
    means = unit_means(values, units)
    if not len(means):
        raise ValueError("An interval needs at least one value; received none.")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(resampled_means(means, seed), [tail, 1.0 - tail])
    return float(means.mean()), float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another on the same examples, by unit.

    Attributes:
        mean: mean over units of the difference within the unit.
        low, high: one-sided bounds: each is crossed by the true mean with the stated error rate only.
        deviation: standard deviation of the units' differences.
        units: distinct units.
        changed: those of them in which the models differ.
        draws: [draws] float64, the resampled means, in ascending order.
    """

    mean: float
    low: float
    high: float
    deviation: float
    units: int
    changed: int
    draws: np.ndarray

    def chance_at_least(self, bound: float) -> float:
        """The one-sided p-value of the claim that the true mean is below `bound`.

        The draws take the place of the unknown distribution; one is added to both counts so that it is never
        0 (Davison and Hinkley 1997, section 4.2.1).
        """
        at_least = len(self.draws) - int(np.searchsorted(self.draws, bound, side="left"))
        return (at_least + 1) / (len(self.draws) + 1)


def paired_difference(
    values: np.ndarray, others: np.ndarray, units: Iterable[Hashable], seed: int, error_rate: float = 0.05
) -> Difference:
    """The difference `values - others` of two models' metric on the same examples.

    Args:
        values, others: [n] float, of the same examples in the same order, n > 0.
        units: [n], whose example it is.
        seed: of the resampling.
        error_rate: of each one-sided bound.
    """
    if len(values) != len(others) or not len(values):
        raise ValueError(
            "A paired difference needs both models' values of the same examples; "
            f"received {len(values)} and {len(others)}."
        )
    means = unit_means(np.asarray(values, np.float64) - np.asarray(others, np.float64), units)
    draws = np.sort(resampled_means(means, seed))
    low, high = np.quantile(draws, [error_rate, 1.0 - error_rate])
    deviation = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    changed = int(np.count_nonzero(means))
    return Difference(float(means.mean()), float(low), float(high), deviation, len(means), changed, draws)


def _hits(ranked: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """[n, k] bool: the item at this place is a target."""
    if ranked.ndim != 2 or targets.ndim != 2 or len(ranked) != len(targets) or not 1 <= k <= ranked.shape[1]:
        raise ValueError(
            "ranked must be [n, at least k] and targets [n, T]; "
            f"received {ranked.shape}, {targets.shape}, k={k}."
        )
    places = ranked[:, :k]
    hits = np.zeros(places.shape, bool)
    for column in targets.T:  # one target at a time: [n, k, T] at once would be gigabytes for large baskets
        hits |= (places == column[:, None]) & (column >= 0)[:, None]
    return hits


def _target_counts(targets: np.ndarray) -> np.ndarray:
    return (targets != -1).sum(axis=1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
