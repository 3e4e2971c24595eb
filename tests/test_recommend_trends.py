"""What was chosen lately, as it stood at each moment: by hand, and never with a look ahead."""

from __future__ import annotations

import numpy as np
import pytest

from models.layers import TREND_DAYS
from pipeline.tasks.recommend_trends import Trends

DAY = 86_400_000_000
FIRST = 20_000 * DAY  # late in 2024
SPANS = np.array(TREND_DAYS)


def counted(choices: list[tuple[int, float]], items: int = 6, trends: Trends | None = None) -> Trends:
    """Choices as (item, day after the first); rows 1 ... items - 1 and one more, `items`, that nobody chooses."""
    trends = trends or Trends()
    trends.grow(items + 1)
    trends.count(np.array([item for item, _ in choices], np.int32), at(*(day for _, day in choices)))
    return trends


def at(*days: float) -> np.ndarray:
    return np.array([FIRST + round(day * DAY) for day in days], np.int64)


def counts(trends: Trends, moment: int | None = None, rows: np.ndarray | None = None) -> np.ndarray:
    """[rows, spans]: the counters up to a factor, from the logs: how far each item is above one that nobody chooses."""
    moment = len(trends.moments) if moment is None else moment
    logs = trends.logs(moment).astype(np.float64)
    return np.exp((logs if rows is None else trends.logs(moment, rows)) - logs[-1]) - 1.0


