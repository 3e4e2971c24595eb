"""The facts of a window: what is counted of an hour, the shares that are judged, and both in words.

They are apart from the rules, which live in expectations/: here is only when there is enough to judge by.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import TIME, Feed
from pipeline.window import Window

_HISTORY_WEEKS, _HISTORY_DAYS = 4, 7  # what an hour's usual rows are the median of
USUAL_AFTER = timedelta(weeks=_HISTORY_WEEKS)  # how far back that asks the window log

WINDOW_FACTS = pa.schema(  # one row a window: what the window suites judge
    [
        pa.field("landed_window", TIME, nullable=False),
        pa.field("files", pa.int64(), nullable=False),
        pa.field("files_gone", pa.int64(), nullable=False),  # that its rows came from, if no others came
        pa.field("rows_in", pa.int64(), nullable=False),
        pa.field("readable", pa.int64(), nullable=False),  # typed rows, before duplicates and row checks
        pa.field("quarantined", pa.int64(), nullable=False),  # by landing and cleaning
        pa.field("duplicates", pa.int64(), nullable=False),
        pa.field("late", pa.int64(), nullable=False),
        pa.field("usual_rows", pa.float64()),  # median rows_in of the same hour before; null: no history
        pa.field("newest_minutes", pa.float64()),  # from the newest row's time to the window's end; null: no rows
        pa.field("item_rows", pa.int64(), nullable=False),  # rows that name an item
        pa.field("unknown_items", pa.int64(), nullable=False),  # of those, rows whose item nobody has described
        pa.field("price_times_known", pa.float64()),  # median price by the catalogue's last; null: too few to judge by
        pa.field("hour_of_week", pa.int64(), nullable=False),  # 0: Monday 00:00 UTC
    ]
)

# With a fifth of the rows usually bad, more than half of 50 are bad by chance once in 2 million hours (binomial)
_SHARE_ROWS = 50
# With a fifth of the rows usually bad, 20 of 20 are never bad by chance (1e-14); the largest hour of Online
# Retail in which every row breaks a rule has 16 rows
_USABLE_ROWS = 20
# Quiet hours of Online Retail have 3 rows and one order may have 1,114: taken as 250, such an hour is far below
# the 20 times that stop it; the busiest of its year reaches 8 times
_USUAL_AT_LEAST = 250.0
# A median needs few rows: that ten of twenty prices are five times too high by chance happens in no shop. Of more than
# 2,000 a window, some are taken, evenly: a million rows cost no more than these.
_PRICED_ROWS, _MOST_PRICED_ROWS = 20, 2_000
# Half of a catalogue of less than a hundred items is what a diligent customer looks at in an hour. Items are counted
# for users with as many rows as a fifth of the catalogue: fewer cannot break a rule that begins at half of it.
_CATALOGUE_ITEMS, _WIDE_SHARE = 100, 0.2
_USUAL_JUDGED = 100.0  # a tenth of 100 is ten rows; below that an hour is too quiet for its rows to mean anything


def derived_facts(facts: pa.Table, rejected: np.ndarray) -> pa.Table:
    """WINDOW_FACTS and what the window suites judge beside them; null where there is too little to judge by.

    `rejected` rows breaking a rule; `unreadable_share` of the rows that landed; `rejected_share`, `duplicate_share`
    and `late_share` of the readable rows; `unknown_item_share` of the rows that name an item; `usable_rows`;
    `times_usual` and `share_of_usual`: rows_in by the usual rows, against too many and too few.
    """
    held = {name: facts[name].to_numpy() for name in facts.column_names if name != "landed_window"}
    usual = held["usual_rows"]
    usable = held["readable"] - held["duplicates"] - rejected
    derived = {
        "rejected": rejected,
        "unreadable_share": _share(held["quarantined"], held["rows_in"]),
        "rejected_share": _share(rejected, held["readable"] - held["duplicates"]),
        "duplicate_share": _share(held["duplicates"], held["readable"]),
        "late_share": _share(held["late"], held["readable"]),
        "unknown_item_share": _share(held["unknown_items"], held["item_rows"]),
        "usable_rows": np.where((held["rows_in"] >= _USABLE_ROWS) & (held["duplicates"] == 0), usable, np.nan),
        "times_usual": held["rows_in"] / np.maximum(usual, _USUAL_AT_LEAST),
        "share_of_usual": np.divide(
            held["rows_in"], usual, out=np.full(len(usual), np.nan),
            where=(usual >= _USUAL_JUDGED) & (held["files"] > 0),
        ),
    }
    for name, values in derived.items():
        facts = facts.append_column(name, pa.array(values, from_pandas=True))
    return facts


def _share(part: np.ndarray, of: np.ndarray) -> np.ndarray:
    """`part / of`, NaN where `of` is below `_SHARE_ROWS`: a share of a few rows is chance."""
    return np.divide(part, of, out=np.full(len(of), np.nan), where=of >= _SHARE_ROWS)


def fact_in_words(facts: pa.Table, column: str, place: int) -> str:
    """What a window held, in words, by the column that a rule judges; `place`: its row in the derived facts."""
    fact = {name: facts[name][place].as_py() for name in facts.column_names}
    readable, value = fact["readable"], fact.get(column)
    gone = fact["files_gone"]
    landed = None if gone is None else gone + fact["files"]
    phrases = {
        "unreadable_share": f"{_percent(value)} of the rows unreadable ({fact['quarantined']:,} of "
                            f"{fact['rows_in']:,})",
        "rejected_share": f"{_percent(value)} of the readable rows break a rule ({fact['rejected']:,} of "
                          f"{readable - fact['duplicates']:,})",
        "duplicate_share": f"{_percent(value)} of the rows are duplicates ({fact['duplicates']:,} of {readable:,})",
        "late_share": f"{_percent(value)} of the rows are late ({fact['late']:,} of {readable:,})",
        "unknown_item_share": f"{_percent(value)} of the rows are on unknown items ({fact['unknown_items']:,} of "
                              f"{fact['item_rows']:,})",
        "files_gone": f"{_number(gone)} of {_number(landed)} files that it was published from are gone",
        "price_times_known": f"the median price is {_times(value)} what the catalogue last had",
        "usable_rows": f"{value} usable rows of {fact['rows_in']:,}",
        "times_usual": f"{fact['rows_in']:,} rows, usual are {_number(fact['usual_rows'])}",
        "share_of_usual": f"{fact['rows_in']:,} rows, usual are {_number(fact['usual_rows'])}",
        "newest_minutes": f"the newest row is {_number(value)} minutes older than the window's end",
    }
    return phrases.get(column, f"{column} is {_number(value)}")


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"


def _times(factor: float | None) -> str:
    return "unknown beside" if factor is None else f"{factor:,.3g} times"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


# -- counting -------------------------------------------------------------------------------------------------


def unknown_items(rows: pa.Table, catalogue: pa.Table) -> pa.ChunkedArray:
    """Whether each row's item is one that the catalogue has never described; null where it names none."""
    known = pc.is_in(rows["item_id"], pc.unique(catalogue["item_id"]))
    return pc.if_else(pc.is_valid(rows["item_id"]), pc.invert(known), None)


