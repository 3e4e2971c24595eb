"""A command asks the registry while a person waits: it gives up soon, and shows no password."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from pipeline.asking import a_person_waits
from pipeline.registry_errors import RegistryError


@pytest.mark.timeout(100)
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("champion", ["show"]),
        ("model_card", ["recommend"]),
        ("lineage", ["version", "recommend", "1"]),
        ("saved_model", ["recommend", "1", "out"]),
        ("forgetting", ["user", "somebody"]),
    ],
)
def test_a_registry_that_does_not_answer_is_told_soon_and_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EVERGREEN_MASK_KEY", "k" * 32)
    monkeypatch.setenv("EVERGREEN_MLFLOW", "http://me:hidden@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")  # set, so that it is put back after the test
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    assert importlib.import_module(f"pipeline.{module}").main(words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "EVERGREEN_MLFLOW must be the address of a registry that answers; http://127.0.0.1:9 does not" in said
    assert "hidden" not in said


def test_what_mlflow_refuses_is_told_and_other_faults_stay_what_they_are() -> None:
    from mlflow.exceptions import MlflowException

    address = "https://me:hidden@registry/path"
    said = "at https://registry/path refused: no access to https://registry/path"
    with pytest.raises(RegistryError, match=said), a_person_waits(address):
        raise MlflowException(f"no access to {address}")
    with pytest.raises(ZeroDivisionError), a_person_waits(address):
        raise ZeroDivisionError
