"""What the recommender answers, in counts: categories, popularity, what is new to the user, how sure it is.

The compact form answers in numpy, so that the watch sees each hour what consumers see and loads no TensorFlow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.compact_ensemble import load_recommender
from models.compact_recommender import CompactRecommender, best
from pipeline.profiles import MISSING, UNKNOWN, Counts
from pipeline.tasks.recommend_baseline import K

_LISTS = ("history_counts", "history_views", "history_days", "history_habits")  # in the order of `logits`
HISTORY = 64  # newest items of a history: what is older moves an answer by little

# 512 users' answers put a share of 10 % within 1.3 % of its true value for the first place alone.
MOST_USERS = 512
_AT_ONCE = 64  # of a catalogue of 100,000 items so many answers are 26 MB

_HEAD, _MIDDLE = 0.01, 0.10  # of the catalogue, by how often items are chosen lately


def answers_in_counts(
    compact: CompactRecommender, examples: pa.Table, categories: dict[str, str], asked: Collection[str]
) -> Counts:
    """What users are recommended: column -> bin -> answers.

    Args:
        compact: the model as consumers use it.
        examples: EXAMPLES_SCHEMA; the newest `MOST_USERS` users' are answered.
        categories: of the items.
        asked: the items of the window's rows, one a row: does the model know them?
    """
    newest = {row["unit"]: row for row in examples.select(["unit", "history_items", *_LISTS]).to_pylist()}
    rows = list(newest.values())[-MOST_USERS:]
    head = _heads(compact)
    counted: dict[str, Counter[str]] = {name: Counter() for name in ("category", "popularity", "new to them", "sure")}
    for start in range(0, len(rows), _AT_ONCE):
        index, counts, views, days, habits = _arrays(compact, rows[start : start + _AT_ONCE])
        logits = compact.logits(index, counts, views, days, habits)
        logits[:, 0] = -np.inf
        items, values = best(logits, min(K, logits.shape[1]))
        counted["sure"].update(_sureness(logits, values[:, 0]))
        for row, own in zip(items, index, strict=True):
            answered = row[row > 0]
            counted["category"].update(categories.get(compact.ids[item]) or MISSING for item in answered)
            counted["popularity"].update(head[item] for item in answered)
            counted["new to them"].update("known" if item in own else "new" for item in answered)
    counted["asked for"] = Counter("known" if item in compact.index else UNKNOWN for item in asked)
    return {name: dict(bins) for name, bins in counted.items()}


def load_compact(artifacts: Path) -> CompactRecommender:
    """The model among a package's artifacts."""
    return load_recommender(artifacts / "recommender")


def _heads(compact: CompactRecommender) -> np.ndarray:
    """[items] object: which part of the catalogue an item belongs to."""
    popularity = compact.arrays["trend"] @ compact.arrays["trend_mix"]
    rank = np.empty(len(popularity), np.int64)
    rank[np.argsort(-popularity, kind="stable")] = np.arange(len(popularity))
    share = rank / max(len(popularity), 1)
    return np.where(share < _HEAD, "top 1 %", np.where(share < _MIDDLE, "next 9 %", "the rest")).astype(object)


def _arrays(compact: CompactRecommender, rows: list[dict]) -> tuple[np.ndarray, ...]:
    index = np.zeros((len(rows), HISTORY), np.int64)
    others = [np.zeros((len(rows), HISTORY), np.float32) for _ in _LISTS]
    for place, row in enumerate(rows):
        items = row["history_items"][:HISTORY]
        index[place, : len(items)] = [compact.index.get(item, 0) for item in items]
        for array, name in zip(others, _LISTS, strict=True):
            array[place, : len(items)] = row[name][:HISTORY]
    return index, *others


def _sureness(logits: np.ndarray, first: np.ndarray) -> list[str]:
    """The first answer's probability, by powers of two."""
    highest = logits.max(axis=1)
    total = np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest
    return [f"1/{2 ** int(power)}" for power in np.clip(np.floor(-(first - total) / np.log(2)), 0, 20)]
