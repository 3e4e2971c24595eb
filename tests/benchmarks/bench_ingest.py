"""What ingest with all its checks costs, beside DuckDB merely reading the same landing files into Arrow.

One window of the simulated shop, dirt included: JSON lines, a gzipped CSV and a Parquet file. Both are timed in
one process, the reading three times before and after (the median counts), so that a noisy neighbour hits both.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from statistics import median

import duckdb

from pipeline.ingest import ingest
from pipeline.settings import read_settings
from pipeline.sources.simulator import ShopSimulator
from pipeline.window import Window

_BUSY_HOUR = 13  # of the first day: an hour in which the shop has about its mean of events
_KEY = "benchmark-key-benchmark-key-benchmark-key"


def measure_ingest(events: int = 1_000_000, seed: int = 0) -> dict[str, float]:
    """Ingest of one window of about `events` events into an empty lake: `rows_per_s`, `vs_bare_read`, `rows`.

    `vs_bare_read` is the seconds of the bare read divided by the seconds of the ingest (1 would be as fast).
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = read_settings({"EVERGREEN_HOME": folder, "EVERGREEN_MASK_KEY": _KEY})
        rows, window = _land(events, seed, Path(settings.landing))
        _warm_up(seed, Path(folder) / "warm")
        files = Path(settings.landing) / "events" / window.folder
        before = [_bare_read(files) for _ in range(3)]
        begin = time.perf_counter()
        (done,) = ingest([window], settings, report=lambda _: None, feeds=["events"])
        seconds = time.perf_counter() - begin
        bare = median([*before, *(_bare_read(files) for _ in range(3))])
    if done.rows_in != rows:
        raise RuntimeError(f"Ingest must count the {rows} rows that landed; it counted {done.rows_in}.")
    return {
        "rows": rows,
        "seconds": seconds,
        "bare_read_s": bare,
        "rows_per_s": rows / seconds,
        "vs_bare_read": bare / seconds,
    }


def _land(events: int, seed: int, landing: Path) -> tuple[int, Window]:
    """One window with about that many events; returns the rows of its event files."""
    shop = ShopSimulator(seed=seed, hours=1, history_days=1, history_events=events * 21, users=50_000, items=20_000)
    window = Window(shop.first + timedelta(hours=_BUSY_HOUR))
    shop.land([window], landing)
    folder = landing / "events" / window.folder
    return sum(_rows(folder)), window


def _rows(folder: Path) -> list[int]:
    return [duckdb.sql(f"SELECT count(*) FROM {_scan(kind, folder)}").fetchall()[0][0] for kind in _KINDS]


_KINDS = ("json", "csv", "parquet")


def _scan(kind: str, folder: Path) -> str:
    return {
        "json": f"read_json('{folder}/*.jsonl', ignore_errors=true)",
        "csv": f"read_csv('{folder}/*.csv.gz', all_varchar=true)",
        "parquet": f"read_parquet('{folder}/*.parquet')",
    }[kind]


def _bare_read(folder: Path) -> float:
    begin = time.perf_counter()
    connection = duckdb.connect()
    for kind in _KINDS:
        connection.sql(f"SELECT * FROM {_scan(kind, folder)}").to_arrow_table()
    return time.perf_counter() - begin


def _warm_up(seed: int, folder: Path) -> None:
    """Imports Great Expectations and all else: an hourly task pays that once, whatever its rows."""
    settings = read_settings({"EVERGREEN_HOME": str(folder), "EVERGREEN_MASK_KEY": _KEY})
    _, window = _land(2_000, seed, Path(settings.landing))
    ingest([window], settings, report=lambda _: None)


if __name__ == "__main__":
    print(json.dumps(measure_ingest(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)))
