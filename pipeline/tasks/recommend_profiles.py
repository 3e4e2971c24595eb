"""What the recommender says of users for their profiles: their vectors, and which categories they may buy from next.

The compact form answers in numpy, as it does for consumers: no TensorFlow is loaded.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.compact_recommender import CompactRecommender

MOST_CATEGORIES = 3
MOST_ITEMS = 2  # named for each category, so that a person sees what is meant
_LISTS = ("history_counts", "history_views", "history_days", "history_habits")  # in the order of `logits`
_AT_ONCE = 64  # of a catalogue of 100,000 items so many answers are 26 MB

NEXT_TYPE = pa.list_(pa.struct([
    pa.field("category", pa.string()), pa.field("probability", pa.float64()),
    pa.field("items", pa.list_(pa.string())),
]))


def answers_for_profiles(compact: CompactRecommender, users: pa.Table, catalogue: pa.Table) -> pa.Table:
    """What a model says of users.

    A category's probability is the sum of its items' (softmax of the logits): that the next item chosen is of it.

    Args:
        compact: the model as consumers use it.
        users: `history_items`, `history_counts`, `history_views`, `history_days`, `history_habits` (lists, newest
            first), and `regular_categories` (lists), which are left out of the answer.
        catalogue: `item_id`, `category`.

    Returns:
        [users] `next_categories` (NEXT_TYPE, likeliest first), `vector` (list of float32 [dimension]).
    """
    arrays = _arrays(compact, users)
    columns, starts, names = _by_category(compact, catalogue)
    regular = users["regular_categories"].to_pylist()
    found, vectors = [], []
    for start in range(0, len(users), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        index, counts, views, days, habits = (array[part] for array in arrays)
        vectors.append(compact.user_vectors(index, counts, views, days).astype(np.float32))
        logits = compact.logits(index, counts, views, days, habits)
        logits[:, 0] = -np.inf
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances = (chances / chances.sum(axis=1, keepdims=True))[:, columns]
        for row, known in zip(chances, regular[part], strict=True):
            found.append(_next(row, columns, starts, names, set(known), compact.ids))
    width = vectors[0].shape[1] if vectors else 0
    flat = np.concatenate(vectors).ravel() if vectors else np.zeros(0, np.float32)
    offsets = np.arange(len(users) + 1, dtype=np.int32) * width
    return pa.table({
        "next_categories": pa.array(found, NEXT_TYPE),
        "vector": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.float32())),
    })


def _next(
    chances: np.ndarray, columns: np.ndarray, starts: np.ndarray, names: list[str], regular: set[str], ids: np.ndarray
) -> list[dict[str, object]]:
    """One user's categories; `chances` in order of `columns`, whose categories begin at `starts`."""
    if not len(names):
        return []
    total = np.add.reduceat(chances, starts)
    ends = np.append(starts[1:], len(columns))
    likeliest = [place for place in np.argsort(-total, kind="stable") if names[place] not in regular]
    answer: list[dict[str, object]] = []
    for place in likeliest[:MOST_CATEGORIES]:
        own = chances[starts[place] : ends[place]]
        best = np.argsort(-own, kind="stable")[:MOST_ITEMS]
        items = [str(item) for item in ids[columns[starts[place] + best]]]
        answer.append({"category": names[place], "probability": float(total[place]), "items": items})
    return answer


def _by_category(compact: CompactRecommender, catalogue: pa.Table) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The model's columns that have a category, by category; where each category begins; the categories."""
    told = dict(zip(catalogue["item_id"].to_pylist(), catalogue["category"].to_pylist(), strict=True))
    pairs = sorted((category, row) for item, row in compact.index.items() if (category := told.get(item)) is not None)
    names = sorted({category for category, _ in pairs})
    columns = np.array([row for _, row in pairs], np.int64)
    starts = np.searchsorted(np.array([category for category, _ in pairs], object), np.array(names, object))
    return columns, starts, names


def _arrays(compact: CompactRecommender, users: pa.Table) -> tuple[np.ndarray, ...]:
    """Histories as the model takes them: [users, longest] int64, then `_LISTS` in float32, padded with no item."""
    lists = {name: users[name].combine_chunks() for name in ("history_items", *_LISTS)}
    lengths = lists["history_items"].value_lengths().to_numpy()
    there = np.arange(lengths.max(initial=0)) < lengths[:, None]
    # row 0 is no item, so an id's place in the list after it, and 0 for an id that is unknown
    ids = pa.array(compact.ids[1:].tolist(), pa.string())
    known = pc.index_in(lists["history_items"].flatten().cast(pa.string()), value_set=ids)
    index = np.zeros(there.shape, np.int64)
    index[there] = pc.fill_null(pc.add(known.cast(pa.int64()), 1), 0).to_numpy()
    others = []
    for name in _LISTS:
        array = np.zeros(there.shape, np.float32)
        array[there] = lists[name].flatten().to_numpy()
        others.append(array)
    return index, *others
