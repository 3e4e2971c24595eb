"""Price answers against a truth: the simulated shop, whose elasticities are known, and Online Retail, where none is.

The shop lands purchases, prices and stock; the task's own examples and learner take them in, and the packaged service
advises. The truth is the elasticity that is left after customers' other choices are counted (Shop.own_elasticity); the
true best price is the best for the margin under it, at a cost of half the base price, inside the same guard rails.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import spearmanr

from pipeline.lake import Lake, open_lake
from pipeline.schema import EVENTS, ITEMS
from pipeline.snapshot import Snapshot
from pipeline.sources.simulator import ShopSimulator
from pipeline.window import HOUR, Window
from tests.benchmarks.bench_tasks import SEEDS
from tests.small_shop import publish, settings_of

PROTOCOL = (
    "simulated shops 10 to 12, 240 items, 240 days, elasticities spread by 0.35 about their category's, promotions "
    "lift demand by 0.3 beyond their price; Spearman's correlation with the true own elasticity over the items with at "
    "least one sale a week, and how many of the true best prices lie in the advised range; Online Retail: share of "
    "the items sold in the last 28 days that get no advice"
)
_DAYS, _COST_SHARE, _RAIL = 240, 0.5, 0.3
_FIRST_SEED = 10  # shop 0 is the one that the estimator was built on


def measure() -> dict[str, float]:
    """The figures, means over the seeds."""
    found = [of_shop(_FIRST_SEED + seed) for seed in SEEDS]
    figures = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    return figures | online_retail()


def of_shop(seed: int) -> dict[str, float]:
    """One simulated shop."""
    shop = ShopSimulator(
        seed=seed, users=3_000, items=240, history_days=_DAYS, history_events=1_200_000, history_launches_per_day=0,
        hours=0, elasticity_spread=0.35, promotion_lift=0.3,
    )
    with lake_below("price") as lake:
        publish_purchases(lake, shop)
        answers = advised(lake, shop.shop.base_price, shop.shop.item_id)
    users = np.arange(0, 3_000, 3)
    truth = np.mean([shop.shop.own_elasticity(hour, users) for hour in range(24, _DAYS * 24, 24 * 14)], axis=0)
    answers["truth"] = truth
    judged = answers[answers.orders >= _DAYS / 7]
    advice = judged[judged.price_low.notna()]
    best = best_prices(advice)
    inside = (advice.price_low - 1e-9 <= best) & (best <= advice.price_high + 1e-9)
    wide = (advice.price_high - advice.price_low) / (2 * _RAIL * advice.usual)
    print(f"  seed {seed}: {len(judged)} items judged, {len(advice)} advised", flush=True)
    return {
        "rank_correlation": float(spearmanr(-judged.elasticity, judged.truth).statistic),
        "optimum_inside": float(inside.mean()), "advised_share": len(advice) / len(judged),
        "range_width_vs_rails": float(wide.mean()), "items_judged": float(len(judged)),
        "elasticity_inside_80": float(
            ((-judged.elasticity_high <= judged.truth) & (judged.truth <= -judged.elasticity_low)).mean()
        ),
    }


def best_prices(items: pd.DataFrame) -> np.ndarray:
    """[n]: what truly earns most inside the guard rails; columns `truth`, `usual`, `cost`."""
    shares = np.linspace(1 - _RAIL, 1 + _RAIL, 1201)
    prices = items.usual.to_numpy()[:, None] * shares
    earned = shares ** -items.truth.to_numpy()[:, None] * (prices - items.cost.to_numpy()[:, None])
    return prices[np.arange(len(items)), earned.argmax(1)]


def advised(lake: Lake, base_price: np.ndarray, item_ids: np.ndarray) -> pd.DataFrame:
    """What the packaged model says of the items' prices, with `usual`, `cost` and `orders` (rows of purchases)."""
    from models.compact_demand import CompactDemand
    from models.demand_service import PARAMETERS, DemandService
    from pipeline.tasks.demand import DemandTask

    task = DemandTask(lake, "tiny")
    tables = Snapshot(lake, {table: lake.version(table) for table in ("events", "items")})
    learner = task.learner(0)
    examples = task.examples(tables, tables.arrow("events", EVENTS.table_schema.names))
    learner.grow(task.context(tables, None), examples)
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
        learner.package(Path(folder) / "package")
        compact = CompactDemand.load(Path(folder) / "package" / "demand")
    requests = pd.DataFrame({"item_id": item_ids, "cost": _COST_SHARE * base_price})
    answers = DemandService(compact).answer(requests, PARAMETERS)
    rows = [compact.index.get(item, 0) for item in item_ids]
    counted = tables.arrow("events", ["item_id"])["item_id"].to_pandas().value_counts()
    return answers.assign(
        usual=compact.arrays["usual_price"][rows], cost=requests.cost,
        orders=pd.Series(item_ids).map(counted).fillna(0).to_numpy(),
    )


