"""What is fetched from the registry leaves nothing behind, but for a cache that was asked for."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import mlflow
import pytest

from models.fetching import fetched
from pipeline.packaging import content_hash
from pipeline.registry import Registry
from pipeline.served_models import ServedModels
from pipeline.settings import read_settings
from tests.test_registry import SERVICE, TASK, home, opened, package, tags

__all__ = ["home"]  # a fixture


@pytest.fixture
def registry(home: Path) -> Registry:
    return opened(home)


@pytest.fixture
def temporary(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder, of this process and those that it starts."""
    folder = home / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def words(registry: Registry, home: Path) -> str:
    """The address of a shared part."""
    address = registry._share("words", package(home / "package").shared["words"], "a hash")
    mlflow.set_tracking_uri(registry.tracking_uri)
    return address


def test_what_is_fetched_is_there_while_it_is_read_and_gone_afterwards(
    words: str, home: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVERGREEN_MODEL_CACHE", raising=False)
    for _ in range(2):
        with fetched(words, "a hash") as folder:
            assert (folder / "words.txt").read_text() == "alpha beta" and folder.is_relative_to(temporary)
        assert list(temporary.iterdir()) == []
    assert len(list((home / "mlflow").rglob("words.txt"))) == 1  # the registry's own


def test_a_cache_is_filled_once_and_stays(
    words: str, home: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_MODEL_CACHE", str(home / "cache"))
    with fetched(words, "a hash") as first:
        assert (first / "words.txt").read_text() == "alpha beta"
    with fetched(words, "of another registry") as other:
        (other / "words.txt").write_text("gamma")
    with fetched(words, None) as uncached:
        assert uncached.is_relative_to(temporary)
    shutil.rmtree(home / "mlflow")
    with fetched(words, "a hash") as second:
        assert second == first and (second / "words.txt").read_text() == "alpha beta"
    assert sorted((home / "cache").iterdir()) == [first, other] and list(temporary.iterdir()) == []


@pytest.mark.slow
def test_a_model_that_is_verified_leaves_no_file(registry: Registry, home: Path, temporary: Path) -> None:
    made = package(home / "package")
    begins = "def load_context(self, context):"
    leaves = f"{begins}\n        import tempfile\n        tempfile.mkstemp()"  # as MLflow does with what it downloads
    made.model_code.write_text(SERVICE.replace(begins, leaves))
    (home / "checkpoint").mkdir()
    version = registry.register(TASK, made, home / "checkpoint", tags(), {})
    for path in temporary.iterdir():
        path.unlink()  # of MLflow's own look at the model
    registry.verify(TASK, version)
    assert list(temporary.iterdir()) == []


def test_a_server_keeps_of_what_versions_share_what_those_on_its_disk_are_made_of(
    registry: Registry, words: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "checkpoint").mkdir()
    made = package(home / "package")
    registry.register(TASK, made, home / "checkpoint", tags(), {})
    monkeypatch.setenv("EVERGREEN_MODEL_CACHE", str(home / "served" / "shared"))
    settings = read_settings({"EVERGREEN_HOME": str(home), "EVERGREEN_MASK_KEY": "0" * 64})
    models = ServedModels(settings, home / "served", [TASK])
    mlflow.artifacts.download_artifacts(f"models:/evergreen-{TASK}/1", dst_path=str(home / "served" / TASK / "1"))
    held = content_hash(made.shared["words"])
    for content in (held, "of a version that is gone"):
        with fetched(words, content):
            pass
    models._tidy_shared()
    assert [path.name for path in (home / "served" / "shared").iterdir()] == [held]


@pytest.mark.slow
def test_a_verified_model_is_loaded_from_the_registry_and_not_from_a_cache(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVERGREEN_MODEL_CACHE", raising=False)
    made = package(home / "package")
    asks = "import json\nimport os\nassert 'EVERGREEN_MODEL_CACHE' not in os.environ\n"
    made.model_code.write_text(SERVICE.replace("import json\n", asks))
    (home / "checkpoint").mkdir()
    version = registry.register(TASK, made, home / "checkpoint", tags(), {})  # MLflow tries it out in this process
    monkeypatch.setenv("EVERGREEN_MODEL_CACHE", str(home / "cache"))
    registry.verify(TASK, version)
