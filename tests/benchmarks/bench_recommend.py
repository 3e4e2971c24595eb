"""What one recommendation request costs, beside the bare numpy product and top-k that it cannot do without.

Both are timed in turns in one process, so that a noisy neighbour hits both alike; medians are compared.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from models.compact_recommender import CompactRecommender
from models.layers import HISTORY_FEATURES, USER_FEATURES
from models.recommender_service import RecommenderService

_DIMENSION, _HEADS, _HIDDEN, _COPY_HIDDEN, _K = 64, 4, 128, 16, 20  # RecommenderSizes' defaults
_HISTORY_ITEMS = 50
_ROUNDS = 60


def measure_recommend(items: int = 100_000, seed: int = 0) -> dict[str, float]:
    """Medians of one request and of the bare product over `items` items: `request_s`, `matmul_s`, `vs_matmul`."""
    generator = np.random.default_rng(seed)
    recommender = random_recommender(items, generator)
    service = RecommenderService(recommender, lambda: None)
    history = [f"item-{row}" for row in generator.choice(items, _HISTORY_ITEMS, replace=False)]
    request = pd.DataFrame({"history": [history], "history_days": [np.arange(_HISTORY_ITEMS, dtype=float)]})
    matrix, wish = recommender.arrays["items"], generator.normal(size=_DIMENSION).astype(np.float32)

    def bare() -> np.ndarray:
        logits = matrix @ wish
        best = np.argpartition(logits, len(logits) - _K)[-_K:]
        return best[np.argsort(-logits[best])]

    seconds: dict[str, list[float]] = {"request_s": [], "matmul_s": []}
    for _ in range(_ROUNDS):
        seconds["request_s"].append(_seconds(lambda: service.answer(request, {"k": _K})))
        seconds["matmul_s"].append(_seconds(bare))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {**medians, "vs_matmul": medians["request_s"] / medians["matmul_s"]}


def random_recommender(items: int, generator: np.random.Generator) -> CompactRecommender:
    """A recommender of random weights."""
    pooled = _HEADS * _DIMENSION + USER_FEATURES
    shapes = {
        "items": (items + 1, _DIMENSION), "popularity": (items + 1,), "weigh_item": (_DIMENSION, _HEADS),
        "weigh_features": (HISTORY_FEATURES, _HEADS), "user_hidden_kernel": (pooled, _HIDDEN),
        "user_hidden_bias": (_HIDDEN,), "user_direct_kernel": (pooled, _DIMENSION),
        "user_output_kernel": (_HIDDEN, _DIMENSION), "copy_linear": (HISTORY_FEATURES,), "copy_popularity": (),
        "copy_again": (_DIMENSION,), "copy_hidden_kernel": (HISTORY_FEATURES + USER_FEATURES, _COPY_HIDDEN),
        "copy_hidden_bias": (_COPY_HIDDEN,), "copy_output_kernel": (_COPY_HIDDEN,), "search_gates": (3,),
        "text_adapter": (384, _DIMENSION), "query_kernel": (_DIMENSION, _DIMENSION),
    }
    arrays = {name: np.asarray(generator.normal(0, 0.1, shape), np.float32) for name, shape in shapes.items()}
    return CompactRecommender(["", *(f"item-{row}" for row in range(items))], arrays)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(measure_recommend(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)))
