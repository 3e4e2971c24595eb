"""The gate's promises: its error rates, what it does with little evidence, and what it refuses to compare."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from pipeline.gate import OldScores, ScoresDiffer, decide, not_compared, shown_by_holm, units_needed
from pipeline.tasks.contract import GateRules, Scores

RULES = GateRules(metric="hit", margin=0.1, error_rate=0.05, least_units=50, slice_margin=0.2)


def scores(values: np.ndarray, **slices: np.ndarray) -> Scores:
    """One example a unit."""
    frame = pd.DataFrame({
        "example_id": [f"e{number}" for number in range(len(values))],
        "unit": [f"u{number}" for number in range(len(values))],
        "hit": values, **{f"slice:{name}": rows for name, rows in slices.items()},
    })
    return Scores(frame, ("hit",))


def pair(units: int, lost: float, won: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A champion that hits half of the units, and a challenger that loses and wins shares of them."""
    generator = np.random.default_rng(seed)
    champion = (generator.random(units) < 0.5).astype(float)
    draw = generator.random(units)
    challenger = np.where(champion == 1, draw >= 2 * lost, draw < 2 * won).astype(float)
    return champion, challenger


FLOOR = np.zeros


def outcomes(units: int, lost: float, won: float, trials: int, rules: GateRules = RULES) -> dict[str, float]:
    found = {"promote": 0.0, "hold": 0.0, "reject": 0.0}
    for trial in range(trials):
        champion, challenger = pair(units, lost, won, seed=trial)
        decision = decide(scores(champion), scores(challenger), scores(FLOOR(units)), rules)
        found[decision.outcome] += 1 / trials
    return found


def slack(rate: float, trials: int) -> float:
    """What a binomial count exceeds its rate by once in a hundred times."""
    return 2.33 * math.sqrt(rate * (1 - rate) / trials)


def test_a_model_that_is_worse_by_the_margin_is_seldom_promoted() -> None:
    # hits fall from 0.50 to 0.45: exactly the margin of 10 %, the least favourable case
    found = outcomes(units=300, lost=0.10, won=0.05, trials=400)
    assert found["promote"] <= 0.05 + slack(0.05, 400)


def test_an_equal_model_is_promoted_where_the_units_suffice() -> None:
    needed = units_needed(math.sqrt(0.1), 0.05, 0.05)  # 1 in 5 %, -1 in 5 %, else 0
    assert needed == 343
    assert outcomes(units=needed, lost=0.05, won=0.05, trials=300)["promote"] >= 0.9 - slack(0.9, 300)


def test_a_much_worse_model_is_rejected_and_an_equal_one_hardly_ever() -> None:
    assert outcomes(units=400, lost=0.20, won=0.05, trials=100)["reject"] >= 0.95
    assert outcomes(units=60, lost=0.05, won=0.05, trials=300)["reject"] <= 0.05 + slack(0.05, 300)


def test_many_equal_slices_do_not_add_up_to_a_rejection() -> None:
    rejected, trials = 0, 150
    for trial in range(trials):
        champion, challenger = pair(200, 0.1, 0.1, seed=trial)
        slices = {f"s{part}": np.arange(200) % 8 == part for part in range(8)}
        rules = GateRules("hit", margin=0.0, error_rate=0.05, least_units=50, slice_margin=0.0)
        decision = decide(
            scores(champion, **slices), scores(challenger), scores(FLOOR(200)), rules
        )
        rejected += decision.outcome == "reject"
    assert rejected / trials <= 0.05 + slack(0.05, trials)


def test_holm_corrects_for_the_number_of_claims() -> None:
    assert shown_by_holm([0.04], 0.05) == [True]
    assert shown_by_holm([0.04, 0.5], 0.05) == [False, False]
    assert shown_by_holm([0.04, 0.01, 0.5], 0.05) == [False, True, False]
    assert shown_by_holm([0.02, 0.01, 0.5], 0.05) == [True, True, False]
    assert shown_by_holm([], 0.05) == []


