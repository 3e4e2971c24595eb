"""Table work over long history by DuckDB and by Spark, on one machine: whether the rows are equal, and what each takes.

The log is Online Retail's (shared/data), published as the door would leave it; larger ones are the same log several
times with other customers, so that histories stay as long as a shop's are and grow in number. The work is what a
retrain asks of whole tables: the examples of all rows, the catalogue's newest words, what was chosen each day, when
each item was seen last, each item's days. Both engines run it in this process, one after the other, DuckDB first; the
time of Spark's start is apart. CPU-seconds are of this process and of Spark's Java.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import duckdb
import numpy as np
import psutil
import pyarrow as pa

from pipeline.engine import connected
from pipeline.judging import judge_rows
from pipeline.judging_on_spark import judge_rows_on_spark
from pipeline.lake import Lake
from pipeline.locking import file_locks
from pipeline.quality import EXPECTATIONS, read_suites
from pipeline.schema import EVENTS, ITEMS
from pipeline.snapshot import Snapshot
from pipeline.tasks import demand_series, known_items, recommend_examples
from pipeline.window import Window
from tests.benchmarks.bench_checks import random_events
from tests.benchmarks.shop_log import DATA
from tests.small_shop import publish
from tests.test_engine import WORK, comparable

TIMES = tuple(int(times) for times in os.environ.get("TIMES", "1").split())
SPARK = (
    "--master local[2] --driver-memory 4g --conf spark.ui.enabled=false --conf spark.sql.shuffle.partitions=8 "
    "pyspark-shell"
)
_LOG = """
    SELECT row_number() OVER (ORDER BY InvoiceDate, InvoiceNo, StockCode) AS number, StockCode AS item_id,
           CustomerID::VARCHAR AS user_id, InvoiceDate AT TIME ZONE 'UTC' AS event_time, Quantity::DOUBLE AS quantity,
           UnitPrice AS price, Description AS title
    FROM read_parquet('{data}') WHERE CustomerID IS NOT NULL AND Quantity > 0 AND UnitPrice > 0
