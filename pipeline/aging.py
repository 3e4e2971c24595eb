"""Aging: what a model loses with the time since its data ended, measured on later windows that it also scored.

Each window is scored by the champion of that hour and by models that were trained earlier (the lineage's first model
is never updated; a champion that nothing replaced for a while grows old too). The older model's loss against the
fresh one on the same examples, by age, is the curve that tells what a champion that stops learning will lose. (Time
is taken from the data, as in prequential evaluation: Gama et al. 2013, Machine Learning 90(3).)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np

FRESH_HOURS = 12.0  # a model is what older ones are compared with while its data ended at most so long ago

# Edges of the ages, in hours, each about twice the last: a model loses most at first.
_EDGES = (0.0, 12.0, 24.0, 48.0, 96.0, 168.0, 336.0, 672.0, 1344.0, 1e9)

# The standard error of a mean is trusted from about so many windows on (Student's t of 12 is within 10 % of normal's).
LEAST_WINDOWS = 12


@dataclass(frozen=True)
class Scored:
    """One model's mean on one window."""

    window: datetime
    role: str
    version: int
    mean: float
    examples: int


@dataclass(frozen=True)
class Age:
    """The loss at one age.

    Attributes:
        low_hours, high_hours: since the data ended.
        loss: relative to the fresh champion, weighed by examples; negative: it was better.
        error: its standard error over windows.
        windows: how many were scored by both.
    """

    low_hours: float
    high_hours: float
    loss: float
    error: float
    windows: int

    @property
    def least(self) -> float:
        """The loss that is exceeded with 97.5 % confidence."""
        return self.loss - 1.96 * self.error


def aging_curve(scored: Sequence[Scored], data_ends: Mapping[int, datetime]) -> tuple[Age, ...]:
    """The loss by age, youngest first; ages with fewer than `LEAST_WINDOWS` windows are left out.

    Args:
        scored: models' means by window, on the same examples of a window.
        data_ends: version -> newest window that it has learnt from.
    """
    fresh = {
        one.window: one for one in scored
        if one.role == "champion" and 0 <= _age(one, data_ends) <= FRESH_HOURS and one.mean > 0
    }
    losses: dict[int, list[tuple[float, int]]] = {}
    for one in scored:
        age, best = _age(one, data_ends), fresh.get(one.window)
        if best is None or age <= 0 or one.version == best.version or age <= _age(best, data_ends):
            continue
        place = next(place for place, edge in enumerate(_EDGES[1:]) if age <= edge)
        losses.setdefault(place, []).append(((best.mean - one.mean) / best.mean, one.examples))
    spans = list(pairwise(_EDGES))
    return tuple(
        Age(*spans[place], *_mean(values), len(values))
        for place, values in sorted(losses.items()) if len(values) >= LEAST_WINDOWS
    )


def expected_loss(curve: Sequence[Age], age_hours: float) -> Age | None:
    """What a model of this age has lost by the curve: of its span, or of the oldest younger one that was measured."""
    younger = [one for one in curve if one.low_hours < age_hours]
    return younger[-1] if younger else None


def _age(one: Scored, data_ends: Mapping[int, datetime]) -> float:
    """Hours from the end of a model's data to the window; negative where nobody knows."""
    ended = data_ends.get(one.version)
    return -1.0 if ended is None else (one.window - ended) / timedelta(hours=1)


def _mean(values: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Weighed mean and its standard error."""
    losses, weights = np.array([loss for loss, _ in values]), np.array([number for _, number in values], float)
    mean = float(np.average(losses, weights=weights))
    share = weights / weights.sum()
    error = np.sqrt((share**2 * (losses - mean) ** 2).sum() * len(losses) / (len(losses) - 1))
    return mean, float(error)
