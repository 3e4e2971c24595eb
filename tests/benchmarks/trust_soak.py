"""Whether days of hours leave memory, disk and the time of an hour flat: the loop in one process at full speed.

Each simulated hour lands, is taken in, is learnt and judged, and the watch looks at it; each day retention runs. All
of it is the code that the DAGs call, in one process that never ends, where Airflow gives each task a new one: what it
leaks here adds up. The registry's clock is set to the simulated hour, so that retention finds versions as old as they
would be; the lake's files have the machine's clock, so that none of them is old enough to be deleted, and the disk that
is measured is what a shop without that clean-up would need.

`DAYS` in the environment is how many simulated days (14), `TASK` what learns (`recommend`, with the small encoder;
`price`, the numpy task of the tests, takes a quarter of the time).
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from pipeline import updating
from pipeline.ingest import ingest
from pipeline.registry import open_registry
from pipeline.retention import retain
from pipeline.settings import Settings
from pipeline.sources.simulator import ShopSimulator
from pipeline.watch import watch
from pipeline.window import Window, windows_between
from tests.benchmarks.bench_trust import Measured
from tests.price_shop import know_price_task
from tests.small_shop import settings_of

PICTURE = Path(__file__).with_name("results") / "soak.png"
SEED = 13
HISTORY_DAYS = 2
EVENTS_PER_HOUR = 100
_WARM_SHARE = 0.25  # of the hours: libraries fill their caches; growth is measured after that
_MB = 1e6
STEPS = ("ingest", "learn", "watch", "retention")


@dataclass(frozen=True)
class Hour:
    """What one simulated hour cost.

    Attributes:
        steps: ingest, learn, watch, retention -> CPU-seconds of this process and its children; the machine's other
            work is none of it.
        seconds: on the clock.
        rss_mb: of this process after it.
        lake_mb, registry_mb, reports_mb: on disk after it; what the shop landed is not counted.
        versions: how many have their files.
    """

    steps: Mapping[str, float]
    seconds: float
    rss_mb: float
    lake_mb: float
    registry_mb: float
    reports_mb: float
    versions: int

    @property
    def cpu_seconds(self) -> float:
        """Of what every hour does; retention comes once a day."""
        return sum(seconds for step, seconds in self.steps.items() if step != "retention")

    @property
    def disk_mb(self) -> float:
        """All of it."""
        return self.lake_mb + self.registry_mb + self.reports_mb


def measure() -> Measured:
    """`soak.days`, growth of memory a day as a share, disk a day, and the growth of an hour's time a day."""
    days, task = int(os.environ.get("DAYS", "14")), os.environ.get("TASK", "recommend")
    know_price_task()
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
        hours, removed = soaked(Path(folder), days * 24, task)
    draw(hours, task)
    kept = hours[int(len(hours) * _WARM_SHARE) :]
    memory = [hour.rss_mb for hour in kept]
    times = [hour.cpu_seconds for hour in kept]
    return Measured(
        {
            "soak.days": len(hours) / 24,
            "soak.memory_growth": per_day(memory) / float(np.median(memory)),
            "soak.memory_mb": memory[-1],
            "soak.disk_mb_per_day": per_day([hour.disk_mb for hour in kept]),
            "soak.lake_mb_per_day": per_day([hour.lake_mb for hour in kept]),
            "soak.cpu_seconds_of_an_hour": float(np.median(times)),
            "soak.time_growth": per_day(times) / float(np.median(times)),
            **{
                f"soak.{step}_seconds_growth_per_day": per_day([hour.steps[step] for hour in kept])
                for step in STEPS[:-1]
            },
            "soak.versions_removed": removed,
            "soak.versions_kept": hours[-1].versions,
        }, (SEED,),
        f"{len(hours)} simulated hours of about {EVENTS_PER_HOUR} events, task {task}, one process: land, ingest, "
        "update, promote, watch, and retention each day on the registry's simulated clock. Growth a day is the slope "
        f"of a line through the hours after the first {100 * _WARM_SHARE:.0f} %, memory's and time's as a share of "
        "the median; time is CPU of the process and its children. Disk without the landing zone",
    )


