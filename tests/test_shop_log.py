"""The learning benchmark's log: what a step's tables hold, also where an earlier landing was stopped halfway."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.benchmarks import bench_learning, shop_log
from tests.benchmarks.learning_methods import compare
from tests.benchmarks.shop_log import Protocol, ShopLog

DAYS = 3
PURCHASES_A_DAY = 4


@pytest.fixture
def protocol(tmp_path: Path) -> Protocol:
    """A log of three days, each of them a step."""
    log = tmp_path / "log.csv"
    log.write_text("who,what,pieces,paid,at\n" + "".join(
        f"c{number},sku{number},1,2.5,2024-01-0{day + 1}T0{number}:00:00Z\n"
        for day in range(DAYS) for number in range(PURCHASES_A_DAY)
    ))
    columns = {"user": "who", "item": "what", "quantity": "pieces", "price": "paid"}
    mapping = {
        "name": "small", "format": "parquet", "columns": columns, "time": {"column": "at"},
        "type": {"default": "purchase"},
    }
    return Protocol(
        "small", log, datetime(2024, 1, 1, tzinfo=UTC), 1, 1, 1, DAYS - 1, "SELECT * FROM read_csv('{data}')", mapping
    )


def events_by_step(shop: ShopLog) -> list[int]:
    return [len(shop.tables(step).arrow("events", ["event_id"])) for step in sorted(shop.versions)]


def test_a_landing_that_was_stopped_halfway_is_begun_anew_and_no_step_sees_a_later_one(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, ingest = tmp_path / "home", shop_log.ingest

    def stopped(windows: object, *given: object) -> None:
        ingest(windows, *given)  # type: ignore[arg-type]
        if (home / "landing" / "events" / f"2024-01-0{DAYS - 1}").is_dir():
            raise KeyboardInterrupt

    monkeypatch.setattr(shop_log, "ingest", stopped)
    with pytest.raises(KeyboardInterrupt):
        ShopLog.land(protocol, home, 0, encoder="tiny")
    monkeypatch.undo()
    wanted = [PURCHASES_A_DAY * (step + 1) for step in range(DAYS)]
    assert events_by_step(ShopLog.land(protocol, home, 0, encoder="tiny")) == wanted
    assert events_by_step(ShopLog.land(protocol, home, 0, encoder="tiny")) == wanted  # as it is


def test_a_part_that_is_none_is_refused_before_any_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench_learning.PARTS, "aging", lambda seeds: pytest.fail("measured"))
    monkeypatch.setattr("sys.argv", ["bench_learning", "aging", "agin"])
    with pytest.raises(SystemExit):
        bench_learning.main()
    assert "'agin'" in capsys.readouterr().err


def test_a_method_that_is_none_is_refused_and_not_taken_for_one_that_is_done() -> None:
    with pytest.raises(ValueError, match="received FGM two"):
        compare(None, [], [0], {}, ["FGM two"], "commit", print)  # type: ignore[arg-type]
