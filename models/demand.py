"""The demand network: what an item sells in the next 1, 7 and 28 days, as a mean and as quantiles that cannot cross.

It works on the logarithm of one plus the units, and answers with how far the truth lies from what the item usually
sells: a level that is right for most is given, so that items of a unit a week and of a thousand share one network
(global models over many series: Montero-Manso and Hyndman 2021). It has no weights of single items: a new item is
foreseen from its text, category and price alone, and nothing of an item's past can be remembered but by its features.
Losses: squared error for the mean and the pinball loss for the quantiles (Koenker and Bassett 1978), the median being
what minimises the absolute error by which forecasts are judged. A step away from a level that was measured costs a
little (a Laplace prior: Tibshirani 1996), for what a log's few months say of it holds in the next ones in part only. A
second head says what an item of this text usually costs, for items that have no price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .optimizers import dense_optimizer

QUANTILES = (0.1, 0.5, 0.9)
# How hard the median is held at the level. Online Retail, the ten weeks up to 2011-09-30, mean of four seeds: WAPE
# 0.594 without, 0.590 with 0.1, 0.591 with 0.2.
PULL = 0.1
PRICE_WEIGHT = 0.1  # the price head is beside the point; its error is of the size of the others'
CATEGORY_BUCKETS = 256  # categories by hash (Weinberger et al., ICML 2009): the table need not grow
_NARROW = 0.3  # first guess of a quantile's distance, before softplus: 0.85, a factor of 2.3 in units


@dataclass(frozen=True)
class DemandSizes:
    """The shapes of the network.

    Attributes:
        features: how many there are.
        usual_week: which of them is the log of one plus a usual week's units, the level.
        text_dimension: length of a projected text vector.
        horizons_days: what is foreseen.
        text_width, category_width, hidden, second: widths.
        price_weight: of the price head's error in the loss.
        pull: weight of the median's distance from the level in the loss; networks of before December 2026 had none.
    """

    features: int
    usual_week: int
    text_dimension: int
    horizons_days: tuple[int, ...] = (1, 7, 28)
    text_width: int = 16
    category_width: int = 8
    hidden: int = 96
    second: int = 48
    price_weight: float = PRICE_WEIGHT
    pull: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """JSON's types; `from_json` reads it."""
        return {**asdict(self), "horizons_days": list(self.horizons_days)}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> DemandSizes:
        """What `as_json` wrote."""
        return cls(**{**said, "horizons_days": tuple(said["horizons_days"])})


def weight_shapes(sizes: DemandSizes) -> dict[str, tuple[int, ...]]:
    """The weights by name."""
    width = sizes.features + len(sizes.horizons_days) + sizes.text_width + sizes.category_width
    return {
        "text": (sizes.text_dimension, sizes.text_width), "category": (CATEGORY_BUCKETS, sizes.category_width),
        "hidden": (width, sizes.hidden), "hidden_bias": (sizes.hidden,),
        "second": (sizes.hidden, sizes.second), "second_bias": (sizes.second,),
        "output": (sizes.second, 4), "output_bias": (4,),
        "price": (sizes.text_width + sizes.category_width, 1), "price_bias": (1,),
    }


