"""The recommender as a TensorFlow graph for TensorFlow Serving: the same answers as the numpy form, by ids alone.

Made from the arrays of `compact_recommender.py` (what the gate judged), so that it needs no checkpoint. Texts are not
read here: tokenizers have no TensorFlow operation, so `search` takes the query's vector as the text encoder gives it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from .blend import AGE, HABIT, PLAIN, TREND, ages_as_inputs
from .compact_ensemble import CompactEnsemble
from .compact_neighbours import NEIGHBOUR_HISTORY
from .compact_recommender import RECENCY_DAYS, VISIT_DAYS, CompactRecommender
from .habits import HABIT_DECAY, PAUSE_DAYS
from .item_steps import FIRST_STEPS, LEAST_SEEN, WHOLE_HISTORY

MOST_HISTORY = 256  # distinct items, as recommender_service.py takes
_OLDEST_DAYS = 36_500.0
_COARSENESS = 2.0**-23  # of float32: of days a year ago some seconds, which are not to part a visit in two
_Graph = dict[str, tf.Tensor]


class RecommenderGraph(tf.Module):
    """Three signatures; `save` writes them. Ids that are not known, and empty ones, are passed over."""

    def __init__(self, recommender: CompactRecommender) -> None:
        """Takes the compact form."""
        super().__init__(name="recommender")
        ids = [str(one) for one in recommender.ids]
        self._ids = tf.Variable(ids, trainable=False)
        rows = tf.lookup.KeyValueTensorInitializer(ids[1:], tf.range(1, len(ids), dtype=tf.int64))
        self._index = tf.lookup.StaticHashTable(rows, 0)
        self._arrays = {
            name: tf.Variable(np.asarray(array), trainable=False) for name, array in recommender.arrays.items()
        }
        elders = recommender.elders if isinstance(recommender, CompactEnsemble) else ()
        self._elders = [RecommenderGraph(one) for one in elders]
        self._popularity = tf.Variable(recommender.arrays["trend"] @ recommender.arrays["trend_mix"], trainable=False)
        aged = ages_as_inputs(recommender.arrays["ages"]) @ recommender.arrays["blend"][AGE]
        self._aged = tf.Variable(aged, trainable=False)

    def save(self, folder: Path) -> None:
        """Writes the SavedModel: what TensorFlow Serving takes as one version's folder."""
        kinds = {"history": tf.string, "history_days": tf.float32}
        history = {name: tf.TensorSpec((None, None), kind, name) for name, kind in kinds.items()}
        k = tf.TensorSpec((), tf.int32, "k")
        vector = tf.TensorSpec((None, self._arrays["text_projection"].shape[0]), tf.float32, "query_vector")
        recommend = tf.function(self.recommend).get_concrete_function(**history, k=k)
        signatures = {
            "serving_default": recommend, "recommend": recommend,
            "search": tf.function(self.search).get_concrete_function(**history, query_vector=vector, k=k),
            "similar": tf.function(self.similar).get_concrete_function(
                item_id=tf.TensorSpec((None,), tf.string, "item_id"), k=k
            ),
        }
        tf.saved_model.save(self, str(folder), signatures=signatures)

    def recommend(self, history: tf.Tensor, history_days: tf.Tensor, k: tf.Tensor) -> _Graph:
        """What histories want next.

        Args:
            history: [batch, purchases] string, newest first, an id once for each purchase, filled up with "".
            history_days: [batch, purchases] float32, days since each.
            k: how many items.

        Returns:
            `item_ids` [batch, k] string, best first, and `scores` [batch, k] float32.
        """
        return self._best(self._logits(history, history_days, None), k)

    def search(self, history: tf.Tensor, history_days: tf.Tensor, query_vector: tf.Tensor, k: tf.Tensor) -> _Graph:
        """As `recommend`, for a query's vector [batch, text dimension] float32 of the version's text encoder."""
        return self._best(self._logits(history, history_days, query_vector), k)

    def similar(self, item_id: tf.Tensor, k: tf.Tensor) -> _Graph:
        """Items like each of `item_id` [batch] string; one that is not known gets popular items."""
        row, items = self._index.lookup(item_id), self._arrays["items"]
        lengths = tf.norm(items, axis=1)
        products = tf.matmul(tf.gather(items, row), items, transpose_b=True)
        cosines = products / tf.maximum(lengths[None] * tf.gather(lengths, row)[:, None], 1e-12)
        cosines = tf.where(tf.one_hot(row, tf.shape(items)[0]) > 0, -np.inf, cosines)
        empty = tf.zeros((tf.shape(item_id)[0], 0))
        popular = self._logits(tf.zeros_like(empty, tf.string), empty, None)
        return self._best(tf.where(row[:, None] > 0, cosines, popular), k)

    def _best(self, logits: tf.Tensor, k: tf.Tensor) -> _Graph:
        logits = tf.concat([tf.fill((tf.shape(logits)[0], 1), -np.inf), logits[:, 1:]], axis=1)
        scores, columns = tf.math.top_k(logits, tf.minimum(k, tf.shape(logits)[1] - 1))
        return {"item_ids": tf.gather(self._ids, columns), "scores": scores}

    def _logits(self, history: tf.Tensor, history_days: tf.Tensor, query_vector: tf.Tensor | None) -> tf.Tensor:
        """[batch, items]: the mean over the versions that answer together, one or several."""
        versions = [self, *self._elders]
        return tf.add_n([one._own_logits(history, history_days, query_vector) for one in versions]) / len(versions)

    def _own_logits(self, history: tf.Tensor, history_days: tf.Tensor, query_vector: tf.Tensor | None) -> tf.Tensor:
        """[batch, items]: see CompactRecommender.logits, of which this is the graph."""
        arrays = self._arrays
        index, counts, days, habits = self._distinct(history, history_days)
        present = tf.cast(index > 0, tf.float32)
        features, user = _history_features(counts, days, present), _user_features(counts, days, present)
        own = tf.gather(arrays["items"], index)
        wish = self._wish(own, features, user, present)
        gates = arrays["search_gates"] if query_vector is not None else tf.ones(3)
        if query_vector is not None:
            projected = tf.matmul(query_vector, arrays["text_projection"])
            words = tf.matmul(tf.matmul(projected, arrays["text_adapter"]), arrays["query_kernel"])
            wish = gates[2] * wish + words
        logits = tf.matmul(wish, arrays["items"], transpose_b=True) + gates[0] * self._popularity
        again = self._again(own, tf.gather(arrays["trend"], index), features, user) * present
        places = _places(index)
        copied = tf.tensor_scatter_nd_add(tf.zeros_like(logits), places, again)
        is_own = tf.tensor_scatter_nd_max(tf.zeros_like(logits), places, present)
        whole = self._whole(index[:, :WHOLE_HISTORY], is_own)
        near = self._near(index, features, is_own, whole)
        logits += gates[1] * (copied + near)
        return logits if query_vector is not None else self._blended(logits, index, is_own, whole, habits)

    def _blended(
        self, logits: tf.Tensor, index: tf.Tensor, is_own: tf.Tensor, whole: tf.Tensor, habits: tf.Tensor
    ) -> tf.Tensor:
        """The logits [batch, items] weighed as blend.py says, where there is a history; `habits` [batch, length]."""
        weights = self._arrays["blend"]
        outside, own, bonus, of_whole = (weights[place] for place in range(PLAIN))
        blended = logits * (outside + is_own * (own - outside)) + is_own * bonus
        blended += (1.0 - is_own) * (of_whole * whole + self._aged)
        blended += tf.linalg.matvec(self._arrays["trend"], weights[TREND])
        blended += weights[HABIT] * tf.scatter_nd(_places(index), habits, tf.shape(logits, tf.int64))
        return tf.where(tf.reduce_any(index > 0, axis=1, keepdims=True), blended, logits)

    def _distinct(self, history: tf.Tensor, history_days: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Distinct known items, newest first: rows, how often, days since the last, habits; [batch, items]."""
        index = self._index.lookup(history)
        days = tf.clip_by_value(tf.where(tf.math.is_nan(history_days), 0.0, history_days), 0.0, _OLDEST_DAYS)
        same = (index[:, :, None] == index[:, None, :]) & (index[:, :, None] > 0)  # [batch, purchases, purchases]
        counts = tf.reduce_sum(tf.cast(same, tf.float32), axis=2)
        worth = HABIT_DECAY ** _visits_since(days, history != "")
        habits = tf.reduce_sum(tf.where(same, worth[:, None, :], 0.0), axis=2)
        newest = tf.reduce_min(tf.where(same, days[:, None, :], _OLDEST_DAYS), axis=2)
        place = tf.range(tf.shape(index)[1])
        earlier = tf.reduce_any(same & (place[None, None, :] < place[None, :, None]), axis=2)
        kept = (index > 0) & ~earlier
        order = tf.argsort(tf.where(kept, newest, np.inf), axis=1, stable=True)[:, :MOST_HISTORY]
        there = tf.gather(kept, order, batch_dims=1)
        return (
            tf.where(there, tf.gather(index, order, batch_dims=1), 0),
            tf.where(there, tf.gather(counts, order, batch_dims=1), 0.0),
            tf.where(there, tf.gather(newest, order, batch_dims=1), 0.0),
            tf.where(there, tf.gather(habits, order, batch_dims=1), 0.0),
        )

    def _wish(self, own: tf.Tensor, features: tf.Tensor, user: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        arrays = self._arrays
        score = own @ arrays["weigh_item"] + features @ arrays["weigh_features"] - 1e9 * (1.0 - present[..., None])
        weight = tf.nn.softmax(score, axis=1) * present[..., None]
        pooled = tf.matmul(weight, own, transpose_a=True)
        pooled = tf.reshape(pooled, (tf.shape(own)[0], arrays["weigh_item"].shape[1] * own.shape[-1]))
        pooled = tf.concat([pooled, user], axis=1)
        hidden = tf.nn.silu(pooled @ arrays["user_hidden_kernel"] + arrays["user_hidden_bias"])
        return pooled @ arrays["user_direct_kernel"] + hidden @ arrays["user_output_kernel"]

    def _again(self, own: tf.Tensor, trend: tf.Tensor, features: tf.Tensor, user: tf.Tensor) -> tf.Tensor:
        arrays = self._arrays
        kernel, known = arrays["copy_hidden_kernel"], features.shape[-1] + trend.shape[-1]
        mixed = tf.concat([features, trend], axis=-1) @ kernel[:known] + (user @ kernel[known:])[:, None, :]
        hidden = tf.nn.silu(mixed + arrays["copy_hidden_bias"])
        popularity = tf.linalg.matvec(trend, arrays["trend_mix"])
        logit = tf.linalg.matvec(features, arrays["copy_linear"])
        logit += arrays["copy_popularity"] * popularity * features[..., 0]
        logit += tf.linalg.matvec(hidden, arrays["copy_output_kernel"])
        return logit + tf.linalg.matvec(own, arrays["copy_again"])

    def _near(self, index: tf.Tensor, features: tf.Tensor, is_own: tf.Tensor, whole: tf.Tensor) -> tf.Tensor:
        """[batch, items]: what goes with each history; `is_own` [batch, items]: 1 for its own; `whole`: `_whole`."""
        arrays, shape = self._arrays, tf.shape(is_own)
        newest, features = index[:, :NEIGHBOUR_HISTORY], features[:, :NEIGHBOUR_HISTORY]
        weight = tf.exp(tf.clip_by_value(features @ arrays["neighbour_features"], -8.0, 8.0))
        seen = tf.maximum(tf.cast(arrays["neighbour_seen"], tf.float32), LEAST_SEEN)
        share = tf.gather(seen, newest)[..., None]
        weight *= tf.concat([1.0 / share, 1.0 / tf.sqrt(share)], axis=-1) * tf.cast(newest > 0, tf.float32)[..., None]
        columns = tf.cast(tf.gather(arrays["neighbour_index"], newest), tf.int64)
        values = tf.gather(arrays["neighbour_value"], newest) * tf.cast(columns > 0, tf.float32)
        total, places = tf.zeros(shape), _places(columns)
        for norm in range(2):
            score = tf.scatter_nd(places, values * weight[..., norm : norm + 1], tf.cast(shape, tf.int64))
            if norm:
                score /= tf.sqrt(seen)
            scale = tf.exp(-arrays["neighbour_log_scale"][norm])
            gain, own_gain = arrays["neighbour_gain"][norm], arrays["neighbour_own_gain"][norm]
            total += (gain + is_own * (own_gain - gain)) * tf.math.log1p(score * scale)
        gain, own_gain = arrays["neighbour_whole_gain"][0], arrays["neighbour_whole_gain"][1]
        total += (gain + is_own * (own_gain - gain)) * whole
        return total + self._far(newest, columns, values, is_own)

    def _whole(self, items: tf.Tensor, is_own: tf.Tensor) -> tf.Tensor:
        """[batch, items]: what goes with a longer history, each of its items [batch, places] alike."""
        arrays = self._arrays
        near = tf.cast(tf.gather(arrays["neighbour_index"], items), tf.int64)
        cosine = self._cosines(tf.gather(arrays["neighbour_value"], items), items, near)
        total = tf.scatter_nd(_places(near), cosine, tf.shape(is_own, tf.int64))
        return tf.math.log1p(total * tf.exp(-arrays["neighbour_whole_log_scale"]))

    def _cosines(self, value: tf.Tensor, items: tf.Tensor, near: tf.Tensor) -> tf.Tensor:
        """As `item_steps.cosines`: [..., neighbours], of items [...] with those near them."""
        seen = tf.maximum(tf.cast(self._arrays["neighbour_seen"], tf.float32), LEAST_SEEN)
        there = tf.cast((near > 0) & (items > 0)[..., None], tf.float32)
        return value * there * tf.math.rsqrt(tf.gather(seen, items)[..., None] * tf.gather(seen, near))

    def _far(self, newest: tf.Tensor, near: tf.Tensor, values: tf.Tensor, is_own: tf.Tensor) -> tf.Tensor:
        """[batch, items]: the second step (item_steps.py), nothing for the history's own items."""
        arrays, shape = self._arrays, tf.shape(is_own, tf.int64)
        place = 1.0 + tf.range(tf.shape(newest)[1], dtype=tf.float32)[:, None]
        outside = 1.0 - tf.gather_nd(is_own, _places(near))
        strength = self._cosines(values, newest, near) / place * outside
        ends, strength = (tf.reshape(one, [shape[0], -1]) for one in (near, strength))
        strength, strongest = tf.math.top_k(strength, tf.minimum(FIRST_STEPS, tf.shape(strength)[1]))
        ends = tf.gather(ends, strongest, batch_dims=1)
        reached = tf.cast(tf.gather(arrays["neighbour_index"], ends), tf.int64)
        score = self._cosines(tf.gather(arrays["neighbour_value"], ends), ends, reached) * strength[..., None]
        total = tf.scatter_nd(_places(reached), score, shape) * (1.0 - is_own)
        scale = tf.exp(-arrays["neighbour_far_log_scale"])
        return arrays["neighbour_far_gain"] * tf.math.log1p(total * scale)


def _places(columns: tf.Tensor) -> tf.Tensor:
    """[batch, …, 2] int64: the row of the batch beside each column."""
    rows = tf.range(tf.shape(columns, tf.int64)[0])
    rows = tf.reshape(rows, [-1, *([1] * (columns.shape.rank - 1))])
    return tf.stack([tf.broadcast_to(rows, tf.shape(columns)), columns], axis=-1)


def _visits_since(days: tf.Tensor, bought: tf.Tensor) -> tf.Tensor:
    """[batch, purchases] float32: as in habits.py, visits since each purchase; `bought` bool: it is no padding."""
    newest = tf.argsort(tf.where(bought, days, np.inf), axis=1, stable=True)
    since = tf.gather(days, newest, batch_dims=1)
    later = tf.concat([since[:, :1], since[:, :-1]], axis=1)[:, : tf.shape(since)[1]]
    pause = since - later > PAUSE_DAYS + since * _COARSENESS
    visits = tf.cumsum(tf.cast(pause, tf.float32), axis=1)
    return tf.gather(visits, tf.argsort(newest, axis=1), batch_dims=1)


def _history_features(counts: tf.Tensor, days: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """As in compact_recommender.py, for purchases alone."""
    bought = tf.cast(counts > 0, tf.float32)
    log_count, age = tf.math.log(tf.maximum(counts, 1.0)), tf.math.log1p(days)
    total = tf.maximum(tf.reduce_sum(counts, axis=1, keepdims=True), 1.0)
    place = tf.broadcast_to(1.0 / (1.0 + tf.range(tf.shape(counts)[1], dtype=tf.float32)), tf.shape(counts))
    columns = [
        bought, bought * (log_count - tf.math.log(total)), bought * age, 1.0 - bought, log_count,
        tf.zeros_like(counts), age, place, *(tf.exp(-days / span) for span in RECENCY_DAYS),
    ]
    return tf.stack(columns, axis=-1) * present[..., None]


def _user_features(counts: tf.Tensor, days: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """As in compact_recommender.py, for purchases alone."""
    items, bought = tf.reduce_sum(present, axis=1), tf.reduce_sum(counts, axis=1)
    days = days * present
    oldest = tf.maximum(tf.reduce_max(days, axis=1, keepdims=True), 0.0)  # of no items the maximum is -inf
    newest = tf.minimum(tf.reduce_min(tf.where(present > 0, days, oldest), axis=1, keepdims=True), oldest)
    later = tf.concat([tf.fill([tf.shape(days)[0], 1], -1.0), days[:, :-1]], axis=1)[:, : tf.shape(days)[1]]
    visits = tf.reduce_sum(present * tf.cast(days - later > VISIT_DAYS, tf.float32), axis=1)
    last = tf.reduce_sum(present * tf.cast(days - newest <= VISIT_DAYS, tf.float32), axis=1)
    each = bought / tf.maximum(visits, 1.0)
    amounts = (items, bought, tf.zeros_like(items), visits, last, each, newest[:, 0], (oldest - newest)[:, 0])
    return tf.stack([tf.cast(items > 0, tf.float32), *(tf.math.log1p(amount) for amount in amounts)], axis=-1)
