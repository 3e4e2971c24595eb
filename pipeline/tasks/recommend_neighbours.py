"""Which items are chosen together: counted, decayed co-occurrences, the best few of each item.

An item-kNN's table, kept current by each update at the cost of its own rows. Counts decay forward (Cormode et al.,
"Forward decay", ICDE 2009): a choice at time t counts exp((t - start) / mean life), so that nothing old has to be
touched when time goes on, and the ratios that the network reads never change by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.growing import lengthened, with_room
from models.item_steps import LEAST_SEEN
from pipeline.tasks.recommend_trends import DAY_US

# Of customers' new items in two weeks of Online Retail the best 20 by cosine found 0.109 and 0.128 with 60 days, 0.101
# and 0.090 with no decay.
MEAN_LIFE_DAYS = 60.0
NEIGHBOURS = 32  # kept of each item; on DIGINETICA Recall@20 lost 0.001 against all of them
PAIR_HISTORY = 16  # newest items of a history that are paired with what was chosen then
_FOREVER = 20.0  # mean lives after which everything is counted anew from 1: float32 holds exp(88)


@dataclass(frozen=True)
class Chosen:
    """What some examples say of items that go together; lists lie end to end, `offsets` [n + 1] say where each begins.

    Attributes:
        history_offsets, history: rows of the items before, newest first.
        target_offsets, targets: rows of what was chosen.
        again: [targets] bool, whether it was in the history.
        times: [n] int64, microseconds since 1970.
    """

    history_offsets: np.ndarray
    history: np.ndarray
    target_offsets: np.ndarray
    targets: np.ndarray
    again: np.ndarray
    times: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """[n] float32: what one pair of an example counts, 1 / sqrt(its items, before and now).

        Who has bought hundreds of items says little of any two of them. Online Retail, weeks 34 to 43, seeds 0 and 1:
        Recall@20 0.3385, of what is new to the customer 0.129 with 1 for all, 0.3397, 0.137 so.
        """
        items = np.diff(self.history_offsets) + np.diff(self.target_offsets)
        return (1.0 / np.sqrt(np.maximum(items, 1))).astype(np.float32)


def place_weights(length: int) -> np.ndarray:
    """[length] float32: what a history's items, newest first, count where they are paired with what is chosen next."""
    places = np.arange(length)
    return ((places < PAIR_HISTORY) / (1.0 + places)).astype(np.float32)


