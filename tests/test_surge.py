"""The alert on negative messages: quiet on chance, soon on a doubling, over when it is over, a message counts once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.alerts import open_alerts
from pipeline.lake import open_lake
from pipeline.schema import READINGS_SCHEMA
from pipeline.settings import Settings
from pipeline.surge import hourly_counts, main, sentiment_by_day, surge_conditions, surging, tell_surges
from tests.small_shop import settings_of

HOURS = 48 + 28 * 24
NEWEST = datetime(2026, 2, 10, 15, tzinfo=UTC)


def counts(share: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    messages = np.full(len(share), 100)
    return messages, np.random.default_rng(seed).binomial(messages, share)


def test_a_doubled_share_is_found_within_three_windows_and_chance_is_not_a_surge() -> None:
    share = np.full(HOURS, 0.2)
    assert surging(*counts(share)) is None
    share[-3:] = 0.4
    surge = surging(*counts(share))
    assert surge is not None
    assert surge.since >= 44
    assert 0.19 < surge.usual < 0.21
    assert surge.negative / surge.messages > 0.3


def test_it_is_over_hours_after_the_share_is_as_usual_again() -> None:
    share = np.full(HOURS, 0.2)
    share[-20:-8] = 0.5
    assert surging(*counts(share)) is None


def test_a_fall_of_the_share_and_too_few_messages_are_no_surge() -> None:
    share = np.full(HOURS, 0.2)
    share[-10:] = 0.02
    assert surging(*counts(share)) is None
    nothing = np.zeros(HOURS, int)
    nothing[-1] = 50
    assert surging(nothing, nothing) is None


def test_an_hour_of_the_day_that_is_always_bad_is_usual() -> None:
    share = np.tile(np.where(np.arange(24) == 23, 0.6, 0.1), HOURS // 24)
    assert surging(*counts(share)) is None


def readings(settings: Settings, bad_hours: int, version: int = 1, topic: str = "late_delivery") -> None:
    """A month of 4 messages an hour of two topics, a fifth of them negative; all of `topic` in the last hours."""
    rows = []
    for hour in range(HOURS):
        for place in range(4):
            of = ("late_delivery", "praise")[place % 2]
            negative = (hour * 4 + place) % 5 == 0 or (hour >= HOURS - bad_hours and of == topic)
            rows.append({
                "task": "sentiment", "version": version, "message_id": f"m{hour}-{place}", "topic": of,
                "hour": NEWEST - timedelta(hours=HOURS - 1 - hour), "confidence": 0.9,
                "sentiment": "negative" if negative else "neutral",
            })
    open_lake(settings).append("readings", pa.Table.from_pylist(rows, schema=READINGS_SCHEMA))


def test_the_watch_alerts_once_on_the_topic_that_surges_and_settles_when_it_is_over(tmp_path: Path) -> None:
    settings = Settings(**{**vars(settings_of(tmp_path)), "tasks": ("support", "sentiment")})
    lake = open_lake(settings)
    assert tell_surges(lake, settings, NEWEST) == []
    readings(settings, bad_hours=10)
    found = surge_conditions(lake, "sentiment")
    assert "surge-sentiment-late_delivery" in found
    assert "surge-sentiment-praise" not in found
    assert "usually 20%" in found["surge-sentiment-late_delivery"]
    for _ in range(2):
        tell_surges(lake, settings, NEWEST)
    assert sorted(one["condition"] for one in open_alerts(settings)) == sorted(found)
    readings(settings, bad_hours=0, version=2)  # a retrained model reads them all anew, and sees no surge
    assert tell_surges(lake, settings, NEWEST) == []
    assert open_alerts(settings) == []


def test_a_message_counts_once_as_its_newest_version_read_it(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    lake = open_lake(settings)
    assert hourly_counts(lake, "sentiment") == {}
    for version in (1, 2):
        readings(settings, bad_hours=0, version=version)
    messages, negative = hourly_counts(lake, "sentiment")["all messages"]
    assert messages.tolist() == [4] * HOURS
    assert int(negative.sum()) == len([number for number in range(HOURS * 4) if number % 5 == 0])
    day, topic, said = sentiment_by_day(lake, "sentiment", days=2)[0]
    assert (day, topic, sum(said.values())) == ("2026-02-09", "late_delivery", 48)


def test_a_wrong_setting_is_told_and_help_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVERGREEN_MASK_KEY", "short")
    assert main([]) == 1
    assert "EVERGREEN_MASK_KEY must be a secret" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "usage: python -m pipeline.surge" in capsys.readouterr().out
