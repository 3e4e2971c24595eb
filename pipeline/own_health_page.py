"""A task's own part of the health page, and that of the customers' profiles: HTML with its pictures inside."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from pipeline.own_health import Measure, OwnHealth, TopicDay
from pipeline.pictures import Line, bar_row, line_picture
from pipeline.surge import EVERYTHING

_NO_NUMBER = "–"


def own_sections(task: str, own: OwnHealth) -> str:
    """Measures, sentiment over time, messages that wait for a label; nothing where a task has none of them."""
    return "".join([_measures(own.measures), _sentiment(own.topics), _wanted(task, own.wanted)])


def users_section(segments: Mapping[str, int]) -> str:
    """How many users have a profile, by segment; nothing where there are none."""
    if not segments:
        return ""
    total, most = sum(segments.values()), max(segments.values())
    rows = "".join(
        bar_row(html.escape(name), [f"{count:,}"], count / most) for name, count in segments.items()
    )
    return (
        f'<h2 class="of">User profiles</h2><section><h3>{total:,} users <small>by segment; one of them: '
        "<code>python -m pipeline.user_profiles show USER</code></small></h3>"
        f'<table class="reasons"><tbody>{rows}</tbody></table></section>'
    )


def _measures(measures: Sequence[Measure]) -> str:
    if len(measures) < 2:  # the deciding one alone: the page shows it over time
        return ""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(one.words)}<span class="count">{html.escape(one.metric)}, '
        f'{one.examples:,} examples</span></th><td class="num">{one.champion:.3f}</td>'
        f'<td class="num">{_NO_NUMBER if one.baseline is None else f"{one.baseline:.3f}"}</td></tr>'
        for one in measures
    )
    return (
        "<section><h3>By all its measures <small>of the last day, before it was learnt; more is better</small></h3>"
        '<table class="measures"><thead><tr><th></th><th class="num">serves</th><th class="num">baseline</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></section>"
    )


def _sentiment(topics: Sequence[TopicDay]) -> str:
    if not topics:
        return ""
    days = sorted({one.day for one in topics})
    together = {one.day: one for one in topics if one.topic == EVERYTHING}
    shares = [together[day].negative / together[day].messages if day in together else math.nan for day in days]
    messages: dict[str, int] = {}
    negative: dict[str, int] = {}
    for one in topics:
        messages[one.topic] = messages.get(one.topic, 0) + one.messages
        negative[one.topic] = negative.get(one.topic, 0) + one.negative
    worst = sorted((name for name in messages if name != EVERYTHING), key=lambda name: -negative[name])
    share = {name: negative[name] / messages[name] for name in messages}
    rows = "".join(
        bar_row(
            f'{html.escape(name)}<span class="count">{messages[name]:,} messages</span>', [f"{share[name]:.0%}"],
            share[name],
        )
        for name in worst
    )
    said = f"Share of negative messages on each of {len(days)} days"
    return (
        "<section><h3>Negative messages <small>share of each day's, as the champion reads them</small></h3>"
        f'{line_picture([Line("all messages", "own", shares)], (days[0], days[-1]), said, "{:.0%}")}'
        f'<table class="reasons topics"><tbody>{rows}</tbody></table></section>'
    )


def _wanted(task: str, count: int) -> str:
    if not count:
        return ""
    return (
        f"<section><h3>Worth a person's label <small>{count} messages that the newest update names</small></h3>"
        f"<p><code>python -m pipeline.labels export wanted.csv --task {html.escape(task)}</code>, fill in the column "
        "<code>value</code>, and import it again: the next update learns it.</p></section>"
    )
