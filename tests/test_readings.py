"""What models read off messages is kept once, however often an update is held and reads it again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import readings
from pipeline.lake import open_lake
from tests.small_shop import settings_of

T0 = datetime(2026, 1, 5, tzinfo=UTC)
PARENTS = {2: "1", 3: "1", 4: "2", 5: "2"}


def registry_with(folder: Path) -> Any:
    """Versions whose parents are PARENTS, and whose readings lie in folders of their numbers."""
    return SimpleNamespace(
        tags=lambda task, version: {"evergreen.parent": PARENTS[version], readings.TAG: "readings"},
        children=lambda task, parent: [one for one, of in PARENTS.items() if of == str(parent)],
        load_checkpoint=lambda task, version, into: folder / str(version),
    )


def read(folder: Path, version: int, *sentiments: str) -> None:
    """Message 0 of hour 0 is read as the first of `sentiments`, message 1 of hour 1 as the second, and so on."""
    (folder / str(version)).mkdir()
    count = len(sentiments)
    hours = pa.array([T0 + timedelta(hours=hour) for hour in range(count)], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({
        "message_id": [f"m{place}" for place in range(count)], "hour": hours, "topic": ["parcel"] * count,
        "sentiment": list(sentiments), "confidence": [0.9] * count,
    }), folder / str(version) / "readings.read.parquet")


def test_what_the_same_champion_read_before_is_not_kept_again_and_what_it_reads_otherwise_is(tmp_path: Path) -> None:
    lake, registry = open_lake(settings_of(tmp_path)), registry_with(tmp_path)

    def kept(version: int, *sentiments: str) -> list[tuple[str, str]]:
        read(tmp_path, version, *sentiments)
        for _ in range(2):  # a run that is repeated
            readings.publish(lake, registry, "sentiment", version)
        rows = lake.arrow("readings").to_pylist()
        return sorted((row["message_id"], row["sentiment"]) for row in rows if row["version"] == version)

    assert kept(2, "negative", "neutral") == [("m0", "negative"), ("m1", "neutral")]
    assert kept(3, "negative", "neutral", "neutral") == [("m2", "neutral")]
    assert len(kept(4, "negative", "neutral", "neutral")) == 3, "another champion reads for itself"
    assert kept(5, "negative", "positive", "neutral") == [("m1", "positive")], "a message that was corrected"
