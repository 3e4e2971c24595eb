"""Item-kNN of implicit: what users had together, weighted by BM25; the cheapest model that a team would put in service.

Trained anew at every step. At test time a user's row is how often each item stands in the history, so that what was
bought between training and the test counts, as it does for every other rival.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tests.benchmarks.rivals.exchange import (
    RANKED_ITEMS,
    Ranked,
    as_ids,
    counts_of_histories,
    counts_of_users,
    known_items,
    rankable,
)

NEIGHBOURS = 1000
"""K, the item itself included, chosen by Recall@20 (DIGINETICA on a tested period). Online Retail, mean of weeks 36–43:
20 0.289, 100 0.298, 400 0.303, 1000 0.307, 2000 0.308; cosine and TF-IDF of the counts stayed under 0.297 at every K.
DIGINETICA, period 8 after 0–7: 20 0.456, 100, 200 and 500 0.464 (cosine 0.454, TF-IDF 0.465)."""

_THREADS = 2


def rank(
    train: pa.Table, tests: pa.Table, catalogue: Sequence[str], seed: int = 0, *, new_only: bool = False
) -> Ranked:
    """Rank `catalogue` by the summed similarity to the history; nothing here is random, so `seed` is not used.

    With `new_only` what the history holds is left out of the answer.
    """
    from implicit.nearest_neighbours import BM25Recommender

    started = time.process_time()
    items = known_items(train)
    model = BM25Recommender(K=NEIGHBOURS, num_threads=_THREADS)
    model.fit(counts_of_users(train, items), show_progress=False)
    trained = time.process_time()
    histories = counts_of_histories(tests, items)
    banned = np.setdiff1d(np.arange(len(items), dtype=np.int32), rankable(items, catalogue))
    positions, scores = model.recommend(
        np.arange(len(tests)), histories, N=RANKED_ITEMS, filter_already_liked_items=new_only, recalculate_user=True,
        filter_items=banned if len(banned) else None,
    )  # fmt: skip
    offered = np.where(scores > 0, positions, -1)  # an item without a neighbour in the history scores nothing
    ranked = as_ids(offered, items)
    return Ranked(ranked, trained - started, time.process_time() - trained)
