"""What versions share stays as long as a version with files is made of it, and goes with the last of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from pipeline.packaging import content_hash
from pipeline.registry import Registry
from pipeline.shared_parts import SHARED
from pipeline.tasks.contract import Package
from tests.test_registry import TASK, Killed, home, opened, package, tags

__all__ = ["home"]  # a fixture
FIRST, SECOND = "models:/evergreen-words/1", "models:/evergreen-words/2"


@pytest.fixture
def registry(home: Path) -> Registry:
    return opened(home)


def tomorrow() -> datetime:
    """As if nobody had asked for a part for a day."""
    return datetime.now(UTC) + timedelta(minutes=1)


def made_of(words: str, folder: Path) -> Package:
    made = package(folder / "package")
    (folder / "package" / "words" / "words.txt").write_text(words)
    return made


def register(registry: Registry, folder: Path, words: str) -> int:
    (folder / "checkpoint").mkdir(exist_ok=True)
    (folder / "checkpoint" / "arrays.safetensors").write_bytes(b"1")
    return registry.register(TASK, made_of(words, folder), folder / "checkpoint", tags(), {})


def without_files(registry: Registry, version: int) -> None:
    registry.retire(TASK, lambda: {version: "old"})
    registry.remove_files(TASK, version)


def texts(folder: Path) -> list[str]:
    return sorted(path.read_text() for path in (folder / "mlflow").rglob("words.txt"))


def test_a_part_goes_with_the_last_version_that_is_made_of_it(registry: Registry, home: Path) -> None:
    for words in ("one", "one", "two"):
        register(registry, home, words)
    without_files(registry, 1)
    assert registry.remove_unused_parts(tomorrow(), "old") == {} and texts(home) == ["one", "two"]
    without_files(registry, 2)
    assert registry.remove_unused_parts(tomorrow(), "old", dry_run=True) == {FIRST: 3} and texts(home) == ["one", "two"]
    assert registry.remove_unused_parts(tomorrow(), "old") == {FIRST: 3} and texts(home) == ["two"]
    assert registry.remove_unused_parts(tomorrow(), "old") == {}
    mlflow.set_tracking_uri(registry.tracking_uri)
    answer = mlflow.pyfunc.load_model(f"models:/evergreen-{TASK}/3").predict(pd.DataFrame({"value": [1.0]}))
    assert answer["words"].tolist() == [["two"]]


def test_a_part_that_a_training_has_just_asked_for_stays(registry: Registry, home: Path) -> None:
    without_files(registry, register(registry, home, "one"))
    asked_before = datetime.now(UTC)
    made = made_of("one", home)
    folder = made.shared["words"]
    assert registry._share("words", folder, content_hash(folder)) == FIRST  # its version is not registered yet
    assert registry.remove_unused_parts(asked_before, "old") == {} and texts(home) == ["one"]
    version = registry.register(TASK, made, home / "checkpoint", tags(), {})
    assert registry.tags(TASK, version)[SHARED] == FIRST
    assert registry.remove_unused_parts(tomorrow(), "old") == {}


def test_a_part_that_was_removed_is_stored_anew_when_it_is_needed_again(registry: Registry, home: Path) -> None:
    without_files(registry, register(registry, home, "one"))
    registry.remove_unused_parts(tomorrow(), "old")
    assert registry.tags(TASK, register(registry, home, "one"))[SHARED] == SECOND
    assert registry.remove_unused_parts(tomorrow(), "old") == {} and texts(home) == ["one"]


def test_a_removal_that_was_killed_is_completed_by_the_next(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_files(registry, register(registry, home, "one"))

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.shared_parts.remove_folder", killed)
        with pytest.raises(Killed):
            registry.remove_unused_parts(tomorrow(), "old")
    assert texts(home) == ["one"]
    assert opened(home).remove_unused_parts(datetime(2020, 1, 1, tzinfo=UTC), "old") == {FIRST: 3}
    assert texts(home) == []


def test_a_version_of_before_says_by_its_configuration_what_it_is_made_of(
    registry: Registry, home: Path
) -> None:
    version = register(registry, home, "one")
    registry._client.delete_model_version_tag(f"evergreen-{TASK}", str(version), SHARED)
    assert registry.remove_unused_parts(tomorrow(), "old") == {} and texts(home) == ["one"]
    without_files(registry, version)
    assert registry.remove_unused_parts(tomorrow(), "old") == {FIRST: 3}
