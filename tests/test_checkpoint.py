"""A checkpoint comes back bit for bit, and its ledger accounts for every row."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.checkpoint import Checkpoint, Ledger, RowCounts, load, save
from pipeline.tasks.contract import State

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
LEDGER = Ledger(
    kind="update", parent=3, versions={"events": 9, "items": -1}, learnt_from={"events": 7, "items": -1}, window=NOON,
    joined_until=NOON, span_hours=48, rows=RowCounts(9, 1, 2, 4, 3, 2, 1, 1), own_rows=RowCounts(inserted=1, taught=1),
    updates=2, base=1, set_aside={"2026-01-05T10:00:00+00:00": ((4, 5), (6, 7))},
)
ARRAYS = {
    "scalar": np.array(3, np.int64), "none": np.zeros((0, 4), np.float32), "bytes": np.arange(5, dtype=np.uint8),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)), "view": np.arange(10.0)[::3],
    "odd": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32), "flags": np.array([True, False]),
    "nested/path": np.full((1, 1, 1), 7, np.int32),
}


def test_arrays_of_any_shape_order_and_type_come_back_bit_for_bit(tmp_path: Path) -> None:
    save(Checkpoint(State(ARRAYS, {"items": ["größe"], "noise": 2**127}), LEDGER), tmp_path / "a")
    back = load(tmp_path / "a")
    assert back.state.arrays.keys() == ARRAYS.keys() and back.state.meta == {"items": ["größe"], "noise": 2**127}
    for name, array in ARRAYS.items():
        there = back.state.arrays[name]
        assert (there.dtype, there.shape, there.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def test_a_ledger_comes_back_the_same_from_its_file_and_from_a_tag(tmp_path: Path) -> None:
    save(Checkpoint(State({}, {}), LEDGER), tmp_path)
    assert load(tmp_path).ledger == LEDGER == Ledger.from_json(json.loads(json.dumps(LEDGER.as_json())))


def test_a_checkpoint_is_plain_files_without_pickle(tmp_path: Path) -> None:
    save(Checkpoint(State(ARRAYS, {}), LEDGER), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays.safetensors", "ledger.json", "state.json"]
    assert json.loads((tmp_path / "ledger.json").read_text())["window"] == "2026-01-05T12:00:00+00:00"


@pytest.mark.parametrize("missing", ["arrays.safetensors", "ledger.json", "state.json"])
def test_a_checkpoint_that_lacks_a_file_is_not_loaded(tmp_path: Path, missing: str) -> None:
    save(Checkpoint(State(ARRAYS, {}), LEDGER), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError):
        load(tmp_path)


def test_counts_balance_when_every_row_that_came_is_in_one_place() -> None:
    assert RowCounts(inserted=5, updated=2, deleted=9, taught=3, held_out=2, context=1, set_aside=1, joined=7).balanced
    assert not RowCounts(inserted=5, taught=4).balanced
    one, other = RowCounts(1, 2, 3, 4, 5, 6, 7, 8), RowCounts(10, 20, 30, 40, 50, 60, 70, 80)
    assert one.plus(other) == RowCounts(11, 22, 33, 44, 55, 66, 77, 88)
