"""Processes that can be killed -9 with all their children, at a moment of one's choice.

Either a command, or a function in a process that is forked from one which has imported everything: then the moments
fall on the work instead of the seconds of imports before it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

from pipeline.settings import REPOSITORY

# How many kills a test makes. Five are spread over what ingest and update pass through, within CI's minutes; 200 are
# made by the benchmark (make bench-trust PARTS=faults KILLS=200).
KILLS = int(os.environ.get("EVERGREEN_TEST_KILLS", "5"))

# None of these starts a thread or opens a file when it is imported, so that the process which has them can be forked.
_IMPORTED = (
    "great_expectations", "great_expectations.execution_engine", "great_expectations.validator.validator",
    "mlflow", "mlflow.pyfunc", "mlflow.models", "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store", "pipeline.ingest", "pipeline.quality", "pipeline.pages",
    "pipeline.updating", "pipeline.lesson", "pipeline.gate", "tests.price_task",
)


@dataclass(frozen=True)
class Worker:
    """A process that leads a session of its own.

    Attributes:
        pid: its id.
        log: file with what it has said.
    """

    pid: int
    log: Path
    _wait: Callable[[float | None], int | None]

    def ended(self, within_seconds: float | None = None) -> int | None:
        """Its exit status (the negative signal where one ended it); None: it still runs."""
        return self._wait(within_seconds)

    def kill(self) -> None:
        """Ends it and its children at once, as a power cut would."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not come to lead its session yet, or has just ended
            with_id = Path(f"/proc/{self.pid}")
            if with_id.exists():
                os.kill(self.pid, signal.SIGKILL)
        self._wait(None)

    @property
    def said(self) -> str:
        """All that it has written so far."""
        return self.log.read_text() if self.log.exists() else ""


def command(arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Worker:
    """Starts `python -m` with the arguments in the repository's root."""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})}
    with log.open("a") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=variables, cwd=REPOSITORY, start_new_session=True, stdout=out,
            stderr=subprocess.STDOUT,
        )

    def wait(seconds: float | None) -> int | None:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    return Worker(process.pid, log, wait)


def forked(work: Callable[..., object], *arguments: object, log: Path) -> Worker:
    """Calls a function of a module in a process forked from one that has imported everything."""
    process = _server().Process(target=_run, args=(work, arguments, log))
    process.start()

    def wait(seconds: float | None) -> int | None:
        process.join(seconds)
        return process.exitcode

    assert process.pid is not None
    return Worker(process.pid, log, wait)


def _server() -> ForkServerContext:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(_IMPORTED))
    return server


def _run(work: Callable[..., object], arguments: tuple[object, ...], log: Path) -> None:
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
