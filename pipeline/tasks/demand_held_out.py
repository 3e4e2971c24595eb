"""Days that the demand learner never trains on: they calibrate its intervals, so that these hold for what is new to it.

One in ten of an item's months is held out whole, because windows of neighbouring days share most of their sales.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.tasks.contract import Examples
from pipeline.tasks.demand_examples import HORIZONS_DAYS, PRICE_DAYS, array_of
from pipeline.tasks.demand_features import FEATURES

HELD_OUT_SHARE = 0.1


@dataclass
class HeldOut:
    """Days that calibrate the intervals, newest last; arrays `[n, …]`.

    Attributes:
        features: [n, horizons, FEATURES] float32.
        units, weight: [n, horizons] float32, as in the examples.
        rows: [n] int, of the items.
    """

    features: np.ndarray
    units: np.ndarray
    weight: np.ndarray
    rows: np.ndarray

    @classmethod
    def none(cls) -> HeldOut:
        """No day."""
        nothing = np.zeros((0, len(HORIZONS_DAYS)), np.float32)
        return cls(np.zeros((*nothing.shape, len(FEATURES)), np.float32), nothing, nothing, np.zeros(0, np.int64))

    @classmethod
    def of(cls, examples: Examples, rows: np.ndarray) -> HeldOut:
        """The days of the examples, whose items are at `rows`."""
        table, horizons = examples.table, len(HORIZONS_DAYS)
        return cls(
            array_of(table, "features", horizons, len(FEATURES)), array_of(table, "units", horizons),
            array_of(table, "weight", horizons), rows,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a checkpoint."""
        return {f"held_out/{name}": array.copy() for name, array in vars(self).items()}

    def take(self, chosen: np.ndarray) -> HeldOut:
        """The days at `chosen` (places or a mask)."""
        return HeldOut(*(array[chosen] for array in vars(self).values()))


def held_out(examples: Examples) -> np.ndarray:
    """[n] bool: what calibrates, by a hash of item and month (28 days): no day of such a month is ever trained on."""
    if not len(examples):
        return np.zeros(0, bool)
    months = examples.table["time"].cast(pa.int64()).to_numpy() // (PRICE_DAYS * 86_400_000_000)
    draws: dict[str, bool] = {}
    keys = [f"{unit}|{month}" for unit, month in zip(examples.table["unit"].to_pylist(), months, strict=True)]
    for key in keys:
        if key not in draws:
            digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
            draws[key] = int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**64
    return np.array([draws[key] for key in keys])
