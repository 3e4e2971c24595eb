"""What a mapping promises: any shop's log is replayed as that shop would have landed it, dirt included."""

from __future__ import annotations

import gzip
import io
import json
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pytest

from pipeline.sources import SourceError, open_source
from pipeline.sources.mapping import MappingError, read_mapping
from pipeline.window import Window, windows_between

ONLINE_RETAIL = Path(__file__).resolve().parents[2] / "shared" / "data" / "online_retail.parquet"

CLICKS = """
[columns]
session = "sid"
item = "product"
[time]
column = "at"
[type]
default = "view"
"""


def rows_of(landing: Path, feed: str) -> list[dict[str, object]]:
    """All landed rows of a feed, in order of window; keys that a row lacks are left out."""
    lines = b"".join(file.read_bytes() for file in sorted((landing / feed).glob("*/*/*.jsonl")))
    return [json.loads(line) for line in lines.splitlines()]


def table_of(landing: Path, feed: str) -> pa.Table:
    """All landed rows of a feed as a table: quicker for a large log."""
    lines = b"".join(file.read_bytes() for file in sorted((landing / feed).glob("*/*/*.jsonl")))
    return pa_json.read_json(io.BytesIO(lines))


def replayed(folder: Path, mapping: str, data: str, name: str = "log.csv") -> tuple[Path, object]:
    """Lands an entire log through a mapping; the landing zone and the source."""
    (folder / "shop.toml").write_text(mapping)
    content = data.encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    source = open_source(str(folder / "shop.toml"), str(folder / name))
    source.land(list(windows_between(source.first, source.last)), folder / "landing")
    return folder / "landing", source


@pytest.mark.slow
def test_every_row_of_online_retail_lands_and_exact_copies_share_an_id(tmp_path: Path) -> None:
    if not ONLINE_RETAIL.exists():
        pytest.skip(f"Online Retail is not at {ONLINE_RETAIL}; see shared/data/README.md")
    source = open_source("online-retail", str(ONLINE_RETAIL))
    source.land(list(windows_between(source.first, source.last)), tmp_path)
    events = table_of(tmp_path, "events")
    assert len(events) == 541_909
    assert len(events) - len(events["event_id"].unique()) == 5_268
    returns = events.filter(pc.equal(events["event_type"], "return"))
    assert len(returns) == 9_288
    assert pc.min(returns["quantity"]).as_py() > 0
    assert events["user_id"].null_count == 135_080
    items = table_of(tmp_path, "items")
    assert len(items.group_by(["item_id", "change_time"]).aggregate([])) == len(items)
    assert source.absent_columns >= {"events.query", "events.rating", "items.brand"}


def test_a_csv_shop_without_prices_and_titles_is_replayed(tmp_path: Path) -> None:
    mapping = """
[columns]
user = "customer"
item = "sku"
quantity = "n"
[time]
column = "when"
formats = ["%d.%m.%Y %H:%M"]
zone = "Europe/Berlin"
[type]
column = "action"
values = { buy = "purchase", look = "view" }
"""
    data = (
        "customer,sku,n,when,action\nann,a1,2,01.07.2024 12:30,buy\nbob,b2,two,01.07.2024 13:10,look\n"
        "bob,b2,1,sometime,wish\n"
    )
    landing, source = replayed(tmp_path, mapping, data, "log.csv.gz")
    first, second, third = rows_of(landing, "events")
    assert (first["event_time"], first["event_type"], first["quantity"]) == (
        "2024-07-01T10:30:00.000Z",
        "purchase",
        2,
    )
    assert (second["quantity"], second["event_type"]) == ("two", "view")  # the door judges it, not the replay
    assert (third["event_time"], third["event_type"]) == ("sometime", "wish")
    assert source.last == datetime(
        2024, 7, 1, 12, tzinfo=UTC
    )  # the row without a time lies beside its neighbour
    assert not (landing / "items").exists()
    assert {"items.title", "items.price", "events.price", "events.session_id"} <= source.absent_columns
    assert "events.user_id" not in source.absent_columns