class Neighbours:
    """The table.

    Attributes:
        index: [items, NEIGHBOURS] int32, the items chosen with each, those with the largest cosines, 0: none.
        value: [items, NEIGHBOURS] float32, how often.
        seen: [items] float32, how often each was chosen.
    """

    def __init__(self, *, by_size: bool = True) -> None:
        """Nothing was ever chosen; `by_size`: a pair counts less of whoever has chosen much (`Chosen.shares`)."""
        self._start, self._by_size = 0, by_size
        self.index = np.zeros((1, NEIGHBOURS), np.int32)
        self.value = np.zeros((1, NEIGHBOURS), np.float32)
        self.seen = np.zeros(1, np.float32)

    def grow(self, items: int) -> None:
        """Makes room for `items` rows, row 0 (no item) included."""
        self.index, self.value, self.seen = (lengthened(one, items) for one in (self.index, self.value, self.seen))

    def weight(self, times: np.ndarray) -> np.ndarray:
        """[n] float32: what a choice at each time counts."""
        return np.exp((times - self._start) / (MEAN_LIFE_DAYS * DAY_US)).astype(np.float32)

    def shares(self, chosen: Chosen) -> np.ndarray:
        """[n] float32: what one pair of each example counts."""
        return chosen.shares if self._by_size else np.ones(len(chosen.times), np.float32)

    def count(self, chosen: Chosen) -> None:
        """Counts examples: each basket's items with one another, and what is new in it with the history's (1 / place).

        What is bought again goes with the habit, not with all else that was ever bought. Online Retail, weeks 34 to 43,
        seeds 0 and 1: with it Recall@20 0.3370, of what is new to the customer 0.125, without it 0.3385, 0.129.
        """
        if not len(chosen.times):
            return
        self._renew(int(chosen.times.max()))
        weights = self.weight(chosen.times)
        owner = np.repeat(np.arange(len(weights)), np.diff(chosen.target_offsets))
        kept = chosen.targets > 0
        rows, place = np.unique(chosen.targets[kept], return_inverse=True)
        self.seen[rows] += np.bincount(place, weights[owner[kept]], len(rows)).astype(np.float32)
        self._merge(*self._pairs(chosen, weights))

    def keep(self, kept: np.ndarray, moved: np.ndarray) -> None:
        """Drops all rows but `kept` ([m] int, row 0 first); `moved` [items] is each row's new place, 0: gone."""
        self.seen, self.index, self.value = self.seen[kept], moved[self.index[kept]].astype(np.int32), self.value[kept]
        self.value[self.index == 0] = 0.0

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All of it as arrays, for a checkpoint."""
        return {
            f"{prefix}/start": np.array([self._start], np.int64), f"{prefix}/index": self.index.copy(),
            f"{prefix}/value": self.value.copy(), f"{prefix}/seen": self.seen.copy(),
            f"{prefix}/by_size": np.array([self._by_size]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> Neighbours:
        """The table that `arrays` wrote.

        One of before December 2026 was not counted by size and is not until a retrain begins another: with both ways
        in one table, what was counted later weighs too little (Online Retail, eight weeks of updates after such a
        change: Recall@20 of what is new to the customer 0.116 with it, 0.125 without).
        """
        table = cls(by_size=bool(arrays.get(f"{prefix}/by_size", np.zeros(1))[0]))
        table._start = int(arrays[f"{prefix}/start"][0])
        table.index, table.value, table.seen = (
            with_room(arrays[f"{prefix}/{name}"]) for name in ("index", "value", "seen")
        )
        return table

    def _renew(self, newest: int) -> None:
        """Moves the start of counting where the weights would grow too large."""
        if self._start == 0:
            self._start = newest
        lives = (newest - self._start) / (MEAN_LIFE_DAYS * DAY_US)
        if lives > _FOREVER:
            self.value *= np.float32(np.exp(-lives))
            self.seen *= np.float32(np.exp(-lives))
            self._start = newest

    def _pairs(self, chosen: Chosen, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items, what they go with, and how much: both directions of each pair."""
        sizes = np.diff(chosen.target_offsets)
        lengths = np.minimum(np.diff(chosen.history_offsets), PAIR_HISTORY)
        weights = weights * self.shares(chosen)
        before = _product(chosen.history_offsets[:-1], lengths, chosen.target_offsets[:-1], sizes)
        basket = _product(chosen.target_offsets[:-1], sizes, chosen.target_offsets[:-1], sizes)
        old, new = chosen.history[before.left], chosen.targets[before.right]
        near = weights[before.owner] * place_weights(PAIR_HISTORY)[before.place] * ~chosen.again[before.right]
        one, other = chosen.targets[basket.left], chosen.targets[basket.right]
        left = np.concatenate([old, new, one])
        right = np.concatenate([new, old, other])
        value = np.concatenate([near, near, weights[basket.owner]]).astype(np.float32)
        kept = (left > 0) & (right > 0) & (left != right) & (value > 0.0)
        return left[kept], right[kept], value[kept]

    def _merge(self, left: np.ndarray, right: np.ndarray, value: np.ndarray) -> None:
        """Adds pairs to the table and keeps the best NEIGHBOURS of each row, by their cosines.

        By mere counts the most popular items fill the rows. Online Retail, weeks 34 to 43, seed 0: Recall@20 0.335,
        0.337 by cosines; of what is new to the customer 0.113, 0.115.
        """
        if not len(left):
            return
        rows = np.unique(left)
        held = self.value[rows] > 0
        left = np.concatenate([np.repeat(rows, held.sum(axis=1)), left]).astype(np.int64)
        right = np.concatenate([self.index[rows][held], right])
        value = np.concatenate([self.value[rows][held], value])
        key, place = np.unique(left * len(self.seen) + right, return_inverse=True)
        total = np.bincount(place, value, len(key)).astype(np.float32)
        left, right = key // len(self.seen), (key % len(self.seen)).astype(np.int32)
        cosine = total / np.sqrt(np.maximum(self.seen[right], LEAST_SEEN))  # times what the row has for all
        order = np.lexsort((right, -cosine, left))
        left, right, total = left[order], right[order], total[order]
        rank = np.arange(len(left)) - np.searchsorted(left, left)
        kept = rank < NEIGHBOURS
        self.index[rows], self.value[rows] = 0, 0.0
        self.index[left[kept], rank[kept]] = right[kept]
        self.value[left[kept], rank[kept]] = total[kept]


@dataclass(frozen=True)
class _Product:
    """Every element of one list of an example with every one of another."""

    left: np.ndarray
    right: np.ndarray
    place: np.ndarray  # of the left one in its list
    owner: np.ndarray


def _product(
    left_starts: np.ndarray, left_sizes: np.ndarray, right_starts: np.ndarray, right_sizes: np.ndarray
) -> _Product:
    sizes = left_sizes * right_sizes
    owner = np.repeat(np.arange(len(sizes)), sizes)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place, other = np.divmod(number, np.maximum(right_sizes[owner], 1))
    return _Product(left_starts[owner] + place, right_starts[owner] + other, place, owner)
