"""The recommender's layers: an item's vector, a user's vector, and the copy head over the user's own history.

Buying again is modelled (DESIGN.md, decision 7): on Online Retail counting what a customer bought most often
beats ALS, item-kNN and a plain attention model, so the copy head *starts* as that count and learns from there,
and everything else starts at zero beside it (the zero-initialised residual of ReZero, Bachlechner et al., 2020).
Copying from the input is CopyNet's idea (Gu et al., ACL 2016), for baskets that of RepeatNet (Ren et al., AAAI 2019).

Every layer has its twin in `compact_recommender.py`, which computes the same in numpy for consumers.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .item_steps import LEAST_SEEN

RECENCY_DAYS = (1.0, 7.0, 30.0, 90.0)  # a day, a week, a month, a season: the rhythms of buying again
HISTORY_FEATURES = 8 + len(RECENCY_DAYS)
USER_FEATURES = 9
VISIT_DAYS = 1 / 48  # half an hour without an event is where web analytics ends a visit

# A bought item's logit starts above any popular item's: log of the user's share of purchases + this. The most
# popular item of a shop has at most a few per cent of all choices (log <= -3), an item bought once among 200
# purchases -5.3.
OWN_ITEM_LOGIT = 2.5
# Of two items bought equally often the later one comes first; small enough never to outweigh a count: log1p of
# ten years is 8.2, times this 0.008, less than log(101 / 100).
AGE_LOGIT = -0.001

# Popularity is counted with these mean lives (days): the trend of a day, a week, four weeks, a season.
TREND_DAYS = (1.0, 7.0, 28.0, 91.0)

NEIGHBOUR_NORMS = 2
NEIGHBOUR_HISTORY = 16  # newest items of the history whose neighbours count
_PLACE = 7  # the column 1 / (1 + place) of history_features

COPY_INPUTS = HISTORY_FEATURES + len(TREND_DAYS) + USER_FEATURES
# Mean and deviation of what the copy head's hidden part reads, over the histories of Online Retail's weeks 22 to 33
# (1 for what is constant there): of history_features, TREND_DAYS' log shares and user_features. As they are, the log
# shares near -8 alone decide a hidden unit. Seed 0, weeks 34 to 43: Recall@20 0.3266, NDCG@20 0.3039 without, 0.3297,
# 0.3069 with it.
_COPY_MEANS = np.array([
    1.0, -5.5, 4.0, 0.0, 0.33, 0.0, 4.0, 0.04, 0.03, 0.07, 0.22, 0.48,
    -7.9, -7.8, -7.7, -7.6,
    1.0, 4.4, 4.9, 0.0, 2.0, 2.9, 3.2, 2.0, 4.8,
], np.float32)
_COPY_DEVIATIONS = np.array([
    1.0, 1.33, 1.17, 1.0, 0.54, 1.0, 1.17, 0.11, 0.17, 0.21, 0.28, 0.27,
    0.85, 1.14, 1.24, 1.16,
    1.0, 1.16, 1.35, 1.0, 1.2, 1.06, 0.56, 1.46, 1.16,
], np.float32)


def history_features(counts: tf.Tensor, views: tf.Tensor, days: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """What is known of each item of a history.

    Args:
        counts: [batch, length] float32, purchases of the item.
        views: [batch, length] float32, other events on the item.
        days: [batch, length] float32, days since the last of either.
        present: [batch, length] float32, 1 where there is an item.

    Returns:
        [batch, length, HISTORY_FEATURES] float32, zeros where there is no item: bought, bought x share of the
        user's purchases (log), bought x log1p(days), seen only, log(count), log1p(views), log1p(days),
        1 / (1 + place), and exp(-days / span) for each of RECENCY_DAYS.
    """
    counts, views = counts * present, views * present
    bought = tf.cast(counts > 0, tf.float32)
    log_count = tf.math.log(tf.maximum(counts, 1.0))
    total = tf.maximum(tf.reduce_sum(counts, axis=1, keepdims=True), 1.0)
    age = tf.math.log1p(days)
    place = tf.range(tf.shape(counts)[1])[None, :]
    columns = [
        bought, bought * (log_count - tf.math.log(total)), bought * age, 1.0 - bought, log_count,
        tf.math.log1p(views), age, tf.broadcast_to(1.0 / (1.0 + tf.cast(place, tf.float32)), tf.shape(counts)),
        *(tf.exp(-days / span) for span in RECENCY_DAYS),
    ]
    return tf.stack(columns, axis=-1) * present[..., None]


def user_features(counts: tf.Tensor, views: tf.Tensor, days: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """What is known of a user as a whole: how much they choose at a time, how often they come, how long ago.

    Gradient-boosted trees that rank Online Retail's next baskets lose more without these than without the items' trend
    (Recall@20 0.332, 0.310 without, 0.314 without the trend): how far to trust a habit depends on whose it is.

    Args:
        counts, views, days, present: [batch, length] float32, as in `history_features`; newest first.

    Returns:
        [batch, USER_FEATURES] float32: has a history; log1p of its items, of its purchases, of its other events, of
        its visits (times that are the last of an item), of the items of the last visit, of the events a visit, of the
        days since the last visit and between the last and the first.
    """
    items, bought, looked = (tf.reduce_sum(one * present, axis=1) for one in (tf.ones_like(present), counts, views))
    days = days * present
    oldest = tf.reduce_max(days, axis=1, keepdims=True)
    newest = tf.reduce_min(tf.where(present > 0, days, oldest), axis=1, keepdims=True)
    later = tf.concat([tf.fill([tf.shape(days)[0], 1], -1.0), days[:, :-1]], axis=1)
    visits = tf.reduce_sum(present * tf.cast(days - later > VISIT_DAYS, tf.float32), axis=1)
    last = tf.reduce_sum(present * tf.cast(days - newest <= VISIT_DAYS, tf.float32), axis=1)
    each = (bought + looked) / tf.maximum(visits, 1.0)
    amounts = (items, bought, looked, visits, last, each, newest[:, 0], (oldest - newest)[:, 0])
    return tf.stack([tf.cast(items > 0, tf.float32), *(tf.math.log1p(amount) for amount in amounts)], axis=-1)


class ItemTower(keras.layers.Layer):
    """An item's vector: its row (id row once admitted, and its category's) + adapted text + price."""

    def __init__(self, text_dimension: int, dimension: int, **kwargs: Any) -> None:
        """Takes the lengths of a projected text vector and of an item's."""
        super().__init__(**kwargs)
        self.text_dimension, self.dimension = text_dimension, dimension

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights: the first `dimension` of the text's principal directions pass as they are."""
        add = self.add_weight
        self.text_adapter = add(
            (self.text_dimension, self.dimension),
            lambda shape, dtype=None: tf.eye(self.text_dimension, self.dimension), name="text_adapter",
        )
        self.price_kernel = add((3, self.dimension), "zeros", name="price_kernel")
        super().build(input_shape)

    def call(self, rows: tf.Tensor, text: tf.Tensor, price: tf.Tensor) -> tf.Tensor:
        """The vectors of some items.

        Args:
            rows: [items, dimension] float32, id row (0 where not admitted) + category's row.
            text: [items, text_dimension] float32, projected.
            price: [items, 3] float32, z-score of the log price, its square, price known.

        Returns:
            [items, dimension] float32.
        """
        return rows + tf.matmul(text, self.text_adapter) + tf.matmul(price, self.price_kernel)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "text_dimension": self.text_dimension, "dimension": self.dimension}


