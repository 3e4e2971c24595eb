"""From events to examples of the task `demand`: an item at a day's end, and what it sold in the 1, 7, 28 days before.

An example is taught only when its horizons have ended: each of them is foreseen from the day on which it began, by what
was known then (demand_features.py). The first event of an item on a day teaches the days since its event before, those
without a sale included, so every day of every item is taught once, whatever the order in which hours land. First is
what landed first: an event that comes late teaches no day that others have taught before it came. Of an item's days one
in three is taken: windows that overlap all but one day teach next to nothing new.

Days after an item's last event are taught when it has its next one, at most the newest 28; of an item that is never
seen again the silence is not taught. A horizon counts where the item was known when it began and could be bought on
most of it; units are per day in stock: a zero without stock is no zero of demand.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import TIME
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples
from pipeline.tasks.demand_features import (
    FEATURES,
    HISTORY_DAYS,
    USUAL_PRICE_DAYS,
    DailySales,
    features_of,
    usual_log_price,
)
from pipeline.tasks.demand_series import DAY_US, SalesReader, catalogue_changes, item_days

TEACHING_COLUMNS = ("item_id", "hour")
HORIZONS_DAYS = (1, 7, 28)
PRICE_DAYS = 28  # four weeks: long enough for a price to move, short enough for an item's level to stay
EVERY_DAYS = 3
# A horizon of which a fifth was out of stock tells less of demand than of stock.
_LEAST_IN_STOCK = 0.8
_CELLS_AT_ONCE = 4_000_000  # items x days in memory at once: 100 MB in seven arrays

EXAMPLES_SCHEMA = pa.schema([
    pa.field("example_id", pa.string()),  # item and day
    pa.field("unit", pa.string()),  # the item
    pa.field("time", TIME),  # the end of the day
    pa.field("hour", TIME),  # of the event that ended the item's silence
    pa.field("landed_window", TIME),
    pa.field("rows", pa.int64()),  # of the first example that an hour teaches: the hour's rows; of the others 0
    pa.field("features", pa.list_(pa.float32(), len(HORIZONS_DAYS) * len(FEATURES))),  # [horizons, FEATURES]
    pa.field("units", pa.list_(pa.float32(), len(HORIZONS_DAYS))),  # sold, per day in stock times the horizon
    pa.field("weight", pa.list_(pa.float32(), len(HORIZONS_DAYS))),  # 1: the horizon counts
    pa.field("log_price", pa.float32()),  # the usual one at the end of the day; null: unknown
    pa.field("price_days", pa.list_(pa.float32(), 3 * PRICE_DAYS)),  # [3, days]: see `price_days`
])


def teaching(tables: Snapshot, rows: pa.Table) -> pa.Table:
    """The rows of an item's first hour with an event on a day, where days of the item are taught by it."""
    pairs = _pairs(rows)
    taught = _taught(tables, pairs)
    place = pa.array(_keys(pairs.item_id, pairs.hour), pa.string())
    return rows.filter(pc.and_(
        pc.is_valid(rows["item_id"]),
        pc.is_in(_key_column(rows), value_set=place.filter(pa.array(pairs.index.isin(taught.pair.unique())))),
    ))


