"""The figures that say how far the loop can be trusted, written to results/trust.json: `make bench-trust`.

One module a part, each with `measure()`: its figures, seeds and protocol. What a run measures is merged into what
the file holds, key by key, so parts may be measured at different commits: each part says its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module

from pipeline.settings import REPOSITORY

RESULTS = REPOSITORY / "tests" / "benchmarks" / "results" / "trust.json"
PARTS = {  # part -> the module that measures it, imported when it is asked for
    "rollback": "tests.benchmarks.trust_rollback",
    "bad_inputs": "tests.benchmarks.trust_bad_inputs",
    "gate": "tests.benchmarks.trust_gate",
    "poison": "tests.benchmarks.trust_poison",
    "watch": "tests.benchmarks.trust_watch",
    "backfill": "tests.benchmarks.trust_backfill",
    "scheduler": "tests.benchmarks.trust_scheduler",
    "faults": "tests.benchmarks.trust_faults",
    "soak": "tests.benchmarks.trust_soak",
}


@dataclass(frozen=True)
class Measured:
    """What a part has measured.

    Attributes:
        figures: name (`part.what`) -> number.
        seeds: of everything random.
        protocol: how, in a sentence.
    """

    figures: dict[str, float]
    seeds: tuple[int, ...]
    protocol: str


def main() -> None:
    """Measures all parts or what is named, and merges the figures into the results after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to measure (default: all)")
    for part in parser.parse_args().parts or list(PARTS):
        print(f"measuring {part}", flush=True)
        started, load = time.process_time(), os.getloadavg()[0]
        measured = import_module(PARTS[part]).measure()
        _merge(part, measured, time.process_time() - started, load)


def _merge(part: str, measured: Measured, cpu_seconds: float, load: float) -> None:
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.strip()
    about = {
        "commit": commit, "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seeds": list(measured.seeds), "protocol": measured.protocol, "cpu_seconds": round(cpu_seconds),
        "load_before": round(load, 2),
    }
    others = {name: value for name, value in held.get("figures", {}).items() if not name.startswith(f"{part}.")}
    result = {
        "commit": commit, "protocol": "make bench-trust; each part's own commit, seeds and protocol are below `parts`",
        "machine": {"cores": os.cpu_count()}, "parts": {**held.get("parts", {}), part: about},
        "figures": others | {name: round(value, 4) for name, value in measured.figures.items()},
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    whole = RESULTS.with_suffix(".part")
    whole.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
    whole.replace(RESULTS)
    print(json.dumps(measured.figures, indent=2), flush=True)


if __name__ == "__main__":
    sys.exit(main())
