"""What is measured of a text classifier, an example each: is it right, is it right of rare classes, is it honest.

`accuracy`: the share of what a person has said of the example (topic, sentiment) that the model finds likeliest too.
`macro_recall`: the share that it tells too, weighted so that the mean over all examples is the mean over classes of
each class's share: a class of ten messages counts as much as one of ten thousand. What is told may favour rare classes
(models/compact_text.py), the likeliest class does not. `calibration`: 1 less half of Brier's score, so that a
confident error costs more than a doubtful one. A class that the model does not know is told wrongly, and counts as a
class of its own: models that know different ones are measured by the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from pipeline.tasks.contract import Examples, Scores

METRICS = ("accuracy", "macro_recall", "calibration")


def scores_of(
    examples: Examples, chances: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray],
    classes: Mapping[str, Mapping[str, int]], told: Mapping[str, np.ndarray] | None = None,
) -> Scores:
    """The scores of the examples of which a person has said something.

    Each class of a head is a slice of its own, so that forgetting one is seen, and so is what the model does not know.

    Args:
        examples: what was asked, with a column per head: what a person has said.
        chances: head -> [n, classes] float, what the model says.
        targets: head -> [n] int, what is right; -1: nobody has said, -2: a class that the model does not know.
        classes: head -> name -> place.
        told: head -> [n] int, the class that the model tells; None: the likeliest.
    """
    heads = list(targets)
    judged = np.any([targets[head] != -1 for head in heads], axis=0)
    said = np.zeros(len(judged))
    sums = {name: np.zeros(len(judged)) for name in METRICS}
    for head in heads:
        likeliest = chances[head].argmax(axis=1) if chances[head].shape[1] else np.zeros(len(judged), np.int64)
        said_of = likeliest if told is None else told[head]
        named = pd.factorize(examples.table[head].to_pandas())[0]
        for name, values in _of_head(chances[head], targets[head], named, likeliest, said_of).items():
            sums[name] += values
        said += targets[head] != -1
    table = examples.table
    frame = pd.DataFrame({
        "example_id": table["example_id"].to_pylist(), "unit": table["unit"].to_pylist(),
        "hour": pd.to_datetime(table["hour"].to_pylist(), utc=True),
        **{name: values / np.maximum(said, 1.0) for name, values in sums.items()},
        "slice:new_class": np.any([targets[head] == -2 for head in heads], axis=0),
        **{
            f"slice:{head} {name}": targets[head] == place
            for head in heads for name, place in classes[head].items() if (targets[head] == place).any()
        },
    })
    return Scores(frame[judged].reset_index(drop=True), METRICS)


def _of_head(
    chances: np.ndarray, targets: np.ndarray, named: np.ndarray, likeliest: np.ndarray, told: np.ndarray
) -> dict[str, np.ndarray]:
    """[n] of each metric; 0 where nobody has said. `named`: [n] int, what a person has said, unknown classes too."""
    judged, known = targets != -1, targets >= 0
    rows = np.flatnonzero(known)
    right, found = np.zeros(len(targets)), np.zeros(len(targets))
    honest = np.where(judged, 0.5, 0.0)
    if chances.shape[1]:
        right[rows], found[rows] = likeliest[rows] == targets[rows], told[rows] == targets[rows]
        squares = (chances**2).sum(axis=1)
        of_target = np.zeros(len(targets))
        of_target[rows] = chances[rows, targets[rows]]
        honest = np.where(judged, 1.0 - (1.0 + squares - 2.0 * of_target) / 2.0, 0.0)
    counts, weights = np.bincount(named[judged]), np.zeros(len(targets))
    weights[judged] = judged.sum() / (np.count_nonzero(counts) * counts[named[judged]])
    return {"accuracy": right, "macro_recall": found * weights, "calibration": honest}


def macro_f1(said: np.ndarray, right: np.ndarray) -> float:
    """The mean over the classes of `right` of each one's F1.

    Args:
        said, right: [n], names or places.
    """
    scores = []
    for one in np.unique(right):
        hits = int(((said == one) & (right == one)).sum())
        scores.append(2.0 * hits / max(int((said == one).sum() + (right == one).sum()), 1))
    return float(np.mean(scores)) if scores else 0.0
