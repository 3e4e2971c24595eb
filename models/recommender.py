"""The recommender: one scoring of the whole catalogue for *recommend(history)* and *search(query, history)*.

    logit(item) = wish . item + popularity(item) + copy(item, history)

The wish is the user's vector (what the history says) and, in a search, the query's vector through the same text
adapter as the items' (what the words say). Both answers are one matrix product over the catalogue, which a
consumer can do in numpy (`compact_recommender.py`). A two-tower score over all items with a full softmax is the
plain and strong choice for thousands of items; sampled softmax takes its place where there are many more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .layers import (
    POPULARITY_PACE,
    CopyHead,
    ItemTower,
    UserTower,
    history_features,
    user_features,
)
from .losses import RATING_CLASSES, catalogue_cross_entropy, rating_cross_entropy

HISTORY_LENGTHS = (16, 64, 256)  # most histories are short: a step of 64 costs 45 ms, one of 256 110 (4,000 items)
TARGETS = 32  # more than 95 % of Online Retail's baskets' items; of a larger basket 32 items are drawn
RATING_WEIGHT = 0.1  # ratings are a tenth of the events and beside the point of the ranking
NO_ITEM = -1e9  # logit of a row of the tables that holds no item
# Cosines of a query and fitting titles differ by some 0.3 between the best and the hundredth item; times 20 that
# is a factor of 400 in probability, as sharp as CLIP's and sentence-transformers' softmax (scale 20).
QUERY_SCALE = 20.0


@dataclass(frozen=True)
class RecommenderSizes:
    """The shapes of the network.

    Attributes:
        items: rows of the item tables, row 0 for no item; a power of two that the catalogue grows into.
        categories: rows of the category table, row 0 for unknown.
        text_dimension: length of a text vector.
        dimension: length of an item's vector. 64 of MiniLM's 384 principal directions hold nearly all of what
            tells a shop's titles apart, and the product over the catalogue is what a request costs.
        heads: weightings of the history.
        user_hidden, copy_hidden: widths.
        dropout: ADER's finding: most of what keeps updates from forgetting, after replay.
    """

    items: int
    categories: int
    text_dimension: int
    dimension: int = 64
    heads: int = 4
    user_hidden: int = 128
    copy_hidden: int = 16
    dropout: float = 0.2


class Recommender(keras.layers.Layer):
    """The network, with what is known of each item (text, price, category) as variables that do not train."""

    def __init__(self, sizes: RecommenderSizes, seed: int) -> None:
        """Builds all weights; `seed` decides every random one."""
        super().__init__(name="recommender")
        self.sizes = sizes
        self.seed = seed
        self.item_tower = ItemTower(
            sizes.items, sizes.categories, sizes.text_dimension, sizes.dimension, seed=seed + 30, name="item_tower"
        )
        self.user_tower = UserTower(
            sizes.dimension, sizes.heads, sizes.user_hidden, sizes.dropout, seed=seed, name="user_tower"
        )
        self.copy_head = CopyHead(sizes.dimension, sizes.copy_hidden, seed=seed + 10, name="copy_head")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for tower in (self.item_tower, self.user_tower, self.copy_head):
            tower.build()
        width, items = self.sizes.dimension, self.sizes.items
        add = self.add_weight
        self.popularity_weight = add((items,), "zeros", name="item_popularity")
        self.query_kernel = add(
            (width, width), lambda shape, dtype=None: QUERY_SCALE * tf.eye(width), name="query_kernel"
        )
        # In a search: how much of the popularity, of the copy head and of the user's vector still count. The words
        # come first: beside QUERY_SCALE a fifth of the popularity decides between items that fit equally.
        self.search_gates = add(
            (3,), lambda shape, dtype=None: tf.constant([0.2, 0.2, 1.0]), name="search_gates"
        )
        dense = keras.initializers.GlorotUniform(seed=self.seed + 20)
        self.rating_kernel = add((2 * width, RATING_CLASSES), dense, name="rating_kernel")
        self.rating_bias = add((RATING_CLASSES,), "zeros", name="rating_bias")
        fixed = {"initializer": "zeros", "trainable": False}
        self.item_text = add((items, self.sizes.text_dimension), name="item_text", **fixed)
        self.item_price = add((items, 3), name="item_price", **fixed)
        self.item_category = add((items,), name="item_category", dtype="int32", **fixed)
        self.item_admitted = add((items,), name="item_admitted", **fixed)
        self.item_exists = add((items,), name="item_exists", **fixed)
        super().build(input_shape)

    def item_vectors(self) -> tf.Tensor:
        """[items, dimension]."""
        return self.item_tower(
            text=self.item_text.value, admitted=self.item_admitted.value, price=self.item_price.value,
            category=self.item_category.value,
        )

    def popularity(self) -> tf.Tensor:
        """[items]: the popularity logits, NO_ITEM for rows that hold no item."""
        return POPULARITY_PACE * self.popularity_weight + NO_ITEM * (1.0 - self.item_exists)

    def call(self, batch: Mapping[str, tf.Tensor], training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """The logits of all items and those of the rated item's stars.

        Args:
            batch: history_index [batch, length] int32 (0: no item), history_counts, history_views, history_days
                [batch, length] float32, query_vector [batch, text_dimension] float32, has_query [batch] float32,
                rating_index [batch] int32.
            training: whether dropout is on.

        Returns:
            [batch, items] and [batch, RATING_CLASSES], float32.
        """
        vectors, popularity = self.item_vectors(), self.popularity()
        index, searching = batch["history_index"], batch["has_query"][:, None]
        present = tf.cast(index > 0, tf.float32)
        counts, views = batch["history_counts"], batch["history_views"]
        features = history_features(counts, views, batch["history_days"], present)
        user = user_features(counts, views, present)
        own = tf.gather(vectors, index)
        wish = self.user_tower(own, features=features, user=user, present=present, training=training)
        copied = self.copy_head(
            own, popularity=tf.gather(popularity, index), features=features, user=user, present=present
        )
        rating_logits = self._rate(wish, tf.gather(vectors, batch["rating_index"]))
        gates = 1.0 + searching * (self.search_gates - 1.0)  # [batch, 3]
        words = tf.matmul(tf.matmul(batch["query_vector"], self.item_tower.text_adapter), self.query_kernel)
        wish = gates[:, 2:] * wish + searching * words
        logits = tf.matmul(wish, vectors, transpose_b=True) + tf.where(
            popularity > NO_ITEM / 2, gates[:, :1] * popularity, NO_ITEM
        )
        return _added_at(logits, index, gates[:, 1:2] * copied), rating_logits

    def _rate(self, wish: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        return tf.matmul(tf.concat([wish * item, item], axis=1), self.rating_kernel) + self.rating_bias


def _added_at(logits: tf.Tensor, index: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """`logits` [batch, items] with `values` [batch, length] added at the columns `index` [batch, length]."""
    rows = tf.broadcast_to(tf.range(tf.shape(index)[0])[:, None], tf.shape(index))
    return tf.tensor_scatter_nd_add(logits, tf.stack([rows, index], axis=-1), values)


class Trainer:
    """The network's optimizer and its compiled steps: one of training, one of measuring."""

    def __init__(self, network: Recommender) -> None:
        """Builds the optimizer's slots; nothing is traced before the first step."""
        self.network = network
        self.optimizer = keras.optimizers.Adam(learning_rate=1e-3, clipnorm=None)
        self.optimizer.build(network.trainable_variables)
        # One trace each for all lengths of history: a trace costs two seconds, and each update is a new process.
        batch = _batch_signature(network.sizes.text_dimension)
        self._train = tf.function(self._train_step, input_signature=[batch, tf.TensorSpec((), tf.float32)])
        self._measure = tf.function(self._losses_of, input_signature=[batch])

    def train_step(self, batch: Mapping[str, np.ndarray], learning_rate: float) -> float:
        """One step of the optimizer; the batch's mean loss before it."""
        return float(self._train(_tensors(batch), tf.constant(learning_rate, tf.float32)))

    def measure(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """[batch] float32: each example's loss without dropout."""
        return self._measure(_tensors(batch)).numpy()

    def _train_step(self, batch: Mapping[str, tf.Tensor], learning_rate: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = self._losses_of(batch, training=True)
            loss = tf.reduce_sum(losses * batch["weight"]) / tf.maximum(tf.reduce_sum(batch["weight"]), 1.0)
        variables = self.network.trainable_variables
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        self.optimizer.learning_rate.assign(learning_rate)
        self.optimizer.apply(gradients, variables)
        return loss

    def _losses_of(self, batch: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        logits, rating_logits = self.network(batch, training=training)
        next_item = catalogue_cross_entropy(logits, batch["target_index"])
        return next_item + RATING_WEIGHT * rating_cross_entropy(rating_logits, batch["rating"])


def variables_of(trainer: Trainer) -> dict[str, keras.Variable]:
    """Every variable that training changes or needs: weights, item facts, slots, seed generators.

    Their names are the same in each process: Keras numbers seed generators and optimizers by how many it has made.
    """
    generators = [one for one in trainer.network.variables if one.path.endswith("seed_generator_state")]
    seeds = {f"seed_generator/{place}": variable for place, variable in enumerate(generators)}
    weights = {one.path: one for one in trainer.network.variables if not one.path.endswith("seed_generator_state")}
    slots = {f"optimizer/{one.name}": one for one in trainer.optimizer.variables}
    return weights | seeds | slots


def as_json(sizes: RecommenderSizes) -> dict[str, Any]:
    """The sizes in JSON's types."""
    return asdict(sizes)


def _tensors(batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in batch.items()}


def _batch_signature(text_dimension: int) -> dict[str, tf.TensorSpec]:
    lists, numbers = (None, None), (None,)
    return {
        "history_index": tf.TensorSpec(lists, tf.int32), "history_counts": tf.TensorSpec(lists, tf.float32),
        "history_views": tf.TensorSpec(lists, tf.float32), "history_days": tf.TensorSpec(lists, tf.float32),
        "query_vector": tf.TensorSpec((None, text_dimension), tf.float32),
        "has_query": tf.TensorSpec(numbers, tf.float32),
        "target_index": tf.TensorSpec((None, TARGETS), tf.int32),
        "rating_index": tf.TensorSpec(numbers, tf.int32), "rating": tf.TensorSpec(numbers, tf.float32),
        "weight": tf.TensorSpec(numbers, tf.float32),
    }
