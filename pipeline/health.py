"""The health page: what an operator reads in ten seconds. One HTML file with its picture inside, no server needed."""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.alerts import open_alerts
from pipeline.pages import document
from pipeline.registry import PREFIX
from pipeline.report import draw_quality, pooled
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.watch import TaskHealth

_REASONS_SHOWN = 8
_NO_NUMBER = "–"


def write_health_page(
    healths: Sequence[TaskHealth], quarantined: Mapping[tuple[str, str], int], settings: Settings
) -> Path:
    """Writes `reports/health.html`, in the place of an older one, and returns its path.

    Args:
        healths: the state of each task.
        quarantined: (feed, reason) -> rows of the last week, most first.
        settings: of the installation.
    """
    body = [
        '<header><p class="crumb">Evergreen</p><h1>Health</h1></header>',
        _verdict(healths, open_alerts(settings)),
        *(_task(health, settings) for health in healths),
        _quarantine(quarantined),
    ]
    path = settings.reports / "health.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(document("Evergreen · health", body), encoding="utf-8")
    unfinished.replace(path)
    return path


def _verdict(healths: Sequence[TaskHealth], alerts: Sequence[Mapping[str, Any]]) -> str:
    if not alerts:
        served = ", ".join(f"{health.task} by version {health.champion}" for health in healths)
        return (
            '<section class="verdict pass"><h2><span class="sign" aria-hidden="true">✓</span>All is well</h2>'
            f"<p>In service: {_text(served)}.</p></section>"
        )
    said = "".join(
        f"<li><p><b>{_text(alert['condition'])}</b> since {_text(alert['at'][:16].replace('T', ' '))} UTC</p>"
        f"<p>{_text(alert['text'])}</p></li>" for alert in alerts
    )
    number = f"{len(alerts)} thing{'s' if len(alerts) > 1 else ''} to look at"
    return (
        f'<section class="verdict warn"><h2><span class="sign" aria-hidden="true">!</span>{number}</h2>'
        f'<ul class="breaches">{said}</ul></section>'
    )


def _task(health: TaskHealth, settings: Settings) -> str:
    behind = health.hours_behind
    updated, plain = pooled(health.lines, "champion"), pooled(health.lines, "baseline")
    tiles = [
        (f"version {health.champion}" if health.champion else "none", "in service"),
        (f"{health.knows:%m-%d %H:00}" if health.knows else _NO_NUMBER, "newest hour that it knows"),
        (f"{behind:.0f} h" if behind is not None else _NO_NUMBER, "behind what has landed"),
        (_number(updated), "quality of the last hours, before learning them"),
        (_number(plain), "the plain baseline on the same"),
        (f"version {health.previous}" if health.previous else "none", "to roll back to"),
    ]
    shown = "".join(f"<div><b>{_text(value)}</b><span>{_text(word)}</span></div>" for value, word in tiles)
    return (
        f"<h2>{_text(PREFIX + health.task)}{_lineage(health, settings)}</h2>"
        f'<section class="tiles" aria-label="State of {_text(health.task)}">{shown}</section>'
        f"{_picture(health, settings)}{_decisions(health)}"
    )


def _lineage(health: TaskHealth, settings: Settings) -> str:
    """A link to the page of what the champion has learnt, where there is one."""
    page = f"lineage/{health.task}-{health.champion}.html"
    there = (settings.reports / page).exists()
    return f' <small><a href="{_text(page)}">what version {health.champion} learnt</a></small>' if there else ""


def _picture(health: TaskHealth, settings: Settings) -> str:
    if not health.lines:
        return ""
    path = settings.reports / f"health-{health.task}.png"
    draw_quality(health.lines, "quality", f"{health.task}: each hour scored before it is learnt", path)
    coded = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<section><img style="width:100%;height:auto;background:#fff" src="data:image/png;base64,{coded}" '
        f'alt="Quality of {_text(health.task)} over the last {len(health.lines)} hours: updated, never updated, '
        'plain baseline"></section>'
    )


def _decisions(health: TaskHealth) -> str:
    rows = "".join(
        f'<tr><td class="short">{row["decided_at"]:%Y-%m-%d %H:%M}</td><td class="short">{_text(row["action"])}</td>'
        f'<td>{row["version"]}</td><td class="short">{_text(row["who"])}</td>'
        f"<td>{_text((json.loads(row['reasons']) or [''])[0])}</td></tr>"
        for row in health.decisions
    )
    head = "".join(f'<th scope="col">{word}</th>' for word in ("Decided (UTC)", "Action", "Version", "Who", "Because"))
    return (
        f"<section><h2>Newest decisions</h2><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></section>"
    )


def _quarantine(counts: Mapping[tuple[str, str], int]) -> str:
    if not counts:
        return "<section><h2>Quarantine</h2><p>Empty for the last week.</p></section>"
    rows = "".join(
        f'<tr><td>{_text(feed)}</td><td><code>{_text(reason)}</code></td><td class="num">{number:,}</td></tr>'
        for (feed, reason), number in list(counts.items())[:_REASONS_SHOWN]
    )
    return (
        f"<section><h2>Quarantine <small>{sum(counts.values()):,} rows in the last week</small></h2><table><thead><tr>"
        '<th scope="col">Feed</th><th scope="col">Reason</th><th scope="col" class="num">Rows</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></section>"
    )


def _number(value: float) -> str:
    return _NO_NUMBER if math.isnan(value) else f"{value:.3f}"


def _text(value: object) -> str:
    return html.escape(str(value))
