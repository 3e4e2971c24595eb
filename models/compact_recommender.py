"""The recommender as consumers use it: plain arrays and numpy, the same logits as the network's.

A request costs the product of one vector with the catalogue and a partial sort; loading it needs neither
TensorFlow nor Keras, so that a service starts in a second (the text encoder is loaded by its first query).
The learner scores with this too: what the gate judges is what is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from .blend import AGE, TREND, Blend, ages_as_inputs, all_weights, untouched, weighed_requests
from .compact_neighbours import CompactNeighbours
from .habits import habits as habits_of_purchases
from .int8_rows import from_int8, to_int8
from .item_steps import LEAST_SEEN

RECENCY_DAYS = (1.0, 7.0, 30.0, 90.0)  # this and the next four: as in layers.py, which needs TensorFlow
VISIT_DAYS = 1 / 48
USER_FEATURES = 9
_FILE = "recommender.safetensors"
_MOST_SEEN = 30_000.0  # float16 ends at 65,504


@dataclass(frozen=True)
class Times:
    """What was known at other times than a model's own.

    Attributes:
        trend: [times, items, spans] float32, log shares of choices.
        ages: [times, items] float32, days since each item was first known.
        moment: [batch] int, which of the times each request is of.
    """

    trend: np.ndarray
    ages: np.ndarray
    moment: np.ndarray


class CompactRecommender:
    """Scores and ranks the catalogue. Row 0 of every item array is no item.

    Attributes:
        ids: [items] object, the item ids; ids[0] is empty.
        arrays: by name, as `RecommenderLearner.compact` makes them.
    """

    def __init__(self, ids: Sequence[str] | np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes the item ids, row 0 included, and the arrays."""
        self.ids = np.asarray(ids, dtype=object)
        self.index = {item: row for row, item in enumerate(self.ids) if row}
        self._hold(arrays)

    def under(self, arrays: Mapping[str, np.ndarray]) -> CompactRecommender:
        """The same catalogue under other arrays; those that are not given are these."""
        other = object.__new__(CompactRecommender)
        other.ids, other.index = self.ids, self.index
        other._hold({**self.arrays, **arrays})
        return other

    def _hold(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = {name: np.ascontiguousarray(array) for name, array in _widened(arrays).items()}
        self._popularity = self.arrays["trend"] @ self.arrays["trend_mix"]  # once: a request should cost one product
        self._later = self._weighed(self.arrays["trend"], self.arrays["ages"])
        self._lengths = np.linalg.norm(self.arrays["items"], axis=1)
        self._neighbours = CompactNeighbours(self.arrays)

    def logits(
        self, index: np.ndarray, counts: np.ndarray, views: np.ndarray, days: np.ndarray, habits: np.ndarray,
        query_vector: np.ndarray | None = None, has_query: np.ndarray | None = None,
        times: Times | None = None,
    ) -> np.ndarray:
        """The logits of all items for each request.

        Args:
            index: [batch, length] int, rows of the history's items, 0: no item.
            counts, views, days: [batch, length] float32, as in the network.
            habits: [batch, length] float32, see habits.py.
            query_vector: [batch, projected text dimension] float32 (`project`).
            has_query: [batch] bool.
            times: other times than the model's own.

        Returns:
            [batch, items] float32; column 0 belongs to no item.
        """
        arrays = self.arrays
        if times is None:
            trend, moment = arrays["trend"][None], np.zeros(len(index), np.int64)
            popularity, later = self._popularity[None], [one[None] for one in self._later]
        else:
            trend, moment = times.trend, times.moment
            popularity = (trend @ arrays["trend_mix"])[moment]
            later = [one[moment] for one in self._weighed(trend, times.ages)]
        present = (index > 0).astype(np.float32)
        features = _history_features(counts, views, days, present)
        user = _user_features(counts, views, days, present)
        wish, own = self._user(index, features, user, present)
        own_trend = trend[moment[:, None], index]
        again = self._copied(own, own_trend, features, user) * present
        if query_vector is None or has_query is None or not has_query.any():
            logits = self._products(wish)
            logits += popularity
            gate: np.ndarray = np.ones((len(index), 1), np.float32)
        else:
            searching = has_query.astype(np.float32)[:, None]
            gates = 1.0 + searching * (arrays["search_gates"] - 1.0)
            words = query_vector @ arrays["text_adapter"] @ arrays["query_kernel"]
            logits = self._products(gates[:, 2:] * wish + searching * words)
            logits += gates[:, :1] * popularity
            gate = gates[:, 1:2]
        if index.size:
            blend = Blend.of(arrays["blend"], weighed_requests(index, has_query))
            within = np.take_along_axis(logits, index, axis=1) + gate * again
            logits *= blend.outside
            within = blend.own * within + blend.bonus + blend.habit * habits
            aged = np.take_along_axis(np.broadcast_to(later[1], logits.shape), index, axis=1)
            np.put_along_axis(logits, index, within - blend.there * aged, axis=1)
            self._neighbours.add(logits, index, features, gate * blend.outside, gate * blend.own, blend.whole)
            logits += blend.there * later[0]
        return logits

    def _weighed(self, trend: np.ndarray, ages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What trend and ages add to an item outside of a history, and which part of it is the ages'; [..., items]."""
        weights = self.arrays["blend"]
        aged = ages_as_inputs(ages) @ weights[AGE]
        return trend @ weights[TREND] + aged, aged

    def user_vectors(self, index: np.ndarray, counts: np.ndarray, views: np.ndarray, days: np.ndarray) -> np.ndarray:
        """[batch, dimension] float32: what the items' vectors are multiplied with; arguments as in `logits`."""
        present = (index > 0).astype(np.float32)
        features, user = _history_features(counts, views, days, present), _user_features(counts, views, days, present)
        return self._user(index, features, user, present)[0]

    def reasons(
        self, index: np.ndarray, counts: np.ndarray, days: np.ndarray, habits: np.ndarray,
        query_vector: np.ndarray | None, columns: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """What one request's logits of some items are made of; the parts add up to the logit.

        Args:
            index, counts, days, habits: [1, length], the history, as in `logits`.
            query_vector: [1, projected text dimension]; None: no search.
            columns: [items] int, rows of the items.

        Returns:
            `popularity` (and how new the item is), `taste` (the user's vector), `words` (the query), `again` (the
            user's own item) and `together` (neighbours of the history), [items] float32 each; `because` [items] int64,
            the place in the history whose item speaks most for it by what is chosen together, -1: none.
        """
        arrays, none = self.arrays, np.zeros_like(counts)
        searching = query_vector is not None
        gates = arrays["search_gates"] if searching else np.ones(3, np.float32)
        present = (index > 0).astype(np.float32)
        features, user = _history_features(counts, none, days, present), _user_features(counts, none, days, present)
        wish, own = self._user(index, features, user, present)
        blend = Blend.of(arrays["blend"], weighed_requests(index, np.array([searching])))
        within = np.isin(columns, index[0])
        scale = np.where(within, blend.own[0], blend.outside[0])
        vectors = arrays["items"][columns]
        copied = self._copied(own, arrays["trend"][index], features, user) * present
        again: np.ndarray = np.zeros(len(self.ids), np.float32)
        np.add.at(again, index[0], (gates[1] * blend.own * copied + blend.habit * habits)[0])
        together: np.ndarray = np.zeros((1, len(self.ids)), np.float32)
        self._neighbours.add(together, index, features, gates[1] * blend.outside, gates[1] * blend.own, blend.whole)
        words: np.ndarray = np.zeros(len(columns), np.float32)
        if query_vector is not None:
            words = vectors @ (query_vector @ arrays["text_adapter"] @ arrays["query_kernel"])[0]
        later = self._later[0][columns] - within * self._later[1][columns]
        popularity = gates[0] * scale * self._popularity[columns] + blend.there[0] * later
        return {
            "popularity": popularity, "taste": gates[2] * scale * (vectors @ wish[0]), "words": words,
            "again": again[columns] + blend.bonus[0] * within, "together": together[0, columns],
            "because": self._neighbours.nearest(index[0], columns),
        }

    def project(self, query_vectors: np.ndarray) -> np.ndarray:
        """Text vectors [n, text dimension] in the directions that the model keeps."""
        return query_vectors @ self.arrays["text_projection"]

    def habits_of(self, rows: np.ndarray, days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `habits.habits`: for whoever holds a recommender and not its module."""
        return habits_of_purchases(rows, days)

    def ranked(self, logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `best`: for whoever holds a recommender and not its module."""
        return best(logits, k)

    def similarities(self, row: int) -> np.ndarray:
        """[items] float32: the cosines of all items' vectors with that of `row`."""
        vectors = self.arrays["items"]
        lengths = np.maximum(self._lengths * self._lengths[row], 1e-12)
        return (vectors @ vectors[row]) / lengths

    def _products(self, wish: np.ndarray) -> np.ndarray:
        """[batch, items]: for a single request the product with a vector, twice as fast as that with a matrix."""
        if len(wish) == 1:
            return (self.arrays["items"] @ wish[0])[None, :]
        return wish @ self.arrays["items"].T

    def _user(
        self, index: np.ndarray, features: np.ndarray, user: np.ndarray, present: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The users' vectors [batch, dimension] and their items' [batch, length, dimension]."""
        arrays = self.arrays
        own = arrays["items"][index]
        score = own @ arrays["weigh_item"] + features @ arrays["weigh_features"] - 1e9 * (1.0 - present[..., None])
        if index.shape[1]:
            score -= score.max(axis=1, keepdims=True)
        weight = np.exp(score)
        weight *= present[..., None] / np.maximum(weight.sum(axis=1, keepdims=True), 1e-30)
        pooled = np.matmul(weight.transpose(0, 2, 1), own).reshape(len(index), -1)
        pooled = np.concatenate([pooled, user], axis=1)
        hidden = _silu(pooled @ arrays["user_hidden_kernel"] + arrays["user_hidden_bias"])
        return pooled @ arrays["user_direct_kernel"] + hidden @ arrays["user_output_kernel"], own

    def _copied(self, own: np.ndarray, trend: np.ndarray, features: np.ndarray, user: np.ndarray) -> np.ndarray:
        arrays = self.arrays
        kernel = arrays["copy_hidden_kernel"]
        about = np.concatenate([features, trend], axis=-1)
        known = about.shape[-1]
        mixed = about @ kernel[:known] + (user @ kernel[known:])[:, None, :]
        hidden = _silu(mixed + arrays["copy_hidden_bias"])
        popularity = trend @ arrays["trend_mix"]
        logit = features @ arrays["copy_linear"] + arrays["copy_popularity"] * popularity * features[..., 0]
        return logit + own @ arrays["copy_again"] + hidden @ arrays["copy_output_kernel"]

    def rounded(self) -> CompactRecommender:
        """The same as a consumer loads it: item vectors rounded to int8, counts to float16. The gate judges this."""
        return CompactRecommender(self.ids, opened(packed(self.arrays)))

    def save(self, folder: Path) -> None:
        """Writes `recommender.safetensors`: the arrays, rounded, and the ids as UTF-8 with their offsets."""
        folder.mkdir(parents=True, exist_ok=True)
        encoded = [str(item).encode() for item in self.ids]
        offsets = np.cumsum([0, *(len(item) for item in encoded)], dtype=np.int64)
        text = np.frombuffer(b"".join(encoded) or b"\0", np.uint8)
        held = {name: np.ascontiguousarray(array) for name, array in self.stored().items()}
        save_file({**held, "ids_utf8": text.copy(), "ids_offsets": offsets}, folder / _FILE)

    def stored(self) -> dict[str, np.ndarray]:
        """The arrays as `save` writes them."""
        return packed(self.arrays)

    @classmethod
    def load(cls, folder: Path) -> CompactRecommender:
        """What `save` wrote."""
        ids, arrays = read_arrays(folder)
        return cls(ids, opened(arrays))


def read_arrays(folder: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The ids and the arrays that `save` wrote, packed."""
    arrays = load_file(folder / _FILE)
    text, offsets = arrays.pop("ids_utf8").tobytes(), arrays.pop("ids_offsets")
    return [text[start:end].decode() for start, end in zip(offsets[:-1], offsets[1:], strict=True)], arrays


def packed(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with the large ones smaller: `items` int8 with a scale a row, trend and neighbours float16.

    Neighbours' counts grow with time (they decay forward); only their ratios matter, so all are divided by the largest.
    """
    items, scale = to_int8(arrays["items"])
    most = max(float(arrays["neighbour_seen"].max(initial=0.0)), LEAST_SEEN)
    shrink = np.float32(min(1.0, _MOST_SEEN / most))
    return {
        **arrays, "items": items, "items_scale": scale,
        "trend": arrays["trend"].astype(np.float16), "ages": arrays["ages"].astype(np.float16),
        "neighbour_value": (arrays["neighbour_value"] * shrink).astype(np.float16),
        "neighbour_seen": arrays["neighbour_seen"] * shrink,
    }


def opened(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `packed` made, for products in float32."""
    arrays = dict(stored)
    arrays["items"] = from_int8(arrays["items"], arrays.pop("items_scale"))
    for name in {"trend", "neighbour_value", "ages"} & set(arrays):
        arrays[name] = arrays[name].astype(np.float32)
    return arrays


def _widened(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a version of fewer inputs, those that it did not have counting for nothing."""
    nothing = np.zeros((), np.float32)
    widened = {
        "neighbour_own_gain": np.zeros(2, np.float32), "neighbour_far_gain": nothing,
        "neighbour_far_log_scale": nothing, "neighbour_whole_gain": np.zeros(2, np.float32),
        "neighbour_whole_log_scale": nothing, "blend": untouched(), **arrays,
    }
    widened["blend"] = all_weights(widened["blend"])
    widened.setdefault("ages", np.zeros(len(widened["trend"]), np.float32))
    if "weigh_item" in arrays:
        user = arrays["weigh_item"].size + USER_FEATURES
        copied = len(arrays["weigh_features"]) + len(arrays["trend_mix"]) + USER_FEATURES
        inputs_of = {"user_hidden_kernel": user, "user_direct_kernel": user, "copy_hidden_kernel": copied}
        for name, inputs in inputs_of.items():
            widened[name] = np.pad(arrays[name], [(0, inputs - len(arrays[name])), (0, 0)])
    return widened


def best(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best columns of each row, best first, the lower column first among equals, and their values.

    Args:
        logits: [batch, items] float32; columns of -inf are never answered but left as -1 at the end.
        k: how many.

    Returns:
        [batch, k] int64 and [batch, k] float32.
    """
    k_there = min(k, logits.shape[1])
    columns = _largest(logits, k_there)
    values = np.take_along_axis(logits, columns, axis=1)
    order = np.lexsort((columns, -values), axis=1)
    columns, values = np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1)
    columns = np.where(np.isneginf(values), -1, columns)
    if k == k_there:  # np.pad costs as much where it adds nothing
        return columns, values
    missing = ((0, 0), (0, k - k_there))
    return np.pad(columns, missing, constant_values=-1), np.pad(values, missing, constant_values=-np.inf)


def _largest(logits: np.ndarray, k: int) -> np.ndarray:
    """[batch, k] int64: the columns of the `k` largest of each row, in no order; of equal ones the lower columns.

    A partition alone keeps any of those that equal the smallest one kept: items of which nothing is known tie.
    """
    items = logits.shape[1]
    if not 0 < k < items:
        return np.tile(np.arange(items), (len(logits), 1))[:, :k]
    columns = np.argpartition(logits, items - k, axis=1)[:, -k:]
    least = np.take_along_axis(logits, columns, axis=1).min(axis=1, keepdims=True)
    there = logits >= least
    if np.count_nonzero(there) == columns.size:  # ten times as fast as the sums of the rows
        return columns
    for row in np.flatnonzero(there.sum(axis=1) > k):
        above, equal = np.flatnonzero(logits[row] > least[row]), np.flatnonzero(logits[row] == least[row])
        columns[row] = np.concatenate([above, equal[: k - len(above)]])
    return columns


def _history_features(counts: np.ndarray, views: np.ndarray, days: np.ndarray, present: np.ndarray) -> np.ndarray:
    """As `layers.history_features`."""
    counts, views = counts * present, views * present
    bought = (counts > 0).astype(np.float32)
    log_count = np.log(np.maximum(counts, 1.0))
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    age = np.log1p(days)
    features = np.empty((*counts.shape, 8 + len(RECENCY_DAYS)), np.float32)  # filled in place: np.stack costs as much
    features[..., 0] = bought
    features[..., 1] = bought * (log_count - np.log(total))
    features[..., 2] = bought * age
    features[..., 3] = 1.0 - bought
    features[..., 4] = log_count
    features[..., 5] = np.log1p(views)
    features[..., 6] = age
    features[..., 7] = 1.0 / (1.0 + np.arange(counts.shape[1], dtype=np.float32))
    features[..., 8:] = np.exp(-days[..., None] / np.array(RECENCY_DAYS, np.float32))
    features *= present[..., None]
    return features


def _user_features(counts: np.ndarray, views: np.ndarray, days: np.ndarray, present: np.ndarray) -> np.ndarray:
    """As `layers.user_features`."""
    days = days * present
    oldest = days.max(axis=1, initial=0.0)
    newest = np.where(present > 0, days, oldest[:, None]).min(axis=1, initial=np.inf)
    newest = np.minimum(newest, oldest)  # a history of length 0 has neither
    visits = present.copy()  # 1 where a visit begins
    visits[:, 1:] *= days[:, 1:] - days[:, :-1] > VISIT_DAYS
    features = np.zeros((len(days), USER_FEATURES), np.float32)
    features[:, 1] = items = present.sum(axis=1)
    features[:, 2] = bought = (counts * present).sum(axis=1)
    features[:, 3] = looked = (views * present).sum(axis=1)
    features[:, 4] = visits = visits.sum(axis=1)
    features[:, 5] = (present * (days - newest[:, None] <= VISIT_DAYS)).sum(axis=1)
    features[:, 6] = (bought + looked) / np.maximum(visits, 1.0)
    features[:, 7] = newest
    features[:, 8] = oldest - newest
    np.log1p(features, out=features)
    features[:, 0] = items > 0
    return features


def _silu(values: np.ndarray) -> np.ndarray:
    return values / (1.0 + np.exp(-np.clip(values, -80.0, 80.0)))
