"""The recommender: one scoring of the whole catalogue for *recommend(history)* and *search(query, history)*.

    logit(item) = wish . item + popularity(item) + neighbours(item) + (copy(item, history) if it is in the history)

The wish is the user's vector (what the history says) and, in a search, the query's vector through the same text
adapter as the items' (what the words say). Both answers are one matrix product over the catalogue, which a consumer
can do in numpy (`compact_recommender.py`). A step knows only the rows of the item tables that it needs (the candidates
of the softmax and the items of the histories), which the learner puts into the batch: the compiled step is the same
for every size of the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .growing import fitted
from .layers import (
    COPY_INPUTS,
    NEIGHBOUR_HISTORY,
    TREND_DAYS,
    CopyHead,
    ItemTower,
    NeighbourHead,
    TrendHead,
    UserTower,
    history_features,
    user_features,
)
from .losses import NO_ITEM, RATING_CLASSES

HISTORY_LENGTHS = (16, 64, 256)  # most histories are short: a step of 64 costs 45 ms, one of 256 110 (4,000 items)
TARGETS = 32  # more than 95 % of Online Retail's baskets' items; of a larger basket 32 items are drawn
# Cosines of a query and fitting titles differ by some 0.3 between the best and the hundredth item; times 20 that
# is a factor of 400 in probability, as sharp as CLIP's and sentence-transformers' softmax (scale 20).
QUERY_SCALE = 20.0


@dataclass(frozen=True)
class RecommenderSizes:
    """The shapes of the network.

    Attributes:
        text_dimension: length of a projected text vector.
        dimension: length of an item's vector. 64 of MiniLM's 384 principal directions hold nearly all of what
            tells a shop's titles apart, and the product over the catalogue is what a request costs.
        heads: weightings of the history.
        user_hidden: width of the user's tower. What is counted (copies, neighbours, trend) says most of who wants what;
            a tower beyond that learns the days that it has seen. Seed 0, Recall@20, NDCG@20 of Online Retail's weeks 34
            to 43, and Recall@20, MRR@20 of DIGINETICA's periods 1 and 2: 0.3251, 0.3018, 0.473, 0.154 with four heads,
            128 and a dropout of 0.4; 0.3251, 0.3041, 0.475, 0.160 with two, 64 and 0.6; 0.3265, 0.3039, 0.476, 0.162
            with one, 32 and 0.6, which costs a fifth less. What customers buy for the first time loses: Recall@20
            0.1125, 0.1074, 0.1062.
        copy_hidden: width of the copy head.
        dropout: ADER's finding: most of what keeps updates from forgetting, after replay. With one head DIGINETICA has
            0.475, 0.163 at 0.8.
    """

    text_dimension: int
    dimension: int = 64
    heads: int = 1
    user_hidden: int = 32
    copy_hidden: int = 16
    dropout: float = 0.6


class Recommender(keras.layers.Layer):
    """The network; the rows of the item tables come with each batch."""

    def __init__(self, sizes: RecommenderSizes, seed: int) -> None:
        """Builds all weights; `seed` decides every random one."""
        super().__init__(name="recommender")
        self.sizes = sizes
        self.seed = seed
        self.item_tower = ItemTower(sizes.text_dimension, sizes.dimension, name="item_tower")
        self.user_tower = UserTower(
            sizes.dimension, sizes.heads, sizes.user_hidden, sizes.dropout, seed=seed, name="user_tower"
        )
        self.copy_head = CopyHead(sizes.dimension, sizes.copy_hidden, seed=seed + 10, name="copy_head")
        self.trend_head = TrendHead(name="trend_head")
        self.neighbour_head = NeighbourHead(name="neighbour_head")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for part in (self.item_tower, self.user_tower, self.copy_head, self.trend_head, self.neighbour_head):
            part.build()
        width = self.sizes.dimension
        add = self.add_weight
        self.query_kernel = add(
            (width, width), lambda shape, dtype=None: QUERY_SCALE * tf.eye(width), name="query_kernel"
        )
        # In a search: how much of the popularity, of the user's own items and neighbours and of the user's vector
        # still count. The words come first: beside QUERY_SCALE a fifth of the popularity decides between equal fits.
        self.search_gates = add(
            (3,), lambda shape, dtype=None: tf.constant([0.2, 0.2, 1.0]), name="search_gates"
        )
        dense = keras.initializers.GlorotUniform(seed=self.seed + 20)
        self.rating_kernel = add((2 * width, RATING_CLASSES), dense, name="rating_kernel")
        self.rating_bias = add((RATING_CLASSES,), "zeros", name="rating_bias")
        super().build(input_shape)

    def call(
        self, rows: tf.Tensor, batch: Mapping[str, tf.Tensor], training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The logits of the candidates, of the histories' items and of the rated item's stars.

        Args:
            rows: [rows, dimension] float32, of the item tables; row 0 is no item, the first `candidates` are those.
            batch: `batch_signature` says each array's shape.
            training: whether dropout is on.

        Returns:
            [batch, candidates], [batch, length] (NO_ITEM where there is none) and [batch, RATING_CLASSES], float32.
        """
        candidates = tf.shape(batch["correction"])[0]
        vectors = self.item_tower(rows, text=batch["rows_text"], price=batch["rows_price"])
        popularity = self.trend_head(batch["trend"])  # [moments, rows]
        index, searching = batch["history_index"], batch["has_query"][:, None]
        present = tf.cast(index > 0, tf.float32)
        counts, views = batch["history_counts"], batch["history_views"]
        features = history_features(counts, views, batch["history_days"], present)
        user = user_features(counts, views, batch["history_days"], present)
        own = tf.gather(vectors, index)
        wish = self.user_tower(
            own, features=features, user=user, present=present, training=training,
            dropout_of=(batch["dropout_place"], batch["dropout_size"]) if "dropout_place" in batch else None,
        )
        moments = tf.broadcast_to(batch["moment"][:, None], tf.shape(index))
        own_trend = tf.gather_nd(batch["trend"], tf.stack([moments, index], axis=-1))
        own_popularity = self.trend_head(own_trend)
        copied = self.copy_head(
            own, popularity=own_popularity, trend=own_trend, features=features, user=user, present=present
        )
        near, own_near = self._neighbours(batch, features, present)
        copied += tf.gather(own_near, index, batch_dims=1) * present
        rating_logits = self._rate(wish, tf.gather(vectors, batch["rating_index"]))
        gates = 1.0 + searching * (self.search_gates - 1.0)  # [batch, 3]
        words = tf.matmul(tf.matmul(batch["query_vector"], self.item_tower.text_adapter), self.query_kernel)
        wish = gates[:, 2:] * wish + searching * words
        shared = tf.matmul(wish, vectors[:candidates], transpose_b=True) + gates[:, 1:2] * near[:, :candidates]
        shared += gates[:, :1] * tf.gather(popularity[:, :candidates], batch["moment"])
        again = tf.linalg.matvec(own, wish) + gates[:, :1] * own_popularity + gates[:, 1:2] * copied
        return shared, tf.where(present > 0, again, NO_ITEM), rating_logits

    def _neighbours(
        self, batch: Mapping[str, tf.Tensor], features: tf.Tensor, present: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        newest = slice(None, NEIGHBOUR_HISTORY)
        return self.neighbour_head(
            batch["neighbour_entries"], values=batch["neighbour_value"],
            seen_from=tf.gather(batch["rows_seen"], batch["history_index"][:, newest]),
            seen_to=batch["rows_seen"], features=features[:, newest], present=present[:, newest],
            far=batch["far"], whole=batch["whole"],
        )

    def _rate(self, wish: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        return tf.matmul(tf.concat([wish * item, item], axis=1), self.rating_kernel) + self.rating_bias


def as_json(sizes: RecommenderSizes) -> dict[str, Any]:
    """The sizes in JSON's types."""
    return asdict(sizes)


def newer_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A checkpoint's arrays; one of before December 2026 had the copy head's hidden part for inputs as they are."""
    found = dict(arrays)
    for name in [one for one in arrays if one.endswith("copy_head/hidden_kernel")]:
        place = name.removesuffix("hidden_kernel")
        kernel, bias = fitted(found.pop(name), (COPY_INPUTS, arrays[name].shape[1])), found.pop(f"{place}hidden_bias")
        found[f"{place}standard_kernel"], found[f"{place}standard_bias"] = CopyHead.standardized(kernel, bias)
    return found


# What a step reads beside that where several workers make it, each with a part of the batch.
PART_SIGNATURE = {
    "examples": tf.TensorSpec((), tf.float32),  # of the whole batch
    "dropout_place": tf.TensorSpec((None,), tf.int32),  # [own examples], their places in the whole batch
    "dropout_size": tf.TensorSpec((), tf.int32),  # rows of the whole batch, with those of no weight
}


def batch_signature(text_dimension: int) -> dict[str, tf.TensorSpec]:
    """What a step reads. Indices point into the batch's rows, of which the first are the candidates; 0 is no item."""
    lists, numbers = (None, None), (None,)
    floats, indices = tf.float32, tf.int32
    return {
        "rows_text": tf.TensorSpec((None, text_dimension), floats),  # [rows, text_dimension]
        "rows_price": tf.TensorSpec((None, 3), floats),  # [rows, 3]
        "rows_seen": tf.TensorSpec(numbers, floats),  # [rows], how often chosen, decayed
        "trend": tf.TensorSpec((None, None, len(TREND_DAYS)), floats),  # [moments, rows, spans], log share of choices
        "moment": tf.TensorSpec(numbers, indices),  # [batch], which of the moments
        "correction": tf.TensorSpec(numbers, floats),  # [candidates], see candidate_cross_entropy
        "history_index": tf.TensorSpec(lists, indices),  # [batch, length], rows
        "history_counts": tf.TensorSpec(lists, floats), "history_views": tf.TensorSpec(lists, floats),
        "history_days": tf.TensorSpec(lists, floats),
        "own_column": tf.TensorSpec(lists, indices),  # [batch, length], candidates
        "neighbour_entries": tf.TensorSpec((None, 3), indices),  # [pairs, 3]: example, row, place in the history
        "neighbour_value": tf.TensorSpec(numbers, floats),  # [pairs]
        "whole": tf.TensorSpec(lists, floats), "far": tf.TensorSpec(lists, floats),  # [batch, rows]
        "query_vector": tf.TensorSpec((None, text_dimension), floats), "has_query": tf.TensorSpec(numbers, floats),
        "target_index": tf.TensorSpec((None, TARGETS), indices),  # [batch, targets], candidates
        "own_targets": tf.TensorSpec((None, TARGETS), indices),  # [batch, targets], 1 + place in the history
        "rating_index": tf.TensorSpec(numbers, indices),  # [batch], rows
        "rating": tf.TensorSpec(numbers, floats), "weight": tf.TensorSpec(numbers, floats),
    }
