"""What is replayed was learnt before, is as the table has it now, and judges nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.examples import learnable
from pipeline.lake import Lake
from pipeline.locking import file_locks
from pipeline.replay import replayed_examples
from pipeline.schema import EVENTS
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples, Methods
from tests.price_task import PriceTask
from tests.small_shop import hour, publish, publish_purchases, purchases

NO_KEYS = pa.array([], pa.string())
BOUNDARY = hour(96).start


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Six days of hours, ten purchases each."""
    lake = Lake(str(tmp_path / "lake"), file_locks(tmp_path / "locks"))
    publish_purchases(lake, *range(144))
    return lake


def replayed(
    lake: Lake, wanted: int, seed: int = 0, aside: list[int] | None = None, new_keys: pa.Array = NO_KEYS,
    methods: Methods = Methods(), losses: Callable[[Examples], np.ndarray] | None = None,  # noqa: B008
) -> Examples:
    tables = Snapshot(lake, {"events": lake.version("events")})
    return replayed_examples(
        PriceTask(lake, ""), tables, BOUNDARY, [hour(one).start.isoformat() for one in aside or ()], new_keys, wanted,
        np.random.default_rng(seed), methods, losses,
    )


def keys(examples: Examples) -> set[str]:
    found = examples.table["example_id"].to_pylist()
    assert len(found) == len(set(found))
    return set(found)


def all_learnt(lake: Lake) -> set[str]:
    events = lake.arrow("events").filter(pc.field("event_type") == "purchase")
    return set(events.filter(pa.array(learnable(events["user_id"], events["hour"], BOUNDARY)))["event_id"].to_pylist())


def test_validation_rows_set_aside_windows_and_new_rows_are_never_drawn(lake: Lake) -> None:
    aside, new = [3, 40, 100], purchases(50)["event_id"]
    there = all_learnt(lake) - {f"e{one}-{place}" for one in (*aside, 50) for place in range(10)}
    everything = keys(replayed(lake, 100_000, aside=aside, new_keys=new.combine_chunks()))
    assert everything == there
    assert len(keys(replayed(lake, 100_000))) < 1440  # the validation rows of the hours since the boundary


def test_so_many_are_drawn_as_are_wanted_and_each_may_be(lake: Lake) -> None:
    drawn = [keys(replayed(lake, 60, seed)) for seed in range(60)]
    assert {len(one) for one in drawn} == {60}
    assert len(set.union(*drawn)) > 0.85 * len(all_learnt(lake))
    assert drawn[0] == keys(replayed(lake, 60, 0)) != drawn[1]


def test_a_corrected_row_is_replayed_as_corrected_and_a_deleted_one_is_not(lake: Lake) -> None:
    rows = purchases(20)
    prices = pa.array([77.0, *rows["price"].to_pylist()[1:]], pa.float64())
    corrected = rows.set_column(rows.schema.get_field_index("price"), "price", prices)
    publish(lake, EVENTS, [hour(20)], corrected.slice(0, 5))
    table = replayed(lake, 100_000).table
    found = dict(zip(table["example_id"].to_pylist(), table["price"].to_pylist(), strict=True))
    assert found["e20-0"] == 77.0 and "e20-4" in found and "e20-5" not in found


def test_days_are_read_only_until_they_hold_enough(lake: Lake) -> None:
    """24 hours of 12 rows are 288: ten examples at 30 rows each want two days of the six."""
    days = {time.date() for seed in range(3) for time in replayed(lake, 9, seed).table["time"].to_pylist()}
    one = {time.date() for time in replayed(lake, 9, 0).table["time"].to_pylist()}
    assert len(one) == 1 and len(days) > 1


def test_an_empty_table_and_no_wish_give_nothing(lake: Lake, tmp_path: Path) -> None:
    assert len(replayed(lake, 0)) == 0
    empty = Lake(str(tmp_path / "other"), file_locks(tmp_path / "locks"))
    assert len(replayed(empty, 10)) == 0


def days_before_the_newest(lake: Lake, mean_life_days: float) -> list[int]:
    """Of 30 examples of each of 30 draws, how many days before the newest day they happened."""
    recent = Methods(replay="recent", replay_mean_life_days=mean_life_days)
    drawn = [replayed(lake, 9, seed, methods=recent) for seed in range(30)]
    newest = hour(143).start.date()
    return [(newest - time.date()).days for one in drawn for time in one.table["time"].to_pylist()]


def test_recent_days_are_replayed_more_often_the_shorter_the_mean_life(lake: Lake) -> None:
    short, long = days_before_the_newest(lake, 0.5), days_before_the_newest(lake, 1e6)
    assert np.mean(short) < 1.0 < 2.0 < np.mean(long)
    assert max(short) > 0  # preferred, not alone


def test_replay_by_loss_keeps_the_half_that_the_champion_answers_worst(lake: Lake) -> None:
    def losses(examples: Examples) -> np.ndarray:
        return examples.table["price"].to_numpy()

    twice = replayed(lake, 40).table["price"].to_numpy()
    worst = replayed(lake, 20, methods=Methods(replay="loss"), losses=losses)
    assert sorted(worst.table["price"].to_pylist()) == sorted(twice)[20:]
    assert keys(worst) < keys(replayed(lake, 40))
    assert len(keys(replayed(lake, 100_000, methods=Methods(replay="loss"), losses=losses))) == len(all_learnt(lake))


def test_replay_by_loss_without_losses_says_what_to_pass(lake: Lake) -> None:
    with pytest.raises(ValueError, match=r"must be given the champion's losses.*lesson_of_change"):
        replayed(lake, 20, methods=Methods(replay="loss"))
