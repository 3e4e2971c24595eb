"""kill -9 of update and promotion at moments all over its work: after a restart all is as it would have been without.

A trial starts from a copy of one state (champion 1, one hour to learn). The process, a real one, plans, updates
and promotes, as a DAG's run does; it is killed at moments spread over its entire duration, each time started
again, and let finish once the trial's kills are spent. One more is killed between registration and promotion.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline import updating
from pipeline.registry import open_registry
from pipeline.settings import Settings
from tests.ends import copy_of, end_of
from tests.killed import KILLS, Worker, command
from tests.small_shop import publish_hours, settings_of, small_shop

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KILLS_A_TRIAL = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # six minutes here; a busy machine takes twice that


def start(settings: Settings) -> Worker:
    scratch = settings.home / "scratch"  # what a killed process leaves in its temporary folder is nobody's
    scratch.mkdir(exist_ok=True)
    variables = {"TF_CPP_MIN_LOG_LEVEL": "3", "TMPDIR": str(scratch)}
    return command(["tests.test_kills_update", str(settings.home)], settings.home / "log", variables)


def finish(settings: Settings) -> None:
    """Lets the process finish; one that aborts is started again, as Airflow's retries do. Any error of ours fails."""
    for _ in range(3):
        process = start(settings)
        status = process.ended(300)
        if status != -signal.SIGABRT:
            break
        print(f"aborted: {process.said[-300:]}")  # seen once: "terminate called without an active exception", all done
    assert status == 0, process.said[-3000:]


def killed(settings: Settings, after_seconds: float) -> bool:
    """Whether the process was killed before it had finished."""
    process = start(settings)
    if process.ended(after_seconds) is None:
        process.kill()
        return True
    return False


def killed_once_registered(settings: Settings) -> bool:
    """Whether the process was killed after it had registered its version and before it had finished."""
    process = start(settings)
    while process.ended(0.05) is None:
        if len(open_registry(settings).versions("recommend")) == 2:
            process.kill()
            return True
    return False


def copied(home: Path, to: Path) -> Settings:
    copy_of(home, to)
    return settings_of(to)


def test_kills_leave_the_same_end_state_as_none(tmp_path: Path) -> None:
    origin, shop = settings_of(tmp_path / "origin"), small_shop(users=200, history_days=2, history_events=2_500)
    origin.home.mkdir()
    publish_hours(origin, shop, 0, 48)
    updating.retrain("recommend", origin, NOW, "first", report=lambda line: None)
    updating.promote("recommend", 1, origin, NOW)
    publish_hours(origin, shop, 48)
    reference = copied(origin.home, tmp_path / "reference")
    began = time.monotonic()
    finish(reference)
    seconds = time.monotonic() - began
    wanted = end_of("recommend", reference)
    assert len(wanted["versions"]) == 2 and len(wanted["log"]) == 2 and not wanted["half of a version"]
    draw = random.Random(11)
    moments = [(place + draw.random()) / KILLS * seconds for place in range(KILLS)]
    draw.shuffle(moments)
    trial, kills = 0, 0
    while moments:
        settings = copied(origin.home, tmp_path / f"trial-{trial}")
        trial += 1
        # the latest first: a run that goes on from a registered version is shorter than one from the start
        for moment in sorted((moments.pop() for _ in range(min(KILLS_A_TRIAL, len(moments)))), reverse=True):
            if killed(settings, moment):
                kills += 1
            else:  # it had finished: the machine was busier when the duration was taken; once more, earlier
                moments.append(0.8 * moment)
        finish(settings)
        assert_same_end(f"trial {trial}", settings, wanted)
    assert kills == KILLS
    settings = copied(origin.home, tmp_path / "registered")
    assert killed_once_registered(settings)
    finish(settings)
    assert_same_end("killed once registered", settings, wanted)


def assert_same_end(trial: str, settings: Settings, wanted: Mapping[str, Any]) -> None:
    seen = end_of("recommend", settings)
    differing = {part: (seen[part], wanted[part]) for part in wanted if seen[part] != wanted[part]}
    assert not differing, f"{trial}: {differing}"


def run_once(settings: Settings) -> None:
    """What a DAG's run does; a restarted one as well."""
    plan = updating.plan("recommend", settings)
    if "nothing_because" in plan:
        return
    done = updating.update(plan, settings, NOW)
    updating.promote("recommend", done["version"], settings, NOW)


if __name__ == "__main__":
    run_once(settings_of(Path(sys.argv[1])))
