"""How good forecasts of demand are, example by example: higher is better, and an item of any size counts the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tasks.contract import Examples, Scores
from pipeline.tasks.demand_examples import HORIZONS_DAYS, array_of
from pipeline.tasks.demand_features import AGE, DAYS_SOLD, DISCOUNT, FEATURES

METRIC = "accuracy@7d"
WEEK = HORIZONS_DAYS.index(7)  # what shops order by, and the horizon that is judged
_NEW_DAYS = 28  # younger than the longest horizon: its sales cannot say much yet


def accuracy(examples: Examples, forecast: np.ndarray) -> np.ndarray:
    """[n] in 0..1: the smaller of forecast [n] and truth over the larger, in units of the week; from one unit on."""
    truth = array_of(examples.table, "units", len(HORIZONS_DAYS))[:, WEEK]
    largest = np.maximum(np.maximum(truth, forecast), 1.0)
    shares: np.ndarray = 1.0 - np.abs(truth - forecast) / largest
    return shares.astype(np.float64)


def judged(examples: Examples, metrics: Mapping[str, np.ndarray]) -> Scores:
    """Scores of the examples whose week counts, with the slices `new_item`, `slow` and `discounted`."""
    week = array_of(examples.table, "features", len(HORIZONS_DAYS), len(FEATURES))[:, WEEK]
    counts = array_of(examples.table, "weight", len(HORIZONS_DAYS))[:, WEEK] > 0
    hours = pc.cast(examples.table["hour"], pa.timestamp("us", tz="UTC")).to_pandas()
    frame = pd.DataFrame({
        "example_id": examples.table["example_id"].to_pylist(), "unit": examples.table["unit"].to_pylist(),
        "hour": pd.to_datetime(hours, utc=True), **metrics,
        "slice:new_item": week[:, AGE] < np.log1p(_NEW_DAYS),
        "slice:slow": week[:, DAYS_SOLD] < 4 / 28,  # less than once a week
        "slice:discounted": week[:, DISCOUNT] < -0.05,
    })
    return Scores(frame[counts].reset_index(drop=True), tuple(metrics))
