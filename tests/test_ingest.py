"""Ingest's promises: every row accounted for, windows replaced whole, the same tables however often it is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.forgetting import forget
from pipeline.ingest import AccountingError, Ingested, ingest
from pipeline.labels import take_in
from pipeline.lake import Lake, Outdated, Published, open_lake
from pipeline.schema import FEEDS
from pipeline.settings import REPOSITORY, Settings
from pipeline.sources import open_source
from pipeline.sources.simulator import ShopSimulator
from pipeline.window import Window, windows_between
from tests.killed import KILLS
from tests.landed import KEY, WINDOW, column, counted, event, json_lines, put, settings_of

HOURS = 6


def quiet(_: str) -> None:
    """Takes a report and says nothing."""


@pytest.fixture(scope="module")
def shop() -> ShopSimulator:
    return ShopSimulator(seed=5, history_days=1, hours=HOURS, history_events=20_000, dirt_share=0.08)


@pytest.fixture(scope="module")
def shop_landing(shop: ShopSimulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    landing = tmp_path_factory.mktemp("landing")
    shop.land(list(windows_between(shop.first, shop.last)), landing)
    return landing


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


def contents(lake: Lake) -> dict[str, list[dict[str, object]]]:
    """All tables' rows in order, without the version numbers, which count commits."""
    found = {}
    for table in (*FEEDS, *(f"duplicates_{feed}" for feed in FEEDS), "quarantine", "windows"):
        rows = lake.arrow(table).to_pylist() if lake.version(table) >= 0 else []
        for row in rows:
            row.pop("table_version", None)
        found[table] = sorted(rows, key=lambda row: json.dumps(row, default=str, sort_keys=True))
    return found


def adds_up(lake: Lake) -> bool:
    log = lake.window_log()
    parts = pc.add(pc.add(log["published"], log["quarantined"]), log["duplicates"])
    sums = (pc.sum(log["published"]).as_py(), pc.sum(log["quarantined"]).as_py())
    held = (sum(len(lake.arrow(feed)) for feed in FEEDS), len(lake.arrow("quarantine")))
    return bool(pc.all(pc.equal(log["rows_in"], parts)).as_py()) and sums == held


def test_the_simulated_shops_dirt_is_found_kind_by_kind(
    shop: ShopSimulator, shop_landing: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, EVERGREEN_LANDING=str(shop_landing))
    windows = list(windows_between(shop.first, shop.last))
    ingest(windows, settings, quiet)
    lake = open_lake(settings)
    assert adds_up(lake)
    log = lake.window_log()
    log = {row["landed_window"]: row for row in log.filter(pc.equal(log["feed"], "events")).to_pylist()}
    quarantine = lake.arrow("quarantine")
    total = dict.fromkeys(("malformed_line", "wrong_type", "null_field", "future_event"), 0)
    for window in windows:
        dirt = shop.dirt(window)
        found = counted(quarantine.filter(pc.equal(quarantine["landed_window"], window.start)), "reason")
        assert found.get("malformed_json", 0) == dirt["malformed_line"]
        assert found.get("wrong_type", 0) + found.get("unparseable_time", 0) == dirt["wrong_type"]
        assert found.get("missing_value", 0) == dirt["null_field"]
        assert found.get("future_time", 0) == dirt["future_event"]
        assert sum(found.values()) == sum(dirt[kind] for kind in total)
        assert log[window.start]["duplicates"] == dirt["exact_duplicate"] + dirt["later_duplicate"]
        assert log[window.start]["late"] == dirt["late_event"]
        total = {kind: number + dirt[kind] for kind, number in total.items()}
    assert min(total.values()) > 50


@pytest.mark.slow
def test_hour_by_hour_and_in_bulk_end_in_the_same_tables(
    shop: ShopSimulator, shop_landing: Path, tmp_path: Path
) -> None:
    windows = list(windows_between(shop.first, shop.last))[:4]
    ends = []
    for name, calls in (
        ("bulk", [windows]),
        ("hourly", [[w] for w in windows]),
        ("backwards", [[w] for w in reversed(windows)]),
    ):
        settings = settings_of(tmp_path / name, EVERGREEN_LANDING=str(shop_landing))
        for call in calls:
            ingest(call, settings, quiet)
        end = contents(open_lake(settings))
        for row in end["windows"]:
            row["warnings"] = None  # volume is judged against what had landed before
        ends.append(end)
    assert ends[0]["events"]
    assert ends[0] == ends[1] == ends[2]


