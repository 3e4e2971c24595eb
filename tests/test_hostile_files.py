"""Files made to hurt: names and links that lead elsewhere, bombs, code that wants to run. All refused, or text."""

from __future__ import annotations

import csv
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import labels
from pipeline.lake import open_lake
from pipeline.schema import ITEMS, LABELS_WANTED_SCHEMA, MESSAGES
from tests.landed import WINDOW, column, csv_lines, event, json_lines, packed, put, read, reasons, settings_of
from tests.small_shop import publish, typed

FOLDER = f"events/{WINDOW.folder}"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def zone(tmp_path: Path) -> Path:
    put(tmp_path, "good.jsonl", json_lines(event(1)))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a\n2026-01-05 all is well.jsonl", r"a\n2026-01-05 all is well.jsonl"),
        (b"a\x1b[2J.jsonl", r"a\x1b[2J.jsonl"),
        ("a\u202elnosj.jsonl".encode(), r"a\u202elnosj.jsonl"),
        (b"a\xff.jsonl", r"a\udcff.jsonl"),
    ],
)
def test_a_name_that_no_log_should_show_is_refused_and_escaped(zone: Path, name: bytes, shown: str) -> None:
    put(zone, os.fsdecode(name), json_lines(event(2)))
    landed = read(zone)
    assert reasons(landed) == [(0, "unusable_name")]
    assert column(landed.refused, "source_file") == [f"{WINDOW.folder}/{shown}"]
    assert column(landed.rows, "event_id") == ["e1"]


def test_names_that_are_long_deep_or_look_like_a_way_out_are_names(zone: Path) -> None:
    for name in ("n" * 249 + ".jsonl", "/".join(["d" * 100] * 12) + "/a.jsonl", r"a\..\..\b.jsonl", "热门 商品.jsonl"):
        put(zone, name, json_lines(event(2)))
    landed = read(zone)
    assert reasons(landed) == [] and len(landed.rows) == 5


def test_linked_folders_are_not_entered(zone: Path) -> None:
    outside = zone.parent / f"{zone.name}-outside"
    outside.mkdir()
    (outside / "private.jsonl").write_bytes(json_lines(event(2)))
    for name, target in (("a", "."), ("b", "."), ("day", ".."), ("out", outside), ("root", "/"), ("self.jsonl",) * 2):
        (zone / FOLDER / name).symlink_to(target)
    landed = read(zone)
    assert sorted(column(landed.refused, "reason")) == ["not_a_file"] * 4 + ["outside_landing"] * 2
    assert column(landed.rows, "event_id") == ["e1"]


def test_of_a_file_without_a_header_every_line_counts_and_nothing_is_kept(zone: Path) -> None:
    put(zone, "a.csv", csv_lines(event(2, user_id="hans"), event(3)).split(b"\n", 1)[1])
    landed = read(zone)
    assert reasons(landed) == [(1, "no_header"), (2, "no_header")]
    assert column(landed.refused, "raw") == [None, None] and min(column(landed.refused, "raw_bytes")) > 20
    assert "hans" not in str(column(landed.refused, "detail"))


@pytest.mark.parametrize(
    ("name", "sign", "said"), [("a.csv", b";", "semicolons"), ("a.csv", b"\t", "tabs"), ("a.tsv", b",", "commas")]
)
def test_a_header_with_another_separator_is_told_by_it(zone: Path, name: str, sign: bytes, said: str) -> None:
    put(zone, name, csv_lines(event(2)).replace(b",", sign))
    landed = read(zone)
    assert reasons(landed) == [(1, "no_header"), (2, "no_header")]
    assert f"separated by {said}; a .csv has commas" in column(landed.refused, "detail")[0]


