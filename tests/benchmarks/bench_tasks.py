"""The further tasks' figures, merged key by key into results/tasks.json: `make bench-tasks PARTS="demand price"`.

Each part is a module of this folder, `task_<part>.py`, with `measure() -> dict[str, float]` and `PROTOCOL`, a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from pipeline.settings import REPOSITORY

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "tasks.json"
SEEDS = (0, 1, 2)


def parts() -> list[str]:
    """The parts that there are."""
    return sorted(path.stem.removeprefix("task_") for path in HERE.glob("task_*.py"))


def main() -> None:
    """Measures all or what is named, and merges the figures into the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts(), []], help="what to measure (default: all)")
    for part in parser.parse_args().parts or parts():
        print(f"measuring {part}", flush=True)
        module = import_module(f"tests.benchmarks.task_{part}")
        merge(part, module.measure(), module.PROTOCOL)


def merge(part: str, figures: dict[str, float], protocol: str) -> None:
    """Puts a part's figures in the place of its older ones; each part says with which commit it was measured."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.strip()
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"figures": {}, "parts": {}}
    kept = {name: value for name, value in held["figures"].items() if not name.startswith(f"{part}.")}
    held["figures"] = kept | {f"{part}.{name}": round(value, 4) for name, value in figures.items()}
    held["parts"][part] = {
        "commit": commit, "measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "seeds": list(SEEDS),
        "protocol": protocol, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2),
    }
    held["commit"], held["seeds"] = commit, list(SEEDS)
    held["protocol"] = "make bench-tasks; what each part does stands in `parts`"
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    unfinished = RESULTS.with_suffix(".tmp")
    unfinished.write_text(json.dumps(held, indent=2, sort_keys=True) + "\n")
    unfinished.replace(RESULTS)
    print(json.dumps({name: value for name, value in held["figures"].items() if name.startswith(part)}, indent=2))


if __name__ == "__main__":
    main()