def test_a_window_ingested_twice_leaves_the_same_table_version(
    shop: ShopSimulator, shop_landing: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, EVERGREEN_LANDING=str(shop_landing))
    windows = list(windows_between(shop.first, shop.last))[:3]
    ingest(windows, settings, quiet)
    lake = open_lake(settings)
    before, tables = contents(lake), (*FEEDS, "quarantine", "duplicates_events")
    versions = {table: lake.version(table) for table in tables}
    again = ingest([windows[1]], settings, quiet)
    assert {table: lake.version(table) for table in tables} == versions
    assert contents(lake) == before
    assert [(done.inserted, done.changed, done.gone) for done in again] == [(0, 0, 0)] * 3


def test_a_corrected_window_replaces_what_it_had(settings: Settings) -> None:
    path = put(Path(settings.landing), "a.jsonl", json_lines(event(1), event(2), event(3, event_type="stare")))
    ingest([WINDOW], settings, quiet, ["events"])
    path.write_bytes(json_lines(event(2, price=9), event(3)))
    (done,) = ingest([WINDOW], settings, quiet, ["events"])
    lake = open_lake(settings)
    assert (done.inserted, done.changed, done.gone) == (1, 1, 1)
    assert sorted(
        zip(column(lake.arrow("events"), "event_id"), column(lake.arrow("events"), "price"), strict=True)
    ) == [("e2", 9.0), ("e3", 3.5)]
    assert len(lake.arrow("quarantine")) == 0
    assert adds_up(lake)


@pytest.mark.parametrize("step", ["publish", "record_windows"])
def test_a_run_that_read_before_a_correction_does_not_write_over_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = put(Path(settings.landing), "a.jsonl", json_lines(event(1), event(2)))
    original, waiting = getattr(Lake, step), [True]

    def slow(self: Lake, *args: object, **kwargs: object) -> object:
        if waiting and waiting.pop():  # meanwhile the hour is corrected and taken in by another run
            path.write_bytes(json_lines(event(1, price=9), event(3), event(4)))
            ingest([WINDOW], settings, quiet, ["events"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Lake, step, slow)
    said: list[str] = []
    (done,) = ingest([WINDOW], settings, said.append, ["events"])
    lake = open_lake(settings)
    assert sorted(column(lake.arrow("events"), "event_id")) == ["e1", "e3", "e4"]
    assert column(lake.window_log(), "rows_in") == [3] == [done.rows_in]
    assert json.loads(str(column(lake.window_log(), "manifest")[0]))  # of the newer file
    assert len(said) == 2 and "read again" in said[0] and adds_up(lake)


def test_a_row_that_must_be_forgotten_while_its_hour_is_taken_in_does_not_come_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(Path(settings.landing), "a.jsonl", json_lines(event(1, item_id="i1"), event(2, item_id="i2")))
    ingest([WINDOW], settings, quiet, ["events"])
    original, waiting = Lake.publish, [True]

    def slow(self: Lake, *args: object, **kwargs: object) -> Published:
        if waiting and waiting.pop():
            forget("item", "i1", settings, WINDOW.start, "ann")
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Lake, "publish", slow)
    ingest([WINDOW], settings, quiet, ["events"])
    assert column(open_lake(settings).arrow("events"), "item_id") == ["i2"]


def test_a_label_that_is_imported_while_its_hour_is_taken_in_stays(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = {"message_id": "m1", "message_time": "2026-01-05T13:10:00Z", "user_id": "u", "text": "where is my parcel"}
    put(Path(settings.landing), "a.jsonl", json_lines(message), feed="messages")
    ingest([WINDOW], settings, quiet, ["messages"])
    lake = open_lake(settings)
    original, waiting = Lake.publish, [True]

    def slow(self: Lake, *args: object, **kwargs: object) -> Published:
        if waiting and waiting.pop():
            take_in(lake, [{"message_id": "m1", "kind": "label", "value": "delivery"}], WINDOW.start, "ann")
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Lake, "publish", slow)
    ingest([WINDOW], settings, quiet, ["messages"])
    assert column(lake.arrow("messages"), "label") == ["delivery"]