def test_a_parquet_file_whose_repeated_texts_would_fill_the_memory_is_refused(
    zone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.readers.parquet.MAX_FILE_BYTES", 1 << 20)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["x" * 1000])
    nested = pa.ListArray.from_arrays(pa.array(range(2001), pa.int32()), texts)
    for name, query in (("flat", texts), ("nested", nested)):
        table = pa.table({"event_type": ["search"] * 2000, "event_time": ["t"] * 2000, "query": query})
        path = put(zone, f"{name}.parquet", b"")
        pq.write_table(table, path)
        assert path.stat().st_size < 20_000
    landed = read(zone)
    assert reasons(landed) == [(0, "too_large")] * 2
    assert column(landed.rows, "event_id") == ["e1"]


def test_a_json_array_that_would_be_parsed_into_many_times_its_size_is_refused(
    zone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.readers.json_lines.MAX_DOCUMENT_BYTES", 1 << 16)
    put(zone, "a.json.gz", packed(b"[\n" + b"{},\n" * 30_000 + b"{}]\n", ".gz"))
    put(zone, "b.json", b"[" + json_lines(event(2)) + b"]")
    landed = read(zone)
    assert reasons(landed) == [(0, "too_large")]
    assert column(landed.rows, "event_id") == ["e2", "e1"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst"])
def test_a_file_of_too_many_tiny_rows_is_refused_as_a_whole(
    zone: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("pipeline.readers.gathered.MAX_FILE_ROWS", 1000)
    put(zone, name, packed(b"{}\n" * 1002, Path(name).suffix))
    landed = read(zone)
    assert reasons(landed) == [(0, "too_large")]
    assert column(landed.rows, "event_id") == ["e1"]


def test_a_formula_is_text(zone: Path) -> None:
    title = "=cmd|' /C calc'!A0"
    put(zone, "a.csv", csv_lines({"item_id": "i", "change_time": "t", "title": title}), feed="items")
    assert column(read(zone, ITEMS).rows, "title") == [title]


class Opened:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


READER = """
import sys
seen = []
sys.addaudithook(lambda event, given: seen.append(given) if event == "pickle.find_class" else None)
from pathlib import Path
from tests.landed import read, reasons
landed = read(Path(sys.argv[1]))
print([reason for _, reason in reasons(landed)], len(landed.rows), seen)
"""


def test_no_pickle_is_loaded_from_the_landing_zone(zone: Path) -> None:
    trap = zone / "sprung"
    payload = pickle.dumps(Opened(str(trap)))
    for name in ("a.jsonl", "b.csv", "c.parquet", "d.pkl", "e.json"):
        put(zone, name, payload)
    kind = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": payload}
    fields = [pa.field(name, pa.string()) for name in ("event_id", "event_type", "event_time")]
    schema = pa.schema([*fields, pa.field("query", pa.string(), metadata=kind)])
    pq.write_table(pa.table([["e2"], ["view"], ["t"], ["x"]], schema=schema), put(zone, "f.parquet", b""))
    done = subprocess.run(
        [sys.executable, "-c", READER, str(zone)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=True,
    )
    assert "'unknown_format'" in done.stdout and "'unreadable_parquet'" in done.stdout
    assert done.stdout.strip().endswith(" 2 []"), done.stdout  # the good row, and the row beside the forged type
    assert not trap.exists()


def test_no_cell_of_the_labels_file_is_a_formula_and_what_comes_back_finds_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, formula = settings_of(tmp_path), "=cmd|' /C calc'!A0"
    monkeypatch.setattr(labels, "read_settings", lambda: settings)
    lake, moment = open_lake(settings), WINDOW.start
    rows = {"message_id": [formula], "message_time": [moment.isoformat()], "text": ["@SUM(1+1) my lamp"]}
    publish(lake, MESSAGES, [WINDOW], typed(MESSAGES, pa.table(rows), WINDOW))
    named = {"task": "support", "version": 1, "message_id": formula, "hour": moment, "kind": "label",
             "guess": "-1+1", "confidence": 0.5, "rank": 1}
    lake.append("labels_wanted", pa.Table.from_pylist([named], LABELS_WANTED_SCHEMA))
    file = tmp_path / "wanted.csv"
    assert labels.main(["export", str(file), "--task", "support"]) == 0
    with file.open(newline="") as opened:
        [row] = csv.DictReader(opened)
    assert [row[name] for name in ("message_id", "guess", "text")] == [f"'{formula}", "'-1+1", "'@SUM(1+1) my lamp"]
    file.write_text(f"message_id,kind,value\n\"'{formula}\",label,delivery\n")
    assert labels.main(["import", str(file)]) == 0
    assert column(lake.arrow("messages"), "label") == ["delivery"]
