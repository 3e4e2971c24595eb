"""Whether days of hours leave memory, disk and the time of an hour flat: the loop in one process at full speed.

Each simulated hour lands, is taken in, is learnt and judged, and the watch looks at it; each day retention runs, and
the retrain that the watch has asked for. All of it is the code that the DAGs call, in one process that never ends,
where Airflow gives each task a new one: what it leaks here adds up. The registry's clock is set to the simulated hour,
so that retention finds versions as old as they would be; the lake's files have the machine's clock, so that none of
them is old enough to be deleted, and the disk that is measured is what a shop without that clean-up would need.

The shop has four weeks behind it when the hours begin: so long is the longest span of examples that judge, and until
then it grows in any shop, once. `DAYS` in the environment is how many simulated days (14), `TASK` what learns
(`recommend`, with the small encoder, or `price`, the numpy task of the tests), `SOAK_HOME` a folder that is kept: a run
that was ended goes on there, and one of fewer days than it holds only writes the figures.
"""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

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
HISTORY_DAYS = 29
MOST_DAYS = 28
EVENTS_PER_HOUR = 30
_WARM_SHARE = 0.25  # of the hours: libraries fill their caches; growth is measured after that
_MB = 1e6
STEPS = ("ingest", "learn", "watch")


@dataclass(frozen=True)
class Hour:
    """What one simulated hour cost.

    Attributes:
        steps: ingest, learn, watch, in some hours retention and retrain -> CPU-seconds of this process and its
            children; the machine's other work is none of it.
        seconds: on the clock.
        rss_mb: of this process after it.
        lake_mb, registry_mb, reports_mb: on disk after it; what the shop landed is not counted.
        versions: how many have their files.
        removed: versions whose files retention has removed so far.
        process: which process it ran in.
    """

    steps: Mapping[str, float]
    seconds: float
    rss_mb: float
    lake_mb: float
    registry_mb: float
    reports_mb: float
    versions: int
    removed: int
    process: int

    @property
    def cpu_seconds(self) -> float:
        """Of what every hour does."""
        return sum(self.steps[step] for step in STEPS)

    @property
    def disk_mb(self) -> float:
        """All of it."""
        return self.lake_mb + self.registry_mb + self.reports_mb


def measure() -> Measured:
    """`soak.days`, growth of memory a day as a share, disk a day, and the growth of an hour's time a day."""
    days, task = int(os.environ.get("DAYS", "14")), os.environ.get("TASK", "recommend")
    know_price_task()
    with _home() as folder:
        hours = soaked(folder, days * 24, task)
    draw(hours, task)
    return Measured(
        figures_of(hours), (SEED,),
        f"{len(hours)} simulated hours of about {EVENTS_PER_HOUR} events after {HISTORY_DAYS} days of history, task "
        f"{task}: land, ingest, update, promote, watch, and retention each day on the registry's simulated clock, in "
        f"{len(_stretches(hours))} process(es) one after another. Growth a day is the slope of a line through the "
        f"hours after the first {100 * _WARM_SHARE:.0f} %, memory's and time's as a share of the median, memory's over "
        "the longest stretch of one process; time is CPU, children included. Disk without the landing zone",
    )


def figures_of(hours: Sequence[Hour]) -> dict[str, float]:
    """The figures of so many hours."""
    kept = hours[int(len(hours) * _WARM_SHARE) :]
    longest = max(_stretches(hours), key=len)
    memory = [hour.rss_mb for hour in longest[int(len(longest) * _WARM_SHARE) :]]
    times = [hour.cpu_seconds for hour in kept]
    return {
        "soak.days": len(hours) / 24,
        "soak.memory_growth": per_day(memory) / float(np.median(memory)),
        "soak.memory_mb": memory[-1],
        "soak.days_of_one_process": len(longest) / 24,
        "soak.disk_mb_per_day": per_day([hour.disk_mb for hour in kept]),
        **{
            f"soak.{part}_mb_per_day": per_day([getattr(hour, f"{part}_mb") for hour in kept])
            for part in ("lake", "registry", "reports")
        },
        "soak.cpu_seconds_of_an_hour": float(np.median(times)),
        "soak.time_growth": per_day(times) / float(np.median(times)),
        **{f"soak.{step}_seconds_growth_per_day": per_day([hour.steps[step] for hour in kept]) for step in STEPS},
        "soak.retention_seconds": max(hour.steps.get("retention", 0.0) for hour in hours),
        "soak.retrains": sum("retrain" in hour.steps for hour in hours),
        "soak.versions_removed": hours[-1].removed,
        "soak.versions_kept": hours[-1].versions,
    }


