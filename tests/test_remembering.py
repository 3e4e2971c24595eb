"""Old windows stay the same examples for a whole lineage, whatever arrives, and are of what its first model learnt."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from pipeline.checkpoint import Ledger
from pipeline.examples import GATE, parts
from pipeline.lake import Lake, open_lake
from pipeline.remembering import Remembered
from pipeline.snapshot import Snapshot
from tests.price_task import PriceLearner, PriceTask
from tests.small_shop import hour, publish_purchases, settings_of

BASE = Ledger(
    kind="base", parent=None, versions={"events": 1}, learnt_from={"events": -1}, window=hour(99).start,
    joined_until=hour(60).start, span_hours=40,
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = open_lake(settings_of(tmp_path_factory.mktemp("home")))
    publish_purchases(lake, *range(100))
    return lake


def remembered(lake: Lake, ledger: Ledger = BASE) -> Remembered:
    return Remembered.of(PriceTask(lake, ""), Snapshot(lake, {"events": lake.version("events")}), ledger, BASE)


def test_old_windows_are_the_judging_part_of_the_last_span_that_the_first_model_learnt(lake: Lake) -> None:
    table = remembered(lake).examples.table
    hours = table["hour"].to_pylist()
    assert len(table) > 50
    assert hour(20).start <= min(hours) and max(hours) < hour(60).start
    assert set(parts(table["unit"], table["hour"]).tolist()) == {GATE}


def test_old_windows_stay_as_they_are_when_more_hours_land(lake: Lake) -> None:
    before = remembered(lake).examples.table["example_id"].to_pylist()
    publish_purchases(lake, 100, 101)
    assert remembered(lake).examples.table["example_id"].to_pylist() == before


def test_windows_set_aside_are_not_remembered(lake: Lake) -> None:
    aside = remembered(lake).examples.table["hour"].to_pylist()[0]
    left = remembered(lake, replace(BASE, set_aside={aside.isoformat(): ((0, 1),)})).examples.table
    assert aside not in left["hour"].to_pylist() and len(left)


def test_each_role_is_scored_on_the_same_old_examples(lake: Lake) -> None:
    old, learner = remembered(lake), PriceLearner(1)
    learner.grow(PriceTask(lake, "").context(Snapshot(lake, {"events": 1}), None), old.examples)
    assert old.beside(learner) is None
    old.add("champion", learner)
    scored = old.beside(learner)
    assert scored is not None and scored.reference is None
    assert scored.champion.frame["example_id"].tolist() == old.examples.table["example_id"].to_pylist()


def test_a_lineage_whose_first_model_has_no_learnt_span_has_no_old_windows(lake: Lake) -> None:
    young = replace(BASE, joined_until=hour(0).start - timedelta(hours=1))
    tables = Snapshot(lake, {"events": lake.version("events")})
    old = Remembered.of(PriceTask(lake, ""), tables, young, young)
    old.add("champion", PriceLearner(1))
    assert not len(old.examples) and old.beside(PriceLearner(1)) is None
