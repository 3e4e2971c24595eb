"""One step of the protocol as tables, and what a rival answers.

A rival is a function `rank(train, tests, catalogue, seed) -> Ranked`. All of them read the same two tables, so a
difference in quality can come only from the rival; the tables are Arrow's, so one of them can run in a process of its
own. Nothing here takes items of the user's own history out of the answer: baskets are often bought again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_matrix

RANKED_ITEMS = 20

TRAIN = pa.schema([("user", pa.string()), ("time", pa.timestamp("us", tz="UTC")), ("items", pa.list_(pa.string()))])
"""One row per basket, or per click, in order of time; of a session's clicks the user is the session."""

TESTS = pa.schema([("user", pa.string()), ("time", pa.timestamp("us", tz="UTC")), ("history", pa.list_(pa.string()))])
"""One row per answer that is wanted; `history` is all that the user had before `time`, oldest first, with repeats."""


@dataclass(frozen=True)
class Ranked:
    """A rival's answers and their cost in CPU-seconds, user and system, over all of its threads.

    `items`: item ids, dtype object, [tests, RANKED_ITEMS], best first; None where the rival has no more to offer.
    """

    items: np.ndarray
    train_cpu_s: float
    rank_cpu_s: float


Rival = Callable[[pa.Table, pa.Table, Sequence[str], int], Ranked]
"""`train` (columns TRAIN), `tests` (columns TESTS), the item ids that may be ranked, and the seed."""


def known_items(train: pa.Table) -> pa.StringArray:
    """The distinct items of `train`, sorted: the columns of the rivals' matrices."""
    distinct = pc.unique(pc.list_flatten(train["items"])).drop_null()
    return distinct.take(pc.sort_indices(distinct))


def rankable(items: pa.StringArray, catalogue: Sequence[str]) -> np.ndarray:
    """Positions in `items` of those that may be ranked, int32, ascending."""
    return np.flatnonzero(pc.is_in(items, pa.array(catalogue, pa.string())).to_numpy(zero_copy_only=False)).astype(
        np.int32
    )


def counts(rows: np.ndarray, lists: pa.ChunkedArray, items: pa.StringArray, height: int) -> csr_matrix:
    """How often each item stands in the lists that belong to each row, float32, [height, len(items)].

    `rows`: the row that each list adds to, int, [lists]. Items that `items` lacks are left out.
    """
    column = pc.index_in(pc.list_flatten(lists), items)
    row = rows[pc.list_parent_indices(lists).to_numpy()]
    found = pc.is_valid(column).to_numpy()
    entries = (np.ones(found.sum(), np.float32), (row[found], column.drop_null().to_numpy()))
    return csr_matrix(entries, shape=(height, len(items)))  # sums what stands in one place


def counts_of_users(train: pa.Table, items: pa.StringArray) -> csr_matrix:
    """How often each user of `train` had each item, float32, [users, len(items)]."""
    users = pc.dictionary_encode(train["user"]).combine_chunks()
    return counts(users.indices.to_numpy(), train["items"], items, len(users.dictionary))


def counts_of_histories(tests: pa.Table, items: pa.StringArray) -> csr_matrix:
    """How often each item stands in the history of each test, float32, [tests, len(items)]."""
    return counts(np.arange(len(tests)), tests["history"], items, len(tests))


def as_ids(positions: np.ndarray, items: pa.StringArray) -> np.ndarray:
    """Item ids of ranked positions in `items`, dtype object, [tests, RANKED_ITEMS]; a negative position is None.

    `positions`: int, [tests, at most RANKED_ITEMS], best first.
    """
    ids = np.array([*items.to_pylist(), None], object)  # position -1 is None
    ranked = np.full((len(positions), RANKED_ITEMS), None, object)
    ranked[:, : positions.shape[1]] = ids[np.maximum(positions, -1)]
    return ranked
