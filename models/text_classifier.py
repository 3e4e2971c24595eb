"""The text classifier: what a message is about and how it is meant, from a frozen encoder's vector and its n-grams.

    logits = 16 * (adapted vector . class vectors) + 16 * (n-grams . class n-grams) + bias

The adapter is a residual bottleneck in the manner of Houlsby et al. (ICML 2019), put behind the encoder instead of
inside: it begins as the identity, and an update moves it without embedding a text again. Classes grow: each head has
room for a multiple of CAPACITY_STEP of them, and a new class begins at the mean of its first examples (imprinted
weights: Qi, Brown and Lowe, CVPR 2018), so that it is told apart before a step is made and the old ones stay as they
are. One network may have several heads on one adapter, such as topic and sentiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .optimizers import dense_optimizer

CAPACITY_STEP = 32  # a trace of the step costs a second; the shapes change once in so many new classes
NO_CLASS = -1e9  # the logit of a place that no class has yet
# Cosines of a text and a fitting class differ by some 0.3 from those of a wrong one: times 16 that is a hundredfold
# in probability, as sharp as the softmax of CLIP and sentence-transformers (20).
SCALE = 16.0
IMPRINTED_NGRAMS = 0.5  # of the mean: n-grams of few examples say less than their vectors


@dataclass(frozen=True)
class ClassifierSizes:
    """The shapes of the network, and how it is kept from learning by heart.

    Attributes:
        text_dimension: length of a text vector.
        heads: names of what is told.
        buckets: n-grams are hashed into so many (models/text_features.py). A logistic regression on banking77 tells
            0.920 of the test messages rightly from the vectors alone, 0.929 with 2,048 buckets beside them.
        hidden: width of the adapter.
        dropout: of the adapter's hidden units and of the n-grams.
    """

    text_dimension: int
    heads: tuple[str, ...]
    buckets: int = 2048
    hidden: int = 256
    dropout: float = 0.5


@dataclass(frozen=True)
class StepMethods:
    """What a step does beside following the loss; see pipeline's `Methods` for what each is."""

    distillation: float = 0.0
    l2_pull: float = 0.0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    dropout: float | None = None

    @property
    def holds_to_start(self) -> bool:
        """Whether the network as it was at the start is needed."""
        return bool(self.distillation or self.l2_pull)


class TextClassifier(keras.layers.Layer):
    """The network."""

    def __init__(self, sizes: ClassifierSizes, capacity: Mapping[str, int], seed: int) -> None:
        """Builds all weights; `capacity`: head -> room for so many classes; `seed` decides the adapter's."""
        super().__init__(name="text_classifier")
        self.sizes, self.capacity, self.seed = sizes, dict(capacity), seed
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        sizes, add = self.sizes, self.add_weight
        normal = keras.initializers.RandomNormal(stddev=sizes.text_dimension**-0.5, seed=self.seed)
        self.adapter_in = add((sizes.text_dimension, sizes.hidden), normal, name="adapter_in")
        self.adapter_bias = add((sizes.hidden,), "zeros", name="adapter_bias")
        self.adapter_out = add((sizes.hidden, sizes.text_dimension), "zeros", name="adapter_out")
        self.vectors, self.ngrams, self.biases, self.room = {}, {}, {}, {}
        for head in sizes.heads:
            room = self.capacity[head]
            self.vectors[head] = add((sizes.text_dimension, room), "zeros", name=f"{head}_vectors")
            self.ngrams[head] = add((sizes.buckets, room), "zeros", name=f"{head}_ngrams")
            self.biases[head] = add((room,), "zeros", name=f"{head}_bias")
            self.room[head] = add((room,), keras.initializers.Constant(NO_CLASS), name=f"{head}_room", trainable=False)
        super().build(input_shape)

    def call(
        self, vectors: tf.Tensor, ngrams: tf.Tensor, seed: tf.Tensor | None = None, dropout: float = 0.0
    ) -> dict[str, tf.Tensor]:
        """Head -> logits [batch, capacity], NO_CLASS where there is none.

        Args:
            vectors: [batch, text_dimension] float32, unit length.
            ngrams: [batch, buckets] float32.
            seed: [2] int32, of the dropout; None: there is none.
            dropout: its rate.
        """
        scaled = vectors * tf.cast(self.sizes.text_dimension, tf.float32) ** 0.5
        hidden = tf.nn.gelu(scaled @ self.adapter_in + self.adapter_bias, approximate=True)
        if seed is not None and dropout:
            hidden = tf.nn.experimental.stateless_dropout(hidden, dropout, seed)
            ngrams = tf.nn.experimental.stateless_dropout(ngrams, dropout, seed + 1)
        adapted = tf.math.l2_normalize(vectors + hidden @ self.adapter_out, axis=1)
        return {
            head: SCALE * (adapted @ self.vectors[head] + ngrams @ self.ngrams[head]) + self.biases[head]
            + self.room[head]
            for head in self.sizes.heads
        }


