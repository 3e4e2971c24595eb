"""What each task says of itself: its own measures, what customers write, which messages wait for a label, who they are.

Beside the first metric, which the health page shows over time, a task is judged by more (`Explained.measures`), and
some leave tables for people. All of it is read from the lake; `own_health_page.py` puts it into HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.lake import Lake
from pipeline.schema import TIME
from pipeline.surge import EVERYTHING, sentiment_by_day

_WANTED_DAYS = 7  # what an update named longer ago is no longer what would teach it most


@dataclass(frozen=True)
class Measure:
    """One metric of what the newest windows landed, before anything learnt it; means over their examples.

    Attributes:
        metric, words: its name, and what it says.
        champion, baseline: the models' means; None: not scored.
        examples: how many the champion's is of.
    """

    metric: str
    words: str
    champion: float
    baseline: float | None
    examples: int


@dataclass(frozen=True)
class TopicDay:
    """Messages of one topic on one day (`YYYY-MM-DD`), and how many of them are negative."""

    topic: str
    day: str
    messages: int
    negative: int


@dataclass(frozen=True)
class OwnHealth:
    """What one task says of itself.

    Attributes:
        measures: all its metrics, the one shown first in front.
        topics: of the messages that it read, by day and topic, `EVERYTHING` too; two weeks up to the newest.
        wanted: messages of which the newest update that named some wants a person's label.
    """

    measures: tuple[Measure, ...] = ()
    topics: tuple[TopicDay, ...] = ()
    wanted: int = 0


def own_health(lake: Lake, task: str, words: Mapping[str, str], windows: Sequence[datetime]) -> OwnHealth:
    """What a task says of itself.

    Args:
        lake: of the installation.
        task: its name.
        words: metric -> what it says, for people.
        windows: whose scores count: the last day's that were scored.
    """
    if not windows:
        return OwnHealth()
    return OwnHealth(_measures(lake, task, words, windows), _topics(lake, task), _wanted(lake, task, max(windows)))


def users_by_segment(lake: Lake) -> dict[str, int]:
    """Segment -> users with a profile, most first."""
    counted = lake.arrow("user_profiles", columns=["segment"]).group_by("segment").aggregate([([], "count_all")])
    found = {row["segment"]: int(row["count_all"]) for row in counted.to_pylist()}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _measures(
    lake: Lake, task: str, words: Mapping[str, str], windows: Sequence[datetime]
) -> tuple[Measure, ...]:
    rows = lake.arrow("quality", columns=["window", "role", "metric", "mean", "examples", "challenger"], filter=(
        (ds.field("task") == task) & (ds.field("scored_on") == "window")
        & (ds.field("window") >= pa.scalar(min(windows), TIME))
    ))
    sql = duckdb.connect()
    sql.execute("SET TimeZone = 'UTC'")
    sql.register("scored", rows)
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for metric, role, mean, examples in sql.execute(
        """WITH first AS (SELECT * FROM scored
                          QUALIFY row_number() OVER (PARTITION BY "window", role, metric ORDER BY challenger) = 1)
           SELECT metric, role, sum(mean * examples) / sum(examples), sum(examples) FROM first
           WHERE role IN ('champion', 'baseline') GROUP BY ALL HAVING sum(examples) > 0 ORDER BY ALL"""
    ).fetchall():
        found.setdefault(metric, {})[role] = (float(mean), int(examples))
    order = [*(one for one in words if one in found), *(one for one in found if one not in words)]
    return tuple(
        Measure(name, words.get(name, name), *found[name]["champion"][:1],
                found[name]["baseline"][0] if "baseline" in found[name] else None, found[name]["champion"][1])
        for name in order if "champion" in found[name]
    )


def _topics(lake: Lake, task: str) -> tuple[TopicDay, ...]:
    days: dict[tuple[str, str], tuple[int, int]] = {}
    for day, topic, counts in sentiment_by_day(lake, task):
        for name in (EVERYTHING, topic):
            messages, negative = days.get((name, day), (0, 0))
            days[name, day] = (messages + sum(counts.values()), negative + counts.get("negative", 0))
    return tuple(TopicDay(topic, day, *counts) for (topic, day), counts in sorted(days.items()))


def _wanted(lake: Lake, task: str, newest: datetime) -> int:
    since = ds.field("hour") >= pa.scalar(newest - timedelta(days=_WANTED_DAYS), TIME)
    named = lake.arrow("labels_wanted", columns=["version", "message_id"], filter=(ds.field("task") == task) & since)
    if not len(named):
        return 0
    of_newest = named.filter(pc.equal(named["version"], pc.max(named["version"])))
    return int(pc.count_distinct(of_newest["message_id"]).as_py())
