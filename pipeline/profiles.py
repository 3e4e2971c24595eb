"""Profiles: what each window held, in counts, so that drift is told from sums and no old row is read again.

A profile counts the rows of a window by bins of each column: kinds and categories by name, prices and quantities by
half octaves, texts by half octaves of their length, nulls as a bin of their own. Bins do not follow the data, so the
profiles of any windows add up. What a champion answers is profiled the same way, under `answers-<task>`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.lake import Lake
from pipeline.schema import EVENTS, FEEDS, ITEMS, MESSAGES, PROFILES_SCHEMA, TIME
from pipeline.snapshot import Snapshot
from pipeline.tables import text_field

Counts = Mapping[str, Mapping[str, int]]  # column -> bin -> rows

KEPT_DAYS = 36  # four weeks to compare the newest day with, and a day at either end

# 5 million rows of the columns profiled are some 500 MB; what is left is profiled by the next hours' runs.
_ROWS_A_RUN = 5_000_000

# Somebody who was not there for four weeks, all weekdays four times, is new to what the hours teach.
_NEW_AFTER_DAYS = 28
_NEW_ITEM_DAYS = 7  # a shop's "new in"

# 36 days of hours would be 900 small files; a day's are put together once the day is over.
_FILES_BEFORE_COMPACTION = 48

_MOST_BINS = 100  # of a window's column; the rarer ones are counted as `other`

MISSING, OTHER, UNKNOWN = "missing", "other", "unknown"


@runtime_checkable
class Answering(Protocol):
    """A task whose champion's answers can be profiled without its learner."""

    def answered(self, artifacts: Path, tables: Snapshot, rows: pa.Table) -> Counts:
        """What a version answers to those who did something in `rows`: column -> bin -> answers.

        Args:
            artifacts: the package's artifacts, as the registry holds them.
            tables: at the versions up to which the shop is known.
            rows: of the task's table, all its columns.
        """


def _half_octaves(number: str) -> str:
    return (
        f"CASE WHEN {number} IS NULL THEN '{MISSING}' WHEN {number} <= 0 THEN '0' "
        f"ELSE CAST(CAST(floor(2 * log2({number})) AS INTEGER) AS VARCHAR) END"
    )


def _name(column: str) -> str:
    return f"coalesce(nullif(trim({column}), ''), '{MISSING}')"


def _length(column: str) -> str:
    return _half_octaves(f"CAST(length({column}) AS DOUBLE)")


# feed -> column of the profile -> (the bin, which rows count). `items` is known to the queries of events.
_COLUMNS: dict[str, dict[str, tuple[str, str]]] = {
    EVENTS.name: {
        "event_type": ("event_type", "true"),
        "price": (_half_octaves("price"), "event_type = 'purchase'"),
        "quantity": (_half_octaves("quantity"), "event_type = 'purchase'"),
        "rating": (_half_octaves("rating"), "event_type = 'rating'"),
        "query length": (_length("query"), "event_type = 'search'"),
        "category": (_name("category"), "rows.item_id IS NOT NULL"),
        "item": ("item", "rows.item_id IS NOT NULL"),
        "user": ("user_kind", "true"),
    },
    ITEMS.name: {
        "price": (_half_octaves("price"), "true"),
        "stock": (_half_octaves("stock"), "true"),
        "category": (_name("category"), "true"),
        "title length": (_length("title"), "true"),
        "description length": (_length("description"), "true"),
    },
    MESSAGES.name: {
        "text length": (_length("text"), "true"),
        "channel": (_name("channel"), "true"),
        "label": (_name("label"), "true"),
        "user": (f"CASE WHEN user_id IS NULL THEN '{MISSING}' ELSE 'known' END", "true"),
    },
}

# the columns whose bins are half octaves; a name that is a number, as many shops' categories are, is none
NUMBERED = frozenset(
    name for columns in _COLUMNS.values() for name, (bins, _) in columns.items() if "log2" in bins
)

