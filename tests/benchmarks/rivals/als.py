"""ALS of implicit: matrix factorisation by alternating least squares (Hu, Koren, Volinsky 2008).

Trained anew at every step. A user's factors are solved again from the history at test time, which the items' factors
allow in closed form, so that users and sessions unknown to the training are ranked for as well.
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

BASKETS_ALPHA = 1.0
"""Confidence per purchase. Recall@20 on Online Retail, four weeks of 37–43, regularisation 10: 1 0.288, 5 0.273, 20
0.222; logarithms of the counts at most 0.281, regularisation 1 0.280, 30 (eight weeks) 0.242 against 0.283."""

CLICKS_ALPHA = 3000.0
"""Confidence per click. Recall@20 on DIGINETICA, period 8 after 0–7: 1 0.137, 100 0.292, 1000 0.367, 3000 0.397, 10000
0.397: with five clicks a session and 38,000 items, what was not clicked says next to nothing."""

FACTORS = 64  # the size of our own learner's rows
_REGULARISATION = 10.0
_ITERATIONS = 15  # the library's default; 30 changed nothing (Online Retail, weeks 36–43: 0.282 against 0.283)
_THREADS = 2


def rank(
    train: pa.Table, tests: pa.Table, catalogue: Sequence[str], seed: int, *, alpha: float = BASKETS_ALPHA,
    new_only: bool = False,
) -> Ranked:
    """Rank `catalogue` by the product with the user's factors, solved from the history.

    With `new_only` what the history holds is left out of the answer.
    """
    from implicit.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # implicit has threads of its own; two layers of them only wait for each other
        started = time.process_time()
        items = known_items(train)
        model = AlternatingLeastSquares(
            factors=FACTORS, regularization=_REGULARISATION, alpha=alpha, iterations=_ITERATIONS,
            num_threads=_THREADS, random_state=seed,
        )  # fmt: skip
        model.fit(counts_of_users(train, items), show_progress=False)
        trained = time.process_time()
        histories = counts_of_histories(tests, items)
        positions, _ = model.recommend(
            np.arange(len(tests)), histories, N=RANKED_ITEMS, filter_already_liked_items=new_only,
            recalculate_user=True, items=rankable(items, catalogue),
        )  # fmt: skip
        known = np.diff(histories.indptr) > 0  # of the others the factors are zero, and so every score
        ranked = as_ids(np.where(known[:, None], positions, -1), items)
        return Ranked(ranked, trained - started, time.process_time() - trained)
