"""From examples to what may be learnt and what judges: the time-aware split by unit and hour.

A stable hash of (unit, hour) puts every example into `train`, `tune` or `gate`, once and for all. The
last two stay out of training for a trailing span, serve early stopping and the gate during it, and then
join the training rows: nothing is wasted and nothing leaks (DESIGN.md, decision 2). Early stopping and
the gate have their own examples because a model that was picked on some examples looks too good on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import TIME
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples, Task

TRAIN, TUNE, GATE = 0, 1, 2

# Early stopping asks only where a curve turns, the gate whether two models differ: it gets twice as much.
# 70 % of an hour is learnt at once, the rest when the span has passed.
TUNE_SHARE = 0.1
GATE_SHARE = 0.2

# The spread of a user's relative difference between a model and its update was 0.2 to 0.3 in NDCG@100, 0.25 to 0.4 in
# Recall@20 (simulated shop): at 1,000 users the 95 % bound lies within 2 % of the mean, within the margin of 3 %.
WANTED_UNITS = 1000
SPANS_HOURS = (6, 12, 24, 48, 96, 168, 336, 672)  # a large shop needs hours, a small one four weeks
MOST_JUDGING_EXAMPLES = 4000  # more narrows the interval by little and costs seconds an hour


def parts(units: pa.ChunkedArray, hours: pa.ChunkedArray) -> np.ndarray:
    """`[n]` of TRAIN, TUNE, GATE by a hash of unit and hour that no version of any library changes."""
    keys = pc.binary_join_element_wise(units, pc.cast(pc.cast(hours, pa.int64()), pa.string()), "|")
    encoded = pc.dictionary_encode(pa.chunked_array([pc.fill_null(keys, "").combine_chunks()])).combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], pa.string()).dictionary_encode()
    draws = np.array([_draw(key) for key in encoded.dictionary.to_pylist()], dtype=np.float64)
    drawn = draws[encoded.indices.to_numpy(zero_copy_only=False)] if len(draws) else draws
    return np.where(drawn < GATE_SHARE, GATE, np.where(drawn < GATE_SHARE + TUNE_SHARE, TUNE, TRAIN))


def parts_of(examples: Examples) -> np.ndarray:
    """`parts` of examples."""
    return parts(examples.table["unit"], examples.table["hour"])


def judging_rows(task: Task, tables: Snapshot, since: datetime, set_aside: Collection[str]) -> pa.Table:
    """The teaching rows of the hours from `since` on that judge; what landed in windows set aside judges nothing."""
    rows = without_windows(task.teaching(tables, tables.rows_from(task.table, since)), set_aside)
    return rows.filter(pa.array(parts(rows[task.unit_column], rows["hour"]) != TRAIN))


def judging_examples(task: Task, tables: Snapshot, rows: pa.Table) -> tuple[Examples, Examples]:
    """The tune and the gate examples of `judging_rows`, at most MOST_JUDGING_EXAMPLES of each.

    Where there are more, those with the smallest hash of their id are kept: the same ones for every model
    that is compared, and as many from every hour as it has.
    """
    examples = task.examples(tables, rows)
    of = parts_of(examples)
    tune, gate = (few_examples(examples.keep(of == part), MOST_JUDGING_EXAMPLES) for part in (TUNE, GATE))
    return tune, gate


def span_for(task: Task, tables: Snapshot, end: datetime) -> int:
    """The shortest span (hours) before `end` whose gate part has WANTED_UNITS units; else the longest."""
    longest = end - timedelta(hours=SPANS_HOURS[-1])
    columns = list(dict.fromkeys([task.unit_column, "hour", *task.teaching_columns]))
    rows = task.teaching(tables, tables.rows_from(task.table, longest, columns=columns))
    rows = rows.filter(pa.array(parts(rows[task.unit_column], rows["hour"]) == GATE))
    for span in SPANS_HOURS[:-1]:
        recent = rows.filter(pc.greater_equal(rows["hour"], pa.scalar(end - timedelta(hours=span), TIME)))
        if pc.count_distinct(recent[task.unit_column]).as_py() >= WANTED_UNITS:
            return span
    return SPANS_HOURS[-1]


def without_windows(rows: pa.Table, windows: Collection[str]) -> pa.Table:
    """`rows` less those that landed in `windows` (ISO 8601): set aside, they neither teach nor judge."""
    aside = pa.array([datetime.fromisoformat(window) for window in windows], TIME)
    return rows.filter(pc.invert(pc.is_in(rows["landed_window"], value_set=aside)))


def learnable(units: pa.ChunkedArray, hours: pa.ChunkedArray, joined_until: datetime) -> np.ndarray:
    """`[n]` bool: the train part, and whatever happened before `joined_until`."""
    before = pc.less(hours, pa.scalar(joined_until, TIME)).to_numpy()
    return (parts(units, hours) == TRAIN) | before


def _draw(key: str) -> float:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def few_examples(examples: Examples, most: int) -> Examples:
    """At most so many of the examples: those with the smallest hash of their id, in their order."""
    if len(examples) <= most:
        return examples
    return examples.take(np.sort(np.argsort(_draws(examples), kind="stable")[:most]))


def few_of_each_window(examples: Examples, most: int = MOST_JUDGING_EXAMPLES) -> Examples:
    """At most so many of the examples of each landed window, drawn as by `few_examples`."""
    windows = pc.rank(examples.table["landed_window"].combine_chunks(), tiebreaker="dense").to_numpy().astype(np.int64)
    if np.bincount(windows).max(initial=0) <= most:
        return examples
    order = np.lexsort((_draws(examples), windows))
    place = np.arange(len(order)) - np.searchsorted(windows[order], windows[order])  # of each in its window
    return examples.take(np.sort(order[place < most]))


def _draws(examples: Examples) -> np.ndarray:
    return np.array([_draw("few|" + key) for key in examples.table["example_id"].to_pylist()])
