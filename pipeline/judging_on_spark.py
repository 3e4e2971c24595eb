"""The same verdict as judging.py's, by Great Expectations on Spark: for windows whose frames do not fit into memory.

Great Expectations reads nulls, regular expressions and conditions differently there; what differs is put right here, so
that every row breaks the same rules by both (tests/test_judging_on_spark.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import spark_session
from pipeline.judging import RESULT_FORMAT, ROW, Judged, context, judge_rows, judged_of
from pipeline.suites import Rule

_COMPARED = re.compile(r"(\w+) (==|!=) (\S+)")


def judge_rows_on_spark(rules: Sequence[Rule], rows: pa.Table) -> list[Judged]:
    """All row rules in file order; `failed` are row numbers of `rows`.

    Raises:
        EngineMissing: there is no PySpark.
        SuiteError: as `judge_rows`.
    """
    shape = {one.rule.name: one for one in judge_rows([rule for rule in rules if rule.of_table], rows)}
    about_rows = [rule for rule in rules if not rule.of_table]
    names = [name for name in rows.column_names if any(name in _read(rule) for rule in about_rows)]
    numbered = _plain(rows.select(names)).append_column(ROW, pa.array(np.arange(len(rows))))
    frame = spark_session().createDataFrame(numbered)  # Great Expectations caches it: every rule reads it
    try:
        results = _validator(frame).graph_validate(
            configurations=[_configuration(rule) for rule in about_rows],
            runtime_configuration={"result_format": RESULT_FORMAT | {"unexpected_index_column_names": [ROW]}},
        )
    finally:
        frame.unpersist()
    by_name = {one.expectation_config.meta["rule"]: one for one in results}
    judged = shape | {rule.name: judged_of(rule, by_name[rule.name], len(rows)) for rule in about_rows}
    return [judged[rule.name] for rule in rules]


def _read(rule: Rule) -> set[str]:
    return {str(rule.column), *re.findall(r"\w+", rule.condition or "")}


def _plain(rows: pa.Table) -> pa.Table:
    """The rows with types that Spark knows; a number that is none is missing, as it is for pandas."""
    columns = {}
    for name in rows.column_names:
        column = rows[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        columns[name] = column
    return pa.table(columns)


def _validator(frame: Any) -> Any:
    from great_expectations.execution_engine import SparkDFExecutionEngine
    from great_expectations.validator.validator import Validator

    return Validator(
        execution_engine=SparkDFExecutionEngine(batch_data_dict={"rows": frame}), data_context=context()
    )


def _configuration(rule: Rule) -> Any:
    """The expectation with its condition in Spark's words: `<=>` takes a null for a value, as pandas does."""
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    said = rule.expectation.configuration
    arguments = dict(said.kwargs)
    if rule.condition is not None:
        arguments |= {"row_condition": spark_condition(rule.condition), "condition_parser": "spark"}
    return ExpectationConfiguration(type=said.type, kwargs=arguments, meta=said.meta)


def spark_condition(condition: str) -> str:
    """A pandas query as a Spark expression."""

    def comparison(found: re.Match[str]) -> str:
        name, sign, value = found.groups()
        return f"{name} <=> {value}" if sign == "==" else f"NOT ({name} <=> {value})"

    return _COMPARED.sub(comparison, condition)
