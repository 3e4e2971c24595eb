"""The landing zone's promises: every row comes out once, as text with its place or refused with a reason."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cleaning import FAULTS_SCHEMA
from pipeline.landing import LandingZone, quarantined
from pipeline.masking import Mask
from pipeline.schema import EVENTS, ITEMS
from tests.landed import (
    KEY,
    WINDOW,
    column,
    csv_lines,
    event,
    hours_later,
    json_lines,
    packed,
    parquet,
    put,
    read,
    reasons,
)

WRITERS = {"jsonl": json_lines, "ndjson": json_lines, "csv": csv_lines, "parquet": parquet}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_and_packing_gives_the_same_rows(tmp_path: Path, ending: str, packing: str) -> None:
    rows = [event(1), event(2, item_id="i,2"), event(3, price=0.25)]
    if ending == "csv":
        rows[1]["item_id"] = '"i,2"'
    put(tmp_path, f"a.{ending}{packing}", packed(WRITERS[ending](*rows), packing))
    landed = read(tmp_path)
    assert reasons(landed) == []
    assert column(landed.rows, "event_id") == ["e1", "e2", "e3"]
    assert column(landed.rows, "item_id") == ["i1", "i,2", "i1"]
    assert column(landed.rows, "price") == ["3.5", "3.5", "0.25"]
    assert column(landed.rows, "session_id") == [None] * 3
    assert column(landed.rows, "source_file") == [f"2026-01-05/13/a.{ending}{packing}"] * 3
    first = 2 if ending == "csv" else 1  # a CSV's first line is its header
    assert column(landed.rows, "source_row") == [first, first + 1, first + 2]


def test_rows_come_in_order_of_window_file_and_row_whatever_the_format(tmp_path: Path) -> None:
    put(tmp_path, "b.csv", csv_lines(event(3), event(4)))
    put(tmp_path, "c.jsonl", json_lines(event(5)))
    put(tmp_path, "a.jsonl", json_lines(event(1), event(2)))
    put(tmp_path, "d.parquet", parquet(event(6)))
    put(tmp_path, "a.jsonl", json_lines(event(7)), window=hours_later(1))
    landed = read(tmp_path, EVENTS, WINDOW, hours_later(1))
    assert column(landed.rows, "event_id") == ["e1", "e2", "e3", "e4", "e5", "e6", "e7"]
    assert column(landed.rows, "landed_window") == [WINDOW.start] * 6 + [hours_later(1).start]
    assert landed.raw([0, 2, 5])[1].startswith("e3,purchase")
    assert '"event_id": "e6"' in landed.raw([0, 2, 5])[2]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("1.10", "1.10"),
        ("1E5", "1E5"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("18446744073709551616", "18446744073709551616"),
        ("7", "7"),
        ("1e308", "1e308"),
        ("NaN", "NaN"),
        ("-0.0", "-0.0"),
    ],
)
def test_a_json_number_in_a_text_column_keeps_its_spelling(tmp_path: Path, number: str, text: str) -> None:
    put(tmp_path, "a.jsonl", b'{"event_type": "view", "event_time": "t", "item_id": ' + number.encode() + b"}\n")
    assert column(read(tmp_path).rows, "item_id") == [text]


@pytest.mark.parametrize("number", ["1e308", "-1e308", "NaN", "Infinity", "0.1", "12345678901234567"])
def test_a_json_number_in_a_numeric_column_keeps_its_value(tmp_path: Path, number: str) -> None:
    put(tmp_path, "a.jsonl", b'{"event_type": "view", "event_time": "t", "price": ' + number.encode() + b"}\n")
    (text,) = column(read(tmp_path).rows, "price")
    assert repr(float(str(text))) == repr(float(number))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"event_type": "view", "event_time": "t", "item_id": {"id": 1}}', "nested_value"),
        ('{"event_type": "view", "event_time": "t", "price": [1, 2]}', "nested_value"),
        ('{"event_type": "view", "event_time": "t", "item_id": "a", "item_id": "b"}', "duplicate_key"),
        ('{"event_type": "view", "event_time": "t", "other": 1, "other": 2}', "duplicate_key"),
        ('{"event_type": "view", "event_time": "t"', "malformed_json"),
        ('{"event_type": "view", "event_time": "a\x00b"}', "malformed_json"),
        ('[{"event_type": "view"}]', "malformed_json"),
        ("42", "malformed_json"),
        ('{"event_type": "view", "event_time": "\\ud800"}', "malformed_json"),
    ],
)
def test_a_bad_json_line_is_refused_and_its_neighbours_are_read(tmp_path: Path, line: str, reason: str) -> None:
    put(tmp_path, "a.jsonl", json_lines(event(1), line, event(3)))
    landed = read(tmp_path)
    assert reasons(landed) == [(2, reason)]
    assert column(landed.rows, "event_id") == ["e1", "e3"]
    assert column(landed.rows, "source_row") == [1, 3]


def test_a_title_that_begins_with_a_bracket_is_a_title(tmp_path: Path) -> None:
    row = {"item_id": "i", "change_time": "t", "title": "[Sale] mug", "description": "{x}"}
    put(tmp_path, "a.jsonl", json_lines(row), feed="items")
    landed = read(tmp_path, ITEMS)
    assert column(landed.rows, "title") == ["[Sale] mug"]
    assert reasons(landed) == []


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_byte_order_mark_line_ends_and_blank_lines_are_no_content(tmp_path: Path, ending: str) -> None:
    content = WRITERS[ending](event(1), event(2)).replace(b"\n", b"\r\n\r\n").rstrip()
    put(tmp_path, f"a.{ending}", b"\xef\xbb\xbf" + content)
    landed = read(tmp_path)
    assert column(landed.rows, "event_id") == ["e1", "e2"]
    assert column(landed.rows, "price") == ["3.5", "3.5"]
    assert reasons(landed) == []


@pytest.mark.parametrize("separator", [b"", b",\n"])
def test_a_json_array_is_as_good_as_json_lines(tmp_path: Path, separator: bytes) -> None:
    lines = json_lines(event(1, item_id=1.10), event(2)).rstrip().split(b"\n")
    put(tmp_path, "a.json", b"[" + (separator or b", ").join(lines) + b"]")
    put(tmp_path, "b.json", json_lines(event(3)))
    landed = read(tmp_path)
    assert column(landed.rows, "event_id") == ["e1", "e2", "e3"]
    assert column(landed.rows, "source_row") == [1, 2, 1]


def test_half_an_emoji_in_a_json_array_costs_its_own_element_only(tmp_path: Path) -> None:
    put(tmp_path, "a.json", json.dumps([event(1), event(2, query="lamp \ud83d"), event(3, query="灯 💡")]).encode())
    landed = read(tmp_path)
    assert reasons(landed) == [(2, "malformed_json")]
    assert str(landed.refused["raw"][0]).endswith('"query": "lamp \\ud83d"}')
    assert column(landed.rows, "query") == [None, "灯 💡"]
    assert '"query": "灯 💡"' in landed.raw([1])[0]


def test_a_number_of_5000_digits_in_a_file_of_another_feed_is_refused_like_its_row(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", json_lines('{"item_id": "i", "n": %s}' % ("9" * 5_000)))
    put(tmp_path, "b.jsonl", json_lines(event(3)))
    landed = read(tmp_path)
    assert reasons(landed) == [(1, "missing_column")]
    assert column(landed.rows, "event_id") == ["e3"]


def test_a_quoted_line_end_is_inside_its_cell(tmp_path: Path) -> None:
    content = b'event_type,event_time,query\nsearch,t1,"red\nshoes ""42"""\nview,t2,\nsearch,t3,"a\rb"\n'
    put(tmp_path, "a.csv", content)
    landed = read(tmp_path)
    assert column(landed.rows, "query") == ['red\nshoes "42"', None, "a\rb"]
    assert column(landed.rows, "source_row") == [2, 4, 5]


