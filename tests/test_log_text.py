"""A log lands as its file spells it: ids, quotes, separators and lines that are no rows are nobody's guess."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from pipeline.ingest import ingest
from pipeline.lake import open_lake
from pipeline.settings import Settings
from pipeline.sources import SourceError, open_source
from pipeline.sources.mapping import MappingError
from pipeline.window import Window

MAPPING = """
[columns]
user = "who"
item = "sku"
title = "name"
price = "paid"
[time]
column = "at"
[type]
default = "purchase"
"""
HEADER = "who,sku,name,paid,at\n"
AT = "2024-01-01T10:05:00Z"
WINDOW = Window.parse("2024-01-01T10:00Z")

Row = dict[str, object]


def landed(folder: Path, data: str | bytes, name: str = "log.csv") -> tuple[list[Row], dict[str, str]]:
    """The events that a log lands in its only hour, in order, and the titles of its items."""
    (folder / "shop.toml").write_text(MAPPING)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    source = open_source(str(folder / "shop.toml"), str(folder / name))
    assert source.last - source.first == timedelta(hours=1)
    source.land(source.windows, folder / "landing")

    def rows_of(feed: str) -> list[Row]:
        file = folder / "landing" / feed / WINDOW.folder / "log.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]

    return rows_of("events"), {str(row["item_id"]): str(row.get("title")) for row in rows_of("items")}


def ids(events: list[Row]) -> list[tuple[object, object]]:
    return [(row.get("user_id"), row.get("item_id")) for row in events]


def test_doubled_quotes_and_lines_in_quotes_are_read_also_where_the_rows_before_have_none(tmp_path: Path) -> None:
    plain = "".join(f"u,plain,lamp,1,{AT}\n" for _ in range(30_000))
    data = f'{HEADER}{plain}v,quoted,"a ""big"", red one",2,{AT}\nw,long,"two\nlines",3,{AT}\n'
    events, titles = landed(tmp_path, data)
    assert len(events) == 30_002
    assert [(row["user_id"], row["item_id"], row["price"]) for row in events[-2:]] == [
        ("v", "quoted", 2), ("w", "long", 3),
    ]
    assert titles == {"plain": "lamp", "quoted": 'a "big", red one', "long": "two\nlines"}


def test_apostrophes_inches_and_a_number_sign_are_text(tmp_path: Path) -> None:
    rows = ("#1,a,'ere we go", "u,b,dog's", "v,c,cats'", '# 9,d,5" lamp')
    events, titles = landed(tmp_path, HEADER + "".join(f"{row},1,{AT}\n" for row in rows))
    assert ids(events) == [("#1", "a"), ("u", "b"), ("v", "c"), ("# 9", "d")]
    assert list(titles.values()) == ["'ere we go", "dog's", "cats'", '5" lamp']


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_separator_is_the_headers_whatever_titles_hold_and_whoever_wrote_it(
    tmp_path: Path, separator: str, mark: str
) -> None:
    header = '"who"' + HEADER.strip()[3:].replace(",", separator)
    title = "a;b;c;d;e;f|g,h,i".replace(separator, " ")
    row = separator.join(["007", "00123", title, "1.5", AT])
    events, titles = landed(tmp_path, f"{mark}{header}\r\n{row}\r\n")
    assert ids(events) == [("007", "00123")] and titles == {"00123": title}


def test_what_a_spreadsheet_writes_before_the_header_is_no_row(tmp_path: Path) -> None:
    events, _ = landed(tmp_path, f"sep=;\n\n who ;sku;;paid;at;name\nann;a;;1;{AT};Lamp\n".replace("\n\n", "\n"))
    assert ids(events) == [("ann", "a")]
    events, _ = landed(tmp_path, f"\n\n{HEADER}bob,b,Lamp,1,{AT}\n")
    assert ids(events) == [("bob", "b")]


def test_json_ids_keep_their_spelling_beside_values_of_other_types(tmp_path: Path) -> None:
    rows = [
        {"who": "007", "sku": "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "name": "NA", "paid": 1.5, "at": AT},
        {"who": 12345678901234567890123, "sku": "2024-01-01 10:00", "paid": "2", "at": AT},
        {"who": "null", "sku": "1e5", "name": ["x"], "paid": {"gross": 3}, "at": AT},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    wanted = [
        ("007", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"), ("12345678901234567890123", "2024-01-01 10:00"),
        ("null", "1e5"),
    ]
    events, titles = landed(tmp_path, "\ufeff" + lines, "log.jsonl")
    assert ids(events) == wanted and [row["price"] for row in events] == [1.5, 2, '{"gross":3}']
    assert titles["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"] == "NA"
    assert ids(landed(tmp_path, json.dumps(rows), "log.json")[0]) == wanted


def test_ids_that_parquet_holds_as_doubles_land_as_the_door_reads_them(tmp_path: Path) -> None:
    out = io.BytesIO()
    frame = pd.DataFrame({"who": [17850.0, None], "sku": [1.0, 2.5], "name": "Lamp", "paid": 2.0, "at": AT})
    frame.to_parquet(out)
    assert ids(landed(tmp_path, out.getvalue(), "log.parquet")[0]) == [("17850", "1"), (None, "2.5")]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("log.jsonl", '{"who": "ann-4711", "sku": "cut off', "malformed_json"),
        ("log.csv", f"ann-4711,a,Lamp, cut off,1,{AT}", "missing_value"),
    ],
)
def test_a_line_that_is_no_row_is_in_the_quarantine_as_it_stands_with_its_user_masked(
    tmp_path: Path, name: str, row: str, reason: str
) -> None:
    good = {"who": "ann-4711", "sku": "a", "name": "Lamp", "paid": 1, "at": AT}
    rows = [json.dumps(good)] if name == "log.jsonl" else [HEADER.strip(), f"ann-4711,a,Lamp,1,{AT},"]
    (tmp_path / "shop.toml").write_text(MAPPING)
    (tmp_path / name).write_text("\n".join([*rows, row]))
    source = open_source(str(tmp_path / "shop.toml"), str(tmp_path / name))
    settings = Settings(
        home=tmp_path, landing=str(tmp_path / "landing"), lake=str(tmp_path / "lake"), artifacts="", mask_key="k" * 64,
        reports=tmp_path / "reports", tracking_uri="", absent_columns=source.absent_columns,
    )
    source.land(source.windows, tmp_path / "landing")
    ingest(source.windows, settings, lambda line: None)
    lake = open_lake(settings)
    assert len(lake.arrow("events")) == 1
    (refused,) = lake.arrow("quarantine").to_pylist()
    assert refused["reason"] == reason
    assert "cut off" in refused["raw"] and "4711" not in refused["raw"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("log.csv", f"{HEADER}u,a,Café,1,{AT}\n".encode("latin-1"), r"UTF-8.*log\.csv.*iconv"),
        ("log.csv", HEADER.encode("utf-16"), r"UTF-8.*log\.csv.*iconv"),
        ("log.csv.zip", b"PK\x03\x04", r"packed as \.gz or \.zst; 'log\.csv\.zip'.*Unpack"),
        ("log.csv.bz2", b"BZh9", r"packed as \.gz or \.zst; 'log\.csv\.bz2'.*Unpack"),
        ("log.xlsx", b"PK\x03\x04", r"'log\.xlsx' is a workbook.*as CSV"),
        ("log.csv", b"", r"log\.csv has no rows"),
        ("log.jsonl", b"\n", r"log\.jsonl has no rows"),
        ("log.csv", f'{HEADER}u,a,"5 inch,1,{AT}\nv,b,y,1,{AT}\nw,c,z,1,{AT}\n'.encode(), r"quote.*'u,a,5 inch.*2 row"),
        ("log.csv", f'{HEADER}u,a,x,,\nv,b,"utf-8{" " * (17 << 20)}'.encode(), r"at most .* bytes; .*line 3.*quote"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_log_that_cannot_be_read_is_refused_with_the_next_step(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        landed(tmp_path, data, name)


def test_a_column_that_the_log_has_twice_is_refused_where_the_mapping_names_it(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match=r"columns\.item.*'sku'.*2 times"):
        landed(tmp_path, f"who,sku,sku,name,paid,at\nu,a,b,Lamp,1,{AT}\n")
    events, _ = landed(tmp_path, f"who,sku,name,paid,at,Place,,place,x,x\nu,a,Lamp,1,{AT},Rome,1,2,3,4\n")
    assert ids(events) == [("u", "a")]


@pytest.mark.parametrize("prices", [('"1,50"', '"2,00"'), ("£1.50", "£2"), ('"1.234,50"', "")])
def test_prices_of_which_none_is_a_number_are_refused_before_anything_lands(
    tmp_path: Path, prices: tuple[str, str]
) -> None:
    data = HEADER + "".join(f"u,a,Lamp,{price},{AT}\n" for price in prices)
    with pytest.raises(SourceError, match=r"columns\.price.*'paid'.*is a number; some values are.*decimal point"):
        landed(tmp_path, data)
    assert not (tmp_path / "landing").exists()


def test_a_log_without_a_price_above_nought_lands_without_a_catalogue(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text(MAPPING)
    (tmp_path / "log.csv").write_text(f"{HEADER}u,a,Lamp,0,{AT}\nu,b,Lamp,,{AT}\n")
    source = open_source(str(tmp_path / "shop.toml"), str(tmp_path / "log.csv"))
    assert source.land(source.windows, tmp_path / "landing") == 2
    assert not (tmp_path / "landing" / "items").exists()
