"""The end of a process: lets the threads of Arrow and DuckDB come to rest before Python ends under them.

A thread of theirs that gives back memory of Python's takes Python's lock for it. Where Python is ending already,
CPython 3.11 ends such a thread by unwinding its stack, which C++ answers with an abort ("terminate called without
an active exception", exit status -6; apache/arrow issues 34314 and 36389). It hit about one process in a hundred,
after its work was done: whoever started it saw a failure. A thread that still has something to do is running or
waits for a processor, so the kernel's own list says when all have come to rest.
"""

from __future__ import annotations

import atexit
import threading
import time
from pathlib import Path

_TASKS = Path("/proc/self/task")
# A thread that waits for Python's lock gets it while this one sleeps, within Python's switch interval of 5 ms.
_PAUSE_SECONDS = 0.006
# Each time all are seen at rest, one could just have been on its way from one lock to the next.
_LOOKS = 2
# A thread that computes on for itself must not hold up the end: what it would have given back goes with the process.
_AT_MOST_SECONDS = 1.0


def settle_at_exit() -> None:
    """Has every end of this process wait for its threads to come to rest, 0.02 s as a rule and at most a second."""
    atexit.register(_settle)


def _settle() -> None:
    until, quiet = time.monotonic() + _AT_MOST_SECONDS, 0
    while quiet < _LOOKS and time.monotonic() < until:
        time.sleep(_PAUSE_SECONDS)
        quiet = 0 if _others_run() else quiet + 1


def _others_run() -> bool:
    """Whether another thread of this process runs, waits for a processor or for the disk."""
    own = str(threading.get_native_id())
    try:
        threads = [thread for thread in _TASKS.iterdir() if thread.name != own]
    except OSError:  # no Linux
        return False
    return any(_state(thread) in ("R", "D") for thread in threads)


def _state(thread: Path) -> str:
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has ended
        return ""
