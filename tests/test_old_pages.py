"""Which pages go by age, and which stay however old."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.checkpoint import Ledger
from pipeline.lake import Lake, open_lake
from pipeline.old_pages import Open, remove_old_pages
from pipeline.pages import page_path
from pipeline.schema import EVENTS
from pipeline.settings import Settings, SettingsError
from tests.small_shop import hour, log_windows, publish_purchases, settings_of

NOW = datetime(2026, 7, 1, tzinfo=UTC)
LEDGER = Ledger(
    kind="base", parent=None, versions={"events": 1}, learnt_from={"events": -1}, window=hour(3).start,
    joined_until=hour(0).start, span_hours=24,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


@pytest.fixture
def lake(settings: Settings) -> Lake:
    """Hours 0 to 5 are taken in, but for hour 2, which was stopped."""
    lake = open_lake(settings)
    publish_purchases(lake, 0, 1, 3, 4, 5)
    log_windows(lake, EVENTS, *(hour(number) for number in (0, 1, 3, 4, 5)))
    return lake


def written(path: Path, days_ago: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a page")
    at = (NOW - timedelta(days=days_ago)).timestamp()
    os.utime(path, (at, at))
    return path


def quality(settings: Settings, *numbers: int, days_ago: float = 100) -> Path:
    return written(page_path("events", [hour(number) for number in numbers], settings.reports), days_ago)


def remove(settings: Settings, lake: Lake, ledger: Ledger | None = LEDGER, *, dry_run: bool = False) -> dict[str, int]:
    still_open = Open.of({"price": {7}}, [ledger])
    return remove_old_pages(settings.reports, lake, still_open, NOW, settings.pages_days, dry_run=dry_run)


def test_pages_of_windows_that_were_learnt_go_after_ninety_days(settings: Settings, lake: Lake) -> None:
    old, younger = quality(settings, 0), quality(settings, 1, days_ago=89)
    assert remove(settings, lake, dry_run=True) == {"quality": 1, "lineage": 0, "bytes": 6} and old.exists()
    assert remove(settings, lake) == {"quality": 1, "lineage": 0, "bytes": 6}
    assert not old.exists() and younger.exists()
    os.utime(younger, (0, 0))
    remove(settings, lake)
    assert not younger.parent.exists()  # a day without pages


def test_pages_of_what_is_open_stay_however_old(settings: Settings, lake: Lake) -> None:
    stopped, aside, not_learnt = (quality(settings, number) for number in (2, 3, 4))
    held = replace(LEDGER, set_aside={hour(3).start.isoformat(): ((0, 1),)})
    assert remove(settings, lake, held)["quality"] == 0
    assert stopped.exists() and aside.exists() and not_learnt.exists()
    log_windows(lake, EVENTS, hour(2))  # corrected and taken in since
    assert remove(settings, lake, replace(LEDGER, window=hour(4).start))["quality"] == 3


def test_without_a_champion_every_window_is_waiting(settings: Settings, lake: Lake) -> None:
    quality(settings, 0)
    assert remove(settings, lake, None)["quality"] == 0
    assert Open.of({}, [LEDGER, None]).learnt_until is None  # of one of two tasks


def test_a_bulk_page_stays_as_long_as_one_of_its_windows_is_open(settings: Settings, lake: Lake) -> None:
    with_stopped, closed = quality(settings, 0, 1, 2, 3), quality(settings, 0, 1)
    assert remove(settings, lake)["quality"] == 1
    assert with_stopped.exists() and not closed.exists()


def test_lineage_pages_stay_with_the_files_of_their_version(settings: Settings, lake: Lake) -> None:
    folder = settings.reports / "lineage"
    kept, gone, asked = (written(folder / name, 100) for name in ("price-7.html", "price-6.html", "user-ab12.html"))
    assert remove(settings, lake) == {"quality": 0, "lineage": 2, "bytes": 12}
    assert kept.exists() and not gone.exists() and not asked.exists()


def test_only_pages_go(settings: Settings, lake: Lake) -> None:
    half = written(settings.reports / "quality" / "events" / ".10.html.99.tmp", 100)  # of a killed process
    others = [
        written(settings.reports / name, 400)
        for name in ("health.html", "price-quality.png", "alerts.jsonl", "quality/events/mine.html")
    ]
    assert remove(settings, lake)["quality"] == 1
    assert not half.exists() and all(path.exists() for path in others)


def test_an_age_below_a_day_is_refused(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="EVERGREEN_PAGES_DAYS must be at least 1; received 0"):
        replace(settings, pages_days=0)