def test_a_log_with_sessions_alone_uses_the_session_as_the_user(tmp_path: Path) -> None:
    data = (
        '{"sid": 7, "product": "p1", "at": "2024-01-01T10:00:00+02:00"}\n'
        '{"sid": 8, "product": "p2", "at": "2024-01-01T10:00:00Z"}\n'
    )
    landing, source = replayed(tmp_path, CLICKS, data, "clicks.jsonl")
    events = rows_of(landing, "events")
    assert [(e["user_id"], e["session_id"], e["event_time"][:13]) for e in events] == [
        ("7", "7", "2024-01-01T08"),
        ("8", "8", "2024-01-01T10"),
    ]
    assert "events.session_id" not in source.absent_columns


def test_a_window_lands_the_same_bytes_alone_as_in_bulk(tmp_path: Path) -> None:
    data = "sid,product,at\n" + "".join(f"s{i},p{i % 3},2024-01-01 {i % 24:02d}:05\n" for i in range(60))
    landing, source = replayed(tmp_path, CLICKS, data)
    window = Window.parse("2024-01-01T09:00Z")
    again = open_source(str(tmp_path / "shop.toml"), str(tmp_path / "log.csv"))
    again.land([window], tmp_path / "alone")
    path = f"events/{window.folder}/log.jsonl"
    assert (tmp_path / "alone" / path).read_bytes() == (landing / path).read_bytes()
    assert source.land([Window.parse("2025-01-01T00:00Z")], landing) == 0


def test_the_catalogue_changes_only_when_title_or_price_does(tmp_path: Path) -> None:
    mapping = CLICKS.replace('item = "product"', 'item = "product"\ntitle = "name"\nprice = "cost"')
    data = (
        "sid,product,name,cost,at\n"
        "s,p,Lamp,5,2024-01-01 08:00\ns,p,Lamp,5,2024-01-01 09:00\ns,p,,6,2024-01-01 10:00\n"
        "s,p,broken,0,2024-01-01 11:00\ns,p,Lamp,6,2024-01-01 12:00\n"
    )
    items = rows_of(replayed(tmp_path, mapping, data)[0], "items")
    assert [(item["change_time"][11:13], item["title"], item["price"]) for item in items] == [
        ("08", "Lamp", 5),
        ("10", "Lamp", 6),
    ]


def test_numbers_count_as_times_from_an_origin(tmp_path: Path) -> None:
    mapping = CLICKS.replace(
        'column = "at"', 'column = "at"\nunit_seconds = 604800\norigin = "2016-01-04T00:00:00Z"'
    )
    events = rows_of(replayed(tmp_path, mapping, "sid,product,at\ns,p,0\ns,q,2\n")[0], "events")
    assert [event["event_time"] for event in events] == [
        "2016-01-04T00:00:00.000Z",
        "2016-01-18T00:00:00.000Z",
    ]


@pytest.mark.parametrize(
    ("written", "hour"),
    [
        ("2024-07-01 10:05:00", "08"),  # Berlin's, by the mapping
        ("2024-07-01 10:05:00 UTC", "10"),
        ("2024-07-01 10:05:00 Europe/London", "09"),
        ("2024-07-01 10:05:00 -0400", "14"),
        ("2024-07-01 10:05:00.25 +02:00", "08"),
        ("2024-07-01T10:05:00 Z", "10"),
        ("01/Jul/2024:10:05:00 -0100", "11"),
        ("2024-07-01 10:05:00 PM", "20"),
        ("01.07.2024 10:05", "08"),
    ],
)
def test_a_time_is_of_the_zone_that_it_names_and_of_the_mappings_where_it_names_none(
    tmp_path: Path, written: str, hour: str
) -> None:
    formats = '["%Y-%m-%d %I:%M:%S %p", "%d/%b/%Y:%H:%M:%S %z", "%d.%m.%Y %H:%M"]'
    mapping = CLICKS.replace('column = "at"', f'column = "at"\nzone = "Europe/Berlin"\nformats = {formats}')
    events = rows_of(replayed(tmp_path, mapping, f"sid,product,at\ns,p,{written}\n")[0], "events")
    assert [str(event["event_time"])[:16] for event in events] == [f"2024-07-01T{hour}:05"]