def test_files_that_never_rest_fail_the_run_and_publish_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(Path(settings.landing), "a.jsonl", json_lines(event(1)))
    original, length = Lake.publish, iter(range(2, 99))

    def slow(self: Lake, *args: object, **kwargs: object) -> Published:
        path.write_bytes(json_lines(*(event(number) for number in range(next(length)))))
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Lake, "publish", slow)
    monkeypatch.setattr("pipeline.ingest._READINGS", 2)
    with pytest.raises(Outdated, match="changed while it was taken in"):
        ingest([WINDOW], settings, quiet, ["events"])
    assert open_lake(settings).version("events") == -1


def test_an_hour_without_files_is_an_empty_window_and_an_expected_feed_is_missed(settings: Settings) -> None:
    done = {one.feed: one for one in ingest([WINDOW], settings, quiet)}
    assert [(one.windows, one.rows_in, one.files) for one in done.values()] == [(1, 0, 0)] * 3
    assert (done["events"].missing, done["items"].missing, done["messages"].missing) == (True, False, False)
    lake = open_lake(settings)
    assert column(lake.window_log(), "rows_in") == [0, 0, 0]
    assert json.loads(json.dumps(done["events"].as_json()))["missing"] is True


def test_an_empty_file_is_no_missing_feed(settings: Settings) -> None:
    put(Path(settings.landing), "a.jsonl", b"")
    (done,) = ingest([WINDOW], settings, quiet, ["events"])
    assert (done.missing, done.files, done.rows_in) == (False, 1, 0)


def test_items_that_nobody_has_described_are_counted(settings: Settings) -> None:
    landing = Path(settings.landing)
    put(landing, "a.jsonl", json_lines({"item_id": "i1", "change_time": "2026-01-05T13:00Z", "price": 2}), feed="items")
    rows = [event(number) for number in range(40)] + [event(100 + number, item_id="x") for number in range(20)]
    put(landing, "a.jsonl", json_lines(*rows, event(200, item_id=None, event_type="search", query="mug")))
    done = {one.feed: one for one in ingest([WINDOW], settings, quiet)}
    assert any("33.3 %" in said and "unknown_item_share" in said for said in done["events"].warnings)
    assert done["events"].published == 61


def test_a_corrected_copy_counts_where_the_first_is_refused(settings: Settings) -> None:
    rows = [event(1, price=-5), event(1, price=-6), event(1, price=7), event(1, price=8), event(2), event(2, price=-1)]
    put(Path(settings.landing), "a.jsonl", json_lines(*rows, *(event(n) for n in range(10, 20))))
    (done,) = ingest([WINDOW], settings, quiet, ["events"])
    events = open_lake(settings).arrow("events")
    assert dict(zip(column(events, "event_id"), column(events, "price"), strict=True))["e1"] == 7.0
    assert (done.rows_in, done.published, done.quarantined, done.duplicates) == (16, 12, 2, 2)


def test_a_price_comes_from_the_catalogue_that_lands_in_the_same_hour(settings: Settings) -> None:
    landing = Path(settings.landing)
    put(landing, "a.jsonl", json_lines({"item_id": "i1", "change_time": "2026-01-05T13:00Z", "price": 2}), feed="items")
    put(landing, "a.jsonl", json_lines(event(1, price=None), event(2)))
    ingest([WINDOW], settings, quiet)
    events = open_lake(settings).arrow("events").sort_by("event_id")
    assert column(events, "price") == [2.0, 3.5]
    assert column(events, "imputed") == ["price_from_catalogue", None]


