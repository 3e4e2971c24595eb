"""What is chosen together, as consumers use it: the numpy twin of `layers.NeighbourHead`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .item_steps import LEAST_SEEN, WHOLE_HISTORY, cosines, first_steps, second_steps

NEIGHBOUR_HISTORY = 16  # as in layers.py, which needs TensorFlow


class CompactNeighbours:
    """The neighbours of every item and how they are weighed."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes a recommender's arrays, of which those named `neighbour_...` are read when they are needed."""
        self._arrays = arrays

    def add(
        self, logits: np.ndarray, index: np.ndarray, features: np.ndarray, outside: np.ndarray, within: np.ndarray,
        whole: np.ndarray,
    ) -> None:
        """Adds, in place, what goes with the items of each history; for its own items by gains of their own.

        Args:
            logits: [batch, items] float32.
            index: [batch, length] int, rows of the histories' items, newest first, 0: none.
            features: [batch, length, HISTORY_FEATURES] float32.
            outside, within: [batch, 1] float32, how much of it counts for items outside of the history and within.
            whole: [batch, 1] float32, gain of the whole history for items outside of it, beside its own one.
        """
        arrays, size = self._arrays, logits.shape[1]
        newest, features = index[:, :NEIGHBOUR_HISTORY], features[:, :NEIGHBOUR_HISTORY]
        weight = np.exp(np.clip(features @ arrays["neighbour_features"], -8.0, 8.0)) * (newest > 0)[..., None]
        share = np.maximum(arrays["neighbour_seen"][newest], LEAST_SEEN)[..., None]
        weight = weight * np.concatenate([1.0 / share, 1.0 / np.sqrt(share)], axis=-1)
        columns, values = arrays["neighbour_index"][newest], arrays["neighbour_value"][newest]
        request, place, rank = np.nonzero(columns)
        key, pair = np.unique(request * size + columns[request, place, rank], return_inverse=True)
        owner, column = np.divmod(key, size)
        own = np.sort((np.arange(len(index))[:, None] * size + index).ravel())
        inside = own[np.minimum(own.searchsorted(key), len(own) - 1)] == key  # as np.isin, at less cost for few
        gains = np.where(inside[:, None], arrays["neighbour_own_gain"], arrays["neighbour_gain"])  # [pairs, norms]
        weighed = values[request, place, rank][:, None] * weight[request, place]
        total = np.zeros(len(key), np.float32)
        for norm in range(weight.shape[-1]):
            score = np.bincount(pair, weighed[:, norm], len(key)).astype(np.float32)
            if norm:
                score /= np.sqrt(np.maximum(arrays["neighbour_seen"][column], LEAST_SEEN))
            total += gains[:, norm] * np.log1p(score * np.exp(-arrays["neighbour_log_scale"][norm]))
        logits[owner, column] += np.where(inside, within[owner, 0], outside[owner, 0]) * total
        if arrays["neighbour_far_gain"]:
            self._add_second_steps(logits, newest, columns, values, own, outside)
        whole = outside * arrays["neighbour_whole_gain"][0] + whole
        whole_within = within * arrays["neighbour_whole_gain"][1]
        if whole.any() or whole_within.any():
            self._add_whole(logits, index[:, :WHOLE_HISTORY], own, whole, whole_within)

    def _add_whole(
        self, logits: np.ndarray, items: np.ndarray, own: np.ndarray, outside: np.ndarray, within: np.ndarray
    ) -> None:
        """Adds, in place, what goes with a longer history, each of its items alike.

        Args:
            logits: [batch, items] float32.
            items: [batch, places] int, the history.
            own: see `_add_second_steps`.
            outside, within: [batch, 1] float32, the gains of items outside of the history and within.
        """
        arrays, size = self._arrays, logits.shape[1]
        near, cosine = self._near(items)
        there = cosine > 0
        key, pair = np.unique((np.arange(len(items))[:, None, None] * size + near)[there], return_inverse=True)
        total = np.bincount(pair, cosine[there], len(key)).astype(np.float32)
        inside = own[np.minimum(own.searchsorted(key), len(own) - 1)] == key
        total = np.log1p(total * np.exp(-arrays["neighbour_whole_log_scale"]))
        owner, column = np.divmod(key, size)
        logits[owner, column] += np.where(inside, within[owner, 0], outside[owner, 0]) * total

    def _add_second_steps(
        self, logits: np.ndarray, newest: np.ndarray, columns: np.ndarray, values: np.ndarray, own: np.ndarray,
        outside: np.ndarray,
    ) -> None:
        """Adds, in place, what goes with what goes with the newest items; nothing to the history's own.

        Args:
            logits: [batch, items] float32.
            newest: [batch, places] int.
            columns, values: [batch, places, neighbours], their neighbours and how often.
            own: [batch x length] int, ascending: request x items + row of every item of the histories.
            outside: [batch, 1] float32, how much of it counts.
        """
        arrays, size = self._arrays, logits.shape[1]
        request = np.arange(len(newest))[:, None, None] * size

        def inside(rows: np.ndarray) -> np.ndarray:
            key = request + rows
            return own[np.minimum(own.searchsorted(key), len(own) - 1)] == key

        seen = arrays["neighbour_seen"]
        strength = first_steps(cosines(newest, columns, values, seen)) * ~inside(columns)
        reached, score = second_steps(columns, strength, arrays["neighbour_index"], arrays["neighbour_value"], seen)
        there = (score > 0) & ~inside(reached)
        key, pair = np.unique((request + reached)[there], return_inverse=True)
        total = np.bincount(pair, score[there], len(key)).astype(np.float32)
        owner, column = np.divmod(key, size)
        total = np.log1p(total * np.exp(-arrays["neighbour_far_log_scale"]))
        logits[owner, column] += outside[owner, 0] * arrays["neighbour_far_gain"] * total

    def nearest(self, history: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """[items] int64: the place in the history whose item leads to each item most, in one step or two, -1: none.

        Args:
            history: [length] int, rows of the history's items, newest first.
            columns: [items] int, rows of the items.
        """
        places = history[:WHOLE_HISTORY]
        if not len(places):
            return np.full(len(columns), -1, np.int64)
        near, strength = self._near(places)  # [places, neighbours]
        direct = ((near[..., None] == columns) * strength[..., None]).sum(axis=1)  # [places, items]
        second = self._second(history[:NEIGHBOUR_HISTORY], columns, len(places))
        leads = np.where(direct.max(axis=0) > 0, direct, second)
        return np.where(leads.max(axis=0) > 0, leads.argmax(axis=0), -1)

    def _near(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The neighbours of items [...] and the cosines with them, both [..., neighbours]."""
        near, value = self._arrays["neighbour_index"][items], self._arrays["neighbour_value"][items]
        return near, cosines(items, near, value, self._arrays["neighbour_seen"])

    def _second(self, newest: np.ndarray, columns: np.ndarray, places: int) -> np.ndarray:
        """[places, items]: how much each place leads to the items in two steps; those beyond the newest do not."""
        near, strength = self._near(newest)
        strength = first_steps(strength[None])[0]
        reached, onward = self._near(near)  # [newest, neighbours, neighbours]
        leads = np.zeros((places, len(columns)))
        for number, column in enumerate(columns):
            leads[: len(newest), number] = ((reached == column) * onward * strength[..., None]).sum(axis=(1, 2))
        return leads
