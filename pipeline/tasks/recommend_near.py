"""What goes with the items of a batch's histories, and what goes with that: counts that do not tell the answer.

An example that was counted finds its own basket in the counts; what it has added is taken off before it is taught.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.item_steps import WHOLE_HISTORY, cosines, first_steps, second_steps
from models.layers import NEIGHBOUR_HISTORY
from pipeline.tasks.recommend_encoded import Encoded, filled, flat_places, padded
from pipeline.tasks.recommend_neighbours import Neighbours, place_weights

_REACHED = 8  # of each item's neighbours: those of 64 examples fill 8,000 rows at most
_LEAST = 1e-6  # of a count: what rounding leaves when an example's own part is taken off


class Near:
    """The neighbours of the histories of some examples."""

    def __init__(self, encoded: Encoded, neighbours: Neighbours, counted: bool | np.ndarray) -> None:
        """Takes the examples, the counts, and whether these hold the examples; [n] bool: each of them."""
        self._encoded, self._neighbours = encoded, neighbours
        self._counted = np.broadcast_to(counted, len(encoded))
        self._shares = neighbours.shares(encoded.chosen) if self._counted.any() else np.zeros(len(encoded), np.float32)

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
            wanted, new = self._wanted(chosen, place, own.shape)
            value = self._without_own(chosen, near, value, wanted, new, counted)
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

    def _wanted(
        self, chosen: np.ndarray, place: np.ndarray, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """[batch, rows] bool each: the targets of the examples that are counted, and those outside the history."""
        encoded = self._encoded
        owner, target = flat_places(encoded.target_offsets, chosen)
        rows = place[np.where(encoded.target_counted[target], encoded.target_index[target], 0)]
        wanted, new = np.zeros(shape, bool), np.zeros(shape, bool)
        wanted[owner, rows] = True
        outside = encoded.target_place[target] < 0
        new[owner[outside], rows[outside]] = True
        wanted[:, 0], new[:, 0] = False, False  # row 0 is no item
        return wanted, new

    def _without_own(
        self, chosen: np.ndarray, near: np.ndarray, value: np.ndarray, wanted: np.ndarray, new: np.ndarray,
        counted: np.ndarray,
    ) -> np.ndarray:
        """The counts less what an example itself has added to them, or training would read the answer.

        Args:
            chosen: which examples.
            near, value: [batch, places, neighbours], neighbours of the newest items among the rows, and how often.
            wanted, new: see `_wanted`.
            counted: [batch] float32, 1: was counted.
        """
        encoded, every = self._encoded, np.arange(len(near))[:, None, None]
        in_basket = padded(encoded.history_chosen, encoded.history_offsets, chosen, near.shape[:2])
        weight = self._neighbours.weight(encoded.times[chosen]) * self._shares[chosen]
        paired = place_weights(near.shape[1])[:, None] * new[every, near] + in_basket[..., None] * wanted[every, near]
        added = (filled(weight, len(near)) * counted)[:, None, None] * paired
        return np.maximum(value - added, 0.0).astype(np.float32)


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
