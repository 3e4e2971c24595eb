"""The suites of an expectation file: Great Expectations' JSON, with what our operators need beside each rule.

Each expectation has a stable name, a severity, the reason why it exists and what to do when it is broken; a file
that lacks one of them is refused before any row is judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEVERITIES = ("critical", "warning", "info")  # Great Expectations' own names

_OF_TABLE = frozenset({"expect_table_columns_to_match_set", "expect_column_values_to_be_of_type"})
_UNIQUE = "expect_column_values_to_be_unique"
NOT_NULL = "expect_column_values_to_not_be_null"


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


def suites_of(path: Path, expectation_of: Callable[[dict[str, Any]], Any]) -> Suites:
    """The two suites of an expectation file, read and checked.

    Args:
        path: the file; its name is the feed's.
        expectation_of: makes Great Expectations' object of an expectation's JSON.

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
            _rule(said, f"{path.name}, {part}, expectation {number}", path.stem, expectation_of)
            for number, said in enumerate(suite.get("expectations", ()), 1)
        )
        for part, suite in content.items()
    }
    names = [rule.name for rules in parts.values() for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SuiteError(f"{path.name}: each rule needs a name of its own; used twice: {', '.join(twice)}.")
    return Suites(**parts)


def _rule(
    said: dict[str, Any], where: str, feed: str, expectation_of: Callable[[dict[str, Any]], Any]
) -> Rule:
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
    expectation = _expectation(said, where, expectation_of)  # first: what follows relies on its arguments
    return Rule(
        name=meta["rule"], severity=said["severity"], why=said["notes"], remedy=meta["remedy"],
        allowed=meta.get("allowed") or _allowed(said["type"], kwargs, where),
        column=kwargs.get("column"), condition=condition,
        needs=frozenset(meta.get("needs", ())) | ({f"{feed}.{kwargs['column']}"} if "column" in kwargs else set()),
        expectation=expectation,
    )


def _expectation(said: dict[str, Any], where: str, expectation_of: Callable[[dict[str, Any]], Any]) -> Any:
    try:
        expectation = expectation_of(said)
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
    if type_ == NOT_NULL:
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
