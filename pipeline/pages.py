"""The page of a check: what a person opens to see whether an hour was published, what was wrong, and what to do.

One static HTML file without any network: styles are inside, there is no script, and it reads on a phone, in light
and in dark. Great Expectations' own Data Docs take their styles from the network and know nothing of remedies.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.pictures import bar_row
from pipeline.window import Window

_COUNTS = (
    ("rows_in", "rows in"),
    ("passed", "passed the check"),
    ("quarantined", "quarantined"),
    ("duplicates", "duplicates, counted once"),
    ("late", "late, counted in their hour"),
)
_ABOUT = {"window": "The window", "table": "The table's shape", "rows": "Single rows"}
_REASON = "reason."  # prefix of the counts that are rows in quarantine by reason
_WINDOWS_NAMED = 6  # of a bulk load's windows in one line; the window log has them all


@dataclass(frozen=True)
class _Line:
    """One expectation as this page shows it: its result narrowed to the page's windows."""

    result: Mapping[str, Any]
    windows: tuple[str, ...]  # failing windows, for expectations about windows

    @property
    def failed(self) -> int:
        return len(self.windows) if self.result["about"] == "window" else int(self.result["failed"])

    @property
    def state(self) -> str:
        """`pass`, `stop`, `warn`, `rows` (moved to quarantine) or `note`."""
        if not self.failed:
            return "pass"
        if self.result["severity"] == "info":
            return "note"
        if self.result["about"] == "rows":
            return "rows"
        return "stop" if self.result["severity"] == "critical" else "warn"


def page_path(feed: str, windows: Sequence[Window], folder: Path) -> Path:
    """Where the page lies: by day and hour for one window, `bulk-<first>-<last>.html` for many."""
    if len(windows) == 1:
        return folder / "quality" / feed / f"{windows[0].folder}.html"
    first, last = (window.start.strftime("%Y-%m-%dT%HZ") for window in (windows[0], windows[-1]))
    return folder / "quality" / feed / f"bulk-{first}-{last}.html"


