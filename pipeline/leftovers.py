"""What a killed server leaves running, and how it is ended before another takes its place.

supervisord ends the process group of a program that it stops itself. A program that was killed leaves its workers, and
Airflow gives each task a process group of its own, so that both are looked for here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

_PATIENCE_SECONDS = 60.0  # a killed process is gone at once, unless it waits for a disk


def run_alone(home: Path, words: Sequence[str]) -> None:
    """Becomes the command, once the processes that an earlier run of it left behind are ended.

    A server that was killed leaves its workers: MLflow's hold the port, with the database of before, so that the server
    that supervisord starts in its place could never listen; the scheduler's go on with tasks that the next one begins
    anew. supervisord makes each program the leader of a process group and starts it in the home.
    """
    path = home / "leaders" / hashlib.sha256(" ".join(words).encode()).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    leader = path.read_text() if path.exists() else ""  # empty where the disk was full, or the power went, just then
    if leader.isdigit() and int(leader) != os.getpgrp():  # after a restart of the machine numbers come again
        _end_group(int(leader), str(home))
    path.write_text(str(os.getpgrp()))
    os.execvp(words[0], list(words))


def _end_group(leader: int, home: str) -> None:
    """Ends what is left of a process group and what that has begun; Airflow gives each task a group of its own."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            # a number may be another program's by now; a worker that names itself has no environment to read
            if os.getpgid(process.pid) == leader and process.cwd() == home:
                process.suspend()  # so that it begins nothing more, unseen by what follows
                left.append(process)
    end([*left, *begun_by(one.pid for one in left)])


def begun_by(processes: Iterable[int]) -> list[psutil.Process]:
    """The children of processes (ids, of which some may be no process's), their children, and so on."""
    begun = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            begun += psutil.Process(process).children(recursive=True)
    return begun


def end(processes: Sequence[psutil.Process]) -> None:
    """Ends processes for certain, and waits until they are gone; those that are already are passed over."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, _PATIENCE_SECONDS)
