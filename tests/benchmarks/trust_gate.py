"""How often the gate is right: simulated scores with a known truth through pipeline.gate, to results/GATE.md.

False promotions of models that are worse by just more than is allowed, in several shapes; power by users and true
difference; how far a chain of hourly decisions falls; several gates at once. Beside the gate stand the two intervals
that it does not use, on the same scores: the percentile bootstrap with a margin taken for known (which it used until
its error was measured here) and Student's t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import betaincinv, stdtrit

from pipeline.evaluation import resampled_means, unit_means
from pipeline.gate import OldScores, decide
from pipeline.tasks.contract import GateRules, Scores
from pipeline.tasks.recommend import Recommend
from tests.benchmarks.bench_trust import Measured
from tests.benchmarks.trust_shapes import METRIC, Asked, worse_by

RESULTS = Path(__file__).with_name("results")
SEEDS = (1, 2, 3)
TRIALS = 2_000  # of each seed, of the deciding comparison at 1,000 users; the other shapes have OTHER_TRIALS
OTHER_TRIALS = 700
_BEYOND = 1e-3  # a model is worse by so much more than is allowed
RULES: GateRules = replace(Recommend.gate, metric=METRIC)  # its margins and rates, on scores that are simulated
USERS = (100, 250, 500, 1_000, 2_000, 4_000)
DIFFERENCES = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.03)
POWER_TRIALS = 200
CHAIN_HOURS, CHAIN_LOSS, CHAINS = 168, 0.01, 12
_SPAN_HOURS = 24
GATES = 4


@dataclass(frozen=True)
class Trial:
    """The scores of one decision."""

    champion: Scores
    challenger: Scores
    reference: Scores | None = None
    old: OldScores | None = None


Shape = Callable[[int, np.random.Generator], Trial]


def all_alike(users: int, generator: np.random.Generator) -> Trial:
    """Worse for everybody."""
    asked = Asked.by(users, generator)
    champion = asked.answered(generator)
    return Trial(
        asked.scores(champion), asked.scores(asked.updated(champion, RULES.margin + _BEYOND, generator))
    )


def some_lose_all(users: int, generator: np.random.Generator) -> Trial:
    """As good as before for 97 users in 100, and nothing is found for the others."""
    asked = Asked.by(users, generator)
    champion = asked.answered(generator)
    return Trial(asked.scores(champion), asked.scores(asked.broken(champion, RULES.margin + _BEYOND, generator)))


def below_reference(users: int, generator: np.random.Generator) -> Trial:
    """As good as the champion, which is itself worse than the fixed older model."""
    asked = Asked.by(users, generator)
    reference = asked.answered(generator)
    lower = Asked(asked.unit, asked.targets, asked.chance * (1 - RULES.margin - _BEYOND), asked.propensity)
    champion = asked.updated(reference, RULES.margin + _BEYOND, generator)
    return Trial(
        asked.scores(champion), asked.scores(lower.updated(champion, 0.0, generator, churn=0.02)),
        reference=asked.scores(reference),
    )


def in_a_slice(users: int, generator: np.random.Generator, share: float = 0.4) -> Trial:
    """Worse in a slice of the users, better for all others: as good on the whole."""
    asked = Asked.by(users, generator)
    better = asked.answered(generator)
    inside = generator.random(users) < share
    gain = share / (1 - share) * RULES.slice_margin
    their_loss, our_loss = worse_by(loss=RULES.slice_margin + _BEYOND, gain=gain)
    champion = asked.updated(better, np.where(inside[asked.unit], 0.0, their_loss), generator)
    challenger = asked.updated(better, np.where(inside[asked.unit], our_loss, 0.0), generator)
    return Trial(asked.scores(champion, some=inside), asked.scores(challenger))


def in_a_tenth(users: int, generator: np.random.Generator) -> Trial:
    """The same in a slice of a tenth, which has too few users to decide more often than not."""
    return in_a_slice(users, generator, share=0.1)


def on_old_windows(users: int, generator: np.random.Generator) -> Trial:
    """Worse on the fixed old windows alone."""
    asked, before = Asked.by(users, generator), Asked.by(users, generator)
    champion, knew = asked.answered(generator), before.answered(generator)
    knows = before.updated(knew, RULES.slice_margin + _BEYOND, generator)
    return Trial(
        asked.scores(champion), asked.scores(asked.updated(champion, 0.0, generator)),
        old=OldScores(before.scores(knew), before.scores(knows)),
    )


# what it says -> shape, users, whether the other two intervals are measured on the same scores
SHAPES: dict[str, tuple[Shape, int, bool]] = {
    "worse for everybody, 1,000 users": (all_alike, 1_000, True),
    "worse for everybody, 100 users": (all_alike, 100, True),
    "nothing found any more for 3 users in 100, 1,000 users": (some_lose_all, 1_000, True),
    "nothing found any more for 3 users in 100, 250 users": (some_lose_all, 250, True),
    "nothing found any more for 3 users in 100, 100 users": (some_lose_all, 100, True),
    "as good as the champion, worse than the fixed older model, 1,000 users": (below_reference, 1_000, False),
    "worse in a slice of 400 of 1,000 users only": (in_a_slice, 1_000, False),
    "worse on the old windows only, 1,000 users there": (on_old_windows, 1_000, False),
    "worse in a slice of 100 of 1,000 users only (too few to decide)": (in_a_tenth, 1_000, False),
}
_UNDECIDED = "worse in a slice of 100 of 1,000 users only (too few to decide)"


def outcome(trial: Trial, gates: int = 1) -> str:
    """What the gate decides; the baseline lies far below."""
    frame = trial.challenger.frame
    floor = Scores(frame.assign(**{METRIC: 0.0}), (METRIC,))
    return decide(
        trial.champion, trial.challenger, floor, RULES, reference=trial.reference, old=trial.old, gates=gates
    ).outcome


def passes_otherwise(trial: Trial, seed: int) -> tuple[bool, bool]:
    """Whether the percentile bootstrap and Student's t, with a margin taken for known, would have let it pass."""
    units = trial.challenger.frame["unit"].to_numpy()
    theirs = unit_means(trial.champion.frame[METRIC].to_numpy(), units)
    difference = unit_means(trial.challenger.frame[METRIC].to_numpy(), units) - theirs
    edge = -RULES.margin * float(theirs.mean())
    percentile = float(np.quantile(resampled_means(difference, seed, draws=1_000), RULES.error_rate))
    error = float(difference.std(ddof=1)) / len(difference) ** 0.5
    student = float(difference.mean()) - float(stdtrit(len(difference) - 1, 1.0 - RULES.error_rate)) * error
    return percentile >= edge, student >= edge


