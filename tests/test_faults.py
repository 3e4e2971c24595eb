"""Faults that a scheduler brings about by itself: what two runs at once, a lock and a full disk leave behind."""

from __future__ import annotations

import pytest

from tests.benchmarks.faults import database_locked, duplicate_runs, out_of_memory
from tests.benchmarks.trust_faults import Outcome, Stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, price_task: None) -> Stage:
    return Stage.built(tmp_path_factory.mktemp("stage"))


def nothing_lost(outcomes: list[Outcome]) -> bool:
    return all((one.lost, one.doubled, one.half) == (0, 0, 0) for one in outcomes)


def test_two_runs_of_the_same_hour_at_once_end_as_one(stage: Stage) -> None:
    assert nothing_lost(found := duplicate_runs(stage)), found


def test_a_worker_without_memory_fails_and_its_successor_completes_the_work(stage: Stage) -> None:
    found = out_of_memory(stage)
    assert nothing_lost(found), found
    assert all("status" in one.happened or "hung" in one.happened for one in found), found


def test_a_locked_registry_delays_an_update_and_nothing_more(stage: Stage) -> None:
    assert nothing_lost(found := database_locked(stage)), found


def test_rows_that_are_missing_would_be_counted(stage: Stage) -> None:
    assert stage.of_tables("none", "", stage.trial()).lost == 0
    other = Stage(stage.folder, stage.origin, stage.origin, stage.calm, stage.new)  # compared with too little
    assert other.of_tables("none", "", stage.trial()).doubled > 0