def _stretches(hours: Sequence[Hour]) -> list[list[Hour]]:
    return [list(some) for _, some in groupby(hours, key=lambda hour: hour.process)]


@contextmanager
def _home() -> Iterator[Path]:
    """The folder of the run: one that is kept, or one that is not."""
    if named := os.environ.get("SOAK_HOME"):
        Path(named).mkdir(parents=True, exist_ok=True)
        yield Path(named)
    else:
        with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
            yield Path(folder)


def soaked(home: Path, hours: int, task: str) -> list[Hour]:
    """Lets the hours pass, after those that have passed in `home` already; what each cost."""
    shop = ShopSimulator(
        seed=SEED, history_days=HISTORY_DAYS, hours=MOST_DAYS * 24,
        history_events=HISTORY_DAYS * 24 * EVENTS_PER_HOUR, events_per_hour=EVENTS_PER_HOUR, users=300, items=60,
        dirt_share=0.05, history_launches_per_day=0, launches_per_hour=0,  # what grows then is not the catalogue
    )
    settings, log = replace(settings_of(home), tasks=(task,)), home / "hours.jsonl"
    found = [Hour(**json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []
    if not found:
        _begun(shop, settings, task)
    for number, window in enumerate(windows_between(shop.streamed_from, shop.last), start=1):
        if len(found) < number <= hours:
            shop.land([window], Path(settings.landing))
            began, removed = time.monotonic(), found[-1].removed if found else 0
            steps, gone = _passed(settings, task, window, daily=number % 24 == 0)
            found.append(_measured(settings, task, time.monotonic() - began, steps, removed + gone))
            with log.open("a") as out:
                out.write(json.dumps(asdict(found[-1])) + "\n")
            print(f"hour {number} of {hours}: {found[-1]}", flush=True)
    return found[:hours]


def _passed(settings: Settings, task: str, window: Window, *, daily: bool) -> tuple[dict[str, float], int]:
    """CPU-seconds of each step of an hour, and how many versions' files retention has removed."""
    steps, done = {}, {}
    for step, work in _hour(settings, task, window, daily=daily):
        cpu = _cpu_seconds()
        done[step] = work()
        steps[step] = _cpu_seconds() - cpu
    if reason := done["watch"]["retrain"].get(task):
        cpu = _cpu_seconds()
        _retrain(settings, task, window, reason)
        steps["retrain"] = _cpu_seconds() - cpu
    gc.collect()  # what the frames of an exception hold goes with a task's process; here it would wait for a collection
    return steps, len(done["retention"]["tasks"][task]["removed"]) if daily else 0


def _begun(shop: ShopSimulator, settings: Settings, task: str) -> None:
    history = list(windows_between(shop.first, shop.streamed_from))
    shop.land(history, Path(settings.landing))
    ingest(history, settings, report=lambda line: None)
    _retrain(settings, task, Window(shop.streamed_from), "first")


def _retrain(settings: Settings, task: str, window: Window, reason: str) -> None:
    done = updating.retrain(task, settings, window.end, reason, report=lambda line: None)
    updating.promote(task, done["version"], settings, window.end, who="retrain")
    _registered_at(settings, done["version"], window)


def _hour(
    settings: Settings, task: str, window: Window, *, daily: bool
) -> tuple[tuple[str, Callable[[], Any]], ...]:
    """What the DAGs do in an hour, step by step."""
    hourly = (
        ("ingest", lambda: ingest([window], settings, report=lambda line: None)),
        ("learn", lambda: _learn(settings, task, window)),
        ("watch", lambda: watch(settings, window.end, f"soak {window}")),
    )
    return (*hourly, ("retention", lambda: retain(settings, window.end))) if daily else hourly


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


def _measured(settings: Settings, task: str, seconds: float, steps: Mapping[str, float], removed: int) -> Hour:
    home = settings.home
    whole = [entry for entry in open_registry(settings).entries(task) if not entry.retired]
    return Hour(
        steps, seconds, psutil.Process().memory_info().rss / _MB, _size_mb(home / "lake"),
        _size_mb(home / "mlflow") + (home / "mlflow.db").stat().st_size / _MB, _size_mb(settings.reports), len(whole),
        removed, os.getpid(),
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
    for step in STEPS:
        cpu.plot(at, [hour.steps[step] for hour in hours], label=step)
    cpu.set_title("CPU-seconds of an hour", fontsize=10)
    cpu.legend(fontsize=8)
    for panel in (memory, disk, cpu):
        panel.set_ylim(bottom=0)
        panel.set_xlabel(f"simulated days (task {task})", fontsize=9)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)
