"""The locks of PostgreSQL: what is wrong with their URL is told, and never with the password."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from pipeline.locking import LocksAway, locks_of


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+psycopg2://me:hidden@127.0.0.1:9/locks", "Connection refused"),
        ("postgresql://me:hidden@127.0.0.1:port/locks", "none"),
        ("postgresql://me:hid/hidden@127.0.0.1/locks", "none"),
        ("postgresql://me:hid@hidden@127.0.0.1:9/locks", "none"),
        ("mysql://me:hidden@127.0.0.1/locks", "none"),
        ("hidden", "none"),
    ],
)
def test_locks_that_cannot_be_reached_are_told_without_the_password(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(LocksAway, match=r"EVERGREEN_LOCK_URL .* must be the URL") as told, locks_of(tmp_path, url)("x"):
        pytest.fail("it was taken")
    assert said in str(told.value)
    assert "hidden" not in "".join(traceback.format_exception(told.value))