def test_a_choice_decays_by_e_in_each_mean_life() -> None:
    now = counts(counted([(1, 0.0), (2, 10.0), (2, 10.0), (3, 10.0)]))
    np.testing.assert_allclose(now[1] / now[3], np.exp(-10.0 / SPANS), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(now[2] / now[3], 2.0, rtol=1e-4)
    assert (now[4] == 0.0).all()


def test_shares_of_all_items_add_up_to_one() -> None:
    trends = counted([(1, 0.0), (2, 3.0), (2, 10.0), (3, 10.0)])
    for moment in range(len(trends.moments) + 1):
        np.testing.assert_allclose(np.exp(trends.logs(moment)[1:]).sum(axis=0), 1.0, rtol=5e-3)


def test_counting_in_several_calls_is_counting_in_one() -> None:
    choices = [(1 + place % 4, place / 7) for place in range(200)]
    one, several = counted(choices), None
    for start in range(0, 200, 23):
        several = counted(choices[start : start + 23], trends=several)
    assert several is not None
    np.testing.assert_allclose(several.logs(len(several.moments)), one.logs(len(one.moments)), atol=1e-4)
    assert abs(len(several.moments) - len(one.moments)) <= 1


def test_a_snapshot_shows_the_counters_as_they_stood() -> None:
    early = [(1, 0.2), (2, 0.4), (2, 1.3), (1, 2.1)]
    trends = counted([*early, (3, 3.5), (3, 3.6), (4, 5.0)])
    [moment] = trends.moment_of(at(3.5))
    np.testing.assert_allclose(trends.logs(moment), counted(early).logs(len(counted(early).moments)), atol=1e-2)
    np.testing.assert_array_equal(counts(trends, moment)[[3, 4]], 0.0)


@pytest.mark.parametrize("day", [1.0, 1.5, 2.0, 2.25, 3.0])
def test_the_moment_of_a_time_knows_no_choice_at_that_time_or_later(day: float) -> None:
    days = [0.0, 1.0, 1.5, 2.0, 2.25]
    trends = counted([(place + 1, chosen) for place, chosen in enumerate(days)])
    known = counts(trends, int(trends.moment_of(at(day))[0]))[1:6].max(axis=1) > 0
    assert known[0]
    assert not known[np.array(days) >= day].any()


def test_what_is_counted_later_changes_no_moment_of_the_past() -> None:
    trends = counted([(1, 0.0), (2, 1.0), (1, 2.0)])
    times = at(1.5, 2.0)
    before = [trends.logs(int(one)) for one in trends.moment_of(times)]
    counted([(3, 2.5), (4, 4.0), (4, 5.0), (2, 0.5)], trends=trends)
    after = [trends.logs(int(one)) for one in trends.moment_of(times)]
    np.testing.assert_array_equal(before, after)


def test_later_times_see_the_counters_of_now_and_times_before_the_first_snapshot_the_oldest() -> None:
    trends = counted([(1, 0.0), (2, 1.0), (3, 2.0)])
    np.testing.assert_array_equal(trends.moment_of(at(2.1, 50.0, -3.0)), [len(trends.moments)] * 2 + [0])
    assert (counts(trends)[1:4] > 0).any(axis=1).all()


def test_items_that_grow_in_later_were_chosen_by_nobody_before() -> None:
    trends = counted([(1, 0.0), (2, 1.0)])
    trends.grow(20)
    trends.count(np.array([18]), at(2.0))
    [moment] = trends.moment_of(at(2.0))
    old = trends.logs(moment)
    assert old.shape == (20, len(SPANS))
    np.testing.assert_array_equal(old[18], old[19])


def test_snapshots_are_a_day_apart_for_four_weeks_then_a_week_apart_for_a_year() -> None:
    trends = counted([(1, day + 0.5) for day in range(800)])
    days = trends.moments // DAY - FIRST // DAY
    ages = 799 - days
    recent = ages <= 28
    np.testing.assert_array_equal(np.diff(days[recent]), 1)
    assert ages[-1] == 1
    older = days[~recent]
    assert (older % 7 == older[0] % 7).all() and (np.diff(older) == 7).all()
    assert 350 <= ages.max() <= 380


def test_thinning_day_by_day_keeps_what_thinning_at_once_keeps() -> None:
    choices = [(1 + day % 3, day + 0.5) for day in range(200)]
    once, daily = counted(choices), Trends()
    for choice in choices:
        counted([choice], trends=daily)
    np.testing.assert_array_equal(daily.moments, once.moments)
    for moment in (0, 5, len(once.moments) - 1):
        np.testing.assert_array_equal(daily.logs(moment), once.logs(moment))


def test_a_snapshot_stays_the_same_while_others_are_thinned_out() -> None:
    trends = counted([(1 + day % 3, day + 0.5) for day in range(30)])
    before = {int(moment): trends.logs(place) for place, moment in enumerate(trends.moments)}
    counted([(4, 60.0), (4, 61.0)], trends=trends)
    left = [place for place, moment in enumerate(trends.moments) if int(moment) in before]
    assert 1 < len(left) < len(before)
    for place in left:
        np.testing.assert_array_equal(trends.logs(place), before[int(trends.moments[place])])


def test_late_rows_count_from_their_own_time_on() -> None:
    late = counted([(1, 0.0), (3, 10.0)])
    assert (counts(late)[2] == 0.0).all()
    counted([(2, 3.0)], trends=late)
    in_time = counted([(1, 0.0), (2, 3.0), (3, 10.0)])
    np.testing.assert_allclose(late.logs(len(late.moments)), in_time.logs(len(in_time.moments)), atol=1e-5)
    assert late.time == at(10.0)[0]


def test_nobody_and_no_choices_count_nothing() -> None:
    trends = counted([(1, 0.0)])
    before = trends.logs(0)
    counted([(0, 5.0)], trends=trends)
    counted([], trends=trends)
    np.testing.assert_array_equal(trends.logs(0), before)
    assert trends.time == at(0.0)[0]


@pytest.mark.parametrize("day", [2.0, 9.0], ids=["then", "now"])
def test_some_rows_are_those_of_all(day: float) -> None:
    trends = counted([(1, 0.0), (3, 1.0), (4, 2.0), (1, 2.0)])
    [moment] = trends.moment_of(at(day))
    rows = np.array([0, 3, 6, 1, 4])
    np.testing.assert_array_equal(trends.logs(moment, rows), trends.logs(moment)[rows])


def test_it_comes_back_from_its_arrays_and_goes_on_the_same() -> None:
    trends = counted([(1 + day % 3, day * 0.7) for day in range(60)])
    twin = Trends.from_arrays(trends.arrays("t"), "t")
    for one in (trends, twin):
        counted([(4, 43.0), (2, 50.0)], trends=one)
    for (name, array), other in zip(trends.arrays("t").items(), twin.arrays("t").values(), strict=True):
        assert array.dtype == other.dtype, name
        np.testing.assert_array_equal(array, other, err_msg=name)


def test_a_checkpoints_arrays_do_not_follow_later_choices() -> None:
    trends = counted([(1, 0.0), (2, 1.0)])
    held = trends.arrays("t")
    before = {name: array.copy() for name, array in held.items()}
    counted([(3, 1.5), (3, 4.0)], trends=trends)
    for name, array in before.items():
        np.testing.assert_array_equal(held[name], array, err_msg=name)


def test_keep_drops_items_now_and_in_the_past_and_leaves_the_others_beside_each_other() -> None:
    trends = counted([(1, 0.0), (2, 0.5), (3, 1.0), (4, 2.0), (4, 3.0), (1, 3.5)])
    kept = np.array([0, 1, 3, 4, 6])
    moved = np.zeros(7, np.int64)
    moved[kept] = np.arange(len(kept))
    before = [trends.logs(moment)[kept] for moment in range(len(trends.moments) + 1)]
    trends.keep(kept, moved)
    for moment, old in enumerate(before):
        logs = trends.logs(moment)
        assert logs.shape == old.shape
        np.testing.assert_allclose(logs[1:] - logs[-1], old[1:] - old[-1], atol=1e-5)
    counted([(2, 9.0)], items=4, trends=trends)  # it goes on counting
    assert counts(trends)[2, 0] > counts(trends)[3, 0]


def test_what_is_asked_in_between_changes_nothing() -> None:
    choices = [(1, 0.0), (2, 1.0), (3, 1.5), (2, 0.5), (4, 4.0), (1, 4.0)]
    asked, silent = Trends(), Trends()
    for place, choice in enumerate(choices):
        for trends in (asked, silent):
            counted([choice], items=6 + place, trends=trends)
        for moment in range(len(asked.moments) + 1):
            asked.logs(moment)
    for moment in range(len(silent.moments) + 1):
        np.testing.assert_array_equal(asked.logs(moment), silent.logs(moment))