@pytest.mark.slow
def test_a_year_in_chunks_ends_as_in_one(
    shop: ShopSimulator, shop_landing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = list(windows_between(shop.first, shop.last))[:3]
    whole, parts = (settings_of(tmp_path / name, EVERGREEN_LANDING=str(shop_landing)) for name in ("whole", "parts"))
    ingest(windows, whole, quiet, ["events"])
    monkeypatch.setattr("pipeline.ingest._CHUNK_BYTES", 1)
    ingest(windows, parts, quiet, ["events"])
    assert contents(open_lake(parts)) == contents(open_lake(whole))
    assert open_lake(parts).version("events") > open_lake(whole).version("events")


def test_lost_rows_are_an_error_of_ours(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Lake.publish

    def forgetful(self: Lake, *args: object, **kwargs: object) -> Published:
        published = publish(self, *args, **kwargs)  # type: ignore[arg-type]
        return Published(**vars(published) | {"published": {WINDOW: 1}})

    monkeypatch.setattr(Lake, "publish", forgetful)
    put(Path(settings.landing), "a.jsonl", json_lines(event(1), event(2)))
    with pytest.raises(AccountingError, match=r"2 rows in, 1 \+ 0 \+ 0"):
        ingest([WINDOW], settings, quiet, ["events"])


def test_a_raw_user_id_is_in_no_file_of_lake_or_reports(
    shop: ShopSimulator, shop_landing: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, EVERGREEN_LANDING=str(shop_landing))
    windows = list(windows_between(shop.first, shop.last))[:3]
    ingest(windows, settings, quiet)
    lake = open_lake(settings)
    raw = b"".join(path.read_bytes() for path in shop_landing.rglob("*.jsonl"))
    ids = {f"U{number:06d}" for number in range(shop.size.users) if b"U%06d" % number in raw}
    assert len(ids) > 500
    text = " ".join(
        " ".join(str(value) for value in pc.unique(column_of.cast(pa.string())).to_pylist() if value)
        for table in (*FEEDS, "duplicates_events", "quarantine", "windows")
        if lake.version(table) >= 0
        for column_of in lake.arrow(table).columns
    )
    text += " ".join(path.read_text() for path in settings.reports.rglob("*.html"))
    plain = b"".join(path.read_bytes() for path in (tmp_path / "lake").rglob("*") if path.is_file())
    assert "P000001" in text
    assert not [user for user in ids if user in text or user.encode() in plain]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "never"], "never"),
        (["--from", "2026-01-05T13:30Z"], "full UTC hour"),
        (["--from", "2026-01-05T13:00Z", "--to", "2026-01-05T13:00Z"], "--to must be after"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_arguments(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = command(tmp_path, tmp_path / "landing", arguments)
    _, error = done.communicate(timeout=60)
    assert done.returncode == 2
    assert said in error.decode()


def command(home: Path, landing: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "EVERGREEN_HOME": str(home),
        "EVERGREEN_MASK_KEY": KEY,
        "EVERGREEN_LANDING": str(landing),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.ingest", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_again_and_again_the_tables_end_as_without_kills(
    shop: ShopSimulator, shop_landing: Path, tmp_path: Path
) -> None:
    windows = list(windows_between(shop.first, shop.last))[:6]
    calm = settings_of(tmp_path / "calm", EVERGREEN_LANDING=str(shop_landing))
    killed = settings_of(tmp_path / "killed", EVERGREEN_LANDING=str(shop_landing))
    for window in windows:
        ingest([window], calm, quiet)
    whole_s = _measured(tmp_path / "whole", shop_landing, windows)
    moments = random.Random(20)
    died = 0
    for number in range(KILLS):
        # a few windows are done so often that the kills fall on empty lakes, on half-done and on unchanged windows
        some = windows[number % 3 * 2 :][:2]
        began = time.monotonic()
        process = command(killed.home, shop_landing, _range(some))
        try:
            process.wait(whole_s * moments.uniform(0.45, 1.0))  # before that it imports
            whole_s = min(whole_s, time.monotonic() - began)  # the machine was busier when it was measured
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        died += process.wait() == -signal.SIGKILL
        lake = open_lake(killed)
        for feed in FEEDS:
            if lake.version(feed) >= 0:
                _whole_windows_only(lake.arrow(feed), contents_of(calm, feed), feed)
    assert died >= KILLS // 2, f"only {died} of {KILLS} kills came before the end"
    for window in windows:
        ingest([window], killed, quiet)
    assert contents(open_lake(killed)) == contents(open_lake(calm))
    assert adds_up(open_lake(killed))


def _range(windows: list[Window]) -> list[str]:
    return ["--from", str(windows[0]), "--to", str(Window(windows[-1].end))]


def _measured(home: Path, landing: Path, windows: list[Window]) -> float:
    begin = time.monotonic()
    done = command(home, landing, _range(windows[:2]))
    out, error = done.communicate(timeout=300)
    assert done.returncode == 0, (out + error).decode()
    return time.monotonic() - begin


def contents_of(settings: Settings, table: str) -> pa.Table:
    return open_lake(settings).arrow(table)


def _whole_windows_only(found: pa.Table, calm: pa.Table, feed: str) -> None:
    """A window has no row yet or each key that landed in it first."""
    expected = counted(calm, "landed_window")
    # a row that lands again later belongs to the later window until the earlier one is there: it may have more
    assert all(rows >= expected[window] for window, rows in counted(found, "landed_window").items()), feed


# -- Online Retail ------------------------------------------------------------------------------------------

DATA = Path(os.environ.get("EVERGREEN_DATA", REPOSITORY.parent / "shared" / "data")) / "online_retail.parquet"
needs_data = pytest.mark.skipif(
    not DATA.is_file(), reason=f"{DATA} is absent: set EVERGREEN_DATA to the folder that has online_retail.parquet"
)


@pytest.fixture(scope="module")
def retail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, tuple[Ingested, ...]]]:
    home = tmp_path_factory.mktemp("retail")
    source = open_source("online-retail", data=str(DATA))
    windows = list(windows_between(source.first, source.last))
    settings = settings_of(home, EVERGREEN_ABSENT_COLUMNS=",".join(sorted(source.absent_columns)))
    source.land(windows, Path(settings.landing))
    done = ingest(windows, settings, quiet)
    yield settings, done