def binomial(count: int, trials: int) -> tuple[float, float, float]:
    """A share and its exact 95 % interval (Clopper and Pearson, Biometrika 1934)."""
    low = 0.0 if not count else float(betaincinv(count, trials - count + 1, 0.025))
    high = 1.0 if count == trials else float(betaincinv(count + 1, trials - count, 0.975))
    return count / trials, low, high


def _said(count: int, trials: int) -> str:
    share, low, high = binomial(count, trials)
    return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def false_promotions() -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Promotions of worse models, `(count, trials)` by shape, and the table's lines."""
    found, lines = {}, []
    for number, (name, (shape, users, also)) in enumerate(SHAPES.items()):
        each = TRIALS if not number else OTHER_TRIALS
        promoted, others, trials = 0, np.zeros(2, int), each * len(SEEDS)
        for seed in SEEDS:
            generator = np.random.default_rng([seed, number])
            for trial in (shape(users, generator) for _ in range(each)):
                promoted += outcome(trial) == "promote"
                if also:
                    others += passes_otherwise(trial, int(generator.integers(2**31)))
        found[name] = (promoted, trials)
        beside = [_said(int(one), trials) for one in others] if also else ["", ""]
        lines.append(f"| {name} | {trials:,} | {beside[0]} | {beside[1]} | {_said(promoted, trials)} |")
        print(lines[-1], flush=True)
    return found, lines


