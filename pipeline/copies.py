"""Which of several copies of a row counts: the first, in order of landing, that the check lets pass.

A window is judged as if it had come alone, so that a bulk ends as its hours would: of the copies in one window the
first good one settles it, those before are refused, those after are duplicates. Over all windows the earliest counts.
"""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.cleaning import FAULTS_SCHEMA
from pipeline.schema import Feed


def first_copies(rows: pa.Table, feed: Feed) -> tuple[pa.Table, pa.Table]:
    """Rows divided into the first of each key, in order of landing, and the copies that landed after it."""
    keys = rows[feed.key].combine_chunks().dictionary_encode()
    if len(keys.dictionary) == len(rows):
        return rows, rows.slice(0, 0)
    first = np.zeros(len(keys.dictionary), np.int64)
    first[keys.indices.to_numpy()[::-1]] = np.arange(len(rows))[::-1]  # of several, the last that is written stays
    counts = np.zeros(len(rows), bool)
    counts[first] = True
    return rows.filter(pa.array(counts)), rows.filter(pa.array(~counts))


def usable_copies(
    rows: pa.Table, copies: pa.Table, feed: Feed, judge: Callable[[pa.Table], pa.Table]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Judges the copies of windows in which no other copy of the row is good, and lets the earliest good one count.

    Otherwise a corrected copy would be thrown away as the duplicate of a row that nobody can see, and a bad copy in
    a later window would be a duplicate in bulk but refused where that hour comes alone.

    Args:
        rows: what counts so far, at most one row a key, and `landed_row`.
        copies: all other rows that were not refused, the same columns.
        feed: the feed.
        judge: gives the faults (FAULTS_SCHEMA) of some copies, of which several may have one key.

    Returns:
        rows, copies, and the faults of copies that are refused.
    """
    none = FAULTS_SCHEMA.empty_table()
    if not len(copies):
        return rows, copies, none
    sql = duckdb.connect()
    _register(sql, "rows", rows, feed)
    _register(sql, "copies", copies, feed)
    unsettled = _numbers(sql, "SELECT landed_row FROM copies ANTI JOIN rows USING (key, landed_window)")
    if not len(unsettled):
        return rows, copies, none
    landed = np.asarray(copies["landed_row"])
    judged = copies.filter(pa.array(np.isin(landed, unsettled)))
    faults = judge(judged)
    _register(sql, "judged", judged, feed)
    sql.register("faults", faults)
    sql.execute("""CREATE TEMP TABLE good AS SELECT key, landed_window, min(landed_row) AS landed_row
                   FROM judged ANTI JOIN faults USING (landed_row) GROUP BY ALL""")
    refused = _numbers(
        sql,
        """SELECT j.landed_row FROM judged j SEMI JOIN faults USING (landed_row) LEFT JOIN good g
           USING (key, landed_window) WHERE g.key IS NULL OR j.landed_row < g.landed_row""",
    )
    counting = _numbers(sql, "SELECT min(landed_row) FROM good ANTI JOIN rows USING (key) GROUP BY key")
    counts, leaves = np.isin(landed, counting), np.isin(landed, refused)
    return (
        pa.concat_tables([rows, copies.filter(pa.array(counts))]),
        copies.filter(pa.array(~counts & ~leaves)),
        faults.filter(pa.array(np.isin(np.asarray(faults["landed_row"]), refused))),
    )


def _register(sql: duckdb.DuckDBPyConnection, name: str, table: pa.Table, feed: Feed) -> None:
    sql.register(name, pa.table({"key": table[feed.key]} | {n: table[n] for n in ("landed_window", "landed_row")}))


def _numbers(sql: duckdb.DuckDBPyConnection, query: str) -> np.ndarray:
    return sql.sql(query).to_arrow_table().column(0).to_numpy()
