"""What DuckDB and Spark make of the same expressions over the same tables: equal rows, to the last digit."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.engine import duckdb_connection, microseconds, table_of
from pipeline.lake import Lake
from pipeline.locking import file_locks
from pipeline.schema import TIME
from pipeline.settings import SettingsError, read_settings
from pipeline.snapshot import Snapshot
from pipeline.tasks import demand_series, known_items, recommend_examples
from tests.small_shop import publish_hours, settings_of, small_shop

HOURS = 60
SMALL = "--conf spark.ui.enabled=false --conf spark.sql.shuffle.partitions=4"
SPARK = importlib.util.find_spec("pyspark") is not None and shutil.which("java") is not None

WORK: dict[str, Callable[[Snapshot], pa.Table | pd.DataFrame | pd.Series]] = {
    "examples": lambda tables: recommend_examples.examples(tables, tables.arrow("events")).table,
    "chosen by day": recommend_examples.chosen_by_day,
    "seen": lambda tables: known_items.seen(tables).sort_by("item_id"),
    "catalogue": lambda tables: known_items.catalogue(tables, known_items.seen(tables)),
    "shop by day": demand_series.shop_by_day,
    "item days": lambda tables: demand_series.item_days(
        tables, known_items.seen(tables)["item_id"].combine_chunks(), *_days(tables)
    ),
}


def _days(tables: Snapshot) -> tuple[int, int]:
    days = demand_series.days_of(tables.arrow("events", ["hour"])["hour"])
    return int(days.min()), int(days.max()) + 1


def comparable(rows: pa.Table | pd.DataFrame | pd.Series) -> list[dict]:
    """Rows as plain values; times in microseconds, whatever the engine's type for them."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(pd.DataFrame(rows).reset_index())
    columns = {
        name: column.cast(TIME).cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return pa.table(columns).to_pylist()


def test_an_engine_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="EVERGREEN_ENGINE must be duckdb or spark"):
        read_settings({"EVERGREEN_MASK_KEY": "k" * 32, "EVERGREEN_ENGINE": "pandas"})


def test_microseconds_are_whole_and_exact_for_times_between_two_seconds() -> None:
    told = np.array([0, 1, 999_999, 1_767_574_923_600_001, -1], np.int64)
    times = table_of(duckdb_connection(), "times", pa.table({"at": pa.array(told).cast(TIME)}))
    assert times.select(us=microseconds(times["at"])).to_pyarrow()["us"].to_pylist() == told.tolist()


@pytest.mark.slow
@pytest.mark.skipif(not SPARK, reason="needs the extra `spark` and a Java of 17 or newer")
def test_spark_gives_the_same_rows_as_duckdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommend_examples, "_FEW_USERS", 0)  # so that Spark has work in a shop as small as this
    monkeypatch.setattr(recommend_examples, "HISTORY_ROWS", 20)  # fewer than the busiest users have
    monkeypatch.setattr(known_items, "_MOST_IDS_IN_FILTER", 0)
    monkeypatch.setattr(demand_series, "_MOST_IDS_IN_FILTER", 0)
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", f"--master local[2] {SMALL} pyspark-shell")
    settings = settings_of(tmp_path)
    publish_hours(settings, small_shop(history_days=2, history_events=3_000), 0, HOURS)
    lakes = [Lake(settings.lake, file_locks(tmp_path / "locks"), engine=engine) for engine in ("duckdb", "spark")]
    for name, work in WORK.items():
        duckdb, spark = (
            comparable(work(Snapshot(lake, {table: lake.version(table) for table in ("events", "items")})))
            for lake in lakes
        )
        assert len(duckdb) > 2, name
        assert spark == duckdb, name
