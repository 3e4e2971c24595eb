"""Whether two models' scores can be compared at all: of the same examples, in the same order, and finite."""

from __future__ import annotations

import numpy as np

from pipeline.tasks.contract import Scores


class ScoresDiffer(ValueError):
    """Two models were scored on different examples, so that they cannot be compared.

    Attributes:
        against: the role of the model that the challenger was to be compared with.
        rule: what must hold.
        seen: what was found instead.
    """

    def __init__(self, against: str, rule: str, seen: str) -> None:
        """Takes the attributes."""
        self.against, self.rule, self.seen = against, rule, seen
        super().__init__(
            f"Challenger and {against} cannot be compared: {rule}; {seen}. "
            "Score both on one Examples object, without dropping or sorting rows."
        )


def check_same_examples(role: str, other: Scores, challenger: Scores, metric: str) -> None:
    """Compares what two models were scored on, example by example.

    Raises:
        ScoresDiffer: with what differs.
    """
    ours, theirs = challenger.frame["example_id"].to_numpy(), other.frame["example_id"].to_numpy()
    if len(ours) != len(theirs):
        raise ScoresDiffer(
            role, "both must score the same examples", f"they have {len(ours)} and {len(theirs)}"
        )
    differing = np.flatnonzero(ours != theirs)
    if len(differing):
        place = int(differing[0])
        raise ScoresDiffer(
            role, "both must score the same examples in the same order",
            f"{len(differing)} of {len(ours)} differ, the first at row {place}: "
            f"{ours[place]!r} and {theirs[place]!r}",
        )
    for name, frame in (("challenger", challenger.frame), (role, other.frame)):
        if metric not in frame.columns:
            raise ScoresDiffer(
                role, f"both must have the metric {metric!r}", f"the {name} has {list(frame.columns)}"
            )
        faulty = int((~np.isfinite(frame[metric].to_numpy(np.float64))).sum())
        if faulty:
            raise ScoresDiffer(
                role, f"each score must be a finite number; {metric!r}", f"{faulty} of the {name}'s are not"
            )
