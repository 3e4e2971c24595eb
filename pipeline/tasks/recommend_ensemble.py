"""The versions before this one that answer with it (`Methods.ensemble`): their weights, kept in the checkpoint.

Only what training moves is kept; what is counted and what is known of items is the newest's for all of them. The rows
of older versions grow and go with the catalogue: of an item that came later an older version knows text and category.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from models.growing import fitted, lengthened
from models.recommender import Recommender
from pipeline.tasks.recommend_items import ItemTables

ROWS, CATEGORY_ROWS = "items/rows", "categories/rows"
_PREFIX = "elders/{}/"


class Elders:
    """The weights of the versions before this one, newest first."""

    def __init__(self) -> None:
        """There is none."""
        self._weights: list[dict[str, np.ndarray]] = []

    def __len__(self) -> int:
        """How many."""
        return len(self._weights)

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        """Each version's weights by path, the rows of items and categories among them."""
        return iter(self._weights)

    def remember(self, weights: Mapping[str, np.ndarray], most: int) -> None:
        """Puts a version's weights (copied by whoever gives them) before the others; the oldest over `most` go."""
        self._weights = [dict(weights), *self._weights][:most]

    def forget(self) -> None:
        """From now on there is none."""
        self._weights = []

    def grow(self, items: int, categories: int) -> None:
        """Makes room for so many items and categories."""
        for one in self._weights:
            one[ROWS] = lengthened(one[ROWS], items)
            one[CATEGORY_ROWS] = lengthened(one[CATEGORY_ROWS], categories)

    def keep(self, kept: np.ndarray) -> None:
        """Drops the rows of all items but `kept` ([m] int, row 0 first)."""
        for one in self._weights:
            one[ROWS] = one[ROWS][kept]

    def compact_weights(self, network: Recommender, tables: ItemTables) -> list[dict[str, np.ndarray]]:
        """What a consumer needs of each; `network` is any of the same sizes, and is overwritten."""
        found, everything = [], np.arange(len(tables))
        for weights in self._weights:
            for variable in network.trainable_variables:
                variable.assign(fitted(weights.get(variable.path), variable.shape))
            rows = tables.rows_under(weights[ROWS], weights[CATEGORY_ROWS], everything)
            found.append(compact_weights(network, tables, rows))
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a checkpoint."""
        return {
            _PREFIX.format(place) + name: np.array(array)
            for place, one in enumerate(self._weights) for name, array in one.items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Elders:
        """What `arrays` wrote."""
        elders = cls()
        while held := [name for name in arrays if name.startswith(_PREFIX.format(len(elders)))]:
            prefix = _PREFIX.format(len(elders))
            elders._weights.append({name.removeprefix(prefix): np.array(arrays[name]) for name in held})
        return elders


def compact_weights(network: Recommender, tables: ItemTables, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What a consumer needs of a network's weights, and the items' vectors from their rows [items, dimension]."""
    user, copy, near, tower = network.user_tower, network.copy_head, network.neighbour_head, network.item_tower
    copy_kernel, copy_bias = copy.hidden_weights()
    weights = {
        "weigh_item": user.weigh_item, "weigh_features": user.weigh_features,
        "user_hidden_kernel": user.hidden_kernel, "user_hidden_bias": user.hidden_bias,
        "user_direct_kernel": user.direct_kernel, "user_output_kernel": user.output_kernel,
        "copy_linear": copy.linear, "copy_popularity": copy.popularity, "copy_again": copy.again,
        "copy_hidden_kernel": copy_kernel, "copy_hidden_bias": copy_bias,
        "copy_output_kernel": copy.output_kernel, "trend_mix": network.trend_head.mix,
        "neighbour_features": near.weigh_features, "neighbour_gain": near.gain,
        "neighbour_own_gain": near.own_gain,
        "neighbour_log_scale": near.log_scale, "neighbour_far_gain": near.far_gain,
        "neighbour_far_log_scale": near.far_log_scale, "neighbour_whole_gain": near.whole_gain,
        "neighbour_whole_log_scale": near.whole_log_scale, "text_adapter": tower.text_adapter,
        "query_kernel": network.query_kernel, "search_gates": network.search_gates,
    }
    everything = np.arange(len(rows))
    vectors = tower(rows, tables.text(everything), tables.price(everything))
    return {name: variable.numpy() for name, variable in weights.items()} | {"items": vectors.numpy()}
