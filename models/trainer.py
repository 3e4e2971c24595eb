"""The recommender's compiled steps: one of training, by whatever methods are on, and one of measuring.

A step moves the network's weights and hands back the gradient of the item rows that its batch brought, which the
learner's tables move themselves (`optimizers.RowMoments`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from .losses import NO_ITEM, candidate_cross_entropy, rating_cross_entropy
from .optimizers import dense_optimizer
from .recommender import PART_SIGNATURE, Recommender, RecommenderSizes, batch_signature
from .workers import Workers

RATING_WEIGHT = 0.1  # ratings are a tenth of the events and beside the point of the ranking


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
        self.copy_pace = tf.Variable(1.0, trainable=False)  # not in the trace, which all learners of a process share
        self._start: Recommender | None = None
        self._importance: list[tf.Variable] = []
        # One trace each for all shapes: a trace costs two seconds, and each update is a new process.
        self._rows = tf.TensorSpec((None, network.sizes.dimension), tf.float32)
        self._batch = batch_signature(network.sizes.text_dimension)
        self._workers: Workers | None = None
        self._train = self._compiled_step()
        self._measure = tf.function(self._measured, input_signature=[self._rows, self._batch])
        self._new = {name: np.array(variable.numpy()) for name, variable in variables_of(self).items()}

    @classmethod
    def lent_to(cls, owner: object, sizes: RecommenderSizes, seed: int) -> Trainer:
        """A new trainer, or one as good as new whose owner is gone: its steps are traced already.

        A trace costs three to four CPU-seconds, and TensorFlow does not give back all of its memory: a process that
        makes learners one after another (a benchmark, tests, hours of updates) traces once for each that it has at
        the same time.

        Args:
            owner: who may use it; when nothing refers to the owner any more, the trainer is the next one's.
            sizes, seed: of its network.
        """
        spare = _SPARE.setdefault((sizes, seed), [])
        if spare:
            trainer = spare.pop()
            for name, variable in variables_of(trainer).items():
                variable.assign(trainer._new[name])
            trainer.copy_pace.assign(1.0)
        else:
            trainer = cls(Recommender(sizes, seed))
        weakref.finalize(owner, trainer._given_back, spare).atexit = False
        return trainer

    def _given_back(self, spare: list[Trainer]) -> None:
        """Runs wherever Python collects, within another step's trace too: it must not touch a variable."""
        as_built = self.network.user_tower.dropout.rate == self.network.sizes.dropout
        if self._workers is None and self.methods == StepMethods() and as_built:
            spare.append(self)

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

    def join(self, workers: Workers) -> None:
        """From now on each step is made by all workers: its batch is this one's part, its gradient that of all."""
        self._workers = workers
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
            The batch's mean loss before the step, and the gradient of `rows` [rows, dimension] (with several workers
            that of this one's part).
        """
        arguments = [rows, dict(batch), tf.constant(learning_rate, tf.float32)]
        if not self.methods.plain:
            arguments.append(rows if start_rows is None else start_rows)
            arguments.append(np.zeros_like(batch["weight"]) if replayed is None else replayed)
        loss, gradient = self._train(*arguments)
        return float(loss), gradient.numpy()

    def foresee(self, rows: np.ndarray, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """[batch, candidates] and [batch, length] float32: the logits of candidates and histories, without dropout."""
        _, shared, own = self._measure(rows, dict(batch))
        return shared.numpy(), own.numpy()

    def measure(self, rows: np.ndarray, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """[batch] float32: each example's loss without dropout."""
        losses: np.ndarray = self._measure(rows, dict(batch))[0].numpy()
        return losses

    def _train_step(
        self, rows: tf.Tensor, batch: Mapping[str, tf.Tensor], learning_rate: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        variables = self.network.trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(rows)
            losses = self._losses_of(rows, batch, training=True)
            examples = tf.reduce_sum(batch["weight"]) if self._workers is None else batch["examples"]
            loss = tf.reduce_sum(losses * batch["weight"]) / tf.maximum(examples, 1.0)
        gradients, of_rows = tape.gradient(loss, ([variable.value for variable in variables], rows))
        if self._workers is not None:
            loss, *gradients = self._workers.sum([loss, *gradients])
        self._step(gradients, learning_rate)
        return loss, of_rows

    def _step(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> None:
        """Moves the weights, those of the copy head `copy_pace` times as far."""
        head = self.network.copy_head.trainable_variables
        before = [tf.identity(one.value) for one in head]
        self.optimizer.learning_rate.assign(learning_rate)
        self.optimizer.apply(gradients, self.network.trainable_variables)
        for one, start in zip(head, before, strict=True):
            one.assign(start + self.copy_pace * (one.value - start))

    def _compiled_step(self) -> Any:
        batch = self._batch if self._workers is None else self._batch | PART_SIGNATURE
        signature = [self._rows, batch, tf.TensorSpec((), tf.float32)]
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
        self._step(gradients, learning_rate)
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

    def _measured(self, rows: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """[batch] losses and the logits that they are of: one trace for both."""
        logits = self.network(rows, batch, training=False)
        return self._losses(logits, batch), logits[0], logits[1]

    def _losses(self, logits: tuple[tf.Tensor, ...], batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        shared, own, rating_logits = logits
        next_item = candidate_cross_entropy(
            shared, own=own, correction=batch["correction"], own_column=batch["own_column"],
            targets=batch["target_index"], own_targets=batch["own_targets"],
        )
        return next_item + RATING_WEIGHT * rating_cross_entropy(rating_logits, batch["rating"])


# The trainers without an owner; how many there are of a kind is how many learners lived at the same time.
_SPARE: dict[tuple[RecommenderSizes, int], list[Trainer]] = {}


class Steps(Protocol):
    """What steps a network: its weights and the slots of its optimizer are what a checkpoint holds."""

    network: keras.layers.Layer
    optimizer: keras.optimizers.Optimizer


def variables_of(trainer: Steps) -> dict[str, keras.Variable]:
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
