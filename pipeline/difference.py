"""The difference between what landed and what a table holds, by key, the net of a change feed, and recounts.

Pure functions from tables to tables, in DuckDB's SQL: `lake.py` reads before them and writes after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from pipeline.schema import Feed
from pipeline.window import Window


@dataclass(frozen=True)
class Plan:
    """What publishing does to a feed's table and to its spare rows."""

    counted: pa.Table  # the rows of the call's windows that count
    duplicates: pa.Table  # the rows of the call's windows that do not
    inserted: pa.Table
    changed: pa.Table  # new content under a key that is held, rows of other windows included
    gone: pa.Table
    spare_before: pa.Table  # duplicates_<feed> of the days concerned
    restored: pa.Table  # of `changed`: rows that were spare and count again
    spare_until_then: pa.Table  # to be written before the table is: no row of either is lost between the two
    spare_after: pa.Table


def difference(
    feed: Feed, windows: Sequence[Window], rows: pa.Table, duplicates: pa.Table, held: pa.Table, spare: pa.Table
) -> Plan:
    """What must change, from the rows that landed and what table and spare rows hold around their windows."""
    key = feed.key
    if not len(held) and not len(spare):  # the first load: nothing to compare with
        none = rows.slice(0, 0)
        return Plan(
            counted=rows, duplicates=duplicates, inserted=rows, changed=none, gone=none, restored=none,
            spare_before=spare, spare_until_then=duplicates, spare_after=duplicates,
        )
    sql = duckdb.connect()
    sql.execute("SET TimeZone = 'UTC'")
    for name, table in (("landed", rows), ("landed_twice", duplicates), ("held", held), ("spare", spare)):
        sql.register(name, table)
    names = ", ".join(feed.table_schema.names)
    mine = sql_windows(windows)
    differs = " OR ".join(f"h.{name} IS DISTINCT FROM l.{name}" for name in _content(feed))

    def run(query: str) -> pa.Table:
        return sql.sql(query).to_arrow_table().cast(feed.table_schema)

    def columns(alias: str) -> str:
        return ", ".join(f"{alias}.{name}" for name in feed.table_schema.names)

    # a window may hold several copies of a row, of which one counts: only its place tells them apart
    def same_place(one: str, other: str) -> str:
        return " AND ".join(
            f"{one}.{name} = {other}.{name}" for name in (key, "landed_window", "source_file", "source_row")
        )

    # where each key counts outside of the windows: where it is held, or would be if these windows were empty
    elsewhere = f"""(SELECT {names} FROM held WHERE NOT ({mine})
                     UNION ALL
                     SELECT {columns("s")} FROM spare s SEMI JOIN (SELECT {key} FROM held WHERE {mine}) USING ({key})
                     WHERE NOT ({mine}) QUALIFY row_number() OVER (
                         PARTITION BY {key} ORDER BY landed_window, source_file, source_row) = 1)"""
    counted = run(f"""SELECT {columns('l')} FROM landed l LEFT JOIN {elsewhere} h USING ({key})
                      WHERE h.{key} IS NULL OR h.landed_window > l.landed_window""")
    yielding = run(f"""SELECT {columns('l')} FROM landed l JOIN {elsewhere} h USING ({key})
                       WHERE h.landed_window < l.landed_window""")
    displaced = run(f"""SELECT {columns('h')} FROM landed l JOIN {elsewhere} h USING ({key})
                        WHERE h.landed_window > l.landed_window""")
    sql.register("counted", counted)
    inserted = run(f"SELECT {columns('l')} FROM counted l ANTI JOIN held USING ({key})")
    rewritten = run(f"""SELECT {columns('l')} FROM counted l JOIN held h USING ({key})
                        WHERE {differs} OR h.landed_window <> l.landed_window""")
    left = run(f"SELECT {names} FROM held h ANTI JOIN counted USING ({key}) WHERE {mine}")
    sql.register("left_behind", left)
    # an earlier copy of a row that left may have landed elsewhere: it counts again
    restored = run(f"""SELECT {columns('s')} FROM spare s SEMI JOIN left_behind USING ({key})
                       WHERE NOT ({mine})
                       QUALIFY row_number() OVER (
                           PARTITION BY {key} ORDER BY landed_window, source_file, source_row) = 1""")
    sql.register("restored", restored)
    gone = run(f"SELECT {names} FROM left_behind ANTI JOIN restored USING ({key})")
    all_duplicates = pa.concat_tables([duplicates, yielding])
    sql.register("all_duplicates", all_duplicates)
    sql.register("displaced", displaced)
    spare_until_then = run(f"""
        SELECT {names} FROM all_duplicates
        UNION ALL SELECT {names} FROM displaced
        UNION ALL SELECT {columns('s')} FROM spare s ANTI JOIN displaced d
            ON {same_place('s', 'd')}
            WHERE NOT ({mine}) AND NOT EXISTS (SELECT 1 FROM held h WHERE {same_place('h', 's')})""")
    sql.register("spare_until_then", spare_until_then)
    spare_after = run(f"""SELECT {columns('s')} FROM spare_until_then s ANTI JOIN restored r
                          ON {same_place('s', 'r')}""") if len(restored) else spare_until_then
    return Plan(
        counted=counted, duplicates=all_duplicates, inserted=inserted,
        changed=pa.concat_tables([rewritten, restored]), gone=gone, restored=restored,
        spare_before=spare, spare_until_then=spare_until_then, spare_after=spare_after,
    )


