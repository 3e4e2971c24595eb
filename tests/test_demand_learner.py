"""The demand learner on a tiny shop: it learns what sells, resumes bit for bit, and serves what it was judged by."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from models.compact_demand import CompactDemand, conformal_offsets, told_by
from models.demand_service import ANSWER, PARAMETERS, DemandService
from pipeline.lake import open_lake
from pipeline.schema import EVENTS, ITEMS
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples
from pipeline.tasks.demand import DemandTask
from pipeline.tasks.demand_examples import HORIZONS_DAYS, array_of
from pipeline.tasks.demand_features import FEATURES
from pipeline.tasks.demand_learner import DemandLearner
from pipeline.tasks.demand_scores import METRIC
from pipeline.training import fine_tune
from pipeline.window import Window
from tests.small_shop import publish, settings_of
from tests.test_demand_examples import START, change, sale

ITEMS_SOLD = 12
DAYS = 50


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemandTask, Snapshot, Examples]:
    """Item i sells about 1 + 2 i units every day; one more item is in the catalogue and never sold."""
    lake = open_lake(settings_of(tmp_path_factory.mktemp("demand")))
    draw = np.random.default_rng(0)
    sales, changes = [], [change(f"i{item:02d}", 0, price=10.0, category="cups") for item in range(ITEMS_SOLD + 1)]
    for item in range(ITEMS_SOLD):
        for day in range(DAYS):
            sold = draw.poisson(1 + 2 * item)
            if sold:
                sales.append(sale(f"i{item:02d}", day, hour=8 + item % 3, units=float(sold)))
    for feed, rows in ((ITEMS, changes), (EVENTS, sales)):
        table = pa.Table.from_pylist(rows, schema=feed.table_schema)
        publish(lake, feed, [Window(START), Window(START + timedelta(days=DAYS))], table)
    task = DemandTask(lake, "tiny")
    tables = Snapshot(lake, {name: lake.version(name) for name in ("events", "items")})
    assert pc.count_distinct(tables.arrow("events")["item_id"]).as_py() == ITEMS_SOLD
    return task, tables, task.examples(tables, tables.arrow("events", EVENTS.table_schema.names))


@pytest.fixture(scope="module")
def learner(shop: tuple[DemandTask, Snapshot, Examples]) -> DemandLearner:
    task, tables, examples = shop
    learner = task.learner(0)
    learner.grow(task.context(tables, None), examples)
    nothing = examples.keep(np.zeros(len(examples), bool))
    schedule = replace(task.base_schedule, epochs=10, batch_size=32)
    fine_tune(learner, task.restore, examples.marked(replayed=False), nothing, schedule, seed=0)
    return learner


def test_it_learns_to_foresee_as_the_plain_baseline_does_which_is_hard_to_beat_where_nothing_moves(
    shop, learner
) -> None:
    task, tables, examples = shop
    untrained = task.learner(0)
    untrained.grow(task.context(tables, None), examples)
    scores, plain = learner.score(examples), task.baseline(tables, examples)
    assert list(scores.frame["example_id"]) == list(plain.frame["example_id"])
    trained, begun, expected = (one.frame[METRIC].mean() for one in (scores, untrained.score(examples), plain))
    # 0.750 untrained, 0.777 of a mean that moves, 0.776 trained; on another processor a little more than the mean
    assert trained > begun + 0.01 and trained > expected - 0.01


def test_the_quantiles_never_cross_and_the_interval_holds_most(shop, learner) -> None:
    _, _, examples = shop
    forecasts = learner.forecasts(examples)
    assert (np.diff(forecasts[..., 1:], axis=-1) >= 0).all() and (forecasts >= 0).all()
    assert 0.6 < learner.score(examples).frame["inside@7d"].mean() <= 1.0


def test_what_is_served_is_what_the_network_says(shop, learner) -> None:
    _, _, examples = shop
    arrays = learner._arrays(examples)
    batch = learner._batch(arrays, np.arange(50), 50)
    network, _ = learner._network(batch["features"], batch["usual"], batch["text"], batch["category"])
    rows = arrays["rows"][:50]
    compact = learner.compact(now=False)
    raw = compact.raw(arrays["features"][:50], learner._items.text[rows], learner._items.category[rows])
    np.testing.assert_allclose(raw, network.numpy(), atol=1e-4)


def test_the_median_is_held_at_the_level_in_the_week_of_an_item_with_a_history(shop, learner) -> None:
    """The loss grows by a tenth of the distance in logs, times what the week's error weighs; elsewhere by nothing."""
    _, _, examples = shop
    arrays = learner._arrays(examples)
    hidden = np.arange(len(examples)) < 20
    batch = learner._batch(arrays, np.arange(50), 50, hidden)
    known = ~hidden[:50] & (arrays["features"][:50, 1, FEATURES.index("age")] > 0)
    assert known.any() and not batch["pull"][:, [0, 2]].any()
    np.testing.assert_allclose(batch["pull"][:, 1], np.where(known, 0.1, 0.0), rtol=1e-6)
    network, _ = learner._network(batch["features"], batch["usual"], batch["text"], batch["category"])
    away = np.abs(network.numpy()[:, 1, 2] - batch["usual"][:, 1])
    free = learner._trainer.losses(batch | {"pull": np.zeros_like(batch["pull"])})
    held = learner._trainer.losses(batch)
    wanted = np.where(known, 0.1 * away * batch["volume"][:, 1] * batch["counts"][:, 1], 0.0)
    np.testing.assert_allclose(held - free, wanted, atol=1e-4)
    assert wanted.max() > 0.01


