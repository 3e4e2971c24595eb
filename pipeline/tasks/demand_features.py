"""What is known of an item's sales before a day, as numbers: one list of features for training and serving.

Counts enter as logarithms, at several windows and decays, so that the network can weigh recent against steady sales as
exponential smoothing does (Gardner, International Journal of Forecasting 2006) but by what it has learnt. A day on
which an item was out of stock says nothing of its demand: rates are per day in stock, never per day of the calendar.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

HISTORY_DAYS = 112  # four times the longest horizon; what is older moves no mean below by more than e^-1.2
MEAN_LIVES_DAYS = (3, 10, 30, 90)  # of the decayed rates: days, a week and a half, the longest horizon, a season
WINDOWS_DAYS = (7, 14, 28, 56)
USUAL_PRICE_DAYS = 56  # an item's usual price is its mean over two months: promotions last days
DAYS_PER_YEAR = 365.25
# A season that the log has not seen twice cannot be told from a trend: its features are 0 until then.
SEASON_AFTER_DAYS = 400
FEATURES = (
    *(f"rate_{days}" for days in MEAN_LIVES_DAYS),
    "orders_rate_10", "orders_rate_30",
    *(f"units_{days}" for days in WINDOWS_DAYS),
    *(f"usual_week_{weeks}" for weeks in (4, 8, 16)), "median_week_4", "least_week_8", "spread_week_8",
    "week_2", "week_3", "week_4",
    "same_weekday", "days_sold_28", "since_sale", "spikes_28", "age",
    "price", "price_against_usual", "in_stock_7", "in_stock",
    *(f"weekday_{day}" for day in range(7)),
    "season_sine", "season_cosine",
    "drawn_week",
)
# Checkpoints of before December 2026 name no features; they knew these. The shop's own trend is left out since: a log
# has one, so a network learns its months by heart. Online Retail, the ten weeks up to 2011-09-30, mean of four seeds:
# WAPE 0.594 with it, 0.590 without.
EARLIER_FEATURES = tuple(
    known for name in FEATURES[: FEATURES.index("drawn_week")]
    for known in (("shop_7_against_28", "shop_28_against_84", name) if name == "weekday_0" else (name,))
)
USUAL_WEEK = FEATURES.index("drawn_week")  # what the network answers relative to
DAYS_SOLD = FEATURES.index("days_sold_28")
PRICE = FEATURES.index("price")
DISCOUNT = FEATURES.index("price_against_usual")
AGE = FEATURES.index("age")
UNITS_7, UNITS_28, SAME_WEEKDAY = (FEATURES.index(name) for name in ("units_7", "units_28", "same_weekday"))
# What is known of an item without any history; the others are then as in NO_HISTORY.
WITHOUT_HISTORY = np.array([name == "price" or name.startswith(("weekday", "season")) for name in FEATURES])
NO_HISTORY = np.zeros(len(FEATURES), np.float32)
NO_HISTORY[FEATURES.index("since_sale")] = np.log1p(HISTORY_DAYS)
NO_HISTORY[[FEATURES.index("in_stock_7"), FEATURES.index("in_stock")]] = 1.0
# Of the weeks that are drawn. Their median alone has WAPE 0.592 in the ten weeks up to 2011-09-30 of Online Retail;
# 0.601 from six weeks, 0.597 from sixteen, 0.597 at the pace of 14 or of 42 days, 0.596 from 50 draws.
_DRAWN_FROM_WEEKS, _PACE_DAYS, _DRAWS = 8, 28, 200
_LEAST_THERE_DAYS = 7  # an item that could be bought on fewer has no pace yet: what it sold counts as a week's
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday


@dataclass(frozen=True)
class DailySales:
    """Items by day; `days` counts from 1970-01-01 UTC.

    Attributes:
        items: [items] ids.
        first_day: the day of column 0.
        units, orders: [items, days] float32, units sold and rows of purchases.
        in_stock: [items, days] float32, share of the day on which the item could be bought.
        log_price: [items, days] float32, log of the price at the day's end; nan: not known yet.
        price_moved: [items, days] bool, more than one price was seen on that day.
        known_from: [items] int, the first day on which the item is known to exist.
        shop: [days] float64, rows of purchases of the entire shop.
        shop_first_day: the day of the shop's first sale.
    """

    items: np.ndarray
    first_day: int
    units: np.ndarray
    orders: np.ndarray
    in_stock: np.ndarray
    log_price: np.ndarray
    price_moved: np.ndarray
    known_from: np.ndarray
    shop: np.ndarray
    shop_first_day: int

    def window(self, rows: np.ndarray, ends: np.ndarray, days: int, name: str) -> np.ndarray:
        """[n, days] of array `name`: the days before `ends` ([n] int), of the items at `rows`; they must be there."""
        columns = ends[:, None] - self.first_day - np.arange(days, 0, -1)
        values: np.ndarray = getattr(self, name)
        return values[columns] if values.ndim == 1 else values[rows[:, None], columns]


def features_of(sales: DailySales, rows: np.ndarray, origins: np.ndarray) -> np.ndarray:
    """[n, FEATURES] float32: what was known when day `origins` began.

    Args:
        sales: from HISTORY_DAYS before the first origin on.
        rows: [n] int, places of the items.
        origins: [n] int, days.

    Returns:
        one row a pair, by FEATURES.
    """
    parts = [
        _features_at_once(sales, rows[start : start + _AT_ONCE], origins[start : start + _AT_ONCE])
        for start in range(0, len(rows), _AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, len(FEATURES)), np.float32)


_AT_ONCE = 8_192  # pairs: four windows of them are 15 MB


def _features_at_once(sales: DailySales, rows: np.ndarray, origins: np.ndarray) -> np.ndarray:
    units, orders, stock = (
        sales.window(rows, origins, HISTORY_DAYS, name) for name in ("units", "orders", "in_stock")
    )
    ages = np.arange(HISTORY_DAYS - 1, -1, -1)  # of each column, days before the newest
    known = np.clip(origins - sales.known_from[rows], 0, None)
    there = stock * (ages < known[:, None])
    columns = [
        *(_rate(units, there, ages, life) for life in MEAN_LIVES_DAYS),
        _rate(orders, there, ages, 10), _rate(orders, there, ages, 30),
        *(np.log1p(units[:, -days:].sum(1)) for days in WINDOWS_DAYS),
        *_weeks(units, known),
        np.log1p(units[:, [-7, -14, -21, -28]].mean(1)),
        (units[:, -28:] > 0).mean(1),
        np.log1p(np.where(units > 0, ages, HISTORY_DAYS).min(1)),
        0.5 * np.log1p((units[:, -28:] ** 2).sum(1)),
        np.log1p(np.minimum(known, HISTORY_DAYS)),
        *_prices(sales, rows, origins),
        stock[:, -7:].mean(1), stock[:, -1],
        *_of_calendar(sales, origins),
        np.log1p(_drawn_week(units, orders, there)),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _rate(counts: np.ndarray, there: np.ndarray, ages: np.ndarray, mean_life_days: float) -> np.ndarray:
    """[n]: log1p of the decayed count per day on which the item could be bought."""
    weights = np.exp(-ages / mean_life_days)
    return np.log1p(counts @ weights / np.maximum(there @ weights, 1.0))


def _weeks(units: np.ndarray, known: np.ndarray) -> list[np.ndarray]:
    """Log1p of the units of the last 16 weeks of 7 days, newest first: what is usual, and how it varies."""
    logs = np.log1p(units[:, ::-1].reshape(len(units), -1, 7).sum(2))
    there = np.arange(logs.shape[1]) * 7 < np.maximum(known, 7)[:, None] - 6

    def mean(weeks: int) -> np.ndarray:
        return (logs * there)[:, :weeks].sum(1) / there[:, :weeks].sum(1)

    return [
        mean(4), mean(8), mean(16), np.median(logs[:, :4], axis=1), logs[:, :8].min(1), logs[:, :8].std(1),
        logs[:, 1], logs[:, 2], logs[:, 3],
    ]


def usual_log_price(log_prices: np.ndarray) -> np.ndarray:
    """[n]: the mean over the days [n, days] on which a price was known; 0 where none was."""
    priced = np.isfinite(log_prices)
    return np.where(priced, log_prices, 0.0).sum(1) / np.maximum(priced.sum(1), 1)


def _prices(sales: DailySales, rows: np.ndarray, origins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    history = sales.window(rows, origins, USUAL_PRICE_DAYS, "log_price")
    now = history[:, -1]
    known = np.isfinite(now)
    usual = usual_log_price(history)
    return np.where(known, now, 0.0), np.where(known, np.clip(now - usual, -1.0, 1.0), 0.0)


def _of_calendar(sales: DailySales, origins: np.ndarray) -> list[np.ndarray]:
    weekday = (origins + _EPOCH_WEEKDAY) % 7
    angle = 2 * np.pi * origins / DAYS_PER_YEAR
    told = origins - sales.shop_first_day >= SEASON_AFTER_DAYS
    return [*(weekday == day for day in range(7)), np.sin(angle) * told, np.cos(angle) * told]


def _drawn_week(units: np.ndarray, orders: np.ndarray, there: np.ndarray) -> np.ndarray:
    """[n] units: the median of a week that is drawn again and again from the item's own days.

    Each draw takes a Monday of the last eight, a Tuesday, and so on, and its sum is brought to the orders per day of
    the last four weeks, days out of stock left out. The bootstrap of intermittent demand (Willemain, Smart and Schwarz,
    International Journal of Forecasting 2004) with the weekday in the place of their states. A bulk order comes up in
    few draws and hardly moves their median.

    Args:
        units, orders, there: [n, HISTORY_DAYS] of the days before; `there`: shares on which it could be bought.
    """
    days = 7 * _DRAWN_FROM_WEEKS
    pace = orders[:, -_PACE_DAYS:].sum(1) / np.maximum(there[:, -_PACE_DAYS:].sum(1), _LEAST_THERE_DAYS)
    drawn_pace = np.maximum(orders[:, -days:].sum(1), 1.0) / days
    median: np.ndarray = np.median(units[:, -days:] @ _drawn_days(), axis=1)
    return median * pace / drawn_pace


@cache
def _drawn_days() -> np.ndarray:
    """[days, draws] float32: 1 where a draw takes the day; the same ones for every item, so that nothing is random."""
    weeks = np.random.default_rng(0).integers(_DRAWN_FROM_WEEKS, size=(7, _DRAWS))
    taken = np.arange(_DRAWN_FROM_WEEKS)[:, None, None] == weeks
    return taken.reshape(-1, _DRAWS).astype(np.float32)
