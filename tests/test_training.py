"""One job of training: the rate rises, the best pass is kept, and what is broken is not kept at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.tasks.contract import Examples, Methods, Schedule, together
from pipeline.training import TrainingDiverged, fine_tune, learning_rate_at
from tests.price_task import PriceLearner
from tests.small_shop import hour

SCHEDULE = Schedule(learning_rate=0.3, warmup_steps=4, epochs=6, patience_epochs=2, batch_size=8)


def prices(*values: float) -> Examples:
    """Examples of one item at these prices."""
    start = hour(0).start
    return Examples(pa.table({
        "example_id": [f"e{place}" for place in range(len(values))], "unit": ["u"] * len(values),
        "time": [start] * len(values), "hour": [start] * len(values), "rows": [1] * len(values),
        "landed_window": [start] * len(values), "item_id": pa.array(["i"] * len(values), pa.string()),
        "price": pa.array(values, pa.float64()),
    }))


def learner(at: float = 0.0) -> PriceLearner:
    made = PriceLearner(0)
    made.grow(pa.table({"item_id": ["i"]}), prices(at))
    return made


def test_the_rate_rises_in_a_line_and_stays() -> None:
    rates = [learning_rate_at(step, SCHEDULE) for step in range(6)]
    np.testing.assert_allclose(rates, [0.075, 0.15, 0.225, 0.3, 0.3, 0.3])
    assert learning_rate_at(0, replace(SCHEDULE, warmup_steps=0)) == 0.3


def test_only_a_long_history_is_taught_in_larger_batches() -> None:
    schedule = replace(SCHEDULE, most_batch_size=32, steps_a_pass=10)
    sizes = {examples: schedule.for_examples(examples).batch_size for examples in (1, 80, 81, 200, 320, 100_000)}
    assert sizes == {1: 8, 80: 8, 81: 9, 200: 20, 320: 32, 100_000: 32}
    assert SCHEDULE.for_examples(100_000).batch_size == 8

    done = fine_tune(learner(), PriceLearner.restore, prices(*[10.0] * 160), prices(), schedule, seed=1)
    assert done.steps == 6 * 10


def test_the_best_pass_is_kept_and_later_ones_are_not() -> None:
    """The way from 0 to the taught 10 leads past the 4 by which it is tuned."""
    done = fine_tune(learner(), PriceLearner.restore, prices(*[10.0] * 16), prices(4.0), SCHEDULE, seed=1)
    losses = done.tuning_losses
    assert done.best_epoch == int(np.argmin(losses)) + 1 < 6
    assert done.learner.loss(prices(4.0), 8) == min(losses)
    assert len(losses) == done.best_epoch + 2 and done.steps == 2 * len(losses)


def test_one_pass_is_kept_though_the_tuning_loss_rose_at_once() -> None:
    """Else the hour would be in the ledger and not in the model."""
    done = fine_tune(learner(), PriceLearner.restore, prices(*[10.0] * 16), prices(0.0), SCHEDULE, seed=1)
    assert done.best_epoch == 1 and done.learner.steps == 2 and done.learner.prices[0] > 0.5


def test_without_patience_the_last_pass_is_kept_and_judged_alone() -> None:
    schedule = replace(SCHEDULE, patience_epochs=0)
    taught = learner()
    done = fine_tune(taught, PriceLearner.restore, prices(*[10.0] * 16), prices(0.0), schedule, seed=1)
    assert (done.best_epoch, done.steps, len(done.tuning_losses)) == (6, 12, 1) and done.learner is taught
    assert done.tuning_losses[0] == taught.loss(prices(0.0), 8)


def test_a_small_window_is_filled_up_with_old_examples() -> None:
    filled = replace(SCHEDULE, filled_up_to=512)
    assert [filled.replayed_beside(new) for new in (0, 100, 512, 600)] == [512, 412, 0, 0]
    assert replace(filled, replay_ratio=0.5, least_replayed=64).replayed_beside(600) == 300
    assert replace(filled, least_replayed=64).replayed_beside(500) == 64
    assert SCHEDULE.replayed_beside(100) == 0


def test_all_passes_are_made_without_tuning_examples_and_none_without_examples() -> None:
    done = fine_tune(learner(), PriceLearner.restore, prices(*[10.0] * 9), prices(), SCHEDULE, seed=1)
    assert (done.best_epoch, done.steps, done.tuning_losses) == (6, 12, ())
    before = learner(3.0)
    done = fine_tune(before, PriceLearner.restore, prices(), prices(4.0), SCHEDULE, seed=1)
    assert (done.best_epoch, done.steps, done.learner) == (0, 0, before)


def test_a_small_history_is_passed_over_until_enough_steps_are_made_and_the_rate_falls_over_all_of_them() -> None:
    schedule = replace(SCHEDULE, epochs=2, least_steps=9, decay="linear", warmup_steps=0)
    taught = learner()
    rates: list[float] = []
    step = taught.train_step
    taught.train_step = lambda batch, rate: (rates.append(rate), step(batch, rate))[1]  # type: ignore[method-assign]
    done = fine_tune(taught, PriceLearner.restore, prices(*[10.0] * 16), prices(), schedule, seed=1)
    assert done.steps == 10 and rates[0] == 0.3 and rates[4] == pytest.approx(0.18)
    twice = fine_tune(learner(), PriceLearner.restore, prices(*[10.0] * 48), prices(), schedule, seed=1)
    assert twice.steps == 12  # six a pass: both passes are enough


def test_a_small_window_that_is_mostly_replayed_is_passed_over_no_more_often() -> None:
    schedule = replace(SCHEDULE, epochs=1, patience_epochs=0, least_steps=8)
    new, old = prices(*[10.0] * 8).marked(replayed=False), prices(*[9.0] * 8).marked(replayed=True)
    for examples, steps in ((together(new, old), 8), (together(new, old, old), 3), (new, 8)):
        done = fine_tune(learner(), PriceLearner.restore, examples, prices(), schedule, seed=1)
        assert done.steps == steps


@pytest.mark.parametrize("tuned", [prices(), prices(10.0)])
def test_no_further_pass_begins_after_enough_steps(tuned: Examples) -> None:
    taught = prices(*[10.0] * 16)  # two steps a pass
    for enough, passes in ((2, 1), (3, 2), (0, 6)):
        schedule = replace(SCHEDULE, enough_steps=enough, patience_epochs=99)
        assert fine_tune(learner(), PriceLearner.restore, taught, tuned, schedule, seed=1).steps == 2 * passes


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    taught = prices(*np.random.default_rng(0).normal(10.0, 3.0, 50))

    def trained(seed: int) -> bytes:
        done = fine_tune(learner(), PriceLearner.restore, taught, prices(9.0, 11.0), SCHEDULE, seed=seed)
        return done.learner.prices.tobytes()

    assert trained(1) == trained(1) != trained(2)


def test_a_loss_that_is_no_number_stops_the_job_and_says_what_to_look_for() -> None:
    with pytest.raises(TrainingDiverged, match=r"after pass 1.*extreme values") as caught:
        fine_tune(learner(), PriceLearner.restore, prices(*[float("inf")] * 8), prices(4.0), SCHEDULE, seed=1)
    assert caught.value.epoch == 1


def test_each_pass_is_told_to_people() -> None:
    said: list[str] = []
    fine_tune(learner(), PriceLearner.restore, prices(10.0), prices(10.0), SCHEDULE, seed=1, report=said.append)
    assert said[0] == "pass 1: 1 steps, tuning loss 9.2500" and len(said) == 6


class Observed(PriceLearner):
    """Remembers what it was asked; its batches may fail."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.rates: list[float] = []
        self.threads: list[str] = []
        self.told: list[str] = []
        self.used: list[Methods] = []
        self.fails_after: int | None = None
        self.first_step_waits_seconds = 0.0

    def use(self, methods: Methods, train: Examples) -> None:
        self.used.append(methods)

    def batches(self, examples: Examples, batch_size: int, generator: np.random.Generator) -> Iterator[Any]:
        for place, batch in enumerate(super().batches(examples, batch_size, generator)):
            if place == self.fails_after:
                raise ValueError("broken batch")
            self.threads.append(threading.current_thread().name)
            self.told.append(f"batch {place} ready")
            yield batch

    def train_step(self, batch: Any, learning_rate: float) -> float:
        self.rates.append(learning_rate)
        until = time.monotonic() + self.first_step_waits_seconds
        while len(self.rates) == 1 and "batch 1 ready" not in self.told and time.monotonic() < until:
            time.sleep(0.01)
        self.told.append("step made")
        return super().train_step(batch, learning_rate)


