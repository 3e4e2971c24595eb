"""One job of training: the rate rises, the best pass is kept, and what is broken is not kept at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.tasks.contract import Examples, Schedule
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


def test_the_best_pass_is_kept_and_later_ones_are_not() -> None:
    """The way from 0 to the taught 10 leads past the 4 by which it is tuned."""
    done = fine_tune(learner(), PriceLearner.restore, prices(*[10.0] * 16), prices(4.0), SCHEDULE, seed=1)
    losses = done.tuning_losses
    assert done.best_epoch == int(np.argmin(losses[1:])) + 1 < 6
    assert done.learner.loss(prices(4.0), 8) == min(losses[1:])
    assert len(losses) - 1 == done.best_epoch + 2 and done.steps == 2 * (len(losses) - 1)


def test_one_pass_is_kept_though_the_tuning_loss_rose_at_once() -> None:
    """Else the hour would be in the ledger and not in the model."""
    done = fine_tune(learner(), PriceLearner.restore, prices(*[10.0] * 16), prices(0.0), SCHEDULE, seed=1)
    assert done.best_epoch == 1 and done.learner.steps == 2 and done.learner.prices[0] > 0.5


def test_all_passes_are_made_without_tuning_examples_and_none_without_examples() -> None:
    done = fine_tune(learner(), PriceLearner.restore, prices(*[10.0] * 9), prices(), SCHEDULE, seed=1)
    assert (done.best_epoch, done.steps, done.tuning_losses) == (6, 12, ())
    before = learner(3.0)
    done = fine_tune(before, PriceLearner.restore, prices(), prices(4.0), SCHEDULE, seed=1)
    assert (done.best_epoch, done.steps, done.learner) == (0, 0, before)


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
    assert said[0].startswith("pass 1: 1 steps, tuning loss 10.0000 -> ")
