"""Lands a source's windows from the command line: `python -m pipeline.sources --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from pipeline.sources import SourceError, open_source
from pipeline.window import Window, windows_between

_BATCH_WINDOWS = 24  # a step of the progress bar


def main(arguments: list[str] | None = None) -> int:
    """Lands the windows that the arguments name; returns the exit status."""
    options = _parser().parse_args(arguments)
    errors = Console(stderr=True)
    size = {
        "users": options.users,
        "items": options.items,
        "history_days": options.history_days,
        "hours": options.hours,
        "history_events": options.history_events,
        "events_per_hour": options.events_per_hour,
    }
    try:
        source = open_source(
            options.source,
            options.data,
            options.mapping,
            options.seed,
            options.landing / ".cache",
            **{name: value for name, value in size.items() if value is not None},
        )
        start = Window.parse(options.start).start if options.start else source.first
        end = Window.parse(options.end).start if options.end else source.last
        windows = list(windows_between(start, end))
        if not windows:
            raise SourceError(f"--from must lie before --to; received {start} and {end}.")
        rows = 0
        with Progress(console=errors, transient=True) as progress:
            task = progress.add_task(f"landing {source.name}", total=len(windows))
            for begin in range(0, len(windows), _BATCH_WINDOWS):
                batch = windows[begin : begin + _BATCH_WINDOWS]
                rows += source.land(batch, options.landing)
                progress.advance(task, len(batch))
    except (ValueError, OSError) as error:
        errors.print(f"error {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
    Console().print(
        f"{rows:,} rows in {len(windows):,} windows, {windows[0]} up to {Window(end)}: {options.landing}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sources",
        description="Lands the files of a demo source, hour by hour, as a shop would.",
    )
    add = parser.add_argument
    add(
        "--source",
        default="simulated",
        help="simulated, online-retail, or the path of a mapping file (.toml)",
    )
    add("--data", help="path or http(s) URL of the log (not for simulated)")
    add("--mapping", help="path of a mapping file; wins over --source")
    add("--landing", type=Path, required=True, help="root of the landing zone")
    add("--from", dest="start", help="first hour, like 2011-11-14T09:00Z (default: the source's first)")
    add("--to", dest="end", help="end, exclusive (default: the source's last)")
    add("--seed", type=int, default=20260101, help="seed of the simulated shop (default: %(default)s)")
    for name, meaning in (
        ("users", "customers at the start"),
        ("items", "items at the start"),
        ("history-days", "days before the streamed hours"),
        ("hours", "streamed hours"),
        ("history-events", "events of the history"),
        ("events-per-hour", "mean of a streamed hour"),
    ):
        add(f"--{name}", type=int, help=f"simulated shop: {meaning}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
