"""Small pictures for pages: lines, columns and bars as SVG and HTML that need no script, no network and no library.

Lines stretch with the page (their strokes do not), and all words stand outside the SVG, so that a picture reads the
same on a phone. Colours are the page's own, light or dark; lines differ by dash as well.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WIDTH, _HEIGHT = 600.0, 160.0  # of the SVG's own space; a page stretches it


@dataclass(frozen=True)
class Line:
    """A line of a picture.

    Attributes:
        words: what it shows.
        style: one of the styles of `STYLE`: `own`, `old`, `plain`.
        values: by place; nan: a gap.
        smooth: the mean of so many places (odd) is drawn; 1: the values themselves.
        faint: whether the values are drawn faintly behind it.
    """

    words: str
    style: str
    values: Sequence[float]
    smooth: int = 1
    faint: bool = False


def line_picture(lines: Sequence[Line], ends: tuple[str, str], said: str, form: str = "{:.2f}") -> str:
    """Lines over common places, with the highest and lowest value and both ends in words.

    Args:
        lines: of the same length.
        ends: what the first and the last place are.
        said: the picture in a sentence, for who does not see it.
        form: of the values beside it.
    """
    drawn = [(line, smoothed(line.values, line.smooth)) for line in lines]
    seen = [np.asarray(line.values, float) if line.faint else bold for line, bold in drawn]
    values = np.concatenate(seen or [np.zeros(0)])
    if not np.isfinite(values).any():
        return ""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    paths = "".join(
        (f'<path class="faint {line.style}" d="{_path(line.values, low, high)}"/>' if line.faint else "")
        + f'<path class="{line.style}" d="{_path(bold, low, high)}"/>'
        for line, bold in drawn
    )
    legend = "".join(
        f'<span><svg viewBox="0 0 24 8" aria-hidden="true"><path class="{line.style}" d="M0 4H24"/></svg>'
        f"{html.escape(line.words)}</span>" for line in lines
    )
    return (
        f'<figure class="lines"><div class="legend">{legend}</div><div class="plot">'
        f'<span class="high">{form.format(high - pad)}</span><span class="low">{form.format(low + pad)}</span>'
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(said, quote=True)}">{paths}</svg></div>'
        f'<figcaption><span>{html.escape(ends[0])}</span><span>{html.escape(ends[1])}</span></figcaption></figure>'
    )


def columns_picture(values: Sequence[float], ends: tuple[str, str], said: str) -> str:
    """A column for each value, from 0 to the highest."""
    if not len(values):
        return ""
    highest = max(*values, 1e-12)
    wide = _WIDTH / len(values)
    columns = "".join(
        f'<rect x="{place * wide:.1f}" width="{max(wide * 0.8, 0.6):.1f}" '
        f'y="{_HEIGHT * (1 - value / highest):.1f}" height="{_HEIGHT * value / highest:.1f}"/>'
        for place, value in enumerate(values)
    )
    return (
        f'<figure class="columns"><svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(said, quote=True)}">{columns}</svg>'
        f'<figcaption><span>{html.escape(ends[0])}</span><span>{html.escape(ends[1])}</span></figcaption></figure>'
    )


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        words: what it is of.
        value: its length, from 0; with `told` in words.
        mark: where what is usual ends; None: nowhere.
        bad: whether it is more than is allowed.
        note: what stands below.
    """

    words: str
    value: float
    told: str
    mark: float | None = None
    bad: bool = False
    note: str = ""


def bar_row(name: str, told: Sequence[str], share: float) -> str:
    """A row of a table: a name (HTML), its numbers in words, and a bar as long as `share` (0 to 1) of the column."""
    numbers = "".join(f'<td class="num">{html.escape(one)}</td>' for one in told)
    return (
        f'<tr><th scope="row">{name}</th>{numbers}'
        f'<td class="bar" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i></td></tr>'
    )


