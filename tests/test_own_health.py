"""What a task says of itself on the health page: measures, sentiment by topic, labels wanted; and users by segment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.lake import Lake, open_lake
from pipeline.own_health import Measure, OwnHealth, TopicDay, own_health
from pipeline.own_health_page import own_sections, users_section
from pipeline.surge import EVERYTHING
from tests.small_shop import hour, settings_of

HOURS = [hour(number).start for number in range(3)]
WORDS = {"accuracy": "told <rightly>", "macro_recall": "each class alike"}


def score(number: int, role: str, metric: str, mean: float, examples: int, challenger: int = 2) -> dict[str, object]:
    return {
        "task": "sentiment", "scored_on": "window", "window": HOURS[number], "role": role, "model_version": 1,
        "metric": metric, "mean": mean, "low": mean, "high": mean, "examples": examples, "challenger": challenger,
    }


def reading(name: str, topic: str, sentiment: str, version: int = 1, days: int = 0) -> dict[str, object]:
    return {
        "task": "sentiment", "version": version, "message_id": name, "hour": HOURS[0] + timedelta(days=days),
        "topic": topic, "sentiment": sentiment, "confidence": 0.9,
    }


def wish(name: str, version: int) -> dict[str, object]:
    return {
        "task": "sentiment", "version": version, "message_id": name, "hour": HOURS[0], "kind": "sentiment",
        "guess": "neutral", "confidence": 0.4, "rank": 1,
    }


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = open_lake(settings_of(tmp_path))
    lake.append("quality", pa.Table.from_pylist([
        score(0, "champion", "accuracy", 0.5, 10), score(1, "champion", "accuracy", 0.8, 20),
        score(1, "champion", "accuracy", 0.1, 20, challenger=3),  # scored again by a later update: the first counts
        score(1, "baseline", "accuracy", 0.4, 20), score(1, "champion", "macro_recall", 0.6, 20),
        score(1, "never_updated", "accuracy", 0.0, 20), score(1, "champion", "unheard of", 1.0, 20),
    ]))
    lake.append("readings", pa.Table.from_pylist([
        reading("a", "parcels", "negative"), reading("b", "parcels", "positive"), reading("c", "sizes", "neutral"),
        reading("c", "sizes", "negative", version=2), reading("d", "sizes", "positive", days=1),
    ]))
    lake.append("labels_wanted", pa.Table.from_pylist([wish("a", 1), wish("b", 2), wish("c", 2)]))
    return lake


def test_each_metric_is_the_mean_over_the_examples_of_its_first_scores(lake: Lake) -> None:
    assert own_health(lake, "sentiment", WORDS, HOURS).measures == (
        Measure("accuracy", "told <rightly>", pytest.approx(0.7), pytest.approx(0.4), 30),
        Measure("macro_recall", "each class alike", pytest.approx(0.6), None, 20),
        Measure("unheard of", "unheard of", 1.0, None, 20),
    )
    assert own_health(lake, "sentiment", WORDS, HOURS[1:]).measures[0].champion == pytest.approx(0.8)


def test_topics_by_day_have_each_message_once_as_the_newest_version_read_it(lake: Lake) -> None:
    first, second = f"{HOURS[0]:%Y-%m-%d}", f"{HOURS[0] + timedelta(days=1):%Y-%m-%d}"
    assert own_health(lake, "sentiment", WORDS, HOURS).topics == (
        TopicDay(EVERYTHING, first, 3, 2), TopicDay(EVERYTHING, second, 1, 0), TopicDay("parcels", first, 2, 1),
        TopicDay("sizes", first, 1, 1), TopicDay("sizes", second, 1, 0),
    )


def test_the_newest_updates_wishes_are_counted_and_a_task_without_scores_says_nothing(lake: Lake) -> None:
    assert own_health(lake, "sentiment", WORDS, HOURS).wanted == 2
    assert own_health(lake, "support", WORDS, HOURS) == OwnHealth()
    assert own_health(lake, "sentiment", WORDS, []) == OwnHealth()


def test_the_page_shows_all_of_it_escaped_and_nothing_of_what_is_not_there(lake: Lake) -> None:
    page = own_sections("sentiment", own_health(lake, "sentiment", WORDS, HOURS))
    for part in ("told &lt;rightly&gt;", "0.700", "0.400", "30 examples", "parcels", "50%", "--task sentiment",
                 "2 messages", "<svg"):
        assert part in page, part
    assert "<rightly>" not in page
    assert own_sections("recommend", OwnHealth()) == "" and users_section({}) == ""
    assert "1,200 users" in users_section({"loyal": 1_000, "new": 200})
