"""The recommender's losses: cross-entropy over the catalogue and over the stars of a rating, one value an example.

A softmax over all items is what the judged metrics (full ranking, nothing sampled) ask for; where the basket holds
several items each is an equally likely next one, as in Mult-VAE (Liang et al., WWW 2018). Over a large catalogue the
sum below the fraction is estimated from a sample, each item weighted by how likely it was to be drawn (importance
sampling, Bengio and Senécal, AISTATS 2003; "logQ correction"), with the example's own targets and history exact and
never counted twice.
"""

from __future__ import annotations

import tensorflow as tf

RATING_CLASSES = 5  # one to five stars, the scale of the events feed
NO_ITEM = -1e9  # logit of what is no item


def candidate_cross_entropy(
    shared: tf.Tensor, own: tf.Tensor, correction: tf.Tensor, own_column: tf.Tensor, targets: tf.Tensor,
    own_targets: tf.Tensor,
) -> tf.Tensor:
    """The mean of -log p(target) over each example's targets.

    Args:
        shared: [batch, columns] float32, logits of the candidates that the batch shares; column 0 is no item.
        own: [batch, length] float32, logits of the items of each example's own history, NO_ITEM where there is none.
        correction: [columns] float32, -log of the expected number of times that a candidate is drawn; 0 for all where
            the candidates are the whole catalogue, NO_ITEM for a candidate that was not drawn.
        own_column: [batch, length] int32, the candidate that is the same item, 0: none.
        targets: [batch, targets] int32, columns of the targets outside the history, 0: none.
        own_targets: [batch, targets] int32, 1 + place in the history of the targets within it, 0: none.

    Returns:
        [batch] float32; 0 for an example without targets.
    """
    chosen = tf.gather(shared, targets, axis=1, batch_dims=1)
    weighted = _with_columns(shared + correction, targets, chosen)
    weighted = _with_columns(weighted, own_column, NO_ITEM * tf.ones_like(own))
    nobody = tf.fill([tf.shape(own)[0], 1], NO_ITEM)
    weighted = tf.concat([nobody, weighted[:, 1:], own], axis=1)
    again = tf.gather(tf.concat([nobody, own], axis=1), own_targets, axis=1, batch_dims=1)
    outside, inside = tf.cast(targets > 0, shared.dtype), tf.cast(own_targets > 0, shared.dtype)
    everything = tf.reduce_logsumexp(weighted, axis=1, keepdims=True)
    surprise = (everything - chosen) * outside + (everything - again) * inside
    return tf.reduce_sum(surprise, axis=1) / tf.maximum(tf.reduce_sum(outside + inside, axis=1), 1.0)


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


def _with_columns(table: tf.Tensor, columns: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """`table` [batch, n] with `values` [batch, m] in the columns [batch, m] of each row; column 0 may hold anything."""
    rows = tf.broadcast_to(tf.range(tf.shape(columns)[0])[:, None], tf.shape(columns))
    return tf.tensor_scatter_nd_update(table, tf.stack([rows, columns], axis=-1), values)
