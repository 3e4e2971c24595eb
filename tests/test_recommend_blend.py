"""Weights fitted on what was foreseen: the likelihood's, with what earlier examples said, each of them used once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest

from models.blend import AGE, HABIT, TREND, TREND_SPANS, WEIGHTS, ages_as_inputs, untouched
from models.losses import NO_ITEM
from pipeline.checkpoint import Checkpoint, load, save
from pipeline.schema import TIME
from pipeline.tasks.contract import Methods, Schedule, together
from pipeline.tasks.recommend_batches import BESIDE, Batcher
from pipeline.tasks.recommend_blend import BY_LOGIT, MEAN_LIFE_DAYS, MOST_FORESEEN, BlendFit, Foreseen
from pipeline.tasks.recommend_items import OLDEST_DAYS
from pipeline.tasks.recommend_learner import RecommenderLearner
from pipeline.training import fine_tune
from tests.test_recommend_learner import (
    DIMENSION,
    LEDGER,
    NOON,
    compact_logits,
    context,
    examples,
    moment,
    network_logits,
    untrained,
)

DAY = 86_400_000_000
TRUE = np.array([0.6, 0.9, 1.5, 0.8, 0.0, 0.5, 0.0, -0.3, 0.7, 0.3, -0.5])


def drawn(weights: np.ndarray, number: int, seed: int, items: int = 40) -> Foreseen:
    """Examples whose items were chosen by a softmax of their inputs under the weights."""
    generator = np.random.default_rng(seed)
    parts = []
    for _ in range(number):
        own = np.arange(items) < 10
        inputs = np.zeros((items, WEIGHTS))
        logit = generator.normal(0.0, 2.0, items)
        inputs[:, 0], inputs[:, 1], inputs[:, 2] = logit * ~own, logit * own, own
        inputs[:, 3] = generator.exponential(size=items) * ~own
        inputs[:, TREND] = generator.normal(-8.0, 1.0, (items, TREND_SPANS))
        inputs[:, HABIT] = generator.exponential(size=items) * own
        inputs[:, AGE] = ages_as_inputs(np.exp(generator.uniform(-1.0, 6.0, items))) * ~own[:, None]
        chances = np.exp(inputs @ weights - (inputs @ weights).max())
        wanted = np.zeros(items, bool)
        wanted[generator.choice(items, p=chances / chances.sum())] = True
        parts.append(Foreseen(inputs, wanted, np.zeros(1, np.int64)))
    return Foreseen.together(parts)


def test_the_weights_that_made_the_choices_are_found() -> None:
    fit = BlendFit()
    fit.learn(drawn(TRUE, 3_000, seed=0), DAY)
    spread = np.sqrt(np.diag(np.linalg.inv(fit.evidence)))
    assert (np.abs(fit.weights - TRUE) < 3.0 * spread).all()
    assert np.delete(spread, [2, AGE.start, AGE.start + 1]).max() < 0.2  # a bonus and others' ages say nearly the same


def test_gradient_and_hessian_are_the_losses() -> None:
    foreseen, generator = drawn(TRUE, 20, seed=1), np.random.default_rng(2)
    weights = untouched() + generator.normal(0.0, 0.3, WEIGHTS)
    _, gradient, hessian = foreseen.loss(weights)
    for place in range(len(weights)):
        step = np.zeros(len(weights))
        step[place] = 1e-5
        above, below = (foreseen.loss(weights + sign * step) for sign in (1.0, -1.0))
        assert (above[0] - below[0]) / 2e-5 == pytest.approx(gradient[place], rel=1e-4, abs=1e-4)
        np.testing.assert_allclose((above[1] - below[1]) / 2e-5, hessian[place], rtol=1e-3, atol=1e-3)


def test_many_updates_know_about_as_much_as_one_over_all_their_examples() -> None:
    parts = [drawn(TRUE, 100, seed=seed) for seed in range(12)]
    one, several = BlendFit(), BlendFit()
    one.learn(Foreseen.together(parts), DAY)
    for part in parts:
        several.learn(part, DAY)
    spread = np.sqrt(np.diag(np.linalg.inv(one.evidence)))
    assert (np.abs(several.weights - one.weights) < 2.0 * spread).all()
    np.testing.assert_allclose(several.evidence, one.evidence, rtol=0.3, atol=0.1 * np.abs(one.evidence).max())


def test_what_was_said_long_ago_fades() -> None:
    other = np.array([1.2, 0.5, 0.0, 0.0, 0.0, 0.0, 0.6, 0.0, 0.0, 0.0, 0.0])
    weights = []
    for days in (1.0, 10 * MEAN_LIFE_DAYS):
        fit = BlendFit()
        fit.learn(drawn(other, 2_000, seed=3), DAY)
        fit.learn(drawn(TRUE, 200, seed=4), round(DAY * (1.0 + days)))
        weights.append(fit.weights)
    alone = BlendFit()
    alone.learn(drawn(TRUE, 200, seed=4), DAY)
    assert np.abs(weights[0] - other).max() < 0.6
    np.testing.assert_allclose(weights[1], alone.weights, atol=0.05)


def test_nothing_foreseen_changes_nothing() -> None:
    fit = BlendFit()
    fit.learn(Foreseen.together([]), DAY)
    np.testing.assert_array_equal(fit.weights, untouched())
    assert fit.time == 0


def shop(number: int, seed: int, first_day: int = 0) -> list[dict]:
    """Customers who buy again what they bought, one of five times something else."""
    generator = np.random.default_rng(seed)
    found = []
    for place in range(number):
        had = generator.permutation(60)[:8]
        targets = {f"i{item}" for item in generator.choice(had, 2, replace=False)}
        if place % 5 == 0:
            targets.add(f"i{generator.integers(60)}")
        history = {f"i{item}": (1 + int(age == 0), age + 1.0) for age, item in enumerate(had)}
        found.append(moment(sorted(targets), history=history, unit=f"u{place}", day=first_day + place // 30))
    return found


@pytest.fixture
def trained() -> RecommenderLearner:
    learner = untrained([f"i{place}" for place in range(60)], examples(shop(300, seed=0)))
    schedule = Schedule(epochs=1, batch_size=64, learning_rate=1e-3, warmup_steps=1, patience_epochs=0)
    nothing = examples([])
    return fine_tune(learner, restored, examples(shop(300, seed=0)), nothing, schedule, seed=0).learner  # type: ignore[return-value]


def restored(state: object) -> RecommenderLearner:
    return RecommenderLearner.restore(state, encoder=lambda: None)  # type: ignore[arg-type]


def test_a_first_training_foresees_nothing_of_what_it_is_taught_but_its_tuning_examples() -> None:
    schedule = Schedule(epochs=1, batch_size=64, learning_rate=1e-3, warmup_steps=1, patience_epochs=0)
    for tune, foreseen in ((examples([]), False), (examples(shop(60, seed=9, first_day=10)), True)):
        learner = untrained([f"i{place}" for place in range(60)], examples(shop(300, seed=0)))
        fine_tune(learner, restored, examples(shop(300, seed=0)), tune, schedule, seed=0)
        assert bool(learner._blend.time) == foreseen
        assert (learner._blend.weights != untouched()).any() == foreseen


def test_examples_of_a_time_that_was_learnt_do_not_tell_what_habits_and_ages_are_worth(
    trained: RecommenderLearner
) -> None:
    trained.foresee(examples(shop(90, seed=5, first_day=2)))  # of days 0 to 9 that were taught
    assert trained.has_foreseen and (trained._blend.weights[:HABIT] != untouched()[:HABIT]).any()
    assert not trained._blend.weights[HABIT:].any() and not trained._blend.evidence[HABIT:].any()
    trained.foresee(examples(shop(90, seed=6, first_day=20)))
    assert trained._blend.weights[HABIT]


def test_an_update_foresees_what_is_new_before_it_is_taught(trained: RecommenderLearner) -> None:
    coming, old = examples(shop(90, seed=5, first_day=20)), examples(shop(40, seed=0))
    alone = restored(trained.state())
    for learner in (trained, alone):
        learner.grow(context([f"i{place}" for place in range(60)]), coming)
    alone.foresee(coming)
    train = together(coming.marked(replayed=False), old.marked(replayed=True))
    schedule = Schedule(epochs=1, batch_size=64, learning_rate=1e-3, warmup_steps=1, patience_epochs=0)
    fine_tune(trained, restored, train, examples([]), schedule, seed=1)
    np.testing.assert_array_equal(trained._blend.weights, alone._blend.weights)
    assert trained._blend.time == int(alone._encoded(coming).times.max())
    assert (trained._blend.weights != untouched()).any()


def test_without_the_method_nothing_is_weighed(trained: RecommenderLearner) -> None:
    trained.foresee(examples(shop(90, seed=5, first_day=20)))
    assert trained.has_foreseen
    coming = examples(shop(60, seed=6, first_day=25))
    trained.grow(context([f"i{place}" for place in range(60)]), coming)
    off = Methods(weigh_foreseen=False)
    schedule = Schedule(epochs=1, batch_size=64, learning_rate=1e-3, warmup_steps=1, patience_epochs=0, methods=off)
    fine_tune(trained, restored, coming, examples(shop(30, seed=7, first_day=26)), schedule, seed=1)
    assert not trained.has_foreseen
    np.testing.assert_array_equal(trained.compact().arrays["blend"], untouched())


def test_searches_and_examples_without_a_history_say_nothing(trained: RecommenderLearner) -> None:
    vector = np.ones(DIMENSION).tolist()
    silent = [
        moment(["i3"], query="cup", query_vector=vector, history={"i3": (1, 1)}, day=30), moment(["i4"], day=30),
        moment([], history={"i3": (1, 1)}, rating_item="i3", rating=4.0, day=30),
    ]
    trained.foresee(examples(silent))
    np.testing.assert_array_equal(trained._blend.weights, untouched())


def test_the_weights_come_back_from_a_checkpoint_and_an_older_one_has_none(
    trained: RecommenderLearner, tmp_path: object
) -> None:
    trained.foresee(examples(shop(90, seed=5, first_day=20)))
    folder = tmp_path / "one"  # type: ignore[operator]
    save(Checkpoint(trained.state(), LEDGER), folder)
    again = restored(load(folder).state)
    for name, array in trained._blend.arrays("blend").items():
        np.testing.assert_array_equal(again._blend.arrays("blend")[name], array)
    state = trained.state()
    older = {name: array for name, array in state.arrays.items() if not name.startswith("blend/")}
    np.testing.assert_array_equal(restored(replace(state, arrays=older))._blend.weights, untouched())


def test_a_checkpoint_of_fewer_weights_goes_on_with_those_that_it_has(trained: RecommenderLearner) -> None:
    trained.foresee(examples(shop(90, seed=5, first_day=20)))
    state, fit = trained.state(), trained._blend
    fewer = {"blend/weights": fit.weights[:HABIT], "blend/evidence": fit.evidence[:HABIT, :HABIT]}
    arrays = {name: array for name, array in (state.arrays | fewer).items() if name != "items/first_seen"}
    older = restored(replace(state, arrays=arrays))
    np.testing.assert_array_equal(older._blend.weights, [*fit.weights[:HABIT], 0.0, 0.0, 0.0])
    assert set(older.compact().arrays["ages"]) == {OLDEST_DAYS}
    older.foresee(examples(shop(90, seed=6, first_day=22)))
    assert older._blend.weights[HABIT]


def test_an_items_age_counts_from_when_it_was_first_chosen_or_told_of() -> None:
    def told(items: list[str], day: int) -> pa.Table:
        return context(items).append_column("last_seen", pa.array([NOON + timedelta(days=day)] * len(items), TIME))

    chosen = [moment(["a"], history={"b": (1, 1)}, day=20), moment(["a", "b"], history={"c": (1, 1)}, day=70)]
    learner = untrained([], examples([]))
    learner.grow(told(["a", "b", "c"], 60), examples(chosen))
    learner.grow(told(["a", "d"], 80), examples([moment(["c", "d"], history={"a": (1, 1)}, day=90)]))
    today = learner._counters.trends.day_of(len(learner._counters.trends.moments))
    assert today == (NOON + timedelta(days=70)).date().toordinal() - date(1970, 1, 1).toordinal()
    expected = {"a": 50.0, "b": 10.0, "c": 10.0, "d": 0.0}  # d came after what was counted last
    rows = learner._tables.items.indices_of(pa.array(list(expected)))
    np.testing.assert_array_equal(learner._tables.ages(rows, today), list(expected.values()))
    np.testing.assert_array_equal(learner._tables.ages(rows, today + 1_000), [OLDEST_DAYS] * 4)
    np.testing.assert_array_equal(restored(learner.state())._tables.ages(rows, today), list(expected.values()))
    np.testing.assert_array_equal(learner.compact().arrays["ages"][rows], list(expected.values()))


def test_what_is_served_is_weighed_and_what_is_trained_is_not(trained: RecommenderLearner) -> None:
    asked = examples(shop(5, seed=6, first_day=25))
    before, network = compact_logits(trained, asked), network_logits(trained, asked)
    np.testing.assert_allclose(before[:, 1:], network[:, 1:], rtol=1e-3, atol=1e-3)
    trained.foresee(examples(shop(90, seed=5, first_day=20)))
    assert np.abs(compact_logits(trained, asked)[:, 1:] - before[:, 1:]).max() > 0.05
    np.testing.assert_array_equal(network_logits(trained, asked), network)


@pytest.fixture
def blind(trained: RecommenderLearner) -> Callable[[], tuple[Foreseen, dict, np.ndarray, np.ndarray]]:
    def made() -> tuple[Foreseen, dict, np.ndarray, np.ndarray]:
        encoded = trained._encoded(examples(shop(30, seed=7, first_day=25)))
        batcher = Batcher(encoded, trained._tables, trained._counters, np.random.default_rng(0), counted=False)
        arrays = dict(batcher.batch(np.arange(30), 16, 30, blind=True))
        read = {name: array for name, array in arrays.items() if name not in BESIDE}
        shared, own = trained._trainer.foresee(trained._tables.rows(arrays["rows"]), read)
        return Foreseen.of(shared, own, arrays, -4.0), arrays, shared, own
    return made


def test_foreseen_are_the_logits_of_own_items_and_of_the_best_others(
    blind: Callable[[], tuple[Foreseen, dict, np.ndarray, np.ndarray]]
) -> None:
    foreseen, batch, shared, own = blind()
    assert BY_LOGIT >= 60 and len(foreseen) == 30  # all 60 items are among the best
    for place, start in enumerate(foreseen.starts):
        end = np.append(foreseen.starts, len(foreseen.wanted))[place + 1]
        inputs, wanted = foreseen.inputs[start:end], foreseen.wanted[start:end]
        inside = inputs[:, 2] == 1.0
        assert len(inputs) == 60 and inside.sum() == 8
        np.testing.assert_allclose(sorted(inputs[inside, 1]), sorted(own[place][own[place] > NO_ITEM]))
        outside = np.delete(shared[place], [0, *batch["history_index"][place]])
        np.testing.assert_allclose(sorted(inputs[~inside, 0]), sorted(outside))
        assert wanted.sum() == (batch["own_targets"][place] > 0).sum() + (batch["target_index"][place] > 0).sum()
        assert wanted[inside].sum() == (batch["own_targets"][place] > 0).sum()
        np.testing.assert_allclose(inputs[inside, HABIT], batch["habits"][place, :8], rtol=1e-6)
        ages = np.delete(batch["ages"][batch["moment"][place]], [0, *batch["history_index"][place]])
        np.testing.assert_allclose(np.sort(inputs[~inside, AGE.start]), np.sort(-np.log1p(ages)), rtol=1e-6)
        assert not inputs[~inside, HABIT].any() and not inputs[inside, AGE].any()
    assert batch["habits"].any() and batch["ages"].any()


def test_of_a_large_catalogue_candidates_are_found_without_a_look_at_the_targets(
    trained: RecommenderLearner, monkeypatch: pytest.MonkeyPatch,
    blind: Callable[[], tuple[Foreseen, dict, np.ndarray, np.ndarray]],
) -> None:
    monkeypatch.setattr("pipeline.tasks.recommend_batches.EXACT_ITEMS", 10)
    monkeypatch.setattr("pipeline.tasks.recommend_batches.SAMPLED_ITEMS", 3)
    monkeypatch.setattr("pipeline.tasks.recommend_near._REACHED", 1)
    _, batch, shared, _ = blind()
    candidates = set(batch["rows"][1 : shared.shape[1]])
    table, history = trained._counters.neighbours, batch["rows"][batch["history_index"]]
    reached = set(table.index[history, :1].ravel()) - {0}
    assert reached <= candidates and len(candidates - reached) <= 3
    assert (batch["target_index"] < shared.shape[1]).all()


def test_no_more_examples_are_foreseen_than_their_weights_need(
    trained: RecommenderLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    learn = BlendFit.learn
    monkeypatch.setattr(BlendFit, "learn", lambda self, one, time, **given: (
        seen.append(len(one)), learn(self, one, time, **given)
    ))
    trained.foresee(examples(shop(MOST_FORESEEN + 50, seed=8, first_day=25)))
    assert seen == [MOST_FORESEEN]