# What a row of events is about: an item that the catalogue has never described, that is new in it, or that is known;
# a guest, a user who was not there in the last weeks, or one who was.
_EVENTS = f"""
    SELECT rows.*, described.category,
        CASE WHEN described.first_change IS NULL THEN '{UNKNOWN}'
             WHEN described.first_change > rows.landed_window - INTERVAL {_NEW_ITEM_DAYS} DAY
                  AND described.first_change > shop.begins + INTERVAL {_NEW_ITEM_DAYS} DAY THEN 'new'
             ELSE 'known' END AS item,
        CASE WHEN rows.user_id IS NULL THEN 'guest'
             WHEN seen.first_seen >= rows.landed_window THEN 'new' ELSE 'returning' END AS user_kind
    FROM landed AS rows LEFT JOIN described USING (item_id) LEFT JOIN seen USING (user_id),
        (SELECT min(first_change) AS begins FROM described) AS shop
"""


@dataclass(frozen=True)
class Profile:
    """What one window held.

    Attributes:
        window: its start.
        version: of the window log's entry, or of the model that answered.
        rows: how many rows (or answers) were counted.
        counts: column -> bin -> rows.
    """

    window: datetime
    version: int
    rows: int
    counts: Counts


def read_profiles(lake: Lake, about: str, since: datetime) -> dict[datetime, Profile]:
    """The newest profile of each window from `since` on."""
    days = ds.field("landed_date") >= pa.scalar(since.date())
    rows = lake.arrow("window_profiles", filter=days & (text_field("about") == about) & (
        ds.field("landed_window") >= pa.scalar(since, TIME)
    )).sort_by([("landed_window", "ascending"), ("version", "ascending")])
    return {
        row["landed_window"]: Profile(row["landed_window"], row["version"], row["rows"], json.loads(row["counts"]))
        for row in rows.to_pylist()
    }


def summed(profiles: Iterable[Counts]) -> dict[str, Counter[str]]:
    """The counts of several windows added up."""
    total: dict[str, Counter[str]] = {}
    for counts in profiles:
        for column, bins in counts.items():
            total.setdefault(column, Counter()).update(bins)
    return total


def profile_windows(lake: Lake) -> int:
    """Profiles the windows of the last `KEPT_DAYS` that have none yet or have changed since; newest days first.

    Returns:
        how many windows were profiled.
    """
    day = lake.newest_day("windows")
    if day is None:
        return 0
    log = lake.window_log(since=day - timedelta(days=KEPT_DAYS))
    newest = pc.max(log["landed_window"]).as_py()
    since = newest - timedelta(days=KEPT_DAYS)
    done = 0
    for feed in FEEDS:
        held = read_profiles(lake, feed, since)
        due = [
            row for row in log.filter(pc.equal(log["feed"], feed)).to_pylist()
            if row["landed_window"] >= since and row["published"]
            and (row["landed_window"] not in held or held[row["landed_window"]].version < row["table_version"])
        ]
        chosen = _affordable(due)
        if chosen:
            _append(lake, feed, chosen)
            done += len(chosen)
    _compact(lake, newest.date())
    return done


def append_profile(lake: Lake, about: str, window: datetime, version: int, counts: Counts) -> None:
    """Appends one profile."""
    rows = max((sum(bins.values()) for bins in counts.values()), default=0)
    lake.append("window_profiles", _table([(about, window, version, rows, counts)]))


def _affordable(due: list[dict[str, Any]]) -> dict[datetime, int]:
    """Window -> version of the newest days whose rows fit into one run; at least one day."""
    chosen: dict[datetime, int] = {}
    rows, day = 0, None
    for row in sorted(due, key=lambda row: row["landed_window"], reverse=True):
        rows += row["published"]
        if rows > _ROWS_A_RUN and day is not None and row["landed_date"] != day:
            break
        chosen[row["landed_window"]], day = row["table_version"], row["landed_date"]
    return chosen


def _append(lake: Lake, feed: str, chosen: Mapping[datetime, int]) -> None:
    counted, rows = _counted(lake, feed, sorted(chosen))
    lake.append("window_profiles", _table([
        (feed, window, version, rows.get(window, 0), counted.get(window, {})) for window, version in chosen.items()
    ]))


