"""How often the watch raises a false alarm, and how late it sees a change, to results/WATCH.md.

Part `watch` of `make bench-trust`.

Drift is measured through the real path (lake, profiles, conditions) on simulated shops whose launches, prices and
fashions go on as they always did: whatever is raised there is a false alarm. Then the same shops change at a known
hour. Quality and aging are measured on drawn series of hourly scores as noisy as those of `make run`'s shop.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.aging import Scored, aging_curve, expected_loss
from pipeline.conditions import LOSS, feed_conditions
from pipeline.drift import Gain, fall_of
from pipeline.lake import Lake, open_lake
from pipeline.profiles import profile_windows
from pipeline.schema import EVENTS, ITEMS
from pipeline.settings import Settings
from pipeline.sources.simulator import FIRST, ShopSimulator
from pipeline.watch import feed_health
from pipeline.window import HOUR, windows_between
from tests.benchmarks.bench_trust import Measured
from tests.small_shop import catalogue_of, events_of, log_windows, publish, settings_of

PAGE = Path(__file__).with_name("results") / "WATCH.md"
SEEDS = (1, 2, 3)
HISTORY_DAYS, WATCHED_DAYS = 30, 14
MOST_HOURS = 30  # of a changed feed: a day's hours are all of the new kind after 24
EVENTS_PER_HOUR = 150
LEVEL, LEAD, NOISE = 0.7, 0.1, 0.045  # of `make run`'s hours: recall@20, its lead, and what that scatters by
SERIES, SERIES_DAYS, CHANGE_DAY = 200, 28, 14

_YEAR_DAYS = 365.0


# -- drift ------------------------------------------------------------------------------------------------------


def _prices_of_another_currency(rows: pa.Table) -> pa.Table:
    return _with(rows, "price", pc.multiply(rows["price"], 1.5))


def _a_fifth_without_price(rows: pa.Table) -> pa.Table:
    gone = pa.array(np.arange(len(rows)) % 5 == 0)
    return _with(rows, "price", pc.if_else(gone, None, rows["price"]))


def _a_bot_that_views(rows: pa.Table) -> pa.Table:
    views = rows.filter(pc.equal(rows["event_type"], "view"))
    again = _with(views, "event_id", pc.binary_join_element_wise(views["event_id"], "bot", "-"))
    return pa.concat_tables([rows, again])


def _every_third_purchase_lost(rows: pa.Table) -> pa.Table:
    lost = np.zeros(len(rows), bool)
    lost[np.flatnonzero(pc.equal(rows["event_type"], "purchase").to_numpy())[::3]] = True
    return rows.filter(pa.array(~lost))


def _one_item_bought_by_all(rows: pa.Table) -> pa.Table:
    chosen = pa.array(np.arange(len(rows)) % 4 == 0)
    known = pc.is_valid(rows["item_id"])
    return _with(rows, "item_id", pc.if_else(pc.and_(chosen, known), rows["item_id"][0], rows["item_id"]))


def _with(rows: pa.Table, name: str, values: object) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)


CHANGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "currency": _prices_of_another_currency, "missing_prices": _a_fifth_without_price, "bot": _a_bot_that_views,
    "lost_purchases": _every_third_purchase_lost, "one_item": _one_item_bought_by_all,
}


class _Shop:
    """A simulated shop's lake, that takes in its hours as they are or changed."""

    def __init__(self, home: Path, seed: int) -> None:
        hours = (WATCHED_DAYS + 2) * 24
        self._shop = ShopSimulator(
            seed=seed, users=1_500, items=300, history_days=HISTORY_DAYS, hours=hours, launches_per_hour=1,
            history_launches_per_day=24, history_events=EVENTS_PER_HOUR * 24 * HISTORY_DAYS,
            events_per_hour=EVENTS_PER_HOUR,
        )
        self.settings: Settings = settings_of(home)
        self.lake: Lake = open_lake(self.settings)
        self.end = FIRST
        self.arrive(HISTORY_DAYS * 24)

    def arrive(self, hours: int, change: Callable[[pa.Table], pa.Table] = lambda rows: rows) -> None:
        windows = list(windows_between(self.end, self.end + hours * HOUR))
        items = pa.concat_tables([catalogue_of(self._shop, window) for window in windows])
        publish(self.lake, ITEMS, windows, items)
        rows = change(events_of(self._shop, windows))
        publish(self.lake, EVENTS, windows, rows)
        for feed in (ITEMS, EVENTS):
            log_windows(self.lake, feed, *windows)
        profile_windows(self.lake)
        self.end = windows[-1].end

    def drifts(self, *, is_open: bool = False) -> bool:
        health = feed_health(self.lake, "events", self.settings, self.end)
        opened = {"drift-events": self.end} if is_open else {}
        return any(one.name == "drift-events" for one in feed_conditions(health, opened))


