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

from models.blend import untouched
from models.compact_recommender import CompactRecommender
from models.layers import HISTORY_FEATURES, NEIGHBOUR_NORMS, TREND_DAYS, USER_FEATURES
from models.recommender import RecommenderSizes
from models.recommender_service import RecommenderService

_SIZES = RecommenderSizes(text_dimension=128)
_NEIGHBOURS = 32  # of each item, as pipeline.tasks.recommend_neighbours keeps
_K = 20
_HISTORY_ITEMS = 50
_ROUNDS = 60


def measure_recommend(items: int = 100_000, seed: int = 0) -> dict[str, float]:
    """Medians of one request and of the bare product over `items` items: `request_s`, `matmul_s`, `vs_matmul`."""
    generator = np.random.default_rng(seed)
    recommender = random_recommender(items, generator)
    service = RecommenderService(recommender, lambda: None)
    history = [f"item-{row}" for row in generator.choice(items, _HISTORY_ITEMS, replace=False)]
    request = pd.DataFrame({"history": [history], "history_days": [np.arange(_HISTORY_ITEMS, dtype=float)]})
    matrix, wish = recommender.arrays["items"], generator.normal(size=_SIZES.dimension).astype(np.float32)

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
    """A recommender of random weights, every item with as many neighbours as are kept."""
    width, heads, hidden, copy_hidden = _SIZES.dimension, _SIZES.heads, _SIZES.user_hidden, _SIZES.copy_hidden
    pooled, spans = heads * width + USER_FEATURES, len(TREND_DAYS)
    shapes = {
        "items": (items + 1, width), "trend": (items + 1, spans), "trend_mix": (spans,), "weigh_item": (width, heads),
        "weigh_features": (HISTORY_FEATURES, heads), "user_hidden_kernel": (pooled, hidden),
        "user_hidden_bias": (hidden,), "user_direct_kernel": (pooled, width), "user_output_kernel": (hidden, width),
        "copy_linear": (HISTORY_FEATURES,), "copy_popularity": (), "copy_again": (width,),
        "copy_hidden_kernel": (HISTORY_FEATURES + spans + USER_FEATURES, copy_hidden),
        "copy_hidden_bias": (copy_hidden,), "copy_output_kernel": (copy_hidden,),
        "neighbour_features": (HISTORY_FEATURES, NEIGHBOUR_NORMS), "neighbour_gain": (NEIGHBOUR_NORMS,),
        "neighbour_own_gain": (NEIGHBOUR_NORMS,), "neighbour_far_gain": (), "neighbour_far_log_scale": (),
        "neighbour_whole_gain": (2,), "neighbour_whole_log_scale": (),
        "neighbour_log_scale": (NEIGHBOUR_NORMS,), "search_gates": (3,), "text_adapter": (_SIZES.text_dimension, width),
        "text_projection": (384, _SIZES.text_dimension), "query_kernel": (width, width),
    }
    arrays = {name: np.asarray(generator.normal(0, 0.1, shape), np.float32) for name, shape in shapes.items()}
    arrays["neighbour_index"] = generator.integers(1, items + 1, (items + 1, _NEIGHBOURS), np.int32)
    arrays["neighbour_value"] = generator.exponential(size=(items + 1, _NEIGHBOURS)).astype(np.float32)
    arrays["neighbour_seen"] = 1.0 + arrays["neighbour_value"].sum(axis=1)
    arrays["ages"] = generator.uniform(0.0, 300.0, items + 1).astype(np.float32)
    arrays["blend"] = untouched() + generator.normal(0, 0.1, untouched().shape).astype(np.float32)
    return CompactRecommender(["", *(f"item-{row}" for row in range(items))], arrays)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(measure_recommend(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)))
