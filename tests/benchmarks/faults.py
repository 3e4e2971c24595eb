"""The faults besides kill -9: two of everything at once, storage, registry, memory and the clock.

Each is a function of the stage and returns what became of it. None needs more rights than a user has: memory and
file sizes are limited in the child, and a file system that is full or read-only is mounted in a namespace of its own
(`unshare`, as root or as a user who may make user namespaces).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from pipeline.registry import open_registry
from pipeline.settings import REPOSITORY, Settings
from pipeline.window import Window
from tests.benchmarks.trust_faults import TRIES, Outcome, Stage, take_in, together
from tests.ends import half_registered
from tests.killed import Worker, forked
from tests.price_shop import NOW, TASK, update_once

_PATIENCE_SECONDS = 900.0
_LOCKED_SECONDS = 15.0  # three times SQLite's own patience of five
_UNREACHABLE_SECONDS = 600.0  # a restart of its machine with an update of the system
_MORE_MEMORY_MB = (24, 320)  # of address space on top of what a process has after its imports
_HANGS_SECONDS = 30.0  # a thread that could not be started is waited for: Airflow ends the task when its time is up
_YEARS = timedelta(days=3653)


def duplicate_runs(stage: Stage) -> list[Outcome]:
    """Two schedulers' worth of runs: the same hours taken in by two processes, the same change learnt by two."""
    settings = stage.trial()
    both = [forked(take_in, settings, stage.new, log=settings.home / "log") for _ in range(2)]
    ended = [worker.ended(_PATIENCE_SECONDS) for worker in both]
    tables = stage.of_tables("two runs of the same ingest at once", f"both ended with {ended}", settings)
    settings = stage.trial(of=stage.taken)
    both = [forked(update_once, settings, log=settings.home / "log") for _ in range(2)]
    ended = [worker.ended(_PATIENCE_SECONDS) for worker in both]
    return [tables, stage.of_model("two runs of the same update at once", f"both ended with {ended}", settings)]


