"""How the recommender's answers are found for those who judge it: by the compact form, each in its own time."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from models.compact_recommender import CompactRecommender, Times
from pipeline.tasks.recommend_batches import groups_by_length
from pipeline.tasks.recommend_encoded import Encoded
from pipeline.tasks.recommend_items import ItemTables
from pipeline.tasks.recommend_trends import Trends

_AT_ONCE = 256  # examples


def ranked(
    compact: CompactRecommender, encoded: Encoded, tables: ItemTables, trends: Trends, k: int, *,
    new_only: bool = False,
) -> np.ndarray:
    """The items that each example is answered with, under the trend and the ages of its own time.

    Of an example that happened after all that was learnt, these are the newest: as in service.

    Args:
        compact: what answers.
        encoded: the examples.
        tables, trends: what was known when.
        k: how many items.
        new_only: leave out what the history holds.

    Returns:
        [n, k] int64, best first, -1: none.
    """
    moments = trends.moment_of(encoded.times)
    answers = np.full((len(encoded), k), -1, np.int64)
    for chosen, length in groups_by_length(encoded, np.arange(len(encoded)), _AT_ONCE):
        history = encoded.history(chosen, (len(chosen), length))
        there, moment = np.unique(moments[chosen], return_inverse=True)
        logits = compact.logits(
            history["history_index"], history["history_counts"], history["history_views"], history["history_days"],
            encoded.habits(chosen, (len(chosen), length)), encoded.query_vector[chosen], encoded.has_query[chosen] > 0,
            times_of(tables, trends, there, moment),
        )
        if new_only:
            np.put_along_axis(logits, history["history_index"], -np.inf, axis=1)
        logits[:, 0] = -np.inf
        values, items = tf.math.top_k(logits, min(k, logits.shape[1]))  # ten times as fast as numpy's partition
        answers[chosen, : items.shape[1]] = np.where(np.isneginf(values), -1, items)
    return answers


def times_of(tables: ItemTables, trends: Trends, there: np.ndarray, moment: np.ndarray) -> Times:
    """The trend and the ages of all items at some of the trend's moments.

    Args:
        tables, trends: what was known when.
        there: [moments] int, which (`Trends.moment_of`).
        moment: [batch] int, which of these each request is of.
    """
    everything = np.arange(len(tables))
    trend = np.stack([trends.logs(int(one)) for one in there])
    ages = np.stack([tables.ages(everything, trends.day_of(int(one))) for one in there])
    return Times(trend, ages, moment)


def slices(encoded: Encoded, tables: ItemTables, targets: np.ndarray) -> dict[str, np.ndarray]:
    """By `slice:name`, [n] bool: which of the gate's slices each example is in.

    Args:
        encoded: the examples.
        tables: of the items.
        targets: [n, most] int64, see `Encoded.padded_targets`.
    """
    admitted = np.append(tables.items.admitted, False)  # the last stands for an unknown item
    new_item = ((targets >= 0) & ~admitted[np.minimum(targets, len(tables))]).any(axis=1)
    empty = np.diff(encoded.history_offsets) == 0
    return {
        "slice:new_user": empty, "slice:old_user": ~empty, "slice:new_item": new_item,
        "slice:repeat": encoded.repeats(), "slice:search": encoded.has_query > 0,
    }
