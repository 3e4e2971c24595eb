"""When negative messages surge beyond what chance explains, and sentiment per topic over time.

    python -m pipeline.surge        # sentiment per topic and day, and what is a surge now

An hour has few messages and their share of negative ones sways, so no single hour decides. A CUSUM (Page 1954) adds up
hour by hour how much likelier the counts are under a raised share than under the usual one, never below zero, and
alerts where that sum passes log(hours of a year): then the mean time to a false alarm is at least a year of hours,
whatever the volume (Lorden, Annals of Mathematical Statistics 1971). Every topic is watched beside all messages
together: these have half of the budget, the topics share the rest. Counts of an hour are beta-binomial: customers of
one broken parcel service write in the same hour, and chance must be allowed that much.

The usual share is that of the same hour of the day in the four weeks before the last two days. A share that stays
raised for longer than that becomes the usual one, and the alert settles: it is news only once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import lgamma, log

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.alerts import open_alerts, raise_alert, settle_alert
from pipeline.lake import Lake, open_lake
from pipeline.schema import TIME
from pipeline.settings import Settings, SettingsError, read_settings

FALSE_ALARMS_PER_YEAR = 1.0
HOURS_PER_YEAR = 8766.0
RECENT_HOURS, USUAL_HOURS = 48, 28 * 24  # a weekday and its hours occur four times in the usual
# The alternative is less than the doubling that must be found: a model that errs in a tenth of the messages sees a
# doubled share as times 1.6 to 1.8.
RAISED = 1.7
_MOST_RAISED = 0.95
_SHRINK = 400.0  # messages: they tell a share of a fifth to two points, about what an hour of the day differs by
_LEAST_NEGATIVE = 30  # usual messages: the usual share is known to a fifth of itself
_MOST_DISPERSION = 0.2
_CAP = 1.5  # times the bound: a surge that has ended settles within hours, however long it was
EVERYTHING = "all messages"


@dataclass(frozen=True)
class Surge:
    """One stream of messages that has more negative ones than chance explains.

    Attributes:
        since: index of the hour, among those judged, from which on the sum has risen.
        negative, messages: in the hours since.
        usual: the usual share.
    """

    since: int
    negative: int
    messages: int
    usual: float


def surge_conditions(lake: Lake, task: str) -> dict[str, str]:
    """Condition -> sentence, of the surges that the task's readings show at their newest hour."""
    counts = hourly_counts(lake, task)
    found = {}
    for topic, (messages, negative) in counts.items():
        surge = surging(messages, negative, 2 if topic == EVERYTHING else 2 * (len(counts) - 1))
        if surge is not None:
            hours = RECENT_HOURS - surge.since
            found[f"surge-{task}-{topic}"] = (
                f"{task}: of {topic} {surge.negative} of {surge.messages} messages in the last {hours} h are negative, "
                f"usually {surge.usual:.0%} are; chance alone would raise this alert {FALSE_ALARMS_PER_YEAR:.0f} time "
                "a year. Read them (table readings), find what broke, and tell those who answer."
            )
    return found


def tell_surges(lake: Lake, settings: Settings, at: datetime) -> list[str]:
    """Raises an alert for each surge that has begun, settles those that are over; the sentences of those that last."""
    found = {name: text for task in settings.tasks for name, text in surge_conditions(lake, task).items()}
    for name in sorted({one["condition"] for one in open_alerts(settings)} - set(found)):
        if name.startswith("surge-"):
            settle_alert(settings, name, at)
    for name, text in found.items():
        raise_alert(settings, name, text, at)
    return list(found.values())


def surging(messages: np.ndarray, negative: np.ndarray, parts: int = 1) -> Surge | None:
    """Whether the newest hour of a stream is within a surge.

    Args:
        messages, negative: [RECENT_HOURS + USUAL_HOURS] int, by hour, oldest first; the last `RECENT_HOURS` are judged
            by those before.
        parts: the stream has this part of the budget of false alarms.
    """
    usual = _usual(messages[:-RECENT_HOURS], negative[:-RECENT_HOURS])
    if usual is None:
        return None
    shares, dispersion = usual
    judged, of_those = messages[-RECENT_HOURS:].tolist(), negative[-RECENT_HOURS:].tolist()
    bound = log(HOURS_PER_YEAR * parts / FALSE_ALARMS_PER_YEAR)
    total, since, alarmed = 0.0, 0, False
    for hour, (n, k) in enumerate(zip(judged, of_those, strict=True)):
        if total <= 0.0:
            total, since, alarmed = 0.0, hour, False
        share = shares[hour % 24]
        if n:
            raised = min(RAISED * share, max(_MOST_RAISED, share))
            total += _log_chance(k, n, raised, dispersion) - _log_chance(k, n, share, dispersion)
        total = min(total, _CAP * bound)
        alarmed = alarmed or total >= bound
    if not alarmed or total <= 0.0:
        return None
    seen = sum(judged[since:])
    expected = sum(n * shares[(since + place) % 24] for place, n in enumerate(judged[since:]))
    return Surge(since, sum(of_those[since:]), seen, expected / seen)