def test_units_needed_is_the_sample_size_of_a_non_inferiority_trial() -> None:
    # (1.6449 + 1.2816)^2 = 8.564; times (0.2 / 0.02)^2
    assert units_needed(0.2, 0.02, 0.05) == 857
    assert units_needed(0.0, 0.0, 0.05) == 1
    assert units_needed(0.1, 0.0, 0.05) is None


def test_little_evidence_is_a_hold_that_says_how_much_is_missing() -> None:
    champion, challenger = pair(100, 0.1, 0.1, seed=1)
    decision = decide(scores(champion), scores(challenger), scores(FLOOR(100)), RULES)
    assert decision.outcome == "hold"
    main = decision.comparisons[0]
    assert main.needed_units is not None and main.needed_units > 100
    assert f"{main.needed_units - 100:,} are missing" in decision.reasons[0]


def test_fewer_units_than_the_rules_ask_for_decide_nothing() -> None:
    decision = decide(scores(np.ones(49)), scores(np.zeros(49)), scores(FLOOR(49)), RULES)
    assert decision.outcome == "hold"
    assert "49 validation units" in decision.reasons[0] and "1 are missing" in decision.reasons[0]


def test_an_identical_model_is_promoted() -> None:
    values = np.tile([0.0, 1.0], 50)
    decision = decide(scores(values), scores(values), scores(values), RULES)
    assert decision.outcome == "promote" and decision.reasons[0].startswith("Shown to be not worse")


def test_a_better_model_is_said_to_be_better() -> None:
    champion, challenger = pair(300, 0.0, 0.2, seed=2)
    decision = decide(scores(champion), scores(challenger), scores(FLOOR(300)), RULES)
    assert decision.outcome == "promote" and decision.reasons[0].startswith("Shown to be better: hit against")


def test_a_slice_with_enough_units_must_be_shown_too() -> None:
    """All examples gain, the old users lose 0.15 where 0.16 is allowed: neither shown worse nor not worse."""
    number = np.arange(2_000)
    old = number < 320
    champion = np.where(old, number % 20 < 16, 0).astype(float)
    challenger = np.where(old, number % 20 < 13, 1).astype(float)
    decision = decide(scores(champion, old=old), scores(challenger), scores(FLOOR(2_000)), RULES)
    overall, of_old, _ = decision.comparisons
    assert overall.not_worse and of_old.decides
    assert of_old.slice == "old"
    assert (of_old.difference, of_old.margin) == (pytest.approx(-0.15), pytest.approx(0.16))
    assert decision.outcome == "hold"
    assert "hit on old against the champion: -0.1500" in decision.reasons[0]
    assert "the difference itself points down" in decision.reasons[0]


def test_a_slice_with_too_few_units_for_its_noise_does_not_hold() -> None:
    number = np.arange(2_000)
    noisy = number < 60
    champion = (number % 2).astype(float)
    challenger = np.where(noisy & (number % 4 < 2), 1 - champion, champion)
    decision = decide(scores(champion, noisy=noisy), scores(challenger), scores(FLOOR(2_000)), RULES)
    _, of_noisy, _ = decision.comparisons
    assert of_noisy.units == 60 and of_noisy.needed_units is not None and of_noisy.needed_units > 300
    assert not of_noisy.not_worse and not of_noisy.decides
    assert decision.outcome == "promote"


def test_a_slice_that_loses_all_rejects_though_the_whole_gains() -> None:
    units = 1_000
    new = np.arange(units) < 20  # far too few to decide, but all of them fall
    champion, challenger = new.astype(float), (~new).astype(float)
    decision = decide(scores(champion, new=new), scores(challenger), scores(FLOOR(units)), RULES)
    assert decision.outcome == "reject"
    assert "on new" in decision.reasons[0] and not decision.comparisons[1].decides


