"""Demand goes the whole way in one process: history, first champion, an hour's update, promotion, a served answer."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipeline import updating
from pipeline.lake import open_lake
from pipeline.registry import open_registry
from tests.small_shop import publish_hours, settings_of, small_shop

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.slow
def test_hours_are_learnt_promoted_and_served(tmp_path: Path) -> None:
    shop = small_shop(
        users=200, items=140, history_days=30, history_events=50_000, events_per_hour=150, history_launches_per_day=0
    )
    settings, history = settings_of(tmp_path), 24 * 30
    publish_hours(settings, shop, 0, history)
    first = updating.retrain("demand", settings, NOW, "first", report=lambda line: None)
    assert first["decision"] == "first"
    updating.promote("demand", first["version"], settings, NOW, who="retrain")
    publish_hours(settings, shop, history, 6)
    updated = updating.update(updating.plan("demand", settings), settings, NOW, report=lambda line: None)
    assert updated["decision"] == "promote", updated["reasons"]
    assert updating.promote("demand", updated["version"], settings, NOW)["champion_after"] == updated["version"]
    assert not updating.behind("demand", settings)

    tags = open_registry(settings).tags("demand", updated["version"])
    assert tags["evergreen.parent"] == str(first["version"])
    roles = {row["role"] for row in open_lake(settings).arrow("quality").to_pylist() if row["task"] == "demand"}
    assert roles == {"champion", "challenger", "baseline", "never_updated"}

    mlflow.set_tracking_uri(settings.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/evergreen-demand@champion")
    answers = model.predict(pd.DataFrame({"item_id": ["P000001", "nothing"], "stock": [30.0, 1.0]}))
    assert np.isfinite(answers["mean"][0]) and answers["p10"][0] <= answers["p50"][0] <= answers["p90"][0]
    assert answers["reorder_units"][0] >= 0 and answers["advice"][1] == "unknown item"
