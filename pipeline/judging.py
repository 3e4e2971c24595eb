"""Great Expectations' verdict on rules over rows: which rows break which rule.

By pandas, on frames that are as small as the rules allow; `judging_on_spark.py` has the same by Spark.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.suites import NOT_NULL, Rule, SuiteError

if TYPE_CHECKING:
    import pandas as pd

# without the last, a failing expectation also spells out a query of all its rows: 4 MB of text for half a million
RESULT_FORMAT = {"result_format": "COMPLETE", "return_unexpected_index_query": False}
ROW = "evergreen_row"  # the column of a row's number, where there is no index


@dataclass(frozen=True)
class Judged:
    """What Great Expectations said about one rule: `failed` are row numbers of the frame that was judged."""

    rule: Rule
    success: bool
    checked: int
    failed: np.ndarray
    observed: str


def great_expectations() -> Any:
    """The library, quiet: its notices and progress bars belong in no task's log. Imported here: it takes 3 s."""
    logging.getLogger("great_expectations").setLevel(logging.ERROR)  # first: its import alone writes 300 lines at INFO
    import great_expectations

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.ERROR)  # sets a level of its own
    return great_expectations


@cache
def context() -> Any:
    """Great Expectations' settings, which are kept in memory: no progress bars."""
    settings = great_expectations().get_context(mode="ephemeral")
    settings.variables.progress_bars = {"globally": False, "metric_calculations": False}
    return settings


def _validator(frame: pd.DataFrame) -> Any:
    """Great Expectations' judge of one frame.

    It is handed to the engine, not to a data source as a batch: a batch is hashed twice to tell it from others,
    which for a million ids takes longer than all rules on them (0.55 s of 1.0 s).
    """
    from great_expectations.execution_engine import PandasExecutionEngine
    from great_expectations.validator.validator import Validator

    engine = PandasExecutionEngine(batch_data_dict={"rows": frame})
    return Validator(execution_engine=engine, data_context=context())


def judge_rows(rules: Sequence[Rule], rows: pa.Table) -> list[Judged]:
    """All row rules in file order; `failed` are row numbers of `rows`.

    For each rule, Great Expectations filters all columns of its frame anew, which at a million rows costs more than
    the rules. So the rules that read the same columns get a frame of those columns alone, and of that only the
    different rows: a million events have 6 types and 5,000 prices. Measured side by side on busy cores
    (tests/benchmarks/bench_checks.py, a million events): 0.9 s, against 4.3 s for one frame of all columns, 4.4 s with
    index columns, and 6.6 s for SUMMARY first and COMPLETE for what failed.
    """
    groups: dict[tuple[str, ...], list[Rule]] = {}
    for rule in rules:
        groups.setdefault(_columns_read(rule, rows), []).append(rule)

    @cache
    def coded(name: str) -> pa.DictionaryArray:
        return rows[name].combine_chunks().dictionary_encode(null_encoding="encode")

    found: list[Judged] = []
    for columns, some in groups.items():
        if not columns:
            found += judge(some, rows.slice(0, 0).to_pandas())
        elif any(rule.of_uniqueness for rule in some):
            found += judge(some, rows.select(columns).to_pandas())
        else:
            found += _judge_different(some, {name: coded(name) for name in columns})
    judged = {one.rule.name: one for one in found}
    return [judged[rule.name] for rule in rules]


def _columns_read(rule: Rule, rows: pa.Table) -> tuple[str, ...]:
    """The columns that a rule is answered by, in the table's order; none for a rule on the table's shape."""
    if rule.of_table:
        return ()
    if rule.column not in rows.column_names:
        raise SuiteError(f"{rule.name} judges the column {rule.column!r}; the rows have {rows.column_names}.")
    read = {rule.column, *re.findall(r"\w+", rule.condition or "")}
    return tuple(name for name in rows.column_names if name in read)


