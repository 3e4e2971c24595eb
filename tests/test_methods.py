"""The recommender's methods: each is off by default and, switched on, does what its paper says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.optimizers import RowMoments
from models.trainer import StepMethods, Trainer
from pipeline.tasks.contract import Examples, Methods, Schedule, together
from pipeline.tasks.recommend_batches import kept_places
from pipeline.tasks.recommend_learner import RecommenderLearner
from pipeline.training import fine_tune
from tests.test_recommend_learner import compact_logits, context, examples, moment, untrained

ITEMS = [f"i{place}" for place in range(24)]


def sales(seed: int, count: int = 64, ahead: int | None = None) -> Examples:
    """Users with two items at random who choose a third: at random, or always so many places after the first."""
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(len(ITEMS))[:3] for _ in range(count)]
    if ahead is not None:
        drawn = [(first, second, (first + ahead) % len(ITEMS)) for first, second, _ in drawn]
    return examples([
        moment([f"i{third}"], history={f"i{first}": (1, 1), f"i{second}": (1, 2)}) for first, second, third in drawn
    ])


OLD, NEW = sales(0), sales(1)
LESSON = together(NEW.marked(replayed=False), OLD.marked(replayed=True))
HABIT = sales(3, ahead=5)  # there is something to learn in it
LESSON_OF_HABIT = together(HABIT.marked(replayed=False), OLD.marked(replayed=True))


@pytest.fixture(scope="module")
def champion() -> RecommenderLearner:
    """Has learnt the old sales and met the new ones."""
    learner = untrained(ITEMS, OLD)
    steps(learner, OLD, Methods(), passes=5)
    learner.grow(context([]), NEW)
    return learner


@pytest.fixture(scope="module")
def of_habit(champion: RecommenderLearner) -> RecommenderLearner:
    """The champion that has met sales with a habit in them."""
    learner = restored(champion)
    learner.count(NEW)
    learner.grow(context([]), HABIT)
    return learner


@pytest.fixture(scope="module")
def free(champion: RecommenderLearner) -> RecommenderLearner:
    """The champion after an update without any method."""
    return updated(champion)


def steps(
    learner: RecommenderLearner, train: Examples, methods: Methods, passes: int = 3, rate: float = 1e-2
) -> RecommenderLearner:
    learner.use(methods, train)
    generator = np.random.default_rng(5)
    for _ in range(passes):
        for batch in learner.batches(train, 32, generator):
            learner.train_step(batch, rate)
    return learner


def restored(learner: RecommenderLearner) -> RecommenderLearner:
    return RecommenderLearner.restore(learner.state(), encoder=lambda: None)


def updated(champion: RecommenderLearner, train: Examples = LESSON, **methods: Any) -> RecommenderLearner:
    return steps(restored(champion), train, Methods(**methods))


def same(one: RecommenderLearner, other: RecommenderLearner) -> bool:
    here, there = one.state().arrays, other.state().arrays
    assert set(here) == set(there)
    return all(here[name].tobytes() == there[name].tobytes() for name in here)


def distance(one: RecommenderLearner, other: RecommenderLearner, names: Callable[[str], bool]) -> float:
    here, there = one.state().arrays, other.state().arrays
    chosen = [name for name in one.weights() if names(name)]
    return float(sum(np.square(here[name] - there[name]).sum() for name in chosen))


def is_row(name: str) -> bool:
    return name.endswith("/rows")


def is_dense(name: str) -> bool:
    return not is_row(name)


def test_weights_are_what_training_moves(champion: RecommenderLearner, free: RecommenderLearner) -> None:
    before, after = champion.state().arrays, free.state().arrays
    moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    others = ("optimizer/", "seed_generator/", "items/first", "items/second", "items/steps", "categories/first",
              "categories/second", "categories/steps")
    learnt = {name for name in moved if not name.startswith(others)}
    assert {"items/rows", "categories/rows"} < learnt <= set(champion.weights())
    assert len(learnt) > len(champion.weights()) / 2


@pytest.mark.parametrize("wrong", [
    {"copy_pace": 0.0}, {"replay": "newest"}, {"replay_mean_life_days": 0.0}, {"l2_pull": -1.0}, {"ewc": float("inf")},
    {"distillation": float("nan")}, {"average_with_start": 1.5}, {"shrink": 0.0}, {"perturb": -0.1},
    {"optimizer": "sgd"}, {"weight_decay": 0.1}, {"adversarial_radius": -1.0}, {"dropout": 1.0}, {"rate_trials": 1},
    {"rate_trial_steps": 0}, {"history_mask": 1.0}, {"history_crop": -0.5}, {"ensemble": 1}, {"text_crop": 1.0},
    {"text_mask": -0.1}, {"text_synonym": 1.0}, {"title_queries": -1.0}, {"lora_rank": -1}, {"lora_steps": 0},
], ids=str)
def test_a_setting_out_of_range_is_refused_by_its_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Methods(**wrong)


def test_without_methods_a_job_is_bit_for_bit_one_that_was_never_told_of_any(
    champion: RecommenderLearner, free: RecommenderLearner
) -> None:
    plain = restored(champion)
    step, generator = plain._trainer._train, np.random.default_rng(5)
    for _ in range(3):
        for batch in plain.batches(LESSON, 32, generator):
            plain.train_step(batch, 1e-2)
    assert same(plain, free)
    plain.use(Methods(prefetch=True, rate_trials=2, replay="recent"), LESSON)
    assert plain._trainer._train is step  # nothing is traced again


def test_methods_that_are_switched_off_again_leave_nothing_behind(
    champion: RecommenderLearner, free: RecommenderLearner
) -> None:
    after = restored(champion)
    after.use(Methods(l2_pull=1.0, distillation=1.0, dropout=0.5, adversarial_radius=0.1, history_mask=0.5), LESSON)
    assert same(steps(after, LESSON, Methods()), free)


@pytest.mark.slow
def test_a_pull_keeps_dense_weights_and_rows_near_the_start(
    champion: RecommenderLearner, free: RecommenderLearner
) -> None:
    held = updated(champion, l2_pull=10.0)
    for part in (is_row, is_dense):
        assert distance(held, champion, part) < 0.5 * distance(free, champion, part)


@pytest.mark.slow
def test_ewc_holds_the_weights_that_the_replayed_examples_need(
    champion: RecommenderLearner, free: RecommenderLearner
) -> None:
    held = updated(champion, ewc=1e5)
    assert distance(held, champion, is_dense) < 0.5 * distance(free, champion, is_dense)
    importance = {one.path: weight.numpy() for one, weight in zip(
        held._network.trainable_variables, held._trainer._importance, strict=True
    )}
    assert all((weight >= 0.0).all() for weight in importance.values())
    assert importance["recommender/rating_kernel"].max() == 0.0  # nothing was rated: free to move
    assert importance["recommender/query_kernel"].max() == 0.0
    assert importance["recommender/trend_head/mix"].max() > 0.0
    unmarked = together(NEW.marked(replayed=False), OLD.marked(replayed=False))  # nothing is known to be needed
    unheld = updated(champion, unmarked, ewc=1e5)
    assert distance(unheld, champion, is_dense) == pytest.approx(distance(free, champion, is_dense), rel=0.05)


@pytest.mark.slow
def test_fisher_information_is_the_mean_square_of_single_examples_gradients(champion: RecommenderLearner) -> None:
    learner = restored(champion)
    learner.use(Methods(ewc=1.0), LESSON)
    mix = next(one for one in learner._network.trainable_variables if one.path.endswith("trend_head/mix"))
    place = [one.path for one in learner._network.trainable_variables].index(mix.path)
    step = np.zeros(mix.shape, np.float32)
    step[0] = 1e-2
    losses = []
    for sign in (1.0, -1.0):
        mix.assign_add(sign * step)
        losses.append(learner.losses(OLD, 1, learnt=True))
        mix.assign_sub(sign * step)
    slopes = (losses[0] - losses[1]) / 2e-2
    assert learner._trainer._importance[place].numpy()[0] == pytest.approx(np.mean(slopes**2), rel=0.05)


def forgotten(learner: RecommenderLearner, champion: RecommenderLearner, judged: Examples) -> float:
    """The mean KL divergence from the champion's answers, computed in numpy from the consumers' logits."""
    def log_chances(one: RecommenderLearner) -> np.ndarray:
        logits = compact_logits(one, judged)[:, 1:].astype(np.float64)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    before, now = log_chances(champion), log_chances(learner)
    return float((np.exp(before) * (before - now)).sum(axis=1).mean())


@pytest.mark.slow
def test_distillation_keeps_the_champions_answers_to_what_is_replayed(
    champion: RecommenderLearner, free: RecommenderLearner
) -> None:
    held = updated(champion, distillation=20.0)
    assert forgotten(held, champion, OLD) < 0.5 * forgotten(free, champion, OLD)
    unmarked = together(NEW.marked(replayed=False), OLD.marked(replayed=False))
    none, plain = updated(champion, unmarked, distillation=20.0), updated(champion, unmarked)
    assert forgotten(none, champion, OLD) == pytest.approx(forgotten(plain, champion, OLD), rel=0.05)


def the_batch(learner: RecommenderLearner, methods: Methods, train: Examples = OLD) -> dict[str, Any]:
    """One batch of all the examples, in the order of one draw."""
    learner.use(methods, train)
    [batch] = learner.batches(train, len(train), np.random.default_rng(3))
    return dict(batch)


@pytest.mark.slow
def test_a_pace_lengthens_the_steps_of_the_copy_head_alone(champion: RecommenderLearner) -> None:
    before = champion.state().arrays
    moved = {}
    for pace in (1.0, 10.0):
        learner = restored(champion)
        learner.train_step(the_batch(learner, Methods(copy_pace=pace, dropout=0.0)), 1e-3)
        after = learner.state().arrays
        moved[pace] = {name: after[name] - before[name] for name in champion.weights() if name != "categories/rows"}
    for name, one in moved[1.0].items():
        factor = 10.0 if "copy_head" in name else 1.0
        np.testing.assert_allclose(moved[10.0][name], factor * one, rtol=1e-2, atol=1e-5, err_msg=name)
    assert np.abs(moved[1.0][next(name for name in moved[1.0] if "copy_head" in name)]).max() > 1e-4
    assert restored(champion)._trainer.copy_pace.numpy() == 1.0


def test_distillation_knows_which_examples_of_a_batch_are_replayed(champion: RecommenderLearner) -> None:
    learner = restored(champion)
    batch = the_batch(learner, Methods(distillation=1.0), LESSON)
    of_old = learner._encoded(OLD).target_index
    assert batch["replayed"].sum() == len(OLD)
    assert sorted(batch["target_index"][batch["replayed"] > 0, 0]) == sorted(of_old)
    assert "replayed" not in the_batch(learner, Methods(), LESSON)


def test_what_a_step_forgets_is_the_divergence_over_all_that_competes(
    champion: RecommenderLearner, free: RecommenderLearner
) -> None:
    learner = restored(champion)
    arrays = the_batch(learner, Methods(distillation=1.0))
    rows, replayed = arrays.pop("rows"), arrays.pop("replayed")
    np.testing.assert_array_equal(replayed, np.zeros(len(OLD)))  # OLD alone is not marked
    start_rows = learner._tables.rows(rows)
    logits = learner._network(start_rows, arrays)
    np.testing.assert_allclose(learner._trainer._forgotten(logits, arrays, start_rows), 0.0, atol=1e-6)
    for one, then in zip(learner._network.trainable_variables, free._network.trainable_variables, strict=True):
        one.assign(then)
    later = learner._network(free._tables.rows(rows), arrays)
    chances = []
    for shared, own, _ in (logits, later):
        all_items = shared.numpy().astype(np.float64)  # every item is a candidate
        example, place = np.nonzero(arrays["history_index"])
        all_items[example, arrays["history_index"][example, place]] = own.numpy()[example, place]
        chances.append(tf.nn.softmax(all_items[:, 1:]).numpy())
    expected = (chances[0] * np.log(chances[0] / chances[1])).sum(axis=1)
    given = learner._trainer._forgotten(later, arrays, start_rows)
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-6)
    assert expected.min() > 1e-4


@pytest.mark.slow
def test_an_adversarial_step_is_the_mean_of_two_gradients_the_second_up_the_first(
    champion: RecommenderLearner,
) -> None:
    radius, calm = 0.5, Methods(dropout=0.0)
    learner = restored(champion)
    arrays = the_batch(learner, calm)
    rows = learner._tables.rows(arrays.pop("rows"))
    first = learner._trainer.train_step(rows, arrays, 0.0)[1]
    moved = rows + np.float32(radius / np.linalg.norm(first)) * first
    second = learner._trainer.train_step(moved, arrays, 0.0)[1]
    learner.use(Methods(dropout=0.0, adversarial_radius=radius), OLD)
    given = learner._trainer.train_step(rows, arrays, 0.0)[1]
    np.testing.assert_allclose(given, (first + second) / 2.0, rtol=1e-3, atol=1e-7)
    assert np.abs(second - first).max() > 1e-3 * np.abs(first).max()


@pytest.mark.slow
def test_the_dropout_of_an_update_takes_the_place_of_the_networks(champion: RecommenderLearner) -> None:
    learner = restored(champion)
    arrays = the_batch(learner, Methods(dropout=0.0))
    rows = learner._tables.rows(arrays.pop("rows"))
    without = learner._trainer.train_step(rows, arrays, 0.0)[0]
    assert without == pytest.approx(learner._trainer.measure(rows, arrays).mean(), rel=1e-5)
    learner.use(Methods(dropout=0.9), OLD)
    assert learner._trainer.train_step(rows, arrays, 0.0)[0] != pytest.approx(without, rel=1e-3)


@pytest.mark.slow
def test_adamw_decays_matrices_and_rows_and_keeps_adams_moments(champion: RecommenderLearner) -> None:
    learner = restored(champion)
    batch = the_batch(learner, Methods(optimizer="adamw", weight_decay=0.5))
    before = learner.state().arrays
    assert before["optimizer/iteration"] == champion.state().arrays["optimizer/iteration"] > 0
    for name in champion.state().arrays:
        if name.endswith("_momentum"):
            np.testing.assert_array_equal(before[name], champion.state().arrays[name])
    learner.train_step(batch, 1e-2)
    decayed = learner.state().arrays
    other = restored(champion)
    other.train_step(the_batch(other, Methods(optimizer="adamw")), 1e-2)
    for name in learner.weights():
        lost = other.state().arrays[name] - decayed[name]
        share = 0.005 if before[name].ndim == 2 else 0.0
        if is_row(name):  # they have a pace of their own
            share = (lost * before[name]).sum() / np.square(before[name]).sum()
            assert share > 1e-4
        np.testing.assert_allclose(lost, share * before[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_rows_decay_is_the_learning_rates_share_of_it() -> None:
    table, moments = np.ones((3, 2), np.float32), RowMoments.zeros(3, 2)
    moments.weight_decay = 0.1
    moments.step(table, np.array([1]), np.zeros((1, 2), np.float32), 0.5)
    np.testing.assert_allclose(table, [[1, 1], [0.95, 0.95], [1, 1]])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_another_optimizer_learns_and_goes_on_bit_for_bit_after_a_checkpoint(
    of_habit: RecommenderLearner, optimizer: Any
) -> None:
    methods = Methods(optimizer=optimizer, weight_decay=0.01)
    half = steps(restored(of_habit), LESSON_OF_HABIT, methods, passes=4)
    assert half.loss(HABIT, 32) < of_habit.loss(HABIT, 32)
    resumed = restored(half)
    assert same(resumed, half)
    assert same(steps(half, LESSON_OF_HABIT, methods, passes=1), steps(resumed, LESSON_OF_HABIT, methods, passes=1))


def test_masked_and_cropped_places_are_as_many_as_asked_for() -> None:
    present = np.ones((4000, 20), bool)
    present[:, 15:] = False
    generator = np.random.default_rng(0)
    masked = kept_places(present, 0.3, 0.0, generator)[:, :15]
    assert masked.mean() == pytest.approx(0.7, abs=0.01) and (masked.std(axis=0) > 0.4).all()
    cropped = kept_places(present, 0.0, 0.6, generator)[:, :15]
    np.testing.assert_array_equal(cropped.sum(axis=1), np.full(4000, 6))
    assert (np.abs(np.diff(cropped, axis=1)).sum(axis=1) <= 2).all()  # one piece
    assert len(np.unique(cropped.argmax(axis=1))) == 10  # it begins anywhere


def test_histories_are_thinned_in_training_and_only_there(champion: RecommenderLearner) -> None:
    learner = restored(champion)
    whole, loss = the_batch(learner, Methods()), champion.loss(OLD, 32)
    for methods in (Methods(history_mask=0.5), Methods(history_crop=0.5)):
        thinned = the_batch(learner, methods)
        shown = thinned["history_index"] > 0
        assert shown.sum() == pytest.approx(len(OLD), abs=24)  # of two items each
        np.testing.assert_array_equal(thinned["history_index"][shown], whole["history_index"][shown])
        for name in ("history_counts", "history_views", "history_days"):
            assert not thinned[name][~shown].any()
        assert learner.loss(OLD, 32) == loss


def test_a_chosen_item_that_the_history_no_longer_shows_is_one_of_the_catalogue_and_its_count_no_hint() -> None:
    """Each item is one user's alone: all that is counted of a pair, the example itself has added."""
    again = examples([
        moment([f"i{3 * user}", f"i{3 * user + 1}"], history={f"i{3 * user + place}": (1, 1) for place in range(3)})
        for user in range(8)
    ])
    learner = untrained(ITEMS, again)
    for methods in (Methods(), Methods(history_mask=0.5), Methods(history_crop=0.4)):
        batch = the_batch(learner, methods, again)
        asked = (batch["target_index"] > 0).sum() + (batch["own_targets"] > 0).sum()
        assert asked == 16  # none is lost
        outside = np.count_nonzero(batch["target_index"])
        assert (outside > 0) == (methods != Methods())
        example, item, _ = batch["neighbour_entries"].T
        hints = (item[:, None] == batch["target_index"][example]).any(axis=1)
        assert not hints.any()