def _table(profiles: Iterable[tuple[str, datetime, int, int, Counts]]) -> pa.Table:
    return pa.Table.from_pylist([
        {"about": about, "landed_window": window, "landed_date": window.date(), "version": version, "rows": rows,
         "counts": json.dumps(counts, sort_keys=True)}
        for about, window, version, rows, counts in profiles
    ], schema=PROFILES_SCHEMA)


def _counted(
    lake: Lake, feed: str, windows: list[datetime]
) -> tuple[dict[datetime, dict[str, dict[str, int]]], dict[datetime, int]]:
    """Window -> column -> bin -> rows, and window -> rows."""
    import duckdb

    days = pa.array(sorted({window.date() for window in windows}), pa.date32())
    chosen = ds.field("landed_date").isin(days) & ds.field("landed_window").isin(pa.array(windows, TIME))
    landed = lake.arrow(feed, columns=FEEDS[feed].table_schema.names, filter=chosen)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("landed", landed)
    source = "landed AS rows"
    if feed == EVENTS.name:
        connection.register("described", _described(lake))
        connection.register("seen", _seen(lake, landed, days[0].as_py()))
        connection.execute(f"CREATE TEMP TABLE told AS {_EVENTS}")
        source = "told AS rows"
    counts: dict[datetime, dict[str, dict[str, int]]] = {}
    parts = [
        f"SELECT landed_window, '{column}' AS name, {bins} AS label, count(*) AS rows "
        f"FROM {source} WHERE {which} GROUP BY ALL"
        for column, (bins, which) in _COLUMNS[feed].items()
    ]
    found = connection.sql(" UNION ALL ".join(parts)).to_arrow_table().to_pydict()
    for window, column, label, rows in zip(*found.values(), strict=True):
        counts.setdefault(window, {}).setdefault(column, {})[label] = rows
    kept = {window: {name: _few(bins) for name, bins in found.items()} for window, found in counts.items()}
    number = landed.group_by("landed_window").aggregate([([], "count_all")])
    return kept, dict(zip(number["landed_window"].to_pylist(), number["count_all"].to_pylist(), strict=True))


def _few(bins: dict[str, int]) -> dict[str, int]:
    if len(bins) <= _MOST_BINS:
        return bins
    most = dict(Counter(bins).most_common(_MOST_BINS))
    most[OTHER] = most.get(OTHER, 0) + sum(bins.values()) - sum(most.values())
    return most


def _described(lake: Lake) -> pa.Table:
    """`item_id`, `category` (the newest), `first_change` of every item that the catalogue knows."""
    import duckdb

    items = lake.arrow("items", columns=["item_id", "change_time", "category"])
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("items", items)
    return connection.sql(
        "SELECT item_id, max_by(category, change_time) FILTER (category IS NOT NULL) AS category, "
        "min(change_time) AS first_change FROM items GROUP BY item_id"
    ).to_arrow_table()


def _seen(lake: Lake, landed: pa.Table, first_day: date) -> pa.Table:
    """`user_id`, `first_seen`: the first window of the last weeks in which each of the rows' users was there."""
    users = pc.unique(landed["user_id"])
    days = ds.field("landed_date") >= pa.scalar(first_day - timedelta(days=_NEW_AFTER_DAYS))
    rows = lake.arrow("events", columns=["user_id", "landed_window"], filter=days & text_field("user_id").isin(users))
    first = rows.group_by("user_id").aggregate([("landed_window", "min")])
    return first.rename_columns(["user_id", "first_seen"]).filter(pc.is_valid(first["user_id"]))


def _compact(lake: Lake, today: date) -> None:
    version = lake.version("window_profiles")
    if version < 0:
        return
    files = lake.files("window_profiles", version)
    if pc.sum(pc.less(files["partition.landed_date"], pa.scalar(today))).as_py() or 0:
        older = files.filter(pc.less(files["partition.landed_date"], pa.scalar(today)))
        if len(older) - len(pc.unique(older["partition.landed_date"])) > _FILES_BEFORE_COMPACTION:
            lake.compact("window_profiles", today)