def _content(feed: Feed) -> list[str]:
    """The columns that make a row's content: where it came from and how it was filled in are none of it."""
    return [name for name in (*feed.raw_names, "hour") if name != feed.key]


def net_changes(log: pa.Table, feed: Feed) -> pa.Table:
    """A change feed's first and last image of each key, reduced to what differs between them."""
    names = feed.table_schema.names
    sql = duckdb.connect()
    sql.execute("SET TimeZone = 'UTC'")
    sql.register("log", log)
    same = " AND ".join(f"f.{name} IS NOT DISTINCT FROM l.{name}" for name in _content(feed))
    columns = ", ".join(f"l.{name}" for name in names)
    # within a commit a row's image before comes before its image after
    order = "_commit_version {0}, (_change_type IN ('insert', 'update_postimage')) {0}"
    edge = "SELECT * FROM log QUALIFY row_number() OVER (PARTITION BY {0} ORDER BY {1}) = 1"
    result = sql.sql(f"""
        WITH first_image AS ({edge.format(feed.key, order.format("ASC"))}),
             last_image AS ({edge.format(feed.key, order.format("DESC"))}),
             net AS (
                SELECT {columns},
                    CASE WHEN l._change_type = 'delete' THEN 'delete'
                         WHEN f._change_type = 'insert' THEN 'insert' ELSE 'update' END AS change,
                    f._change_type = 'insert' AND l._change_type = 'delete' AS came_and_went,
                    f._change_type <> 'insert' AND l._change_type <> 'delete' AND {same} AS unchanged
                FROM first_image f JOIN last_image l USING ({feed.key}))
        SELECT {", ".join(names)}, change FROM net WHERE NOT came_and_went AND NOT unchanged""").to_arrow_table()
    return result.cast(feed.table_schema.append(pa.field("change", pa.string())))


def miscounted(rows: pa.Table, log: pa.Table, feed: Feed) -> pa.Table:
    """The rows of the window log whose counts are not those of the table, with the right ones.

    Args:
        rows: `landed_window` and `hour` of the table's rows.
        log: the window log of the same days, all feeds.
        feed: the feed that is counted.
    """
    sql = duckdb.connect()
    sql.execute("SET TimeZone = 'UTC'")
    sql.register("held", rows)
    sql.register("log", log)
    # what is in a window and neither counts nor is quarantined is a duplicate; where that is less than none, the
    # window itself was published and not recorded yet, which its own run will do
    return sql.sql(f"""
        WITH counts AS (
            SELECT landed_window, count(*) AS published, count(*) FILTER (hour < landed_window) AS late
            FROM held GROUP BY landed_window),
        right_log AS (
            SELECT l.* REPLACE (
                coalesce(c.published, 0) AS published, coalesce(c.late, 0) AS late,
                l.rows_in - l.quarantined - coalesce(c.published, 0) AS duplicates)
            FROM log l LEFT JOIN counts c USING (landed_window) WHERE l.feed = '{feed.name}')
        SELECT r.* FROM right_log r JOIN log l USING (feed, landed_window)
        WHERE r.duplicates >= 0 AND (r.published, r.late) IS DISTINCT FROM (l.published, l.late)
        """).to_arrow_table().select(log.column_names).cast(log.schema)


def same_rows(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables hold the same rows, in whatever order."""
    if len(one) != len(other):
        return False
    if not len(one):
        return True
    order = [(name, "ascending") for name in one.schema.names]
    return bool(one.sort_by(order).equals(other.select(one.schema.names).cast(one.schema).sort_by(order)))


def sql_windows(windows: Sequence[Window]) -> str:
    """A predicate on landed_window that holds for exactly `windows`, as few ranges as they need.

    The hours are text with a zone, which DuckDB and Delta both turn into the column's type: Delta refuses to
    compare it with a TIMESTAMP literal, and DuckDB reads one in the machine's zone.
    """
    runs: list[list[Window]] = []
    for window in sorted(windows):
        if runs and runs[-1][-1].end == window.start:
            runs[-1].append(window)
        else:
            runs.append([window])
    stamp = "%Y-%m-%dT%H:00:00Z"
    return " OR ".join(
        f"(landed_window >= '{run[0].start.strftime(stamp)}' "
        f"AND landed_window < '{run[-1].end.strftime(stamp)}')" for run in runs
    )
