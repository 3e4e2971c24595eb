"""Several versions of the recommender that answer together: the mean of their logits over one catalogue.

The mean of the last models of one training run is often better than each (snapshot ensembles: Huang et al., ICLR 2017).
What was counted (trend, neighbours) is the newest's for all; weights and item vectors are each version's own. A request
costs as many products as there are versions. Similar items and users' vectors are the newest's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .compact_recommender import CompactRecommender, Times, opened, packed, read_arrays

_ELDER = "elder{}/"


class CompactEnsemble(CompactRecommender):
    """The newest version, and what older ones say of the same catalogue.

    Attributes:
        elders: the older versions, each with the newest's counts.
    """

    def __init__(
        self, ids: Sequence[str] | np.ndarray, arrays: Mapping[str, np.ndarray],
        elders: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        """Takes the newest as CompactRecommender does, and the arrays in which each older one differs, newest first."""
        super().__init__(ids, arrays)
        self._own = tuple(elders)
        self.elders = tuple(self.under(elder) for elder in elders)

    def logits(
        self, index: np.ndarray, counts: np.ndarray, views: np.ndarray, days: np.ndarray, habits: np.ndarray,
        query_vector: np.ndarray | None = None, has_query: np.ndarray | None = None,
        times: Times | None = None,
    ) -> np.ndarray:
        """[batch, items] float32: the mean of all versions' logits; arguments as CompactRecommender's."""
        given = (index, counts, views, days, habits, query_vector, has_query, times)
        total = super().logits(*given)
        for elder in self.elders:
            total += elder.logits(*given)
        total /= 1 + len(self.elders)
        return total

    def reasons(
        self, index: np.ndarray, counts: np.ndarray, days: np.ndarray, habits: np.ndarray,
        query_vector: np.ndarray | None, columns: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Each part's mean over the versions; `because` is what was counted, hence the same of all."""
        parts = super().reasons(index, counts, days, habits, query_vector, columns)
        others = [elder.reasons(index, counts, days, habits, query_vector, columns) for elder in self.elders]
        return {
            name: part if name == "because" else np.mean([part, *(one[name] for one in others)], axis=0)
            for name, part in parts.items()
        }

    def rounded(self) -> CompactEnsemble:
        """The same as a consumer loads it."""
        newest = opened(packed(self.arrays))
        elders = [opened(self._packed(elder)) for elder in self._own]
        return CompactEnsemble(self.ids, newest, elders)

    def stored(self) -> dict[str, np.ndarray]:
        """The newest's arrays, and the older ones' by `elder<place>/<name>`."""
        held = super().stored()
        for place, elder in enumerate(self._own, start=1):
            held |= {_ELDER.format(place) + name: array for name, array in self._packed(elder).items()}
        return held

    def _packed(self, elder: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        together = packed({**self.arrays, **elder})
        return {name: together[name] for name in [*elder, "items_scale"]}


def load_recommender(folder: Path) -> CompactRecommender:
    """What `save` wrote: one version, or several that answer together."""
    ids, arrays = read_arrays(folder)
    newest = {name: array for name, array in arrays.items() if not name.startswith("elder")}
    elders: list[dict[str, np.ndarray]] = []
    while prefixed := [name for name in arrays if name.startswith(_ELDER.format(len(elders) + 1))]:
        elders.append(opened({name.split("/", 1)[1]: arrays[name] for name in prefixed}))
    return CompactEnsemble(ids, opened(newest), elders) if elders else CompactRecommender(ids, opened(newest))
