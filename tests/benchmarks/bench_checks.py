"""What the check of a million events costs, beside merely reading them; and what other ways of running GX cost.

Run it: `python tests/benchmarks/bench_checks.py`. All ways judge the same suite on the same rows and must find the
same bad rows, else the comparison stops.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import judging, quality
from pipeline.schema import EVENTS

_START = datetime(2011, 11, 14, 9, tzinfo=UTC)
_ROUNDS = 3
_DIRTY_SHARE = 0.015  # the simulated shop's


def measure_checks(rows: int = 1_000_000, seed: int = 0) -> dict[str, float]:
    """Medians of checking `rows` events and of reading them from Parquet: `check_s`, `bare_read_s`, `vs_bare_read`.

    `vs_bare_read` is bare_read_s / check_s: 1 would be a check as quick as reading.
    """
    events, unknown = random_events(rows, np.random.default_rng(seed))
    facts = facts_of(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        pq.write_table(events, path, compression="zstd")
        quality.check(EVENTS, events.slice(0, 100), facts, frozenset(), unknown[:100])  # imports, suites
        check_s = _median(lambda: quality.check(EVENTS, events, facts, frozenset(), unknown))
        bare_read_s = _median(lambda: pq.read_table(path))
    return {"check_s": check_s, "bare_read_s": bare_read_s, "vs_bare_read": bare_read_s / check_s}


def compare_ways(rows: int = 1_000_000, seed: int = 0) -> dict[str, float]:
    """Seconds of each way of running the row rules: `one_frame`, `one_frame_summary_first`, `small_frames`.

    one_frame: all rules on one frame of all columns, COMPLETE. one_frame_summary_first: the same as SUMMARY, then
    COMPLETE for the rules that failed. small_frames: what `quality.check` does. `index_columns` is one_frame with
    unexpected_index_column_names.
    """
    events, unknown = random_events(rows, np.random.default_rng(seed))
    events = events.append_column("item_known", pa.array(~unknown.to_numpy(zero_copy_only=False)))
    suite = quality.read_suites(quality.EXPECTATIONS / "events.json").rows
    rules = [rule for rule in suite if not rule.of_table]
    formats = {
        "complete": {"result_format": "COMPLETE", "return_unexpected_index_query": False},
        "summary": {"result_format": "SUMMARY"},
        "index": {
            "result_format": "COMPLETE",
            "return_unexpected_index_query": False,
            "unexpected_index_column_names": ["event_id"],
        },
    }
    judging.judge_rows(rules, events.slice(0, 100))

    def one_frame(how: str) -> dict[str, int]:
        return _failed(_validate(rules, events, formats[how]))

    def summary_first() -> dict[str, int]:
        first = _failed(_validate(rules, events, formats["summary"]))
        again = [rule for rule in rules if first[rule.name]]
        return first | _failed(_validate(again, events, formats["complete"]))

    ways: dict[str, Callable[[], dict[str, int]]] = {
        "one_frame": lambda: one_frame("complete"),
        "one_frame_index_columns": lambda: one_frame("index"),
        "one_frame_summary_first": summary_first,
        "small_frames": lambda: {one.rule.name: len(one.failed) for one in judging.judge_rows(rules, events)},
    }
    seconds: dict[str, float] = {}
    found: list[dict[str, int]] = []
    for name, way in ways.items():
        started = time.perf_counter()
        found.append(way())
        seconds[name] = time.perf_counter() - started
    if any(one != found[0] for one in found):
        raise RuntimeError(f"The ways must find the same rows; they found {found}.")
    return seconds


def _validate(rules: list[quality.Rule], events: pa.Table, result_format: dict[str, Any]) -> Any:
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    asset = context.data_sources.add_pandas("landed").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch(
        batch_parameters={"dataframe": events.to_pandas()}
    )
    suite = gx.ExpectationSuite(name="rules", expectations=[rule.expectation for rule in rules])
    return batch.validate(suite, result_format=result_format)


def _failed(result: Any) -> dict[str, int]:
    return {one.expectation_config.meta["rule"]: int(one.result.get("unexpected_count", 0)) for one in result.results}


def random_events(rows: int, generator: np.random.Generator) -> tuple[pa.Table, pa.Array]:
    """`rows` events like the simulated shop's, some of which break a rule; and whether each one's item is unknown."""
    kind = generator.choice(6, rows, p=[0.60, 0.12, 0.15, 0.02, 0.03, 0.08])
    types = np.array(["view", "cart", "purchase", "return", "rating", "search"], object)
    people = np.array([f"{number:032x}" for number in range(50_000)], object)
    items = np.array([f"P{number:06d}" for number in range(20_000)], object)
    priced = np.isin(kind, [1, 2, 3])
    price = np.where(priced, np.round(generator.random(rows) * 50 + 0.5, 2), np.nan)
    quantity = np.where(priced, generator.integers(1, 10, rows), np.nan)
    dirty = generator.random(rows) < _DIRTY_SHARE / 2
    price[dirty & priced] = -1.0
    quantity[generator.random(rows) < _DIRTY_SHARE / 2] = 0.0
    seconds = generator.integers(0, 3600 * 10**6, rows)
    words = np.array([f"{colour} {thing}" for colour in ("red", "blue") for thing in ("lamp", "bag", "mug")], object)

    def texts(values: np.ndarray, there: np.ndarray | None = None) -> pa.Array:
        return pa.array(values, pa.string(), mask=None if there is None else ~there)

    table = pa.table(
        {
            "event_id": texts(np.array([f"{number:016x}" for number in range(rows)], object)),
            "event_type": texts(types[kind]),
            "event_time": pa.array(int(_START.timestamp() * 1e6) + seconds, pa.timestamp("us", tz="UTC")),
            "user_id": texts(people[generator.integers(0, len(people), rows)], generator.random(rows) > 0.25),
            "session_id": texts(people[generator.integers(0, len(people), rows)]),
            "item_id": texts(items[generator.integers(0, len(items), rows)], kind != 5),
            "quantity": pa.array(quantity, from_pandas=True),
            "price": pa.array(price, from_pandas=True),
            "rating": pa.array(np.where(kind == 4, generator.integers(1, 6, rows), np.nan), from_pandas=True),
            "query": texts(words[generator.integers(0, len(words), rows)], kind == 5),
            "basket_id": texts(people[generator.integers(0, len(people), rows)], np.isin(kind, [2, 3])),
        }
    )
    return table, pa.array(generator.random(rows) < 0.002)


def facts_of(rows: int) -> pa.Table:
    """WINDOW_FACTS of one window with that many rows."""
    fact = {
        "landed_window": _START,
        "files": 12,
        "files_gone": 0,
        "rows_in": rows,
        "readable": rows,
        "quarantined": 0,
        "duplicates": 0,
        "late": 0,
        "usual_rows": float(rows),
        "newest_minutes": 0.5,
        "item_rows": rows,
        "unknown_items": 0,
        "hour_of_week": 9,
    }
    return pa.Table.from_pylist([fact], quality.WINDOW_FACTS)


def _median(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(json.dumps({"figures": measure_checks(size), "ways_s": compare_ways(size)}, indent=2))