def _usual(messages: np.ndarray, negative: np.ndarray) -> tuple[list[float], float] | None:
    """The usual share by hour of the day [24], and how much more it sways than a coin would.

    The second is the intraclass correlation, by moments. None: too few messages to say.
    """
    total, found = int(messages.sum()), int(negative.sum())
    if found < _LEAST_NEGATIVE or total == found:
        return None
    days = len(messages) // 24
    by_hour = messages.reshape(days, 24).sum(axis=0), negative.reshape(days, 24).sum(axis=0)
    shares = (by_hour[1] + _SHRINK * found / total) / (by_hour[0] + _SHRINK)
    share = np.tile(shares, days)
    spread = float(((negative - messages * share) ** 2 / (share * (1.0 - share))).sum())
    pairs = float((messages * (messages - 1)).sum())
    dispersion = (spread - total) / pairs if pairs else 0.0
    return shares.tolist(), min(max(dispersion, 0.0), _MOST_DISPERSION)


def _log_chance(k: int, n: int, share: float, dispersion: float) -> float:
    """The log-chance of k of n, beta-binomial, less the part that does not depend on the share."""
    if dispersion < 1e-6:
        return k * log(share) + (n - k) * log(1.0 - share)
    total = 1.0 / dispersion - 1.0
    a, b = share * total, (1.0 - share) * total
    return lgamma(k + a) + lgamma(n - k + b) - lgamma(a) - lgamma(b)


def hourly_counts(lake: Lake, task: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Topic -> messages and negative ones by hour [hours] int64 up to the newest reading; first of all EVERYTHING.

    Of several readings of one message the highest version's counts. Empty where nothing was read.
    """
    newest = _newest_hour(lake, task)
    if newest is None:
        return {}
    hours = RECENT_HOURS + USUAL_HOURS
    since = newest - timedelta(hours=hours - 1)
    rows = _grouped(lake, task, since, "date_diff('hour', $since, hour) AS place")
    counts: dict[str, tuple[np.ndarray, np.ndarray]] = {
        EVERYTHING: (np.zeros(hours, np.int64), np.zeros(hours, np.int64))
    }
    for place, topic, sentiment, count in rows:
        for stream in (EVERYTHING, topic):
            messages, negative = counts.setdefault(stream, (np.zeros(hours, np.int64), np.zeros(hours, np.int64)))
            messages[place] += count
            negative[place] += count if sentiment == "negative" else 0
    return counts


def sentiment_by_day(lake: Lake, task: str, days: int = 14) -> list[tuple[str, str, Mapping[str, int]]]:
    """(day, topic, sentiment -> messages) of the newest days, by day and topic."""
    newest = _newest_hour(lake, task)
    if newest is None:
        return []
    since = newest.replace(hour=0) - timedelta(days=days - 1)
    found: dict[tuple[str, str], dict[str, int]] = {}
    for day, topic, sentiment, count in _grouped(lake, task, since, "strftime(hour, '%Y-%m-%d') AS place"):
        found.setdefault((day, topic), {})[sentiment] = count
    return [(day, topic, counts) for (day, topic), counts in sorted(found.items())]


def _newest_hour(lake: Lake, task: str) -> datetime | None:
    import pyarrow.compute as pc

    hours = lake.arrow("readings", columns=["hour"], filter=ds.field("task") == task)["hour"]
    newest: datetime | None = pc.max(hours).as_py()
    return newest


def _grouped(lake: Lake, task: str, since: datetime, place: str) -> list[tuple]:
    readings = lake.arrow("readings", filter=(ds.field("task") == task) & (ds.field("hour") >= pa.scalar(since, TIME)))
    sql = duckdb.connect()
    sql.execute("SET TimeZone = 'UTC'")
    sql.register("readings", readings)
    newest = "SELECT * FROM readings QUALIFY row_number() OVER (PARTITION BY message_id ORDER BY version DESC) = 1"
    query = f"SELECT {place}, topic, sentiment, count(*) FROM ({newest}) GROUP BY ALL ORDER BY ALL"
    return sql.execute(query, {"since": since} if "$since" in query else None).fetchall()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints sentiment per topic and day of the task `sentiment`, and what is a surge now."""
    from rich.console import Console
    from rich.table import Table

    argparse.ArgumentParser(
        prog="python -m pipeline.surge",
        description="Prints sentiment per topic and day of the newest two weeks, and what is a surge now. The "
        "installation is the one of the environment's EVERGREEN_* variables.",
    ).parse_args(arguments)
    try:
        lake, console = open_lake(read_settings()), Console(markup=False)
    except SettingsError as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False)
        return 1
    table = Table("day", "topic", "messages", "negative", "neutral", "positive")
    for day, topic, counts in sentiment_by_day(lake, "sentiment"):
        shares = [f"{counts.get(name, 0) / sum(counts.values()):.0%}" for name in ("negative", "neutral", "positive")]
        table.add_row(day, topic, str(sum(counts.values())), *shares)
    console.print(table)
    for sentence in surge_conditions(lake, "sentiment").values() or ["No surge of negative messages."]:
        console.print(sentence, highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
