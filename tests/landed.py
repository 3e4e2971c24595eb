"""Landing files for the tests of the door: events as a shop would write them, in any format and packing."""

from __future__ import annotations

import gzip
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.landing import Landed, land
from pipeline.schema import EVENTS, Feed
from pipeline.settings import Settings, read_settings
from pipeline.window import Window

T0 = datetime(2026, 1, 5, 13, tzinfo=UTC)
WINDOW = Window(T0)
KEY = "a-key-for-tests-a-key-for-tests-a-key"


def event(number: int = 1, **values: object) -> dict[str, object]:
    """One good purchase; a value of None leaves the key out."""
    row = {
        "event_id": f"e{number}",
        "event_type": "purchase",
        "event_time": "2026-01-05T13:10:00Z",
        "user_id": f"user-{number}",
        "item_id": "i1",
        "quantity": 2,
        "price": 3.5,
    } | values
    return {name: value for name, value in row.items() if value is not None}


def json_lines(*rows: dict[str, object] | str) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def csv_lines(*rows: dict[str, object]) -> bytes:
    names = list(rows[0])
    return "".join(
        ",".join(map(str, cells)) + "\n" for cells in [names, *([row[n] for n in names] for row in rows)]
    ).encode()


def parquet(*rows: dict[str, object]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out)
    return out.getvalue()


def packed(content: bytes, packing: str) -> bytes:
    return {
        "": lambda: content,
        ".gz": lambda: gzip.compress(content),
        ".zst": lambda: pa.compress(content, "zstd", asbytes=True),
    }[packing]()


def put(landing: Path, name: str, content: bytes, feed: str = "events", window: Window = WINDOW) -> Path:
    path = landing / feed / window.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(landing: Path, feed: Feed = EVENTS, *windows: Window) -> Landed:
    return land(feed, windows or [WINDOW], str(landing))


def reasons(landed: Landed) -> list[tuple[int, str]]:
    """(source_row, reason) of what landing refused."""
    return sorted(zip(landed.refused["source_row"].to_pylist(), landed.refused["reason"].to_pylist(), strict=True))


def settings_of(home: Path, **values: str) -> Settings:
    return read_settings({"EVERGREEN_HOME": str(home), "EVERGREEN_MASK_KEY": KEY} | values)


def column(table: pa.Table, name: str) -> list[object]:
    return table[name].to_pylist()


def hours_later(hours: int) -> Window:
    return Window(T0 + timedelta(hours=hours))


def counted(table: pa.Table, name: str) -> dict[object, int]:
    """How often each value of a column occurs."""
    counts = pc.value_counts(table[name])
    return {entry["values"]: entry["counts"] for entry in counts.to_pylist()}