def test_a_time_in_a_zone_that_nobody_knows_lands_as_written(tmp_path: Path) -> None:
    data = "sid,product,at\ns,p,2024-07-01 10:05\ns,q,2024-07-01 10:05:00 XYZT\n"
    events = rows_of(replayed(tmp_path, CLICKS, data)[0], "events")
    assert events[1]["event_time"] == "2024-07-01 10:05:00 XYZT"


@pytest.mark.parametrize(
    ("time", "good", "bad"),
    [
        ('column = "at"\nunit_seconds = 1', "1767261600", ("nan", "1e300", "1e14", "-1e12", "1767261600000")),
        ('column = "at"', "2026-01-01 10:00", ("9999-12-31 23:30:00", "0044-03-15 (BC)", "infinity")),
    ],
)
def test_a_time_beyond_any_calendar_lands_as_written_beside_its_neighbour(
    tmp_path: Path, time: str, good: str, bad: tuple[str, ...]
) -> None:
    data = "sid,product,at\n" + "".join(f"s,p,{at}\n" for at in (good, *bad))
    landing, source = replayed(tmp_path, CLICKS.replace('column = "at"', time), data)
    assert [event["event_time"] for event in rows_of(landing, "events")] == ["2026-01-01T10:00:00.000Z", *bad]
    assert [str(window) for window in source.windows] == ["2026-01-01T10:00Z"]


def test_a_row_whose_clock_was_ahead_lands_beside_its_neighbour_for_the_door_to_refuse(tmp_path: Path) -> None:
    times = ("2199-01-01T00:00:00Z", "2024-01-01 10:00", "2199-01-01T00:00:00Z", "2024-01-01 11:00")
    landing, source = replayed(tmp_path, CLICKS, "sid,product,at\n" + "".join(f"s,p,{at}\n" for at in times))
    assert [str(window) for window in source.windows] == ["2024-01-01T10:00Z", "2024-01-01T11:00Z"]
    hours = [landing / "events" / window.folder / "log.jsonl" for window in source.windows]
    assert [len(hour.read_text().splitlines()) for hour in hours] == [3, 1]
    assert rows_of(landing, "events")[0]["event_time"] == "2199-01-01T00:00:00.000Z"


