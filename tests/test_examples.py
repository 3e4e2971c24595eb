"""The split is for good: by unit and hour, whatever else is in the table, on any machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import examples as examples_module
from pipeline.examples import (
    few_of_each_window,
    judging_examples,
    judging_rows,
    learnable,
    parts,
    parts_of,
    span_for,
    without_windows,
)
from pipeline.lake import Lake
from pipeline.locking import file_locks
from pipeline.schema import TIME
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples
from tests.price_task import PriceTask
from tests.small_shop import hour, publish_purchases, purchases

TRAIN, TUNE, GATE = 0, 1, 2
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
LITERAL = [1, 1, 0, 2, 0, 0, 0, 0, 0, 0, 2, 1]


def split(*moments: tuple[str | None, datetime]) -> list[int]:
    units, hours = zip(*moments, strict=True) if moments else ((), ())
    return parts(
        pa.chunked_array([pa.array(units, pa.string())]), pa.chunked_array([pa.array(hours, TIME)])
    ).tolist()


def test_the_split_is_the_one_that_it_always_was() -> None:
    """Literals: a change of hash or share would put learnt rows into the gate of every installation."""
    users = [f"{number:032x}" for number in range(12)]
    assert split(*((user, NOON) for user in users)) == LITERAL
    assert split(*((user, NOON) for user in reversed(users))) == LITERAL[::-1]


def test_a_unit_of_an_hour_is_on_one_side_and_of_another_hour_may_be_on_another() -> None:
    assert len(set(split(*(("u", NOON) for _ in range(20))))) == 1
    assert set(split(*(("u", NOON + timedelta(hours=number)) for number in range(40)))) == {TRAIN, TUNE, GATE}


def test_a_tenth_tunes_and_a_fifth_judges() -> None:
    found = np.array(split(*((f"u{number}", NOON) for number in range(20_000))))
    assert (found == TUNE).mean() == pytest.approx(0.1, abs=0.01)
    assert (found == GATE).mean() == pytest.approx(0.2, abs=0.01)


def test_a_missing_unit_and_no_rows_have_a_part_too() -> None:
    assert split((None, NOON), (None, NOON + timedelta(hours=1)))[0] in (TRAIN, TUNE, GATE)
    assert split() == []


def test_a_row_is_learnable_in_training_or_when_its_hour_has_joined() -> None:
    units = pa.chunked_array([pa.array([f"{number:032x}" for number in range(12)])])
    hours = pa.chunked_array([pa.array([NOON] * 12, TIME)])
    assert learnable(units, hours, NOON).tolist() == [part == TRAIN for part in LITERAL]
    assert learnable(units, hours, NOON + timedelta(hours=1)).all()


def judging(task: PriceTask, tables: Snapshot, since: datetime, set_aside: list[str]) -> tuple[Examples, Examples]:
    return judging_examples(task, tables, judging_rows(task, tables, since, set_aside))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(str(tmp_path / "lake"), file_locks(tmp_path / "locks"))
    publish_purchases(lake, *range(50), users=500)
    return lake


def test_examples_of_the_two_judging_parts_do_not_overlap_and_are_since_the_boundary(lake: Lake) -> None:
    task, tables = PriceTask(lake, ""), Snapshot(lake, {"events": 1})
    tune, gate = judging(task, tables, hour(20).start, [hour(30).start.isoformat()])
    assert set(parts_of(tune)) == {TUNE} and set(parts_of(gate)) == {GATE}
    hours = {*tune.table["hour"].to_pylist(), *gate.table["hour"].to_pylist()}
    assert min(hours) == hour(20).start and hour(30).start not in hours and hour(31).start in hours


def test_where_there_are_too_many_the_same_few_judge_as_long_as_they_are_there(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = PriceTask(lake, "")
    monkeypatch.setattr(examples_module, "MOST_JUDGING_EXAMPLES", 30)
    few = judging(task, Snapshot(lake, {"events": 1}), hour(0).start, [])[1]
    publish_purchases(lake, 50, users=500)
    later = judging(task, Snapshot(lake, {"events": 2}), hour(0).start, [])[1]
    assert len(few) == len(later) == 30
    stayed = set(few.table["example_id"].to_pylist()) & set(later.table["example_id"].to_pylist())
    assert len(stayed) >= 28  # the newcomers drew smaller hashes than a few


def test_of_a_window_in_which_many_landed_the_same_few_are_kept_and_of_others_all(lake: Lake) -> None:
    publish_purchases(lake, 60, count=400)
    task, tables = PriceTask(lake, ""), Snapshot(lake, {"events": 2})
    every = task.examples(tables, tables.rows_from("events", hour(48).start))
    few = few_of_each_window(every, 100)
    landed = [examples.table["landed_window"].to_pylist() for examples in (few, every)]
    assert landed[0].count(hour(60).start) == 100 < landed[1].count(hour(60).start)
    for number in (48, 49):
        assert landed[0].count(hour(number).start) == landed[1].count(hour(number).start) > 0
    ids, kept = (examples.table["example_id"].to_pylist() for examples in (every, few))
    assert kept == [one for one in ids if one in set(kept)], "in their order"
    turned = few_of_each_window(every.take(np.arange(len(every))[::-1]), 100)
    assert set(turned.table["example_id"].to_pylist()) == set(kept)
    assert few_of_each_window(every, 400) is every and len(few_of_each_window(every.take(np.arange(0)), 100)) == 0


def test_the_span_is_the_shortest_that_has_the_units_that_the_gate_wants(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, tables = PriceTask(lake, ""), Snapshot(lake, {"events": 1})
    assert span_for(task, tables, hour(50).start) == 672
    units = {}
    for hours in (6, 12, 24, 48):
        gate = judging(task, tables, hour(50 - hours).start, [])[1]
        units[hours] = len(set(gate.table["unit"].to_pylist()))
    monkeypatch.setattr(examples_module, "WANTED_UNITS", units[12])
    assert span_for(task, tables, hour(50).start) == 12
    monkeypatch.setattr(examples_module, "WANTED_UNITS", units[12] + 1)
    assert span_for(task, tables, hour(50).start) == 24


def test_rows_of_windows_set_aside_are_left_out_by_the_window_in_which_they_landed() -> None:
    rows = pa.concat_tables([purchases(3), purchases(4)])
    assert without_windows(rows, [hour(3).start.isoformat()]).equals(purchases(4))
    assert without_windows(rows, []).equals(rows)
