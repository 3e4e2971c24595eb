"""What a server holds of a registry: the champion, and for its page an older one; one that is broken stops nothing."""

from __future__ import annotations

import os
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import pytest

from pipeline.registry import Registry
from pipeline.served_models import ServedModels
from tests.small_shop import settings_of
from tests.test_registry import TASK, home, opened, promote, register

__all__ = ["home"]  # a fixture


@pytest.fixture
def registry(home: Path) -> Registry:
    """Three champions: 1 of nine days ago, 2 of eight, 3 of an hour ago."""
    registry, now = opened(home), datetime.now(UTC)
    for version, ago in ((1, timedelta(days=9)), (2, timedelta(days=8)), (3, timedelta(hours=1))):
        assert register(registry, home, scale=float(version)) == version
        promote(registry, version, version - 1 or None, decided_at=now - ago)
    return registry


def served(home: Path, folder: str = "serving") -> ServedModels:
    return ServedModels(settings_of(home), home / folder, [TASK])


def fetched_long_ago(home: Path) -> list[Path]:
    places = [home / "serving" / TASK / str(version) for version in range(900, 910)]
    for place in places:
        place.mkdir(parents=True)
        os.utime(place, (1, 1))
    return places


def test_an_older_champion_without_files_is_passed_over_for_the_nearest_that_has_them(
    registry: Registry, home: Path
) -> None:
    for gone, stands_in in ((None, 2), (2, 1), (1, None)):
        if gone is not None:
            registry.retire(TASK, lambda gone=gone: {gone: "old"})
            registry.remove_files(TASK, gone)
        models = served(home, f"server-{gone}")
        models.look()
        older = models.older(TASK)
        assert (older and older.version, models.errors, models.champion(TASK).version) == (stands_in, {}, 3)


def test_an_older_champion_that_does_not_load_is_no_error_of_the_one_that_serves(
    registry: Registry, home: Path
) -> None:
    models, places = served(home), fetched_long_ago(home)
    shutil.rmtree(registry._places(TASK, 2)[1][0].removeprefix("file://"))
    models.look()
    assert models.errors == {} and models.champion(TASK).version == 3 and models.older(TASK) is None
    assert len([place for place in places if place.exists()]) == 3  # the disk is tidied as ever


def test_a_request_to_reload_waits_for_the_look_that_fetches(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, real, asked = served(home), mlflow.artifacts.download_artifacts, []
    reload = threading.Thread(target=models.look)

    def interrupted(address: str, **to: str) -> str:
        if to:  # what a model itself asks for goes to no folder of the server
            asked.append(address)
        if to and len(asked) == 1:
            reload.start()
            reload.join(0.5)
        return real(address, **to)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", interrupted)
    models.look()
    reload.join()
    assert models.errors == {} and models.champion(TASK).version == 3
    assert asked == ["models:/evergreen-toy/3", "models:/evergreen-toy/2"]
    assert sorted(path.name for path in (home / "serving" / TASK).iterdir()) == ["2", "3", "champion.json"]


def test_half_a_version_on_disk_is_fetched_anew_once(registry: Registry, home: Path) -> None:
    served(home).look()
    description = home / "serving" / TASK / "3" / "MLmodel"
    description.unlink()
    models = served(home)
    models.look()
    assert models.errors == {} and models.champion(TASK).version == 3 and description.is_file()
    description.write_text("broken")
    models._champions.clear()
    models.look()
    assert TASK in models.errors and description.read_text() == "broken"


def test_a_version_on_disk_stays_where_none_can_be_fetched_instead(registry: Registry, home: Path) -> None:
    served(home).look()
    place = home / "serving" / TASK / "3"
    (place / "MLmodel").write_text("broken")
    (home / "mlflow").rename(home / "away")
    with pytest.raises(FileNotFoundError, match="Version 3 of evergreen-toy"):
        served(home)._loaded(TASK, 3, None)
    assert (place / "MLmodel").read_text() == "broken" and list(place.parent.glob(".*")) == []
