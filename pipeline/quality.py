"""The check of landed rows against the expectations of their feed: which rows may not pass, which windows may not.

Great Expectations judges; this module feeds it and turns its results into what ingest needs: one reason per bad
row, one sentence per bad window, and a record of all for the page that a person opens.
"""

from __future__ import annotations

import json
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
from pipeline.window import Window

if TYPE_CHECKING:
    import pandas as pd

EXPECTATIONS = REPOSITORY / "expectations"

__all__ = [
    "SEVERITIES", "WINDOW_FACTS", "Checked", "Rule", "SuiteError", "Suites", "WindowBreach", "WindowStopped", "check",
    "read_suites",
]
SEVERITIES = ("critical", "warning", "info")  # Great Expectations' own names

_BREACHES = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])
_OF_TABLE = frozenset({"expect_table_columns_to_match_set", "expect_column_values_to_be_of_type"})
_UNIQUE = "expect_column_values_to_be_unique"
_NOT_NULL = "expect_column_values_to_not_be_null"
_ITEM_KNOWN = "item_known"  # the column that `check` makes of `unknown` for the suites
# without the last, a failing expectation also spells out a query of all its rows: 4 MB of text for half a million
_RESULT_FORMAT = {"result_format": "COMPLETE", "return_unexpected_index_query": False}
_SEEN_CHARACTERS = 80  # of a value in a sentence: an id of 10,000 characters is not read by anyone
_PLAIN_BELOW = 1e15  # above, a float's digits are noise and 1e+308 is read more easily than 308 zeros
_EXAMPLES = 5
_PERSONAL = frozenset({"user_id", "session_id"})


@dataclass(frozen=True)
class WindowBreach:
    """An expectation that a window did not meet.

    Attributes:
        window: the window.
        rule: the expectation's stable name.
        severity: one of `SEVERITIES`.
        seen: what the window held, in words.
        allowed: what the expectation allows, in words.
        why: why the expectation exists.
        remedy: what to do now.
    """

    window: Window
    rule: str
    severity: str
    seen: str
    allowed: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return (
            f"{self.window} breaks {self.rule} ({self.severity}): {self.seen}; allowed: {self.allowed}. "
            f"Why it matters: {self.why} What to do: {self.remedy}"
        )


@dataclass(frozen=True)
class Checked:
    """The verdict on a chunk of windows of one feed.

    Attributes:
        row_breaches: columns `row` (int64, index into the rows given), `reason` (string, the rule), `detail`
            (string: the value seen, what is allowed); one line at most for each row, in order of row.
        window_breaches: the expectations that windows did not meet, in order of window.
        results: JSON-able: every expectation with its note, severity, success, counts and examples.
    """

    row_breaches: pa.Table
    window_breaches: tuple[WindowBreach, ...]
    results: Mapping[str, Any]


class WindowStopped(RuntimeError):
    """A window may not be published: it breaks expectations of severity critical.

    Attributes:
        feed: the feed's name.
        breaches: the critical breaches, at least one.
        page: path of the page that shows the check.
    """

    def __init__(
        self, feed: str, breaches: Sequence[WindowBreach], others: str = "", page: str | None = None
    ) -> None:
        self.feed, self.page = feed, page
        self.breaches = tuple(breaches)
        said = " ".join(str(breach) for breach in self.breaches)
        super().__init__(f"{feed}: not published, table and model are as before. {said}{' ' if others else ''}{others}")


class SuiteError(ValueError):
    """An expectation file cannot be used; the message names the file, the expectation, the rule and the value."""


@dataclass(frozen=True)
class Rule:
    """One expectation of a suite.

    Attributes:
        name: stable; the reason in the quarantine.
        severity: one of `SEVERITIES`.
        why: why it exists.
        remedy: what to do when it is broken.
        allowed: what it allows, in words.
        column: the column that it judges; None: the table's shape.
        condition: pandas query of the rows that it is about; None: all rows.
        needs: columns (`feed.column`) without which it is left out, beside `column`.
        expectation: Great Expectations' own object.
    """

    name: str
    severity: str
    why: str
    remedy: str
    allowed: str
    column: str | None
    condition: str | None
    needs: frozenset[str]
    expectation: Any

    @property
    def of_table(self) -> bool:
        """Whether it judges the table's shape: then it is answered by the columns' types, without any row."""
        return self.expectation.expectation_type in _OF_TABLE

    @property
    def of_uniqueness(self) -> bool:
        """Whether it judges rows by each other."""
        return self.expectation.expectation_type == _UNIQUE


