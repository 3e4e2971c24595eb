"""The check of landed rows against the expectations of their feed: which rows may not pass, which windows may not.

Great Expectations judges; this module feeds it and turns its results into what ingest needs: one reason per bad
row, one sentence per bad window, and a record of all for the page that a person opens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.facts import WINDOW_FACTS, derived_facts, fact_in_words
from pipeline.judging import Judged, great_expectations, judge, judge_rows
from pipeline.schema import Feed
from pipeline.settings import REPOSITORY
from pipeline.suites import SEVERITIES, Rule, SuiteError, Suites, suites_of
from pipeline.verdict import Checked, WindowBreach, WindowStopped
from pipeline.window import Window

EXPECTATIONS = REPOSITORY / "expectations"

__all__ = [
    "SEVERITIES", "WINDOW_FACTS", "Checked", "Rule", "SuiteError", "Suites", "WindowBreach", "WindowStopped", "check",
    "read_suites",
]

_BREACHES = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])
_ITEM_KNOWN = "item_known"  # the column that `check` makes of `unknown` for the suites
_USER_WIDTH = "user_width"  # likewise, of `widths`
_SEEN_CHARACTERS = 80  # of a value in a sentence: an id of 10,000 characters is not read by anyone
_PLAIN_BELOW = 1e15  # above, a float's digits are noise and 1e+308 is read more easily than 308 zeros
_EXAMPLES = 5
_PERSONAL = frozenset({"user_id", "session_id"})


def check(
    feed: Feed,
    rows: pa.Table,
    facts: pa.Table,
    absent_columns: frozenset[str],
    unknown: pa.Array | None = None,
    widths: pa.Array | None = None,
    *,
    of_copies: bool = False,
    spark_rows: int | None = None,
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
        spark_rows: from so many rows on Great Expectations judges them on Spark; None: never.

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
    judged = _judged_where_it_fits(row_rules, rows, spark_rows)
    breaches = _row_breaches(judged, rows)
    windows = [Window(start) for start in facts["landed_window"].to_pylist()]
    derived = derived_facts(facts, _rejected(breaches, rows, facts))
    about_windows = judge(window_rules, derived.to_pandas())
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


def _judged_where_it_fits(rules: list[Rule], rows: pa.Table, spark_rows: int | None) -> list[Judged]:
    if spark_rows is None or len(rows) < spark_rows:
        return judge_rows(rules, rows)
    from pipeline.judging_on_spark import judge_rows_on_spark

    return judge_rows_on_spark(rules, rows)


def _split(rules: tuple[Rule, ...], feed: Feed, absent: frozenset[str]) -> tuple[list[Rule], list[Rule]]:
    """The rules that this shop's columns allow, and those left out."""
    here = [rule for rule in rules if not rule.needs & absent]
    return here, [rule for rule in rules if rule.needs & absent]


@cache
def read_suites(path: Path) -> Suites:
    """The two suites of an expectation file, read once per process.

    Raises:
        SuiteError: as `suites_of`.
    """

    def expectation_of(said: dict[str, Any]) -> Any:
        (expectation,) = great_expectations().ExpectationSuite(name="one", expectations=[said]).expectations
        return expectation

    return suites_of(path, expectation_of)


def row_faults(feed: Feed, rows: pa.Table, absent_columns: frozenset[str] = frozenset()) -> pa.Table:
    """What single typed rows break, without a window to judge: `row` (index), `reason`, `detail`."""
    rules, _ = _split(read_suites(EXPECTATIONS / f"{feed.name}.json").rows, feed, absent_columns | {_ITEM_KNOWN})
    return _row_breaches(judge_rows(rules, rows), rows)


def faults_of(suite: str, rows: pa.Table) -> pa.Table:
    """What rows of a table of our own break of `expectations/<suite>.json`.

    Returns:
        As `Checked.row_breaches`, and `severity`.

    Raises:
        SuiteError: the file is wrong, or an expectation cannot be evaluated.
    """
    rules = read_suites(EXPECTATIONS / f"{suite}.json").rows
    breaches = _row_breaches(judge_rows(rules, rows), rows)
    severity = {rule.name: rule.severity for rule in rules}
    said = pa.array([severity[name] for name in breaches["reason"].to_pylist()], pa.string())
    return breaches.add_column(1, "severity", said)


def _row_breaches(judged: Sequence[Judged], rows: pa.Table) -> pa.Table:
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
    about_rows: Sequence[Judged], about_windows: Sequence[Judged], facts: pa.Table, windows: Sequence[Window]
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


def _row_result(one: Judged, rows: pa.Table) -> dict[str, Any]:
    examples: list[str] = []
    if one.rule.column is not None and len(one.failed):
        first = rows[one.rule.column].take(pa.array(np.sort(one.failed)[:_EXAMPLES]))
        examples = list(dict.fromkeys(_seen(first, one.rule.column).to_pylist()))
    if one.rule.of_table and not one.success:
        examples = [f"the table has {one.observed or 'other columns'}"]
    return _result(one, "table" if one.rule.of_table else "rows", examples)


def _window_result(one: Judged, facts: pa.Table, windows: Sequence[Window]) -> dict[str, Any]:
    column = one.rule.column or ""
    if len(windows) == 1:  # its value is shown also where all is well; the page's title says which window
        examples = [fact_in_words(facts, column, 0)] if one.checked else ["too little to judge by"]
    else:
        few = one.failed[:_EXAMPLES].tolist()
        examples = [f"{windows[at]}: {fact_in_words(facts, column, at)}" for at in few]
    failing = [str(windows[at]) for at in one.failed.tolist()]
    return _result(one, "window", examples) | {"windows": failing, "of_windows": len(windows)}


def _result(one: Judged, about: str, examples: list[str]) -> dict[str, Any]:
    """One line of the page."""
    return {
        "rule": one.rule.name, "about": about, "severity": one.rule.severity, "column": one.rule.column,
        "condition": one.rule.condition, "allowed": one.rule.allowed, "why": one.rule.why,
        "remedy": one.rule.remedy, "success": one.success, "checked": one.checked,
        "failed": len(one.failed) if about != "table" else int(not one.success), "examples": examples,
    }
