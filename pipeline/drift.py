"""Drift: whether the newest day differs from the same hours before by more than such days differ from each other.

Pure functions on counts and on series of hourly quality. With many rows any difference is significant, and rows of one
shopper are not independent, so three things must hold of a column before it counts as drifted: its rows moved by a
share that matters (total variation distance), by more than the reference's own days differ, and by more than chance:
a chi-squared statistic whose overdispersion is told by the reference's days (the quasi-likelihood F test of McCullagh
and Nelder 1989, section 4.5), each column's moderated by the others' (Smyth 2004, Statistical Applications in Genetics
and Molecular Biology 3(1), because a few days of a column with two bins tell little). Of a column whose bins are
numbered, the mean bin is tested besides, with one degree of freedom: prices in another currency move every bin a little
and their mean a lot. All tests of a day are corrected for their number (Holm 1979).

Quality is followed by the Page-Hinkley test (Page 1954), river's, on the hourly gain over the plain baseline: an hour
that is hard for everyone leaves the gain as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from statistics import median_low

import numpy as np

from pipeline.profiles import MISSING, OTHER, Counts

# Below 1 % of a column a bin is counted with the others: rare names come and go without anything having changed.
_RARE = 0.01

# A bin with fewer rows expected than this makes the chi-squared statistic unreliable (Cochran 1954).
_LEAST_EXPECTED = 5.0

# Fewer rows than this in the day, or in one of the reference's days, say nothing about shares of a few per cent.
LEAST_ROWS = 200

# With fewer days nobody knows how far such days differ by themselves.
LEAST_REFERENCES = 3

# The overdispersion of the middle column counts as so many degrees of freedom of each: four days of a column with
# five bins, which is where a column's own begins to be known.
_PRIOR_FREEDOM = 12

# Of fewer numbered bins the shape says as much as the level does.
_LEVELS = 3

# By how much more than the reference's own days differ at most from each other. A day is compared with all reference
# days together, each of those with the others only, so a plain 1 would be exceeded by chance once in five days.
TIMES_USUAL = 1.5

# A third of the purchases lost is 6 % of the simulated shop's rows, four to seven times as far as its days differ. Of
# what moved by 5 % with nothing wrong, nothing moved by more than 2.8 times that (108 looks at two shops).
TIMES_STEADY = 4.0

# The chance of a column to be called drifted where nothing is, for all columns of a day together: a day is the
# independent unit (its 24 looks share rows), so this is one false alarm in a thousand days by chance alone.
ERROR_RATE = 0.001


@dataclass(frozen=True)
class Shift:
    """How far one column moved.

    Attributes:
        column: its name; with ` missing` the share of nulls alone.
        share: total variation distance: the share of rows that would have to be elsewhere.
        usual: the largest such distance of one of the reference's days from the others.
        p_value: chance of so much where nothing changed, for all columns together (Holm).
        grew, fell: the bin whose share grew, or fell, most, with its share before and after.
        rows: rows of the newest day.
    """

    column: str
    share: float
    usual: float
    p_value: float
    grew: tuple[str, float, float]
    fell: tuple[str, float, float]
    rows: int

    def exceeds(self, share: float) -> bool:
        """Whether it moved by at least `share`, by more than usual, and by more than chance.

        Where that is far more than usual, half of the share is enough.
        """
        least = share / 2 if self.share >= TIMES_STEADY * self.usual else share
        return self.p_value <= ERROR_RATE and self.share >= max(least, TIMES_USUAL * self.usual)


def shifts(recent: Counts, references: Sequence[Counts]) -> list[Shift]:
    """How far each column of `recent` moved from the references, the farthest first; none where there is too little.

    Args:
        recent: column -> bin -> rows of the newest span.
        references: the same of as many earlier spans of the same hours.
    """
    gaps = {column for column, bins in recent.items() if len(bins) > 1 and MISSING in bins}
    recent, references = _with_missing(recent, gaps), [_with_missing(one, gaps) for one in references]
    found = []
    for column, bins in recent.items():
        before = [one[column] for one in references if sum(one.get(column, {}).values()) >= LEAST_ROWS]
        if sum(bins.values()) >= LEAST_ROWS and len(before) >= LEAST_REFERENCES:
            found.append((column, *_binned([bins, *before])))
    of_shape = _chances([_Chance.of(table[0], table[1:]) for _, _, table in found])
    levels = {place: _Chance.of_level(names, table) for place, (_, names, table) in enumerate(found)}
    levels = {place: one for place, one in levels.items() if one.moved_freedom}
    p_values = holm([*of_shape, *_chances(list(levels.values()))])
    for place, p in zip(levels, p_values[len(found):], strict=True):
        p_values[place] = min(p_values[place], p)
    moved = [_shift(*one, p) for one, p in zip(found, p_values[: len(found)], strict=True)]
    return sorted(moved, key=lambda one: -one.share)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the same order."""
    order = np.argsort(p_values)
    corrected = np.zeros(len(p_values))
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return [float(p) for p in corrected]