def publish_purchases(lake: Lake, shop: ShopSimulator) -> None:
    """The history's purchases, and every change of price or stock, in two commits."""
    purchases, changes = [], []
    before: tuple[np.ndarray, np.ndarray] | None = None
    for window in shop.windows:
        hour = shop._hour_of(window)
        price, stock = shop.shop.prices(hour), shop.shop.stock(hour)
        moved = np.ones(len(price), bool) if before is None else (price != before[0]) | (stock != before[1])
        at = np.flatnonzero(moved)
        changes.append(pd.DataFrame({"hour": hour, "item": at, "price": price[at], "stock": stock[at]}))
        before = price, stock
        visits = shop._visits(hour)
        bought = visits.kind == 2  # a purchase
        purchases.append(pd.DataFrame({
            "hour": hour, "item": visits.item[bought], "ms": visits.millisecond[bought],
            "quantity": visits.quantity[bought], "price": price[visits.item[bought]],
        }))
    sold, told = pd.concat(purchases, ignore_index=True), pd.concat(changes, ignore_index=True)
    windows = [Window(shop.first), Window(shop.first + HOUR * (len(shop.windows) - 1))]
    texts = [shop.shop.item_text(item) for item in range(len(shop.shop.item_id))]
    publish(lake, ITEMS, windows, table_of(ITEMS, told, shop, {
        "change_id": [f"C{row}" for row in range(len(told))], "stock": told.stock,
        **{name: [texts[item][name] for item in told.item] for name in ("title", "category")},
    }))
    publish(lake, EVENTS, windows, table_of(EVENTS, sold, shop, {
        "event_id": [f"E{row:09d}" for row in range(len(sold))], "event_type": "purchase", "quantity": sold.quantity,
    }))


def table_of(feed, rows: pd.DataFrame, shop: ShopSimulator, columns: dict) -> pa.Table:
    """Rows of a feed's table: `hour`, `item`, `price`, `ms` and the given columns."""
    start = pd.Timestamp(shop.first) + pd.to_timedelta(rows.hour, unit="h")
    frame = pd.DataFrame({
        "item_id": shop.shop.item_id[rows.item], "price": rows.price.astype(float), **columns,
        feed.time: start + pd.to_timedelta(rows.get("ms", 0), unit="ms"), "hour": start,
        "landed_window": start, "landed_date": start.dt.date, "source_file": "a", "source_row": np.arange(len(rows)),
    })
    for name in ("quantity", "stock"):
        if name in frame:
            frame[name] = frame[name].astype(float)
    for field in feed.table_schema:
        if field.name not in frame:
            frame[field.name] = None
    return pa.Table.from_pandas(frame[feed.table_schema.names], feed.table_schema, preserve_index=False)


def online_retail() -> dict[str, float]:
    """How often the data says too little for advice, on the real log; three examples are printed."""
    from tests.benchmarks.task_demand import publish_online_retail

    with lake_below("retail") as lake:
        publish_online_retail(lake, until=datetime(2011, 12, 10, tzinfo=UTC))
        recent = lake.arrow("events", columns=["item_id", "event_time"]).to_pandas()
        recent = recent[recent.event_time >= pd.Timestamp("2011-11-12", tz="UTC")]
        items = np.sort(recent.item_id.unique())
        answers = advised(lake, np.full(len(items), np.nan), items).assign(item_id=items)
    for row in answers.sort_values("orders", ascending=False).head(3).itertuples():
        print(f"  {row.item_id}: usual {row.usual:.2f}, elasticity {row.elasticity:.2f} "
              f"({row.elasticity_low:.2f} to {row.elasticity_high:.2f}): {row.advice}", flush=True)
    return {"no_advice_online_retail": float(answers.price_low.isna().mean())}


@contextmanager
def lake_below(name: str) -> Iterator[Lake]:
    """An empty lake."""
    with tempfile.TemporaryDirectory(prefix=f"evergreen-{name}-") as folder:
        yield open_lake(settings_of(Path(folder)))
