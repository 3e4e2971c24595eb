"""Demand forecasts as consumers use them: plain arrays and numpy, the same numbers as the network's.

The learner scores with this too: what the gate judges is what is served. The quantiles are widened or narrowed by what
held-out days showed (conformalised quantile regression: Romano, Patterson and Candès, NeurIPS 2019), apart for items
that sell seldom, now and then, and on most days (Vovk 2012: coverage within groups), so that the interval holds for
each of them and not for their mixture alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

# Days of the last 28 on which an item sold: seldom; at least once a week; on most working days.
GROUP_STARTS = np.array([4, 12]) / 28.0 - 1e-6
OUTSIDE = 0.1  # of the truths lie beneath the interval, as many above it


class CompactDemand:
    """Forecasts by item. Row 0 of every item array is no item.

    Attributes:
        ids: [items] object; ids[0] is empty.
        arrays: by name, as `DemandLearner.compact` makes them.
        index: id -> row.
    """

    def __init__(self, ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Takes the item ids, row 0 included, and the arrays."""
        self.ids = np.asarray(ids, dtype=object)
        self.arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        self.index = {item: row for row, item in enumerate(self.ids) if row}
        self.horizons_days = tuple(self.arrays["horizons_days"].tolist())

    def raw(self, features: np.ndarray, text: np.ndarray, category: np.ndarray) -> np.ndarray:
        """[n, horizons, 4] float32, log of one plus units: mean and quantiles as the network gives them.

        Args:
            features: [n, horizons, features] float32, not scaled.
            text: [n, text dimension] float32.
            category: [n] int, buckets.
        """
        arrays, horizons = self.arrays, len(self.horizons_days)
        scaled = scaled_features(features, arrays["feature_mean"], arrays["feature_scale"])
        described = np.concatenate([text @ arrays["text"], arrays["category"][category]], axis=1)
        which = np.broadcast_to(np.eye(horizons, dtype=np.float32), (len(features), horizons, horizons))
        spread = np.broadcast_to(described[:, None], (len(features), horizons, described.shape[1]))
        inputs = np.concatenate([scaled, which, spread], axis=2)
        hidden = np.maximum(inputs @ arrays["hidden"] + arrays["hidden_bias"], 0.0)
        second = np.maximum(hidden @ arrays["second"] + arrays["second_bias"], 0.0)
        raw = second @ arrays["output"] + arrays["output_bias"]
        usual = usual_in(features[..., int(arrays["usual_week"][0])], self.horizons_days)
        median = usual + raw[..., 1]
        low, high = np.logaddexp(0.0, raw[..., 2]), np.logaddexp(0.0, raw[..., 3])
        return np.stack([usual + raw[..., 0], median - low, median, median + high], axis=-1).astype(np.float32)

    def units(self, raw: np.ndarray, days_sold: np.ndarray) -> np.ndarray:
        """[n, horizons, 4] float64, units: mean, tenth, half, nine tenths; calibrated, none below 0, in this order.

        Args:
            raw: as `raw` gives it.
            days_sold: [n, horizons] share of the last 28 days on which the item sold.
        """
        group = groups_of(days_sold)
        at = np.arange(raw.shape[1])[None]
        moved = raw.astype(np.float64)
        moved[..., 1] -= self.arrays["lower"][group, at]
        moved[..., 3] += self.arrays["upper"][group, at]
        units = np.expm1(np.maximum(moved, 0.0))
        units[..., 0] *= self.arrays["mean_factor"][group, at]
        units[..., 1:] = np.maximum.accumulate(units[..., 1:], axis=-1)
        if "told_by" not in self.arrays:  # a version of before
            return units
        told, days = self.arrays["told_by"], np.array(self.horizons_days, np.float64)
        return units[:, told] * (days / days[told])[None, :, None]

    def forecast(self, rows: np.ndarray) -> np.ndarray:
        """[n, horizons, 4]: `units` of the items at `rows`, from the day after the newest one that is over."""
        arrays = self.arrays
        features = np.repeat(arrays["features"][rows][:, None], len(self.horizons_days), axis=1)
        sold = features[..., int(arrays["days_sold"][0])]
        return self.units(self.raw(features, arrays["item_text"][rows], arrays["item_category"][rows]), sold)

    def save(self, folder: Path) -> None:
        """Writes `arrays.safetensors` and `ids.json` below `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.arrays, folder / "arrays.safetensors")
        (folder / "ids.json").write_text(json.dumps([str(item) for item in self.ids]), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> CompactDemand:
        """What `save` wrote."""
        ids = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
        return cls(ids, load_file(folder / "arrays.safetensors"))


def told_by(shown: np.ndarray) -> np.ndarray:
    """[horizons] int: by which horizon each is foretold, from which are `shown` ([horizons] bool, short to long).

    By itself where days have shown it; else by the longest that is shown and shorter, in proportion. In a shop's first
    weeks no four weeks are over, and what the network says of them is what it has learnt of shorter ones, made
    longer by nothing.
    """
    places = np.arange(len(shown))
    longest = np.maximum.accumulate(np.where(shown, places, -1))
    return np.where(longest >= 0, longest, places)


def scaled_features(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """[..., features] float32: standardised; beyond five deviations an input says no more."""
    scaled: np.ndarray = np.clip((features - mean) / scale, -5.0, 5.0).astype(np.float32)
    return scaled


def usual_in(usual_week: np.ndarray, horizons_days: Sequence[int]) -> np.ndarray:
    """[n, horizons]: log of one plus a usual week's units [n, horizons], for the length of each horizon."""
    week = np.expm1(usual_week)
    return np.log1p(week * np.array(horizons_days, np.float32) / np.float32(7.0))


def groups_of(days_sold: np.ndarray) -> np.ndarray:
    """The calibration's group by the share of the last 28 days on which an item sold: 0 seldom, 1, 2 most days."""
    return np.searchsorted(GROUP_STARTS, days_sold, side="right")


def conformal_offsets(
    raw: np.ndarray, target: np.ndarray, counts: np.ndarray, group: np.ndarray, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """How far the interval's ends must move outwards, so that OUTSIDE of the truths lie beyond each.

    Args:
        raw: [n, horizons, 4] of days that nothing has learnt.
        target: [n, horizons] log of one plus units.
        counts: [n, horizons] bool.
        group: [n, horizons] int.
        least: a group with fewer days takes all groups' together; where those are fewer, nothing moves.

    Returns:
        lower, upper: [groups, horizons] float64.
    """
    groups = len(GROUP_STARTS) + 1
    ends = np.zeros((2, groups, raw.shape[1]))
    errors = np.maximum(raw[..., 1], 0.0) - target, target - np.maximum(raw[..., 3], 0.0)
    for horizon in range(raw.shape[1]):
        for one in range(groups):
            chosen = counts[:, horizon] & (group[:, horizon] == one)
            if chosen.sum() < least:
                chosen = counts[:, horizon]
            if chosen.sum() < least:
                continue
            share = min(1.0, (1.0 - OUTSIDE) * (1.0 + 1.0 / chosen.sum()))  # the finite-sample correction
            for end, error in enumerate(errors):
                ends[end, one, horizon] = np.quantile(error[chosen, horizon], share, method="higher")
    return ends[0], ends[1]