def total_variation(counts: np.ndarray, others: np.ndarray) -> float:
    """Half the sum of the differences of two distributions over the same bins: 0 to 1."""
    return float(np.abs(counts / counts.sum() - others / others.sum()).sum() / 2)


def _shift(column: str, names: Sequence[str], table: np.ndarray, p_value: float) -> Shift:
    now, pooled = table[0], table[1:].sum(axis=0)
    usual = max(total_variation(one, pooled - one) for one in table[1:])
    change = now / now.sum() - pooled / pooled.sum()

    def told(place: int) -> tuple[str, float, float]:
        return names[place], float(pooled[place] / pooled.sum()), float(now[place] / now.sum())

    return Shift(
        column, total_variation(now, pooled), usual, p_value, told(int(change.argmax())), told(int(change.argmin())),
        int(now.sum()),
    )


def _binned(counts: Sequence[Mapping[str, int]]) -> tuple[list[str], np.ndarray]:
    """Bin names and [spans, bins] rows; bins that are rare everywhere are `other`."""
    totals = [sum(one.values()) for one in counts]
    names = sorted({name for one in counts for name in one})
    table = np.array([[one.get(name, 0) for name in names] for one in counts], float)
    rare = np.array([
        name == OTHER or all(column[span] < _RARE * totals[span] for span in range(len(counts)))
        for name, column in zip(names, table.T, strict=True)
    ])
    if rare.any():
        table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
        names = [name for name, few in zip(names, rare, strict=True) if not few] + [OTHER]
    return names, table


@dataclass(frozen=True)
class _Chance:
    """Chi-squared of the newest day and of the reference's days among each other, with their degrees of freedom."""

    moved: float
    moved_freedom: int
    noise: float
    noise_freedom: int

    @classmethod
    def of(cls, now: np.ndarray, before: np.ndarray) -> _Chance:
        pooled = before.sum(axis=0)
        every = now + pooled  # where nothing changed, the newest day tells a bin's share too: one that is new in it
        enough = every / every.sum() * now.sum() >= _LEAST_EXPECTED
        if not enough.all():
            now, before = _merged(now, enough), np.array([_merged(one, enough) for one in before])
            now, before = (one[..., (now + before.sum(axis=0)) > 0] for one in (now, before))
            pooled = before.sum(axis=0)
        if len(now) < 2:
            return cls(0.0, 0, 0.0, 0)
        known = before[:, pooled > 0]
        return cls(
            _chi_squared(np.array([now, pooled])), len(now) - 1,
            _chi_squared(known), (len(before) - 1) * (known.shape[1] - 1),
        )

    @classmethod
    def of_level(cls, names: Sequence[str], table: np.ndarray) -> _Chance:
        """Of the mean of numbered bins alone: a level that moved by a bin is spread over all of them otherwise."""
        numbers = np.array([_number(name) for name in names])
        table, numbers = table[:, ~np.isnan(numbers)], numbers[~np.isnan(numbers)]
        rows = table.sum(axis=1)
        if len(numbers) < _LEVELS or rows.min() < LEAST_ROWS:
            return cls(0.0, 0, 0.0, 0)
        means = table @ numbers / rows
        pooled = rows[1:] @ means[1:] / rows[1:].sum()
        scatter = table[1:].sum(axis=0) @ (numbers - pooled) ** 2 / rows[1:].sum()
        if not scatter:
            return cls(0.0, 0, 0.0, 0)
        moved = (means[0] - pooled) ** 2 / (1.0 / rows[0] + 1.0 / rows[1:].sum())
        return cls(moved / scatter, 1, rows[1:] @ (means[1:] - pooled) ** 2 / scatter, len(table) - 2)


