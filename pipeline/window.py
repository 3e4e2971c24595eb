"""A window: one half-open UTC hour `[start, end)`, the unit in which a shop's data lands and is published.

Everything that is addressed by time in Evergreen is addressed by window, so that a backfill of an
hour and the scheduled run of it are the same call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

HOUR = timedelta(hours=1)


@dataclass(frozen=True, order=True)
class Window:
    """The half-open UTC hour `[start, end)`.

    Raises:
        ValueError: `start` has no time zone or is not a full hour.
    """

    start: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None:
            raise ValueError(
                f"A window starts at a time with a time zone; received the naive {self.start!r}. Add tzinfo=UTC."
            )
        start = self.start.astimezone(UTC)
        if start != start.replace(minute=0, second=0, microsecond=0):
            raise ValueError(
                f"A window starts on a full UTC hour; received {self.start.isoformat()}. Use Window.containing(time)."
            )
        object.__setattr__(self, "start", start)

    @property
    def end(self) -> datetime:
        """The first instant after the window."""
        return self.start + HOUR

    @property
    def folder(self) -> str:
        """The landing zone's folder of this window below a feed: `YYYY-MM-DD/HH`."""
        return self.start.strftime("%Y-%m-%d/%H")

    def __str__(self) -> str:
        return self.start.strftime("%Y-%m-%dT%H:00Z")

    @classmethod
    def containing(cls, time: datetime) -> Window:
        """The window in which `time` (with a time zone) lies."""
        if time.tzinfo is None:
            raise ValueError(f"A time needs a time zone to lie in a window; received the naive {time!r}.")
        return cls(time.astimezone(UTC).replace(minute=0, second=0, microsecond=0))

    @classmethod
    def parse(cls, text: str) -> Window:
        """The window named by an ISO 8601 time such as `2011-11-14T09:00Z`; no offset means UTC."""
        try:
            time = datetime.fromisoformat(text)
        except ValueError as error:
            raise ValueError(
                f"A window is named by an ISO 8601 hour like 2011-11-14T09:00Z; received {text!r}."
            ) from error
        window = cls.containing(time if time.tzinfo else time.replace(tzinfo=UTC))
        if time.replace(tzinfo=time.tzinfo or UTC) != window.start:
            raise ValueError(
                f"A window is named by a full UTC hour; received {text!r}, which lies in {window}: name that."
            )
        return window


def windows_between(start: datetime, end: datetime) -> Iterator[Window]:
    """All windows that start in `[start, end)`, in order; `start` and `end` are full UTC hours."""
    window = Window(start)
    last = Window(end)
    while window < last:
        yield window
        window = Window(window.end)


# Fifty years are more than a shop has; the hours up to a mistyped year 9999 alone would fill a machine's memory.
_LONGEST = timedelta(days=18_263)


def windows_of(
    first: str | None, until: str | None, interval_start: datetime | None, run_after: datetime
) -> tuple[Window, ...]:
    """The windows that a run is about: those named by hand, else its data interval, else the last full hour.

    Args:
        first: name of the first window, as `Window.parse` takes it.
        until: name of the first window after them; None: only one.
        interval_start: start of a scheduled or backfilled run's data interval; None: it was started by hand.
        run_after: when the run was made.

    Raises:
        ValueError: `until` without `first`, not after it, or so far after it that a year was mistyped.
    """
    if first is None:
        if until is not None:
            raise ValueError(f"`until` needs a `window` to begin with; received until={until!r} alone.")
        return (Window.containing(interval_start if interval_start is not None else run_after - HOUR),)
    begin = Window.parse(first)
    end = Window.parse(until) if until else Window(begin.end)
    if end <= begin:
        raise ValueError(f"`until` must lie after `window`; received {begin} and {end}.")
    if end.start - begin.start > _LONGEST:
        raise ValueError(
            f"`until` must lie at most {_LONGEST.days:,} days after `window`; received {begin} and {end}. Is the year "
            "right? More history is loaded in several runs."
        )
    return tuple(windows_between(begin.start, end.start))
