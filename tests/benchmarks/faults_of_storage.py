"""A disk that is full and a lake that is read-only: run in a mount namespace of its own by `faults.storage_fails`.

For a full disk the lake lies on a small file system in memory, where a file takes all but some of the space, so that
publishing fails at one step or another, and is removed again; for a read-only lake its folder is mounted so.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.ingest import ingest
from pipeline.settings import Settings
from pipeline.window import Window
from tests.benchmarks.trust_faults import Outcome, Stage, take_in, together
from tests.price_shop import know_price_task, price_settings, update_once

SPACE_MB = 16
# what is left of it: nothing, and so much that one table or another is the first that has no room
LEFT_KB = (0, 24, 64, 128)


def disk_full(stage: Stage, small: Path) -> Outcome:
    """Ingest with no and with a little space left; then somebody, or the clean-up of logs, makes room."""
    said, outcomes = [], []
    for left_kb in LEFT_KB:
        settings = stage.trial(home=stage.folder / f"left-{left_kb}")
        lake = Path(shutil.move(settings.lake, small / "lake"))
        settings = replace(settings, lake=str(lake))
        ballast = small / "ballast"
        with ballast.open("wb") as file:
            file.write(b"\0" * max(shutil.disk_usage(small).free - left_kb * 1024, 0))
        said.append(_said(lambda home=settings: take_in(home, stage.new)))  # type: ignore[misc]
        ballast.unlink()
        outcomes.append(stage.of_tables("", "", settings))
        shutil.rmtree(lake)
    happened = "; ".join(f"{left} kB left: {one}" for left, one in zip(LEFT_KB, said, strict=True))
    return together("the lake's disk full during ingest", happened, outcomes)


def lake_read_only(stage: Stage, small: Path) -> list[Outcome]:
    """Ingest, and update with promotion, while no table can be written."""
    settings = stage.trial(home=small / "ingest")
    said = _read_only(settings, lambda: take_in(settings, stage.new))
    tables = stage.of_tables("lake read-only during ingest", said, settings)
    settings = stage.trial(of=stage.taken, home=small / "update")
    said = _read_only(settings, lambda: update_once(settings))
    return [tables, stage.of_model("lake read-only during update and promotion", said, settings)]


def _read_only(settings: Settings, work: Callable[[], object]) -> str:
    lake = settings.lake
    subprocess.run(["mount", "--bind", lake, lake], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", lake], check=True)
    try:
        return _said(work)
    finally:
        subprocess.run(["umount", lake], check=True)


def _said(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:  # noqa: BLE001, RUF100 - whatever the fault brings is what is told
        text = re.sub(r"/\S+", "…", str(error)).replace("|", "/")  # without the trial's paths
        return f"`{type(error).__name__}: {' '.join(text.split())[:110]}`"
    return "done"


def main(told: Path) -> None:
    """Mounts, tries, prints the outcomes as JSON."""
    know_price_task()
    state = json.loads(told.read_text())
    folder = Path(state["folder"])
    homes = {name: price_settings(Path(state[name])) for name in ("origin", "taken", "calm")}
    landing = Path(homes["origin"].landing)
    homes = {name: replace(home, landing=str(landing)) for name, home in homes.items()}
    stage = Stage(folder, homes["origin"], homes["taken"], homes["calm"], [Window.parse(one) for one in state["new"]])
    warm = stage.trial(home=folder / "warm")  # what imports write into caches is not part of it
    ingest(stage.new[:1], warm, report=lambda line: None)
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SPACE_MB}m", "tmpfs", str(small)], check=True)
    outcomes = [disk_full(stage, small), *lake_read_only(stage, small)]
    print(json.dumps([asdict(outcome) for outcome in outcomes]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