class TrendHead(keras.layers.Layer):
    """An item's popularity logit: a learnt mix of its log share of the choices of the last day, week, ...

    With the weights adding up to one over two spans the softmax of it *is* the recent share of choices. On Online
    Retail the trend is worth as much as all else that is known of a repeated item (gradient-boosted trees on the
    customers' own items: Recall@20 0.291 without, 0.315 with).
    """

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights: at first the mean of the week's and the four weeks' log share."""
        start = [0.0, 0.5, 0.5, 0.0]
        self.mix = self.add_weight((len(TREND_DAYS),), lambda shape, dtype=None: tf.constant(start), name="mix")
        super().build(input_shape)

    def call(self, trend: tf.Tensor) -> tf.Tensor:
        """[...] of [..., TREND_DAYS]."""
        return tf.tensordot(trend, self.mix, 1)


class NeighbourHead(keras.layers.Layer):
    """What is chosen together with the history's items: learnt weights over counted co-occurrences.

    An item-kNN (Sarwar et al., WWW 2001; for sessions Hidasi et al., ICLR 2016's baseline) whose weighting of the
    history is learnt: exp(features . w), and whose score enters as log1p(score / scale), since a softmax wants the
    logarithm of a share. Two norms, whose ranks differ: the share among the history item's choices (co / seen_j) and
    the cosine (co / sqrt(seen_j seen_i)). The same counts speak twice more (item_steps.py): the cosines with a longer
    history, all alike, find what is new to a customer, and a second step finds items for what has few neighbours.
    """

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights: at first the newest items count most, as 1 / place and by age in seasons."""
        start = np.zeros((HISTORY_FEATURES, NEIGHBOUR_NORMS), np.float32)
        start[[_PLACE, HISTORY_FEATURES - 1]] = 1.0
        add = self.add_weight
        self.weigh_features = add(
            (HISTORY_FEATURES, NEIGHBOUR_NORMS), lambda shape, dtype=None: tf.constant(start), name="weigh_features"
        )
        self.gain = add((NEIGHBOUR_NORMS,), keras.initializers.Constant(0.5), name="gain")
        self.own_gain = add((NEIGHBOUR_NORMS,), "zeros", name="own_gain")  # of the history's items
        # half of the pairs that are known have a share or cosine below 0.02 (Online Retail, DIGINETICA)
        scale = keras.initializers.Constant(float(np.log(0.02)))
        self.log_scale = add((NEIGHBOUR_NORMS,), scale, name="log_scale")
        # Of the second step: nothing at first. DIGINETICA's periods 2 to 5 (seed 0): Recall@20 0.499, MRR@20 0.197
        # without it, 0.521, 0.187 with it; Online Retail's weeks 34 to 43 (seeds 0, 1): Recall@20 0.335 both.
        self.far_gain = add((), "zeros", name="far_gain")
        self.far_log_scale = add((), scale, name="far_log_scale")
        # Of the whole history, for what is outside of it and within: nothing at first. Online Retail's weeks 34 to 43,
        # seed 0: Recall@20 0.334, of what is new to the customer 0.112 without it; 0.335, 0.113 with it; 0.336, 0.132
        # from 0.9 on (rows by cosines), where weeks 44 to 53 lose 0.004. DIGINETICA, periods 2 to 5: 0.521, 0.520.
        self.whole_gain = add((2,), "zeros", name="whole_gain")
        self.whole_log_scale = add((), scale, name="whole_log_scale")
        super().build(input_shape)

    def call(
        self, entries: tf.Tensor, values: tf.Tensor, seen_from: tf.Tensor, seen_to: tf.Tensor, features: tf.Tensor,
        present: tf.Tensor, far: tf.Tensor, whole: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What is added to the logits.

        Args:
            entries: [pairs, 3] int32, the known neighbours among the batch's rows: of which example, which row, with
                which item of its history (place).
            values: [pairs] float32, their co-occurrences, decayed, without the example's own.
            seen_from: [batch, length] float32, how often each history item was chosen, decayed.
            seen_to: [rows] float32, the same of the rows.
            features: [batch, length, HISTORY_FEATURES] float32.
            present: [batch, length] float32.
            far: [batch, rows] float32, how strongly the second step leads to each row (item_steps.py).
            whole: [batch, rows] float32, the cosines of each row with the items of a longer history, added up.

        Returns:
            [batch, rows] float32, for an item outside of the history, and the same for one within it, to which the
            second step adds nothing.
        """
        weight = tf.exp(tf.clip_by_value(tf.tensordot(features, self.weigh_features, 1), -8.0, 8.0))
        weight *= present[..., None]
        share = tf.maximum(seen_from, LEAST_SEEN)[..., None]
        weight = weight * tf.concat([1.0 / share, tf.math.rsqrt(share)], axis=-1)  # [batch, length, norms]
        added = values[:, None] * tf.gather_nd(weight, tf.gather(entries, [0, 2], axis=1))  # [pairs, norms]
        shape = (tf.shape(present)[0], tf.shape(seen_to)[0], NEIGHBOUR_NORMS)
        score = tf.scatter_nd(entries[:, :2], added, shape)
        norm = tf.stack([tf.ones_like(seen_to), tf.math.rsqrt(tf.maximum(seen_to, LEAST_SEEN))], axis=-1)
        score = tf.math.log1p(score * (norm * tf.exp(-self.log_scale)))
        far = self.far_gain * tf.math.log1p(far * tf.exp(-self.far_log_scale))
        whole = tf.math.log1p(whole * tf.exp(-self.whole_log_scale))
        outside = tf.tensordot(score, self.gain, 1) + far + self.whole_gain[0] * whole
        return outside, tf.tensordot(score, self.own_gain, 1) + self.whole_gain[1] * whole


class UserTower(keras.layers.Layer):
    """A user's vector: the history pooled by several learnt weightings (what, how often, how lately), then mixed."""

    def __init__(self, dimension: int, heads: int, hidden: int, dropout: float, seed: int, **kwargs: Any) -> None:
        """Takes the length of a vector, the number of weightings, the hidden width and the dropout rate."""
        super().__init__(**kwargs)
        self.dimension, self.heads, self.hidden, self.rate, self.seed = dimension, heads, hidden, dropout, seed
        self.dropout = keras.layers.Dropout(dropout, seed=seed)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights: the output starts at zero, so that an untrained user wants nothing in particular."""
        add = self.add_weight
        small = [keras.initializers.RandomNormal(stddev=0.3, seed=self.seed + place) for place in range(2)]
        dense = [keras.initializers.GlorotUniform(seed=self.seed + 2 + place) for place in range(2)]
        pooled = self.heads * self.dimension + USER_FEATURES
        self.weigh_item = add((self.dimension, self.heads), small[0], name="weigh_item")
        self.weigh_features = add((HISTORY_FEATURES, self.heads), small[1], name="weigh_features")
        self.hidden_kernel = add((pooled, self.hidden), dense[0], name="hidden_kernel")
        self.hidden_bias = add((self.hidden,), "zeros", name="hidden_bias")
        self.direct_kernel = add((pooled, self.dimension), "zeros", name="direct_kernel")
        self.output_kernel = add((self.hidden, self.dimension), "zeros", name="output_kernel")
        super().build(input_shape)

    def call(
        self, items: tf.Tensor, features: tf.Tensor, user: tf.Tensor, present: tf.Tensor, training: bool = False,
        dropout_of: tuple[tf.Tensor, tf.Tensor] | None = None,
    ) -> tf.Tensor:
        """The user's vector.

        Args:
            items: [batch, length, dimension] float32, the history's items.
            features: [batch, length, HISTORY_FEATURES] float32.
            user: [batch, USER_FEATURES] float32.
            present: [batch, length] float32.
            training: whether dropout is on.
            dropout_of: [batch] int32 and a number: these examples are at such places of a batch that is so large, and
                what is dropped of them is what would be dropped there; None: they are the batch.

        Returns:
            [batch, dimension] float32.
        """
        score = tf.tensordot(items, self.weigh_item, 1) + tf.tensordot(features, self.weigh_features, 1)
        score = score - 1e9 * (1.0 - present[..., None])
        weight = tf.nn.softmax(score, axis=1) * present[..., None]
        pooled = tf.matmul(weight, items, transpose_a=True)  # [batch, heads, dimension]
        pooled = tf.concat([tf.reshape(pooled, [-1, self.heads * self.dimension]), user], axis=1)
        pooled = self._dropped(pooled, training, dropout_of)
        hidden = tf.nn.silu(tf.matmul(pooled, self.hidden_kernel) + self.hidden_bias)
        hidden = self._dropped(hidden, training, dropout_of)
        return tf.matmul(pooled, self.direct_kernel) + tf.matmul(hidden, self.output_kernel)

    def _dropped(
        self, values: tf.Tensor, training: bool, dropout_of: tuple[tf.Tensor, tf.Tensor] | None
    ) -> tf.Tensor:
        if dropout_of is None or not training:
            return self.dropout(values, training=training)
        place, size = dropout_of
        kept = self.dropout(tf.ones([size, tf.shape(values)[1]]), training=True)
        return values * tf.gather(kept, place)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(), "dimension": self.dimension, "heads": self.heads, "hidden": self.hidden,
            "dropout": self.rate, "seed": self.seed,
        }


class CopyHead(keras.layers.Layer):
    """How much each item of the user's own history is wanted again, beyond what the catalogue scoring says.

    Untrained it ranks the history as *what this user bought most often, latest first*, above all popular items.
    """

    def __init__(self, dimension: int, hidden: int, seed: int, **kwargs: Any) -> None:
        """Takes the length of an item's vector and the hidden width."""
        super().__init__(**kwargs)
        self.dimension, self.hidden, self.seed = dimension, hidden, seed

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights, the first three of them the count's."""
        start = [OWN_ITEM_LOGIT, 1.0, AGE_LOGIT] + [0.0] * (HISTORY_FEATURES - 3)
        dense = keras.initializers.GlorotUniform(seed=self.seed)
        add = self.add_weight
        self.linear = add(
            (HISTORY_FEATURES,), lambda shape, dtype=None: tf.constant(start, tf.float32), name="linear"
        )
        self.popularity = add((), keras.initializers.Constant(-1.0), name="popularity")
        self.again = add((self.dimension,), "zeros", name="again")
        self.standard_kernel = add((COPY_INPUTS, self.hidden), dense, name="standard_kernel")
        self.standard_bias = add((self.hidden,), "zeros", name="standard_bias")
        self.output_kernel = add((self.hidden,), "zeros", name="output_kernel")
        super().build(input_shape)

    def hidden_weights(self) -> tuple[tf.Tensor, tf.Tensor]:
        """[inputs, hidden] and [hidden]: kernel and bias for inputs as they are; training's are for standard ones."""
        kernel = self.standard_kernel / _COPY_DEVIATIONS[:, None]
        return kernel, self.standard_bias - tf.linalg.matvec(kernel, _COPY_MEANS, transpose_a=True)

    @staticmethod
    def standardized(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`standard_kernel` and `standard_bias` for what `hidden_weights` returns."""
        return kernel * _COPY_DEVIATIONS[:, None], bias + _COPY_MEANS @ kernel

    def call(
        self, items: tf.Tensor, popularity: tf.Tensor, trend: tf.Tensor, features: tf.Tensor, user: tf.Tensor,
        present: tf.Tensor,
    ) -> tf.Tensor:
        """What is added to the logits of the history's items.

        Args:
            items: [batch, length, dimension] float32.
            popularity: [batch, length] float32, the items' popularity logits.
            trend: [batch, length, TREND_DAYS] float32, what they are made of.
            features: [batch, length, HISTORY_FEATURES] float32.
            user: [batch, USER_FEATURES] float32.
            present: [batch, length] float32.

        Returns:
            [batch, length] float32, 0 where there is no item.
        """
        known = HISTORY_FEATURES + len(TREND_DAYS)
        about = tf.concat([features, trend * present[..., None]], axis=-1)
        kernel, bias = self.hidden_weights()
        mixed = tf.tensordot(about, kernel[:known], 1)
        mixed += tf.matmul(user, kernel[known:])[:, None, :]
        hidden = tf.nn.silu(mixed + bias)
        logit = tf.tensordot(features, self.linear, 1) + self.popularity * popularity * features[..., 0]
        logit += tf.tensordot(items, self.again, 1) + tf.tensordot(hidden, self.output_kernel, 1)
        return logit * present

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "dimension": self.dimension, "hidden": self.hidden, "seed": self.seed}
