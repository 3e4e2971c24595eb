"""The learning benchmark's log: what a step's tables hold, also where an earlier landing was stopped halfway."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.sources import SourceError
from tests.benchmarks import bench_learning, shop_log
from tests.benchmarks.learning_methods import compare
from tests.benchmarks.shop_log import Protocol, ProtocolError, ShopLog

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


def test_another_log_of_the_same_name_is_landed_and_not_taken_for_the_one_before(
    protocol: Protocol, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    ShopLog.land(protocol, home, 0, encoder="tiny")
    protocol.data.write_text(protocol.data.read_text().replace("sku", "other"))
    shop = ShopLog.land(protocol, home, 0, encoder="tiny")
    assert shop.tables(DAYS - 1).arrow("events", ["item_id"])["item_id"].unique().to_pylist() == [
        f"other{number}" for number in range(PURCHASES_A_DAY)
    ]


def test_a_part_that_is_none_is_refused_before_any_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench_learning.PARTS, "aging", lambda seeds: pytest.fail("measured"))
    monkeypatch.setattr("sys.argv", ["bench_learning", "aging", "agin"])
    with pytest.raises(SystemExit):
        bench_learning.main()
    assert "'agin'" in capsys.readouterr().err


def test_a_mapping_alone_says_how_a_log_is_learnt_by_its_length(tmp_path: Path) -> None:
    mapping, log = tmp_path / "myshop.toml", tmp_path / "log.csv"
    mapping.write_text('[columns]\nuser = "who"\nitem = "what"\n[time]\ncolumn = "at"\n[type]\ndefault = "purchase"\n')
    steps = {}
    for days in (3, 30, 364):
        times = [datetime(2024, 1, 1, 9, tzinfo=UTC) + timedelta(days=day) for day in range(days)]
        log.write_text("who,what,at\n" + "".join(f"c1,a,{time.isoformat()}\n" for time in times))
        read = Protocol.read(str(mapping), log)
        assert (read.name, read.origin) == ("myshop", datetime(2024, 1, 1, tzinfo=UTC))
        steps[days] = (read.step_days, read.first_step, read.first_test_step, read.last_test_step)
    assert steps == {3: (1, 1, 1, 2), 30: (1, 24, 24, 29), 364: (7, 42, 42, 51)}
    log.write_text("who,what,at\nc1,a,2024-01-01T09:00:00Z\n")
    with pytest.raises(ProtocolError, match=r"three days at least: .* it has 1"):
        Protocol.read(str(mapping), log)


@pytest.mark.parametrize(("text", "log", "said"), [
    (None, "log.csv", "is described by a file"), ('[columns]\nitem = "a"\n', None, "names no log"),
    ('[columns]\nitem = "a"\n', "none.csv", "must lie at"),
    ('prepare = ""\nstep_day = 7\n', "log.csv", "missing: first_step, .*; not known: step_day"),
    ("data = 3\n", None, "`data` in .* a text; received 3"), ("[columns", "log.csv", "is not TOML"),
])
def test_a_data_set_that_cannot_be_measured_is_told(
    tmp_path: Path, text: str | None, log: str | None, said: str
) -> None:
    (tmp_path / "log.csv").write_text("a\n")
    if text is not None:
        (tmp_path / "shop.toml").write_text(text)
    with pytest.raises((ProtocolError, SourceError), match=said):  # `make bench-learning` tells both
        Protocol.read(str(tmp_path / "shop.toml"), log and tmp_path / log)


@pytest.mark.slow
def test_a_log_of_ones_own_is_measured_by_its_mapping_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, log = random.Random(3), tmp_path / "log.csv"
    moments = [f"2024-01-{day:02d}T{hour:02d}:00:00Z" for day in range(1, 7) for hour in range(9, 18)]
    lines = [
        f"c{user},s{drawn.choice((user % 7, drawn.randrange(30)))},lamp {user % 5},2.5,{moment}"
        for moment in moments for user in range(40) if drawn.random() < 0.3
    ]
    log.write_text("\n".join(["who,what,title,paid,at", *lines]))
    mapping = tmp_path / "myshop.toml"
    mapping.write_text(
        '[columns]\nuser = "who"\nitem = "what"\ntitle = "title"\nprice = "paid"\n[time]\ncolumn = "at"\n'
        '[type]\ndefault = "purchase"\n'
    )
    monkeypatch.setattr("sys.argv", ["bench_learning", str(mapping), "--data", str(log), "--seeds", "0"])
    before = bench_learning.RESULTS.read_bytes()
    bench_learning.main()
    assert bench_learning.RESULTS.read_bytes() == before
    result = json.loads((tmp_path / "myshop.results.json").read_text())
    assert result["protocol"]["judged_steps"] == [4, 5]
    ways = result["tables"]["myshop"]
    assert {"ours", "never updated", "full retrain", "most bought", "item-kNN", "ALS"} <= set(ways)
    assert all(0 < way["recall"] <= 1 for way in ways.values())
    assert result["figures"]["myshop.quality_vs_full"] == ways["ours"]["recall"] / ways["full retrain"]["recall"]


def test_a_method_that_is_none_is_refused_and_not_taken_for_one_that_is_done() -> None:
    with pytest.raises(ValueError, match="received FGM two"):
        compare(None, [], [0], {}, ["FGM two"], "commit", print)  # type: ignore[arg-type]