def power() -> dict[tuple[int, float], float]:
    """The share of promotions by users and true relative difference; 1,000 users and +1 % with more trials."""
    found = {}
    for users in USERS:
        for difference in DIFFERENCES:
            trials = 5 * POWER_TRIALS if (users, difference) == (1_000, 0.01) else POWER_TRIALS
            generator = np.random.default_rng([SEEDS[0], users, round(1_000 * (1 + difference))])
            promoted = 0
            for _ in range(trials):
                asked = Asked.by(users, generator)
                better = asked.answered(generator)
                their_loss, our_loss = worse_by(loss=max(-difference, 0.0), gain=max(difference, 0.0))
                champion = asked.updated(better, their_loss, generator) if their_loss else better
                challenger = asked.updated(better, our_loss, generator) if our_loss or not their_loss else better
                promoted += outcome(Trial(asked.scores(champion), asked.scores(challenger))) == "promote"
            found[users, difference] = promoted / trials
        print(f"power at {users} users: {[found[users, one] for one in DIFFERENCES]}", flush=True)
    return found


def chain(*, with_reference: bool, generator: np.random.Generator) -> list[float]:
    """The champion's true level beside the first one's, hour by hour, when each challenger loses CHAIN_LOSS more.

    Each hour brings new users; those of the last _SPAN_HOURS judge, so decisions share most of their evidence.
    """
    span = [_fresh(1.0, generator) for _ in range(_SPAN_HOURS)]
    level, levels = 1.0, []
    for _ in range(CHAIN_HOURS):
        asked = _joined([one[0] for one in span])
        reference, champion = (np.concatenate([one[place] for one in span]) for place in (1, 2))
        lower = Asked(asked.unit, asked.targets, asked.chance * level, asked.propensity)
        challenger = lower.updated(champion, CHAIN_LOSS, generator)
        trial = Trial(
            asked.scores(champion), asked.scores(challenger),
            reference=asked.scores(reference) if with_reference and level < 1.0 else None,
        )
        if outcome(trial) == "promote":
            level *= 1.0 - CHAIN_LOSS
            ends = np.cumsum([len(one[1]) for one in span])[:-1]
            span = [(*one[:2], new) for one, new in zip(span, np.split(challenger, ends), strict=True)]
        span = [*span[1:], _fresh(level, generator)]
        levels.append(level)
    return levels


def _fresh(level: float, generator: np.random.Generator) -> tuple[Asked, np.ndarray, np.ndarray]:
    """An hour's users, and the recall of the first model and of a champion at this level."""
    asked = Asked.by(round(1_000 / _SPAN_HOURS), generator)
    reference = asked.answered(generator)
    churn = max(0.12, 2 * (1.0 - level)) if level < 1.0 else 0.0
    return asked, reference, asked.updated(reference, 1.0 - level, generator, min(churn, 1.0)) if churn else reference


def _joined(parts: Sequence[Asked]) -> Asked:
    starts = np.cumsum([0, *(len(part.propensity) for part in parts)])
    return Asked(
        np.concatenate([part.unit + start for part, start in zip(parts, starts, strict=False)]),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("targets", "chance", "propensity")),
    )


def several_gates() -> tuple[int, int, int]:
    """How often any of GATES worse models is promoted, each alone and sharing the rate; of how many trials."""
    alone, shared, trials = 0, 0, OTHER_TRIALS
    generator = np.random.default_rng([SEEDS[0], 99])
    for _ in range(trials):
        several = [all_alike(500, generator) for _ in range(GATES)]
        alone += any(outcome(trial) == "promote" for trial in several)
        shared += any(outcome(trial, GATES) == "promote" for trial in several)
    return alone, shared, trials


