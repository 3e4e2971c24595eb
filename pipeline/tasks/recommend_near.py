"""What goes with the items of a batch's histories, and what goes with that: counts that do not tell the answer.

An example that was counted finds its own basket in the counts; what it has added is taken off before it is taught.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.item_steps import WHOLE_HISTORY, cosines, first_steps, second_steps
from models.layers import NEIGHBOUR_HISTORY
from pipeline.tasks.recommend_encoded import Encoded, filled, flat_places, padded
from pipeline.tasks.recommend_neighbours import PAIR_HISTORY, Neighbours

_REACHED = 8  # of each item's neighbours: those of a batch of 128 fill some 10,000 rows
_LEAST = 1e-6  # of a count: what rounding leaves when an example's own part is taken off


class Near:
    """The neighbours of the histories of some examples."""

    def __init__(self, encoded: Encoded, neighbours: Neighbours, counted: bool | np.ndarray) -> None:
        """Takes the examples, the counts, and whether these hold the examples; [n] bool: each of them."""
        self._encoded, self._neighbours = encoded, neighbours
        self._counted = np.broadcast_to(counted, len(encoded))

    def of(self, chosen: np.ndarray, items: np.ndarray, place: np.ndarray, rows: int) -> Mapping[str, np.ndarray]:
        """The batch's neighbours, what its whole histories go with, and second steps, as `NeighbourHead` takes them.

        No second step is gone from or to what the example has had, nor from what it wants where it was counted: that
        was counted with the rest of its basket.

        Args:
            chosen: [n] int, which examples.
            items: [batch, length] int, rows of the items of their histories, newest first, 0: none.
            place: [items] int32, where an item stands among the batch's rows, 0: nowhere.
            rows: how many rows the batch has.

        Returns:
            `neighbour_entries` [pairs, 3] int32 and `neighbour_value` [pairs] float32, of the newest items alone;
            `whole` and `far` [batch, rows] float32.
        """
        table, listed = self._neighbours, items[:, :WHOLE_HISTORY]
        every = np.arange(len(items))[:, None, None]
        known, value = table.index[listed], table.value[listed]
        near = place[known]
        own = np.zeros((len(items), rows), bool)
        own[every[..., 0], place[items]] = True
        own[:, 0] = False
        barred = own
        counted = filled(self._counted[chosen].astype(np.float32), len(items))
        if counted.any():
            wanted = self._wanted(chosen, place, own.shape)
            value = self._without_own(chosen, place[self._before(chosen, len(items))], near, value, wanted, counted)
            barred = own | (wanted & (counted > 0)[:, None])
        cosine = cosines(listed, known, value, table.seen)
        whole = _summed(near, cosine, rows)
        known, near, value, cosine = (one[:, :NEIGHBOUR_HISTORY] for one in (known, near, value, cosine))
        strength = first_steps(cosine) * ~barred[every, near]
        far, score = second_steps(known, strength, table.index, table.value, table.seen)
        return {
            "whole": whole, "far": _summed(place[far], score, rows) * ~own,
            **_entries(near, value),
        }

    def reached(self, items: np.ndarray) -> np.ndarray:
        """Rows of items that go best with the newest ones of histories [batch, length]; 0 among them is no item."""
        return self._neighbours.index[items[:, :NEIGHBOUR_HISTORY], :_REACHED]

    def _before(self, chosen: np.ndarray, size: int) -> np.ndarray:
        """[size, PAIR_HISTORY] int: the items that were counted with the baskets, shown or not."""
        encoded = self._encoded
        return padded(encoded.history_index, encoded.history_offsets, chosen, (size, PAIR_HISTORY))

    def _wanted(self, chosen: np.ndarray, place: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """[batch, rows] bool: the targets of the examples that are counted; row 0 says nothing."""
        owner, target = flat_places(self._encoded.target_offsets, chosen)
        targets = np.where(self._encoded.target_counted[target], self._encoded.target_index[target], 0)
        wanted = np.zeros(shape, bool)
        wanted[owner, place[targets]] = True
        wanted[:, 0] = False
        return wanted

    def _without_own(
        self, chosen: np.ndarray, before: np.ndarray, near: np.ndarray, value: np.ndarray, wanted: np.ndarray,
        counted: np.ndarray,
    ) -> np.ndarray:
        """The counts less what an example itself has added to them, or training would read the answer.

        Args:
            chosen: which examples.
            before: [batch, PAIR_HISTORY] int, the items that were counted with the basket, among the rows.
            near, value: [batch, places, neighbours], neighbours of the newest items among the rows, and how often.
            wanted: see `_wanted`.
            counted: [batch] float32, 1: was counted.
        """
        encoded, every = self._encoded, np.arange(len(near))[:, None, None]
        in_basket = padded(encoded.history_chosen, encoded.history_offsets, chosen, near.shape[:2])
        times = filled(encoded.times[chosen], len(near))
        own = self._neighbours.own(np.arange(near.shape[1]), in_basket, times) * counted[:, None]
        value = value - own[..., None] * wanted[every, near]
        # the history's items were counted with each item of the basket as well, also those that are no longer shown
        shares = np.zeros(wanted.shape, np.float32)
        shares[every[..., 0], before] = 1.0 / (1.0 + np.arange(PAIR_HISTORY, dtype=np.float32))
        shares[:, 0] = 0.0
        weight = (self._neighbours.weight(times) * counted)[:, None, None]
        return np.maximum(value - weight * in_basket[..., None] * shares[every, near], 0.0)


def _entries(near: np.ndarray, value: np.ndarray) -> dict[str, np.ndarray]:
    """The positive values of a table [batch, newest, neighbours]: see `Near.of`."""
    pairs = np.flatnonzero((near > 0) & (value > _LEAST))
    example, of = np.divmod(pairs, near[0].size)
    entries = np.empty((len(pairs), 3), np.int32)
    entries[:, 0], entries[:, 1], entries[:, 2] = example, near.ravel()[pairs], of // near.shape[2]
    return {"neighbour_entries": entries, "neighbour_value": value.ravel()[pairs]}


def _summed(rows: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """[batch, size] float32: the values of each example [batch, …] at their rows added up, row 0 without.

    An example at a time: the sums are float64 until then, and ten times as slow where all of a batch's are at once.
    """
    table = np.empty((len(rows), size), np.float32)
    for place in range(len(rows)):
        table[place] = np.bincount(rows[place].ravel(), values[place].ravel(), size)
    table[:, 0] = 0.0
    return table