def test_a_handful_of_fallen_units_shows_nothing() -> None:
    units = 1_000
    new = np.arange(units) < 4
    champion, challenger = new.astype(float), (~new).astype(float)
    decision = decide(scores(champion, new=new), scores(challenger), scores(FLOOR(units)), RULES)
    assert decision.outcome == "promote"


def test_small_losses_do_not_add_up_against_the_reference() -> None:
    """Each champion is 2 % below the one before, within the margin; the fixed older model stops the slide."""
    generator = np.random.default_rng(4)
    order = generator.permutation(5_000)
    reference = np.ones(5_000)
    champion, challenger = reference.copy(), reference.copy()
    champion[order[:900]] = 0.0
    challenger[order[:1_000]] = 0.0
    alone = decide(scores(champion), scores(challenger), scores(FLOOR(5_000)), RULES)
    both = decide(
        scores(champion), scores(challenger), scores(FLOOR(5_000)), RULES, reference=scores(reference)
    )
    assert (alone.outcome, both.outcome) == ("promote", "reject")
    assert "against the reference: -0.2000" in both.reasons[0]


def test_a_model_below_the_baseline_is_rejected_though_it_beats_the_champion() -> None:
    champion, half, floor = scores(np.zeros(100)), scores(np.tile([0.0, 1.0], 50)), scores(np.ones(100))
    decision = decide(champion, half, floor, RULES)
    assert decision.outcome == "reject" and "against the baseline" in decision.reasons[0]
    rules = GateRules("hit", 0.1, 0.05, 50, 0.2, beats_baseline=False)
    assert decide(champion, half, floor, rules).outcome == "promote"


def test_the_first_model_serves_unless_it_is_shown_to_be_below_the_baseline() -> None:
    good = decide(None, scores(np.ones(100)), scores(np.tile([0.0, 1.0], 50)), RULES)
    bad = decide(None, scores(np.tile([0.0, 1.0], 50)), scores(np.ones(100)), RULES)
    assert (good.outcome, bad.outcome) == ("first", "hold")
    assert "-0.5000" in bad.reasons[0] and "by force" in bad.reasons[0]
    assert decide(None, scores(np.ones(0)), scores(np.ones(0)), RULES).outcome == "hold"


def test_scores_of_other_examples_are_refused() -> None:
    base = scores(np.ones(60))
    swapped = Scores(base.frame.iloc[[1, 0, *range(2, 60)]].reset_index(drop=True), base.metrics)
    with pytest.raises(ScoresDiffer, match="same order; 2 of 60 differ, the first at row 0: 'e0' and 'e1'"):
        decide(swapped, base, base, RULES)
    with pytest.raises(ScoresDiffer, match=r"Challenger and baseline.*they have 60 and 59"):
        decide(base, base, scores(np.ones(59)), RULES)
    with pytest.raises(ScoresDiffer, match="finite number; 'hit'; 1 of the challenger's are not"):
        decide(base, scores(np.array([np.nan] + [1.0] * 59)), base, RULES)
    with pytest.raises(ScoresDiffer, match="must have the metric 'hit'; the reference has"):
        decide(base, base, base, RULES, reference=Scores(base.frame.drop(columns="hit"), ()))


