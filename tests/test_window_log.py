"""The window log says of every window what a fresh ingest of everything would, in whatever order windows came."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as tried
from hypothesis import strategies as st

from pipeline.ingest import ingest
from pipeline.lake import Lake, open_lake
from pipeline.settings import Settings
from pipeline.window import Window
from tests.landed import counted, event, json_lines, put, settings_of

LATE_EVENING = "2026-01-05T21:10:00Z"
HOURS = [Window(Window.parse("2026-01-05T22:00Z").start + timedelta(hours=hour)) for hour in (0, 1, 3, 4)]

Landing = tuple[tuple[str, float], ...]  # (event id, price; below zero: the check refuses it) of the rows of an hour

# e1 lands in three hours over midnight, e2 in two; e3's first copy of all is refused, e4 is refused when it comes again
LANDINGS: tuple[Landing, ...] = (
    (("e1", 1.0), ("e3", -1.0), ("e4", 4.0)),
    (("e2", 2.0), ("e3", -1.0), ("e3", 3.0), ("e3", 3.1)),
    (("e1", 1.5), ("e2", 2.5), ("e3", 3.0), ("e3", -3.0), ("e4", -4.0)),
    (("e1", 1.7), ("e4", -4.0), ("e4", 4.5)),
)


class Killed(BaseException):
    """The process died here."""


def land(settings: Settings, hour: int, landing: Landing) -> None:
    rows = [event(1, event_id=key, price=price, event_time=LATE_EVENING) for key, price in landing]
    put(Path(settings.landing), "a.jsonl", json_lines(*rows), window=HOURS[hour])


def take_in(settings: Settings, *hours: int) -> None:
    ingest([HOURS[hour] for hour in hours], settings, lambda _: None, ["events"])


def log_of(lake: Lake) -> list[dict[str, object]]:
    counts = ("landed_window", "rows_in", "published", "quarantined", "duplicates", "late")
    return lake.window_log().select(counts).to_pylist()


def places(table: pa.Table) -> list[dict[str, object]]:
    rows = table.select(["event_id", "landed_window", "price"]).to_pylist()
    return sorted(rows, key=lambda row: tuple(map(str, row.values())))


def assert_as_if_fresh(settings: Settings, landings: Sequence[Landing], home: Path) -> None:
    """The lake of `settings` is as one that takes in all hours in one call."""
    fresh = settings_of(home)
    for hour, landing in enumerate(landings):
        land(fresh, hour, landing)
    take_in(fresh, *range(len(landings)))
    ours, theirs = open_lake(settings), open_lake(fresh)
    assert log_of(ours) == log_of(theirs)
    for table in ("events", "duplicates_events"):
        assert places(ours.arrow(table)) == places(theirs.arrow(table))
    assert pc.sum(ours.window_log()["published"]).as_py() == len(ours.arrow("events"))
    quarantine = counted(ours.arrow("quarantine"), "landed_window")
    assert quarantine == counted(theirs.arrow("quarantine"), "landed_window")


@pytest.mark.slow
@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[7::16])
def test_the_order_in_which_hours_come_does_not_show(order: tuple[int, ...], tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "ours")
    for hour in order:
        land(settings, hour, LANDINGS[hour])
        take_in(settings, hour)
    assert_as_if_fresh(settings, LANDINGS, tmp_path / "fresh")
    corrected = ((), *LANDINGS[1:])  # e1 and e4 were never in the first hour: others get them back
    land(settings, 0, corrected[0])
    take_in(settings, 0)
    assert_as_if_fresh(settings, corrected, tmp_path / "corrected")


@pytest.mark.slow
def test_hours_apart_from_each_other_yield_to_the_hour_between_them(tmp_path: Path) -> None:
    landings = ((), (("e1", 1.0),), (("e1", 2.0),), ())
    settings = settings_of(tmp_path / "ours")
    for hour, landing in enumerate(((("e1", 9.0),), landings[1], (), ())):
        land(settings, hour, landing)
    take_in(settings, 0, 1, 2, 3)
    land(settings, 0, landings[0])
    land(settings, 2, landings[2])
    take_in(settings, 0, 2)  # the row that counted has left, and comes again later than its spare copy
    assert_as_if_fresh(settings, landings, tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["record_windows", "recount_windows"])
def test_a_kill_after_publishing_leaves_no_neighbour_miscounted(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path / "ours")
    for hour in (1, 2, 3, 0):
        land(settings, hour, LANDINGS[hour])
    take_in(settings, 1, 2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(Lake, moment, _kill)
        with pytest.raises(Killed):
            take_in(settings, 0)
    take_in(settings, 0)
    assert_as_if_fresh(settings, LANDINGS, tmp_path / "fresh")


@pytest.mark.slow
def test_a_log_that_is_right_is_not_written(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    for hour, landing in enumerate(LANDINGS):
        land(settings, hour, landing)
        take_in(settings, hour)
    assert open_lake(settings).version("windows") == len(LANDINGS)  # one commit for each call, after the first


def _kill(*_: object) -> None:
    raise Killed


LANDED = st.lists(st.tuples(st.sampled_from(["e1", "e2", "e3"]), st.sampled_from([1.0, 2.0, -1.0])), max_size=4).map(
    tuple
)
STEPS = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 3), LANDED, min_size=1, max_size=3),  # hours that are landed anew and taken in
        st.sampled_from([None, "_merge", "_replace_duplicates", "record_windows", "recount_windows"]),  # killed before
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.slow
@tried(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
@example(steps=[({0: (("e1", 1.0),), 1: (("e1", 2.0),)}, None), ({0: ()}, "_merge"), ({2: (("e1", 1.0),)}, None)])
def test_whatever_lands_is_corrected_and_dies_the_log_ends_as_if_fresh(
    steps: list[tuple[dict[int, Landing], str | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("log")
    settings = settings_of(home / "ours")
    landings: list[Landing] = [(), (), (), ()]
    to_do: list[tuple[int, ...]] = [(hour,) for hour in range(4) if not any(hour in hours for hours, _ in steps)]
    for hours, moment in steps:
        for hour, landing in hours.items():
            landings[hour] = landing
            land(settings, hour, landing)
        if moment is None:
            take_in(settings, *hours)
        else:
            _dies(moment, lambda hours=hours: take_in(settings, *hours))  # type: ignore[misc]
            to_do.append(tuple(hours))
    for again in to_do:
        take_in(settings, *again)
    assert_as_if_fresh(settings, landings, home / "fresh")


def _dies(moment: str, work: Callable[[], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lake, moment, _kill)
        with pytest.raises(Killed):
            work()
