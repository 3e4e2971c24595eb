"""Low-rank changes of a text encoder: trained on pairs of texts that belong together, merged into its weights.

LoRA (Hu et al., ICLR 2022) on the queries and values of every attention layer, as the paper has it; everything else is
frozen. Pairs are told apart within a batch by the softmax of their cosines (SimCSE: Gao, Yao and Chen, EMNLP 2021).
What is kept are the factors, some tens of thousands of numbers; with them the encoder is made anew anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .text_encoder import TextEncoder

BATCH = 64  # pairs a step: each is told apart from 63 others
TEMPERATURE = 0.05  # SimCSE's, and QUERY_SCALE's inverse
PEAK_RATE = 5e-4  # between LoRA's 2e-4 for GPT-2 and the 1e-3 that is usual for few steps
_WARMUP_STEPS = 10
_SEEDS = 2**31


def trained_factors(
    encoder: TextEncoder, left: Sequence[str], right: Sequence[str], *, rank: int, steps: int, seed: int
) -> dict[str, np.ndarray]:
    """The factors that bring each `left` text nearer to its `right` one than to the others'.

    Args:
        encoder: stays as it is.
        left, right: [pairs] texts that belong together; texts that are equal never count as others.
        rank: of the change of each kernel.
        steps: of BATCH pairs.
        seed: of the first factors and of the draws.
    """
    copy = encoder.copy()
    kernels = _kernels(copy.backbone)
    for place, layer in enumerate(kernels):
        layer.enable_lora(rank)
        first = keras.initializers.HeUniform(seed=(seed + place) % _SEEDS)
        layer.lora_kernel_a.assign(first(layer.lora_kernel_a.shape))
    variables = [one for layer in kernels for one in (layer.lora_kernel_a, layer.lora_kernel_b)]
    optimizer = keras.optimizers.Adam(PEAK_RATE)
    optimizer.build(variables)
    step = _compiled(copy, variables, optimizer)
    generator = np.random.default_rng(seed)
    numbers = {text: place for place, text in enumerate(dict.fromkeys(right))}
    for made in range(steps):
        chosen = generator.integers(len(left), size=BATCH)
        ids, mask = copy.tokens([*(left[one] for one in chosen), *(right[one] for one in chosen)])
        rate = PEAK_RATE * min(1.0, (made + 1) / _WARMUP_STEPS) * (1.0 - made / steps)
        same = np.array([numbers[right[one]] for one in chosen], np.int32)
        step(tf.constant(ids), tf.constant(mask), tf.constant(same), tf.constant(rate, tf.float32))
    return {
        f"{place}/{side}": np.array(factor.numpy())
        for place, layer in enumerate(kernels)
        for side, factor in (("a", layer.lora_kernel_a), ("b", layer.lora_kernel_b))
    }


def adapted(encoder: TextEncoder, factors: Mapping[str, np.ndarray]) -> TextEncoder:
    """The encoder with the factors' products added to its kernels; an encoder like any other, with its own identity."""
    copy = encoder.copy()
    for place, layer in enumerate(_kernels(copy.backbone)):
        layer.kernel.assign_add(factors[f"{place}/a"] @ factors[f"{place}/b"])
    return copy.renewed()


def _compiled(encoder: TextEncoder, variables: Sequence[Any], optimizer: keras.optimizers.Optimizer) -> Any:
    ids = tf.TensorSpec((2 * BATCH, None), tf.int32)
    signature = [ids, ids, tf.TensorSpec((BATCH,), tf.int32), tf.TensorSpec((), tf.float32)]

    def step(ids: tf.Tensor, mask: tf.Tensor, same: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        values = [one.value for one in variables]
        with tf.GradientTape() as tape:
            tape.watch(values)
            vectors = encoder.pooled(ids, mask)
            cosines = tf.matmul(vectors[:BATCH], vectors[BATCH:], transpose_b=True) / TEMPERATURE
            twin = (same[:, None] == same[None, :]) & ~tf.eye(BATCH, dtype=tf.bool)
            cosines = tf.where(twin, -1e9, cosines)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(BATCH), cosines))
        optimizer.learning_rate.assign(rate)
        optimizer.apply(tape.gradient(loss, values), variables)
        return loss

    return tf.function(step, input_signature=signature)


def _kernels(backbone: keras.Model) -> list[Any]:
    """The query and value layers of every attention, in order.

    Raises:
        ValueError: the backbone has none that is known here.
    """
    held = [getattr(layer, "_self_attention_layer", None) for layer in backbone.layers]
    attentions = [one for one in held if one is not None]
    if not attentions:
        raise ValueError(
            f"LoRA needs a backbone of KerasHub's transformer encoder layers; {type(backbone).__name__} has none. "
            "Leave lora_rank 0, or set EVERGREEN_ENCODER to a BERT."
        )
    return [one for attention in attentions for one in (attention._query_dense, attention._value_dense)]