def draw(powers: dict[tuple[int, float], float], chains: dict[bool, list[list[float]]]) -> None:
    """The picture: power on the left, chains on the right."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for difference in DIFFERENCES:
        label = f"{100 * difference:+.0f} %" if difference else "equal"
        left.plot(USERS, [powers[users, difference] for users in USERS], marker="o", markersize=3, label=label)
    left.axhline(RULES.error_rate, color="grey", linewidth=0.8, linestyle=":")
    left.set(xscale="log", xlabel="validation users", ylabel="share promoted", ylim=(0, 1.02))
    left.set_xticks(USERS, [f"{users:,}" for users in USERS])
    left.minorticks_off()
    left.legend(title="true difference", fontsize=8)
    left.set_title("How often a challenger is promoted", fontsize=10)
    for with_reference, colour in ((False, "tab:red"), (True, "tab:blue")):
        for number, levels in enumerate(chains[with_reference]):
            label = ("with" if with_reference else "without") + " the fixed older model" if not number else None
            right.plot(range(CHAIN_HOURS), 100 * (np.array(levels) - 1), color=colour, linewidth=0.8, label=label)
    right.axhline(-100 * RULES.margin, color="grey", linewidth=0.8, linestyle=":")
    right.set(xlabel="hourly decisions", ylabel="champion's true quality beside the first, %")
    right.legend(fontsize=8)
    right.set_title(f"Every challenger {100 * CHAIN_LOSS:.0f} % worse than its champion", fontsize=10)
    figure.savefig(RESULTS / "gate.png", dpi=110)
    plt.close(figure)


def measure() -> Measured:
    """Everything, with page and picture."""
    found, lines = false_promotions()
    powers = power()
    chains = {
        one: [chain(with_reference=one, generator=np.random.default_rng([number, 7])) for number in range(CHAINS)]
        for one in (False, True)
    }
    falls = {one: [1.0 - levels[-1] for levels in chains[one]] for one in chains}
    alone, shared, trials = several_gates()
    draw(powers, chains)
    rates = {name: count / of for name, (count, of) in found.items() if name != _UNDECIDED}
    figures = {
        "gate.false_promotions": max(rates.values()), "gate.stated_level": RULES.error_rate,
        "gate.power_at_1pct_and_1000_users": powers[1_000, 0.01],
        "gate.power_if_equal_and_1000_users": powers[1_000, 0.0],
        "gate.chain_fall": max(falls[True]), "gate.chain_fall_without_reference": max(falls[False]),
        "gate.any_of_four_false_promotions": shared / trials,
    }
    _write_page(lines, powers, falls, (alone, shared, trials), figures)
    protocol = (
        f"simulated users through pipeline.gate with the rules of `recommend`; {len(SEEDS)} seeds of {TRIALS:,} trials "
        f"(main shape) or {OTHER_TRIALS:,}; false_promotions is the worst of the shapes that decide; gate.png, GATE.md"
    )
    return Measured(figures, SEEDS, protocol)


def _write_page(
    lines: list[str], powers: dict[tuple[int, float], float], falls: dict[bool, list[float]],
    gates: tuple[int, int, int], figures: dict[str, float],
) -> None:
    alone, shared, trials = gates
    table = [
        "| users | " + " | ".join(f"{100 * one:+.0f} %" if one else "equal" for one in DIFFERENCES) + " |",
        "|---|" + "---|" * len(DIFFERENCES),
        *(f"| {users:,} | " + " | ".join(f"{100 * powers[users, one]:.0f} %" for one in DIFFERENCES) + " |"
          for users in USERS),
    ]
    page = f"""# How often the gate is right

Made by `make bench-trust PARTS=gate`: simulated scores whose truth is known, through the gate that decides in service
(rules of the task `recommend`: margin {RULES.margin:.0%}, slices and old windows {RULES.slice_margin:.0%}, stated error
rate {RULES.error_rate:.0%}). A user brings several examples, nearly half of the users have no hit at all, and champion
and challenger agree on nine examples in ten.

## A model that is worse by just more than is allowed is promoted

Share of promotions with its exact 95 % interval. Percentile bootstrap and Student's t know only the sample, which may
lack just the few users that lose the most; the gate imagines two more users beside it, one that loses and one that
gains as much as any did (pipeline/evaluation.py).

| how it is worse | trials | percentile bootstrap | Student's t | the gate |
|---|---|---|---|---|
{chr(10).join(lines)}

The last line is a limit, not an error: a slice with fewer users than even an equal model would need does not decide,
it only rejects what is shown to be worse.

## Power

Share of challengers promoted, by validation users and true difference to the champion:

{chr(10).join(table)}

![Power and chains](gate.png)

## Chains and several gates

- {CHAIN_HOURS} hourly decisions in which every challenger is {CHAIN_LOSS:.0%} worse than its champion, which the margin
  allows: without the fixed older model the champion falls by {np.mean(falls[False]):.1%} on average; with it by
  {np.mean(falls[True]):.1%} ({max(falls[True]):.1%} at worst in {CHAINS} chains), where next to nothing passes.
- {GATES} tasks at once, each with a challenger that is worse by just more than is allowed: any of them is promoted in
  {_said(alone, trials)} of {trials} rounds if each takes the whole error rate, in {_said(shared, trials)} as the gates
  share it. The price is users: {GATES} gates need 1.45 times as many as one.
"""
    (RESULTS / "GATE.md").write_text(page)
    print(figures)
