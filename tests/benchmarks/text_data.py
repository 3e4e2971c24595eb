"""Banking77 and the clothing reviews as examples of the text tasks, each text embedded once into a cache.

The cache is a lake of its own below EVERGREEN_HOME, so that a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.examples import _draw
from pipeline.lake import Lake
from pipeline.locking import locks_of
from pipeline.settings import REPOSITORY, read_settings
from pipeline.tasks.contract import Examples
from pipeline.tasks.text_embedding import Embedding

DATA = REPOSITORY.parent / "shared" / "data"
_AT_ONCE = 2048
_TUNES = 0.1  # of the training texts: early stopping and calibration, as an hour's
_START = datetime(2026, 1, 1, tzinfo=UTC)


def data_set(name: str) -> pd.DataFrame:
    """A shared file."""
    path = DATA / name
    if not path.is_file():
        raise FileNotFoundError(f"The data set must lie at {path}; it does not. See the README of ../shared/data.")
    return pd.read_parquet(path)


def text_lake() -> Lake:
    """Where the benchmarks' vectors are."""
    home = read_settings({"EVERGREEN_MASK_KEY": "k" * 64, **_home()}).home / "benchmarks" / "texts"
    return Lake(str(home / "lake"), locks_of(home, None))


def _home() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name == "EVERGREEN_HOME"}


def examples_of(texts: list[str], **heads: list[str | None]) -> Examples:
    """Texts as examples, an hour each, with what was said of them by head."""
    ids = [f"t{place}" for place in range(len(texts))]
    times = pa.array([_START + timedelta(hours=place) for place in range(len(texts))], pa.timestamp("us", "UTC"))
    return Examples(pa.table({
        "example_id": ids, "unit": ids, "time": times, "hour": times, "landed_window": times,
        "rows": np.ones(len(texts), np.int64), "text": pa.array(texts, pa.string()),
        **{head: pa.array(names, pa.string()) for head, names in heads.items()},
    }))


def embedded(examples: Examples, embedding: Embedding) -> Examples:
    """The examples with their vectors, some thousand at once, so that what is stopped goes on there."""
    parts = [examples.table.slice(start, _AT_ONCE) for start in range(0, len(examples), _AT_ONCE)]
    return Examples(pa.concat_tables([embedding.of(part) for part in parts]))


def tunes(examples: Examples) -> np.ndarray:
    """[n] bool: the tenth that tunes, by a hash of the text's place."""
    return np.array([_draw(f"tune|{one}") < _TUNES for one in examples.table["example_id"].to_pylist()])


def no_context(examples: Examples) -> pa.Table:
    """The context of nothing but these examples' columns, empty."""
    table = examples.table.slice(0, 0)
    return pa.table({
        "message_id": table["example_id"], "hour": table["hour"], "text": table["text"],
        "answer": pa.array([], pa.string()), "gone": pa.array([], pa.bool_()), "text_vector": table["text_vector"],
        **{name: table[name] for name in table.column_names if name in ("intent", "sentiment", "topic")},
    })
