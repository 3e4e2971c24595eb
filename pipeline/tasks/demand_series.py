"""From the tables events and items to what each item sold on each day, whether it was in stock, and at what price.

A day is a UTC day, counted from 1970-01-01. What was sold are the units of purchases; returns are not taken off,
because a unit that comes back was asked for. A day's price is the catalogue's where it changed that day, else the
median of what was paid, else the last one known. Stock is known from the catalogue alone: from a change that says 0
until one that says more an item cannot be bought; an item whose stock was never told counts as in stock.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.engine import duckdb_connection, table_of
from pipeline.schema import TIME
from pipeline.snapshot import Snapshot
from pipeline.tables import text_field
from pipeline.tasks.demand_features import DailySales

if TYPE_CHECKING:
    import ibis.expr.types as ir

DAY_US = 86_400_000_000
_MOST_IDS_IN_FILTER = 50_000  # beyond, reading all rows is faster than the membership test
_EVENT_COLUMNS = ("item_id", "event_type", "event_time", "hour", "landed_window", "quantity", "price")


def day_of(time: datetime) -> int:
    """The UTC day in which a time lies, from 1970-01-01."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(days=1)


def start_of(day: int) -> datetime:
    """When a day begins."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=int(day))


def days_of(times: pa.ChunkedArray) -> np.ndarray:
    """[n] int64: the days of timestamps."""
    return times.cast(TIME).cast(pa.int64()).to_numpy() // DAY_US


def complete_until(tables: Snapshot) -> int:
    """The first day that is not over yet as far as the events tell; 0 where there are none."""
    newest = pc.max(tables.arrow("events", ["hour"])["hour"]).as_py() if tables.versions["events"] >= 0 else None
    return 0 if newest is None else day_of(newest + timedelta(hours=1))


def item_days(tables: Snapshot, items: pa.Array, since: int, until: int) -> pd.DataFrame:
    """The days `[since, until)` on which something happened to `items`, by item and day.

    Returns:
        `item_id`, `day`, `landed` (the first window in which an event of the day landed), `hour` (of the first of these
        events), `units`, `orders` (rows of purchases), `paid` (their median price, nan: none).
    """
    happened = _happened(tables, items, since, until)
    happened = happened.mutate(day=(happened.hour.epoch_seconds() // 86_400).cast("int64"))
    sold = happened.event_type == "purchase"
    paid = ibis.ifelse(sold & (happened.price > 0), happened.price, ibis.null("float64"))
    grouped = happened.group_by("item_id", "day").agg(
        landed=happened.landed_window.min(),
        hour=happened.hour.argmin(ibis.struct({"landed": happened.landed_window, "hour": happened.hour})),
        units=happened.quantity.fill_null(1.0).sum(where=sold).fill_null(0.0),
        orders=sold.sum(),
        paid=paid.median().round(9),  # the mean of two prices: engines differ in its last binary digit
    )
    return grouped.order_by("item_id", "day").to_pyarrow().to_pandas()


def _happened(tables: Snapshot, items: pa.Array, since: int, until: int) -> ir.Table:
    """The events of `items` in the hours of the days `[since, until)`."""
    start, end = start_of(since), start_of(until)
    if len(items) > _MOST_IDS_IN_FILTER and tables.lake.engine == "spark":
        events = tables.ibis(tables.connected(), "events")
        wanted = table_of(events.get_backend(), "wanted", pa.table({"item_id": items}))
        events = events.filter(events.landed_date >= start.date(), events.hour >= start, events.hour < end)
        return events.semi_join(wanted, "item_id")
    chosen = (ds.field("landed_date") >= pa.scalar(start.date())) & (
        ds.field("hour") >= pa.scalar(start, TIME)) & (ds.field("hour") < pa.scalar(end, TIME))
    if len(items) <= _MOST_IDS_IN_FILTER:
        chosen &= text_field("item_id").isin(items)
    rows = tables.arrow("events", _EVENT_COLUMNS, chosen)
    return table_of(duckdb_connection(), "happened", rows.filter(pc.is_valid(rows["item_id"])))


def catalogue_changes(tables: Snapshot, items: pa.Array) -> pd.DataFrame:
    """What the catalogue said of `items`, in order: `item_id`, `time` (µs), `day`, `price`, `stock` (nan: nothing)."""
    chosen = text_field("item_id").isin(items) if len(items) <= _MOST_IDS_IN_FILTER else None
    rows = tables.arrow("items", ["item_id", "change_id", "change_time", "price", "stock"], chosen)
    frame = pd.DataFrame({
        "item_id": rows["item_id"].to_pylist(), "change_id": rows["change_id"].to_pylist(),
        "time": rows["change_time"].cast(pa.int64()).to_numpy(),
        "price": rows["price"].to_numpy(), "stock": rows["stock"].to_numpy(),
    })
    frame["day"] = frame.time // DAY_US
    return frame.sort_values(["item_id", "time", "change_id"], kind="stable").reset_index(drop=True)


def shop_by_day(tables: Snapshot) -> pd.Series:
    """Rows of purchases of the entire shop, by day."""
    events = tables.ibis(tables.connected(), "events")
    sold = events.filter(events.event_type == "purchase", events.item_id.notnull())
    day = sold.hour.epoch_seconds() // 86_400
    counted = sold.group_by(day=day.cast("int64")).agg(orders=ibis._.count()).to_pyarrow().to_pandas()
    return counted.set_index("day").orders.sort_index()


class SalesReader:
    """Reads the days of items once; any part of them as arrays."""

    def __init__(self, tables: Snapshot, items: pa.Array, since: int, until: int) -> None:
        """Takes the items (text, distinct) and the days `[since, until)`."""
        self._since, self._until = since, until
        self._days = item_days(tables, items, since, until)
        self._changes = catalogue_changes(tables, items)
        self._shop = shop_by_day(tables)

    def of(self, items: np.ndarray, first_day: int, end_day: int) -> DailySales:
        """`items` ([n] text, distinct, ascending) on the days `[first_day, end_day)`."""
        days = self._days[self._days.item_id.isin(items)]
        days = days[(days.day >= first_day) & (days.day < end_day)]
        changes = self._changes[self._changes.item_id.isin(items)]
        shape = (len(items), end_day - first_day)
        at = np.searchsorted(items, days.item_id.to_numpy(object)), days.day.to_numpy() - first_day
        units, orders, paid = (np.zeros(shape, np.float32) for _ in range(3))
        units[at], orders[at], paid[at] = days.units, days.orders, days.paid.fillna(0.0)
        row = np.searchsorted(items, changes.item_id.to_numpy(object))
        price, moved = _prices(changes, row, paid, first_day)
        known = np.full(len(items), end_day)
        np.minimum.at(known, at[0], days.day.to_numpy())
        np.minimum.at(known, row, changes.day.to_numpy())
        shop = self._shop.reindex(range(first_day, end_day), fill_value=0).to_numpy(np.float64)
        return DailySales(
            items, first_day, units, orders, _in_stock(changes, row, shape, first_day), price, moved, known, shop,
            int(self._shop.index[0]) if len(self._shop) else first_day,
        )


def _prices(
    changes: pd.DataFrame, row: np.ndarray, paid: np.ndarray, first_day: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log price at each day's end [items, days], nan: unknown; and on which days the catalogue's price moved."""
    told = (changes.price > 0).to_numpy()
    row, day, price = row[told], changes.day.to_numpy()[told] - first_day, changes.price.to_numpy()[told]
    prices = np.where(paid > 0, paid, np.nan).astype(np.float32)
    before = np.full(len(prices), np.nan, np.float32)
    earlier = day < 0
    before[row[earlier]] = price[earlier]  # in order of time: the last one stays
    inside = (day >= 0) & (day < prices.shape[1])
    prices[row[inside], day[inside]] = price[inside]
    prices[:, 0] = np.where(np.isnan(prices[:, 0]), before, prices[:, 0])
    for column in range(1, prices.shape[1]):
        prices[:, column] = np.where(np.isnan(prices[:, column]), prices[:, column - 1], prices[:, column])
    moved = np.zeros(prices.shape, bool)
    again = np.diff(row, prepend=-1) == 0  # an item's first price is no change
    differs = again & (np.diff(price, prepend=0.0) != 0) & inside
    moved[row[differs], day[differs]] = True
    return np.log(prices), moved


def _in_stock(changes: pd.DataFrame, row: np.ndarray, shape: tuple[int, int], first_day: int) -> np.ndarray:
    """[items, days] float32: the share of each day on which the catalogue did not say that there is none."""
    share = np.ones(shape, np.float32)
    told = changes.stock.notna().to_numpy()
    row, stock = row[told], changes.stock.to_numpy()[told]
    start = changes.time.to_numpy()[told] / DAY_US - first_day
    last = np.diff(row, append=-1) != 0
    end = np.where(last, shape[1], np.append(start[1:], shape[1]) if len(start) else start)
    for place in np.flatnonzero((stock <= 0) & (end > 0) & (start < shape[1])):
        begun, over = max(start[place], 0.0), min(end[place], float(shape[1]))
        days = np.arange(int(begun), int(np.ceil(over)))
        share[row[place], days] -= np.minimum(days + 1, over) - np.maximum(days, begun)
    return np.maximum(share, 0.0)
