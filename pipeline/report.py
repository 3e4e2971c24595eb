"""What happened, for people: a line for each window, and a picture of quality over time. From the lake alone.

Each window was scored before anything learnt it, by the champion of that hour, by the lineage's first model (never
updated) and by the plain baseline: the honest, leak-free curve (prequential evaluation; Gama et al. 2013,
Machine Learning 90(3)).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.decisions import OF_CHAMPION
from pipeline.lake import Lake
from pipeline.schema import TIME
from pipeline.window import Window

if TYPE_CHECKING:
    from rich.table import Table

ROLES = {"champion": "updated", "never_updated": "never updated", "baseline": "plain baseline"}
_RECENT_DAYS = 8  # what the watch looks back over in the window log is a week
_STYLES = {  # colours that are told apart without colour vision, and dashes and marks besides
    "champion": ("#1b7837", "-", "o"), "never_updated": ("#b35806", "--", "s"), "baseline": ("#666666", ":", "^"),
}


@dataclass(frozen=True)
class Measured:
    """A mean over users with its 95 % interval."""

    mean: float
    low: float
    high: float
    examples: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class WindowLine:
    """One window of the report.

    Attributes:
        window: which.
        rows_in, published, quarantined, duplicates, late: of the task's feed.
        on_arrival: role -> quality on what the window landed, before anything learnt it.
        validation: role -> quality on the gate's examples, of the update that learnt the window.
        version: the model version that learnt it.
        decision: what the gate did with that version.
        why: its first reason.
        champion: the version that served before that decision.
    """

    window: Window
    rows_in: int
    published: int
    quarantined: int
    duplicates: int
    late: int
    on_arrival: dict[str, Measured] = field(default_factory=dict)
    validation: dict[str, Measured] = field(default_factory=dict)
    version: int | None = None
    decision: str = ""
    why: str = ""
    champion: int | None = None


def window_lines(lake: Lake, task: str, feed: str, windows: Sequence[Window]) -> list[WindowLine]:
    """The report's lines of a task for `windows`."""
    if not windows:
        return []
    since = min(windows).start
    days = {window.start.date() for window in windows}
    log = {row["landed_window"]: row for row in lake.window_log(days).to_pylist() if row["feed"] == feed}
    quality = _quality(lake, task, since)
    arrived = quality[quality.scored_on == "window"].sort_values("challenger")
    decisions: dict[int | None, dict] = {}
    for row in _decisions(lake, task, since):  # the gate's is a version's first; a rollback to it may follow
        decisions.setdefault(row["version"], row)
    lines = []
    for window in windows:
        row = log.get(window.start, {})
        here = arrived[arrived.window == window.start]
        # a held update is followed by one that scores the window again: the first is the honest one (0: the watch's)
        first = int(here.challenger.iloc[0]) if len(here) else None
        updates = here.challenger[here.challenger > 0]
        version = int(updates.iloc[0]) if len(updates) else None
        decision = decisions.get(version, {})
        judged = quality[(quality.scored_on == "validation") & (quality.challenger == version)]
        reasons = json.loads(decision.get("reasons", "[]"))
        counts = {name: int(row.get(name, 0)) for name in ("rows_in", "published", "quarantined", "duplicates", "late")}
        lines.append(WindowLine(
            window, **counts, on_arrival=_by_role(here[here.challenger == first]), validation=_by_role(judged),
            version=version, decision=decision.get("action", ""), why=reasons[0] if reasons else "",
            champion=decision.get("champion_before"),
        ))
    return lines


def pooled(lines: Sequence[WindowLine], role: str) -> float:
    """The mean over all windows' examples of a role's quality on arrival; nan without any."""
    found = [line.on_arrival[role] for line in lines if role in line.on_arrival]
    total = sum(one.examples for one in found)
    return sum(one.mean * one.examples for one in found) / total if total else float("nan")


def as_table(lines: Sequence[WindowLine], metric: str) -> Table:
    """The lines as a table for a terminal."""
    from rich.table import Table

    table = Table(title=f"{metric}, mean over users with 95 % interval", title_justify="left", expand=False)
    for name, options in (
        ("window", {"no_wrap": True}), ("rows in", {"justify": "right"}), ("quar.", {"justify": "right"}),
        ("dup.", {"justify": "right"}), ("late", {"justify": "right"}), ("champion on arrival", {"no_wrap": True}),
        ("baseline", {"no_wrap": True}), ("champion, validation", {"no_wrap": True}),
        ("challenger, validation", {"no_wrap": True}),
        ("decision", {"no_wrap": True}), ("version", {"justify": "right"}), ("why", {"max_width": 60}),
    ):
        table.add_column(name, **options)
    for line in lines:
        arrived, judged = line.on_arrival, line.validation
        baseline = arrived.get("baseline")
        table.add_row(
            str(line.window), f"{line.rows_in:,}", str(line.quarantined), str(line.duplicates), str(line.late),
            str(arrived.get("champion", "-")), f"{baseline.mean:.3f}" if baseline else "-",
            str(judged.get("champion", "-")), str(judged.get("challenger", "-")),
            line.decision or "-", str(line.version or "-"), line.why,
        )
    return table