def bars_picture(bars: Sequence[Bar], allowed: float, marks: str = "") -> str:
    """A line for each bar on one scale, with where the allowed ends; `marks`: what a bar's own mark is, in words."""
    most = max([allowed * 1.25, *(bar.value for bar in bars), *(bar.mark or 0.0 for bar in bars)])
    rows = "".join(
        f'<tr class="{"bad" if bar.bad else ""}"><th scope="row">{html.escape(bar.words)}'
        f'{f"<span class=count>{html.escape(bar.note)}</span>" if bar.note else ""}</th>'
        f'<td class="num">{html.escape(bar.told)}</td><td class="track" aria-hidden="true"><div>'
        f'<i style="width:{100 * max(bar.value, 0) / most:.1f}%"></i>'
        f'<b style="left:{100 * allowed / most:.1f}%"></b>'
        f'{f"<u style=left:{100 * bar.mark / most:.1f}%></u>" if bar.mark is not None else ""}</div></td></tr>'
        for bar in bars
    )
    legend = (f'<p class="legend"><span><b class="key"></b>allowed</span>'
              f'{f"<span><u class=key></u>{html.escape(marks)}</span>" if marks else ""}</p>')
    return f'<table class="bars"><tbody>{rows}</tbody></table>{legend}'


def smoothed(values: Sequence[float], places: int) -> np.ndarray:
    """The mean of each value and those around it, `places` (odd) in all; nan where there is none."""
    given = np.asarray(values, float)
    there = np.isfinite(given)
    filled = np.where(there, given, 0.0)
    half = places // 2
    sums, counts = (
        np.convolve(column, np.ones(2 * half + 1))[half : half + len(given)] for column in (filled, there.astype(float))
    )
    return np.divide(sums, counts, out=np.full(len(given), np.nan), where=counts > 0)


def _path(values: Sequence[float] | np.ndarray, low: float, high: float) -> str:
    """An SVG path; a gap lifts the pen, a single place is a short stroke."""
    step = _WIDTH / max(len(values) - 1, 1)
    parts, pen = [], "M"
    for place, value in enumerate(values):
        if not np.isfinite(value):
            pen = "M"
            continue
        parts.append(f"{pen}{place * step:.1f} {_HEIGHT * (1 - (value - low) / (high - low)):.1f}")
        pen = "L"
    return " ".join(parts) + ("h1" if len(parts) == 1 else "")


STYLE = """
figure{margin:.4rem 0 0}
figcaption{display:flex;justify-content:space-between;color:var(--soft);font-size:.82rem}
.plot{position:relative;padding-left:2.9rem}
.plot .high,.plot .low{position:absolute;left:0;color:var(--soft);font-size:.82rem;
font-variant-numeric:tabular-nums}
.plot .high{top:0}.plot .low{bottom:0}
.lines figcaption{padding-left:2.9rem}
.lines .plot svg{display:block;width:100%;height:11rem;border-left:1px solid var(--line);
border-bottom:1px solid var(--line)}
.columns svg{display:block;width:100%;height:3.2rem;border-bottom:1px solid var(--line)}
.columns rect{fill:var(--bar)}
path{fill:none;stroke-width:2.2;vector-effect:non-scaling-stroke;stroke-linejoin:round}
path.own{stroke:var(--pass)}
path.old{stroke:var(--warn);stroke-dasharray:7 4}
path.plain{stroke:var(--soft);stroke-dasharray:2 3}
path.faint{stroke-width:1;opacity:.32;stroke-dasharray:none}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:.2rem 0 .5rem;font-size:.88rem;color:var(--soft)}
.legend svg{width:1.6rem;height:.6rem;margin-right:.35rem;vertical-align:middle}
.bars{table-layout:fixed}
.bars th{font-weight:400;width:48%}
.bars .num{width:4.2rem;white-space:nowrap}
.bars tr:first-child>*{border-top:0}
.bars td,.bars th{padding:.3rem .6rem .3rem 0}
.bars .track div{position:relative;height:1.1rem;margin-top:.2rem}
.bars i{display:block;height:100%;background:var(--bar);border-radius:.2rem;min-width:2px}
.bars .bad i{background:var(--stop)}
.bars .bad th,.bars .bad .num{color:var(--stop);font-weight:600}
.track b,.track u{position:absolute;top:-.15rem;bottom:-.15rem;width:0;border-left:2px solid var(--ink)}
.track u{border-left:2px dotted var(--soft)}
.key{display:inline-block;height:.9rem;width:0;border-left:2px solid var(--ink);margin-right:.4rem;
vertical-align:-.1rem}
u.key{border-left:2px dotted var(--soft)}
"""
