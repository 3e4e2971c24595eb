"""A small simulated shop in a real lake, as clean as the door would leave it: what the updating tests learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.lake import Lake, Published, open_lake
from pipeline.schema import EVENTS, ITEMS, QUARANTINE_SCHEMA, TIME, WINDOWS_SCHEMA, Feed
from pipeline.settings import Settings
from pipeline.sources.simulator import ShopSimulator
from pipeline.window import HOUR, Window

NO_QUARANTINE = QUARANTINE_SCHEMA.empty_table()


def settings_of(home: Path, encoder: str = "tiny") -> Settings:
    """An installation of its own below `home`."""
    return Settings(
        home=home, landing=str(home / "landing"), lake=str(home / "lake"),
        artifacts=str(home / "mlflow" / "artifacts"), reports=home / "reports",
        tracking_uri=f"sqlite:///{home / 'mlflow.db'}", mask_key="k" * 64, encoder=encoder, seed=7,
    )


def masked(users: pa.ChunkedArray) -> pa.Array:
    """32 hex digits for each id that is there."""
    return pa.array([None if user is None else hashlib.md5(user.encode()).hexdigest() for user in users.to_pylist()])


def typed(feed: Feed, rows: pa.Table, window: Window) -> pa.Table:
    """Clean rows of a landing file as the table has them; columns that are missing are null."""
    count = len(rows)
    columns: dict[str, object] = {}
    for field in feed.columns:
        if field.name not in rows.column_names:
            columns[field.name] = pa.nulls(count, field.type)
        elif field.type == TIME:
            stamps = [datetime.fromisoformat(text) for text in rows[field.name].to_pylist()]
            columns[field.name] = pa.array(stamps, TIME)
        elif field.name in ("user_id", "session_id"):
            columns[field.name] = masked(rows[field.name])
        else:
            columns[field.name] = rows[field.name].cast(field.type)
    columns["hour"] = pc.floor_temporal(columns[feed.time], unit="hour")  # type: ignore[arg-type]
    columns["landed_window"] = pa.array([window.start] * count, TIME)
    columns["landed_date"] = pa.array([window.start.date()] * count, pa.date32())
    columns["source_file"] = pa.array([f"{window.folder}/a.jsonl"] * count, pa.string())
    columns["source_row"] = pa.array(range(1, count + 1), pa.int64())
    columns["imputed"] = pa.nulls(count, pa.string())
    return pa.table(columns).select(feed.table_schema.names).cast(feed.table_schema)


def events_of(shop: ShopSimulator, windows: Sequence[Window]) -> pa.Table:
    """The clean events of the windows."""
    return pa.concat_tables([typed(EVENTS, shop._events(shop._hour_of(window)), window) for window in windows])


def catalogue_of(shop: ShopSimulator, window: Window) -> pa.Table:
    """What goes on sale in the window; in the first, the whole catalogue."""
    hour = shop._hour_of(window)
    on_sale = shop.shop.launch_hour <= hour if not hour else shop.shop.launch_hour == hour
    items = [int(item) for item in on_sale.nonzero()[0]]
    prices = shop.shop.prices(hour)
    rows = [{
        "change_id": f"C{hour}-{item}", "item_id": shop.shop.item_id[item], "change_time": window.start.isoformat(),
        **{name: shop.shop.item_text(item)[name] for name in ("title", "description", "category", "brand")},
        "price": float(prices[item]),
    } for item in items]
    names = ("change_id", "item_id", "change_time", "title", "description", "category", "brand")
    schema = pa.schema([*((name, pa.string()) for name in names), ("price", pa.float64())])
    return typed(ITEMS, pa.Table.from_pylist(rows, schema=schema), window)


def publish(lake: Lake, feed: Feed, windows: Sequence[Window], rows: pa.Table) -> Published:
    """Replaces the windows by the rows."""
    return lake.publish(feed, list(windows), rows, rows.slice(0, 0), NO_QUARANTINE)


def publish_hours(settings: Settings, shop: ShopSimulator, first: int, count: int = 1) -> None:
    """Publishes `count` hours of the shop from its hour `first` on."""
    lake = open_lake(settings)
    windows = [Window(shop.first + HOUR * hour) for hour in range(first, first + count)]
    items = pa.concat_tables([catalogue_of(shop, window) for window in windows])
    publish(lake, ITEMS, windows, items)
    publish(lake, EVENTS, windows, events_of(shop, windows))


T0 = datetime(2026, 1, 5, tzinfo=UTC)


def hour(number: int) -> Window:
    """The window `number` hours after T0."""
    return Window(T0 + HOUR * number)


def purchases(number: int, count: int = 10, factor: float = 1.0, users: int = 60, name: str = "") -> pa.Table:
    """`count` purchases and a view for every five, which happened and landed in the hour: item i costs 5 + 3 i.

    `factor` multiplies the prices: a poisoned hour. Users and items are drawn by the hour, the same each time.
    """
    draw = np.random.default_rng(number)
    window, start = hour(number), hour(number).start
    records = []
    for place in range(count + count // 5):
        item = int(draw.integers(0, 8))
        kind = "purchase" if place < count else "view"
        records.append({
            "event_id": f"e{number}-{name}{place}", "event_type": kind, "event_time": start + timedelta(seconds=place),
            "user_id": f"{int(draw.integers(0, users)):032x}", "item_id": f"i{item}", "quantity": 1.0,
            "price": round((5.0 + 3.0 * item) * factor + float(draw.normal(0, 0.2)), 2), "hour": start,
            "landed_window": start, "landed_date": start.date(), "source_file": f"{window.folder}/a.jsonl",
            "source_row": place + 1,
        })
    return pa.Table.from_pylist(records, schema=EVENTS.table_schema)


def publish_purchases(lake: Lake, *numbers: int, **given: Any) -> Published:
    """Publishes the purchases of these hours in one commit."""
    rows = pa.concat_tables([purchases(number, **given) for number in numbers])
    return publish(lake, EVENTS, [hour(number) for number in numbers], rows)


def log_windows(lake: Lake, feed: Feed, *windows: Window) -> None:
    """Enters the windows into the window log, with the rows that the feed's table has of them now."""
    version = lake.version(feed.name)
    landed = lake.arrow(feed.name, columns=["landed_window"]).group_by("landed_window").aggregate([([], "count_all")])
    rows = dict(zip(landed["landed_window"].to_pylist(), landed["count_all"].to_pylist(), strict=True))
    lake.record_windows(pa.Table.from_pylist([{
        "feed": feed.name, "landed_window": window.start, "landed_date": window.start.date(), "files": 1,
        "rows_in": rows.get(window.start, 0), "published": rows.get(window.start, 0), "quarantined": 0,
        "duplicates": 0, "late": 0, "table_version": version, "manifest": "{}", "warnings": None,
    } for window in windows], schema=WINDOWS_SCHEMA))


def small_shop(**size: int | float) -> ShopSimulator:
    """Four days of some 6,000 events by 300 customers, then hours of 150."""
    given = {
        "users": 300, "items": 60, "history_days": 4, "hours": 48, "history_events": 6_000, "events_per_hour": 150,
        "history_launches_per_day": 1, "launches_per_hour": 1, "new_users_per_hour": 2,
    }
    return ShopSimulator(seed=3, **{**given, **size})
