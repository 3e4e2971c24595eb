"""The simulated shop's world: its items and customers, and what each customer would choose in each hour.

Everything here is a function of (seed, hour) without memory: a taste, a price or a trend of an hour is
computed from counter-based random numbers (SplitMix64, Steele et al. 2014), never by stepping through the
hours before it. So any window can be landed alone, and the truth of any hour can be asked for.

A choice is drawn from an explicit mixture, hence its probabilities are known exactly:

    P(item | user, hour) = repeat * staples(user, hour)
                         + (1 - repeat) * sum over the user's segments g of weight(user, g)
                             * [(1 - hot) * taste_g(item, hour) + hot * fashion_g(item, hour)]

and every part is multiplied by stock, (price / base price) ** -elasticity and, where `promotion_lift` says so, what
a promotion adds, before it is normalised.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.sources.words import BRANDS, CATEGORIES, COLOURS, STYLES

REPEAT = 0.6  # chosen so that, counted in the log, nearly half of the fourth week's purchases are repeats
HOT = 0.55  # of the other half: enough that a model that misses a day of launches visibly loses recall
STAPLES = 6  # things a customer buys again and again
SEGMENTS = 36  # tastes: a style and five favoured categories
FASHION_HOURS = 60  # how long a launch or a viral item stays in fashion at all

_STYLE_NAMES = tuple(STYLES)
_CATEGORY_NAMES = tuple(CATEGORIES)
_STAPLE_HOURS = 24 * 28  # a customer replaces a staple about every four weeks ...
_TASTE_HOURS = 24 * 14  # ... and a taste every two
_PRICE_HOURS = 24 * 6  # an item's price is looked at about once a week
_PRICE_FACTORS = np.array([1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.7, 1.1])
_PROMOTED = 0.805  # price against base price, below which an item is shown as a promotion
_STOCK_HOURS = 12
_SOLD_OUT = 0.02  # share of items that are sold out in a half-day
_VIRAL_HOURS = 2  # an old item goes viral every so many hours


def _mixed(*keys: int | np.integer | np.ndarray) -> np.ndarray:
    """SplitMix64 over the keys, broadcast against each other: uint64."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(*keys: int | np.integer | np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) that depend on the keys alone, broadcast against each other: float64."""
    return (_mixed(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class ShopSize:
    """How large the simulated shop is and how fast it moves.

    Attributes:
        users: customers known before the first hour.
        items: items on sale before the first hour.
        history_days: days before the hours that are streamed.
        hours: hours streamed after the history.
        history_events: events of the entire history, about.
        events_per_hour: mean of a streamed hour; the hour of the day moves it between 0.55 and 1.5 of this.
        history_launches_per_day: new items a day during the history.
        launches_per_hour: new items in a streamed hour (a new collection arrives).
        new_users_per_hour: customers who register in an hour.
        dirt_share: share of event rows that are dirty, over all kinds.
        elasticity_spread: standard deviation of the log of an item's elasticity about its category's; 0: none.
        promotion_lift: how much more a reduced item (a fifth or more) is chosen for being shown as one, beyond what
            its price does; 0: nothing.
    """

    users: int = 3_000
    items: int = 500
    history_days: int = 28
    hours: int = 24
    history_events: int = 290_000
    events_per_hour: int = 800
    history_launches_per_day: int = 4
    launches_per_hour: int = 3
    new_users_per_hour: int = 2
    dirt_share: float = 0.015
    elasticity_spread: float = 0.0
    promotion_lift: float = 0.0

    def __post_init__(self) -> None:
        least = {
            "users": 1,
            "items": 50,
            "history_days": 1,
            "hours": 0,
            "history_events": 0,
            "events_per_hour": 0,
            "history_launches_per_day": 0,
            "launches_per_hour": 0,
            "new_users_per_hour": 0,
            "elasticity_spread": 0,
            "promotion_lift": 0,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(
                    f"A shop's `{name}` must be at least {minimum}; received {getattr(self, name)}."
                )
        if not 0 <= self.dirt_share <= 0.5:
            raise ValueError(f"A shop's `dirt_share` must lie in 0..0.5; received {self.dirt_share}.")


class Shop:
    """Items, customers and choices; `hour` counts full hours from the shop's first window."""

    def __init__(self, seed: int, size: ShopSize) -> None:
        """Builds the catalogue of all items ever launched; `size.hours` decides its length, nothing else."""
        self.seed, self.size = seed, size
        self.history_hours = size.history_days * 24
        self.launch_hour = self._launch_hours()  # [items] int64, 0 for the first catalogue
        index = np.arange(len(self.launch_hour))
        self.style = (uniform(seed, 1, index) * len(_STYLE_NAMES)).astype(np.int64)  # [items]
        self.category = (uniform(seed, 2, index) * len(_CATEGORY_NAMES)).astype(np.int64)
        self.brand = (uniform(seed, 3, index) * len(BRANDS)).astype(np.int64)
        facts = list(CATEGORIES.values())
        own = size.elasticity_spread * np.sqrt(12.0) * (uniform(seed, 17, index) - 0.5)  # evenly spread
        self.elasticity = np.array([fact[3] for fact in facts])[self.category] * np.exp(own)
        self.staple = np.array([fact[4] for fact in facts])[self.category]
        dear = np.array([fact[2] for fact in facts])[self.category]
        self.base_price = np.round(dear * np.exp(1.2 * (uniform(seed, 4, index) - 0.5)), 2)
        self.quality = uniform(seed, 5, index)  # [items] 0..1, what ratings gather around
        # Zipf-like popularity: a few items of each taste carry most of its sales
        self.popularity = (1.0 - uniform(seed, 6, index)) ** -0.9
        self.item_id = np.array([f"P{i:06d}" for i in index], object)
        self._affinity = self._segment_affinity()

    def _launch_hours(self) -> np.ndarray:
        size = self.size
        days = np.arange(size.history_days)
        history = [
            day * 24 + (uniform(self.seed, 7, day, np.arange(size.history_launches_per_day)) * 24).astype(int)
            for day in days
        ]
        streamed = np.repeat(np.arange(size.hours) + self.history_hours, size.launches_per_hour)
        later = np.sort(np.concatenate([np.zeros(0, np.int64), *history]))
        return np.concatenate([np.zeros(size.items, np.int64), np.maximum(later, 1), streamed]).astype(
            np.int64
        )

    def _segment_affinity(self) -> np.ndarray:
        """How much each taste likes each item: [SEGMENTS, items]."""
        segment = np.arange(SEGMENTS)[:, None]
        favoured = uniform(self.seed, 8, segment, np.arange(len(_CATEGORY_NAMES))[None]) < 5 / len(
            _CATEGORY_NAMES
        )
        by_style = np.where(segment % len(_STYLE_NAMES) == self.style[None], 1.0, 0.03)
        return by_style * np.where(favoured[:, self.category], 1.0, 0.08)

    # ---- what an hour is like ----

    def known_items(self, hour: int) -> int:
        """How many items are on sale in this hour (they are numbered by launch)."""
        return int(np.searchsorted(self.launch_hour, hour, side="right"))

    def known_users(self, hour: int) -> int:
        """How many customers have registered before the end of this hour."""
        return self.size.users + self.size.new_users_per_hour * (hour + 1)

    def events_expected(self, hour: int, weekday_hour: int) -> float:
        """Mean number of clean events of the hour; `weekday_hour` counts from Monday 00:00 UTC."""
        level = float(self.size.events_per_hour)
        if hour < self.history_hours:
            mean = self.size.history_events / self.history_hours
            # the shop grows in a straight line towards the streamed level, where that is within reach
            grows = mean > level / 2 and level > mean
            level = (2 * mean - level) + 2 * (level - mean) * hour / self.history_hours if grows else mean
        day, clock = divmod(weekday_hour % 168, 24)
        curve = (
            1.0 + 0.36 * np.sin(2 * np.pi * (clock - 9) / 24) + 0.12 * np.sin(4 * np.pi * (clock - 6) / 24)
        )
        return level * float(curve) * (1.15 if day >= 5 else 0.94)

    def prices(self, hour: int) -> np.ndarray:
        """Price of every item in the hour: [items]."""
        index = np.arange(len(self.base_price))
        epoch = (hour + (uniform(self.seed, 9, index) * _PRICE_HOURS).astype(int)) // _PRICE_HOURS
        drawn = (uniform(self.seed, 10, index, epoch) * len(_PRICE_FACTORS)).astype(int)
        return np.round(self.base_price * _PRICE_FACTORS[drawn], 2)

    def stock(self, hour: int) -> np.ndarray:
        """Units of every item in stock: [items] float64, 0 when it is sold out. Told anew each half-day."""
        index = np.arange(len(self.base_price))
        epoch = (hour + (uniform(self.seed, 11, index) * _STOCK_HOURS).astype(int)) // _STOCK_HOURS
        level = np.floor(20 + 480 * uniform(self.seed, 12, index))
        young = hour - self.launch_hour < FASHION_HOURS  # a launch is well stocked
        return np.where((uniform(self.seed, 13, index, epoch) < _SOLD_OUT) & ~young, 0.0, level)

    def fashion(self, hour: int) -> np.ndarray:
        """How much each item is in fashion, by launch or by going viral: [items], 0 for most."""
        heat = np.zeros(len(self.base_price))
        age = hour - self.launch_hour
        young = (self.launch_hour > 0) & (age >= 0) & (age < FASHION_HOURS)
        heat[young] = np.exp(-age[young] / 20.0) * (0.3 + uniform(self.seed, 14, np.flatnonzero(young)))
        starts = np.arange(max(0, hour - FASHION_HOURS) // _VIRAL_HOURS, hour // _VIRAL_HOURS + 1)
        for start in starts:
            since = hour - start * _VIRAL_HOURS
            item = int(uniform(self.seed, 15, start) * self.known_items(int(start) * _VIRAL_HOURS))
            heat[item] += 1.2 * float(np.exp(-since / 12.0))
        return heat

    @lru_cache(maxsize=16)  # noqa: B019  # a shop lives as long as its process
    def _hour_choices(self, hour: int) -> tuple[np.ndarray, np.ndarray]:
        """Factor of price and stock [known]; explored choice by taste [SEGMENTS, known], rows sum to 1."""
        factor, taste, wave = self._explored(hour)
        return factor, (1 - HOT) * taste + HOT * wave

    def _explored(self, hour: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Factor of price and stock [known]; choice by taste and by fashion [SEGMENTS, known] each, rows sum to 1."""
        known = self.known_items(hour)
        price = self.prices(hour)[:known]
        relative = price / self.base_price[:known]
        factor = relative ** -self.elasticity[:known] * (self.stock(hour)[:known] > 0)
        factor = factor * np.where(relative < _PROMOTED, 1.0 + self.size.promotion_lift, 1.0)
        season = 1 + 0.6 * np.sin(2 * np.pi * (hour / (24 * 30) + uniform(self.seed, 16, self.style[:known])))
        taste = self._affinity[:, :known] * (self.popularity[:known] * season * factor)
        taste /= taste.sum(1, keepdims=True)
        heat = self.fashion(hour)[:known] * factor
        # fashion reaches every taste, its own style thrice as strongly
        own = (np.arange(SEGMENTS)[:, None] % len(_STYLE_NAMES)) == self.style[None, :known]
        wave = np.where(own, 3.0, 1.0) * heat
        total = wave.sum(1, keepdims=True)
        return factor, taste, np.where(total > 0, wave / np.maximum(total, 1e-12), taste)

    # ---- what a customer is like ----

    def tastes(self, users: np.ndarray, hour: int) -> tuple[np.ndarray, np.ndarray]:
        """Segments of each user and their weights: [users, 3] int64, [3]. Tastes drift one at a time."""
        slot = np.arange(3)[None]
        phase = (uniform(self.seed, 20, users[:, None], slot) * _TASTE_HOURS * (1 + 2 * (slot == 0))).astype(
            np.int64
        )
        length = _TASTE_HOURS * (1 + 2 * (slot == 0))  # the main taste is the steadiest
        epoch = (hour + phase) // length
        return (uniform(self.seed, 21, users[:, None], slot, epoch) * SEGMENTS).astype(np.int64), np.array(
            [0.7, 0.2, 0.1]
        )

    def staples(self, users: np.ndarray, hour: int) -> tuple[np.ndarray, np.ndarray]:
        """What each user buys again and again, and how keenly: item numbers and weights, [users, STAPLES]."""
        users = users[:, None]
        slot = np.arange(STAPLES)[None]
        phase = (uniform(self.seed, 22, users, slot) * _STAPLE_HOURS).astype(np.int64)
        epoch = (hour + phase) // _STAPLE_HOURS
        since = np.maximum(epoch * _STAPLE_HOURS - phase, 0)
        segments = self.tastes(users[:, 0], 0)[0]
        main = segments[:, :1] + np.zeros_like(slot)
        return self._liked_staple(main, since, uniform(self.seed, 23, users, slot, epoch)), 1.0 / (
            1 + slot
        ) ** 0.6 + 0 * main

    def _liked_staple(self, segment: np.ndarray, since: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """The consumable item that a taste picks with this draw of those on sale at `since`: same shape."""
        index, cumulative = self._staple_table()
        known = np.searchsorted(self.launch_hour[index], since, side="right")
        total = cumulative[segment, np.maximum(known, 1) - 1]
        chosen = np.empty(draw.shape, np.int64)
        for taste in np.unique(segment):
            here = segment == taste
            place = np.searchsorted(cumulative[taste], draw[here] * total[here], side="right")
            chosen[here] = index[np.minimum(place, len(index) - 1)]
        return chosen

    @lru_cache(maxsize=1)  # noqa: B019
    def _staple_table(self) -> tuple[np.ndarray, np.ndarray]:
        index = np.flatnonzero(self.staple)
        return index, np.cumsum(self._affinity[:, index] * self.popularity[index] ** 0.5, 1)

    # ---- choices ----

    def choose(self, users: np.ndarray, hour: int, draws: np.ndarray) -> np.ndarray:
        """One chosen item number per row; users [n] (-1: a guest), draws [n, 3] in [0, 1)."""
        factor, explored = self._hour_choices(hour)
        cumulative = np.cumsum(explored, 1)
        known = explored.shape[1]
        segments, weights = self.tastes(users, hour)
        slot = np.searchsorted(np.cumsum(weights)[:-1], draws[:, 1], side="right")
        segment = segments[np.arange(len(users)), slot]
        # one sorted array for all tastes: taste g occupies [g, g + 1)
        flat = (cumulative / cumulative[:, -1:] * (1 - 1e-12) + np.arange(SEGMENTS)[:, None]).ravel()
        chosen = np.minimum(
            np.searchsorted(flat, segment + draws[:, 2], side="right") - segment * known, known - 1
        )
        again = np.flatnonzero((draws[:, 0] < REPEAT) & (users >= 0))
        if len(again):
            items, keen = self.staples(users[again], hour)
            keen = np.cumsum(keen * factor[items], 1)
            place = (keen <= draws[again, 2:3] * keen[:, -1:]).sum(1)
            usable = keen[:, -1] > 0  # all staples sold out: explores instead
            chosen[again[usable]] = items[usable, np.minimum(place[usable], STAPLES - 1)]
        return chosen

    def probabilities(self, user: int, hour: int) -> np.ndarray:
        """Exactly what `choose` draws from for one user: [items on sale], summing to 1."""
        factor, explored = self._hour_choices(hour)
        who = np.array([user])
        segments, weights = self.tastes(who, hour)
        result = weights @ explored[segments[0]]
        if user < 0:
            return result
        items, keen = self.staples(who, hour)
        keen = (keen * factor[items])[0]
        if keen.sum() == 0:
            return result
        result = result * (1 - REPEAT)
        np.add.at(result, items[0], REPEAT * keen / keen.sum())
        return result

    def own_elasticity(self, hour: int, users: np.ndarray) -> np.ndarray:
        """Per cent fewer of all choices of each item when its price alone rises by one per cent: [items on sale].

        What is lost of `elasticity` by normalising: an item that is nearly all that a taste or a customer's staples
        offer is chosen at almost any price. For the mean of `users` ([n], customers).
        """
        factor, taste, wave = self._explored(hour)
        segments, weights = self.tastes(users, hour)
        share = (1 - REPEAT) * np.bincount(segments.ravel(), np.tile(weights, len(users)), SEGMENTS) / len(users)
        first, second = (share @ ((1 - HOT) * taste**power + HOT * wave**power) for power in (1, 2))
        items, keen = self.staples(users, hour)
        keen = keen * factor[items]
        for row, weight in zip(items, keen / np.maximum(keen.sum(1, keepdims=True), 1e-12), strict=True):
            chosen = np.bincount(row, weight, len(first))  # an item can be two of a customer's staples
            first += REPEAT / len(users) * chosen
            second += REPEAT / len(users) * chosen**2
        return self.elasticity[: len(first)] * (1.0 - second / np.maximum(first, 1e-12))

    # ---- texts ----

    def item_text(self, item: int) -> dict[str, str]:
        """`title`, `description`, `category` and `brand` of an item."""
        style, category = _STYLE_NAMES[self.style[item]], _CATEGORY_NAMES[self.category[item]]
        adjective, looks = STYLES[style]
        nouns, used_as = CATEGORIES[category][:2]
        draws = uniform(self.seed, 24, item, np.arange(4))
        noun, look = nouns[int(draws[0] * len(nouns))], looks[int(draws[1] * len(looks))]
        colour = COLOURS[int(draws[2] * len(COLOURS))]
        return {
            "title": f"{adjective} {colour} {noun}",
            "description": f"{noun} in {colour.lower()}, {look}. A {adjective.lower()} piece for {used_as}.",
            "category": category,
            "brand": BRANDS[self.brand[item]],
        }

    def style_name(self, item: int) -> str:
        """The name of the item's style, as in `words.STYLES`."""
        return _STYLE_NAMES[self.style[item]]