def write_page(
    feed: str, windows: Sequence[Window], checked_results: Mapping[str, Any], counts: Mapping[str, int], folder: Path
) -> Path:
    """Writes the page of a check, in the place of an older one, and returns its path.

    Args:
        feed: the feed's name.
        windows: the windows that were checked, in order, at least one.
        checked_results: `quality.Checked.results`; of several chunks: one page each.
        counts: `rows_in`, `passed`, `quarantined`, `duplicates`, and `reason.<name>` for each reason of the
            quarantine (those of the check are taken from its results where they are not given).
        folder: the reports' folder; the page lies below `quality/`.
    """
    path = page_path(feed, windows, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(page(feed, windows, checked_results, counts), encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def page(
    feed: str, windows: Sequence[Window], checked_results: Mapping[str, Any], counts: Mapping[str, int]
) -> str:
    """The page's HTML; arguments as for `write_page`."""
    here = {str(window) for window in windows}
    lines = [
        _Line(result, tuple(name for name in result.get("windows", ()) if name in here))
        for result in checked_results["expectations"]
    ]
    span = str(windows[0]) if len(windows) == 1 else f"{windows[0]} to {windows[-1]} ({len(windows):,} windows)"
    title = f"{feed} · {span}"
    body = [
        '<header><p class="crumb">Evergreen · quality of landed data</p>'
        f"<h1>{_text(feed)}</h1><p>{_text(span)}</p></header>",
        _verdict(lines, windows, counts),
        _tiles({"late": checked_results["late"], **counts}),
        _reasons(checked_results, counts),
        *(_section(about, [line for line in lines if line.result["about"] == about]) for about in _ABOUT),
        _left_out(checked_results["left_out"]),
    ]
    return document(title, body)


def document(title: str, body: Sequence[str], style: str = "") -> str:
    """A whole HTML page in Evergreen's style and more `style`; `body` is its sections' HTML, empty ones passed over."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{_text(title)}</title><style>{_STYLE}{style}</style></head>\n<body><main>\n'
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _verdict(lines: Sequence[_Line], windows: Sequence[Window], counts: Mapping[str, int]) -> str:
    """The banner: published or stopped in words, then every breach with what was seen and what to do."""
    stops = [line for line in lines if line.state == "stop"]
    warnings = [line for line in lines if line.state == "warn"]
    stopped = {name for line in stops for name in (line.windows or map(str, windows))}
    if len(stopped) == len(windows):
        kind, sign, words = "stop", "✕", "Stopped: nothing of this was published; table and model are as before"
    elif stopped:
        kind, sign = "stop", "✕"
        words = f"Stopped: {len(stopped):,} of {len(windows):,} windows; the others were published"
    elif warnings:
        kind, sign = "warn", "!"
        words = f"Published with {len(warnings)} warning{'s' if len(warnings) > 1 else ''}"
    else:
        kind, sign, words = "pass", "✓", "Published"
    lead = f"{counts['passed']:,} of {counts['rows_in']:,} rows passed the check{_aside(counts)}"
    return (
        f'<section class="verdict {kind}" aria-label="Verdict">'
        f'<h2><span class="sign" aria-hidden="true">{sign}</span>'
        f"{_text(words)}</h2><p>{_text(lead)}</p>{_breaches([*stops, *warnings])}</section>"
    )


def _aside(counts: Mapping[str, int]) -> str:
    parts = [
        f"{counts[key]:,} {word}" for key, word in (("quarantined", "cannot be used"), ("duplicates", "are duplicates"))
        if counts.get(key)
    ]
    return f"; {' and '.join(parts)}." if parts else "."


def _breaches(lines: Sequence[_Line]) -> str:
    if not lines:
        return ""
    return '<ul class="breaches">' + "".join(
        f"<li><p><b>{_text(_STATE[line.state][1].capitalize())}: <code>{_text(line.result['rule'])}</code></b>"
        f"{_where(line)}</p>"
        f"<dl><dt>Seen</dt><dd>{_examples(line) or 'no example'}</dd>"
        f"<dt>Allowed</dt><dd>{_text(line.result['allowed'])}</dd>"
        f"<dt>What to do</dt><dd>{_text(line.result['remedy'])}</dd></dl></li>"
        for line in lines
    ) + "</ul>"


def _where(line: _Line) -> str:
    if len(line.windows) < 2:
        return ""
    named = ", ".join(line.windows[:_WINDOWS_NAMED])
    more = len(line.windows) - _WINDOWS_NAMED
    return f" in {_text(named)}" + (f" and {more:,} more" if more > 0 else "")


def _tiles(counts: Mapping[str, int]) -> str:
    return '<section class="tiles" aria-label="Counts">' + "".join(
        f"<div><b>{counts.get(key, 0):,}</b><span>{word}</span></div>" for key, word in _COUNTS
    ) + "</section>"


def _reasons(results: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """Rows in quarantine by reason: those of landing and cleaning from `counts`, those of the rules from the check."""
    said = {key.removeprefix(_REASON): number for key, number in counts.items() if key.startswith(_REASON)}
    reasons = dict(results["rejected"]) | said
    reasons = {reason: number for reason, number in reasons.items() if number}
    if not reasons:
        return ""
    most = max(reasons.values())
    rows = "".join(
        bar_row(f"<code>{_text(reason)}</code>", [f"{number:,}"], number / most)
        for reason, number in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    )
    return (
        '<section><h2>In quarantine, by reason</h2><table class="reasons"><thead><tr><th scope="col">Reason</th>'
        f'<th scope="col" class="num">Rows</th><th scope="col"><span class="hidden">Share</span></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></section>"
    )


def _section(about: str, lines: Sequence[_Line]) -> str:
    if not lines:
        return ""
    failed = sum(line.state != "pass" for line in lines)
    said = f"{len(lines)} rules, {failed} with findings" if failed else f"{len(lines)} rules, all kept"
    ordered = sorted(lines, key=lambda line: line.state == "pass")  # stable: file order within
    head = "".join(f'<th scope="col">{word}</th>' for word in ("Result", "Rule", "Allowed", "Seen"))
    return (
        f'<section><h2>{_ABOUT[about]} <small>{said}</small></h2><table class="rules"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(_row(line) for line in ordered)}</tbody></table></section>"
    )


def _row(line: _Line) -> str:
    result = line.result
    sign, word = _STATE[line.state]
    alone = result["about"] == "window" and result["of_windows"] == 1
    counted = "" if alone or result["about"] == "table" else (
        f'<span class="count">{line.failed:,} of {result["checked"]:,} '
        f"{'windows' if result['about'] == 'window' else 'rows'}</span>"
    )
    condition = f"<span class=\"count\">where {_text(result['condition'])}</span>" if result["condition"] else ""
    return (
        f'<tr class="{line.state}"><td data-label="Result"><span class="badge {line.state}">'
        f'<span aria-hidden="true">{sign}</span> {word}</span>'
        f'<span class="count">{_text(result["severity"])}</span></td>'
        f'<td data-label="Rule"><code>{_text(result["rule"])}</code>{condition}'
        f"<details><summary>Why, and what to do</summary><p>{_text(result['why'])}</p>"
        f"<p><b>What to do:</b> {_text(result['remedy'])}</p></details></td>"
        f'<td data-label="Allowed">{_text(result["allowed"])}</td>'
        f'<td data-label="Seen">{counted}{_examples(line)}</td></tr>'
    )


def _examples(line: _Line) -> str:
    """The examples, without those of other pages' windows."""
    examples = line.result["examples"]
    if line.windows and line.result["of_windows"] > 1:
        examples = [text for text in examples if text.split(": ")[0] in line.windows]
    return "".join(f'<span class="example">{_text(text)}</span>' for text in examples)


def _left_out(rules: Sequence[str]) -> str:
    if not rules:
        return ""
    named = ", ".join(f"<code>{_text(rule)}</code>" for rule in rules)
    return (
        "<section><h2>Left out</h2><p>This shop does not deliver the columns that these rules are about "
        f"(EVERGREEN_ABSENT_COLUMNS): {named}.</p></section>"
    )


_STATE = {  # sign and word: colour is never the only signal
    "pass": ("✓", "kept"),
    "stop": ("✕", "stopped"),
    "warn": ("!", "warning"),
    "rows": ("→", "rows moved"),
    "note": ("i", "noted"),
}

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f5;--card:#fff;--ink:#1b211d;--soft:#59625c;--line:#dde2dd;--bar:#8aa394;
--pass:#17663a;--pass-bg:#e4f3e9;--warn:#7a4b00;--warn-bg:#fdf0d5;--stop:#a11a1a;--stop-bg:#fce4e2;
--rows:#1d4f8c;--rows-bg:#e4eefb;--note:#4a5350;--note-bg:#e9edea}
@media(prefers-color-scheme:dark){:root{--bg:#131714;--card:#1c211e;--ink:#e7ebe8;--soft:#a3ada6;--line:#333b36;
--bar:#5f7a6a;--pass:#7fd6a0;--pass-bg:#16301f;--warn:#f2c46d;--warn-bg:#382a0d;--stop:#ff9d96;--stop-bg:#40191a;
--rows:#9cc6f7;--rows-bg:#16283f;--note:#b9c3bd;--note-bg:#29302c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:68rem;margin:0 auto;padding:1.25rem 1rem 3rem}
header h1{margin:0;font-size:1.75rem;line-height:1.2}
header p{margin:.15rem 0;color:var(--soft)}
.crumb{font-size:.85rem}
h2{font-size:1.15rem;margin:0 0 .6rem}
h2 small{font-weight:400;color:var(--soft);font-size:.9rem;margin-left:.4rem}
section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem;margin:1rem 0}
.verdict{border-left-width:.4rem;overflow-wrap:anywhere}
.verdict h2{font-size:1.3rem;display:flex;gap:.6rem;align-items:baseline;margin:0}
.verdict>p{margin:.25rem 0 0}
.verdict.pass{border-color:var(--pass);background:var(--pass-bg)}
.verdict.warn{border-color:var(--warn);background:var(--warn-bg)}
.verdict.stop{border-color:var(--stop);background:var(--stop-bg)}
.verdict.pass .sign{color:var(--pass)}
.verdict.warn .sign{color:var(--warn)}
.verdict.stop .sign{color:var(--stop)}
.breaches{list-style:none;margin:.8rem 0 0;padding:0}
.breaches li{background:var(--card);border-radius:.4rem;padding:.7rem .8rem;margin:.5rem 0}
.breaches p{margin:0 0 .3rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem .9rem;margin:0}
dt{color:var(--soft)}
dd{margin:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.8rem;background:none;border:0;
padding:0}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem}
.tiles b{display:block;font-size:1.5rem;line-height:1.2;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:.9rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.5rem .6rem;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--soft);font-weight:600;font-size:.85rem}
.num{text-align:right;font-variant-numeric:tabular-nums}
.reasons th[scope=row]{font-weight:400}
.reasons th,.reasons td{width:1%;white-space:nowrap}
.reasons .bar{width:98%}
.bar i{display:block;height:.7rem;margin-top:.4rem;border-radius:.2rem;background:var(--bar);min-width:2px}
.rules{table-layout:fixed}
.rules th:nth-child(1){width:8.5rem}
.rules th:nth-child(2){width:34%}
.rules th:nth-child(3){width:24%}
code{font:.9em ui-monospace,"SF Mono",Menlo,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
td,dd{overflow-wrap:anywhere}
.badge{display:inline-block;padding:.05rem .5rem;border-radius:1rem;font-size:.88rem;font-weight:600;
white-space:nowrap}
.badge.pass{color:var(--pass);background:var(--pass-bg)}
.badge.warn{color:var(--warn);background:var(--warn-bg)}
.badge.stop{color:var(--stop);background:var(--stop-bg)}
.badge.rows{color:var(--rows);background:var(--rows-bg)}
.badge.note{color:var(--note);background:var(--note-bg)}
.wide{overflow-x:auto}
.wide td{overflow-wrap:break-word}
.count{display:block;color:var(--soft);font-size:.88rem}
.example{display:block;font-size:.92rem}
details{font-size:.92rem;margin-top:.2rem}
summary{cursor:pointer;color:var(--soft)}
details p{margin:.3rem 0}
.short{white-space:nowrap}.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
@media(max-width:42rem){.rules thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.rules,.rules tbody,.rules tr,.rules td{display:block;width:100%}
.rules tr{border-top:1px solid var(--line);padding:.6rem 0}
.rules td{border:0;padding:.15rem 0}
.rules td[data-label=Allowed]::before,.rules td[data-label=Seen]::before{content:attr(data-label) ": ";
color:var(--soft)}
.rules .badge+.count{display:inline;margin-left:.5rem}
dl{grid-template-columns:1fr;gap:0}
dt{margin-top:.3rem}
.reasons th,.reasons td{white-space:normal}}
@media print{body{background:#fff}
section{break-inside:avoid}}
"""