def observed(at: float = 0.0) -> Observed:
    made = Observed(0)
    made.grow(pa.table({"item_id": ["i"]}), prices(at))
    return made


def schedule(**methods: Any) -> Schedule:
    return replace(SCHEDULE, methods=Methods(**methods))


def test_the_rate_falls_in_a_line_where_the_schedule_says_so() -> None:
    falling = replace(SCHEDULE, warmup_steps=2, decay="linear")
    rates = [learning_rate_at(step, falling, done) for step, done in enumerate((0.0, 0.25, 0.5, 0.75, 1.0))]
    np.testing.assert_allclose(rates, [0.15, 0.225, 0.15, 0.075, 0.003])


@pytest.mark.parametrize("count", [16, 20])
def test_a_job_with_decay_steps_from_the_peak_to_nearly_nothing_over_all_passes(count: int) -> None:
    made, per_pass = observed(), -(-count // 8)
    falling = replace(SCHEDULE, warmup_steps=0, epochs=4, decay="linear")
    fine_tune(made, Observed.restore, prices(*[10.0] * count), prices(), falling, seed=1)
    assert len(made.rates) == 4 * per_pass and made.rates[0] == 0.3
    assert all(later < earlier for earlier, later in zip(made.rates, made.rates[1:], strict=False))
    assert made.rates[-1] <= 0.3 / (4 * per_pass) + 1e-9
    with pytest.raises(ValueError, match="decay must be none or linear"):
        replace(SCHEDULE, decay="steps")  # type: ignore[arg-type]


def test_batches_are_prepared_by_one_thread_while_a_step_runs_and_give_the_same_bits() -> None:
    taught, tune = prices(*np.random.default_rng(0).normal(10.0, 3.0, 50)), prices(9.0, 11.0)
    plain, ahead = observed(), observed()
    ahead.first_step_waits_seconds = 60.0
    one = fine_tune(plain, Observed.restore, taught, tune, schedule(prefetch=False), seed=1)
    other = fine_tune(ahead, Observed.restore, taught, tune, schedule(prefetch=True), seed=1)
    assert one.learner.prices.tobytes() == other.learner.prices.tobytes()
    assert plain.told[:4] == ["batch 0 ready", "step made", "batch 1 ready", "step made"]
    assert ahead.told[:3] == ["batch 0 ready", "batch 1 ready", "step made"]
    assert set(plain.threads) == {"MainThread"} and set(ahead.threads) == {"prefetch_0"}
    assert "prefetch_0" not in {thread.name for thread in threading.enumerate()}


def test_what_breaks_in_a_batch_prepared_ahead_or_in_a_step_beside_it_ends_job_and_thread() -> None:
    broken = observed()
    broken.fails_after = 3
    with pytest.raises(ValueError, match="broken batch"):
        fine_tune(broken, Observed.restore, prices(*[10.0] * 64), prices(), schedule(prefetch=True), seed=1)
    assert broken.steps == 3
    unable = observed()
    unable.train_step = lambda batch, learning_rate: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        fine_tune(unable, Observed.restore, prices(*[10.0] * 64), prices(), schedule(prefetch=True), seed=1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_the_learner_is_told_the_methods_before_it_trains() -> None:
    made = observed()
    fine_tune(made, Observed.restore, prices(10.0), prices(), schedule(l2_pull=0.5), seed=1)
    assert made.used == [Methods(l2_pull=0.5)]


def test_the_mean_with_the_start_lies_between_both() -> None:
    taught = prices(*[10.0] * 16)
    trained = fine_tune(learner(2.0), PriceLearner.restore, taught, prices(), SCHEDULE, seed=1).learner
    for share, expected in ((1.0, 2.0), (0.25, 0.75 * trained.prices[0] + 0.25 * 2.0)):
        done = fine_tune(
            learner(2.0), PriceLearner.restore, taught, prices(), schedule(average_with_start=share), seed=1
        ).learner
        assert done.prices[0] == pytest.approx(expected)
        assert (done.steps, done.momentum[0]) == (trained.steps, trained.momentum[0])  # all else is the trained one's


def test_shrinking_and_noise_come_before_training_and_leave_zeros() -> None:
    still = replace(SCHEDULE, learning_rate=0.0)
    start = learner(4.0)
    start.grow(pa.table({"item_id": ["untouched"]}), prices(4.0))
    start.prices[1] = 0.0

    def prices_after(seed: int = 1, **methods: float) -> np.ndarray:
        begun = PriceLearner.restore(start.state())
        job = replace(still, methods=Methods(**methods))  # type: ignore[arg-type]
        return fine_tune(begun, PriceLearner.restore, prices(4.0), prices(), job, seed=seed).learner.prices

    np.testing.assert_allclose(prices_after(shrink=0.5), [2.0, 0.0])
    noisy = [prices_after(seed, perturb=0.1)[0] for seed in range(40)]
    assert noisy[0] == prices_after(0, perturb=0.1)[0]
    assert np.mean(noisy) == pytest.approx(4.0, abs=0.1) and 0.05 < np.std(noisy) < 0.2
    assert prices_after(perturb=0.1)[1] == 0.0


def test_the_learning_rate_that_helps_most_in_short_trials_is_taken() -> None:
    """From 0 to the taught 10 the full rate of 8 overshoots and 0.08 hardly moves."""
    tries = replace(SCHEDULE, learning_rate=8.0, warmup_steps=0, methods=Methods(rate_trials=3, rate_trial_steps=4))
    said: list[str] = []
    made = observed()
    fine_tune(made, Observed.restore, prices(*[10.0] * 16), prices(10.0), tries, seed=1, report=said.append)
    np.testing.assert_allclose(made.rates, 0.8)
    assert "rate 8.0e-02" in said[0] and "rate 8.0e+00" in said[0]
    assert made.used == [tries.methods]


def test_the_newest_tuning_examples_judge_a_trial_and_trials_leave_no_trace() -> None:
    """The oldest of 600 tuning examples ask for 0, which the smallest rate keeps; the newest 512 ask for 10."""
    tune = prices(*[0.0] * 88, *[10.0] * 512)
    times = [hour(0).start] * 88 + [hour(1).start] * 512
    tune = Examples(tune.table.set_column(tune.table.schema.get_field_index("time"), "time", pa.array(times)))
    order = np.random.default_rng(0).permutation(600)
    tries = replace(SCHEDULE, learning_rate=1.0, warmup_steps=0, methods=Methods(rate_trials=2))
    said: list[str] = []
    done = fine_tune(observed(), Observed.restore, prices(*[10.0] * 16), tune.take(order), tries, seed=1,
                     report=said.append)
    alone = fine_tune(observed(), Observed.restore, prices(*[10.0] * 16), tune.take(order),
                      replace(tries, methods=Methods()), seed=1)
    assert "rate 1.0e-02: tuning loss 9." in said[0]  # with the oldest it were below 9
    assert done.learner.prices.tobytes() == alone.learner.prices.tobytes()
