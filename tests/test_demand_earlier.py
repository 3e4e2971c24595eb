"""A demand champion of before December 2026, which knew the shop's trend and no drawn week, is restored and goes on."""

from __future__ import annotations

import numpy as np
import pytest

from models.demand import Demand, DemandSizes, DemandTrainer
from pipeline.tasks.contract import State
from pipeline.tasks.demand_features import FEATURES
from pipeline.tasks.demand_learner import DemandLearner
from tests.test_demand_learner import learner, shop

__all__ = ["learner", "shop"]  # fixtures
SHOP = ("shop_7_against_28", "shop_28_against_84")  # stood before the weekdays
PLACE = FEATURES.index("weekday_0")
INPUTS = ("demand/hidden", "optimizer/demand_hidden_momentum", "optimizer/demand_hidden_velocity")


def earlier(array: np.ndarray, of_shop: float) -> np.ndarray:
    """[..., features of then] from [..., features of today]."""
    shop_columns = np.full((*array.shape[:-1], 2), of_shop, np.float32)
    return np.concatenate([array[..., :PLACE], shop_columns, array[..., PLACE:-1]], axis=-1)


@pytest.fixture(scope="module")
def old(learner: DemandLearner) -> State:
    """The learner's state as a version of then wrote it: its level was the mean of eight weeks, nothing pulled."""
    state, count = learner.state(), len(FEATURES)
    arrays = dict(state.arrays)
    for name in INPUTS:
        held = arrays[name]
        arrays[name] = np.concatenate([earlier(held[:count].T, 0.3).T, held[count:]])
    for name in ("feature_mean", "feature_scale", "held_out/features"):
        arrays[name] = earlier(arrays[name], 0.5)
    sizes = {name: value for name, value in state.meta["sizes"].items() if name != "pull"}
    sizes |= {"features": count + 1, "usual_week": FEATURES.index("usual_week_8")}
    meta = {name: value for name, value in state.meta.items() if name != "features"}
    return State(arrays, {**meta, "sizes": sizes})


def test_it_answers_as_it_did_where_the_shop_was_as_usual(shop, learner, old) -> None:
    """The old network with the features of the shop at their mean and what is restored give the same numbers."""
    restored = DemandLearner.restore(old)
    sizes = DemandSizes.from_json(old.meta["sizes"])
    network = Demand(sizes, 0)
    for variable in DemandTrainer(network).network.variables:
        variable.assign(old.arrays[variable.path])
    _, _, examples = shop
    arrays = restored._arrays(examples)
    batch = restored._batch(arrays, np.arange(50), 50)
    then = earlier(batch["features"], 0.0)
    wanted, _ = network(then, batch["usual"], batch["text"], batch["category"])
    found, _ = restored._network(batch["features"], batch["usual"], batch["text"], batch["category"])
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), atol=1e-5)
    usual = np.log1p(np.expm1(arrays["features"][:50, 1, FEATURES.index("usual_week_8")]))
    np.testing.assert_allclose(batch["usual"][:, 1], usual, rtol=1e-5)
    assert not batch["pull"].any()


def test_the_new_feature_counts_once_a_lesson_has_fitted_it(shop, old) -> None:
    task, tables, examples = shop
    restored = task.restore(old)
    assert np.isfinite(restored.forecasts(examples)).all()
    assert not restored._batch(restored._arrays(examples), np.arange(8), 8)["features"][..., -1].any()
    means = restored._mean.copy()
    half = examples.take(np.arange(len(examples) // 2))  # a lesson of other means
    restored.grow(task.context(tables, None), half)
    np.testing.assert_array_equal(restored._mean[:-1], means[:-1])
    scaled = restored._batch(restored._arrays(half), np.arange(len(half)), len(half))["features"][..., -1]
    assert abs(float(scaled.mean())) < 0.05 and float(scaled.std()) == pytest.approx(1.0, abs=0.05)
    before = restored._network.w_hidden.numpy()[len(FEATURES) - 1]
    assert not before.any()
    for batch in restored.batches(examples, 32, np.random.default_rng(0)):
        restored.train_step(batch, 1e-3)
    assert restored._network.w_hidden.numpy()[len(FEATURES) - 1].any()
    assert restored.score(examples).frame["accuracy@7d"].mean() > 0.5


def test_its_next_version_is_restored_bit_for_bit(shop, old) -> None:
    task, tables, examples = shop
    first = task.restore(old)
    first.grow(task.context(tables, None), examples)
    again = task.restore(first.state())
    np.testing.assert_array_equal(again.forecasts(examples), first.forecasts(examples))
    assert again.state().meta["features"] == list(FEATURES)


def test_its_held_out_days_still_calibrate(old) -> None:
    held = DemandLearner.restore(old)._held_out
    assert len(held.rows) == len(old.arrays["held_out/rows"]) > 0
    week, drawn = FEATURES.index("usual_week_8"), FEATURES.index("drawn_week")
    np.testing.assert_array_equal(held.features[..., drawn], held.features[..., week])
