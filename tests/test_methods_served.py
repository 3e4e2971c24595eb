"""Methods that change what is served, through the jobs that the DAGs call: retrain, update, register, load, answer."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from pipeline import updating
from pipeline.settings import Settings
from pipeline.tasks.recommend import Recommend
from tests.small_shop import publish_hours, settings_of, small_shop

pytestmark = pytest.mark.slow  # a retrain, an update and two packages, one load of each in a process: a minute
NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A shop whose retrain teaches the encoder and makes searches, and whose updates answer with the version before."""
    retrain, update = {"lora_rank": 2, "lora_steps": 10, "title_queries": 0.25}, {"ensemble": 2}
    for name, chosen in (("base_schedule", retrain), ("update_schedule", update)):
        schedule = getattr(Recommend, name)
        monkeypatch.setattr(Recommend, name, replace(schedule, methods=replace(schedule.methods, **chosen)))
    # a server that an earlier test ran in this process has set it; another registry's encoders are in that folder
    monkeypatch.delenv("EVERGREEN_MODEL_CACHE", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return settings_of(tmp_path)


def test_an_ensemble_with_an_adapted_encoder_is_registered_and_answers(settings: Settings) -> None:
    shop = small_shop()
    publish_hours(settings, shop, 0, 97)
    first = updating.retrain("recommend", settings, NOW, "first", report=lambda line: None)
    updating.promote("recommend", first["version"], settings, NOW, who="retrain")
    publish_hours(settings, shop, 97)
    done = updating.update(updating.plan("recommend", settings), settings, NOW, report=lambda line: None)
    mlflow.set_tracking_uri(settings.tracking_uri)
    served = [
        mlflow.pyfunc.load_model(f"models:/evergreen-recommend/{version}").unwrap_python_model().service
        for version in (first["version"], done["version"])
    ]
    encoders = [one._text_encoder()._notes["of"] for one in served]
    assert encoders[0] == encoders[1] != Recommend(None, "tiny")._encoder.identity  # type: ignore[arg-type]
    assert [len(getattr(one._recommender, "elders", ())) for one in served] == [0, 1]
    for asked in ({"history": ["P000001"]}, {"query": "rustic lamp"}):
        ids = served[1].answer(pd.DataFrame([asked]), {"k": 5})["item_ids"][0]
        assert len(set(ids)) == 5