def test_a_log_of_the_future_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"must be of the past.*\['2199-01-01T00:00:00.000Z'\].*time\.unit_seconds"):
        replayed(tmp_path, CLICKS, "sid,product,at\ns,p,2199-01-01\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("session =", "sesion ="), r"columns\.sesion.*is not a key.*session"),
        (('default = "view"', 'default = "looked"'), r"type\.default.*view, cart, purchase.*'looked'"),
        (('item = "product"', ""), r"columns\.item.*is required"),
        (('column = "at"', 'column = "at"\nzone = "Mars/Base"'), r"time\.zone.*IANA.*Mars/Base"),
        (('column = "at"', ""), r"time\.column.*missing"),
        (("[columns]", "[columns"), "is not TOML"),
        (('column = "at"', 'column = "at"\nzone = "Europe"'), r"time\.zone.*IANA.*'Europe'"),
        (('column = "at"', 'column = "at"\nformats = "%d.%m.%Y"'), r"time\.formats.*list.*'%d\.%m\.%Y'"),
        (('column = "at"', 'column = "at"\nunit_seconds = inf'), r"time\.unit_seconds.*above 0.*inf"),
        (('column = "at"', 'column = "at"\norigin = "then"'), r"time\.origin.*ISO 8601.*'then'"),
        (('default = "view"', 'column = 3'), r"type\.column.*text.*3"),
        (('default = "view"', 'default = "view"\nvalues = {click = "view"}'), r"type\.values.*`type\.column`.*click"),
        (('column = "at"', 'column = "at"\norigin = "2024-01-01"'), r"time\.origin.*needs `unit_seconds`.*2024-01-01"),
        (('column = "at"', 'column = "at"\nunit_seconds = 1\nformats = ["%Y"]'), r"time\.formats.*give one.*'%Y'"),
        (('default = "view"', 'default = "view"\nvalues = ["view"]'), r"type\.values.*table.*\['view'\]"),
        (('default = "view"', 'default = "view"\nrules = ["C"]'), r"type\.rules\[0\].*table.*'C'"),
        (
            ('default = "view"', 'default = "view"\nrules = [{column = "kind", type = "cart", equals = 3}]'),
            r"type\.rules\[0\]\.equals.*text.*3",
        ),
    ],
)
def test_a_wrong_mapping_names_key_rule_and_value(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(CLICKS.replace(*change))
    with pytest.raises(MappingError, match=message):
        read_mapping(path)


def test_a_mapping_is_read_with_a_byte_order_mark_and_a_folder_is_told(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(CLICKS, encoding="utf-8-sig")  # as Windows' editors save it
    assert read_mapping(path).columns["item"] == "product"
    with pytest.raises(MappingError, match=r"must be a file"):
        read_mapping(tmp_path)


def test_a_column_that_the_log_lacks_is_told_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(
        MappingError, match=r"columns\.item.*'product'.*mean 'products'.*It has: sid, products, at"
    ):
        replayed(tmp_path, CLICKS, "sid,products,at\ns,p,2024-01-01\n")


def test_a_log_whose_times_cannot_be_read_shows_its_first_values(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"time\.column.*'at'.*first values are \['soon'\]"):
        replayed(tmp_path, CLICKS, "sid,product,at\ns,p,soon\n")


def test_a_format_of_times_that_there_is_not_is_told(tmp_path: Path) -> None:
    mapping = CLICKS.replace('column = "at"', 'column = "at"\nformats = ["%Q"]')
    with pytest.raises(SourceError, match=r"'shop'.*log\.csv.*%Q.*`time\.formats`"):
        replayed(tmp_path, mapping, "sid,product,at\ns,p,soon\n")


class _Shelf(BaseHTTPRequestHandler):
    """Serves a gzipped log as object stores do that were told its encoding, whatever name it is asked by."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(gzip.compress(b"sid,product,at\ns,p,2024-01-01\n"))

    def log_message(self, *said: object) -> None:
        """Says nothing."""


@pytest.mark.parametrize("name", ["log.csv.gz", "log.csv"])
def test_a_log_at_a_url_is_read_whether_its_server_calls_the_packing_an_encoding_or_not(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "shop.toml").write_text(CLICKS)
    with HTTPServer(("127.0.0.1", 0), _Shelf) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        source = open_source(str(tmp_path / "shop.toml"), url, cache=tmp_path / "cache")
        assert source.land(source.windows, tmp_path / "landing") == 1
        server.shutdown()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("http://[half", r"must be one like https://.*'http://\[half'"),
        ("https://xn--a.example..org/log.csv", r"could not be downloaded.*by hand"),
        (".", r"must be one file or an http\(s\) URL; '\.'.*folder together"),
        ("logs/*.csv", r"must be one file.*'logs/\*\.csv'"),
    ],
)
def test_what_is_no_log_is_told_with_the_next_step(tmp_path: Path, data: str, message: str) -> None:
    (tmp_path / "shop.toml").write_text(CLICKS)
    with pytest.raises(SourceError, match=message):
        _ = open_source(str(tmp_path / "shop.toml"), data, cache=tmp_path).first


def test_a_source_that_does_not_exist_is_told_what_exists() -> None:
    with pytest.raises(SourceError, match="`simulated`, `online-retail`"):
        open_source("shopify", "x.csv")
    with pytest.raises(SourceError, match="give its path or URL"):
        open_source("online-retail")