"""


@dataclass(frozen=True)
class Run:
    """What an engine made of the work, and what it took."""

    rows: dict[str, list[dict]]
    seconds: float
    cpu_seconds: float


def measure_spark() -> dict[str, float]:
    """`spark.equal` (1: all rows of all work), and for each size what both took."""
    figures, equal = {}, 1.0
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder, patch.dict(os.environ, PYSPARK_SUBMIT_ARGS=SPARK):
        began = time.monotonic()
        connected("spark").raw_sql("SELECT 1").collect()
        figures["spark.start_seconds"] = time.monotonic() - began
        for times in TIMES:
            home = Path(folder) / str(times)
            lake = published(home, times)
            events = len(lake.arrow("events", columns=["event_id"]))
            one, other = (done_by(engine, home) for engine in ("duckdb", "spark"))
            wrong = [name for name in WORK if one.rows[name] != other.rows[name]]
            print(f"{events} events: {one.seconds:.1f} s and {other.seconds:.1f} s; differ: {wrong}", flush=True)
            equal = min(equal, float(not wrong))
            figures |= {
                f"spark.events_x{times}": events,
                f"spark.duckdb_seconds_x{times}": one.seconds, f"spark.seconds_x{times}": other.seconds,
                f"spark.speed_ratio_x{times}": one.seconds / other.seconds,  # above 1 Spark is the quicker one
                f"spark.cpu_ratio_x{times}": one.cpu_seconds / other.cpu_seconds,
            }
    return {"spark.equal": equal, **figures}


def measure_checks(rows: int = 1_000_000, seed: int = 0) -> dict[str, float]:
    """A window's row rules by Great Expectations on pandas and on Spark: whether they find the same rows, and seconds.

    `checks.pandas_bytes_per_row` is what the process grew by beyond the Arrow rows, at its highest.
    """
    rules = read_suites(EXPECTATIONS / "events.json").rows
    events, unknown = random_events(rows, np.random.default_rng(seed))
    events = events.append_column("item_known", pa.array(~unknown.to_numpy(zero_copy_only=False)))
    events = events.append_column("user_width", pa.nulls(rows, pa.float64()))
    with patch.dict(os.environ, PYSPARK_SUBMIT_ARGS=SPARK):
        for judge in (judge_rows, judge_rows_on_spark):  # imports, and Spark's start
            judge(rules, events.slice(0, 1_000))
        before, began = peak_memory(), time.monotonic()
        here = judge_rows(rules, events)
        seconds, grown = time.monotonic() - began, peak_memory() - before
        began = time.monotonic()
        there = judge_rows_on_spark(rules, events)
        spark_seconds = time.monotonic() - began
    found = [{one.rule.name: sorted(one.failed.tolist()) for one in judged} for judged in (here, there)]
    return {
        "checks.rows": rows, "checks.equal": float(found[0] == found[1]), "checks.pandas_seconds": seconds,
        "checks.spark_seconds": spark_seconds, "checks.pandas_bytes_per_row": grown / rows,
        "checks.arrow_bytes_per_row": events.nbytes / rows,
    }


def published(home: Path, times: int) -> Lake:
    """A lake with the log so many times, each with customers of its own."""
    lake = Lake(str(home / "lake"), file_locks(home / "locks"))
    sql = duckdb.connect()
    sql.execute("SET TimeZone = 'UTC'")
    sql.execute(f"CREATE TEMP TABLE log AS {_LOG.format(data=DATA / 'online_retail.parquet')}")
    begun = sql.sql("SELECT date_trunc('day', min(event_time)) AS day FROM log").to_arrow_table()["day"]
    first = Window(begun[0].as_py())
    events = sql.sql(f"""
        SELECT 'e' || copy || '-' || number AS event_id, 'purchase' AS event_type, event_time, item_id,
               md5(user_id || copy) AS user_id, quantity, price, date_trunc('hour', event_time) AS hour
        FROM log, range({times}) AS copies(copy)
    """).to_arrow_table()
    items = sql.sql("""
        SELECT 'c' || number AS change_id, item_id, event_time AS change_time, title, price,
               date_trunc('hour', event_time) AS hour
        FROM log WHERE number % 5 = 0
    """).to_arrow_table()
    for feed, rows in ((ITEMS, items), (EVENTS, events)):
        publish(lake, feed, [first], _landed(rows, feed.table_schema, first))
    return lake


def _landed(rows: pa.Table, schema: pa.Schema, window: Window) -> pa.Table:
    """The rows with all columns of the feed, landed in one window: what the work reads lies elsewhere."""
    same = {"landed_window": window.start, "landed_date": window.start.date(), "source_file": "a"}
    landed = {name: pa.array([value] * len(rows)) for name, value in same.items()}
    landed["source_row"] = pa.array(range(len(rows)))
    columns = {name: rows[name] for name in rows.column_names} | landed
    return pa.table({
        field.name: columns.get(field.name, pa.nulls(len(rows), field.type)) for field in schema
    }).cast(schema)


def done_by(engine: str, home: Path) -> Run:
    """All of the work on the lake below `home` by one engine."""
    began, spent = time.monotonic(), _cpu_seconds()
    lake = Lake(str(home / "lake"), file_locks(home / "locks"), engine=engine)
    tables = Snapshot(lake, {table: lake.version(table) for table in ("events", "items")})
    with (
        patch.object(recommend_examples, "_FEW_USERS", 0), patch.object(known_items, "_MOST_IDS_IN_FILTER", 0),
        patch.object(demand_series, "_MOST_IDS_IN_FILTER", 0),  # the log's size, not its shape, decides otherwise
    ):
        made = {name: work(tables) for name, work in WORK.items()}
    seconds, cpu_seconds = time.monotonic() - began, _cpu_seconds() - spent
    return Run({name: comparable(rows) for name, rows in made.items()}, seconds, cpu_seconds)


def peak_memory() -> float:
    """The highest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _cpu_seconds() -> float:
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(one.user + one.system for one in times)
