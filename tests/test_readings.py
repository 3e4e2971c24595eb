"""What models read off messages is kept once, however often an update is held and reads it again."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from pipeline import readings
from pipeline.lake import open_lake
from pipeline.registry import open_registry
from tests.small_shop import settings_of
from tests.test_registry import package, tags

T0 = datetime(2026, 1, 5, tzinfo=UTC)


def read(*sentiments: str) -> pa.Table:
    """Message 0 of hour 0 is read as the first of `sentiments`, message 1 of hour 1 as the second, and so on."""
    count = len(sentiments)
    hours = pa.array([T0 + timedelta(hours=hour) for hour in range(count)], pa.timestamp("us", tz="UTC"))
    return pa.table({
        "message_id": [f"m{place}" for place in range(count)], "hour": hours, "topic": ["parcel"] * count,
        "sentiment": list(sentiments), "confidence": [0.9] * count,
    })


def test_what_the_same_champion_read_before_is_not_kept_again_and_what_it_reads_otherwise_is(
    tmp_path: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    lake, registry = (open_one(settings_of(tmp_path)) for open_one in (open_lake, open_registry))

    def kept(parent: int, *sentiments: str) -> list[tuple[str, str]]:
        (checkpoint := tmp_path / "checkpoint").mkdir(exist_ok=True)
        readings.keep({"readings": read(*sentiments)}, checkpoint)
        told = tags(parent=parent) | {readings.TAG: "readings"}
        version = registry.register("sentiment", package(tmp_path / "package"), checkpoint, told, {})
        for _ in range(2):  # a run that is repeated
            readings.publish(lake, registry, "sentiment", version)
        rows = lake.arrow("readings").to_pylist()
        return sorted((row["message_id"], row["sentiment"]) for row in rows if row["version"] == version)

    assert kept(91, "negative", "neutral") == [("m0", "negative"), ("m1", "neutral")]
    assert kept(91, "negative", "neutral", "neutral") == [("m2", "neutral")]
    assert len(kept(92, "negative", "neutral", "neutral")) == 3, "another champion reads for itself"
    assert kept(92, "negative", "positive", "neutral") == [("m1", "positive")], "a message that was corrected"
