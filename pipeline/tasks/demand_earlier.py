"""A checkpoint of the demand learner that knew other features, so that a champion's lineage goes on with today's.

Features go by their names. One that is gone counts as it did on average; a new one counts for nothing until the next
lesson has fitted its scale and training has given it weights. What such a network answers relative to stays what it
was, because its weights know no other level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.demand import DemandSizes
from pipeline.tasks.contract import State
from pipeline.tasks.demand_features import EARLIER_FEATURES, FEATURES

# The only weights whose first axis has a place for each feature, and Adam's two slots of them.
_INPUTS = ("demand/hidden", "optimizer/demand_hidden_momentum", "optimizer/demand_hidden_velocity")
# For days that were held out before there was the feature: the nearest that they hold.
_STAND_INS = {"drawn_week": "usual_week_8"}


def of_todays_features(state: State) -> State:
    """The state as if its network had known FEATURES; the same one where it has."""
    known = tuple(state.meta.get("features", EARLIER_FEATURES))
    if known == FEATURES:
        return state
    sizes = DemandSizes.from_json(state.meta["sizes"])
    usual = FEATURES.index(known[sizes.usual_week])
    changed = {
        "feature_mean": _by_name(state.arrays["feature_mean"], known, 0.0),
        "feature_scale": _by_name(state.arrays["feature_scale"], known, np.inf),  # counts for nothing
        "held_out/features": _stood_in(state.arrays["held_out/features"], known),
    }
    for name in _INPUTS:
        held = state.arrays[name]
        weights = _by_name(held[: len(known)].T, known, 0.0).T
        changed[name] = np.concatenate([weights, held[len(known) :]])
    meta = {
        **state.meta, "features": list(FEATURES),
        "sizes": {**sizes.as_json(), "features": len(FEATURES), "usual_week": usual},
    }
    return State({**state.arrays, **changed}, meta)


def _by_name(array: np.ndarray, known: Sequence[str], of_new: float) -> np.ndarray:
    """[..., FEATURES] float32 from [..., known]."""
    held = {name: array[..., place] for place, name in enumerate(known)}
    new = np.full(array.shape[:-1], of_new, np.float32)
    return np.ascontiguousarray(np.stack([held.get(name, new) for name in FEATURES], axis=-1))


def _stood_in(features: np.ndarray, known: Sequence[str]) -> np.ndarray:
    filled = _by_name(features, known, 0.0)
    for name, other in _STAND_INS.items():
        if name not in known:
            filled[..., FEATURES.index(name)] = filled[..., FEATURES.index(other)]
    return filled
