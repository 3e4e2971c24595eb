"""The check of landed rows against the expectations of their feed: which rows may not pass, which windows may not.

Great Expectations judges; this module feeds it and turns its results into what ingest needs: one reason per bad
row, one sentence per bad window, and a record of all for the page that a person opens.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.facts import WINDOW_FACTS, derived_facts, fact_in_words
from pipeline.schema import Feed
from pipeline.settings import REPOSITORY
from pipeline.suites import NOT_NULL, SEVERITIES, Rule, SuiteError, Suites, suites_of
from pipeline.verdict import Checked, WindowBreach, WindowStopped
from pipeline.window import Window

if TYPE_CHECKING:
    import pandas as pd

EXPECTATIONS = REPOSITORY / "expectations"

__all__ = [
    "SEVERITIES", "WINDOW_FACTS", "Checked", "Rule", "SuiteError", "Suites", "WindowBreach", "WindowStopped", "check",
    "read_suites",
]

_BREACHES = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])
_ITEM_KNOWN = "item_known"  # the column that `check` makes of `unknown` for the suites
_USER_WIDTH = "user_width"  # likewise, of `widths`
# without the last, a failing expectation also spells out a query of all its rows: 4 MB of text for half a million
_RESULT_FORMAT = {"result_format": "COMPLETE", "return_unexpected_index_query": False}
_SEEN_CHARACTERS = 80  # of a value in a sentence: an id of 10,000 characters is not read by anyone
_PLAIN_BELOW = 1e15  # above, a float's digits are noise and 1e+308 is read more easily than 308 zeros
_EXAMPLES = 5
_PERSONAL = frozenset({"user_id", "session_id"})


@dataclass(frozen=True)
class _Judged:
    """What Great Expectations said about one rule: `failed` are row numbers of the frame that was judged."""

    rule: Rule
    success: bool
    checked: int
    failed: np.ndarray
    observed: str


def check(
    feed: Feed,
    rows: pa.Table,
    facts: pa.Table,
    absent_columns: frozenset[str],
    unknown: pa.Array | None = None,
    widths: pa.Array | None = None,
    *,
    of_copies: bool = False,
) -> Checked:
    """Judges typed rows and their windows by `expectations/<feed>.json`.

    Args:
        feed: the feed.
        rows: the feed's columns, typed as in `feed.table_schema`, unique by key, and `landed_window` where
            `facts` has more than one window.
        facts: WINDOW_FACTS, one row a window, in order.
        absent_columns: columns that this shop never delivers, as `feed.column`; rules on them are left out.
        unknown: `[rows]` bool: true where a row's item is in neither the items table nor the items just landed,
            null where the row names no item; None: not known, the rules on it are left out.
        widths: `[rows]` float64: the share of the catalogue that a row's user has to do with; None: not known, the
            rules on it are left out.
        of_copies: the rows are further copies of rows that were judged, several of one key among them: rules on
            uniqueness are left out.

    Raises:
        SuiteError: the file is wrong, or an expectation cannot be evaluated.
    """
    suites = read_suites(EXPECTATIONS / f"{feed.name}.json")
    absent = absent_columns | {
        f"{feed.name}.{name}" for name, given in ((_ITEM_KNOWN, unknown), (_USER_WIDTH, widths)) if given is None
    }
    row_rules, rows_left = _split(suites.rows, feed, absent)
    if of_copies:
        rows_left += [rule for rule in row_rules if rule.of_uniqueness]
        row_rules = [rule for rule in row_rules if not rule.of_uniqueness]
    window_rules, window_left = _split(suites.window, feed, absent)
    if unknown is not None:
        rows = rows.append_column(_ITEM_KNOWN, pc.invert(unknown))
    if widths is not None:
        rows = rows.drop_columns([name for name in (_USER_WIDTH,) if name in rows.column_names])
        rows = rows.append_column(_USER_WIDTH, widths)
    judged = _judge_rows(row_rules, rows)
    breaches = _row_breaches(judged, rows)
    windows = [Window(start) for start in facts["landed_window"].to_pylist()]
    derived = derived_facts(facts, _rejected(breaches, rows, facts))
    about_windows = _judge(window_rules, derived.to_pandas())
    return Checked(
        row_breaches=breaches,
        window_breaches=_window_breaches(judged, about_windows, derived, windows),
        results={
            "feed": feed.name,
            "rows": len(rows),
            "late": pc.sum(facts["late"]).as_py() or 0,
            "rejected": {one["values"]: one["counts"] for one in pc.value_counts(breaches["reason"]).to_pylist()},
            "left_out": [rule.name for rule in (*rows_left, *window_left)],
            "expectations": [_row_result(one, rows) for one in judged]
            + [_window_result(one, derived, windows) for one in about_windows],
        },
    )


def _split(rules: tuple[Rule, ...], feed: Feed, absent: frozenset[str]) -> tuple[list[Rule], list[Rule]]:
    """The rules that this shop's columns allow, and those left out."""
    here = [rule for rule in rules if not rule.needs & absent]
    return here, [rule for rule in rules if rule.needs & absent]


