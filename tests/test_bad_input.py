"""Bad input: each case ends in the quarantine or stops its window clearly, and all else is published.

Every case lands beside 30 good rows of the same window and beside a good window before and after it.
"""

from __future__ import annotations

import gzip
import json
import random
import resource
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.ingest import ingest
from pipeline.lake import Lake, open_lake
from pipeline.quality import WindowStopped
from pipeline.settings import Settings
from tests.landed import (
    WINDOW,
    column,
    counted,
    csv_lines,
    event,
    hours_later,
    json_lines,
    packed,
    parquet,
    put,
    settings_of,
)

GOOD = 30
WINDOWS = [hours_later(-1), WINDOW, hours_later(1)]


def good_rows(window_number: int) -> list[dict[str, object]]:
    time = WINDOWS[window_number].start.strftime("%Y-%m-%dT%H:20:00Z")
    return [event(1000 * (window_number + 1) + number, event_time=time) for number in range(GOOD)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = settings_of(tmp_path)
    for number, window in enumerate(WINDOWS):
        put(Path(settings.landing), "good.jsonl", json_lines(*good_rows(number)), window=window)
    return settings


def published(lake: Lake) -> dict[object, int]:
    return counted(lake.arrow("events"), "landed_window")


def log_of(lake: Lake, window: object = WINDOW.start) -> dict[str, int]:
    log = lake.window_log()
    (row,) = log.filter(pc.and_(pc.equal(log["feed"], "events"), pc.equal(log["landed_window"], window))).to_pylist()
    assert row["rows_in"] == row["published"] + row["quarantined"] + row["duplicates"]
    return row


def cut_gzip() -> bytes:
    noise = random.Random(0)
    rows = [event(10_000 + number, basket_id=f"{noise.getrandbits(256):x}") for number in range(2000)]
    whole = gzip.compress(json_lines(*rows))
    return whole[: len(whole) * 2 // 3]


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(3000)


def bad_price(value: float | str) -> bytes:
    return json_lines(event(1), event(2, price=value), event(3))


CASES: dict[str, tuple[str, bytes, set[str], int, int]] = {
    # case: file name, content, reasons allowed, rows published of it, rows refused of it (-1: some)
    "an empty file": ("a.jsonl", b"", set(), 0, 0),
    "an empty CSV": ("a.csv", b"", set(), 0, 0),
    "an empty Parquet file": ("a.parquet", b"", set(), 0, 0),
    "an empty gzip": ("a.jsonl.gz", gzip.compress(b""), set(), 0, 0),
    "a file of another feed": (
        "a.jsonl",
        json_lines(*({"item_id": f"i{n}", "change_time": "2026-01-05T13:00Z", "title": "x"} for n in range(3))),
        {"missing_column"},
        0,
        3,
    ),
    "a CSV of another feed": (
        "a.csv",
        csv_lines({"message_id": "m", "message_time": "2026-01-05T13:00Z", "text": "hello"}),
        {"missing_column"},
        0,
        1,
    ),
    "a Parquet file of another feed": ("a.parquet", parquet({"item_id": "i", "price": 2.0}), {"missing_column"}, 0, 1),
    "binary noise": ("a.jsonl", noise(1), {"invalid_utf8", "malformed_json"}, 0, -1),
    "binary noise as gzip": ("a.jsonl.gz", noise(2), {"corrupt_file"}, 0, 1),
    "binary noise as zstd": ("a.csv.zst", noise(3), {"corrupt_file"}, 0, 1),
    "binary noise as Parquet": ("a.parquet", noise(4), {"unreadable_parquet"}, 0, 1),
    "binary noise inside gzip": ("a.jsonl.gz", gzip.compress(noise(5)), {"invalid_utf8", "malformed_json"}, 0, -1),
    "a cut Parquet file": ("a.parquet", parquet(event(1), event(2))[:-10], {"unreadable_parquet"}, 0, 1),
    "a CSV with a missing column": (
        "a.csv",
        csv_lines(event(1, event_type=None), event(2, event_type=None)),
        {"missing_column"},
        0,
        2,
    ),
    "a CSV with a renamed column": (
        "a.csv",
        csv_lines(*(event(n, event_time=None, event_tme="2026-01-05T13:10:00Z") for n in (1, 2))),
        {"missing_column"},
        0,
        2,
    ),
    "a CSV with an extra column": ("a.csv", csv_lines(event(1, colour="red"), event(2, colour="blue")), set(), 2, 0),
    "a CSV with an extra cell": (
        "a.csv",
        csv_lines(event(1), event(2)).replace(b"user-1", b"user-1,x"),
        {"wrong_number_of_cells"},
        1,
        1,
    ),
    "invalid UTF-8": (
        "a.jsonl",
        json_lines(event(1), event(2), event(3)).replace(b"user-2", b"user-\xff\xfe"),
        {"invalid_utf8"},
        2,
        1,
    ),
    "invalid UTF-8 in a CSV": (
        "a.csv",
        csv_lines(event(1), event(2), event(3)).replace(b"user-2", b"user-\xff\xfe"),
        {"invalid_utf8"},
        2,
        1,
    ),
    "a NaN price": ("a.jsonl", bad_price(float("nan")), {"not_finite"}, 2, 1),
    "an infinite price": ("a.jsonl", bad_price(float("inf")), {"not_finite"}, 2, 1),
    "an infinite price as text": ("a.jsonl", bad_price("-inf"), {"not_finite"}, 2, 1),
    "a price of 1e308": ("a.jsonl", bad_price(1e308), {"price_range"}, 2, 1),
    "a NaN price in Parquet": (
        "a.parquet",
        parquet(event(1), event(2, price=float("nan")), event(3)),
        {"not_finite"},
        2,
        1,
    ),
    "a negative price": ("a.jsonl", bad_price(-1), {"price_range"}, 2, 1),
    "a date in 1970": (
        "a.jsonl",
        json_lines(event(1), event(2, event_time="1970-01-01T00:00:00Z")),
        {"too_late"},
        1,
        1,
    ),
    "a date in 2999": (
        "a.jsonl",
        json_lines(event(1), event(2, event_time="2999-12-31T23:59:59Z")),
        {"future_time"},
        1,
        1,
    ),
    "an event id of 10,000 characters": (
        "a.jsonl",
        json_lines(event(1), event(2, event_id="e" * 10_000)),
        {"event_id_length"},
        1,
        1,
    ),
    "an item id of 10,000 characters": (
        "a.jsonl",
        json_lines(event(1), event(2, item_id="i" * 10_000)),
        {"item_id_length"},
        1,
        1,
    ),
    "a user id of 10,000 characters": (
        "a.jsonl",
        json_lines(event(1), event(2, user_id="u" * 10_000)),
        {"id_too_long"},
        1,
        1,
    ),
    "an unknown event type": (
        "a.jsonl",
        json_lines(event(1), event(2, event_type="stare")),
        {"event_type_unknown"},
        1,
        1,
    ),
    "a file of an unknown format": ("a.xlsx", b"PK", {"unknown_format"}, 0, 1),
    "an id with a NUL": (
        "a.jsonl",
        json_lines(event(1), event(2, item_id="a\0b")),
        {"item_id_control_characters"},
        1,
        1,
    ),
}


# an ingest takes a second, whatever the case: of each kind of fault one is among the fast tests
QUICK = {
    "an empty file", "a file of another feed", "binary noise", "a cut Parquet file", "a NaN price", "an id with a NUL",
}
assert set(CASES) >= QUICK


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_bad_input_ends_in_the_quarantine_and_all_else_is_published(settings: Settings, case: str) -> None:
    name, content, allowed, passed, refused = CASES[case]
    put(Path(settings.landing), name, content)
    ingest(WINDOWS, settings, report=lambda _: None, feeds=["events"])
    lake = open_lake(settings)
    assert published(lake) == {WINDOWS[0].start: GOOD, WINDOW.start: GOOD + passed, WINDOWS[2].start: GOOD}
    log = log_of(lake)
    quarantine = lake.arrow("quarantine")
    assert log["quarantined"] == len(quarantine)
    assert len(quarantine) == refused or (refused == -1 and len(quarantine) > 0)
    assert set(column(quarantine, "reason")) <= allowed
    assert set(column(quarantine, "landed_window")) <= {WINDOW.start}
    assert set(column(quarantine, "source_file")) <= {f"{WINDOW.folder}/{name}"}
    assert all(detail for detail in column(quarantine, "detail"))
    assert f"{WINDOW.folder}/{name}" in json.loads(str(log["manifest"]))


def test_a_truncated_gzip_keeps_the_rows_before_the_cut(settings: Settings) -> None:
    put(Path(settings.landing), "a.jsonl.gz", cut_gzip())
    ingest(WINDOWS, settings, report=lambda _: None, feeds=["events"])
    lake = open_lake(settings)
    assert column(lake.arrow("quarantine"), "reason") == ["truncated_file"]
    kept = log_of(lake)["published"] - GOOD
    assert 1000 < kept < 1500
    assert column(lake.arrow("quarantine"), "source_row") == [kept + 1]
    assert published(lake)[WINDOWS[2].start] == GOOD


def test_a_line_of_50_mb_is_one_refusal_and_is_never_in_memory_as_a_row(settings: Settings) -> None:
    line = b'{"event_type": "view", "user_id": "user-secret", "query": "' + b"x" * (50 << 20) + b'"}\n'
    put(Path(settings.landing), "a.jsonl", json_lines(event(1)) + line + json_lines(event(3)))
    put(Path(settings.landing), "b.csv.gz", packed(csv_lines(event(4)) + line, ".gz"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ingest(WINDOWS, settings, report=lambda _: None, feeds=["events"])
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    lake = open_lake(settings)
    quarantine = lake.arrow("quarantine")
    assert column(quarantine, "reason") == ["line_too_long"] * 2
    assert column(quarantine, "source_row") == [2, 3]
    assert all(len(str(raw)) <= 65536 and "user-secret" not in str(raw) for raw in column(quarantine, "raw"))
    assert column(quarantine, "raw_bytes") == [len(line) - 1] * 2
    assert published(lake)[WINDOW.start] == GOOD + 3
    assert grown_mb < 700, f"ingest grew by {grown_mb:.0f} MB"


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_a_file_that_unpacks_beyond_the_cap_is_refused_as_a_whole(
    settings: Settings, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.unpacking.MAX_FILE_BYTES", 1 << 20)
    rows = json_lines(*(event(number) for number in range(10_000)))
    put(Path(settings.landing), f"bomb.jsonl{packing}", packed(rows, packing))
    put(Path(settings.landing), f"bomb.csv{packing}", packed(b"event_type,event_time\n" * 60_000, packing))
    ingest(WINDOWS, settings, report=lambda _: None, feeds=["events"])
    lake = open_lake(settings)
    assert column(lake.arrow("quarantine"), "reason") == ["too_large"] * 2
    assert published(lake)[WINDOW.start] == GOOD


def test_a_parquet_file_of_too_many_rows_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.readers.parquet.MAX_FILE_ROWS", 100)
    put(Path(settings.landing), "bomb.parquet", parquet(*[event(1)] * 101))
    ingest(WINDOWS, settings, report=lambda _: None, feeds=["events"])
    assert column(open_lake(settings).arrow("quarantine"), "reason") == ["too_large"]


def test_a_link_out_of_the_landing_zone_is_refused(settings: Settings, tmp_path: Path) -> None:
    outside = tmp_path / "outside.jsonl"
    outside.write_bytes(json_lines(event(1)))
    (Path(settings.landing) / "events" / WINDOW.folder / "link.jsonl").symlink_to(outside)
    ingest(WINDOWS, settings, report=lambda _: None, feeds=["events"])
    lake = open_lake(settings)
    assert column(lake.arrow("quarantine"), "reason") == ["outside_landing"]
    assert log_of(lake)["published"] == GOOD


def test_an_item_that_changes_its_price_a_hundred_times_in_an_hour_keeps_every_change(settings: Settings) -> None:
    changes = [
        {
            "change_id": f"c{n}",
            "item_id": "i1",
            "change_time": f"2026-01-05T13:{n // 2:02d}:{n % 2 * 30:02d}Z",
            "price": n + 1,
        }
        for n in range(100)
    ]
    put(Path(settings.landing), "a.jsonl", json_lines(*changes), feed="items")
    ingest(WINDOWS, settings, report=lambda _: None)
    lake = open_lake(settings)
    items = lake.arrow("items").sort_by("change_time")
    assert column(items, "price") == [float(n + 1) for n in range(100)]
    assert published(lake)[WINDOW.start] == GOOD


def test_the_same_file_landed_twice_under_two_names_counts_once(settings: Settings) -> None:
    landing = Path(settings.landing)
    put(landing, "zz-again.jsonl", (landing / "events" / WINDOW.folder / "good.jsonl").read_bytes())
    put(landing, "again.csv", csv_lines(*good_rows(1)))
    put(landing, "later.jsonl", json_lines(*good_rows(1)), window=WINDOWS[2])
    ingest(WINDOWS, settings, report=lambda _: None, feeds=["events"])
    lake = open_lake(settings)
    assert published(lake) == dict.fromkeys((window.start for window in WINDOWS), GOOD)
    assert log_of(lake)["duplicates"] == 2 * GOOD
    assert log_of(lake, WINDOWS[2].start)["duplicates"] == GOOD


def test_a_window_of_noise_alone_is_stopped_and_the_others_are_published(settings: Settings) -> None:
    landing = Path(settings.landing)
    (landing / "events" / WINDOW.folder / "good.jsonl").unlink()
    put(landing, "noise.jsonl", noise(7) * 20)
    with pytest.raises(WindowStopped) as stopped:
        ingest(WINDOWS, settings, report=lambda _: None, feeds=["events"])
    assert str(WINDOW) in str(stopped.value)
    assert {breach.window for breach in stopped.value.breaches} == {WINDOW}
    lake = open_lake(settings)
    assert published(lake) == {WINDOWS[0].start: GOOD, WINDOWS[2].start: GOOD}
    assert set(column(lake.window_log(), "landed_window")) == {WINDOWS[0].start, WINDOWS[2].start}
    assert len(lake.arrow("quarantine")) == 0


def test_an_hour_whose_files_are_gone_keeps_its_rows_until_an_empty_file_withdraws_them(settings: Settings) -> None:
    ingest(WINDOWS, settings, report=lambda _: None, feeds=["events"])
    lake, folder = open_lake(settings), Path(settings.landing) / "events" / WINDOW.folder
    shutil.rmtree(folder)
    for windows in (WINDOWS, [WINDOW]):
        with pytest.raises(WindowStopped, match="1 of 1 files that it was published from are gone"):
            ingest(windows, settings, report=lambda _: None, feeds=["events"])
        assert published(lake) == dict.fromkeys((window.start for window in WINDOWS), GOOD)
        assert log_of(lake)["published"] == GOOD
    empty = put(Path(settings.landing), "none.jsonl", b"")
    for files in (1, 0):  # an hour without rows may lose its files
        ingest([WINDOW], settings, report=lambda _: None, feeds=["events"])
        assert published(lake) == {WINDOWS[0].start: GOOD, WINDOWS[2].start: GOOD}
        assert log_of(lake)["files"] == files
        empty.unlink(missing_ok=True)


def test_what_is_left_of_an_hours_files_replaces_no_rows_and_another_file_does(settings: Settings) -> None:
    marker = put(Path(settings.landing), "done.txt", b"ok")
    ingest([WINDOW], settings, report=lambda _: None, feeds=["events"])
    marker.with_name("good.jsonl").unlink()
    with pytest.raises(WindowStopped, match="1 of 2 files that it was published from are gone"):
        ingest([WINDOW], settings, report=lambda _: None, feeds=["events"])
    assert published(open_lake(settings)) == {WINDOW.start: GOOD}
    marker.with_name("corrected.jsonl").write_bytes(json_lines(*good_rows(1)[:3]))
    ingest([WINDOW], settings, report=lambda _: None, feeds=["events"])
    assert published(open_lake(settings)) == {WINDOW.start: 3}


def test_a_stopped_window_leaves_what_it_had_published_before(settings: Settings) -> None:
    ingest(WINDOWS, settings, report=lambda _: None, feeds=["events"])
    lake = open_lake(settings)
    before, log = lake.version("events"), lake.window_log()
    put(Path(settings.landing), "noise.jsonl", noise(8) * 50)
    with pytest.raises(WindowStopped):
        ingest([WINDOW], settings, report=lambda _: None, feeds=["events"])
    assert lake.version("events") == before
    assert lake.window_log().equals(log)
    assert len(lake.arrow("quarantine")) == 0
    page = settings.reports / "quality" / "events" / "2026-01-05" / "13.html"
    assert "unreadable_share_critical" in page.read_text()


def test_a_stopped_feed_does_not_stop_the_others(settings: Settings) -> None:
    landing = Path(settings.landing)
    put(landing, "noise.jsonl", noise(9) * 20, feed="items")
    put(landing, "good.jsonl", json_lines({"text": "hello", "message_time": "2026-01-05T13:00Z"}), feed="messages")
    with pytest.raises(WindowStopped, match="items"):
        ingest([WINDOW], settings, report=lambda _: None)
    lake = open_lake(settings)
    assert published(lake) == {WINDOW.start: GOOD}
    assert len(lake.arrow("messages")) == 1


def test_raw_text_in_the_quarantine_is_cut_and_masked(settings: Settings) -> None:
    long = json.dumps(event(1, event_type="stare", query="x" * 100_000, user_id="user-secret"))
    put(Path(settings.landing), "a.jsonl", json_lines(long, '{"user_id": "user-secret", "mail": "a.b@c.example"'))
    ingest([WINDOW], settings, report=lambda _: None, feeds=["events"])
    quarantine: pa.Table = open_lake(settings).arrow("quarantine").sort_by("source_row")
    assert column(quarantine, "raw_bytes") == [len(long), 50]
    assert len(str(quarantine["raw"][0])) == 65536
    assert "secret" not in str(column(quarantine, "raw")) + str(column(quarantine, "detail"))
    assert "c.example" not in str(column(quarantine, "raw"))
