"""The recommender: one scoring of the whole catalogue for *recommend(history)* and *search(query, history)*.

    logit(item) = wish . item + popularity(item) + (copy(item, history) if it is in the history, else neighbours(item))

The wish is the user's vector (what the history says) and, in a search, the query's vector through the same text
adapter as the items' (what the words say). Both answers are one matrix product over the catalogue, which a consumer
can do in numpy (`compact_recommender.py`). A step knows only the rows of the item tables that it needs (the candidates
of the softmax and the items of the histories), which the learner puts into the batch: the compiled step is the same
for every size of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .layers import (
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
from .losses import NO_ITEM, RATING_CLASSES, candidate_cross_entropy, rating_cross_entropy
from .optimizers import dense_optimizer

HISTORY_LENGTHS = (16, 64, 256)  # most histories are short: a step of 64 costs 45 ms, one of 256 110 (4,000 items)
TARGETS = 32  # more than 95 % of Online Retail's baskets' items; of a larger basket 32 items are drawn
RATING_WEIGHT = 0.1  # ratings are a tenth of the events and beside the point of the ranking
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
        user_hidden, copy_hidden: widths.
        dropout: ADER's finding: most of what keeps updates from forgetting, after replay. Online Retail over ten
            weeks of updates: Recall@20 0.321 with 0.2, 0.323 with 0.5.
    """

    text_dimension: int
    dimension: int = 64
    heads: int = 4
    user_hidden: int = 128
    copy_hidden: int = 16
    dropout: float = 0.4


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
            batch: `Trainer`'s signature says each array's shape.
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
        user = user_features(counts, views, present)
        own = tf.gather(vectors, index)
        wish = self.user_tower(own, features=features, user=user, present=present, training=training)
        moments = tf.broadcast_to(batch["moment"][:, None], tf.shape(index))
        own_trend = tf.gather_nd(batch["trend"], tf.stack([moments, index], axis=-1))
        own_popularity = self.trend_head(own_trend)
        copied = self.copy_head(
            own, popularity=own_popularity, trend=own_trend, features=features, user=user, present=present
        )
        near = self._neighbours(batch, features, present, candidates)
        rating_logits = self._rate(wish, tf.gather(vectors, batch["rating_index"]))
        gates = 1.0 + searching * (self.search_gates - 1.0)  # [batch, 3]
        words = tf.matmul(tf.matmul(batch["query_vector"], self.item_tower.text_adapter), self.query_kernel)
        wish = gates[:, 2:] * wish + searching * words
        shared = tf.matmul(wish, vectors[:candidates], transpose_b=True) + gates[:, 1:2] * near
        shared += gates[:, :1] * tf.gather(popularity[:, :candidates], batch["moment"])
        again = tf.linalg.matvec(own, wish) + gates[:, :1] * own_popularity + gates[:, 1:2] * copied
        return shared, tf.where(present > 0, again, NO_ITEM), rating_logits

    def _neighbours(
        self, batch: Mapping[str, tf.Tensor], features: tf.Tensor, present: tf.Tensor, candidates: tf.Tensor
    ) -> tf.Tensor:
        newest = slice(None, NEIGHBOUR_HISTORY)
        return self.neighbour_head(
            batch["neighbour_entries"], values=batch["neighbour_value"],
            seen_from=tf.gather(batch["rows_seen"], batch["history_index"][:, newest]),
            seen_to=batch["rows_seen"][:candidates], features=features[:, newest], present=present[:, newest],
        )

    def _rate(self, wish: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        return tf.matmul(tf.concat([wish * item, item], axis=1), self.rating_kernel) + self.rating_bias


@dataclass(frozen=True)
class StepMethods:
    """How a step is made, beside the loss; `pipeline.tasks.contract.Methods` says what each is.

    Attributes:
        distillation, l2_pull, ewc: strengths of what holds to the start.
        adversarial_radius: how far a second gradient's rows are moved; 0: one gradient.
        optimizer, weight_decay: see `dense_optimizer`.
        dropout: None: the network's own rate.
    """

    distillation: float = 0.0
    l2_pull: float = 0.0
    ewc: float = 0.0
    adversarial_radius: float = 0.0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    dropout: float | None = None

    @property
    def holds_to_start(self) -> bool:
        """Whether a step reads the network as it was."""
        return bool(self.distillation or self.l2_pull or self.ewc)

    @property
    def plain(self) -> bool:
        """Whether the loss alone makes the gradient, once."""
        return not (self.holds_to_start or self.adversarial_radius)


class Trainer:
    """The network's optimizer and its compiled steps: one of training, one of measuring."""

    def __init__(self, network: Recommender) -> None:
        """Builds the optimizer's slots; nothing is traced before the first step."""
        self.network = network
        self.methods = StepMethods()
        self.optimizer = dense_optimizer("adam", network.trainable_variables)
        self._start: Recommender | None = None
        self._importance: list[tf.Variable] = []
        # One trace each for all shapes: a trace costs two seconds, and each update is a new process.
        self._rows = tf.TensorSpec((None, network.sizes.dimension), tf.float32)
        self._batch = _batch_signature(network.sizes.text_dimension)
        self._train = self._compiled_step()
        self._measure = tf.function(self._losses_of, input_signature=[self._rows, self._batch])

    def use(self, methods: StepMethods) -> None:
        """From now on steps by these methods; what some of them hold to is the network as it is now.

        A step is traced anew only where the methods are others than before.
        """
        sizes, variables = self.network.sizes, self.network.trainable_variables
        if methods.dropout and not sizes.dropout:
            raise ValueError(f"A dropout of {methods.dropout} needs a network built with one; its rate is 0.")
        if methods.holds_to_start:
            self._keep_start()
        if methods == self.methods:
            return
        before, self.methods = self.methods, methods
        self.network.user_tower.dropout.rate = sizes.dropout if methods.dropout is None else methods.dropout
        if (before.optimizer, before.weight_decay) != (methods.optimizer, methods.weight_decay):
            held = _slots(self.optimizer)
            self.optimizer = dense_optimizer(methods.optimizer, variables, methods.weight_decay)
            if {before.optimizer, methods.optimizer} <= {"adam", "adamw"} or before.optimizer == methods.optimizer:
                for name, slot in _slots(self.optimizer).items():
                    slot.assign(held[name])
        self._train = self._compiled_step()

    def weigh(self, examples: Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]]) -> None:
        """Estimates each dense weight's Fisher information: the mean of the squared gradients of single examples.

        Args:
            examples: rows and batch of one example each; none: every weight has 0.
        """
        squared = tf.function(self._squared_gradients, input_signature=[self._rows, self._batch])
        totals = [np.zeros(one.shape, np.float64) for one in self._importance]
        count = 0
        for rows, batch in examples:
            totals = [
                total + square.numpy() for total, square in zip(totals, squared(rows, dict(batch)), strict=True)
            ]
            count += 1
        for importance, total in zip(self._importance, totals, strict=True):
            importance.assign((total / max(count, 1)).astype(np.float32))

    def train_step(
        self, rows: np.ndarray, batch: Mapping[str, np.ndarray], learning_rate: float,
        start_rows: np.ndarray | None = None, replayed: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        """One step of the optimizer on the network's weights.

        Args:
            rows: [rows, dimension] float32, the rows of the item tables that the batch needs.
            batch: see the signature.
            learning_rate: of the optimizer.
            start_rows: [rows, dimension] float32, the same rows as they were at the start; for what holds to it.
            replayed: [batch] float32, 1: a replayed example; for distillation.

        Returns:
            The batch's mean loss before the step, and the gradient of `rows` [rows, dimension].
        """
        arguments = [rows, dict(batch), tf.constant(learning_rate, tf.float32)]
        if not self.methods.plain:
            arguments.append(rows if start_rows is None else start_rows)
            arguments.append(np.zeros_like(batch["weight"]) if replayed is None else replayed)
        loss, gradient = self._train(*arguments)
        return float(loss), gradient.numpy()

    def measure(self, rows: np.ndarray, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """[batch] float32: each example's loss without dropout."""
        return self._measure(rows, dict(batch)).numpy()

    def _train_step(
        self, rows: tf.Tensor, batch: Mapping[str, tf.Tensor], learning_rate: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        variables = self.network.trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(rows)
            losses = self._losses_of(rows, batch, training=True)
            loss = tf.reduce_sum(losses * batch["weight"]) / tf.maximum(tf.reduce_sum(batch["weight"]), 1.0)
        gradients, of_rows = tape.gradient(loss, ([variable.value for variable in variables], rows))
        self.optimizer.learning_rate.assign(learning_rate)
        self.optimizer.apply(gradients, variables)
        return loss, of_rows

    def _compiled_step(self) -> Any:
        signature = [self._rows, self._batch, tf.TensorSpec((), tf.float32)]
        if self.methods.plain:
            return tf.function(self._train_step, input_signature=signature)
        return tf.function(
            self._held_step, input_signature=[*signature, self._rows, tf.TensorSpec((None,), tf.float32)]
        )

    def _held_step(
        self, rows: tf.Tensor, batch: Mapping[str, tf.Tensor], learning_rate: tf.Tensor, start_rows: tf.Tensor,
        replayed: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """A step of what is not plain."""
        loss, gradients, of_rows = self._gradients(rows, batch, start_rows, replayed)
        if self.methods.adversarial_radius:
            moved = rows + self.methods.adversarial_radius * of_rows / (tf.norm(of_rows) + 1e-12)
            _, others, of_moved = self._gradients(moved, batch, start_rows, replayed)
            gradients = [(one + other) / 2.0 for one, other in zip(gradients, others, strict=True)]
            of_rows = (of_rows + of_moved) / 2.0
        self.optimizer.learning_rate.assign(learning_rate)
        self.optimizer.apply(gradients, self.network.trainable_variables)
        return loss, of_rows

    def _gradients(
        self, rows: tf.Tensor, batch: Mapping[str, tf.Tensor], start_rows: tf.Tensor, replayed: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        """The mean loss, and the gradients of it and of what holds to the start."""
        variables = [variable.value for variable in self.network.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(rows)
            logits = self.network(rows, batch, training=True)
            examples = tf.maximum(tf.reduce_sum(batch["weight"]), 1.0)
            loss = tf.reduce_sum(self._losses(logits, batch) * batch["weight"]) / examples
            total = loss
            if self.methods.distillation:
                forgotten = self._forgotten(logits, batch, start_rows) * replayed * batch["weight"]
                total += self.methods.distillation * tf.reduce_sum(forgotten) / examples
            if self.methods.l2_pull or self.methods.ewc:
                total += self._pull(rows, start_rows)
        gradients, of_rows = tape.gradient(total, (variables, rows), unconnected_gradients="zero")
        return loss, gradients, of_rows

    def _forgotten(
        self, logits: tuple[tf.Tensor, ...], batch: Mapping[str, tf.Tensor], start_rows: tf.Tensor
    ) -> tf.Tensor:
        """[batch]: the KL divergence of the network's answers from the start's, over what competes in the step."""
        assert self._start is not None
        before = tf.nn.log_softmax(_competing(self._start(start_rows, batch, training=False), batch))
        now = tf.nn.log_softmax(_competing(logits, batch))
        return tf.reduce_sum(tf.exp(before) * (before - now), axis=1)

    def _pull(self, rows: tf.Tensor, start_rows: tf.Tensor) -> tf.Tensor:
        assert self._start is not None
        total = self.methods.l2_pull * tf.reduce_sum(tf.square(rows - start_rows))
        weights, before = self.network.trainable_variables, self._start.trainable_variables
        for one, other, importance in zip(weights, before, self._importance, strict=True):
            strength = self.methods.l2_pull + self.methods.ewc * importance
            total += tf.reduce_sum(strength * tf.square(one.value - other.value))
        return total / 2.0

    def _keep_start(self) -> None:
        if self._start is None:
            self._start = Recommender(self.network.sizes, self.network.seed)
            self._importance = [
                tf.Variable(tf.zeros(one.shape), trainable=False) for one in self.network.trainable_variables
            ]
        for one, now in zip(self._start.trainable_variables, self.network.trainable_variables, strict=True):
            one.assign(now)

    def _squared_gradients(self, rows: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        variables = [variable.value for variable in self.network.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self._losses_of(rows, batch) * batch["weight"])
        return [tf.square(one) for one in tape.gradient(loss, variables, unconnected_gradients="zero")]

    def _losses_of(self, rows: tf.Tensor, batch: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self._losses(self.network(rows, batch, training=training), batch)

    def _losses(self, logits: tuple[tf.Tensor, ...], batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        shared, own, rating_logits = logits
        next_item = candidate_cross_entropy(
            shared, own=own, correction=batch["correction"], own_column=batch["own_column"],
            targets=batch["target_index"], own_targets=batch["own_targets"],
        )
        return next_item + RATING_WEIGHT * rating_cross_entropy(rating_logits, batch["rating"])


def variables_of(trainer: Trainer) -> dict[str, keras.Variable]:
    """Every variable that training changes or needs: weights, slots, seed generators.

    Their names are the same in each process: Keras numbers seed generators and optimizers by how many it has made.
    """
    generators = [one for one in trainer.network.variables if one.path.endswith("seed_generator_state")]
    seeds = {f"seed_generator/{place}": variable for place, variable in enumerate(generators)}
    weights = {one.path: one for one in trainer.network.variables if not one.path.endswith("seed_generator_state")}
    slots = {f"optimizer/{name}": one for name, one in _slots(trainer.optimizer).items()}
    return weights | seeds | slots


def _slots(optimizer: keras.optimizers.Optimizer) -> dict[str, keras.Variable]:
    """An optimizer's variables by name; Adafactor calls several by one, which are then numbered."""
    slots: dict[str, keras.Variable] = {}
    for place, one in enumerate(optimizer.variables):
        slots[one.name if one.name not in slots else f"{one.name}/{place}"] = one
    return slots


def _competing(logits: tuple[tf.Tensor, ...], batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """[batch, candidates + length]: the logits of all items of a step, those of the example's history once."""
    shared, own, _ = logits
    examples = tf.broadcast_to(tf.range(tf.shape(own)[0])[:, None], tf.shape(own))
    twice = tf.stack([examples, batch["own_column"]], axis=-1)
    shared = tf.tensor_scatter_nd_update(shared + batch["correction"], twice, NO_ITEM * tf.ones_like(own))
    return tf.concat([shared, own], axis=1)


def as_json(sizes: RecommenderSizes) -> dict[str, Any]:
    """The sizes in JSON's types."""
    return asdict(sizes)


def _batch_signature(text_dimension: int) -> dict[str, tf.TensorSpec]:
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
        "neighbour_entries": tf.TensorSpec((None, 3), indices),  # [pairs, 3]: example, candidate, place in the history
        "neighbour_value": tf.TensorSpec(numbers, floats),  # [pairs]
        "query_vector": tf.TensorSpec((None, text_dimension), floats), "has_query": tf.TensorSpec(numbers, floats),
        "target_index": tf.TensorSpec((None, TARGETS), indices),  # [batch, targets], candidates
        "own_targets": tf.TensorSpec((None, TARGETS), indices),  # [batch, targets], 1 + place in the history
        "rating_index": tf.TensorSpec(numbers, indices),  # [batch], rows
        "rating": tf.TensorSpec(numbers, floats), "weight": tf.TensorSpec(numbers, floats),
    }
