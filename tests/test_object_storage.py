"""Landing zone, lake and models' files in an object store, by settings alone; commits from several processes there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import retention
from pipeline.ingest import ingest
from pipeline.lake import open_lake
from pipeline.registry import open_registry
from pipeline.schema import DECISIONS_SCHEMA
from pipeline.settings import Settings, SettingsError, read_settings
from pipeline.window import HOUR, Window
from tests.killed import command
from tests.object_store import BUCKET, client, keys, object_store
from tests.price_shop import TASK, first_champion, know_price_task, update_once

KEY = "a-key-for-tests-a-key-for-tests-a-key"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
FIRST = Window(datetime(2026, 1, 5, tzinfo=UTC))
HOURS = [Window(FIRST.start + HOUR * number) for number in range(101)]
COMMITS = 12


@pytest.mark.parametrize("name", ["EVERGREEN_HOME", "EVERGREEN_REPORTS"])
def test_what_needs_a_disk_is_refused_in_an_object_store(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be a folder"):
        read_settings({"EVERGREEN_MASK_KEY": KEY, name: "s3://shop/here"})


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    with object_store() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables


def settings_at(home: Path, place: str) -> Settings:
    root = f"s3://{BUCKET}/{place}"
    return read_settings({
        "EVERGREEN_HOME": str(home), "EVERGREEN_MASK_KEY": KEY, "EVERGREEN_TASKS": TASK,
        "EVERGREEN_LANDING": f"{root}/landing", "EVERGREEN_LAKE": f"{root}/lake",
        "EVERGREEN_ARTIFACTS": f"{root}/models",
    })


def lay(store: dict[str, str], place: str, *windows: Window, per_hour: int = 10) -> None:
    """Puts files of purchases into the landing zone, as a shop would: item i costs 5 + 3 i. One row is broken."""
    for window in windows:
        number = HOURS.index(window)
        rows = [{
            "event_id": f"e{number}-{row}", "event_type": "purchase", "event_time": window.start.isoformat(),
            "user_id": f"user {(7 * number + row) % 60}", "item_id": f"i{(number + row) % 8}", "quantity": 1,
            "price": 5.0 + 3.0 * ((number + row) % 8) + 0.1 * (row % 3),
        } for row in range(per_hour)]
        text = "".join(json.dumps(row) + "\n" for row in rows) + '{"event_id": "broken'
        client(store).put_object(
            Bucket=BUCKET, Key=f"{place}/landing/events/{window.folder}/web.jsonl", Body=text.encode()
        )


@pytest.mark.slow
def test_the_whole_loop_runs_in_an_object_store(
    tmp_path: Path, store: dict[str, str], empty_database: Path
) -> None:
    know_price_task()
    settings = settings_at(tmp_path / "home", "loop")
    settings.home.mkdir()
    (settings.home / "mlflow.db").write_bytes(empty_database.read_bytes())
    lay(store, "loop", *HOURS)
    done = ingest(HOURS[:100], settings, feeds=["events"])
    assert [(one.published, one.quarantined) for one in done] == [(1000, 100)]
    assert ingest(HOURS[:100], settings, feeds=["events"])[0].table_version == done[0].table_version
    first_champion(settings)
    ingest(HOURS[100:], settings, feeds=["events"])
    assert update_once(settings)["decision"] == "promote"
    registry = open_registry(settings)
    assert registry.aliases(TASK) == {"champion": 2, "challenger": 2, "previous": 1}
    assert registry.decisions(TASK)["action"].to_pylist() == ["first", "promote"]
    assert any(key.startswith("loop/models/") for key in keys(store, "loop/models/"))
    assert {path.name for path in settings.home.iterdir()} <= {"mlflow.db", "locks", "reports", "serving"}
    retention.retain(settings, NOW)
    assert len(open_lake(settings).arrow("events")) == 1010


@pytest.mark.slow
def test_two_processes_that_commit_to_one_table_lose_no_row(tmp_path: Path, store: dict[str, str]) -> None:
    settings = settings_at(tmp_path, "commits")
    variables = {
        "EVERGREEN_HOME": str(tmp_path), "EVERGREEN_MASK_KEY": KEY, "EVERGREEN_LAKE": settings.lake, **store
    }
    arguments = ["tests.test_object_storage", str(COMMITS)]
    writers = [command([*arguments, name], tmp_path / name, variables) for name in ("one", "two")]
    assert [writer.ended(120) for writer in writers] == [0, 0], [writer.said for writer in writers]
    held = open_lake(settings).arrow("decisions")
    wanted = sorted((name, number) for name in ("one", "two") for number in range(COMMITS))
    assert sorted(zip(held["who"].to_pylist(), held["version"].to_pylist(), strict=True)) == wanted
    assert open_lake(settings).version("decisions") >= 2 * COMMITS


def _commit(count: int, name: str) -> None:
    """What each of the two processes does: `count` rows, a commit each, under no lock."""
    lake = open_lake(read_settings())
    for number in range(count):
        row = {"task": "price", "decided_at": NOW, "action": "hold", "version": number, "who": name, "reasons": "[]"}
        rows = pa.Table.from_pylist([{**dict.fromkeys(DECISIONS_SCHEMA.names), **row}], schema=DECISIONS_SCHEMA)
        lake.append("decisions", rows)


if __name__ == "__main__":
    import sys

    _commit(int(sys.argv[1]), sys.argv[2])
