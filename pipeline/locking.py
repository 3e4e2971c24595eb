"""Mutual exclusion by name: between the processes of one machine by file, between machines by PostgreSQL.

Delta's commits are atomic but two writers that each read, decide and write could both decide on the same
state; MLflow's aliases have no compare-and-set at all. Both are put under one of these locks. A lock is
released by the operating system or by the server when its holder dies, so neither a `kill -9` nor a machine without
power leaves one behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.settings import SettingsError

Locks = Callable[[str], AbstractContextManager[None]]

# The longest holder publishes a year of history in bulk (under a minute, measured); ten times that is a hang.
PATIENCE_SECONDS = 600

# When a machine loses its power, nobody tells PostgreSQL, which would keep the session, and the lock, for the two hours
# of Linux' own keep-alive. So the server asks after 20 s of silence, four times: the lock is free within a minute.
_KEEPALIVE = {"tcp_keepalives_idle": 20, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 4}


class LockNotTaken(RuntimeError):
    """A lock stayed with another process for longer than `PATIENCE_SECONDS`."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        super().__init__(
            f"The lock {name!r} must come free within {seconds:.0f} s; another process holds it. "
            "If that one hangs (an ingest, a training, a promotion), end it; then run this again."
        )


class LocksAway(SettingsError):
    """The PostgreSQL that holds the locks cannot be reached by its URL; the message never shows that."""

    def __init__(self, seen: str) -> None:
        self.seen = seen
        super().__init__(
            "EVERGREEN_LOCK_URL (or EVERGREEN_DATABASE, where that is told instead) must be the URL of a PostgreSQL "
            f"that answers, postgresql://user:password@host:port/database; {seen} Start the server, or correct the URL."
        )


def file_locks(folder: Path, patience_seconds: float = PATIENCE_SECONDS) -> Locks:
    """Locks between processes that share `folder` on one machine's disk."""

    @contextmanager
    def lock(name: str) -> Iterator[None]:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / f"{name}.lock", timeout=patience_seconds):
                yield
        except Timeout as error:
            raise LockNotTaken(name, patience_seconds) from error

    return lock


def postgres_locks(url: str, patience_seconds: float = PATIENCE_SECONDS) -> Locks:
    """Locks between machines that share the PostgreSQL at `url` (advisory, held by the session).

    To take one raises LocksAway where the server cannot be reached, LockNotTaken where another holds it for too long.
    """

    @contextmanager
    def lock(name: str) -> Iterator[None]:
        import psycopg2  # only where the locks are PostgreSQL's

        try:
            connection = psycopg2.connect(url.replace("postgresql+psycopg2://", "postgresql://"))
        except psycopg2.Error as error:
            raise LocksAway(_shown(str(error), url)) from None  # its text may hold the URL, and so the password
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for option, value in {**_KEEPALIVE, "lock_timeout": int(patience_seconds * 1000)}.items():
                    cursor.execute(f"SET {option} = %s", (value,))
                try:
                    cursor.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (f"evergreen/{name}",))
                except psycopg2.errors.LockNotAvailable as error:
                    raise LockNotTaken(name, patience_seconds) from error
                yield
        finally:
            connection.close()  # ends the session, and with it the lock

    return lock


def _shown(said: str, url: str) -> str:
    """What the driver said, where that cannot hold a part of the URL's password."""
    one_host = url.count("@") <= 1 and url.startswith(("postgresql://", "postgresql+psycopg2://", "postgres://"))
    if one_host and said.startswith(("connection to server", "could not translate host name")):
        return f"received: {' '.join(said.split())}."
    return "what was received is none."


def locks_of(home: Path, lock_url: str | None, patience_seconds: float = PATIENCE_SECONDS) -> Locks:
    """The locks of an installation: PostgreSQL's where it has a URL for them, else files below `home`."""
    if lock_url:
        return postgres_locks(lock_url, patience_seconds)
    return file_locks(home / "locks", patience_seconds)
