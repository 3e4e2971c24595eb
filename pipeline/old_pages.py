"""Which quality and lineage pages stay and which go, so that reports do not grow for ever.

A page is what people open from a run of `ingest`, from a version or from the health page, and nobody does so months
later; what it showed can be told anew (the ingest of its window, `python -m pipeline.lineage`). So it goes by age, but
for what is open: a window that was stopped or that no champion has learnt yet, one that was set aside, and a version
that still has its files. The health page, the pictures and the log of alerts are written in place and stay.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.checkpoint import Ledger
from pipeline.lake import Lake
from pipeline.schema import FEEDS
from pipeline.window import Window, windows_between

_BULK = re.compile(r"bulk-(.+)-(\d{4}-.+)\.html")
_OF_VERSION = re.compile(r"(.+)-(\d+)\.html")


@dataclass(frozen=True)
class Open:
    """What somebody may still have to look at, however old it is.

    Attributes:
        versions: task -> versions that have their files.
        aside: landed windows (ISO 8601) that a champion has set aside.
        learnt_until: the newest landed window that every champion has seen; None: a task has no champion.
    """

    versions: Mapping[str, Collection[int]] = field(default_factory=dict)
    aside: frozenset[str] = frozenset()
    learnt_until: datetime | None = None

    @classmethod
    def of(cls, versions: Mapping[str, Collection[int]], champions: Collection[Ledger | None]) -> Open:
        """Of versions that stay, and the champions' ledgers (None: a task has none)."""
        ledgers = [ledger for ledger in champions if ledger is not None]
        every = bool(ledgers) and len(ledgers) == len(champions)
        return cls(
            versions, frozenset(window for ledger in ledgers for window in ledger.set_aside),
            min(ledger.window for ledger in ledgers) if every else None,
        )


def remove_old_pages(
    reports: Path, lake: Lake, still_open: Open, now: datetime, days: int, *, dry_run: bool = False
) -> dict[str, int]:
    """Removes pages that were last written more than `days` before `now` and that nothing open needs.

    Args:
        reports: the folder of pages.
        lake: its window log says which windows were taken in.
        still_open: what keeps a page of any age.
        now: ages are counted back from here.
        days: the age.
        dry_run: only counts.

    Returns:
        `quality`, `lineage` -> how many pages went, `bytes` -> of how many bytes.
    """
    oldest = (now - timedelta(days=days)).timestamp()
    counts = {"quality": 0, "lineage": 0, "bytes": 0}
    for kind, pages in (
        ("quality", _closed_windows(reports / "quality", lake, still_open, oldest)),
        ("lineage", _closed_versions(reports / "lineage", still_open, oldest)),
    ):
        for path in pages:
            counts[kind] += 1
            counts["bytes"] += path.stat().st_size
            if not dry_run:
                path.unlink()
                if not any(path.parent.iterdir()):
                    path.parent.rmdir()
    return counts


def _older(folder: Path, oldest: float) -> list[Path]:
    """Pages last written before `oldest`, and what killed processes left of pages."""
    return [
        path for path in sorted(folder.rglob("*"))
        if path.suffix in (".html", ".tmp") and path.is_file() and path.stat().st_mtime < oldest
    ]


def _closed_windows(folder: Path, lake: Lake, still_open: Open, oldest: float) -> Iterator[Path]:
    for feed in FEEDS:
        named = [(path, _windows_of(path)) for path in _older(folder / feed, oldest)]
        old = [(path, windows) for path, windows in named if windows is not None]
        days = {window.start.date() for _, windows in old for window in windows}
        log = lake.window_log(days) if days else None
        taken_in = set() if log is None else {
            row["landed_window"] for row in log.select(["feed", "landed_window"]).to_pylist() if row["feed"] == feed
        }
        for path, windows in old:
            if all(_is_closed(window, taken_in, still_open) for window in windows):
                yield path


def _is_closed(window: Window, taken_in: Collection[datetime], still_open: Open) -> bool:
    until = still_open.learnt_until
    return (
        window.start in taken_in and window.start.isoformat() not in still_open.aside
        and until is not None and window.start <= until
    )


def _windows_of(path: Path) -> list[Window] | None:
    """The windows that a quality page is about, told by its name; none of half a page; None: it is no page of ours."""
    if path.suffix == ".tmp":
        return []
    try:
        if bulk := _BULK.fullmatch(path.name):
            first, last = (Window.parse(f"{one[:-1]}:00Z") for one in bulk.groups())
            return [*windows_between(first.start, last.end)]
        return [Window.parse(f"{path.parent.name}T{path.stem}:00Z")]
    except ValueError:
        return None


def _closed_versions(folder: Path, still_open: Open, oldest: float) -> Iterator[Path]:
    for path in _older(folder, oldest):
        named = _OF_VERSION.fullmatch(path.name)
        if named is None or int(named[2]) not in still_open.versions.get(named[1], ()):
            yield path
