"""How often each item was chosen lately, as it stood at any moment of the past: the trend.

Decayed counters for several mean lives (models.layers.TREND_DAYS), kept current by each update at the cost of its own
rows. An old example that is learnt or replayed must see the trend of its own day, not today's, or the model would
learn to trust a trend that knew the future: so the counters are remembered as they stood, a day apart for the last
four weeks and a week apart before that, only of items that were chosen lately.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.growing import lengthened, with_room
from models.layers import TREND_DAYS

DAY_US = 86_400_000_000
DAILY_SNAPSHOTS = 28  # beyond, one a week: a popularity of four weeks ago is as good a day later
WEEKLY_SNAPSHOTS = 53  # a year; older examples see the oldest
# Rows of one snapshot, the most chosen ones. 81 snapshots of a million items chosen within the year took 0.97 GB, these
# take 64 MB; what is less popular than 65,000 others has next to no trend.
_SNAPSHOT_ROWS = 65_536
_FORGOTTEN = 0.02  # a counter below this is 0 in a snapshot: one choice five spans ago
_SAMPLING_POWER = 0.75  # word2vec's (Mikolov et al. 2013): between how often items are chosen and all alike
_UNSEEN = 0.5  # choices that an item counts as having before its first (Krichevsky and Trofimov 1981)


class Trends:
    """The counters now and at the remembered moments.

    Attributes:
        time: of the newest choice counted, microseconds since 1970; 0: none.
        moments: [snapshots] int64, their times, ascending.
    """

    def __init__(self) -> None:
        """Nothing was ever chosen."""
        self.time = 0
        self.moments = np.zeros(0, np.int64)
        self._counts = np.zeros((1, len(TREND_DAYS)), np.float32)
        # both of the counts as they are; None: they have changed since
        self._total: np.ndarray | None = None
        self._cumulated: np.ndarray | None = None
        self._offsets = np.zeros(1, np.int64)
        self._rows = np.zeros(0, np.int32)
        self._logs = np.zeros((0, len(TREND_DAYS)), np.float16)
        self._floors = np.zeros((0, len(TREND_DAYS)), np.float32)  # of each snapshot: the log of what it does not hold

    def grow(self, items: int) -> None:
        """Makes room for `items` rows, row 0 (no item) included."""
        if items > len(self._counts):
            self._changed()
            self._counts = lengthened(self._counts, items)

    def count(self, items: np.ndarray, times: np.ndarray) -> None:
        """Counts choices.

        Args:
            items: [n] int, rows; 0 is passed over.
            times: [n] int64, microseconds since 1970. Those before `time` decay from theirs on; the snapshots between
                stay as they were until the next retrain.
        """
        kept = items > 0
        order = np.argsort(times[kept], kind="stable")
        items, times = items[kept][order], times[kept][order]
        days = times // DAY_US
        starts = np.flatnonzero(np.diff(days, prepend=-1))
        for start, end in zip(starts, np.append(starts[1:], len(days)), strict=False):  # no choice: no start, one end
            self._count_day(items[start:end], times[start:end])

    def moment_of(self, times: np.ndarray) -> np.ndarray:
        """[n] int32: the newest moment before each time; `len(moments)` is now. The oldest, where none is.

        A choice at the moment itself is counted in it.
        """
        known = np.append(self.moments, self.time)
        return np.maximum(np.searchsorted(known, times, side="left") - 1, 0).astype(np.int32)

    def day_of(self, moment: int) -> int:
        """The day, since 1970, of the place `moment` in `moments`; `len(moments)`: of now."""
        return int(self.time if moment == len(self.moments) else self.moments[moment]) // DAY_US

    def logs(self, moment: int, rows: np.ndarray | None = None) -> np.ndarray:
        """[rows, TREND_DAYS] float32: log of each item's share of the choices, as models.layers.OWN_ITEM_LOGIT expects.

        Args:
            moment: place in `moments`; `len(moments)`: now.
            rows: [n] int; None: all.
        """
        if moment == len(self.moments):
            return self._logs_of(self._counts if rows is None else self._counts[rows])
        inside = slice(self._offsets[moment], self._offsets[moment + 1])
        held, logs = self._rows[inside], self._logs[inside]
        if rows is None:
            result = np.tile(self._floors[moment], (len(self._counts), 1))
            result[held] = logs
            return result
        if not len(held):
            return np.tile(self._floors[moment], (len(rows), 1))
        places = np.minimum(np.searchsorted(held, rows), len(held) - 1)
        return np.where((held[places] == rows)[:, None], logs[places], self._floors[moment]).astype(np.float32)

    def shares(self) -> np.ndarray:
        """[items] float32, each item's share of the choices of the longest span, up to now."""
        return (self._counts[:, -1] + np.float32(_UNSEEN)) / self._summed()[-1]

    def cumulated_chances(self) -> np.ndarray:
        """[items] float64, ascending to 1: of being drawn as a candidate, of all items up to each one.

        Every pass over examples asks for them, and the whole catalogue's powers cost as much as a few steps.
        """
        if self._cumulated is None:
            chances = self.shares().astype(np.float64) ** _SAMPLING_POWER
            chances[0] = 0.0
            self._cumulated = np.cumsum(chances / chances.sum())
        return self._cumulated

    def _changed(self) -> None:
        self._total, self._cumulated = None, None

    def _logs_of(self, counts: np.ndarray) -> np.ndarray:
        return np.log((counts + np.float32(_UNSEEN)) / self._summed())

    def _summed(self) -> np.ndarray:
        if self._total is None:
            self._total = self._counts.sum(axis=0) + np.float32(_UNSEEN * max(len(self._counts) - 1, 1))
        return self._total

    def keep(self, kept: np.ndarray, moved: np.ndarray) -> None:
        """Drops all rows but `kept` ([m] int, ascending, row 0 first); `moved` [items]: their new places, 0: gone."""
        self._counts = self._counts[kept]
        self._changed()
        stay = moved[self._rows] > 0
        before = np.concatenate([[0], np.cumsum(stay)])
        self._offsets = before[self._offsets].astype(np.int64)
        self._rows, self._logs = moved[self._rows[stay]].astype(np.int32), self._logs[stay]

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All of it as arrays, for a checkpoint."""
        return {
            f"{prefix}/time": np.array([self.time], np.int64), f"{prefix}/moments": self.moments.copy(),
            f"{prefix}/counts": self._counts.copy(), f"{prefix}/offsets": self._offsets.copy(),
            f"{prefix}/rows": self._rows.copy(), f"{prefix}/logs": self._logs.copy(),
            f"{prefix}/floors": self._floors.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> Trends:
        """The trends that `arrays` wrote."""
        trends = cls()
        trends.time = int(arrays[f"{prefix}/time"][0])
        trends.moments = np.array(arrays[f"{prefix}/moments"])
        trends._counts = with_room(arrays[f"{prefix}/counts"])
        trends._offsets, trends._rows, trends._logs, trends._floors = (
            np.array(arrays[f"{prefix}/{name}"]) for name in ("offsets", "rows", "logs", "floors")
        )
        return trends

    def _count_day(self, items: np.ndarray, times: np.ndarray) -> None:
        newest = int(times[-1])
        if newest > self.time:
            last = self.moments[-1] if len(self.moments) else 0
            if self.time // DAY_US > last // DAY_US and times[0] > self.time:
                self._remember()
            self._counts *= self._decay(np.array([newest - self.time]))
            self.time = newest
        self._changed()
        weights = self._decay(self.time - times)
        rows, place = np.unique(items, return_inverse=True)
        for span in range(len(TREND_DAYS)):
            self._counts[rows, span] += np.bincount(place, weights[:, span], len(rows)).astype(np.float32)

    @staticmethod
    def _decay(ages_us: np.ndarray) -> np.ndarray:
        return np.exp(-ages_us[:, None] / (np.array(TREND_DAYS) * DAY_US)).astype(np.float32)

    def _remember(self) -> None:
        """Adds a snapshot of now, and thins the old ones out."""
        rows = np.flatnonzero((self._counts > _FORGOTTEN).any(axis=1)).astype(np.int32)
        if len(rows) > _SNAPSHOT_ROWS:
            shares = (self._counts[rows] / self._counts.sum(axis=0)).sum(axis=1)
            rows = np.sort(rows[np.argsort(-shares, kind="stable")[:_SNAPSHOT_ROWS]])
        times = np.append(self.moments, self.time)
        kept = _thinned(times)
        spans = [slice(*self._offsets[place : place + 2]) for place in np.flatnonzero(kept[:-1])]
        self._rows = np.concatenate([*(self._rows[span] for span in spans), rows])
        logs = self._logs_of(self._counts[rows]).astype(np.float16)
        self._logs = np.concatenate([*(self._logs[span] for span in spans), logs])
        floor = self._logs_of(np.zeros((1, len(TREND_DAYS)), np.float32))
        self._floors = np.concatenate([self._floors[kept[:-1]], floor])
        sizes = [span.stop - span.start for span in spans] + [len(rows)]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.moments = times[kept]


def _thinned(times: np.ndarray) -> np.ndarray:
    """[n] bool: which of ascending snapshot times stay; the newest always does."""
    days = times // DAY_US
    recent = days > days[-1] - DAILY_SNAPSHOTS
    weeks = days // 7
    first_of_week = np.diff(weeks, prepend=-1) > 0
    return recent | (first_of_week & (weeks > weeks[-1] - WEEKLY_SNAPSHOTS))
