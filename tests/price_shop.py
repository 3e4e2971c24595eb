"""A small simulated shop whose files go through the real door, and the second task, which learns from its prices."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import updating
from pipeline.lake import open_lake
from pipeline.settings import Settings
from pipeline.sources.simulator import ShopSimulator
from pipeline.tasks import catalogue
from tests.small_shop import settings_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)
TASK = "price"


def simulated(seed: int, hours: int, events_per_hour: int = 100) -> ShopSimulator:
    """A shop of that many hours and about as many events in each, a tenth of them dirty in one of eight ways."""
    days = -(-hours // 24)
    return ShopSimulator(
        seed=seed, history_days=days, hours=1, history_events=days * 24 * events_per_hour, users=200, items=60,
        dirt_share=0.1,
    )


def price_settings(home: Path, landing: Path | None = None) -> Settings:
    """An installation with the task of prices alone; `landing` where the zone is another's."""
    home.mkdir(parents=True, exist_ok=True)
    settings = replace(settings_of(home), tasks=(TASK,))
    return replace(settings, landing=str(landing)) if landing else settings


def know_price_task() -> None:
    """Enters the task into this process's catalogue."""
    catalogue.TASKS[TASK] = catalogue.Entry("tests.price_task", "PriceTask", "events")


def first_champion(settings: Settings) -> None:
    """Trains the first model on what the lake has."""
    know_price_task()
    first = updating.retrain(TASK, settings, NOW, "first", report=lambda line: None)
    updating.promote(TASK, first["version"], settings, NOW, who="retrain")


def update_once(settings: Settings, decided_at: datetime = NOW) -> dict[str, Any] | None:
    """What a run of the DAG does: plan, learn, promote; None: there was nothing to learn."""
    know_price_task()
    plan = updating.plan(TASK, settings)
    if "nothing_because" in plan:
        return None
    done = updating.update(plan, settings, decided_at, report=lambda line: None)
    if done["version"] is not None:
        updating.promote(TASK, done["version"], settings, decided_at)
    return done


def rows_in_table(settings: Settings) -> int:
    """Of the events."""
    return len(open_lake(settings).arrow("events", columns=["event_id"]))