def test_a_quote_that_is_never_closed_costs_its_own_line_only(tmp_path: Path) -> None:
    lines = [
        b"event_type,event_time,query",
        b'search,t1,"red shoes',
        *(b"view,t%d," % n for n in range(5)),
        b'search,t9,"x"',
    ]
    put(tmp_path, "a.csv", b"\n".join(lines) + b"\n")
    landed = read(tmp_path)
    assert reasons(landed) == [(2, "malformed_csv")]
    assert column(landed.rows, "event_time") == ["t0", "t1", "t2", "t3", "t4", "t9"]


def test_a_line_with_another_number_of_cells_is_refused_by_its_number(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", b"event_type,event_time\nview,t1\nview\nview,t2,x\nview,t3\n")
    landed = read(tmp_path)
    assert reasons(landed) == [(3, "wrong_number_of_cells"), (4, "wrong_number_of_cells")]
    assert column(landed.rows, "source_row") == [2, 5]
    assert sorted(column(landed.refused, "raw")) == ["view", "view,t2,x"]


def test_a_csv_whose_lines_end_with_carriage_returns_alone_is_one_refusal(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", csv_lines(event(1), event(2)).replace(b"\n", b"\r"))
    put(tmp_path, "b.csv", csv_lines(event(3)))
    landed = read(tmp_path)
    assert reasons(landed) == [(0, "malformed_csv")]
    assert column(landed.refused, "raw") == [None]
    assert column(landed.rows, "event_id") == ["e3"]


def test_of_a_csv_line_whose_persons_cannot_be_found_nothing_is_kept(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", b"event_type,event_time,user_id\nview,t1,hans\rview,t2,anna\nview,t3,u\n")
    put(tmp_path, "b.csv", b"user_id,item_id\nhans\ranna,i\n")
    landed = read(tmp_path)
    assert reasons(landed) == [(2, "malformed_csv"), (2, "missing_column")]
    assert column(landed.refused, "raw") == [None, None]
    assert sorted(column(landed.refused, "raw_bytes")) == [12, 25]
    assert column(landed.rows, "event_time") == ["t3"]


@pytest.mark.parametrize(
    "content", [b"%s,event_type,event_time\nx,view,t\n", b"user_id,event_type,event_time\n%s,view\n"]
)
def test_a_long_cell_is_shorter_than_a_line_that_is_too_long(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "a.csv", content % (b"x" * 200_000))
    put(tmp_path, "b.csv", csv_lines(event(3)))
    landed = read(tmp_path)
    assert "e3" in column(landed.rows, "event_id")
    assert [reason for _, reason in reasons(landed)] in ([], ["wrong_number_of_cells"])


def test_tabs_separate_the_cells_of_a_tsv(tmp_path: Path) -> None:
    put(tmp_path, "a.tsv", b"event_type\tevent_time\tquery\nsearch\tt1\tred, blue\n")
    assert column(read(tmp_path).rows, "query") == ["red, blue"]


@pytest.mark.parametrize("ending", WRITERS)
def test_a_column_that_no_feed_has_is_left_out_and_named(tmp_path: Path, ending: str) -> None:
    put(tmp_path, f"a.{ending}", WRITERS[ending](event(1, colour="red"), event(2, colour="blue")))
    landed = read(tmp_path)
    assert column(landed.rows, "event_id") == ["e1", "e2"]
    assert landed.warnings[WINDOW] == (f"2026-01-05/13/a.{ending} has columns that are not used: colour",)


def test_a_column_that_is_a_customers_address_is_not_named(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", json_lines(event(1, **{"ann@mail.example": 1}), event(2, **{"+49 30 5557120": 1})))
    said = "2026-01-05/13/a.jsonl has columns that are not used: [e-mail], [phone]"
    assert read(tmp_path).warnings == {WINDOW: (said,)}


@pytest.mark.parametrize("ending", WRITERS)
def test_a_file_without_a_required_column_is_refused_row_by_row_with_near_names(tmp_path: Path, ending: str) -> None:
    rows = [event(n, event_time=None, event_tme="2026-01-05T13:10:00Z") for n in (1, 2)]
    put(tmp_path, f"a.{ending}", WRITERS[ending](*rows))
    put(tmp_path, "b.jsonl", json_lines(event(3)))
    landed = read(tmp_path)
    assert [reason for _, reason in reasons(landed)] == ["missing_column"] * 2
    assert all("event_time" in detail and "near: event_tme" in detail for detail in column(landed.refused, "detail"))
    assert column(landed.rows, "event_id") == ["e3"]


def test_whole_numbers_that_parquet_holds_as_floats_are_whole_ids(tmp_path: Path) -> None:
    table = pa.table({"event_type": ["view", "view"], "event_time": ["a", "b"], "item_id": [17850.0, None]})
    path = put(tmp_path, "a.parquet", b"")
    pq.write_table(table, path)
    assert column(read(tmp_path).rows, "item_id") == ["17850", None]


def test_parquet_times_come_as_utc_and_nested_values_are_refused(tmp_path: Path) -> None:
    times = pa.array([0, 1], pa.timestamp("ns", tz="Europe/Berlin"))
    table = pa.table({"event_type": ["view", "view"], "event_time": times, "item_id": [["a"], None]})
    pq.write_table(table, put(tmp_path, "a.parquet", b""))
    landed = read(tmp_path)
    assert column(landed.rows, "event_time") == ["1970-01-01 00:00:00.000000Z"]
    assert reasons(landed) == [(1, "nested_value")]


FAR = pa.array([2**62, -(2**62)], pa.timestamp("us", "UTC"))  # the years 148,000 and -144,000


@pytest.mark.parametrize(
    ("columns", "refused"),
    [
        ({"item_id": [["a"], None], "event_time": FAR}, ["nested_value"]),
        ({"item_id": pa.array([[FAR[0]], None], pa.list_(FAR.type))}, ["nested_value"]),
        ({"event_type": None, "event_time": FAR}, ["missing_column"] * 2),
        ({"event_type": None, "day": pa.array([2**31 - 1, 0], pa.int32()).view(pa.date32())}, ["missing_column"] * 2),
        ({"event_type": None, "at": pa.array([1, 2], pa.timestamp("us", "Foo/Bar"))}, ["missing_column"] * 2),
        ({"item_id": pa.array([b"a", b"\xff"]).view(pa.string())}, ["nested_value"]),
        ({"item_id": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((2, 2)))}, ["nested_value"] * 2),
    ],
)
def test_parquet_values_that_python_has_not_are_refused_or_text(
    tmp_path: Path, columns: dict[str, object], refused: list[str]
) -> None:
    table = {"event_type": ["view", "view"], "event_time": ["t", "t"], "user_id": ["hans", "anna"]} | columns
    content = pa.table({name: values for name, values in table.items() if values is not None})
    pq.write_table(content, put(tmp_path, "a.parquet", b""))
    put(tmp_path, "b.jsonl", json_lines(event(3)))
    landed = read(tmp_path)
    assert [reason for _, reason in reasons(landed)] == refused
    assert len(landed.rows) == 3 - len(refused)
    kept = quarantined(EVENTS, landed, FAULTS_SCHEMA.empty_table(), Mask(KEY))["raw"]
    assert all("user_id" in str(raw) and "hans" not in str(raw) and "anna" not in str(raw) for raw in kept)


def test_a_parquet_uuid_is_its_text(tmp_path: Path) -> None:
    one = uuid.UUID("925d8731-e4c6-4fe9-bf25-e22a669fc170")
    table = pa.table({"event_type": ["view"], "event_time": ["t"], "event_id": pa.array([one.bytes], pa.uuid())})
    pq.write_table(table, put(tmp_path, "a.parquet", b""), store_schema=False)
    assert column(read(tmp_path).rows, "event_id") == ["925d8731-e4c6-4fe9-bf25-e22a669fc170"]


def test_hidden_and_unfinished_files_are_passed_over(tmp_path: Path) -> None:
    for name in (".a.jsonl", "_SUCCESS", "b.jsonl.tmp", "c.jsonl.part", ".a.jsonl.77.tmp"):
        put(tmp_path, name, json_lines(event(1)))
    landed = read(tmp_path)
    assert len(landed.rows) == len(landed.refused) == 0
    assert landed.manifests == {WINDOW: {}}


def test_a_file_with_an_unknown_ending_is_one_refusal(tmp_path: Path) -> None:
    put(tmp_path, "a.xlsx", b"PK1234")
    landed = read(tmp_path)
    assert reasons(landed) == [(0, "unknown_format")]
    assert column(landed.refused, "raw_bytes") == [6]


def test_the_manifest_has_every_file_with_length_and_hash(tmp_path: Path) -> None:
    content = packed(json_lines(event(1)), ".gz")
    put(tmp_path, "a.jsonl.gz", content)
    put(tmp_path, "empty.csv", b"")
    assert read(tmp_path).manifests[WINDOW] == {
        "2026-01-05/13/a.jsonl.gz": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "2026-01-05/13/empty.csv": {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()},
    }


def test_a_link_out_of_the_landing_zone_is_refused_and_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_bytes(json_lines(event(1)))
    put(tmp_path / "zone", "good.jsonl", json_lines(event(2)))
    (tmp_path / "zone" / "events" / WINDOW.folder / "link.jsonl").symlink_to(secret)
    landed = read(tmp_path / "zone")
    assert reasons(landed) == [(0, "outside_landing")]
    assert column(landed.rows, "event_id") == ["e2"]
    assert "2026-01-05/13/link.jsonl" not in landed.manifests[WINDOW]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path, "good.jsonl", json_lines(event(2)))
    os.mkfifo(tmp_path / "events" / WINDOW.folder / "pipe.jsonl")
    landed = read(tmp_path)
    assert reasons(landed) == [(0, "not_a_file")]
    assert len(landed.rows) == 1


def test_files_that_lie_elsewhere_are_of_no_window(tmp_path: Path) -> None:
    for folder in ("2026-01-05", "2026-01-05/1", "2026-01-05/25", "elsewhere"):
        path = tmp_path / "events" / folder / "a.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(json_lines(event(1)))
    windows = [hours_later(hours) for hours in range(-13, 11)]
    assert LandingZone(str(tmp_path)).files("events", windows) == []


def test_a_bucket_is_read_like_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", json_lines(event(1)))
    from pipeline.landing import land

    assert column(land(EVENTS, [WINDOW], f"file://{tmp_path}").rows, "event_id") == ["e1"]
