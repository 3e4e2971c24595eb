"""Windows: half-open UTC hours, and which of them a run is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from pipeline.window import Window, windows_between, windows_of

NINE = datetime(2011, 11, 14, 9, tzinfo=UTC)


def test_a_window_is_named_by_its_start_and_read_back() -> None:
    window = Window(NINE)
    assert str(window) == "2011-11-14T09:00Z"
    assert Window.parse(str(window)) == window
    assert window.folder == "2011-11-14/09"
    assert window.end == NINE + timedelta(hours=1)


def test_a_time_of_another_zone_is_the_same_window() -> None:
    assert Window(NINE.astimezone(timezone(timedelta(hours=5)))) == Window(NINE)
    assert Window.containing(NINE + timedelta(minutes=59, seconds=59)) == Window(NINE)


@pytest.mark.parametrize("start", [datetime(2011, 11, 14, 9), NINE + timedelta(minutes=1)])
def test_a_naive_time_or_half_an_hour_is_no_window(start: datetime) -> None:
    with pytest.raises(ValueError, match="received"):
        Window(start)


def test_a_scheduled_run_is_about_its_interval() -> None:
    assert windows_of(None, None, NINE, NINE + timedelta(hours=1)) == (Window(NINE),)
    late = timedelta(minutes=5)  # EVERGREEN_INGEST_MINUTE
    assert windows_of(None, None, NINE + late, NINE + timedelta(hours=1) + late) == (Window(NINE),)


def test_a_run_by_hand_without_a_window_is_about_the_last_full_hour() -> None:
    assert windows_of(None, None, None, NINE + timedelta(minutes=20)) == (Window(NINE - timedelta(hours=1)),)


def test_a_named_window_wins_and_until_is_exclusive() -> None:
    named = windows_of("2011-11-14T09:00Z", "2011-11-14T11:00Z", datetime(2020, 1, 1, tzinfo=UTC), NINE)
    assert named == tuple(windows_between(NINE, NINE + timedelta(hours=2)))
    assert windows_of("2011-11-14T09:00Z", None, None, NINE) == (Window(NINE),)


@pytest.mark.parametrize(("first", "until"), [(None, "2011-11-14T09:00Z"), ("2011-11-14T09:00Z", "2011-11-14T09:00Z")])
def test_a_range_without_beginning_or_hours_is_refused(first: str | None, until: str) -> None:
    with pytest.raises(ValueError, match="until"):
        windows_of(first, until, None, NINE)


def test_a_mistyped_year_is_refused_before_its_hours_are_counted() -> None:
    with pytest.raises(ValueError, match=r"`until` must lie at most .* and 9999-11-14T09:00Z"):
        windows_of("2011-11-14T09:00Z", "9999-11-14T09:00Z", None, NINE)
    assert len(windows_of("1970-01-01T00:00Z", "2020-01-01T00:00Z", None, NINE)) == 18_262 * 24
