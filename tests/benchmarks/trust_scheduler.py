"""The same promise under the real scheduler: two days of hours are backfilled by Airflow while hours go on arriving.

An installation of its own (PostgreSQL, MLflow, Airflow's scheduler, four tasks at once) loads a history and trains a
model. Then an operator's backfill takes in the 48 hours that came meanwhile, as the form of the UI starts it, while the
newest hours are landed and taken in by hand and updates are woken by both. A few of the old hours are corrected and the
whole range is backfilled once more. What is left is compared, row by row, with a home that took the same files in
once and in order, and the ledgers with the table.
"""

from __future__ import annotations

import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoint import Ledger
from pipeline.ingest import ingest
from pipeline.lake import open_lake
from pipeline.registry import open_registry
from pipeline.sources.simulator import ShopSimulator
from pipeline.window import Window, windows_between
from tests.benchmarks.bench_trust import Measured
from tests.benchmarks.trust_backfill import correct
from tests.installed import InstalledShop, installed_shop
from tests.same_tables import TABLES, rows_differing, rows_of

SEED = 13
HOURS = 48
ARRIVING = 6
CORRECTED = (3, 20, 41)
SIZE = {"users": 1200, "items": 120, "history_days": 6, "history_events": 24_000, "events_per_hour": 150}
_PATIENCE_SECONDS = 3600.0  # a busy machine; what hangs for longer is a fault


def measure(hours: int = HOURS) -> Measured:
    """`scheduler.rows_wrong`: rows lacking or too many; `scheduler.rows_out_of_balance`: that ledgers miss."""
    source = ShopSimulator(seed=SEED, hours=hours + ARRIVING, **SIZE)
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
        home = Path(folder) / "shop"
        variables = {"EVERGREEN_ENCODER": "tiny", "EVERGREEN_SCHEDULE_END": str(Window(source.last))}
        with installed_shop(home, **variables) as shop:
            figures = _backfilled(shop, source, hours, Path(folder) / "calm")
    return Measured(
        figures, (SEED,),
        f"An Airflow backfill of {hours} hours, four runs at once, while {ARRIVING} newer hours are taken in singly "
        f"and updates run; then {len(CORRECTED)} of the hours corrected and all {hours} backfilled again; tables "
        "against those of a home that took the same files in once, in order, in one process",
    )


def _backfilled(shop: InstalledShop, source: ShopSimulator, hours: int, calm_home: Path) -> dict[str, float]:
    history = list(windows_between(source.first, source.streamed_from))
    streamed = list(windows_between(source.streamed_from, source.last))
    old, arriving = streamed[:hours], streamed[hours:]
    source.land([*history, *old], shop.landing)
    shop.ingest(history)
    shop.run("retrain_recommend", {"reason": "first model"})
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as thread:
        operator = InstalledShop(shop.installation)  # with a connection of its own
        backfill = thread.submit(operator.backfill, old[0], old[-1], patience_seconds=_PATIENCE_SECONDS)
        for hour in arriving:
            source.land([hour], shop.landing)
            shop.ingest([hour])
        backfill.result()
    once = time.monotonic() - started
    print(f"{hours} hours backfilled in {once:.0f} s", flush=True)
    for place in CORRECTED:
        correct(shop.settings, old[place * hours // HOURS])
    shop.backfill(old[0], old[-1], patience_seconds=_PATIENCE_SECONDS)
    shop.settle(patience_seconds=_PATIENCE_SECONDS)
    lake = open_lake(shop.settings)
    calm = replace(
        shop.settings, home=calm_home, lake=str(calm_home / "lake"), reports=calm_home / "reports",
    )
    ingest(history, calm, report=lambda line: None)
    for start in range(0, len(streamed), 6):  # in order; a few hours a call, which is the same and quicker
        ingest(streamed[start : start + 6], calm, report=lambda line: None)
    wrong = rows_differing(lake, open_lake(calm))
    print(f"tables that differ (rows lacking, rows too many): {wrong}", flush=True)
    return {
        "scheduler.hours": hours,
        "scheduler.rows": sum(rows_of(open_lake(calm), table).total() for table in TABLES),
        "scheduler.rows_wrong": sum(lacking + more for lacking, more in wrong.values()),
        "scheduler.rows_out_of_balance": out_of_balance(shop),
        "scheduler.updates": len(shop.updates()),
        "scheduler.backfill_seconds": once,
    }


def out_of_balance(shop: InstalledShop) -> int:
    """By how many rows the newest ledger misses the table, or does not account for what it read."""
    registry, lake = open_registry(shop.settings), open_lake(shop.settings)
    number = max(registry.versions("recommend"))
    newest = Ledger.from_json(json.loads(registry.tags("recommend", number)["evergreen.ledger"]))
    rows = newest.rows
    if newest.versions["events"] != lake.version("events"):
        raise RuntimeError(f"After all updates the newest version must know the table; it knows {newest.versions}.")
    held = len(lake.arrow("events", columns=["event_id"]))
    unaccounted = rows.inserted + rows.updated - rows.taught - rows.held_out - rows.context - rows.set_aside
    return abs(rows.inserted - rows.deleted - held) + abs(unaccounted)