def test_a_model_that_forgets_old_windows_is_not_promoted_though_the_new_ones_gain() -> None:
    champion, challenger = scores(np.tile([0.0, 1.0], 500)), scores(np.ones(1_000))
    knew = np.tile([1.0, 1.0, 0.0], 300)
    for forgotten, outcome in ((0, "promote"), (120, "hold"), (200, "reject")):  # of 600; a fifth is allowed
        knows = np.where(np.arange(900) < forgotten * 3 // 2, 0.0, knew)
        old = OldScores(scores(knew), scores(knows))
        decision = decide(champion, challenger, scores(FLOOR(1_000)), RULES, old=old)
        assert decision.outcome == outcome, decision.reasons
        assert "hit on old windows against the champion" in decision.reasons[1 if outcome == "promote" else 0]


def test_what_the_fixed_older_model_knew_of_old_windows_only_rejects() -> None:
    champion, challenger = scores(np.tile([0.0, 1.0], 500)), scores(np.ones(1_000))
    knew, knows = np.ones(600), np.where(np.arange(600) < 110, 0.0, 1.0)
    much_less = np.where(np.arange(600) < 200, 0.0, 1.0)
    for mine, outcome in ((knows, "promote"), (much_less, "reject")):
        old = OldScores(scores(mine), scores(mine), reference=scores(knew))
        reference = scores(np.tile([0.0, 1.0], 500))
        decision = decide(champion, challenger, scores(FLOOR(1_000)), RULES, reference=reference, old=old)
        assert decision.outcome == outcome, decision.reasons
    assert "old windows against the reference" in decision.reasons[0]


def test_gates_that_decide_together_share_the_error_rate() -> None:
    champion, challenger = pair(343, 0.05, 0.05, seed=1)
    one, four = (
        decide(scores(champion), scores(challenger), scores(FLOOR(343)), RULES, gates=gates) for gates in (1, 4)
    )
    alone = replace(RULES, error_rate=0.0125)
    assert four == decide(scores(champion), scores(challenger), scores(FLOOR(343)), alone)
    assert four.comparisons[0].low < one.comparisons[0].low


def test_a_window_that_the_champion_does_not_recognise_is_rejected_by_name() -> None:
    hours = [datetime(2026, 1, 5, hour, tzinfo=UTC) for hour in range(3)]
    usual, poisoned, few = np.tile([0.0, 1.0], 30), np.repeat([0.0, 1.0], [57, 3]), np.zeros(19)
    rules = replace(RULES, least_on_arrival=1 / 3)
    values = np.tile([0.0, 1.0], 300)
    arrived = {hours[0]: scores(usual), hours[1]: scores(poisoned), hours[2]: scores(few)}

    def decided(given: dict[datetime, Scores], by: GateRules = rules) -> tuple[str, tuple[str, ...]]:
        decision = decide(scores(values), scores(values), scores(FLOOR(600)), by, arrived=given)
        return decision.outcome, decision.reasons

    outcome, reasons = decided(arrived)
    assert outcome == "reject" and len(reasons) == 1
    assert "2026-01-05T01:00Z" in reasons[0] and "0.0500" in reasons[0] and "0.5000 as a rule" in reasons[0]
    assert decided({hours[0]: scores(usual), hours[2]: scores(few)})[0] == "promote"
    assert decided(arrived, RULES)[0] == "promote"


def test_right_searches_do_not_hide_that_all_else_is_wrong_and_small_windows_are_judged_together() -> None:
    hours = [datetime(2026, 1, 5, hour, tzinfo=UTC) for hour in range(3)]
    rules = replace(RULES, least_on_arrival=1 / 3)
    values, search = np.tile([0.0, 1.0], 300), np.arange(600) % 3 == 0
    few = np.arange(24) % 3 == 0
    frames = []
    for number in range(3):
        frame = scores(few.astype(float), search=few).frame
        frames.append(Scores(frame.assign(unit=[f"w{number}-{unit}" for unit in frame["unit"]]), ("hit",)))
    decision = decide(
        scores(values, search=search), scores(values), scores(FLOOR(600)), rules,
        arrived=dict(zip(hours, frames, strict=True)),
    )
    assert decision.outcome == "reject" and len(decision.reasons) == 1
    assert "2026-01-05T00:00Z to 2026-01-05T02:00Z" in decision.reasons[0]
    assert "on all but search was 0.0000" in decision.reasons[0]


def test_without_the_champions_scores_the_gate_holds_and_shows_what_it_saw() -> None:
    made = decide(None, scores(np.ones(100)), scores(np.tile([0.0, 1.0], 50)), RULES)
    held = not_compared(made, "version 3 cannot score")
    assert (made.outcome, held.outcome) == ("first", "hold")
    assert held.reasons[0] == "version 3 cannot score" and "against the baseline: +0.5000" in held.reasons[1]