# -- judging --------------------------------------------------------------------------------------------------


def _great_expectations() -> Any:
    """The library, quiet: its notices and progress bars belong in no task's log. Imported here: it takes 3 s."""
    import great_expectations

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    return great_expectations


@cache
def read_suites(path: Path) -> Suites:
    """The two suites of an expectation file, read once per process.

    Raises:
        SuiteError: as `suites_of`.
    """

    def expectation_of(said: dict[str, Any]) -> Any:
        (expectation,) = _great_expectations().ExpectationSuite(name="one", expectations=[said]).expectations
        return expectation

    return suites_of(path, expectation_of)


@cache
def _context() -> Any:
    """Great Expectations' settings, which are kept in memory: no progress bars."""
    context = _great_expectations().get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    return context


def _validator(frame: pd.DataFrame) -> Any:
    """Great Expectations' judge of one frame.

    It is handed to the engine, not to a data source as a batch: a batch is hashed twice to tell it from others,
    which for a million ids takes longer than all rules on them (0.55 s of 1.0 s).
    """
    from great_expectations.execution_engine import PandasExecutionEngine
    from great_expectations.validator.validator import Validator

    engine = PandasExecutionEngine(batch_data_dict={"rows": frame})
    return Validator(execution_engine=engine, data_context=_context())


def _judge_rows(rules: Sequence[Rule], rows: pa.Table) -> list[_Judged]:
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

    found: list[_Judged] = []
    for columns, some in groups.items():
        if not columns:
            found += _judge(some, rows.slice(0, 0).to_pandas())
        elif any(rule.of_uniqueness for rule in some):
            found += _judge(some, rows.select(columns).to_pandas())
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


def _judge_different(rules: Sequence[Rule], coded: Mapping[str, pa.DictionaryArray]) -> list[_Judged]:
    """Rules on some columns: each different row of them (null is a value) is judged once, for all that are like it."""
    chosen, place = _different(coded)
    frame = pa.table({name: column.dictionary.take(chosen[name]) for name, column in coded.items()}).to_pandas()
    held = np.bincount(place, minlength=len(frame))  # how many rows are like each
    return [_of_rows(one, frame, place, held) for one in _judge(rules, frame)]


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


def _of_rows(one: _Judged, frame: pd.DataFrame, place: np.ndarray, held: np.ndarray) -> _Judged:
    """A verdict on different rows as one on all rows."""
    bad = np.zeros(len(frame), bool)
    bad[one.failed] = True
    failed = np.flatnonzero(bad[place]) if bad.any() else np.zeros(0, np.int64)
    about = frame if one.rule.condition is None else frame.query(one.rule.condition)
    if one.rule.expectation.expectation_type != NOT_NULL:
        about = about[about[str(one.rule.column)].notna()]
    return replace(one, checked=int(held[about.index.to_numpy()].sum()), failed=failed)


