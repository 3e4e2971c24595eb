"""Checks on Spark: each row breaks the same rules as on pandas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.judging import judge_rows
from pipeline.judging_on_spark import judge_rows_on_spark, spark_condition
from pipeline.quality import EXPECTATIONS, check, read_suites
from pipeline.schema import FEEDS
from pipeline.settings import SettingsError, read_settings
from tests.benchmarks.bench_checks import facts_of, random_events
from tests.test_engine import SMALL, SPARK

MASK_KEY = "k" * 32
needs_spark = pytest.mark.skipif(not SPARK, reason="needs the extra `spark` and a Java of 17 or newer")

# one value a row, among good ones: what texts and numbers can be that a library may read in its own way
TEXTS = [
    None, "", " ", "a\x00b", "a\nb", "line\n", "\x7f", "é" * 300, "🧵" * 150, "日本", "a" * 200, "a" * 201, "NaN",
    "None",
]
NUMBERS = [None, float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-300, 1e300, -1.0, 5.0, 5.5]
IDS = [None, "f" * 32, "F" * 32, "f" * 32 + "\n", "f" * 31, "f" * 33]


def odd_rows(feed: str, like: pa.Table) -> pa.Table:
    """The rows, and copies of the first in which one value is odd."""
    rows = like.to_pylist()
    for field in like.schema:
        if pa.types.is_floating(field.type):
            values: list[Any] = NUMBERS
        elif pa.types.is_timestamp(field.type):
            values = [None]
        else:
            values = [*TEXTS, *IDS]
        rows += [rows[number % len(like)] | {field.name: value} for number, value in enumerate(values)]
    return pa.Table.from_pylist(rows, like.schema)


@pytest.mark.parametrize(("pandas", "spark"), [
    ('event_type == "search"', 'event_type <=> "search"'), ('event_type != "search"', 'NOT (event_type <=> "search")'),
    ("vector_width > 0", "vector_width > 0"), ('a == "b" and c != 1', 'a <=> "b" and NOT (c <=> 1)'),
])
def test_a_condition_takes_nulls_for_values_as_pandas_does(pandas: str, spark: str) -> None:
    assert spark_condition(pandas) == spark


def test_the_setting_is_a_number_of_rows() -> None:
    assert read_settings({"EVERGREEN_MASK_KEY": MASK_KEY}).spark_rows is None
    assert read_settings({"EVERGREEN_MASK_KEY": MASK_KEY, "EVERGREEN_SPARK_ROWS": "5000000"}).spark_rows == 5_000_000
    with pytest.raises(SettingsError, match="EVERGREEN_SPARK_ROWS must be at least 1; received 0"):
        read_settings({"EVERGREEN_MASK_KEY": MASK_KEY, "EVERGREEN_SPARK_ROWS": "0"})


@pytest.mark.slow
@needs_spark
def test_spark_and_pandas_find_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", f"--master local[2] {SMALL} pyspark-shell")
    events, unknown = random_events(2_000, np.random.default_rng(0))
    known = pa.array(np.append(~unknown.to_numpy(zero_copy_only=False), [True] * 5_000))
    rows = odd_rows("events", events)
    rows = rows.append_column("item_known", known[: len(rows)])
    rows = rows.append_column("user_width", pa.array(np.random.default_rng(1).random(len(rows))))
    rules = read_suites(EXPECTATIONS / "events.json").rows
    ours = {one.rule.name: one for one in judge_rows(rules, rows)}
    broken = 0
    for other in judge_rows_on_spark(rules, rows):
        one = ours[other.rule.name]
        assert sorted(other.failed.tolist()) == sorted(one.failed.tolist()), other.rule.name
        assert (other.success, other.checked, other.rule) == (one.success, one.checked, one.rule)
        broken += bool(len(one.failed))
    assert broken > 10


@pytest.mark.slow
@needs_spark
def test_a_window_of_many_rows_is_judged_on_spark_and_its_page_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", f"--master local[2] {SMALL} pyspark-shell")
    events, unknown = random_events(500, np.random.default_rng(0))

    def verdict(spark_rows: int | None) -> Any:
        return check(FEEDS["events"], events, facts_of(500), frozenset(), unknown, spark_rows=spark_rows)

    here, there = verdict(501), verdict(500)
    assert there.row_breaches.equals(here.row_breaches) and len(here.row_breaches)
    assert (there.window_breaches, there.results) == (here.window_breaches, here.results)
