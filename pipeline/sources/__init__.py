"""Where data comes from before a shop is connected: a simulated shop, Online Retail, any log by mapping.

A source writes landing files exactly as a shop's exporter would, raw user ids and dirt included; everything
after the landing zone is the same for a demo and for production.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pipeline.window import Window

ONLINE_RETAIL_MAPPING = Path(__file__).with_name("online_retail.toml")


class SourceError(ValueError):
    """A source cannot be opened or read; the message names the rule, what was found and the next step."""


class Source(Protocol):
    """What lands a shop's data window by window."""

    @property
    def name(self) -> str:
        """The source's name."""

    @property
    def first(self) -> datetime:
        """Start of the first window that has data."""

    @property
    def last(self) -> datetime:
        """End of the last window that has data."""

    @property
    def absent_columns(self) -> frozenset[str]:
        """Columns that this source never carries, as `feed.column`."""

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows that have data, in order."""

    def land(self, windows: Sequence[Window], landing: Path) -> int:
        """Writes the windows' files of all feeds, each whole or not at all; returns the rows written."""


def open_source(
    name: str,
    data: str | None = None,
    mapping: str | None = None,
    seed: int = 20260101,
    cache: Path | None = None,
    **size: int | float,
) -> Source:
    """The source of that name.

    Args:
        name: `simulated`, `online-retail`, or the path of a mapping file (as `mapping`, which wins).
        data: path or URL of the log; the simulated shop has none.
        mapping: path of a mapping file.
        seed: of the simulated shop.
        cache: folder for a log that is downloaded from a URL.
        size: `ShopSize`'s values, for the simulated shop.

    Raises:
        SourceError: no such source, or its mapping or data cannot be read.
    """
    if name == "simulated" and mapping is None:
        from pipeline.sources.simulator import ShopSimulator

        return ShopSimulator(seed=seed, **size)  # type: ignore[arg-type]
    path = Path(mapping) if mapping else ONLINE_RETAIL_MAPPING if name == "online-retail" else Path(name)
    if path.suffix != ".toml":
        raise SourceError(
            "A source is `simulated`, `online-retail` or the path of a mapping file (.toml); "
            f"received {name!r}."
        )
    if not data:
        raise SourceError(
            f"The source {name!r} replays a log: give its path or URL (`--data`, or DATA= with make)."
        )
    from pipeline.sources.mapping import read_mapping
    from pipeline.sources.replay import MappedLog

    return MappedLog(read_mapping(path), data, cache=cache)
