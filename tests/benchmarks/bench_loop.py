"""The loop's figures, written to results/loop.json: `make bench-loop`.

Everything that is compared is measured in turns in one run; `run` and `test` are the README's two commands. A busy
machine makes every figure in seconds worse, so the load before the start is written beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.registry import open_registry
from pipeline.settings import REPOSITORY
from pipeline.sources.simulator import ShopSimulator
from pipeline.window import Window, windows_between
from tests.benchmarks.bench_checks import measure_checks
from tests.benchmarks.bench_ingest import measure_ingest
from tests.benchmarks.bench_recommend import measure_recommend
from tests.installed import installed_shop

RESULTS = REPOSITORY / "tests" / "benchmarks" / "results" / "loop.json"
EVENTS = 1_000_000
FRESHNESS_EVENTS = 100_000
CATALOGUE = 100_000
_PATIENCE_SECONDS = 900.0


def measure_freshness(events: int = FRESHNESS_EVENTS) -> dict[str, float]:
    """Seconds from a landed hour of `events` events until the champion alias has moved, under the scheduler.

    The shop has two busy days of history (an hour of twenty times the usual volume would be stopped at the door) and
    the real text encoder. The clock starts with the request to ingest, which the schedule makes when the hour ends.
    """
    night = 0.68  # of the mean: what the first hour of a day brings
    shop = ShopSimulator(
        hours=1, events_per_hour=round(events / night), history_days=2, history_events=5 * events, users=20_000
    )
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder, installed_shop(
        Path(folder), EVERGREEN_SCHEDULE_END=str(Window(shop.last))
    ) as running:
        history = list(windows_between(shop.first, shop.streamed_from))
        shop.land(history, running.landing)
        running.ingest(history)
        running.run("retrain_recommend", {"reason": "first model"})
        registry = open_registry(running.settings)
        before = registry.champion("recommend")
        shop.land([Window(shop.streamed_from)], running.landing)
        started = time.monotonic()
        running.ingest([Window(shop.streamed_from)])
        ingested = time.monotonic() - started
        while registry.champion("recommend") == before:
            if time.monotonic() - started > _PATIENCE_SECONDS:
                raise TimeoutError(f"The champion did not move: {registry.decisions('recommend').to_pylist()[-1:]}")
            time.sleep(0.2)
        return {"seconds": time.monotonic() - started, "ingest_seconds": ingested}


def timed(command: Sequence[str], **variables: str) -> float:
    """Seconds of a command that must succeed."""
    started = time.monotonic()
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **variables}, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}.")
    return time.monotonic() - started


def main() -> None:
    """Measures all or what is named, and merges the figures into the results."""
    parts = {
        "ingest": lambda: {f"ingest.{name}": value for name, value in measure_ingest(EVENTS).items()},
        "checks": lambda: {f"checks.{name}": value for name, value in measure_checks(EVENTS).items()},
        "recommend": lambda: {f"recommend.{name}": value for name, value in measure_recommend(CATALOGUE).items()},
        "freshness": lambda: {f"freshness.{name}": value for name, value in measure_freshness().items()},
        "test": lambda: {"test.seconds": timed(["make", "test"])},
        "run": lambda: {"run.seconds": _timed_run()},
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure (default: all)")
    chosen = parser.parse_args().parts or list(parts)
    for name in chosen:
        print(f"measuring {name}", flush=True)
        load = os.getloadavg()[0]
        result = _with(name, parts[name](), load)
    print(json.dumps(result["figures"], indent=2))


def _with(part: str, figures: dict[str, float], load: float) -> dict[str, Any]:
    """Puts a part's figures into the results, beside those of the other parts; each names its own commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.strip()
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"figures": {}, "parts": {}}
    measured = {
        "commit": commit, "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(), "load_before": round(load, 2),
    }
    result = {
        "commit": commit, "seed": 0, "parts": {**held["parts"], part: measured},
        "protocol": "make bench-loop; each vs_... is a ratio of two times taken in the same run",
        "figures": {**held["figures"], **{name: round(value, 4) for name, value in figures.items()}},
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
    return result


def _timed_run() -> float:
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
        return timed(["make", "run"], EVERGREEN_HOME=f"{folder}/home")


if __name__ == "__main__":
    sys.exit(main())