@pytest.mark.slow
def test_a_whole_update_with_many_methods_learns(of_habit: RecommenderLearner) -> None:
    schedule = Schedule(
        learning_rate=1e-2, warmup_steps=2, epochs=4, patience_epochs=4, batch_size=32, decay="linear", methods=Methods(
            l2_pull=1e-3, ewc=1.0, distillation=0.5, average_with_start=0.2, shrink=0.99, perturb=1e-4, prefetch=True,
            optimizer="adamw", weight_decay=0.01, dropout=0.1, history_mask=0.1, history_crop=0.1,
        ),
    )
    tune = sales(2, ahead=5)
    done = fine_tune(
        restored(of_habit), lambda state: RecommenderLearner.restore(state, encoder=lambda: None), LESSON_OF_HABIT,
        tune, schedule, seed=3,
    )
    assert all(np.isfinite(done.tuning_losses)) and done.learner.loss(HABIT, 32) < of_habit.loss(HABIT, 32)


def test_a_network_without_dropout_refuses_one() -> None:
    from models.recommender import Recommender, RecommenderSizes

    trainer = Trainer(Recommender(RecommenderSizes(text_dimension=4, dimension=4, dropout=0.0), seed=1))
    with pytest.raises(ValueError, match="needs a network built with one"):
        trainer.use(StepMethods(dropout=0.2))
