"""Files that come after their hour was taken in: what counts as one, and what becomes of its hour."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from pipeline.alerts import open_alerts, settle_alert
from pipeline.ingest import ingest
from pipeline.lake import open_lake
from pipeline.landing import LandingError, LandingZone
from pipeline.latecomers import take_in_late
from pipeline.settings import Settings
from pipeline.window import Window
from tests.landed import WINDOW, column, counted, event, hours_later, json_lines, put, settings_of

NEXT = hours_later(1)


def quiet(line: str) -> None:
    """Says nothing."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An installation that has taken in one event of the hour."""
    settings = settings_of(tmp_path)
    put(Path(settings.landing), "first.jsonl", json_lines(event(1)))
    ingest([WINDOW], settings, quiet)
    return settings


def unreadable(zone: LandingZone, *given: object) -> NoReturn:
    """In the place of a look at files whose rights forbid it."""
    raise LandingError("the rights are missing")


def published(settings: Settings) -> dict[object, int]:
    return counted(open_lake(settings).arrow("events"), "landed_window")


def test_an_hour_with_a_file_that_came_later_is_taken_in_again_once(settings: Settings) -> None:
    assert take_in_late(NEXT, settings, quiet) == {}
    put(Path(settings.landing), "second.jsonl", json_lines(event(2)))
    said: list[str] = []
    assert take_in_late(NEXT, settings, said.append) == {"events": [WINDOW]}
    assert any("second.jsonl came after the hour was taken in" in line for line in said)
    assert published(settings) == {WINDOW.start: 2}
    assert take_in_late(NEXT, settings, quiet) == {}


def test_a_file_that_grew_is_late_and_one_that_was_taken_away_is_not(settings: Settings) -> None:
    put(Path(settings.landing), "first.jsonl", json_lines(event(1), event(2)))
    assert take_in_late(NEXT, settings, quiet) == {"events": [WINDOW]}
    put(Path(settings.landing), "second.jsonl", json_lines(event(3)))
    assert take_in_late(NEXT, settings, quiet) == {"events": [WINDOW]}
    (Path(settings.landing) / "events" / WINDOW.folder / "second.jsonl").unlink()
    assert take_in_late(NEXT, settings, quiet) == {}
    shutil.rmtree(Path(settings.landing) / "events" / WINDOW.folder)
    assert take_in_late(NEXT, settings, quiet) == {}
    assert published(settings) == {WINDOW.start: 3}


def test_a_late_file_beside_files_that_were_tidied_away_leaves_the_hours_rows_and_is_an_alert(
    settings: Settings
) -> None:
    landing = Path(settings.landing)
    (landing / "events" / WINDOW.folder / "first.jsonl").unlink()
    put(landing, "second.jsonl", json_lines(event(2)))
    assert take_in_late(NEXT, settings, quiet) == {"events": [WINDOW]}
    assert column(open_lake(settings).arrow("events"), "event_id") == ["e1"]
    (alert,) = open_alerts(settings)
    assert "first.jsonl" in alert["text"] and "backfill the hour if what is there now is all of it" in alert["text"]
    put(landing, "first.jsonl", json_lines(event(1)))
    assert take_in_late(NEXT, settings, quiet) == {"events": [WINDOW]}
    assert published(settings) == {WINDOW.start: 2}
    assert open_alerts(settings) == []


def test_a_late_file_of_an_hour_without_rows_is_all_of_it(settings: Settings) -> None:
    put(Path(settings.landing), "first.jsonl", b"")
    ingest([WINDOW], settings, quiet, feeds=["events"])
    (Path(settings.landing) / "events" / WINDOW.folder / "first.jsonl").unlink()
    put(Path(settings.landing), "second.jsonl", json_lines(event(2)))
    assert take_in_late(NEXT, settings, quiet) == {"events": [WINDOW]}
    assert published(settings) == {WINDOW.start: 1}


def test_a_late_file_or_folder_that_cannot_be_read_is_an_alert_and_no_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(Path(settings.landing), "second.jsonl", json_lines(event(2)))
    for method, feeds in (("files", 3), ("open", 1)):
        with monkeypatch.context() as patched:
            patched.setattr(LandingZone, method, unreadable)
            take_in_late(NEXT, settings, quiet)
        assert ["the rights are missing" in one["text"] for one in open_alerts(settings)] == [True] * feeds
        assert published(settings) == {WINDOW.start: 1}
        for alert in open_alerts(settings):
            settle_alert(settings, alert["condition"])
    assert take_in_late(NEXT, settings, quiet) == {"events": [WINDOW]}
    assert published(settings) == {WINDOW.start: 2}


