"""What the recommender counts: what was chosen lately, and together; and what it has taken in but not counted yet.

What is taught is taught with the counts as they stood before it, which is what a model in service reads of whom it
answers. With their own window counted (each example's own part taken off) training saw what went together in that very
week, and learnt to trust it: DIGINETICA's periods 2 to 5, Recall@20 and MRR@20: 0.497, 0.173 so, 0.499, 0.197 as here.
An item that was looked at before is wanted again by 22 of 100 in period 2; the models foresaw 14 and 19. The first
examples of all have no counts before them: they are counted first, and training takes each one's own part off again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.tasks.recommend_encoded import Encoded
from pipeline.tasks.recommend_neighbours import Neighbours
from pipeline.tasks.recommend_trends import Trends


class Counters:
    """Both counts of one learner.

    Attributes:
        trends: how often each item was chosen lately.
        neighbours: which items are chosen together.
        waiting: whether what was taken in last waits to be counted.
    """

    def __init__(self, trends: Trends, neighbours: Neighbours, *, waiting: bool = False) -> None:
        """Takes them as they are."""
        self.trends, self.neighbours, self.waiting = trends, neighbours, waiting

    def refuse_more(self) -> None:
        """Refuses to take in more while something waits.

        Raises:
            RuntimeError: something does.
        """
        if self.waiting:
            raise RuntimeError(
                "What a recommender grew by must be counted before it grows again; it is not. Call count() with the "
                "examples of the last grow()."
            )

    def grow(self, items: int) -> None:
        """Makes room for `items` rows, row 0 (no item) included."""
        self.trends.grow(items)
        self.neighbours.grow(items)

    def keep(self, kept: np.ndarray, moved: np.ndarray) -> None:
        """Drops all rows but `kept` ([m] int, row 0 first); `moved` [items] is each row's new place, 0: gone."""
        self.trends.keep(kept, moved)
        self.neighbours.keep(kept, moved)

    def take_in(self, encoded: Encoded) -> None:
        """The first examples of all are counted now, all later ones wait."""
        if self.trends.time:
            self.waiting = len(encoded) > 0
        else:
            self._count(encoded)

    def count(self, encoded: Encoded) -> None:
        """Counts what waits."""
        self._count(encoded)
        self.waiting = False

    def hold(self, replayed: np.ndarray) -> bool | np.ndarray:
        """Whether the examples that are taught are counted already; [n] bool: the replayed ones alone."""
        return replayed if self.waiting else True

    def arrays(self) -> dict[str, np.ndarray]:
        """Both as arrays, for a checkpoint."""
        return self.trends.arrays("trends") | self.neighbours.arrays("neighbours")

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], *, waiting: bool) -> Counters:
        """What `arrays` wrote."""
        trends, neighbours = Trends.from_arrays(arrays, "trends"), Neighbours.from_arrays(arrays, "neighbours")
        return cls(trends, neighbours, waiting=waiting)

    def _count(self, encoded: Encoded) -> None:
        times = np.repeat(encoded.times, np.diff(encoded.target_offsets))
        self.trends.count(encoded.target_index, times)
        self.neighbours.count(encoded.chosen)