def _judge(rules: Sequence[Rule], frame: pd.DataFrame) -> list[_Judged]:
    """Great Expectations' verdict on each rule over one frame with the index 0, 1, 2, ..."""
    if not rules:
        return []
    results = _validator(frame).graph_validate(
        configurations=[rule.expectation.configuration for rule in rules],
        runtime_configuration={"result_format": _RESULT_FORMAT},
    )
    by_name = {one.expectation_config.meta["rule"]: one for one in results}
    return [_judged(rule, by_name[rule.name], len(frame)) for rule in rules]


def _judged(rule: Rule, result: Any, rows: int) -> _Judged:
    raised = [info for info in _exceptions(result.exception_info) if info.get("raised_exception")]
    if raised:
        raise SuiteError(
            f"The expectation {rule.name} could not be evaluated: {raised[0].get('exception_message')}. "
            "Does its type suit the column's type?"
        )
    said = result.result
    return _Judged(
        rule=rule,
        success=bool(result.success),
        checked=int(said.get("element_count", rows)) - int(said.get("missing_count") or 0),
        failed=np.array(said.get("unexpected_index_list") or [], np.int64),
        observed=str(said.get("observed_value", "")),
    )


def _exceptions(info: Any) -> list[dict[str, Any]]:
    """Great Expectations tells one exception, or one for each metric by its id."""
    if not info:
        return []
    return [info] if "raised_exception" in info else list(info.values())


def row_faults(feed: Feed, rows: pa.Table, absent_columns: frozenset[str] = frozenset()) -> pa.Table:
    """What single typed rows break, without a window to judge: `row` (index), `reason`, `detail`."""
    rules, _ = _split(read_suites(EXPECTATIONS / f"{feed.name}.json").rows, feed, absent_columns | {_ITEM_KNOWN})
    return _row_breaches(_judge_rows(rules, rows), rows)


def faults_of(suite: str, rows: pa.Table) -> pa.Table:
    """What rows of a table of our own break of `expectations/<suite>.json`.

    Returns:
        As `Checked.row_breaches`, and `severity`.

    Raises:
        SuiteError: the file is wrong, or an expectation cannot be evaluated.
    """
    rules = read_suites(EXPECTATIONS / f"{suite}.json").rows
    breaches = _row_breaches(_judge_rows(rules, rows), rows)
    severity = {rule.name: rule.severity for rule in rules}
    said = pa.array([severity[name] for name in breaches["reason"].to_pylist()], pa.string())
    return breaches.add_column(1, "severity", said)


def _row_breaches(judged: Sequence[_Judged], rows: pa.Table) -> pa.Table:
    """`Checked.row_breaches`: each row with the first rule in file order that it breaks; info is not a breach."""
    taken = np.zeros(len(rows), bool)
    parts = [_BREACHES.empty_table()]
    for one in judged:
        if one.rule.of_table or one.rule.severity == "info":
            continue
        new = np.sort(one.failed[~taken[one.failed]])
        if not len(new):
            continue
        taken[new] = True
        column = str(one.rule.column)
        seen = _seen(rows[column].take(pa.array(new)), column)
        parts.append(pa.table([
            pa.array(new),
            pa.repeat(one.rule.name, len(new)),
            pc.binary_join_element_wise(seen, f"; allowed: {one.rule.allowed}", ""),
        ], schema=_BREACHES))
    return pa.concat_tables(parts).combine_chunks().sort_by("row")


def _seen(values: pa.ChunkedArray, column: str) -> pa.Array:
    """`quantity is 0.0`, one for each value; each distinct value is put into words once."""
    coded = values.combine_chunks().dictionary_encode(null_encoding="encode")
    spell = _hidden if column in _PERSONAL else _spelt
    words = [f"{column} is {spell(value)}" for value in coded.dictionary.to_pylist()]
    return pa.array(words, pa.string()).take(coded.indices)


def _hidden(value: str | None) -> str:
    """A value that may be an id which masking has missed: it must not reach quarantine or page."""
    return "missing" if value is None else f"a text of {len(value):,} characters, not shown"