def draw_quality(lines: Sequence[WindowLine], metric: str, title: str, path: Path) -> None:
    """Draws quality on arrival over time, and what updating has gained over all hours so far.

    An hour of a small shop has few users, so single hours scatter; the lower panel pools them.
    """
    import matplotlib as mpl

    mpl.use("Agg")  # no screen is needed
    from matplotlib import pyplot as plt

    drawn = [line for line in lines if line.on_arrival]
    figure, (hourly, gain) = plt.subplots(
        2, 1, figsize=(10, 6.5), sharex=True, layout="constrained", height_ratios=(3, 2)
    )
    for role, (colour, dash, mark) in _STYLES.items():
        at = [place for place, line in enumerate(drawn) if role in line.on_arrival]
        values = [drawn[place].on_arrival[role] for place in at]
        label = f"{ROLES[role]} (mean {pooled(drawn, role):.3f})"
        means = [one.mean for one in values]
        hourly.plot(at, means, color=colour, linestyle=dash, marker=mark, markersize=4, label=label)
        if role == "champion":
            lows, highs = [one.low for one in values], [one.high for one in values]
            hourly.fill_between(at, lows, highs, color=colour, alpha=0.12, lw=0, label="its 95 % interval over users")
        else:
            so_far = [pooled(drawn[: n + 1], "champion") - pooled(drawn[: n + 1], role) for n in range(len(drawn))]
            gain.plot(range(len(drawn)), so_far, color=colour, linestyle=dash, label=f"over the {ROLES[role]}")
    promoted = [place for place, line in enumerate(drawn) if line.decision in ("promote", "first")]
    hourly.plot(promoted, [0.02] * len(promoted), "|", color="#1b7837", markersize=9, label="learnt and promoted",
                transform=hourly.get_xaxis_transform())
    step = max(1, len(drawn) // 12)
    names = [line.window.start.strftime("%m-%d %H:00") for line in drawn]
    gain.set_xticks(range(0, len(drawn), step), names[::step], rotation=30)
    gain.axhline(0.0, color="#999999", lw=0.8)
    hourly.set_ylabel(metric)
    gain.set_ylabel("gain, all hours so far")
    gain.set_xlabel("window (UTC)")
    hourly.set_title(title)
    for axes in (hourly, gain):
        axes.grid(alpha=0.2)
        axes.legend(loc="best", frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, dpi=130, format="png")
    plt.close(figure)
    unfinished.replace(path)


def _quality(lake: Lake, task: str, since: datetime) -> pd.DataFrame:
    """The task's rows of `quality` for its first metric, of windows from `since` on, in order of window."""
    rows = lake.arrow("quality", filter=(ds.field("task") == task) & (ds.field("window") >= pa.scalar(since, TIME)))
    frame = rows.to_pandas()
    if len(frame):
        frame = frame[frame.metric == metric_of(lake, task)]
    return frame.sort_values(["window", "challenger"])


def metric_of(lake: Lake, task: str) -> str:
    """The metric that people see first of the task: the first that each version's scores name."""
    rows = lake.dataset("quality").head(1, columns=["metric"], filter=ds.field("task") == task)
    return str(rows["metric"][0].as_py()) if len(rows) else ""


def _decisions(lake: Lake, task: str, since: datetime) -> list[dict]:
    """What was done with the task's versions that have seen a window from `since` on, in order of time."""
    seen = ds.field("window").is_null() | (ds.field("window") >= pa.scalar(since, TIME))
    done = ~ds.field("action").isin(OF_CHAMPION)
    rows = lake.arrow("decisions", filter=(ds.field("task") == task) & seen & done)
    return rows.sort_by([("decided_at", "ascending")]).to_pylist()


def _by_role(frame: pd.DataFrame) -> dict[str, Measured]:
    return {
        row.role: Measured(row.mean, row.low, row.high, int(row.examples)) for row in frame.itertuples()
    }


def newest_window(lake: Lake, feed: str) -> datetime | None:
    """Start of the newest window of a feed that brought a row."""
    return max((row["landed_window"] for row in recent_log(lake, feed, with_rows=True)), default=None)


def recent_log(lake: Lake, feed: str, *, with_rows: bool = False) -> list[dict[str, Any]]:
    """A feed's rows of the window log of its last days, at least a week of them; of a feed that is silent, all.

    Args:
        lake: where the log is.
        feed: whose.
        with_rows: only windows that brought a row.
    """
    newest = lake.newest_day("windows")
    if newest is None:
        return []
    for since in (newest - timedelta(days=_RECENT_DAYS), None):
        rows = [row for row in lake.window_log(since=since).to_pylist() if row["feed"] == feed]
        rows = [row for row in rows if row["rows_in"] or not with_rows]
        if rows and (since is None or rows[-1]["landed_date"] == newest):
            return rows
    return rows