class ClassifierTrainer:
    """The network with its optimizer and compiled step; classes are added to it.

    A batch holds `vectors`, `ngrams`, `seed`, `replayed` [batch] float32 (1: was learnt before), and for each head
    `<head>_target` [batch, capacity] float32 (what it should say, sums to 1) and `<head>_weight` [batch] float32
    (0: nobody knows).
    """

    def __init__(self, sizes: ClassifierSizes, capacity: Mapping[str, int], seed: int) -> None:
        tf.config.experimental.enable_op_determinism()
        self.network = TextClassifier(sizes, capacity, seed)
        self.methods = StepMethods()
        self._start: TextClassifier | None = None
        self._build()

    def _build(self) -> None:
        sizes, rows = self.network.sizes, tf.TensorSpec((None,), tf.float32)
        self.optimizer = dense_optimizer(
            self.methods.optimizer, self.network.trainable_variables, self.methods.weight_decay
        )
        batch = {
            "vectors": tf.TensorSpec((None, sizes.text_dimension), tf.float32),
            "ngrams": tf.TensorSpec((None, sizes.buckets), tf.float32),
            "seed": tf.TensorSpec((2,), tf.int32), "replayed": rows,
        }
        for head in sizes.heads:
            batch[f"{head}_target"] = tf.TensorSpec((None, self.network.capacity[head]), tf.float32)
            batch[f"{head}_weight"] = rows
        self._step = tf.function(self._train, input_signature=[batch, tf.TensorSpec((), tf.float32)])

    def use(self, methods: StepMethods) -> None:
        """From now on steps by these methods; what some of them hold to is the network as it is now."""
        before, self.methods = self.methods, methods
        if (before.optimizer, before.weight_decay) == (methods.optimizer, methods.weight_decay):
            held = [one.numpy() for one in self.optimizer.variables]
        else:
            held = []
        if methods.holds_to_start:
            self._start = TextClassifier(self.network.sizes, self.network.capacity, self.network.seed)
            for one, now in zip(self._start.variables, self.network.variables, strict=True):
                one.assign(now)
        if before != methods:
            self._build()
            for variable, value in zip(self.optimizer.variables, held, strict=False):
                variable.assign(value)

    def add_classes(
        self, head: str, known: int, vectors: np.ndarray, ngrams: np.ndarray
    ) -> None:
        """Adds classes to a head that has `known` of them; each begins at the mean of its first examples.

        Args:
            head: which.
            known: how many classes it has.
            vectors: [new, text_dimension] float32, mean vectors, of any length above 0.
            ngrams: [new, buckets] float32, mean n-grams.
        """
        count = known + len(vectors)
        if count > self.network.capacity[head]:
            room = -(-count // CAPACITY_STEP) * CAPACITY_STEP
            self._widen({**self.network.capacity, head: room})
        network, new = self.network, slice(known, count)
        for variable, rows, scale in (
            (network.vectors[head], vectors, 1.0), (network.ngrams[head], ngrams, IMPRINTED_NGRAMS)
        ):
            lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
            values = variable.numpy()
            values[:, new] = scale * (rows / lengths).T
            variable.assign(values)
        room = network.room[head].numpy()
        room[new] = 0.0
        network.room[head].assign(room)

    def _widen(self, capacity: Mapping[str, int]) -> None:
        """A network with more room, with the weights and slots of this one."""
        arrays = self.arrays()
        self.network = TextClassifier(self.network.sizes, capacity, self.network.seed)
        self._build()
        self.assign(arrays)

    def train_step(self, batch: Mapping[str, np.ndarray], learning_rate: float) -> float:
        """One step of the optimizer; the batch's mean loss before it."""
        return float(self._step(dict(batch), tf.constant(learning_rate, tf.float32)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights and slots by name."""
        slots = {f"optimizer/{place}": one for place, one in enumerate(self.optimizer.variables)}
        weights = {one.name: one for one in self.network.variables}
        return {name: np.array(one.numpy()) for name, one in {**weights, **slots}.items()}

    def assign(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over weights and slots, those of a network with less room too."""
        slots = {f"optimizer/{place}": one for place, one in enumerate(self.optimizer.variables)}
        weights = {one.name: one for one in self.network.variables}
        for name, variable in {**weights, **slots}.items():
            value = variable.numpy()
            given = np.asarray(arrays[name])
            if given.shape == value.shape:
                value = given
            else:
                value[..., : given.shape[-1]] = given
            variable.assign(value)

    def weight_names(self) -> Sequence[str]:
        """The names of what training moves."""
        return [one.name for one in self.network.trainable_variables]

    def _train(self, batch: Mapping[str, tf.Tensor], learning_rate: tf.Tensor) -> tf.Tensor:
        network, methods = self.network, self.methods
        dropout = network.sizes.dropout if methods.dropout is None else methods.dropout
        variables = network.trainable_variables
        with tf.GradientTape() as tape:
            logits = network(batch["vectors"], batch["ngrams"], batch["seed"], dropout=dropout)
            loss = self._loss(logits, batch)
            total = loss
            if methods.distillation:
                total += methods.distillation * self._forgotten(logits, batch)
            if methods.l2_pull:
                assert self._start is not None
                pairs = zip(variables, self._start.trainable_variables, strict=True)
                total += methods.l2_pull / 2.0 * tf.add_n(
                    [tf.reduce_sum(tf.square(one.value - other.value)) for one, other in pairs]
                )
        gradients = tape.gradient(total, [one.value for one in variables], unconnected_gradients="zero")
        self.optimizer.learning_rate.assign(learning_rate)
        self.optimizer.apply(gradients, variables)
        return loss

    def _loss(self, logits: Mapping[str, tf.Tensor], batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        losses = []
        for head, values in logits.items():
            each = tf.nn.softmax_cross_entropy_with_logits(batch[f"{head}_target"], values)
            weight = batch[f"{head}_weight"]
            losses.append(tf.reduce_sum(each * weight) / tf.maximum(tf.reduce_sum(weight), 1.0))
        return tf.add_n(losses)

    def _forgotten(self, logits: Mapping[str, tf.Tensor], batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The mean KL divergence of the answers from the start's, over replayed examples."""
        assert self._start is not None
        start = self._start(batch["vectors"], batch["ngrams"])
        replayed = batch["replayed"]
        parts = []
        for head, values in logits.items():
            before, now = tf.nn.log_softmax(start[head]), tf.nn.log_softmax(values)
            each = tf.reduce_sum(tf.exp(before) * (before - now), axis=1)
            parts.append(tf.reduce_sum(each * replayed) / tf.maximum(tf.reduce_sum(replayed), 1.0))
        return tf.add_n(parts)
