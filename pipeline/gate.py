"""The gate: two models' scores on the same examples become promote, hold or reject, with reasons.

An hour's gain is too small to be proven, so what a challenger must show is that it is *not worse* than the
champion by more than a stated margin (non-inferiority; Piaggio et al., JAMA 2012), and likewise not worse
than a fixed older model, because many losses within the margin would add up. The margin is a share of the
other model's mean, which is itself known from a sample only: so what is judged is the mean over units of
ours - (1 - margin) * theirs, at least 0 (Laster and Johnson, Statistics in Medicine 22(2), 2003). Whether what
was learnt long ago is still known is judged in the same way, on examples of fixed old windows. The error rates
hold whatever the number of comparisons:

- Promotion needs every deciding comparison to show "not worse". A model that is worse by more than the
  margin in any one of them passes that one with at most the stated error rate, hence all of them
  (intersection-union test; Berger, Technometrics 1982). No correction is needed.
- Rejection needs one comparison that shows "worse by more than the margin". The more there are, the likelier
  one does by chance, so they are corrected together (Holm, Scandinavian Journal of Statistics 1979).

Where several tasks' gates decide in one installation, each has its share of the error rate (Bonferroni), so that
the rate is that of any wrong promotion among them. Anything else is too little evidence: hold, and say how much is
missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import NormalDist

import numpy as np
import pandas as pd

from pipeline.comparable import ScoresDiffer, check_same_examples
from pipeline.evaluation import UnitMean, shown_by_holm, unit_means
from pipeline.recognition import not_recognised
from pipeline.tasks.contract import GateRules, Scores

__all__ = ["Comparison", "Decision", "OldScores", "ScoresDiffer", "decide", "not_compared", "shown_by_holm"]

_SLICE = "slice:"
OLD_WINDOWS = "old windows"

# An equal challenger should seldom be held for want of evidence: nine times in ten it is shown to be not
# worse where there are `needed_units` (the customary power of non-inferiority trials is 0.8 to 0.9).
POWER = 0.9


@dataclass(frozen=True)
class Comparison:
    """The challenger beside another model, on all examples or a slice of them.

    Attributes:
        against: `champion`, `reference` or `baseline`.
        slice: name of the slice; `all`; `old windows`.
        metric: the metric compared.
        difference: mean over units of challenger minus the other.
        low, high: its one-sided bounds, each at the gate's error rate, as seen from the margin: what is unknown of
            the other model's mean is in them.
        margin: how far below the other still counts as not worse, in the metric's own unit.
        other: the other model's mean.
        units: distinct units that were compared.
        needed_units: so many show an equal challenger to be not worse nine times in ten, at the variance that
            was seen; None where no number does (the margin is 0).
        decides: promotion needs this comparison to show "not worse"; where not, it can only reject.
        worse: shown to be worse by more than the margin, corrected for the number of comparisons.
    """

    against: str
    slice: str
    metric: str
    difference: float
    low: float
    high: float
    margin: float
    other: float
    units: int
    needed_units: int | None
    decides: bool
    worse: bool

    @property
    def not_worse(self) -> bool:
        """Whether it is shown that the challenger is not worse by more than the margin."""
        return self.low + self.margin >= 0.0

    def __str__(self) -> str:
        """What was compared and what was seen, for people."""
        where = "" if self.slice == "all" else f" on {self.slice}"
        return (
            f"{self.metric}{where} against the {self.against}: {self.difference:+.4f} "
            f"({self.low:+.4f} to {self.high:+.4f}), {_relative(self.difference, self.other)}"
            f"allowed {-self.margin:+.4f}, {self.units:,} units"
        )


@dataclass(frozen=True)
class Decision:
    """What the gate decided.

    Attributes:
        outcome: `first` (nothing served before), `promote`, `hold` or `reject`.
        reasons: plain sentences with numbers, the deciding one first.
        comparisons: everything that was compared.
    """

    outcome: str
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class OldScores:
    """Scores on examples of fixed old windows, which all these models have learnt.

    Attributes:
        champion, challenger: theirs.
        reference: the fixed older champion's; None: there is none.
    """

    champion: Scores
    challenger: Scores
    reference: Scores | None = None


def decide(
    champion: Scores | None,
    challenger: Scores,
    baseline: Scores,
    rules: GateRules,
    reference: Scores | None = None,
    old: OldScores | None = None,
    arrived: Mapping[datetime, Scores] | None = None,
    gates: int = 1,
) -> Decision:
    """Whether the challenger may serve.

    Slices are the champion's (of what it knew before the challenger learnt); those that have fewer units than
    an equal challenger would need do not decide, they only reject. So do old windows beside the champion; beside the
    reference, which has seen nothing since, they only reject. The baseline is a floor: shown to be below it by more
    than the margin rejects, or holds where there is no champion yet.

    Args:
        champion: scores of the model that serves; None where none does.
        challenger: scores of the model that was just trained.
        baseline: scores of the plain method.
        rules: margins and error rates.
        reference: scores of a fixed older champion.
        old: the same models on fixed old windows; None: there are none.
        arrived: the champion's scores on what is learnt now, from before it was learnt, by landed window.
        gates: how many tasks' gates decide in the installation; they share the error rate.

    Raises:
        ScoresDiffer: the scores are not of the same examples in the same order, or not numbers.
    """
    _check(champion, challenger, baseline, reference, old, rules.metric)
    units = int(challenger.frame["unit"].nunique(dropna=False))
    if not units:
        return Decision("hold", ("There are no validation examples to judge by; wait for more windows.",), ())
    rules = replace(rules, error_rate=rules.error_rate / gates)
    measured = list(_measure(champion, challenger, baseline, rules, reference, old))
    comparisons = _judged(measured, rules.error_rate)
    if champion is None:
        return _first(comparisons)
    if units < rules.least_units:
        return Decision("hold", (
            f"There are {units:,} validation units, the gate needs at least {rules.least_units:,}: "
            f"{rules.least_units - units:,} are missing. Wait for more windows.",
        ), comparisons)
    strange = not_recognised(champion, arrived or {}, rules)
    if strange:
        return Decision("reject", strange, comparisons)
    return _against_champion(comparisons)


def not_compared(decision: Decision, why: str) -> Decision:
    """A hold, where there is a champion that could not be scored; `decision` was made without it."""
    return Decision("hold", (why, *(f"Seen: {one}." for one in decision.comparisons)), decision.comparisons)


@dataclass(frozen=True)
class _Measured:
    """A comparison before it is known what the others say.

    `edge` is the mean over units of what the challenger has above the edge of the margin.
    """

    against: str
    slice: str
    metric: str
    edge: UnitMean
    changed: int
    margin: float
    other: float
    needed_units: int | None
    decides: bool

    @property
    def chance(self) -> float:
        """The p-value of "worse by more than the margin".

        A handful of units that all fell claims too much. Had chance alone given each changed unit its sign, all
        would have fallen once in 2 ** changed: no claim may be surer (sign test).
        """
        return max(self.edge.chance_at_least(0.0), 0.5**self.changed)


def _measure(
    champion: Scores | None,
    challenger: Scores,
    baseline: Scores,
    rules: GateRules,
    reference: Scores | None,
    old: OldScores | None,
) -> Iterator[_Measured]:
    everything = np.ones(len(challenger.frame), bool)
    has_reference = reference is not None and reference is not champion
    if champion is not None:
        yield _compare("champion", "all", champion, challenger, everything, rules)
        for name, rows in _slices(champion.frame):
            yield _compare("champion", name, champion, challenger, rows, rules)
        if reference is not None and has_reference:
            yield _compare("reference", "all", reference, challenger, everything, rules)
        if old is not None and len(old.challenger.frame):
            rows = np.ones(len(old.challenger.frame), bool)
            yield _compare("champion", OLD_WINDOWS, old.champion, old.challenger, rows, rules)
            if old.reference is not None and has_reference:
                yield _compare("reference", OLD_WINDOWS, old.reference, old.challenger, rows, rules)
    if rules.beats_baseline:
        yield _compare("baseline", "all", baseline, challenger, everything, rules)


def _slices(frame: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    for column in frame.columns:
        if column.startswith(_SLICE) and frame[column].any():
            yield column.removeprefix(_SLICE), frame[column].to_numpy(bool)


def _compare(
    against: str, name: str, other: Scores, challenger: Scores, rows: np.ndarray, rules: GateRules
) -> _Measured:
    units = challenger.frame["unit"].to_numpy()[rows]
    theirs = unit_means(other.frame[rules.metric].to_numpy(np.float64)[rows], units)
    ours = unit_means(challenger.frame[rules.metric].to_numpy(np.float64)[rows], units)
    share, mean = rules.margin if name == "all" else rules.slice_margin, float(theirs.mean())
    changes = ours - theirs
    edge = UnitMean.of(changes + math.copysign(share, mean) * theirs, swing=float(np.abs(changes).max(initial=0.0)))
    margin = share * abs(mean)
    needed = units_needed(edge.deviation, margin, rules.error_rate)
    enough = edge.units >= rules.least_units and needed is not None and edge.units >= needed
    only_rejects = against == "baseline" or (against == "reference" and name == OLD_WINDOWS)
    return _Measured(
        against, name, rules.metric, edge, int(np.count_nonzero(changes)), margin, mean, needed,
        decides=not only_rejects and (name == "all" or enough),
    )


def units_needed(deviation: float, margin: float, error_rate: float) -> int | None:
    """How many units show an equal challenger to be not worse, with probability `POWER`.

    The sample size of a paired non-inferiority comparison under the normal approximation (Julious, Statistics
    in Medicine 2004): ((z of the error rate + z of the power) * deviation / margin) squared.

    Args:
        deviation: standard deviation over units of ours - (1 - margin) * theirs.
        margin: in the metric's unit.
        error_rate: one-sided.

    Returns:
        None where the margin is 0 and the models differ: no number of units suffices.
    """
    if deviation == 0.0:
        return 1
    if margin == 0.0:
        return None
    spread = NormalDist().inv_cdf(1.0 - error_rate) + NormalDist().inv_cdf(POWER)
    return math.ceil((spread * deviation / margin) ** 2)


def _judged(measured: Sequence[_Measured], error_rate: float) -> tuple[Comparison, ...]:
    worse = shown_by_holm([one.chance for one in measured], error_rate)
    return tuple(
        Comparison(
            one.against, one.slice, one.metric, one.edge.mean - one.margin, one.edge.low(error_rate) - one.margin,
            one.edge.high(error_rate) - one.margin, one.margin, one.other, one.edge.units, one.needed_units,
            one.decides, bool(shown),
        )
        for one, shown in zip(measured, worse, strict=True)
    )


def _first(comparisons: tuple[Comparison, ...]) -> Decision:
    below = [one for one in comparisons if one.worse]
    if below:
        return Decision("hold", tuple(
            f"There is no champion yet, and the model is shown to be below the plain baseline: {one}. "
            "Train longer or on more history, or promote it by force." for one in below
        ), comparisons)
    seen = [f"Seen: {one}." for one in comparisons]
    return Decision("first", (
        "There is no champion yet, and the model is not shown to be below the plain baseline.", *seen,
    ), comparisons)


_NO_DIFFERENCE = 1e-9  # two models that answer alike differ by rounding


def _against_champion(comparisons: tuple[Comparison, ...]) -> Decision:
    worse = [one for one in comparisons if one.worse]
    if worse:
        return Decision("reject", tuple(f"Shown to be worse: {one}." for one in worse), comparisons)
    open_ones = [one for one in comparisons if one.decides and not one.not_worse]
    if open_ones:
        return Decision("hold", tuple(_missing(one) for one in open_ones), comparisons)
    main = comparisons[0]
    verdict = "Shown to be better" if main.low > _NO_DIFFERENCE else "Shown to be not worse"
    rest = [f"Not worse either: {one}." for one in comparisons[1:] if one.decides]
    return Decision("promote", (f"{verdict}: {main}.", *rest), comparisons)


def _missing(comparison: Comparison) -> str:
    """Why a comparison shows nothing, and what would."""
    start = f"Not shown to be not worse: {comparison}."
    if comparison.needed_units is None:
        return f"{start} With a margin of 0 no number of units shows it; give the slice or metric a margin."
    missing = comparison.needed_units - comparison.units
    if missing > 0:
        return (
            f"{start} An equal model would need about {comparison.needed_units:,} units at this variance: "
            f"{missing:,} are missing."
        )
    return (
        f"{start} There are enough units ({comparison.needed_units:,} needed): "
        "the difference itself points down."
    )


def _check(
    champion: Scores | None, challenger: Scores, baseline: Scores, reference: Scores | None, old: OldScores | None,
    metric: str,
) -> None:
    for role, other in (("champion", champion), ("baseline", baseline), ("reference", reference)):
        if other is not None:
            check_same_examples(role, other, challenger, metric)
    if old is None:
        return
    for role, other in (("champion", old.champion), ("reference", old.reference)):
        if other is not None:
            check_same_examples(f"{role} on {OLD_WINDOWS}", other, old.challenger, metric)


def _relative(difference: float, mean: float) -> str:
    return f"{difference / abs(mean):+.1%}, " if mean else ""
