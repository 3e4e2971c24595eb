"""Validation scores of two models whose truth is known: what trust_gate.py pushes through the gate.

A user hits with a propensity of their own, drawn from a Beta distribution that leaves two fifths of the users without
any hit and a mean recall of 0.3 (Online Retail's is 0.31), brings several examples of several targets each, and keeps
what the champion found but for the share of examples that an update answers anew. That share gives the spread of a
user's difference in Recall@20 that was seen on the simulated shop: 0.25 to 0.4 (pipeline/examples.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.tasks.contract import Scores

METRIC = "recall@20"
_PROPENSITY = (0.35, 0.8)
_CHURN = 0.12  # share of the examples that an update answers anew: a spread of 0.36
_MORE_EXAMPLES, _MORE_TARGETS = 1.0, 1.5  # a user brings two examples of two and a half targets on average


@dataclass(frozen=True)
class Asked:
    """Users and what they ask for. All arrays but `propensity` are `[examples]`.

    Attributes:
        unit: whose example it is.
        targets: how many items would be right.
        chance: of each of them to be found by the better model.
        propensity: [users].
    """

    unit: np.ndarray
    targets: np.ndarray
    chance: np.ndarray
    propensity: np.ndarray

    @classmethod
    def by(cls, users: int, generator: np.random.Generator) -> Asked:
        """So many users' questions."""
        propensity = generator.beta(*_PROPENSITY, users)
        unit = np.repeat(np.arange(users), 1 + generator.poisson(_MORE_EXAMPLES, users))
        targets = 1 + generator.poisson(_MORE_TARGETS, len(unit))
        return cls(unit, targets, propensity[unit], propensity)

    def answered(self, generator: np.random.Generator) -> np.ndarray:
        """Recall of a model that finds each target with its chance: `[examples]`."""
        return generator.binomial(self.targets, self.chance) / self.targets

    def updated(
        self, recall: np.ndarray, loss: float | np.ndarray, generator: np.random.Generator, churn: float = _CHURN
    ) -> np.ndarray:
        """Recall after an update whose true mean is (1 - loss) of before, 0 <= loss <= churn, the same for all users.

        Some examples are answered anew, with lower chances: (1 - churn) + churn * (1 - loss / churn) = 1 - loss.
        """
        anew = generator.random(len(recall)) < churn
        again = generator.binomial(self.targets, self.chance * (1.0 - np.asarray(loss) / churn)) / self.targets
        return np.where(anew, again, recall)

    def broken(self, recall: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
        """Recall after an update that leaves all as good but this share of the users, who find nothing any more."""
        lost = generator.random(len(self.propensity)) < share
        return np.where(lost[self.unit], 0.0, self.updated(recall, 0.0, generator))

    def scores(self, recall: np.ndarray, **slices: np.ndarray) -> Scores:
        """As a learner gives them; `slices` are [users] bool."""
        frame = pd.DataFrame({
            "example_id": np.arange(len(recall)), "unit": self.unit, METRIC: recall,
            **{f"slice:{name}": users[self.unit] for name, users in slices.items()},
        })
        return Scores(frame, (METRIC,))


def worse_by(loss: float, gain: float = 0.0) -> tuple[float, float]:
    """The losses of champion and challenger from one better model, that part them by so much relative to the champion.

    One of `loss` (the challenger's) and `gain` (over the champion) is 0.
    """
    return gain / (1.0 + gain), loss
