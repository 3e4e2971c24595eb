"""What runs table work over whole tables: DuckDB in this process, or Spark where history outgrows one machine.

The work is written once, as Ibis expressions (DESIGN.md, decision 9); `EVERGREEN_ENGINE=spark` has those over a whole
table run by Spark, with equal results (tests/test_engine.py). What concerns few rows stays with DuckDB: it has answered
before Spark has planned. Spark's own settings say where it runs (`SPARK_CONF_DIR`, `SPARK_REMOTE`,
`PYSPARK_SUBMIT_ARGS="--master spark://… pyspark-shell"`); told nothing, it runs in this machine's Java.

Spark reads the files that a version of a Delta table consists of as Parquet: delta-rs writes neither deletion vectors
nor renamed columns, and Spark's reader of Delta would be another package from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ibis
import pyarrow as pa
import pyarrow.dataset as ds

if TYPE_CHECKING:
    import ibis.expr.types as ir

class EngineMissing(RuntimeError):
    """The chosen engine is not installed."""


def duckdb_connection() -> Any:
    """An Ibis connection to a DuckDB in memory that tells time in UTC.

    Filters stay in DuckDB: those that it hands to Arrow's files compare texts as `string_view`, for which Arrow has no
    kernel ("no kernel matching input types (string, string_view)"; DuckDB 2.0.0, pyarrow 25.0.1, seen when the users
    of an update are so few that they become a range). Columns that are not needed are still not read.
    """
    connection = ibis.duckdb.connect()
    connection.raw_sql("SET TimeZone = 'UTC'; SET disabled_optimizers = 'filter_pushdown'")
    return connection


def connected(engine: str) -> Any:
    """An Ibis connection to `duckdb` or `spark`; a Spark session is started once for the process.

    Raises:
        EngineMissing: Spark is chosen and there is none.
    """
    if engine == "duckdb":
        return duckdb_connection()
    return ibis.pyspark.connect(spark_session())  # which sets the session's time zone to UTC


def spark_session() -> Any:
    """The process' Spark session, started where there is none.

    Raises:
        EngineMissing: there is no PySpark.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise EngineMissing(
            "EVERGREEN_ENGINE=spark and EVERGREEN_SPARK_ROWS need PySpark, and Java 17 or newer; install it with: "
            "uv pip install --constraint requirements.lock 'pyspark>=4.3,<5'"
        ) from error
    return SparkSession.builder.appName("evergreen").getOrCreate()


def is_spark(connection: Any) -> bool:
    """Whether a connection is to Spark."""
    return bool(connection.name == "pyspark")


def table_of(connection: Any, name: str, rows: pa.Table | ds.Dataset) -> ir.Table:
    """Rows of this process (DuckDB: also a dataset, read lazily) as a table of the connection."""
    if is_spark(connection):
        plain = rows.cast(pa.schema([field.with_type(_plain(field.type)) for field in rows.schema]))
        connection._session.createDataFrame(plain).createOrReplaceTempView(name)
    else:
        connection.con.register(name, rows)
    return connection.table(name)


def files_of(connection: Any, name: str, root: str, files: Sequence[str], schema: pa.Schema) -> ir.Table:
    """The Parquet files of a partitioned table below `root` as a table of a connection to Spark."""
    from pyspark.sql.pandas.types import from_arrow_schema

    spoken = [place.replace("s3://", "s3a://", 1) for place in (root, *files)]  # Hadoop's name for it
    read = connection._session.read.schema(from_arrow_schema(schema)).option("basePath", spoken[0])
    read.parquet(*spoken[1:]).createOrReplaceTempView(name)
    return connection.table(name)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that Spark knows a column by: Arrow's texts have several."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind


@ibis.udf.scalar.builtin
def epoch_us(time) -> int:  # type: ignore[empty-body, no-untyped-def]  # noqa: ANN001 - Ibis takes any type for it
    """DuckDB's; declared here, computed there."""


@ibis.udf.scalar.builtin
def unix_micros(time) -> int:  # type: ignore[empty-body, no-untyped-def]  # noqa: ANN001
    """Spark's."""


def microseconds(time: ir.TimestampValue) -> ir.IntegerValue:
    """Microseconds since 1970, exact: `epoch_seconds` has a fraction in DuckDB and none in Spark."""
    return unix_micros(time) if is_spark(time.get_backend()) else epoch_us(time)
