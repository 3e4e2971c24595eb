"""The recommender's losses: cross-entropy over the catalogue and over the stars of a rating, one value an example.

A pure softmax over all items is what the judged metrics (full ranking, nothing sampled) ask for; where the
basket holds several items each is an equally likely next one, as in Mult-VAE (Liang et al., WWW 2018).
"""

from __future__ import annotations

import tensorflow as tf

RATING_CLASSES = 5  # one to five stars, the scale of the events feed


def catalogue_cross_entropy(logits: tf.Tensor, target_index: tf.Tensor) -> tf.Tensor:
    """The mean of -log p(target) over each example's targets.

    Args:
        logits: [batch, items] float32; column 0 belongs to no item.
        target_index: [batch, targets] int32; 0: no target.

    Returns:
        [batch] float32; 0 for an example without targets.
    """
    present = tf.cast(target_index > 0, logits.dtype)
    chosen = tf.gather(logits, target_index, axis=1, batch_dims=1)
    surprise = (tf.reduce_logsumexp(logits, axis=1, keepdims=True) - chosen) * present
    return tf.reduce_sum(surprise, axis=1) / tf.maximum(tf.reduce_sum(present, axis=1), 1.0)


def rating_cross_entropy(logits: tf.Tensor, rating: tf.Tensor) -> tf.Tensor:
    """-log p(stars), the rating rounded to whole stars.

    Args:
        logits: [batch, RATING_CLASSES] float32, of one star, two stars, ...
        rating: [batch] float32; 0: not rated.

    Returns:
        [batch] float32; 0 for an example without a rating.
    """
    stars = tf.clip_by_value(tf.cast(tf.round(rating), tf.int32) - 1, 0, RATING_CLASSES - 1)
    surprise = tf.nn.sparse_softmax_cross_entropy_with_logits(stars, logits)
    return tf.where(rating > 0, surprise, tf.zeros_like(surprise))
