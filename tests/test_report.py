"""The report of a run: each window beside the update that learnt it, scored before anything learnt it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.lake import Lake
from pipeline.locking import file_locks
from pipeline.report import as_table, draw_quality, metric_of, pooled, window_lines
from pipeline.schema import DECISIONS_SCHEMA, QUALITY_SCHEMA, WINDOWS_SCHEMA
from pipeline.window import Window

NINE, TEN = Window(datetime(2026, 1, 5, 9, tzinfo=UTC)), Window(datetime(2026, 1, 5, 10, tzinfo=UTC))


def quality(
    window: Window, role: str, mean: float, challenger: int, scored_on: str = "window", examples: int = 10
) -> dict:
    return {
        "task": "recommend", "scored_on": scored_on, "window": window.start, "role": role,
        "model_version": challenger - 1, "metric": "recall@20", "mean": mean, "low": mean - 0.1, "high": mean + 0.1,
        "examples": examples, "challenger": challenger,
    }


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Hour 9 was scored by update 2, which was held, and again by update 3, which learnt both hours."""
    lake = Lake(str(tmp_path / "lake"), file_locks(tmp_path / "locks"))
    log = {"feed": "events", "files": 1, "late": 0, "table_version": 1, "manifest": "{}", "warnings": "[]"}
    lake.record_windows(pa.Table.from_pylist([
        {**log, "landed_window": window.start, "landed_date": window.start.date(), "rows_in": rows,
         "published": rows - 2, "quarantined": 1, "duplicates": 1} for window, rows in ((NINE, 12), (TEN, 32))
    ], schema=WINDOWS_SCHEMA))
    for rows in (
        [quality(NINE, "champion", 0.4, 2), quality(NINE, "baseline", 0.3, 2),
         quality(NINE, "champion", 0.45, 2, "validation"),
         quality(NINE, "challenger", 0.44, 2, "validation")],
        [quality(NINE, "champion", 0.9, 3), quality(TEN, "champion", 0.6, 3, examples=30),
         quality(TEN, "challenger", 0.7, 3, "validation"), {**quality(TEN, "champion", 0.1, 3), "metric": "mrr@20"}],
    ):
        lake.append("quality", pa.Table.from_pylist(rows, schema=QUALITY_SCHEMA))
    for hour, version, action in ((0, 2, "hold"), (1, 3, "promote")):
        lake.append("decisions", pa.Table.from_pylist([{
            "task": "recommend", "decided_at": TEN.start + timedelta(hours=hour), "action": action, "version": version,
            "champion_before": 1, "champion_after": 1, "window": TEN.start, "who": "update",
            "reasons": json.dumps([f"because {action}"]),
        }], schema=DECISIONS_SCHEMA))
    return lake


def test_a_window_is_shown_with_its_first_score_and_the_decision_that_followed(lake: Lake) -> None:
    nine, ten = window_lines(lake, "recommend", "events", [NINE, TEN])
    assert (nine.on_arrival["champion"].mean, nine.version, nine.decision, nine.why) == (0.4, 2, "hold", "because hold")
    assert (nine.rows_in, nine.published, nine.quarantined, nine.duplicates) == (12, 10, 1, 1)
    assert nine.validation["challenger"].mean == 0.44
    assert (ten.on_arrival["champion"].mean, ten.version, ten.decision) == (0.6, 3, "promote")
    assert metric_of(lake, "recommend") == "recall@20"


def test_what_is_noted_of_a_champion_later_is_not_what_was_decided_on_it(lake: Lake) -> None:
    """While version 3 serves, hours are set aside, it cannot be scored, and somebody goes back to it."""
    for hour, action in enumerate(("set-aside", "cannot-score", "rollback"), 2):
        lake.append("decisions", pa.Table.from_pylist([{
            "task": "recommend", "decided_at": TEN.start + timedelta(hours=hour), "action": action, "version": 3,
            "champion_before": 3, "champion_after": 3, "window": None if action == "cannot-score" else TEN.end,
            "who": "update", "reasons": json.dumps([f"because {action}"]),
        }], schema=DECISIONS_SCHEMA))
    (ten,) = window_lines(lake, "recommend", "events", [TEN])
    assert (ten.decision, ten.why, ten.champion) == ("promote", "because promote", 1)


def test_a_window_that_nothing_has_scored_has_its_rows_only(lake: Lake) -> None:
    (line,) = window_lines(lake, "recommend", "events", [Window(TEN.end)])
    assert (line.rows_in, line.decision, line.version, line.on_arrival) == (0, "", None, {})


def test_pooled_quality_weighs_windows_by_their_examples(lake: Lake) -> None:
    lines = window_lines(lake, "recommend", "events", [NINE, TEN])
    assert pooled(lines, "champion") == pytest.approx((0.4 * 10 + 0.6 * 30) / 40)
    assert pooled(lines, "baseline") == 0.3
    assert pooled(lines, "never_updated") != pooled(lines, "never_updated")


def test_table_and_picture_show_every_window(lake: Lake, tmp_path: Path) -> None:
    from rich.console import Console

    lines = window_lines(lake, "recommend", "events", [NINE, TEN])
    console = Console(width=240, record=True, file=(tmp_path / "out").open("w"))
    console.print(as_table(lines, "recall@20"))
    said = console.export_text()
    for text in ("2026-01-05T09:00Z", "0.400 [0.300, 0.500]", "hold", "because promote"):
        assert text in said
    draw_quality(lines, "recall@20", "title", tmp_path / "pictures" / "q.png")
    assert (tmp_path / "pictures" / "q.png").read_bytes().startswith(b"\x89PNG")
