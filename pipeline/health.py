"""The health page: what an operator reads in ten seconds. One HTML file with its pictures inside, no server needed.

From the top: what is to be looked at and what to do; for each task what serves, how fresh, how good against the
baseline, what was refused and why, what is due; for each feed what came, what drifted, who is new, what is quarantined.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.alerts import last_asked, open_alerts
from pipeline.conditions import LOSS, SHARE_MOVED, bin_in_words
from pipeline.own_health_page import own_sections, users_section
from pipeline.pages import document, page_path
from pipeline.pictures import STYLE, Bar, Line, bar_row, bars_picture, columns_picture, line_picture
from pipeline.registry_errors import PREFIX
from pipeline.report import ROLES, pooled
from pipeline.settings import Settings
from pipeline.window import Window

if TYPE_CHECKING:
    from pipeline.drift import Shift
    from pipeline.watch import FeedHealth, TaskHealth

_REASONS_SHOWN = 6
_COLUMNS_SHOWN = 6
_DECISIONS_SHOWN = 4
_NO_NUMBER = "–"
_SMOOTHED_HOURS = 7  # single hours of a small shop scatter more than anything that happens to its model
_STYLES = {"champion": "own", "never_updated": "old", "baseline": "plain"}
_SERVES_BADLY = ("no-champion", "below-baseline", "failed", "silent")  # a customer or the next hour notices it


def write_health_page(
    tasks: Sequence[TaskHealth], feeds: Sequence[FeedHealth], quarantined: Mapping[tuple[str, str], int],
    settings: Settings, at: datetime, segments: Mapping[str, int],
) -> Path:
    """Writes `reports/health.html`, in the place of an older one, and returns its path.

    Args:
        tasks, feeds: their states.
        quarantined: (feed, reason) -> rows of the last week, most first.
        settings: of the installation.
        at: when the states were looked at.
        segments: of users -> how many have a profile.
    """
    path, alerts = settings.reports / "health.html", open_alerts(settings)
    opened = frozenset(alert["condition"] for alert in alerts)
    body = [
        f'<header><p class="crumb">Evergreen</p><h1>Health</h1><p>As of {at:%Y-%m-%d %H:%M} UTC</p></header>',
        _verdict(tasks, alerts),
        *(_task(health, last_asked(settings, f"retrain-{health.task}"), opened, settings.reports) for health in tasks),
        users_section(segments),
        *(_feed(health, quarantined, settings) for health in sorted(feeds, key=lambda one: -sum(one.hourly))),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(document("Evergreen · health", body, STYLE + _STYLE), encoding="utf-8")
    unfinished.replace(path)
    return path


def _verdict(tasks: Sequence[TaskHealth], alerts: Sequence[Mapping[str, Any]]) -> str:
    served = "; ".join(
        f"{health.task} by version {health.champion}" for health in tasks if health.champion is not None
    ) or "nothing"
    if not alerts:
        return (
            '<section class="verdict pass"><h2><span class="sign" aria-hidden="true">✓</span>All is well</h2>'
            f"<p>In service: {_text(served)}.</p></section>"
        )
    said = "".join(
        f'<li><p>{_text(alert["text"]).replace(" → ", "<br><b>→</b> ")}</p>'
        f'<p class="count"><code>{_text(alert["condition"])}</code> since '
        f"{_text(alert['at'][:16].replace('T', ' '))} UTC</p></li>" for alert in alerts
    )
    bad = any(alert["condition"].startswith(_SERVES_BADLY) for alert in alerts)
    sign, kind = ("✕", "stop") if bad else ("!", "warn")
    number = f"{len(alerts)} thing{'s' if len(alerts) > 1 else ''} to look at"
    return (
        f'<section class="verdict {kind}"><h2><span class="sign" aria-hidden="true">{sign}</span>{number}</h2>'
        f'<p>In service: {_text(served)}.</p><ul class="breaches">{said}</ul></section>'
    )


# -- a task -----------------------------------------------------------------------------------------------------


def _task(health: TaskHealth, asked: Mapping[str, Any] | None, opened: Collection[str], reports: Path) -> str:
    return "\n".join([
        f'<h2 class="of">{_text(PREFIX + health.task)}{_lineage(health, reports)}</h2>', _tiles(health, asked, opened),
        f'<div class="two wide"><div>{_quality(health)}{_decisions(health)}</div>'
        f"<div>{own_sections(health.task, health.own)}{_aging(health)}{_answers(health.answers)}</div></div>",
    ])


def _lineage(health: TaskHealth, reports: Path) -> str:
    """A link to the page of what the champion has learnt, where there is one."""
    page = f"lineage/{health.task}-{health.champion}.html"
    there = (reports / page).exists()
    return f' <small><a href="{_text(page)}">what version {health.champion} learnt</a></small>' if there else ""


def _tiles(health: TaskHealth, asked: Mapping[str, Any] | None, opened: Collection[str]) -> str:
    updated, plain = pooled(health.lines, "champion"), pooled(health.lines, "baseline")
    lead = (updated - plain) / plain if plain > 0 else math.nan
    newest = health.decisions[0] if health.decisions else None
    refused = f", {health.refused_in_a_row} in a row" if health.refused_in_a_row > 1 else ""
    due = asked if asked and (health.retrained is None or asked["at"] > health.retrained.isoformat()) else None
    tiles = [
        ("Serves", f"version {health.champion}" if health.champion else "nothing",
         f"to roll back to: {health.previous}" if health.previous else "nothing to roll back to",
         ("no-champion", "forgotten", "cannot-score")),
        ("Fresh", _behind(health.hours_behind), f"knows rows up to {_time(health.newest_known)}",
         ("behind", "aging", "unknown-items")),
        ("Against the baseline", _NO_NUMBER if math.isnan(lead) else f"{lead:+.0%}",
         f"{_number(updated)} beside {_number(plain)}, last {len(health.lines)} hours",
         ("below-baseline", "quality-fell")),
        ("Last decision", f"{newest['action']} {newest['version']}" if newest else "none",
         f"{_time(newest['decided_at'])}{refused}" if newest else "", ("refused",)),
        ("Full retrain", "asked for" if due else "not due",
         _time(datetime.fromisoformat(due["at"])) if due else f"last: {_time(health.retrained)}", ()),
    ]
    shown = "".join(
        f'<div{_marked(health.task, causes, opened)}><span>{_text(name)}</span><b>{_text(value)}</b>'
        f"<span>{_text(more)}</span></div>" for name, value, more, causes in tiles
    )
    return f'<section class="tiles" aria-label="State of {_text(health.task)}">{shown}</section>'


def _marked(task: str, causes: Sequence[str], opened: Collection[str]) -> str:
    return ' class="look"' if any(f"{cause}-{task}" in opened for cause in causes) else ""


def _quality(health: TaskHealth) -> str:
    windows = sorted({one.window for one in health.scored})
    if not windows:
        return "<section><h3>Quality on arrival</h3><p>No hour was scored yet.</p></section>"
    held = {(one.role, one.window): one.mean for one in health.scored}
    lines = [
        Line(words, _STYLES[role], [held.get((role, window), math.nan) for window in windows],
             _SMOOTHED_HOURS, faint=role == "champion")
        for role, words in ROLES.items() if any((role, window) in held for window in windows)
    ]
    said = f"Quality of {health.task} on each of {len(windows)} hours, before it was learnt: " + ", ".join(
        line.words for line in lines
    )
    fall = "" if health.fall is None or health.fall.loss < LOSS.settles else (
        f'<p class="count">The lead fell by {health.fall.loss:.1%}, noticed {_time(health.fall.seen)}.</p>'
    )
    return (
        f'<section><h3>Quality on arrival <small>each hour scored before it is learnt</small></h3>'
        f"{line_picture(lines, (_time(windows[0]), _time(windows[-1])), said)}{fall}</section>"
    )


def _aging(health: TaskHealth) -> str:
    if not health.aging:
        return (
            "<section><h3>Aging</h3><p>Not measured yet: it takes a dozen hours that a fresh model and an older one "
            "both were scored on.</p></section>"
        )
    bars = [
        Bar(
            _span(one.low_hours, one.high_hours), one.loss, f"{one.loss:+.1%}", bad=one.least >= LOSS.raises,
            note=f"± {1.96 * one.error:.1%}, {one.windows} hours",
        ) for one in health.aging
    ]
    return (
        "<section><h3>Aging <small>what a model loses without updates, by age</small></h3>"
        f"{bars_picture(bars, LOSS.raises)}</section>"
    )


def _answers(shifts: Sequence[Shift]) -> str:
    if not shifts:
        return ""
    return (
        "<section><h3>What it answers <small>the last day beside the same hours before</small></h3>"
        f"{_moved(shifts)}</section>"
    )


def _decisions(health: TaskHealth) -> str:
    if not health.decisions:
        return ""
    newest, older = health.decisions[:_DECISIONS_SHOWN], health.decisions[_DECISIONS_SHOWN:]
    more = f"<details><summary>{len(older)} before these</summary>{_decision_table(older)}</details>" if older else ""
    return f"<section><h3>Newest decisions</h3>{_decision_table(newest)}{more}</section>"


def _decision_table(decisions: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f'<tr><td class="short"><span class="badge {_BADGES.get(row["action"], "note")}">{_text(row["action"])}</span> '
        f'version {row["version"]}<span class="count">{_time(row["decided_at"])}, by {_text(row["who"])}</span></td>'
        f'<td>{_text((json.loads(row["reasons"]) or [""])[0])}</td></tr>' for row in decisions
    )
    return f'<table class="stack"><tbody>{rows}</tbody></table>'


# -- a feed -----------------------------------------------------------------------------------------------------


def _feed(health: FeedHealth, quarantined: Mapping[tuple[str, str], int], settings: Settings) -> str:
    if health.newest is None or not (any(health.hourly) or any(feed == health.feed for feed, _ in quarantined)):
        return ""
    ends = (f"{len(health.hourly)} hours ago", _time(health.newest))
    page = page_path(health.feed, [Window(health.newest)], settings.reports)
    link = f'<p><a href="{page.relative_to(settings.reports).as_posix()}">Checks of the newest hour</a></p>'
    came = (
        f"<section><h3>Rows an hour <small>{health.rows['published']:,} published in the last day, "
        f"{health.rows['quarantined']:,} quarantined, {health.rows['duplicates']:,} duplicates</small></h3>"
        f"{columns_picture(health.hourly, ends, f'Rows of {health.feed} published in each hour of the last week')}"
        f"{link if page.exists() else ''}</section>"
    )
    drifted = (
        "<section><h3>Drift <small>the last day beside the same hours before</small></h3>"
        f"{_moved(health.shifts)}</section>"
    ) if health.shifts else "<section><h3>Drift</h3><p>Too few rows or days to compare with.</p></section>"
    return "\n".join([
        f'<h2 class="of">Feed {_text(health.feed)}</h2>',
        f'<div class="two"><div>{came}{_strangers(health)}</div>'
        f"<div>{drifted}{_quarantine(health.feed, quarantined)}</div></div>",
    ])


def _strangers(health: FeedHealth) -> str:
    if not health.strangers:
        return ""
    styles = ("own", "old", "plain", "own")
    lines = [
        Line(f"{name} {fmean(value for value in values if not math.isnan(value)):.1%}", style, values, _SMOOTHED_HOURS)
        for (name, values), style in zip(health.strangers.items(), styles, strict=False)
    ][:3]
    count = max(len(line.values) for line in lines)
    said = "Share of rows in each hour of the last week: " + ", ".join(line.words for line in lines)
    return (
        "<section><h3>New and unknown <small>share of an hour's rows</small></h3>"
        f"{line_picture(lines, (f'{count} hours ago', _time(health.newest)), said, '{:.1%}')}</section>"
    )


def _quarantine(feed: str, counts: Mapping[tuple[str, str], int]) -> str:
    here = {reason: number for (of, reason), number in counts.items() if of == feed}
    if not here:
        return "<section><h3>Quarantine</h3><p>Empty for the last week.</p></section>"
    most = max(here.values())
    rows = "".join(
        bar_row(f"<code>{_text(reason)}</code>", [f"{number:,}"], number / most)
        for reason, number in list(here.items())[:_REASONS_SHOWN]
    )
    more = len(here) - _REASONS_SHOWN
    return (
        f"<section><h3>Quarantine <small>{sum(here.values()):,} rows in the last week"
        f"{f', {more} rarer reasons not shown' if more > 0 else ''}</small></h3>"
        f'<table class="reasons"><tbody>{rows}</tbody></table></section>'
    )


def _moved(shifts: Sequence[Shift]) -> str:
    bars = []
    for one in shifts[:_COLUMNS_SHOWN]:
        name, before, after = max(one.grew, one.fell, key=lambda told: abs(told[2] - told[1]))
        bars.append(Bar(
            one.column, one.share, f"{one.share:.1%}", mark=one.usual, bad=one.exceeds(SHARE_MOVED.raises),
            note=f"{bin_in_words(one.column, name)}: {before:.1%} → {after:.1%}",
        ))
    return bars_picture(bars, SHARE_MOVED.raises, "usual")


def _behind(hours: float | None) -> str:
    if hours is None:
        return _NO_NUMBER
    return "up to date" if hours < 1 else f"{hours:.0f} h behind"


def _span(low_hours: float, high_hours: float) -> str:
    def said(hours: float) -> str:
        return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"

    return f"over {said(low_hours)}" if high_hours > 1e6 else f"{said(low_hours)} to {said(high_hours)}"


def _time(time: datetime | None) -> str:
    return _NO_NUMBER if time is None else f"{time:%Y-%m-%d %H:%M}"


def _number(value: float) -> str:
    return _NO_NUMBER if math.isnan(value) else f"{value:.3f}"


def _text(value: object) -> str:
    return html.escape(str(value))


_BADGES = {
    "promote": "pass", "first": "pass", "hold": "warn", "reject": "stop", "set-aside": "stop", "rollback": "rows",
    "force": "rows",
}

_STYLE = """
h2.of{font-size:1.3rem;margin:2rem 0 .2rem}
h3{font-size:1rem;margin:0 0 .4rem}
h3 small{font-weight:400;color:var(--soft);font-size:.88rem;display:block}
.two{display:grid;grid-template-columns:1fr 1fr;gap:0 1rem;align-items:start}
.wide{grid-template-columns:3fr 2fr}
.two section{margin:1rem 0 0}
.two>div{min-width:0}
.tiles{grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));margin-bottom:0}
.tiles span:first-child{font-size:.85rem}
.tiles b{font-size:1.35rem;padding:.1rem 0}
.tiles .look{border-color:var(--warn);box-shadow:inset .3rem 0 var(--warn)}
.breaches p.count{margin:0}
.reasons th[scope=row],.reasons .num{white-space:nowrap}
.reasons th:first-child,.reasons td:first-child,.measures th:first-child{padding-left:0}
.measures th[scope=row]{font-weight:400}
.stack td:first-child{padding-left:0}
.topics th[scope=row]{white-space:normal;width:55%;overflow-wrap:anywhere}
a{color:var(--rows)}
@media(max-width:52rem){.two,.wide{grid-template-columns:1fr}}
@media(max-width:42rem){.tiles{grid-template-columns:1fr 1fr;gap:.6rem}
.stack,.stack tbody,.stack tr,.stack td{display:block;width:100%}
.stack tr{border-top:1px solid var(--line);padding:.5rem 0}
.stack td{border:0;padding:.1rem 0}
.reasons th[scope=row]{white-space:normal;width:60%}
.reasons .bar{width:25%}}
"""