def database_locked(stage: Stage) -> list[Outcome]:
    """Another process holds MLflow's SQLite for longer than SQLite waits."""
    settings = stage.trial(of=stage.taken)
    lock = sqlite3.connect(settings.home / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    worker = forked(update_once, settings, log=settings.home / "log")
    first = worker.ended(_LOCKED_SECONDS)
    lock.execute("ROLLBACK")
    lock.close()
    ended = worker.ended(_PATIENCE_SECONDS)
    said = "failed and was started again" if ended else "waited and went on"
    happened = f"locked for {_LOCKED_SECONDS:.0f} s: the update {said}" + ("" if first is None else _last_line(worker))
    outcome = stage.of_model("MLflow's SQLite locked", happened, settings)
    return [replace(outcome, seconds=max(outcome.seconds, time.monotonic() - began - _LOCKED_SECONDS))]


def registry_unreachable(stage: Stage) -> list[Outcome]:
    """Nothing listens at MLflow's address when the update begins; the server comes later, the work goes on."""
    home = stage.trial(of=stage.taken)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = replace(home, tracking_uri=f"http://127.0.0.1:{port}")
    worker = forked(update_once, settings, log=home.home / "log")
    tries, until = 1, time.monotonic() + _UNREACHABLE_SECONDS
    while (left := until - time.monotonic()) > 0:
        if worker.ended(left) is not None and tries < TRIES:
            worker, tries = forked(update_once, settings, log=home.home / "log"), tries + 1
    with _server(home, port):
        began = time.monotonic()
        ended = worker.ended(_PATIENCE_SECONDS)
        seconds = time.monotonic() - began
    happened = (
        f"refused for {_UNREACHABLE_SECONDS:.0f} s; try {tries} asked again by itself and ended with {ended}, "
        f"{seconds:.0f} s after the server was there"
    )
    outcome = stage.of_model("MLflow unreachable", happened, home)
    return [replace(outcome, seconds=max(outcome.seconds, seconds))]


@contextmanager
def _server(settings: Settings, port: int) -> Iterator[None]:
    arguments = [
        "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", settings.tracking_uri, "--default-artifact-root", str(settings.home / "mlflow"),
    ]
    with (settings.home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    worker = Worker(server.pid, settings.home / "server.log", server.wait)
    try:
        yield
    finally:
        worker.kill()


def out_of_memory(stage: Stage) -> list[Outcome]:
    """A worker whose address space ends in the midst of the work; one that hangs is ended, as Airflow's would be."""
    return [
        _starved("ingest", stage, stage.origin, _starved_taking_in, stage.of_tables),
        _starved("update and promotion", stage, stage.taken, _starved_learning, stage.of_model),
    ]


def _starved(
    name: str, stage: Stage, state: Settings, work: Callable[..., None], end: Callable[..., Outcome]
) -> Outcome:
    said, outcomes = [], []
    for more_mb in _MORE_MEMORY_MB:
        settings = stage.trial(of=state)
        worker = forked(work, settings, stage.new, more_mb, log=settings.home / "log")
        status = worker.ended(_HANGS_SECONDS)
        if status is None:
            worker.kill()
        how = {0: "done", None: "hung, ended by execution_timeout"}.get(status, f"status {status}{_last_line(worker)}")
        said.append(f"{more_mb} MB more: {how}")
        outcomes.append(end("", "", settings))
    return together(f"out of memory in {name}", "; ".join(said), outcomes)


def _starved_taking_in(settings: Settings, windows: list[Window], more_mb: int) -> None:
    _starve(more_mb)
    take_in(settings, windows)


def _starved_learning(settings: Settings, windows: list[Window], more_mb: int) -> None:
    _starve(more_mb)
    update_once(settings)


def _starve(more_mb: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + (more_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def clock_jumps(stage: Stage) -> list[Outcome]:
    """An update decided ten years back, a rollback ten years ahead, and who served when is asked after that."""
    settings = stage.trial(of=stage.taken)
    began = time.monotonic()
    update_once(settings, NOW - _YEARS)
    registry = open_registry(settings)
    champion = registry.champion(TASK)
    registry.rollback(TASK, None, who="clock", why="measured", decided_at=NOW + _YEARS)
    update_once(settings, NOW)
    served = [service.version for service in registry.services(TASK)]
    half = half_registered(registry, TASK)
    wrong = int(served != [1, champion, 1] or registry.champion(TASK) != 1)
    happened = f"served in order {served}, the champion is {registry.champion(TASK)}"
    return [Outcome(
        "clock ten years back, then ten ahead", happened, half=wrong + len(half), seconds=time.monotonic() - began
    )]


def storage_fails(stage: Stage) -> list[Outcome]:
    """The disk is full, or the lake read-only, on a file system of its own."""
    told = stage.folder / "storage.json"
    places = {name: str(getattr(stage, name).home) for name in ("origin", "taken", "calm")}
    told.write_text(json.dumps({"folder": str(stage.folder), **places, "new": [str(window) for window in stage.new]}))
    # a namespace's mounts are nobody else's, and go with its last process
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    allowed = shutil.which("unshare") and subprocess.run([*namespace, "true"], check=False, capture_output=True)
    if not allowed or allowed.returncode != 0:
        return [Outcome("disk full; lake read-only", "not tried: this machine lets nobody mount", tried=0)]
    done = subprocess.run(
        [*namespace, sys.executable, "-m", "tests.benchmarks.faults_of_storage", str(told)], check=False,
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
        timeout=_PATIENCE_SECONDS,
    )
    if done.returncode != 0:
        raise RuntimeError(f"The trials of storage must end; they said: {done.stderr[-3000:]}")
    return [Outcome(**one) for one in json.loads(done.stdout.splitlines()[-1])]


def _last_line(worker: Worker) -> str:
    lines = [line for line in worker.said.splitlines() if line.strip()]
    return f", saying `{lines[-1].replace('|', '/')[:120]}`" if lines else ""


FAULTS: tuple[Callable[[Stage], list[Outcome]], ...] = (
    duplicate_runs, storage_fails, out_of_memory, database_locked, clock_jumps, registry_unreachable,
)
