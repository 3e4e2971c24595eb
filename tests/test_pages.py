"""What the page of a check promises: the verdict in words, all counts, hostile content harmless, no network."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.pages import page, page_path, write_page
from pipeline.quality import WINDOW_FACTS, Checked, check
from pipeline.schema import EVENTS
from pipeline.window import Window

START = datetime(2011, 11, 14, 9, tzinfo=UTC)
WINDOW = Window(START)
COUNTS = {"rows_in": 1_000, "passed": 970, "quarantined": 25, "duplicates": 5, "reason.malformed_json": 24}


def check_of(*windows: dict[str, Any], item: str = "85123A", absent: frozenset[str] = frozenset()) -> Checked:
    good = {
        "files": 1,
        "rows_in": 1_000,
        "readable": 1_000,
        "quarantined": 0,
        "duplicates": 0,
        "late": 7,
        "usual_rows": 1_000.0,
        "newest_minutes": 1.0,
        "item_rows": 1_000,
        "unknown_items": 0,
        "hour_of_week": 9,
    }
    facts = pa.Table.from_pylist(
        [{"landed_window": START + timedelta(hours=hour)} | good | window for hour, window in enumerate(windows)],
        WINDOW_FACTS,
    )
    schema = EVENTS.table_schema
    row = dict.fromkeys(schema.names) | {
        "event_id": "e1",
        "event_type": "view",
        "event_time": START,
        "item_id": item,
        "landed_window": START,
    }
    return check(EVENTS, pa.Table.from_pylist([row], pa.schema([f.with_nullable(True) for f in schema])), facts, absent)


def text_of(document: str) -> str:
    """The page's text, whitespace folded."""

    class Reader(HTMLParser):
        said = ""

        def handle_data(self, data: str) -> None:
            self.said += data + " "

    reader = Reader()
    reader.feed(document)
    return re.sub(r"\s+", " ", reader.said)


def test_a_good_window_is_published_in_words_with_all_counts() -> None:
    said = text_of(page("events", [WINDOW], check_of({}).results, COUNTS))
    assert "✓ Published 970 of 1,000 rows passed the check; 25 cannot be used and 5 are duplicates." in said
    for part in (
        "1,000 rows in",
        "970 passed the check",
        "25 quarantined",
        "5 duplicates",
        "7 late",
        "malformed_json 24",
    ):
        assert part in said
    assert "Stopped" not in said


def test_warnings_are_counted_and_explained() -> None:
    said = text_of(page("events", [WINDOW], check_of({"newest_minutes": 300.0, "late": 600}).results, COUNTS))
    assert "! Published with 2 warnings" in said
    assert "Warning: newest_row_old Seen the newest row is 300 minutes older than the window's end Allowed" in said
    assert "What to do Look at the exporter's schedule and clock." in said


def test_a_stopped_window_says_that_nothing_was_published_and_what_to_do() -> None:
    said = text_of(page("events", [WINDOW], check_of({"quarantined": 700}).results, COUNTS))
    assert "✕ Stopped: nothing of this was published; table and model are as before" in said
    assert "70.0 % of the rows unreadable (700 of 1,000)" in said
    assert "The page of this check lists the reasons" in said


def test_of_many_windows_the_stopped_ones_are_named() -> None:
    windows = [Window(START + timedelta(hours=hour)) for hour in range(3)]
    said = text_of(page("events", windows, check_of({}, {"quarantined": 700}, {}).results, COUNTS))
    assert "Stopped: 1 of 3 windows; the others were published" in said
    assert "2011-11-14T10:00Z: 70.0 % of the rows unreadable" in said


def test_a_page_shows_nothing_of_other_windows() -> None:
    results = check_of({}, {"quarantined": 700}).results
    assert "✓ Published" in text_of(page("events", [WINDOW], results, COUNTS))
    assert "Stopped: nothing" in text_of(page("events", [Window(START + timedelta(hours=1))], results, COUNTS))


def test_every_rule_is_listed_with_reason_and_remedy() -> None:
    results = check_of({}).results
    said = text_of(page("events", [WINDOW], results, COUNTS))
    for result in results["expectations"]:
        for part in ("rule", "why", "remedy", "allowed", "severity"):
            assert re.sub(r"\s+", " ", result[part]) in said


def test_rules_left_out_are_named() -> None:
    said = text_of(page("events", [WINDOW], check_of({}, absent=frozenset({"events.rating"})).results, COUNTS))
    assert "Left out" in said
    assert "rating_without_value" in said.split("Left out")[1]


def test_hostile_content_is_text() -> None:
    hostile = '<script>alert("x")</script><img src=x onerror=alert(1)>\x01'
    results = check_of({}, item=hostile).results
    document = page("events", [WINDOW], results, COUNTS | {"reason.<b>": 1})
    assert "<script" not in document
    assert "<img" not in document
    assert "<b>&lt;" not in document.replace("<b>What to do:</b>", "")
    assert "&lt;script&gt;alert" in document
    assert '<script>alert("x")</script>' in text_of(document)


def test_the_page_needs_no_network_and_suits_phone_and_dark() -> None:
    document = page("events", [WINDOW], check_of({}).results, COUNTS)
    assert not re.search(r"(src|href|url\(|@import|https?:)", document)
    assert 'name="viewport"' in document
    assert "prefers-color-scheme:dark" in document
    assert '<html lang="en">' in document


def test_pages_lie_by_feed_day_and_hour(tmp_path: Path) -> None:
    later = Window(START + timedelta(hours=30))
    assert page_path("events", [WINDOW], tmp_path) == tmp_path / "quality/events/2011-11-14/09.html"
    assert page_path("items", [WINDOW, later], tmp_path) == (
        tmp_path / "quality/items/bulk-2011-11-14T09Z-2011-11-15T15Z.html"
    )


def test_writing_again_replaces_the_page_and_leaves_nothing_beside(tmp_path: Path) -> None:
    results = check_of({}).results
    path = write_page("events", [WINDOW], results, COUNTS, tmp_path)
    first = path.read_text(encoding="utf-8")
    assert write_page("events", [WINDOW], results, COUNTS | {"passed": 1}, tmp_path) == path
    assert path.read_text(encoding="utf-8") != first
    assert [file.name for file in path.parent.iterdir()] == ["09.html"]


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = check_of({}).results
    path = write_page("events", [WINDOW], results, COUNTS, tmp_path)
    before = path.read_text(encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_page("events", [WINDOW], results, COUNTS | {"passed": 1}, tmp_path)
    assert path.read_text(encoding="utf-8") == before
    assert [file.name for file in path.parent.iterdir()] == ["09.html"]
