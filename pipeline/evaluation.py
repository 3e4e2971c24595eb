"""Metrics of ranked lists and intervals of means over units.

Examples of one user are not independent of each other, so users (units) are what is resampled: every
interval here is over the means of the units, in which each unit counts the same however many examples it
brought (cluster bootstrap; Davison and Hinkley 1997, section 3.8). What is shown to people is a percentile interval
(Efron and Tibshirani 1993, ch. 13).

What decides needs more care. Two models differ in few units, and a sample may lack just the few that lose the most: its
mean is then too high and its spread too small, so that every interval that knows only the sample (percentile and
studentised bootstrap, Student's t) claims too much, twice as often as it says at a hundred users. So two units are
imagined beside the sample, one that loses and one that gains as much as any unit did (`UnitMean`, `swing`): what
adding half an observation to each cell does for matched proportions (Agresti and Min, Statistics in Medicine 24(5),
2005). `make bench-trust` measures it beside the others (tests/benchmarks/results/GATE.md).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

# 1,000 draws are the least for percentile intervals (Efron and Tibshirani 1993, section 14.3).
DRAWS = 2_000

_ROUNDING = 1e-12  # values that differ by less are the same but for rounding

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


def ranked_metrics(ranked: np.ndarray, targets: np.ndarray, k: int, deep: int) -> dict[str, np.ndarray]:
    """Recall, NDCG and MRR at `k`, and NDCG at `deep`, by their names. Arguments and values as for `recall_at_k`."""
    return {
        f"recall@{k}": recall_at_k(ranked, targets, k), f"ndcg@{k}": ndcg_at_k(ranked, targets, k),
        f"mrr@{k}": mrr_at_k(ranked, targets, k), f"ndcg@{deep}": ndcg_at_k(ranked, targets, deep),
    }


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
class UnitMean:
    """What a sample of units tells of the mean of all units, by Student's t.

    Attributes:
        mean: of the sample.
        deviation: standard deviation of the units' values, imagined units included.
        units: how many.
    """

    mean: float
    deviation: float
    units: int

    @classmethod
    def of(cls, values: np.ndarray, swing: float = 0.0) -> UnitMean:
        """Of [units] float, at least one; beside them two units are imagined, this far below and above the mean."""
        mean = float(values.mean())
        squares = float(((values - mean) ** 2).sum()) + 2.0 * swing**2
        freedom = len(values) - 1 + 2 * (swing > 0.0)
        deviation = math.sqrt(squares / freedom) if freedom else 0.0
        return cls(mean, deviation if deviation > _ROUNDING * abs(mean) else 0.0, len(values))

    def low(self, error_rate: float) -> float:
        """What the true mean is below with probability `error_rate` only."""
        return self.mean - self._quantile(error_rate) * self.deviation / math.sqrt(self.units)

    def high(self, error_rate: float) -> float:
        """What the true mean is above with probability `error_rate` only."""
        return self.mean + self._quantile(error_rate) * self.deviation / math.sqrt(self.units)

    def chance_at_least(self, bound: float) -> float:
        """The one-sided p-value of the claim that the true mean is below `bound`."""
        if self.deviation == 0.0:
            return 1.0 if self.mean >= bound else 0.0
        statistic = math.sqrt(self.units) * (self.mean - bound) / self.deviation
        return float(stdtr(max(self.units - 1, 1), statistic))

    def _quantile(self, error_rate: float) -> float:
        return float(stdtrit(max(self.units - 1, 1), 1.0 - error_rate))


def shown_by_holm(chances: Sequence[float], error_rate: float) -> list[bool]:
    """Which claims are shown, given their p-values, so that any false one is shown with at most `error_rate`.

    Holm's step-down: the smallest p-value must be within error_rate / m, the next within
    error_rate / (m - 1), and so on until one is not.
    """
    shown = [False] * len(chances)
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda place: chances[place])):
        if chances[place] > error_rate / (len(chances) - rank):
            break
        shown[place] = True
    return shown


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