def examples(tables: Snapshot, rows: pa.Table) -> Examples:
    """One example for each item and day that the rows teach (EXAMPLES_SCHEMA), by item and day."""
    pairs = _pairs(rows)
    taught = _taught(tables, pairs)
    if not len(taught):
        return Examples(EXAMPLES_SCHEMA.empty_table())
    taught = taught.sort_values(["item_id", "day"], kind="stable").reset_index(drop=True)
    first = taught.day.to_numpy() != taught.groupby("pair").day.transform("min").to_numpy()
    taught["rows"] = np.where(first, 0, pairs.rows.to_numpy()[taught.pair])
    taught["landed"] = pairs.landed.to_numpy()[taught.pair]
    items = np.unique(taught.item_id.to_numpy(object))
    since = int(taught.day.min()) + 1 - HISTORY_DAYS - HORIZONS_DAYS[-1]
    until = int(taught.day.max()) + 1
    reader = SalesReader(tables, pa.array(items, pa.string()), since, until)
    at_once = max(1, _CELLS_AT_ONCE // (until - since))
    tables_of = []
    for start in range(0, len(items), at_once):
        part = items[start : start + at_once]
        sales = reader.of(part, since, until)
        tables_of.append(_table(sales, taught[taught.item_id.isin(part)]))
    return Examples(pa.concat_tables(tables_of))


def price_days(sales: DailySales, rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[n, 3, PRICE_DAYS] float32 of the days before `ends`: what each says of the answer to the item's price.

    First the log price over the usual one, then the rows of purchases, then what share of a level demand the day
    should have had: the shop's rows of that day (week, season, a sale of the whole shop) times the share of the day
    in stock; 0 for a day that says nothing clean: the price is unknown or moved during it.
    """
    price = sales.window(rows, ends, PRICE_DAYS, "log_price")
    usual = usual_log_price(sales.window(rows, ends, USUAL_PRICE_DAYS, "log_price"))
    clean = np.isfinite(price) & ~sales.window(rows, ends, PRICE_DAYS, "price_moved")
    clean &= ends[:, None] - np.arange(PRICE_DAYS, 0, -1) >= sales.known_from[rows][:, None]
    shop = sales.window(rows, ends, PRICE_DAYS, "shop")
    share = shop / np.maximum(shop.mean(1, keepdims=True), 1e-9)
    share = share * sales.window(rows, ends, PRICE_DAYS, "in_stock") * clean
    orders = sales.window(rows, ends, PRICE_DAYS, "orders") * (share > 0)
    return np.stack([np.where(clean, price - usual[:, None], 0.0), orders, share], axis=1).astype(np.float32)


def _pairs(rows: pa.Table) -> pd.DataFrame:
    """The items and hours of the rows: `item_id`, `hour` (µs), `rows`, `landed` (µs, newest), by item and hour."""
    named = rows.filter(pc.is_valid(rows["item_id"]))
    landed = named["landed_window"] if "landed_window" in named.column_names else named["hour"]
    narrow = pa.table({
        "item_id": named["item_id"].cast(pa.string()), "hour": named["hour"].cast(pa.int64()),
        "landed": landed.cast(pa.int64()),
    })
    counted = narrow.group_by(["item_id", "hour"]).aggregate([([], "count_all"), ("landed", "max")])
    frame = counted.rename_columns(["item_id", "hour", "rows", "landed"]).to_pandas()
    return frame.sort_values(["item_id", "hour"], kind="stable").reset_index(drop=True)


def _taught(tables: Snapshot, pairs: pd.DataFrame) -> pd.DataFrame:
    """The days that pairs of item and hour teach: `pair` (place in `pairs`), `item_id`, `hour`, `day`."""
    nothing = pd.DataFrame({"pair": [], "item_id": [], "hour": [], "day": []}).astype({"pair": int, "day": int})
    if not len(pairs):
        return nothing
    items = pa.array(sorted(pairs.item_id.unique()), pa.string())
    days = pairs.hour // DAY_US
    seen = item_days(
        tables, items, int(days.min()) - HORIZONS_DAYS[-1], int(days.max()) + 1 + HORIZONS_DAYS[-1]
    )
    later = seen[::-1].groupby("item_id").landed.cummin()[::-1]  # of this day and all after it
    seen = seen[seen.landed <= later].reset_index(drop=True)  # else a later day's event was there before
    seen["hour"] = pa.Array.from_pandas(seen.hour).cast(TIME).cast(pa.int64()).to_numpy()
    same = seen.item_id.eq(seen.item_id.shift())
    seen["since"] = seen.day.shift().where(same)
    began = catalogue_changes(tables, items).groupby("item_id").day.min()
    both = pairs.assign(pair=pairs.index).merge(seen[["item_id", "hour", "day", "since"]], on=["item_id", "hour"])
    since = both.since.fillna(both.item_id.map(began)).fillna(both.day).to_numpy(np.int64)
    last = both.day.to_numpy() - 1
    since = np.maximum(since, last + 1 - HORIZONS_DAYS[-1])
    count = np.maximum(last + 1 - since, 0)
    place = np.repeat(np.arange(len(both)), count)
    day = np.repeat(since, count) + np.arange(len(place)) - np.repeat(np.cumsum(count) - count, count)
    phase = both.item_id.map({item: _phase(item) for item in items.to_pylist()}).to_numpy(np.int64)
    chosen = (day + phase[place]) % EVERY_DAYS == 0
    place, day = place[chosen], day[chosen]
    return pd.DataFrame({
        "pair": both.pair.to_numpy()[place], "item_id": both.item_id.to_numpy(object)[place],
        "hour": both.hour.to_numpy()[place], "day": day,
    }) if len(place) else nothing


def _phase(item: str) -> int:
    return hashlib.blake2b(item.encode(), digest_size=4).digest()[0] % EVERY_DAYS


def _table(sales: DailySales, taught: pd.DataFrame) -> pa.Table:
    rows = np.searchsorted(sales.items, taught.item_id.to_numpy(object))
    ends = taught.day.to_numpy() + 1
    features = np.stack([features_of(sales, rows, ends - days) for days in HORIZONS_DAYS], axis=1)
    units, weight = _targets(sales, rows, ends)
    usual = usual_log_price(sales.window(rows, ends, USUAL_PRICE_DAYS, "log_price"))
    priced = np.isfinite(sales.window(rows, ends, 1, "log_price")[:, 0])
    item_ids = taught.item_id.to_numpy(object)
    return pa.table({
        "example_id": [f"{item}|{day}" for item, day in zip(item_ids, taught.day, strict=True)],
        "unit": pa.array(item_ids, pa.string()),
        "time": pa.array(ends * DAY_US, pa.int64()).cast(TIME),
        "hour": pa.array(taught.hour.to_numpy()).cast(TIME),
        "landed_window": pa.array(taught.landed.to_numpy()).cast(TIME),
        "rows": pa.array(taught.rows.to_numpy(), pa.int64()),
        "features": _lists(features), "units": _lists(units), "weight": _lists(weight),
        "log_price": pa.array(usual.astype(np.float32), mask=~priced),
        "price_days": _lists(price_days(sales, rows, ends)),
    }, schema=EXAMPLES_SCHEMA)


def _targets(sales: DailySales, rows: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units [n, horizons] per day in stock times the horizon, and which horizons count [n, horizons]."""
    units = sales.window(rows, ends, HORIZONS_DAYS[-1], "units")
    stock = sales.window(rows, ends, HORIZONS_DAYS[-1], "in_stock")
    sold, weight = [], []
    for days in HORIZONS_DAYS:
        share = stock[:, -days:].mean(1)
        sold.append(units[:, -days:].sum(1) / np.maximum(share, _LEAST_IN_STOCK))
        weight.append((share >= _LEAST_IN_STOCK) & (sales.known_from[rows] <= ends - days))
    return np.stack(sold, axis=1), np.stack(weight, axis=1)


def _lists(values: np.ndarray) -> pa.Array:
    flat = np.ascontiguousarray(values, np.float32).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def array_of(table: pa.Table, name: str, *shape: int) -> np.ndarray:
    """[n, *shape] float32: a column of lists of fixed length."""
    column = table[name].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) and column.num_chunks else column
    if not len(table):
        return np.zeros((0, *shape), np.float32)
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(table), *shape)


def _keys(items: pd.Series, hours: pd.Series) -> list[str]:
    return [f"{item}|{hour}" for item, hour in zip(items, hours, strict=True)]


def _key_column(rows: pa.Table) -> pa.ChunkedArray:
    hours = rows["hour"].cast(pa.int64()).cast(pa.string())
    return pc.binary_join_element_wise(pc.fill_null(rows["item_id"].cast(pa.string()), ""), hours, "|")