def test_a_late_file_with_a_name_that_no_log_should_show_is_one_alert_until_it_is_gone_or_quarantined(
    settings: Settings
) -> None:
    landing = Path(settings.landing)
    put(landing, "bell\x07.jsonl", json_lines(event(2)), window=NEXT)
    ingest([NEXT], settings, quiet, feeds=["events"])  # it was there in time, and is in the quarantine
    bad = put(landing, "bell\x07.jsonl", json_lines(event(2)))
    for before in (hours_later(2), hours_later(100)):
        assert take_in_late(before, settings, quiet) == {}
        (alert,) = open_alerts(settings)
        assert alert["condition"] == "late-files-events-2026-01-05T13:00Z"
        assert r"bell\x07.jsonl" in alert["text"] and "\x07" not in alert["text"]
    ingest([WINDOW], settings, quiet, feeds=["events"])
    assert take_in_late(hours_later(2), settings, quiet) == {}
    assert open_alerts(settings) == []
    bad.rename(bad.with_name("b\x07.jsonl"))
    take_in_late(hours_later(2), settings, quiet)
    assert len(open_alerts(settings)) == 1
    bad.with_name("b\x07.jsonl").unlink()
    take_in_late(hours_later(2), settings, quiet)
    assert open_alerts(settings) == []


def test_a_feed_that_brought_nothing_at_first_is_late_with_its_first_file(settings: Settings) -> None:
    change = {"change_id": "c1", "item_id": "i1", "change_time": "2026-01-05T13:10:00Z", "title": "lamp", "price": 3.5}
    put(Path(settings.landing), "a.jsonl", json_lines(change), feed="items")
    assert take_in_late(NEXT, settings, quiet) == {"items": [WINDOW]}
    assert len(open_lake(settings).arrow("items")) == 1


def test_what_is_unfinished_cannot_be_opened_was_never_taken_in_or_is_long_ago_is_not_late(
    settings: Settings, tmp_path: Path
) -> None:
    landing = Path(settings.landing)
    put(landing, ".second.jsonl", json_lines(event(2)))
    (tmp_path / "outside.jsonl").write_bytes(json_lines(event(3)))
    (landing / "events" / WINDOW.folder / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    (landing / "events" / WINDOW.folder / "self.jsonl").symlink_to("self.jsonl")
    put(landing, "other.jsonl", json_lines(event(4)), window=NEXT)
    assert take_in_late(hours_later(2), settings, quiet) == {}
    put(landing, "second.jsonl", json_lines(event(2)))
    last = Window(WINDOW.start + timedelta(hours=settings.lateness_hours))
    assert take_in_late(Window(last.end), settings, quiet) == {}
    assert take_in_late(last, settings, quiet) == {"events": [WINDOW]}


def test_a_late_file_that_breaks_a_rule_is_an_alert_until_it_is_corrected_and_the_hour_keeps_its_rows(
    settings: Settings
) -> None:
    put(Path(settings.landing), "noise.jsonl", b"\x00 no event\n" * 200)
    for _ in range(2):
        assert take_in_late(NEXT, settings, quiet) == {"events": [WINDOW]}
        (alert,) = open_alerts(settings)
        assert alert["condition"] == "late-files-events-2026-01-05T13:00Z"
        assert str(WINDOW) in alert["text"] and "unreadable_share_critical" in alert["text"]
        assert published(settings) == {WINDOW.start: 1}
    put(Path(settings.landing), "noise.jsonl", json_lines(event(2)))
    assert take_in_late(NEXT, settings, quiet) == {"events": [WINDOW]}
    assert open_alerts(settings) == []
    assert published(settings) == {WINDOW.start: 2}


@pytest.mark.slow  # eight ingests
def test_the_alert_about_an_hour_stays_until_that_hour_is_corrected(settings: Settings) -> None:
    landing = Path(settings.landing)
    put(landing, "good.jsonl", json_lines(event(3, event_time="2026-01-05T14:10:00Z")), window=NEXT)
    ingest([NEXT], settings, quiet, feeds=["events"])
    for window in (WINDOW, NEXT):
        put(landing, "noise.jsonl", b"\x00 no event\n" * 200, window=window)
    both = {f"late-files-events-2026-01-05T{hour}:00Z" for hour in (13, 14)}
    for before in (hours_later(2), hours_later(-5), NEXT, hours_later(100)):  # also of an hour before and long after
        take_in_late(before, settings, quiet)
        assert {alert["condition"] for alert in open_alerts(settings)} == both
    (landing / "events" / NEXT.folder / "noise.jsonl").unlink()
    put(landing, "noise.jsonl", json_lines(event(2)))
    assert take_in_late(hours_later(100), settings, quiet) == {}
    assert {alert["condition"] for alert in open_alerts(settings)} == {"late-files-events-2026-01-05T13:00Z"}
    ingest([WINDOW], settings, quiet, feeds=["events"])
    assert take_in_late(hours_later(100), settings, quiet) == {}
    assert open_alerts(settings) == []
