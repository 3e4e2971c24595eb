"""Whether the champion recognises what arrived: a window that is unlike all that was known is not learnt.

What is poisoned at its source judges itself: its own validation examples praise whoever learns it, so no comparison of
two models finds it. But the champion foresaw it before anything learnt it (test, then train: Gama et al., Machine
Learning 90(3), 2013), and where items, users or labels are wrong it foresees next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from pipeline.evaluation import UnitMean, shown_by_holm, unit_means
from pipeline.tasks.contract import GateRules, Scores

_SLICE = "slice:"
_LEAST_UNITS = 20  # of fewer, next to none foreseen is no rare sight: at a mean of 0.1 once in eight times


@dataclass(frozen=True)
class _Seen:
    """The champion's score on a part of what arrived, beside what it is on such examples as a rule."""

    window: str
    part: str
    arrived: UnitMean
    usual: float


def not_recognised(champion: Scores, arrived: Mapping[datetime, Scores], rules: GateRules) -> tuple[str, ...]:
    """Why what arrived is not to be learnt, a sentence for each window; none where all is well.

    Each window is judged, and all together where each has too few users; each on all its examples and on the parts
    (slices and what is in none) that are most of it: right searches must not hide wrong purchases. All claims are
    corrected for each other (Holm).

    Args:
        champion: its scores on validation examples.
        arrived: its scores on what arrived, by landed window, from before it was learnt.
        rules: its metric, error rate, and the least share that a window must reach.
    """
    if not rules.least_on_arrival or not arrived:
        return ()
    metric = rules.arrival_metric or rules.metric
    seen = [one for name, frame in _windows(arrived) for one in _parts(name, frame, champion.frame, metric)]
    chances = [one.arrived.chance_at_least(one.usual * rules.least_on_arrival) for one in seen]
    strange: dict[str, _Seen] = {}
    for one, shown in zip(seen, shown_by_holm(chances, rules.error_rate), strict=True):
        if shown:
            strange.setdefault(one.window, one)
    return tuple(
        f"What landed in {one.window} is unlike what was known before: the champion's {metric} on {one.part} was "
        f"{one.arrived.mean:.4f} (at most {one.arrived.high(rules.error_rate):.4f}) over {one.arrived.units:,} units, "
        f"and is {one.usual:.4f} as a rule; it must reach {rules.least_on_arrival:.0%} of that. Look at the quality "
        "page and at the shop's export; correct the files and backfill the hour. If the shop has truly changed, "
        "promote this version by force."
        for one in strange.values()
    )


def _windows(arrived: Mapping[datetime, Scores]) -> Iterator[tuple[str, pd.DataFrame]]:
    names = [f"{window:%Y-%m-%dT%H:%MZ}" for window in arrived]
    yield from zip(names, (scores.frame for scores in arrived.values()), strict=True)
    if len(arrived) > 1:
        yield f"{names[0]} to {names[-1]}", pd.concat([scores.frame for scores in arrived.values()])


def _parts(window: str, arrived: pd.DataFrame, known: pd.DataFrame, metric: str) -> Iterator[_Seen]:
    """All of a window, and the slices and their complements that hold most of it; where there are enough units."""
    masks = {"all examples": (np.ones(len(arrived), bool), np.ones(len(known), bool))}
    for column in arrived.columns:
        if column.startswith(_SLICE):
            inside, theirs, name = arrived[column].to_numpy(bool), known[column].to_numpy(bool), column[len(_SLICE):]
            masks |= {name: (inside, theirs), f"all but {name}": (~inside, ~theirs)}
    for part, (inside, theirs) in masks.items():
        if 2 * inside.sum() < len(arrived):
            continue
        now, usual = (_by_unit(frame[rows], metric) for frame, rows in ((arrived, inside), (known, theirs)))
        if min(len(now), len(usual)) >= _LEAST_UNITS:
            yield _Seen(window, part, UnitMean.of(now, swing=float(usual.max())), float(usual.mean()))


def _by_unit(frame: pd.DataFrame, metric: str) -> np.ndarray:
    return unit_means(frame[metric].to_numpy(np.float64), frame["unit"])