class Demand(keras.layers.Layer):
    """The network; scaling of its inputs is the learner's."""

    def __init__(self, sizes: DemandSizes, seed: int) -> None:
        """Builds all weights; `seed` decides every random one."""
        super().__init__(name="demand")
        self.sizes = sizes
        for place, (name, shape) in enumerate(weight_shapes(sizes).items()):
            drawn: keras.initializers.Initializer = keras.initializers.GlorotUniform(seed=seed + place)
            if name.endswith("bias") or name in ("output", "category", "price"):
                drawn = keras.initializers.Zeros()  # the first answer is the usual week
            setattr(self, f"w_{name}", self.add_weight(name=name, shape=shape, initializer=drawn))
        self.w_output_bias.assign([0.0, 0.0, _NARROW, _NARROW])
        self.built = True

    def call(
        self, features: tf.Tensor, usual: tf.Tensor, text: tf.Tensor, category: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The forecasts.

        Args:
            features: [batch, horizons, features] float32, scaled.
            usual: [batch, horizons] float32, log of one plus what is usual in the horizon.
            text: [batch, text dimension] float32.
            category: [batch] int32, bucket.

        Returns:
            [batch, horizons, 4] float32, log of one plus units: mean, then the quantiles; and [batch] the log price.
        """
        horizons = len(self.sizes.horizons_days)
        described = tf.concat([text @ self.w_text, tf.gather(self.w_category, category)], axis=1)
        which = tf.tile(tf.eye(horizons)[None], [tf.shape(features)[0], 1, 1])
        inputs = tf.concat([features, which, tf.tile(described[:, None], [1, horizons, 1])], axis=2)
        hidden = tf.nn.relu(tf.tensordot(inputs, self.w_hidden, 1) + self.w_hidden_bias)
        second = tf.nn.relu(tf.tensordot(hidden, self.w_second, 1) + self.w_second_bias)
        raw = tf.tensordot(second, self.w_output, 1) + self.w_output_bias
        median = usual + raw[..., 1]
        low, high = tf.nn.softplus(raw[..., 2]), tf.nn.softplus(raw[..., 3])
        parts = [usual + raw[..., 0], median - low, median, median + high]
        return tf.stack(parts, axis=-1), (described @ self.w_price + self.w_price_bias)[:, 0]


class DemandTrainer:
    """The network's optimizer and its compiled steps: one of training, one of measuring."""

    def __init__(self, network: Demand) -> None:
        """Builds the optimizer's slots; nothing is traced before the first step."""
        self.network = network
        self.optimizer = dense_optimizer("adam", network.trainable_variables)
        horizons, floats = len(network.sizes.horizons_days), tf.float32
        signature = {
            "features": tf.TensorSpec((None, horizons, network.sizes.features), floats),
            "usual": tf.TensorSpec((None, horizons), floats), "text": tf.TensorSpec((None, None), floats),
            "category": tf.TensorSpec((None,), tf.int32), "target": tf.TensorSpec((None, horizons), floats),
            "counts": tf.TensorSpec((None, horizons), floats), "volume": tf.TensorSpec((None, horizons), floats),
            "pull": tf.TensorSpec((None, horizons), floats),
            "log_price": tf.TensorSpec((None,), floats), "priced": tf.TensorSpec((None,), floats),
            "weight": tf.TensorSpec((None,), floats),
        }
        self._train = tf.function(self._step, input_signature=[signature, tf.TensorSpec((), floats)])
        self._measure = tf.function(self._losses, input_signature=[signature])

    def train_step(self, batch: Mapping[str, np.ndarray], learning_rate: float) -> float:
        """One step of the optimizer; returns the batch's loss before it (the mean over rows of weight 1)."""
        return float(self._train(dict(batch), tf.constant(learning_rate, tf.float32)))

    def losses(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """[batch] float32: each row's loss."""
        losses: np.ndarray = self._measure(dict(batch)).numpy()
        return losses

    def _step(self, batch: Mapping[str, tf.Tensor], learning_rate: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = self._losses(batch)
            loss = tf.reduce_sum(losses * batch["weight"]) / tf.maximum(tf.reduce_sum(batch["weight"]), 1.0)
        variables = self.network.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.learning_rate.assign(learning_rate)
        self.optimizer.apply(gradients, variables)
        return loss

    def _losses(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        answer, log_price = self.network(batch["features"], batch["usual"], batch["text"], batch["category"])
        target = batch["target"]
        squared = 0.5 * tf.square(answer[..., 0] - target)
        pinball = tf.add_n([
            pinball_loss(target, answer[..., place], quantile) for place, quantile in enumerate(QUANTILES, 1)
        ])
        pinball += batch["pull"] * tf.abs(answer[..., 2] - batch["usual"])
        by_horizon = batch["counts"] * (squared + batch["volume"] * pinball)
        price = batch["priced"] * tf.square(log_price - batch["log_price"])
        return tf.reduce_sum(by_horizon, axis=1) + self.network.sizes.price_weight * price


def pinball_loss(target: tf.Tensor, quantile: tf.Tensor, share: float) -> tf.Tensor:
    """The loss that the quantile `share` minimises: its error times the share above it, or below it."""
    error = target - quantile
    return tf.maximum(share * error, (share - 1.0) * error)
