"""Hours taken in by three processes at once, in any order and repeatedly, while old hours are corrected."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.lake import open_lake
from tests.benchmarks.trust_backfill import disturbed, learnt_figures
from tests.same_tables import rows_differing, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_hours_taken_in_at_random_end_in_the_tables_of_hours_in_order_and_are_learnt_once(tmp_path: Path) -> None:
    end = disturbed(tmp_path, hours=8, seed=11)
    lake = open_lake(end.calm)
    assert rows_differing(open_lake(end.disturbed), lake) == {}
    assert min(rows_of(lake, table).total() for table in ("events", "items", "quarantine", "windows")) >= 10
    figures = learnt_figures(end.disturbed)
    assert figures["backfill.updates"] >= 1
    assert {name for name, value in figures.items() if value} == {"backfill.updates"}