@needs_data
@pytest.mark.slow
def test_every_row_of_online_retail_is_accounted_for(retail: tuple[Settings, tuple[Ingested, ...]]) -> None:
    settings, done = retail
    events = next(one for one in done if one.feed == "events")
    assert events.rows_in == 541_909
    assert events.rows_in == events.published + events.quarantined + events.duplicates
    assert adds_up(open_lake(settings))


@needs_data
@pytest.mark.slow
def test_the_turnover_of_online_retail_is_that_of_the_file(
    retail: tuple[Settings, tuple[Ingested, ...]],
) -> None:
    """Published, quarantined and duplicate rows together have the file's sum of Quantity x UnitPrice."""
    lake = open_lake(retail[0])
    signed = "CASE WHEN event_type = 'return' THEN -1 ELSE 1 END * quantity * price"
    published, duplicates = lake.arrow("events"), lake.arrow("duplicates_events")
    quarantine = lake.arrow("quarantine").filter(pc.equal(lake.arrow("quarantine")["feed"], "events"))
    assert len(published) and len(duplicates) and len(quarantine)
    refused = " + ".join(
        f"coalesce((SELECT sum({signed}) FROM {table}), 0)" for table in ("published", "duplicates", "raws")
    )
    parsed = """SELECT raw ->> 'event_type' AS event_type, CAST(raw ->> 'quantity' AS DOUBLE) AS quantity,
                CAST(raw ->> 'price' AS DOUBLE) AS price FROM quarantine"""
    (total,) = duckdb.sql(f"WITH raws AS ({parsed}) SELECT {refused}").fetchall()[0]
    assert total == pytest.approx(9_747_747.93, abs=0.01)


@needs_data
def test_a_day_of_online_retail_is_accounted_for(settings: Settings) -> None:
    source = open_source("online-retail", data=str(DATA))
    windows = list(windows_between(source.first, source.first + timedelta(hours=10)))
    landed = source.land(windows, Path(settings.landing))
    done = ingest(windows, settings, quiet)
    assert sum(one.rows_in for one in done) == landed > 3000
    assert adds_up(open_lake(settings))