def drift_figures() -> dict[str, float]:
    """False alarms a year on shops that go on as they did; hours until a change is seen, the mean over seeds."""
    begun, days, delays = 0, 0, {name: list[float]() for name in CHANGES}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
            shop, was_open = _Shop(Path(folder), seed), False
            for _ in range(WATCHED_DAYS * 2):  # two looks a day: the 24 of a day share most of their rows
                shop.arrive(12)
                is_open = shop.drifts(is_open=was_open)
                begun, was_open = begun + (is_open and not was_open), is_open
            days += WATCHED_DAYS
            for name, change in CHANGES.items():
                delays[name].append(_hours_until_seen(shop, change))
                print(f"seed {seed}: {begun} false alarms; {name} seen after {delays[name][-1]:.0f} h", flush=True)
    return {
        "watch.drift_false_alarms": float(begun), "watch.drift_days_watched": float(days),
        **{f"watch.drift_hours_until_{name}": _mean(found) for name, found in delays.items()},
        **{f"watch.drift_unseen_{name}": float(np.isinf(found).sum()) for name, found in delays.items()},
    }


def _mean(hours: list[float]) -> float:
    """The mean over shops, of MOST_HOURS where nothing was seen."""
    return float(np.nanmean(np.minimum(hours, MOST_HOURS)))


def _hours_until_seen(shop: _Shop, change: Callable[[pa.Table], pa.Table], step: int = 3) -> float:
    """Hours of a changed feed until drift is raised; the shop is put back after it.

    NaN where an alarm is open already, infinite where none is raised in MOST_HOURS.
    """
    if shop.drifts():
        return float("nan")  # an alarm that is open already tells nothing of the change
    began = shop.end
    versions = {name: shop.lake.version(name) for name in ("events", "items", "windows", "window_profiles")}
    hours = float("inf")
    for passed in range(step, MOST_HOURS + 1, step):
        shop.arrive(step, change)
        if shop.drifts():
            hours = float(passed)
            break
    for name, version in versions.items():
        shop.lake._open(name).restore(version)
    shop.end = began
    return hours


# -- quality and aging --------------------------------------------------------------------------------------------


def _series(generator: np.random.Generator, fall: float = 0.0) -> list[Gain]:
    """Hourly leads with the rhythm of a day, that fall by a share of the level at CHANGE_DAY."""
    hours = np.arange(SERIES_DAYS * 24)
    sizes = generator.poisson(60 * (1 + 0.5 * np.sin(2 * np.pi * hours / 24))) + 5
    values = LEAD + 0.01 * np.sin(2 * np.pi * hours / 24 + 1) + NOISE * generator.normal(size=len(hours)) * np.sqrt(
        60 / sizes
    )
    values -= fall * LEVEL * (hours >= CHANGE_DAY * 24)
    return [
        Gain(FIRST + int(hour) * HOUR, float(value), LEVEL, int(size))
        for hour, value, size in zip(hours, values, sizes, strict=True)
    ]


def _raised_at(series: list[Gain], looks: Iterator[int]) -> int | None:
    """The first look (hours from the start) at which the fall would be an alert."""
    for hour in looks:
        fall = fall_of(series[:hour])
        if fall is not None and fall.loss >= LOSS.raises:
            return hour
    return None


