"""The end of a process: threads that still need Python's lock get it before Python ends."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

# Works outside of Python's lock for a while, as Arrow's threads do, then needs it; nothing joins such a thread.
WORKER = """
import _thread, hashlib, os, time
{0}
def work():
    os.write(1, b"begun ")
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", {1})
    os.write(1, b"done")
_thread.start_new_thread(work, ())
time.sleep(0.02)
"""


def ended(imports: str, rounds: int) -> tuple[str, float]:
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WORKER.format(imports, rounds)], capture_output=True, text=True, check=True
    )
    return done.stdout, time.monotonic() - begin


@pytest.mark.parametrize(("imports", "printed"), [("", "begun "), ("import pipeline", "begun done")])
def test_a_thread_that_works_at_the_end_may_finish(imports: str, printed: str) -> None:
    assert ended(imports, 300_000)[0] == printed


def test_a_thread_that_never_rests_does_not_hold_up_the_end() -> None:
    printed, seconds = ended("import pipeline", 1_000_000_000)
    assert printed == "begun " and seconds < 10
