"""The simulated shop lands its hours: events with dirt of known kinds, catalogue changes, customer messages.

It stands in for a shop in demos, tests and benchmarks, because its truth is known: what each customer would
choose (`shop.py`), what is dirty and why (`dirt.py`), what each message means. A window's bytes depend on
(seed, size, window) alone, not on what was landed before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.dirt import Dirtied, add_dirt, clean_rows
from pipeline.sources.files import csv_gz_bytes, json_lines, json_lines_bytes, parquet_bytes, write_file
from pipeline.sources.inbox import Visits, messages_of
from pipeline.sources.shop import Shop, ShopSize, uniform
from pipeline.sources.words import CATEGORIES, STYLES
from pipeline.window import HOUR, Window, windows_between

FIRST = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday: the weekly curve starts with the week

# What follows from one interest of a session. Views outnumber purchases only twice: a shop whose log has the
# purchases of the tills too, so that a small demo has enough of them to learn from.
_SEARCHES, _VIEWS, _CARTS, _BUYS = 0.22, 0.85, 0.5, 0.5
_INTERESTS = 2.2  # mean per session: 1 + Poisson(1.2)
_RATED, _RETURNED = 0.14, 0.04  # of the purchases of a day before
_EVENTS_PER_SESSION = _INTERESTS * (_SEARCHES + _VIEWS + _CARTS + _BUYS * (1 + _RATED + _RETURNED))
_GUESTS = 0.04
_FOLLOW_UP_HOURS = 24  # a purchase is rated or sent back a day later
_ROWS_PER_FILE = 50_000
_TYPES = np.array(["view", "cart", "purchase", "return", "rating", "search"], object)
_VIEW, _CART, _PURCHASE, _RETURN, _RATING, _SEARCH = range(6)


@dataclass(frozen=True)
class _Hour:
    """The clean events of an hour as numbers, in order of time. All arrays are `[events]`."""

    kind: np.ndarray  # index into _TYPES
    millisecond: np.ndarray  # since the window's start
    user: np.ndarray  # -1: a guest
    session: np.ndarray
    item: np.ndarray  # -1: none
    quantity: np.ndarray  # 0: none


class ShopSimulator:
    """A source whose customers, drift and dirt are known."""

    name = "simulated"
    absent_columns: frozenset[str] = frozenset()

    def __init__(self, seed: int = 20260101, first: datetime = FIRST, **size: int | float) -> None:
        """Takes the seed, the first hour, and any of `ShopSize`'s values."""
        self.size = ShopSize(**size)  # type: ignore[arg-type]
        self.shop = Shop(seed, self.size)
        self.seed = seed
        self._first = Window(first)

    @property
    def first(self) -> datetime:
        """Start of the history."""
        return self._first.start

    @property
    def streamed_from(self) -> datetime:
        """Start of the hours after the history."""
        return self.first + HOUR * self.shop.history_hours

    @property
    def last(self) -> datetime:
        """End of the last streamed hour."""
        return self.streamed_from + HOUR * self.size.hours

    @property
    def windows(self) -> tuple[Window, ...]:
        """All hours of the history and of the stream."""
        return tuple(windows_between(self.first, self.last))

    def land(self, windows: Sequence[Window], landing: Path) -> int:
        """Writes the windows' files of all feeds; returns the rows written."""
        return sum(
            self._land_events(window, landing)
            + self._land_items(window, landing)
            + self._land_messages(window, landing)
            for window in windows
        )

    # ---- the truth ----

    def dirt(self, window: Window) -> dict[str, int]:
        """How many rows of each kind of dirt the window's event files hold (`dirt.KINDS`)."""
        return self._dirtied(self._hour_of(window)).counts

    def purchase_probabilities(self, user_raw: str, window: Window) -> dict[str, float]:
        """The chance of each item to be what this customer chooses next in the window; sums to 1."""
        chances = self.shop.probabilities(int(user_raw.removeprefix("U")), self._hour_of(window))
        return dict(zip(self.shop.item_id[: len(chances)], chances.tolist(), strict=True))

    def staples_of(self, user_raw: str, window: Window) -> list[str]:
        """What this customer buys again and again in the window."""
        items, _ = self.shop.staples(np.array([int(user_raw.removeprefix("U"))]), self._hour_of(window))
        return [self.shop.item_id[item] for item in items[0]]

    def price_elasticity(self, item_id: str) -> float:
        """Per cent fewer who choose the item when its price rises by one per cent, before normalising."""
        return float(self.shop.elasticity[self._item(item_id)])

    def style_of(self, item_id: str) -> str:
        """The item's style: never a column, told by its text alone."""
        return self.shop.style_name(self._item(item_id))

    def launched(self, window: Window) -> list[str]:
        """Items that go on sale in the window."""
        return list(self.shop.item_id[self.shop.launch_hour == self._hour_of(window)])

    def messages(self, window: Window) -> pa.Table:
        """The window's messages with their truth: the landed columns, `intent` and `true_sentiment`."""
        return self._messages(self._hour_of(window))

    def _item(self, item_id: str) -> int:
        number = int(item_id.removeprefix("P"))
        if not 0 <= number < len(self.shop.item_id):
            raise KeyError(f"The shop has items P000000..{self.shop.item_id[-1]}; received {item_id!r}.")
        return number

    def _hour_of(self, window: Window) -> int:
        hour = (window.start - self.first) // HOUR
        if not self.first <= window.start < self.last:
            raise ValueError(
                f"The simulated shop lands {self._first} up to {Window(self.last)}; received {window}. "
                "Give it more `hours`, or ask for a window inside."
            )
        return hour

    def _rng(self, hour: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, purpose, hour]))

    # ---- events ----

    @lru_cache(maxsize=_FOLLOW_UP_HOURS + 8)  # noqa: B019  # a simulator lives as long as its process
    def _visits(self, hour: int) -> _Hour:
        """Searches, views, carts and purchases of the hour; no other hour is needed for it."""
        rng = self._rng(hour, 1)
        weekday_hour = self.first.weekday() * 24 + self.first.hour + hour
        sessions = rng.poisson(self.shop.events_expected(hour, weekday_hour) / _EVENTS_PER_SESSION)
        interests = 1 + rng.poisson(_INTERESTS - 1, sessions)
        session = np.repeat(np.arange(sessions), interests)
        place = np.arange(len(session)) - np.repeat(np.cumsum(interests) - interests, interests)
        visitor = self._visitors(hour, sessions, rng)
        user = visitor[session]
        item = self.shop.choose(user, hour, rng.random((len(session), 3)))
        longest = (interests + 2) * 45_000
        start = (rng.random(sessions) * np.maximum(3_600_000 - longest, 1)).astype(np.int64)
        at = start[session] + place * 45_000 + rng.integers(0, 9_000, len(session))
        paid = (start + (interests + 1) * 45_000)[session]  # a basket is paid at once
        draws = rng.random((len(session), 5))
        lost = draws[:, 4] < 0.08  # a search that led nowhere
        parts = [
            (_SEARCH, draws[:, 0] < _SEARCHES, at, np.where(lost, -1, item)),
            (_VIEW, draws[:, 1] < _VIEWS, at + 10_000, item),
            (_CART, draws[:, 2] < _CARTS, at + 20_000, item),
            (_PURCHASE, draws[:, 3] < _BUYS, paid, item),
        ]
        units = np.where(self.shop.staple[item], 1 + rng.poisson(0.8, len(item)), 1)
        return _in_order(
            *(
                (
                    np.full(mask.sum(), kind),
                    np.minimum(time, 3_599_999)[mask],
                    user[mask],
                    session[mask],
                    chosen[mask],
                    units[mask] if kind in (_CART, _PURCHASE) else np.zeros(mask.sum(), np.int64),
                )
                for kind, mask, time, chosen in parts
            )
        )

    def _visitors(self, hour: int, sessions: int, rng: np.random.Generator) -> np.ndarray:
        known = self.shop.known_users(hour)
        # activity is skewed: a fifth of the customers make about half of the visits
        activity = np.cumsum((1.0 - uniform(self.seed, 30, np.arange(known))) ** -0.4)
        visitor = np.minimum(
            np.searchsorted(activity, rng.random(sessions) * activity[-1], side="right"), known - 1
        )
        newest = rng.random(sessions) < 0.05  # whoever has just registered looks around
        recent = max(1, min(known, 24 * self.size.new_users_per_hour))
        visitor = np.where(newest, known - 1 - rng.integers(0, recent, sessions), visitor)
        return np.where(rng.random(sessions) < _GUESTS, -1, visitor)

    def _follow_ups(self, hour: int) -> _Hour:
        """Ratings and returns of what was bought a day before."""
        if hour < _FOLLOW_UP_HOURS:
            return _in_order()
        before = self._visits(hour - _FOLLOW_UP_HOURS)
        bought = np.flatnonzero((before.kind == _PURCHASE) & (before.user >= 0))
        draw = self._rng(hour, 2).random(len(bought))
        parts = []
        for kind, mask in ((_RATING, draw < _RATED), (_RETURN, draw > 1 - _RETURNED)):
            rows = bought[mask]
            units = before.quantity[rows] if kind == _RETURN else np.zeros(len(rows), np.int64)
            parts.append(
                (
                    np.full(len(rows), kind),
                    before.millisecond[rows],
                    before.user[rows],
                    before.session[rows] + 10_000_000,
                    before.item[rows],
                    units,
                )
            )
        return _in_order(*parts)

    @lru_cache(maxsize=8)  # noqa: B019
    def _events(self, hour: int) -> pa.Table:
        """The hour's events before any dirt, all columns as text; `session_id` decides the file."""
        visits, later = self._visits(hour), self._follow_ups(hour)
        events = _in_order(*(tuple(vars(part).values()) for part in (visits, later)))
        rng = self._rng(hour, 3)
        n, window = len(events.kind), Window(self.first + HOUR * hour)
        stamp = window.start.strftime("%y%m%d%H")
        priced = np.isin(events.kind, (_CART, _PURCHASE, _RETURN))
        price = np.char.mod("%.2f", self.shop.prices(hour)[events.item]) if n else np.zeros(0, str)
        happened = np.datetime64(window.start.replace(tzinfo=None), "ms") + events.millisecond.astype(
            "timedelta64[ms]"
        )
        wording = rng.integers(0, 2, n)
        session = np.char.add(f"S{stamp}-", events.session.astype(str))
        return pa.table(
            {
                "event_id": pa.array(
                    np.char.add(f"E{stamp}-", np.arange(n).astype(str)).tolist(), pa.string()
                ),
                "event_type": pa.array(_TYPES[events.kind], pa.string()),
                "event_time": pa.array(np.char.add(happened.astype(str), "Z").tolist(), pa.string()),
                "user_id": _text(_numbered("U", events.user), events.user >= 0),
                "session_id": pa.array(session.tolist(), pa.string()),
                "item_id": _text(self.shop.item_id[events.item], events.item >= 0),
                "quantity": _text(events.quantity.astype(str), events.quantity > 0),
                "price": _text(price, priced),
                "rating": _text(self._ratings(events, rng), events.kind == _RATING),
                "query": _text(self._queries(hour, events, rng, wording), events.kind == _SEARCH),
                "basket_id": _text(np.char.add(f"B{stamp}-", events.session.astype(str)), events.kind == _PURCHASE),
            }
        )

    def _ratings(self, events: _Hour, rng: np.random.Generator) -> np.ndarray:
        raw = 1.5 + 3.5 * self.shop.quality[events.item] + rng.normal(0, 0.7, len(events.item))
        return np.clip(np.rint(raw), 1, 5).astype(int).astype(str)

    def _queries(self, hour: int, events: _Hour, rng: np.random.Generator, wording: np.ndarray) -> np.ndarray:
        """The words with which a customer looks for the item: its style, or its colour, and what it is."""
        styles, categories = list(STYLES.values()), list(CATEGORIES.values())
        words = np.full(len(events.kind), "", object)
        searched = np.flatnonzero(events.kind == _SEARCH)
        looks = rng.integers(0, 3, len(searched))
        missed = rng.integers(0, self.shop.known_items(hour), len(searched))  # what a lost search was after
        for row, look, other in zip(searched, looks, missed, strict=True):
            item = events.item[row] if events.item[row] >= 0 else other
            title, used_as = self._title(item), categories[self.shop.category[item]][1]
            style = styles[self.shop.style[item]]
            noun = " ".join(title.split()[2:]).lower()
            words[row] = f"{style[0].lower()} {noun}" if wording[row] else f"{style[1][look]} {used_as}"
        return words

    @lru_cache(maxsize=200_000)  # noqa: B019
    def _title(self, item: int) -> str:
        return self.shop.item_text(int(item))["title"]

    @lru_cache(maxsize=4)  # noqa: B019
    def _dirtied(self, hour: int) -> Dirtied:
        lag = 1 + int(self._rng(hour, 5).integers(0, 3))  # last hour's, or up to three hours old
        earlier = None
        if hour >= lag:
            table = self._events(hour - lag)
            earlier = table.take(clean_rows(len(table), self._rng(hour - lag, 4), self.size.dirt_share))
        start = self.first + HOUR * hour
        return add_dirt(
            self._events(hour),
            earlier,
            start,
            hour,
            self.size.dirt_share,
            self._rng(hour, 4),
            self._rng(hour, 6),
        )

    def _land_events(self, window: Window, landing: Path) -> int:
        dirtied = self._dirtied(self._hour_of(window))
        written = 0
        lines = json_lines(dirtied.web)
        if dirtied.broken:
            text = lines.to_pylist()
            for row, share in dirtied.broken.items():
                text[row] = text[row][: 2 + int(share * (len(text[row]) - 3))]  # no closing brace is left
            lines = pa.chunked_array([pa.array(text, pa.string())])
        files = max(2, -(-len(lines) // _ROWS_PER_FILE))
        for number in range(files):
            bounds = len(lines) * number // files, len(lines) * (number + 1) // files
            part = lines.slice(bounds[0], bounds[1] - bounds[0])
            if len(part):
                write_file(landing, "events", window, f"web-{number:03d}.jsonl", json_lines_bytes(part))
                written += len(part)
        if len(dirtied.app):
            write_file(landing, "events", window, "app.csv.gz", csv_gz_bytes(dirtied.app))
        if len(dirtied.till):
            write_file(landing, "events", window, "till.parquet", parquet_bytes(dirtied.till, "event_time"))
        return written + len(dirtied.app) + len(dirtied.till)

    # ---- catalogue ----

    def _land_items(self, window: Window, landing: Path) -> int:
        """Launches, price changes and stock changes of the hour; the entire catalogue in the first."""
        hour = self._hour_of(window)
        price, stock = self.shop.prices(hour), self.shop.stock(hour)
        changed = self.shop.launch_hour == hour
        if hour:
            on_sale = self.shop.launch_hour < hour
            moved = (price != self.shop.prices(hour - 1)) | ((stock > 0) != (self.shop.stock(hour - 1) > 0))
            changed |= on_sale & moved
        items = np.flatnonzero(changed)
        if not len(items):
            return 0
        texts = [self.shop.item_text(int(item)) for item in items]
        stamp = window.start.strftime("%y%m%d%H")
        table = pa.table(
            {
                "change_id": [f"C{stamp}-{item}" for item in items],
                "item_id": pa.array(self.shop.item_id[items], pa.string()),
                "change_time": [window.start.strftime("%Y-%m-%dT%H:%M:%SZ")] * len(items),
                **{
                    name: [text[name] for text in texts]
                    for name in ("title", "description", "category", "brand")
                },
                "price": [f"{value:.2f}" for value in price[items]],
                "stock": [f"{value:.0f}" for value in stock[items]],
            }
        )
        if hour == 0:  # a shop starts with an export of its catalogue
            table = table.set_column(
                2, "change_time", pc.strptime(table["change_time"], "%Y-%m-%dT%H:%M:%SZ", "ms")
            )
            write_file(landing, "items", window, "catalogue.parquet", parquet_bytes(table, "change_time"))
        else:
            write_file(landing, "items", window, "changes.jsonl", json_lines_bytes(json_lines(table)))
        return len(items)

    # ---- messages ----

    def _messages(self, hour: int) -> pa.Table:
        visits = self._visits(hour)
        written = Visits(
            self.first + HOUR * hour, hour, hour >= self.shop.history_hours, visits.session, visits.user, visits.item,
            visits.millisecond,
        )
        return messages_of(written, self._rng(hour, 7), self._rng(hour, 8), self._rng(hour, 9), self._title)

    def _land_messages(self, window: Window, landing: Path) -> int:
        messages = self._messages(self._hour_of(window)).drop_columns(["intent", "true_sentiment"])
        if len(messages):
            write_file(landing, "messages", window, "inbox.jsonl", json_lines_bytes(json_lines(messages)))
        return len(messages)


def _in_order(*parts: tuple[np.ndarray, ...]) -> _Hour:
    """The parts' rows together, in order of time (of parts, where times are equal)."""
    empty = np.zeros(0, np.int64)
    columns = [np.concatenate([empty, *column]) for column in zip(*parts, strict=True)] or [empty] * 6
    order = np.argsort(columns[1], kind="stable")
    return _Hour(*(column[order] for column in columns))


def _text(values: np.ndarray, present: np.ndarray) -> pa.Array:
    return pa.array(np.asarray(values, object), pa.string(), mask=~present)


def _numbered(letter: str, numbers: np.ndarray) -> np.ndarray:
    # numpy's zfill wants at least one; a small shop has hours without any event
    return np.char.add(letter, np.char.zfill(numbers.astype(str), 6)) if len(numbers) else np.array([], "U1")