def _chances(columns: Sequence[_Chance]) -> list[float]:
    """The p-value of each column, the references' own differences taken as the noise."""
    from scipy import stats

    noises = [one.noise / one.noise_freedom for one in columns if one.noise_freedom]
    of_all = max(median_low(noises), 1.0) if noises else 1.0  # one restless column must not hide what others do
    p_values = []
    for one in columns:
        if not one.moved_freedom:
            p_values.append(1.0)
            continue
        known = one.noise_freedom + _PRIOR_FREEDOM
        noise = max((one.noise + _PRIOR_FREEDOM * of_all) / known, 1.0)  # independent rows are the least there is
        p_values.append(float(stats.f.sf(one.moved / one.moved_freedom / noise, one.moved_freedom, known)))
    return p_values


def _merged(counts: np.ndarray, enough: np.ndarray) -> np.ndarray:
    return np.append(counts[enough], counts[~enough].sum())


def _chi_squared(table: np.ndarray) -> float:
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


def _with_missing(counts: Counts, gaps: Set[str]) -> dict[str, Mapping[str, int]]:
    """The columns, and of those with `gaps` the share of nulls as a column of its own."""
    found: dict[str, Mapping[str, int]] = dict(counts)
    for column in gaps & counts.keys():
        missing = counts[column].get(MISSING, 0)
        found[f"{column} {MISSING}"] = {MISSING: missing, "there": sum(counts[column].values()) - missing}
    return found


def _number(name: str) -> float:
    """A numbered bin's number, NaN for a name."""
    try:
        return float(int(name))
    except ValueError:
        return float("nan")


# -- quality ----------------------------------------------------------------------------------------------------

# Page-Hinkley in units of the hourly noise: drifts below half of it are let pass, and 8 of them in sum raise the alarm.
# By Siegmund's approximation (1985, section 2.6) that is one false alarm in 19,000 hours of independent noise, and a
# fall by twice the noise is seen after some 6 hours, one by the noise itself after 16.
PAGE_HINKLEY_DELTA, PAGE_HINKLEY_THRESHOLD = 0.5, 8.0

# Two days: every hour of the day counts twice in the mean that a fall is told from.
LEAST_HOURS = 48


@dataclass(frozen=True)
class Gain:
    """What the champion was better by in one window.

    Attributes:
        window: its start.
        gain: the champion's mean less the baseline's, on the same examples.
        level: the champion's mean.
        examples: how many.
    """

    window: datetime
    gain: float
    level: float
    examples: int


@dataclass(frozen=True)
class Fall:
    """A fall of the gain.

    Attributes:
        seen: start of the window in which it was noticed.
        before, after: the gain until it began, and over the newest day.
        level: the champion's mean until it began.
    """

    seen: datetime
    before: float
    after: float
    level: float

    @property
    def loss(self) -> float:
        """What was lost, relative to the champion's mean before; negative: nothing is."""
        return (self.before - self.after) / self.level


def fall_of(gains: Sequence[Gain], newest: int = 24) -> Fall | None:
    """The last fall of a series of hourly gains, in order of time; None: there was none.

    Args:
        gains: hours that were scored.
        newest: so many of the last ones tell what the gain is now.
    """
    from river.drift import PageHinkley

    if len(gains) <= LEAST_HOURS:
        return None
    values = np.array([one.gain for one in gains])
    weights = np.sqrt(np.array([one.examples for one in gains], float))
    noise = _noise(values, weights)
    if not noise:
        return None
    test = PageHinkley(
        min_instances=LEAST_HOURS, delta=PAGE_HINKLEY_DELTA, threshold=PAGE_HINKLEY_THRESHOLD, alpha=1.0, mode="down"
    )
    centre = np.average(values[:LEAST_HOURS], weights=weights[:LEAST_HOURS] ** 2)
    begun, found = 0, None
    for place, value in enumerate((values - centre) * weights / noise):
        test.update(float(value))
        if test.drift_detected:
            found, begun = (begun, place), place + 1
    if found is None:
        return None
    start, seen = found
    before = slice(start, max(seen - newest // 2, start + 1))  # the fall began some hours before it was noticed
    share = weights**2
    return Fall(
        gains[seen].window, float(np.average(values[before], weights=share[before])),
        float(np.average(values[-newest:], weights=share[-newest:])),
        float(np.average([one.level for one in gains[before]], weights=share[before])),
    )


def _noise(values: np.ndarray, weights: np.ndarray) -> float:
    """The standard deviation of a gain of one example, from neighbouring hours: a fall does not inflate it."""
    steps = np.diff(values) / np.sqrt(1.0 / weights[1:] ** 2 + 1.0 / weights[:-1] ** 2)
    return float(1.4826 * np.median(np.abs(steps)))
