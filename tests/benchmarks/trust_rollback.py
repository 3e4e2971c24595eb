"""How long a rollback takes, from the operator's click or command until `@champion` names the earlier version.

A real installation with a small shop and the small text encoder; the time does not depend on either, since a version
that has served is not loaded again. The log of decisions is a year's: daily retention puts all but the last day's
single-row files together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from pipeline.lake import open_lake
from pipeline.registry import Registry, open_registry
from pipeline.schema import DECISIONS_SCHEMA
from pipeline.sources.simulator import ShopSimulator
from pipeline.window import Window, windows_between
from tests.benchmarks.bench_trust import Measured
from tests.installed import InstalledShop, installed_shop

SEED = 7
ROUNDS = 3
SIZE = {"users": 1200, "items": 120, "history_days": 6, "history_events": 24_000, "events_per_hour": 300, "hours": 2}
_YEAR_HOURS = 8760
_PATIENCE_SECONDS = 300.0


def measure() -> Measured:
    """The slowest of all rounds, s (`rollback.seconds`), and the slowest of each way."""
    simulator = ShopSimulator(seed=SEED, **SIZE)
    variables = {"EVERGREEN_ENCODER": "tiny", "EVERGREEN_SCHEDULE_END": str(Window(simulator.last))}
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder, installed_shop(Path(folder), **variables) as shop:
        history = list(windows_between(simulator.first, simulator.streamed_from))
        simulator.land(history, shop.landing)
        shop.ingest(history)
        for _ in range(2):
            shop.run("retrain_recommend", {"reason": "first model"})
        registry = open_registry(shop.settings)
        _force(registry, 2)
        _log_of_a_year(shop)
        by_form = [_until_rolled_back(registry, lambda: shop.airflow.trigger(
            "rollback", {"task": "recommend", "version": None, "why": "measured"}
        )) for _ in range(ROUNDS)]
        by_command = [_until_rolled_back(registry, lambda: _command(shop)) for _ in range(ROUNDS)]
    figures = {
        "rollback.seconds": max(by_form + by_command), "rollback.form_seconds": max(by_form),
        "rollback.command_seconds": max(by_command),
    }
    return Measured(
        figures, (SEED,),
        f"slowest of {ROUNDS} rollbacks by the DAG's form through the real scheduler, and of {ROUNDS} by the command, "
        "until the alias has moved, with a year of decisions in the log",
    )


def _until_rolled_back(registry: Registry, ask: Callable[[], object]) -> float:
    """Seconds from asking until version 1 serves; version 2 is put back after."""
    started = time.monotonic()
    ask()
    while registry.champion("recommend") != 1:
        if time.monotonic() - started > _PATIENCE_SECONDS:
            raise TimeoutError(f"The champion did not move: {registry.decisions('recommend').to_pylist()[-1:]}")
        time.sleep(0.1)
    seconds = time.monotonic() - started
    _force(registry, 2)
    return seconds


def _force(registry: Registry, version: int) -> None:
    champion = registry.champion("recommend")
    registry.promote(
        "recommend", version, champion, who="bench", reasons=["measured"], action="force", decided_at=datetime.now(UTC)
    )


def _command(shop: InstalledShop) -> None:
    rollback = [sys.executable, "-m", "pipeline.champion", "rollback", "--why", "measured"]
    subprocess.run(
        [sys.executable, "-m", "pipeline.installation", "exec", *rollback], check=True, capture_output=True,
        env={**os.environ, "EVERGREEN_HOME": str(shop.settings.home)},
    )


def _log_of_a_year(shop: InstalledShop) -> None:
    """Hourly holds of the year before, all but the last day's in one file."""
    lake, now = open_lake(shop.settings), datetime.now(UTC)
    rows = [{
        "task": "recommend", "decided_at": now - timedelta(hours=hour + 1), "action": "hold", "version": 1,
        "champion_before": 1, "champion_after": 1, "window": None, "who": "update",
        "reasons": json.dumps(["There are 18 validation units, the gate needs at least 20: wait for more windows."]),
    } for hour in range(_YEAR_HOURS)]
    table = pa.Table.from_pylist(rows, DECISIONS_SCHEMA)
    lake.append("decisions", table.slice(24))
    for hour in range(24):
        lake.append("decisions", table.slice(hour, 1))