def test_a_restored_learner_goes_on_bit_for_bit(shop, learner) -> None:
    task, _, examples = shop
    some = examples.take(np.arange(64))
    state = learner.state()
    losses = []
    for one in (task.restore(state), task.restore(state)):
        for batch in one.batches(some, 32, np.random.default_rng(1)):
            one.train_step(batch, 1e-3)
        losses.append(one.losses(examples, 128, learnt=True))
    np.testing.assert_array_equal(*losses)
    np.testing.assert_array_equal(task.restore(state).forecasts(some), learner.forecasts(some))


def test_four_weeks_that_no_shop_has_seen_yet_are_foretold_as_four_times_the_week(shop) -> None:
    assert told_by(np.array([True, True, False])).tolist() == [0, 1, 1]
    assert told_by(np.array([False, True, True])).tolist() == [0, 1, 2]  # nothing shorter to tell it by
    assert told_by(np.array([False, False, False])).tolist() == [0, 1, 2]
    task, tables, examples = shop
    times = examples.table["time"].cast(pa.int64()).to_numpy()
    young = examples.keep(times <= (START + timedelta(days=25)).timestamp() * 1e6)
    learner = task.learner(0)
    learner.grow(task.context(tables, None), young)
    schedule = replace(task.base_schedule, epochs=10, batch_size=32)
    nothing = young.keep(np.zeros(len(young), bool))
    fine_tune(learner, task.restore, young.marked(replayed=False), nothing, schedule, seed=0)
    compact = learner.compact()
    units = compact.forecast(np.arange(1, ITEMS_SOLD + 1))
    assert compact.arrays["told_by"].tolist() == [0, 1, 1]
    np.testing.assert_allclose(units[:, 2], 4.0 * units[:, 1])


def test_months_that_calibrate_are_never_trained_on(shop, learner) -> None:
    _, _, examples = shop
    batches = list(learner.batches(examples, 64, np.random.default_rng(0)))
    trained = sum(float(batch["weight"].sum()) for batch in batches)
    assert trained + len(learner._held_out.rows) == len(examples)
    assert 0 < len(learner._held_out.rows) < 0.3 * len(examples)


def test_the_package_answers_every_item_also_one_that_was_never_sold(learner, tmp_path: Path) -> None:
    learner.package(tmp_path / "package")
    service = DemandService(CompactDemand.load(tmp_path / "package" / "demand"))
    never = f"i{ITEMS_SOLD:02d}"
    answers = service.answer(pd.DataFrame({"item_id": ["i05", "i10", never], "stock": [10.0] * 3}), PARAMETERS)
    assert answers["mean"].iloc[0] == pytest.approx(11 * 7, rel=0.35)
    assert answers["mean"].iloc[1] == pytest.approx(21 * 7, rel=0.35)
    assert np.isfinite(answers["mean"].iloc[2]) and answers["mean"].iloc[2] > 0
    assert list(answers.columns) == [*ANSWER, "advice"]
    assert answers.runs_out_days.iloc[1] < answers.runs_out_days.iloc[0]


def test_an_item_that_is_gone_leaves_the_learner(shop, learner) -> None:
    task, tables, examples = shop
    other = task.restore(learner.state())
    context = task.context(tables, None)
    lost = pa.array([None if item == "i03" else seen for item, seen in zip(
        context["item_id"].to_pylist(), context["last_seen"].to_pylist(), strict=True
    )], context["last_seen"].type)
    gone = context.set_column(context.schema.get_field_index("last_seen"), "last_seen", lost)
    counts = other.grow(gone.replace_schema_metadata(context.schema.metadata), examples.take(np.arange(0)))
    assert counts["items_gone"] == 1 and "i03" not in other._items.ids
    kept = other._items.rows_of(["i10"])[0]
    np.testing.assert_array_equal(other._items.text[kept], learner._items.text[learner._items.rows_of(["i10"])[0]])


def test_conformal_offsets_leave_a_tenth_outside_on_either_side() -> None:
    """Truths 0.01 to 1.00 beside an interval from 0.5 to 0.5: the ends move to the tenth and the nine tenths."""
    truth = np.arange(1, 101)[:, None] / 100.0
    raw = np.full((100, 1, 4), 0.5)
    lower, upper = conformal_offsets(raw, truth, np.ones((100, 1), bool), np.zeros((100, 1), int), least=50)
    assert 0.5 - lower[0, 0] == pytest.approx(0.10, abs=0.015)
    assert 0.5 + upper[0, 0] == pytest.approx(0.91, abs=0.015)
    few = conformal_offsets(raw[:10], truth[:10], np.ones((10, 1), bool), np.zeros((10, 1), int), least=50)
    assert not np.any(few)


def test_units_are_per_day_in_stock_in_every_horizon(shop) -> None:
    _, _, examples = shop
    units = array_of(examples.table, "units", len(HORIZONS_DAYS))
    assert (np.diff(units, axis=1) >= 0).all()