def _judge_different(rules: Sequence[Rule], coded: Mapping[str, pa.DictionaryArray]) -> list[Judged]:
    """Rules on some columns: each different row of them (null is a value) is judged once, for all that are like it."""
    chosen, place = _different(coded)
    frame = pa.table({name: column.dictionary.take(chosen[name]) for name, column in coded.items()}).to_pandas()
    held = np.bincount(place, minlength=len(frame))  # how many rows are like each
    return [_of_rows(one, frame, place, held) for one in judge(rules, frame)]


def _different(coded: Mapping[str, pa.DictionaryArray]) -> tuple[dict[str, pa.Array], np.ndarray]:
    """Of each column the codes of the different rows, `[different]`, and which of these each row is, `[rows]`."""
    names, columns = list(coded), list(coded.values())
    if len(columns) == 1:
        return {names[0]: pa.array(np.arange(len(columns[0].dictionary)))}, columns[0].indices.to_numpy()
    sizes = [len(column.dictionary) for column in columns]
    code = np.zeros(len(columns[0]), np.int64)
    for column, size in zip(columns, sizes, strict=True):
        code = code * size + column.indices.to_numpy()
    if math.prod(sizes) <= 4 * len(code) + 1000:  # a table of all that are possible: ten times as quick as sorting
        there = np.zeros(math.prod(sizes), bool)
        there[code] = True
        kinds, place = np.flatnonzero(there), (np.cumsum(there) - 1)[code]
    else:
        kinds, place = np.unique(code, return_inverse=True)
    chosen = {}
    for name, size in reversed(list(zip(names, sizes, strict=True))):
        kinds, rest = np.divmod(kinds, max(size, 1))
        chosen[name] = pa.array(rest)
    return chosen, place


def _of_rows(one: Judged, frame: pd.DataFrame, place: np.ndarray, held: np.ndarray) -> Judged:
    """A verdict on different rows as one on all rows."""
    bad = np.zeros(len(frame), bool)
    bad[one.failed] = True
    failed = np.flatnonzero(bad[place]) if bad.any() else np.zeros(0, np.int64)
    about = frame if one.rule.condition is None else frame.query(one.rule.condition)
    if one.rule.expectation.expectation_type != NOT_NULL:
        about = about[about[str(one.rule.column)].notna()]
    return replace(one, checked=int(held[about.index.to_numpy()].sum()), failed=failed)


def judge(rules: Sequence[Rule], frame: pd.DataFrame) -> list[Judged]:
    """Great Expectations' verdict on each rule over one frame with the index 0, 1, 2, ..."""
    if not rules:
        return []
    results = _validator(frame).graph_validate(
        configurations=[rule.expectation.configuration for rule in rules],
        runtime_configuration={"result_format": RESULT_FORMAT},
    )
    by_name = {one.expectation_config.meta["rule"]: one for one in results}
    return [judged_of(rule, by_name[rule.name], len(frame)) for rule in rules]


def judged_of(rule: Rule, result: Any, rows: int) -> Judged:
    """Great Expectations' answer in our words; `rows` is what counts as checked where it says nothing.

    Raises:
        SuiteError: the expectation could not be evaluated.
    """
    raised = [info for info in _exceptions(result.exception_info) if info.get("raised_exception")]
    if raised:
        raise SuiteError(
            f"The expectation {rule.name} could not be evaluated: {raised[0].get('exception_message')}. "
            "Does its type suit the column's type?"
        )
    said = result.result
    return Judged(
        rule=rule,
        success=bool(result.success),
        checked=int(said.get("element_count", rows)) - int(said.get("missing_count") or 0),
        failed=np.array([_number(one) for one in said.get("unexpected_index_list") or []], np.int64),
        observed=str(said.get("observed_value", "")),
    )


def _number(place: Any) -> int:
    """A row's number: pandas' index tells it as it is, Spark in a record with the value."""
    return int(place[ROW] if isinstance(place, dict) else place)


def _exceptions(info: Any) -> list[dict[str, Any]]:
    """Great Expectations tells one exception, or one for each metric by its id."""
    if not info:
        return []
    return [info] if "raised_exception" in info else list(info.values())