def _spelt(value: Any) -> str:
    """A value in words: control characters escaped, long texts cut with their length."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "missing"
    if isinstance(value, str):
        text = value[:_SEEN_CHARACTERS]
        text = text if text.isprintable() and text == text.strip() and text else repr(text)
        return text if len(value) <= _SEEN_CHARACTERS else f"{text}… ({len(value):,} characters)"
    return f"{value:,}" if isinstance(value, float) and abs(value) < _PLAIN_BELOW else str(value)


# -- windows --------------------------------------------------------------------------------------------------


def _rejected(breaches: pa.Table, rows: pa.Table, facts: pa.Table) -> np.ndarray:
    """How many rows of each window break a rule: `[windows]` int64, in the order of `facts`."""
    starts = facts["landed_window"].to_pylist()
    if len(starts) == 1:
        return np.array([len(breaches)], np.int64)
    if "landed_window" not in rows.column_names:
        raise ValueError(
            f"Rows of several windows carry `landed_window`; received {len(starts)} windows and the columns "
            f"{rows.column_names}."
        )
    landed = rows["landed_window"].take(breaches["row"])
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(landed).to_pylist()}
    return np.array([counts.get(start, 0) for start in starts], np.int64)


def _window_breaches(
    about_rows: Sequence[_Judged], about_windows: Sequence[_Judged], facts: pa.Table, windows: Sequence[Window]
) -> tuple[WindowBreach, ...]:
    """Each window's breaches in order of window; a wrong shape of the table is a breach of all its windows."""
    found = [
        _breach(one.rule, windows[place], fact_in_words(facts, one.rule.column or "", place))
        for one in about_windows if one.rule.severity != "info" for place in one.failed.tolist()
    ]
    found += [
        _breach(one.rule, window, f"the table has {one.observed or 'other columns'}")
        for one in about_rows if one.rule.of_table and not one.success for window in windows
    ]
    return tuple(sorted(found, key=lambda breach: (breach.window, SEVERITIES.index(breach.severity))))


def _breach(rule: Rule, window: Window, seen: str) -> WindowBreach:
    return WindowBreach(window, rule.name, rule.severity, seen, rule.allowed, rule.why, rule.remedy)


# -- the record -----------------------------------------------------------------------------------------------


def _row_result(one: _Judged, rows: pa.Table) -> dict[str, Any]:
    examples: list[str] = []
    if one.rule.column is not None and len(one.failed):
        first = rows[one.rule.column].take(pa.array(np.sort(one.failed)[:_EXAMPLES]))
        examples = list(dict.fromkeys(_seen(first, one.rule.column).to_pylist()))
    if one.rule.of_table and not one.success:
        examples = [f"the table has {one.observed or 'other columns'}"]
    return _result(one, "table" if one.rule.of_table else "rows", examples)


def _window_result(one: _Judged, facts: pa.Table, windows: Sequence[Window]) -> dict[str, Any]:
    column = one.rule.column or ""
    if len(windows) == 1:  # its value is shown also where all is well; the page's title says which window
        examples = [fact_in_words(facts, column, 0)] if one.checked else ["too little to judge by"]
    else:
        few = one.failed[:_EXAMPLES].tolist()
        examples = [f"{windows[at]}: {fact_in_words(facts, column, at)}" for at in few]
    failing = [str(windows[at]) for at in one.failed.tolist()]
    return _result(one, "window", examples) | {"windows": failing, "of_windows": len(windows)}


def _result(one: _Judged, about: str, examples: list[str]) -> dict[str, Any]:
    """One line of the page."""
    return {
        "rule": one.rule.name, "about": about, "severity": one.rule.severity, "column": one.rule.column,
        "condition": one.rule.condition, "allowed": one.rule.allowed, "why": one.rule.why,
        "remedy": one.rule.remedy, "success": one.success, "checked": one.checked,
        "failed": len(one.failed) if about != "table" else int(not one.success), "examples": examples,
    }