@dataclass(frozen=True)
class Suites:
    """What `expectations/<feed>.json` holds, in file order."""

    rows: tuple[Rule, ...]
    window: tuple[Rule, ...]


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
        of_copies: the rows are further copies of rows that were judged, several of one key among them: rules on
            uniqueness are left out.

    Raises:
        SuiteError: the file is wrong, or an expectation cannot be evaluated.
    """
    suites = read_suites(EXPECTATIONS / f"{feed.name}.json")
    absent = absent_columns | (frozenset() if unknown is not None else {f"{feed.name}.{_ITEM_KNOWN}"})
    row_rules, rows_left = _split(suites.rows, feed, absent)
    if of_copies:
        rows_left += [rule for rule in row_rules if rule.of_uniqueness]
        row_rules = [rule for rule in row_rules if not rule.of_uniqueness]
    window_rules, window_left = _split(suites.window, feed, absent)
    if unknown is not None:
        rows = rows.append_column(_ITEM_KNOWN, pc.invert(unknown))
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


# -- reading the suites ---------------------------------------------------------------------------------------


@cache
def read_suites(path: Path) -> Suites:
    """The two suites of an expectation file, read and checked once per process.

    Raises:
        SuiteError: no such file, not JSON, an unknown type or argument, an unknown severity, no notes, no rule
            name, no remedy, or a name used twice.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SuiteError(f"Each feed needs an expectation file; {path} does not exist.") from error
    except ValueError as error:
        raise SuiteError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or set(content) != {"rows", "window"}:
        raise SuiteError(f'{path} must hold {{"rows": suite, "window": suite}}; received {str(content)[:200]}.')
    parts = {
        part: tuple(
            _rule(where, f"{path.name}, {part}, expectation {number}", path.stem)
            for number, where in enumerate(suite.get("expectations", ()), 1)
        )
        for part, suite in content.items()
    }
    names = [rule.name for rules in parts.values() for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SuiteError(f"{path.name}: each rule needs a name of its own; used twice: {', '.join(twice)}.")
    return Suites(**parts)


def _rule(said: dict[str, Any], where: str, feed: str) -> Rule:
    meta = said.get("meta") or {}
    where = f"{where} ({meta.get('rule') or said.get('type')})"
    for name, text in (
        ("meta.rule", meta.get("rule")), ("notes", said.get("notes")), ("meta.remedy", meta.get("remedy"))
    ):
        if not isinstance(text, str) or not text.strip():
            raise SuiteError(f"{where}: `{name}` must be a text that says something; received {text!r}.")
    if said.get("severity") not in SEVERITIES:
        raise SuiteError(f"{where}: severity is one of {SEVERITIES}; received {said.get('severity')!r}.")
    kwargs = dict(said.get("kwargs") or {})
    condition = kwargs.get("row_condition")
    if condition is not None and (kwargs.get("condition_parser") != "pandas" or not isinstance(condition, str)):
        raise SuiteError(f'{where}: a row_condition is a pandas query with "condition_parser": "pandas".')
    expectation = _expectation(said, where)  # first: what follows relies on its arguments
    return Rule(
        name=meta["rule"], severity=said["severity"], why=said["notes"], remedy=meta["remedy"],
        allowed=meta.get("allowed") or _allowed(said["type"], kwargs, where),
        column=kwargs.get("column"), condition=condition,
        needs=frozenset(meta.get("needs", ())) | ({f"{feed}.{kwargs['column']}"} if "column" in kwargs else set()),
        expectation=expectation,
    )


def _expectation(said: dict[str, Any], where: str) -> Any:
    gx = _great_expectations()
    try:
        (expectation,) = gx.ExpectationSuite(name="one", expectations=[said]).expectations
    except Exception as error:  # GX raises its own, pydantic's and plain TypeErrors here
        raise SuiteError(f"{where}: Great Expectations refuses it: {error}") from error
    for name in ("min_value", "max_value"):  # GX takes dates as well; no rule of ours needs one
        if not isinstance(getattr(expectation, name, None), int | float | None):
            raise SuiteError(f"{where}: `{name}` must be a number; received {said['kwargs'][name]!r}.")
    if not (expectation.expectation_type in _OF_TABLE or hasattr(expectation, "mostly")):
        raise SuiteError(f"{where}: judges neither single rows nor the table's shape, so no row could be named.")
    return expectation


def _allowed(type_: str, kwargs: Mapping[str, Any], where: str) -> str:
    """What an expectation allows, in words, for the types whose arguments say it."""
    if type_ == _NOT_NULL:
        return "any value, but not none"
    if type_ == _UNIQUE:
        return "a value that no other row has"
    if type_ == "expect_column_values_to_be_in_set":
        return "one of " + ", ".join(str(value) for value in kwargs["value_set"])
    if type_ == "expect_column_values_to_be_between":
        return _range(kwargs)
    if type_ == "expect_column_value_lengths_to_be_between":
        return f"a text of {kwargs.get('min_value') or 0:,} to {kwargs['max_value']:,} characters"
    if type_ == "expect_column_values_to_be_of_type":
        return f"a column of type {kwargs['type_']}"
    if type_ == "expect_table_columns_to_match_set":
        return "the columns " + ", ".join(kwargs["column_set"])
    raise SuiteError(f"{where}: `meta.allowed` must say in words what {type_} allows; it is missing.")


def _range(kwargs: Mapping[str, Any]) -> str:
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    words = []
    if low is not None:
        words.append(f"{'more than' if kwargs.get('strict_min') else 'at least'} {low:,}")
    if high is not None:
        words.append(f"{'less than' if kwargs.get('strict_max') else 'at most'} {high:,}")
    return ", ".join(words)


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
def _definition() -> Any:
    """Where frames are handed to Great Expectations: one in a process, since each costs 30 ms to set up."""
    context = _great_expectations().get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    asset = context.data_sources.add_pandas("landed").add_dataframe_asset("rows")
    return asset.add_batch_definition_whole_dataframe("all")


def _judge_rows(rules: Sequence[Rule], rows: pa.Table) -> list[_Judged]:
    """All row rules in file order; `failed` are row numbers of `rows`.

    Great Expectations hashes every frame twice and, for each rule, filters all its columns anew, which at a million
    rows costs more than the rules. So each kind of rule gets the smallest frame that answers it. Measured side by
    side on two busy cores (tests/benchmarks/bench_checks.py, a million events): 2.3 s, against 4.7 s for one frame
    of all columns, 5.0 s with index columns, and 7.4 s for SUMMARY first and COMPLETE for what failed.
    """
    kinds: dict[str, list[Rule]] = {"table": [], "key": [], "texts": [], "plain": []}
    unique = {rule.column for rule in rules if rule.of_uniqueness}
    for rule in rules:
        kinds[_kind(rule, rows, unique)].append(rule)
    plain = {rule.column for rule in kinds["plain"]} | _named_in_conditions(kinds["plain"], rows)
    found = [
        *_judge(kinds["table"], rows.slice(0, 0).to_pandas()),
        *_judge(kinds["key"], rows.select([name for name in rows.column_names if name in unique]).to_pandas()),
        *_judge_texts(kinds["texts"], rows),
        *_judge(kinds["plain"], _coded(rows.select([name for name in rows.column_names if name in plain]))),
    ]
    judged = {one.rule.name: one for one in found}
    return [judged[rule.name] for rule in rules]


def _kind(rule: Rule, rows: pa.Table, unique: set[str | None]) -> str:
    if rule.of_table:
        return "table"
    if rule.column not in rows.column_names:
        raise SuiteError(f"{rule.name} judges the column {rule.column!r}; the rows have {rows.column_names}.")
    if rule.condition is None and rule.column in unique:
        return "key"
    return "texts" if rule.condition is None and pa.types.is_string(rows.schema.field(rule.column).type) else "plain"


def _named_in_conditions(rules: Sequence[Rule], rows: pa.Table) -> set[str]:
    words = {word for rule in rules if rule.condition for word in re.findall(r"\w+", rule.condition)}
    return words & set(rows.column_names)


def _coded(rows: pa.Table) -> pd.DataFrame:
    """As pandas, texts as categories: to hash and to filter them costs what numbers cost."""
    for number, field in enumerate(rows.schema):
        if pa.types.is_string(field.type):
            rows = rows.set_column(number, field.name, rows.column(number).combine_chunks().dictionary_encode())
    return rows.to_pandas()


def _judge_texts(rules: Sequence[Rule], rows: pa.Table) -> list[_Judged]:
    """Rules on texts alone: each distinct text is judged once, and its verdict goes to all rows that hold it.

    The frame has a column of distinct texts (null is one) for each column, filled up with its first to equal length.
    """
    if not rules:
        return []
    names = list(dict.fromkeys(rule.column for rule in rules))
    coded = {name: rows[name].combine_chunks().dictionary_encode(null_encoding="encode") for name in names}
    height = max(len(column.dictionary) for column in coded.values())
    places = np.arange(height)
    frame = pa.table({
        name: column.dictionary.take(pa.array(np.where(places < len(column.dictionary), places, 0)))
        for name, column in coded.items()
    } if height else {name: rows[name] for name in names})
    return [_of_rows(one, coded[one.rule.column]) for one in _judge(rules, frame.to_pandas())]


def _of_rows(one: _Judged, coded: pa.DictionaryArray) -> _Judged:
    """A verdict on distinct texts as one on the rows that hold them."""
    bad = np.zeros(len(coded.dictionary) + 1, bool)
    bad[one.failed[one.failed < len(coded.dictionary)]] = True
    failed = np.flatnonzero(bad[coded.indices.to_numpy()]) if bad.any() else np.zeros(0, np.int64)
    checked = len(coded) - (0 if one.rule.expectation.expectation_type == _NOT_NULL else _nulls(coded))
    return replace(one, checked=checked, failed=failed)


def _nulls(coded: pa.DictionaryArray) -> int:
    null = pc.index(pc.is_null(coded.dictionary), True).as_py()
    return 0 if null < 0 else int(np.count_nonzero(coded.indices.to_numpy() == null))


def _judge(rules: Sequence[Rule], frame: pd.DataFrame) -> list[_Judged]:
    """Great Expectations' verdict on each rule over one frame with the index 0, 1, 2, ..."""
    if not rules:
        return []
    batch = _definition().get_batch(batch_parameters={"dataframe": frame})
    suite = _great_expectations().ExpectationSuite(name="rules", expectations=[rule.expectation for rule in rules])
    result = batch.validate(suite, result_format=_RESULT_FORMAT)
    by_name = {one.expectation_config.meta["rule"]: one for one in result.results}
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