def quality_figures() -> dict[str, float]:
    """False alarms a year on leads that stay; hours until falls of 3, 5 and 10 % are an alert (median)."""
    generator = np.random.default_rng(SEEDS[0])
    daily = range(48, SERIES_DAYS * 24, 24)
    alarms = sum(_raised_at(_series(generator), iter(daily)) is not None for _ in range(SERIES))
    figures = {"watch.quality_false_alarms_a_year": alarms / (SERIES * SERIES_DAYS) * _YEAR_DAYS}
    change = CHANGE_DAY * 24
    for share in (0.03, 0.05, 0.10):
        looks = range(change + 3, SERIES_DAYS * 24, 3)
        seen = [_raised_at(_series(generator, share), iter(looks)) for _ in range(SERIES // 8)]
        hours = [SERIES_DAYS * 24.0 - change if one is None else one - change for one in seen]
        figures[f"watch.quality_hours_until_fall_of_{share * 100:.0f}_pct"] = float(np.median(hours))
    return figures


def aging_figures() -> dict[str, float]:
    """How often models that lose nothing are said to have aged, and the loss a week that is certain after a week."""
    generator = np.random.default_rng(SEEDS[1])
    false = sum(_aged(generator, a_week=0.0) for _ in range(SERIES))
    seen = {share: sum(_aged(generator, a_week=share) for _ in range(SERIES // 4)) / (SERIES // 4)
            for share in (0.05, 0.10)}
    return {"watch.aging_false_share": false / SERIES,
            **{f"watch.aging_seen_of_{share * 100:.0f}_pct_a_week": value for share, value in seen.items()}}


def _aged(generator: np.random.Generator, a_week: float) -> bool:
    scored, ends = [], {1: FIRST}
    for hour in range(1, 169):
        window, hard = FIRST + hour * HOUR, 0.05 * generator.normal()
        ends[1 + hour] = window - HOUR
        old = LEVEL * (1 - a_week * hour / 168)
        scored += [
            Scored(window, "champion", 1 + hour, LEVEL + hard + NOISE * generator.normal() / 2, 60),
            Scored(window, "never_updated", 1, old + hard + NOISE * generator.normal() / 2, 60),
        ]
    age = expected_loss(aging_curve(scored, ends), 168.0)
    return age is not None and LOSS.met(age.least, is_open=False)


def measure() -> Measured:
    """All of them."""
    figures = quality_figures() | aging_figures() | drift_figures()
    _write_page(figures)
    return Measured(figures, SEEDS, (
        f"drift: {len(SEEDS)} simulated shops of {EVENTS_PER_HOUR} events an hour, {HISTORY_DAYS} days of history, "
        f"{WATCHED_DAYS} days watched by two looks a day, then each change from a known hour on, looks every 3 hours, "
        f"for {MOST_HOURS}; quality: {SERIES} drawn series of {SERIES_DAYS} days, noise {NOISE} an hour of 60 "
        "examples; aging: a week of hours scored by a fresh and a never updated model"
    ))


def _write_page(figures: Mapping[str, float]) -> None:
    said = {
        "currency": "prices × 1.5", "missing_prices": "a fifth of the prices missing",
        "bot": "a bot that repeats all views", "lost_purchases": "a third of the purchases lost",
        "one_item": "a quarter of what is done goes to one item",
    }
    lines = []
    for name, words in said.items():
        unseen = figures[f"watch.drift_unseen_{name}"]
        seen = f"{figures[f'watch.drift_hours_until_{name}']:.0f} h"
        if unseen:
            seen = f"not within {MOST_HOURS} h in {unseen:.0f} of {len(SEEDS)} shops; {seen} as the mean"
        lines.append(f"| feed: {words} | {seen} |")
    for share in (3, 5, 10):
        hours = figures[f"watch.quality_hours_until_fall_of_{share}_pct"]
        lines.append(f"| quality: the lead falls by {share} % of the level | {hours:.0f} h |")
    lines += [
        f"| aging: a model without updates loses {share} % a week | certain after a week in "
        f"{figures[f'watch.aging_seen_of_{share}_pct_a_week']:.0%} of the cases |"
        for share in (5, 10)
    ]
    days = figures["watch.drift_days_watched"]
    PAGE.write_text(f"""# How late the watch sees a change, and how often it is wrong

Made by `make bench-trust PARTS=watch`. Feeds: {len(SEEDS)} simulated shops of {EVENTS_PER_HOUR} events an hour, through
lake, profiles and conditions; the newest day is compared with the same hours of four weeks. Told are hours until drift
is raised, the mean over shops ({MOST_HOURS} where it was not raised within as many). Quality: drawn series of hourly
leads over the baseline, 60 examples an hour, the median. The thresholds and their reasons are in
[pipeline/conditions.py](../../../pipeline/conditions.py) and [pipeline/drift.py](../../../pipeline/drift.py).

| what changes | seen after |
|---|---|
{chr(10).join(lines)}

| where nothing changes | false alarms |
|---|---|
| feeds: {days:.0f} days of shops as they always were | {figures["watch.drift_false_alarms"]:.0f} |
| quality, hours as noisy as `make run`'s | {figures["watch.quality_false_alarms_a_year"]:.1f} a year |
| aging, a week of scores | {figures["watch.aging_false_share"]:.1%} |
""")