def price_ratios(rows: pa.Table, catalogue: pa.Table) -> pa.Array:
    """Each row's price by the last that the catalogue has for its item: `[rows]` float64.

    The last is any of the two days before the item's newest change, the nearest of them: a price that moves all day has
    sold at each. Null where one of them is unknown or not above 0, and for all but some evenly chosen rows where there
    are many.

    Args:
        rows: `landed_window`, `item_id`, `price`.
        catalogue: `item_id`, `change_id`, `change_time`, `price`, as it was before these rows.
    """
    ratios = np.full(len(rows), np.nan)
    priced = np.flatnonzero(np.asarray(pc.fill_null(pc.greater(rows["price"], 0.0), False)))
    windows = max(pc.count_distinct(rows["landed_window"]).as_py(), 1)
    chosen = priced[:: max(1, len(priced) // (windows * _MOST_PRICED_ROWS))]
    if len(chosen) and len(catalogue):
        connection = duckdb.connect()
        connection.register("priced", rows.select(["item_id", "price"]).take(chosen).append_column(
            "place", pa.array(chosen)
        ))
        connection.register("catalogue", catalogue)
        found = connection.sql(
            """WITH changes AS (
                   SELECT item_id, price, change_time, max(change_time) OVER (PARTITION BY item_id) AS newest
                   FROM catalogue WHERE price > 0 AND item_id IN (SELECT item_id FROM priced)),
               known AS (
                   SELECT item_id, min(price) AS low, max(price) AS high FROM changes
                   WHERE change_time > newest - INTERVAL 2 DAYS GROUP BY item_id)
               SELECT place, price / least(greatest(price, low), high) AS ratio
               FROM priced JOIN known USING (item_id)"""
        ).to_arrow_table()
        ratios[found["place"].to_numpy()] = found["ratio"].to_numpy()
    return pa.array(ratios, from_pandas=True)


def user_widths(rows: pa.Table, catalogue: pa.Table) -> pa.Array:
    """Which share of the catalogue's items each row's user has to do with in its window: `[rows]` float64.

    Null for most: for users with too few rows to be wide, for guests, and where the catalogue has few items.

    Args:
        rows: `landed_window`, `user_id`, `item_id`.
        catalogue: `item_id`.
    """
    widths = np.full(len(rows), np.nan)
    items = pc.count_distinct(catalogue["item_id"]).as_py()
    if items < _CATALOGUE_ITEMS:
        return pa.array(widths, from_pandas=True)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("landed", rows.select(["landed_window", "user_id", "item_id"]).append_column(
        "place", pa.array(np.arange(len(rows)))
    ))
    found = connection.sql(
        f"""WITH busy AS (SELECT landed_window, user_id FROM landed WHERE user_id IS NOT NULL
                          GROUP BY ALL HAVING count(*) >= {_WIDE_SHARE * items}),
                 wide AS (SELECT landed_window, user_id, count(DISTINCT item_id) AS items
                          FROM landed SEMI JOIN busy USING (landed_window, user_id) GROUP BY ALL)
            SELECT place, items FROM landed JOIN wide USING (landed_window, user_id)"""
    ).to_arrow_table()
    widths[found["place"].to_numpy()] = found["items"].to_numpy() / items
    return pa.array(widths, from_pandas=True)


@dataclass
class LandedBefore:
    """What landed before: of each hour in the window log its rows and manifest, and the rows of this call's windows."""

    rows_in: dict[datetime, int]
    manifests: dict[datetime, str]

    @classmethod
    def of(cls, log: pa.Table, feed: Feed) -> LandedBefore:
        """From the window log."""
        log = log.filter(pc.equal(log["feed"], feed.name))
        hours = log["landed_window"].to_pylist()
        return cls(*(dict(zip(hours, log[name].to_pylist(), strict=True)) for name in ("rows_in", "manifest")))

    def usual_rows(self, start: datetime) -> float | None:
        """The median of the same hour: of up to 4 same weekdays before, else of up to 7 days before."""
        for step, count in ((timedelta(weeks=1), _HISTORY_WEEKS), (timedelta(days=1), _HISTORY_DAYS)):
            past = [start - step * number for number in range(1, count + 1)]
            found = [self.rows_in[hour] for hour in past if hour in self.rows_in]
            if found:
                return float(median(found))
        return None

    def files_gone(self, start: datetime, files: Collection[str]) -> int:
        """How many of the files that an hour's rows came from are not among `files`; 0 where it has others besides.

        Others may be the same rows under a new name, so an operator corrects an hour by them. What is left of the old
        ones corrects nothing.
        """
        if not self.rows_in.get(start):
            return 0
        before = set(json.loads(self.manifests.get(start, "{}")))
        return len(before.difference(files)) if before.issuperset(files) else 0


def window_facts(
    feed: Feed,
    files: Mapping[Window, Collection[str]],
    rows: pa.Table,
    copies: pa.Table,
    refused_windows: pa.ChunkedArray,
    before: LandedBefore,
) -> pa.Table:
    """WINDOW_FACTS of some windows, each as if it had come alone: a bulk is judged like its hours.

    Args:
        feed: the feed.
        files: the names of each window's files, in order of window.
        rows: all readable rows, copies included: the feed's table_schema, `unknown` (bool: nobody has described
            the row's item; null: it names none) and `price_ratio` (`price_ratios`).
        copies: those of them that are not the first of their key.
        refused_windows: `landed_window` of each row that landing or cleaning refused.
        before: what landed before; gains these windows, but for those whose files are gone.
    """
    starts = np.array([window.start.timestamp() for window in files]) * 1e6

    def places(landed_windows: pa.ChunkedArray) -> np.ndarray:
        return np.searchsorted(starts, landed_windows.cast(pa.int64()).to_numpy())

    def count(at: np.ndarray) -> np.ndarray:
        return np.bincount(at, minlength=len(starts))

    def count_where(where: pa.ChunkedArray) -> np.ndarray:
        return count(at[np.asarray(pc.fill_null(where, False))])

    at = places(rows["landed_window"])
    readable, refused = count(at), count(places(refused_windows))
    rows_in = readable + refused
    newest = np.zeros(len(starts))
    latest = rows.group_by("landed_window").aggregate([(feed.time, "max")])
    newest[places(latest["landed_window"])] = latest[f"{feed.time}_max"].cast(pa.int64()).to_numpy()
    minutes = np.where(readable > 0, (starts + 3.6e9 - newest) / 6e7, np.nan)
    gone = [before.files_gone(window.start, names) for window, names in files.items()]
    before.rows_in |= {
        window.start: int(n) for window, n, lost in zip(files, rows_in, gone, strict=True) if not lost
    }
    columns = {
        "landed_window": [window.start for window in files],
        "files": [len(names) for names in files.values()],
        "files_gone": gone,
        "rows_in": rows_in,
        "readable": readable,
        "quarantined": refused,
        "duplicates": count(places(_later_in_their_window(rows, copies, feed))),
        "late": count_where(pc.less(rows["hour"], rows["landed_window"])),
        "usual_rows": [before.usual_rows(window.start) for window in files],
        "newest_minutes": pa.array(minutes, from_pandas=True),
        "item_rows": count_where(pc.is_valid(rows["unknown"])),
        "unknown_items": count_where(rows["unknown"]),
        "price_times_known": _medians(rows["price_ratio"], at, len(starts)),
        "hour_of_week": [window.start.weekday() * 24 + window.start.hour for window in files],
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in WINDOW_FACTS], schema=WINDOW_FACTS)


def _medians(ratios: pa.ChunkedArray, at: np.ndarray, windows: int) -> list[float | None]:
    """The median ratio of each window; null where it has less than `_PRICED_ROWS`."""
    held = ratios.to_numpy()
    known = np.flatnonzero(~np.isnan(held))
    values, at = held[known], at[known]
    order = np.argsort(at, kind="stable")
    parts = np.split(values[order], np.cumsum(np.bincount(at, minlength=windows))[:-1])
    return [float(np.median(part)) if len(part) >= _PRICED_ROWS else None for part in parts]


def _later_in_their_window(rows: pa.Table, copies: pa.Table, feed: Feed) -> pa.ChunkedArray:
    """`landed_window` of each row of whose key its window has an earlier one."""
    if not len(copies):
        return copies["landed_window"]
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("landed", rows.select(["landed_window", feed.key]))
    connection.register("copies", copies.select([feed.key]))
    again = connection.sql(
        f"""SELECT landed_window, unnest(range(1, count(*))) FROM landed SEMI JOIN copies USING ({feed.key})
            GROUP BY landed_window, {feed.key} HAVING count(*) > 1"""
    )
    return again.to_arrow_table()["landed_window"]