def soaked(home: Path, hours: int, task: str) -> tuple[list[Hour], int]:
    """Lets the hours pass; what each cost, and how many versions retention has removed."""
    shop = ShopSimulator(
        seed=SEED, history_days=HISTORY_DAYS, hours=hours, history_events=HISTORY_DAYS * 24 * EVENTS_PER_HOUR,
        events_per_hour=EVENTS_PER_HOUR, users=300, items=60, dirt_share=0.05,
        history_launches_per_day=0, launches_per_hour=0,  # what grows then is not the catalogue
    )
    settings = replace(settings_of(home), tasks=(task,))
    _begun(shop, settings, task)
    found, removed = [], 0
    for number, window in enumerate(windows_between(shop.streamed_from, shop.last), start=1):
        shop.land([window], Path(settings.landing))
        began, steps = time.monotonic(), dict.fromkeys(STEPS, 0.0)
        for step, work in _hour(settings, task, window):
            cpu = _cpu_seconds()
            work()
            steps[step] = _cpu_seconds() - cpu
        if number % 24 == 0:
            cpu = _cpu_seconds()
            removed += len(retain(settings, window.end)["tasks"][task]["removed"])
            steps["retention"] = _cpu_seconds() - cpu
        found.append(_measured(settings, task, time.monotonic() - began, steps))
        print(f"hour {number} of {hours}: {found[-1]}", flush=True)
    return found, removed


def _begun(shop: ShopSimulator, settings: Settings, task: str) -> None:
    history = list(windows_between(shop.first, shop.streamed_from))
    shop.land(history, Path(settings.landing))
    ingest(history, settings, report=lambda line: None)
    first = updating.retrain(task, settings, shop.streamed_from, "first", report=lambda line: None)
    updating.promote(task, first["version"], settings, shop.streamed_from, who="retrain")
    _registered_at(settings, first["version"], Window(shop.streamed_from))


def _hour(settings: Settings, task: str, window: Window) -> tuple[tuple[str, Callable[[], object]], ...]:
    """What the DAGs do in an hour, step by step."""
    return (
        ("ingest", lambda: ingest([window], settings, report=lambda line: None)),
        ("learn", lambda: _learn(settings, task, window)), ("watch", lambda: watch(settings)),
    )


def _learn(settings: Settings, task: str, window: Window) -> None:
    plan = updating.plan(task, settings)
    if "nothing_because" not in plan:
        done = updating.update(plan, settings, window.end, report=lambda line: None)
        updating.promote(task, done["version"], settings, window.end)
        _registered_at(settings, done["version"], window)


def _registered_at(settings: Settings, version: int, window: Window) -> None:
    """Sets the registry's clock for one version: MLflow takes the machine's."""
    with sqlite3.connect(settings.home / "mlflow.db") as database:
        database.execute(
            "UPDATE model_versions SET creation_time = ? WHERE version = ? AND name LIKE ?",
            (int(window.end.timestamp() * 1000), version, f"evergreen-{settings.tasks[0]}"),
        )
    database.close()


def _measured(settings: Settings, task: str, seconds: float, steps: Mapping[str, float]) -> Hour:
    home = settings.home
    whole = [entry for entry in open_registry(settings).entries(task) if not entry.retired]
    return Hour(
        steps, seconds, psutil.Process().memory_info().rss / _MB, _size_mb(home / "lake"),
        _size_mb(home / "mlflow") + (home / "mlflow.db").stat().st_size / _MB, _size_mb(settings.reports), len(whole),
    )


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / _MB


def _cpu_seconds() -> float:
    """Of this process and of all its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def per_day(values: Sequence[float]) -> float:
    """Slope of the least-squares line through hourly values, times 24."""
    return 24 * float(np.polyfit(np.arange(len(values)), np.asarray(values), 1)[0])


def draw(hours: Sequence[Hour], task: str) -> None:
    """The picture: memory, disk and CPU-seconds over the simulated days."""
    import matplotlib.pyplot as plt

    at = np.arange(1, len(hours) + 1) / 24
    figure, (memory, disk, cpu) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    memory.plot(at, [hour.rss_mb for hour in hours])
    memory.set_title("Memory of the process, MB", fontsize=10)
    for name in ("registry", "lake", "reports"):
        disk.plot(at, [getattr(hour, f"{name}_mb") for hour in hours], label=name)
    disk.set_title("Disk, MB", fontsize=10)
    disk.legend(fontsize=8)
    for step in STEPS[:-1]:
        cpu.plot(at, [hour.steps[step] for hour in hours], label=step)
    cpu.set_title("CPU-seconds of an hour", fontsize=10)
    cpu.legend(fontsize=8)
    for panel in (memory, disk, cpu):
        panel.set_ylim(bottom=0)
        panel.set_xlabel(f"simulated days (task {task})", fontsize=9)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)
