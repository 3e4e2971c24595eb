"""The verdict on a chunk of windows: which rows may not pass, which windows may not, and why, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.window import Window


@dataclass(frozen=True)
class WindowBreach:
    """An expectation that a window did not meet.

    Attributes:
        window: the window.
        rule: the expectation's stable name.
        severity: one of `SEVERITIES`.
        seen: what the window held, in words.
        allowed: what the expectation allows, in words.
        why: why the expectation exists.
        remedy: what to do now.
    """

    window: Window
    rule: str
    severity: str
    seen: str
    allowed: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return (
            f"{self.window} breaks {self.rule} ({self.severity}): {self.seen}; allowed: {self.allowed}. "
            f"Why it matters: {self.why} What to do: {self.remedy}"
        )


@dataclass(frozen=True)
class Checked:
    """The verdict on a chunk of windows of one feed.

    Attributes:
        row_breaches: columns `row` (int64, index into the rows given), `reason` (string, the rule), `detail`
            (string: the value seen, what is allowed); one line at most for each row, in order of row.
        window_breaches: the expectations that windows did not meet, in order of window.
        results: JSON-able: every expectation with its note, severity, success, counts and examples.
    """

    row_breaches: pa.Table
    window_breaches: tuple[WindowBreach, ...]
    results: Mapping[str, Any]


class WindowStopped(RuntimeError):
    """A window may not be published: it breaks expectations of severity critical.

    Attributes:
        feed: the feed's name.
        breaches: the critical breaches, at least one.
        page: path of the page that shows the check.
    """

    def __init__(
        self, feed: str, breaches: Sequence[WindowBreach], others: str = "", page: str | None = None
    ) -> None:
        self.feed, self.page = feed, page
        self.breaches = tuple(breaches)
        said = " ".join(str(breach) for breach in self.breaches)
        super().__init__(f"{feed}: not published, table and model are as before. {said}{' ' if others else ''}{others}")
