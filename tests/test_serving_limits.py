"""What protects the reference server, without a model of the registry: keys, rates, sizes."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fastapi.testclient import TestClient

from pipeline.served_models import ServedModel, ServedModels
from pipeline.serving import ApiKey, create_app, main, read_keys
from pipeline.serving_limits import KeyedLimit
from pipeline.settings import SettingsError
from tests.small_shop import settings_of


def test_the_allowance_comes_back_with_time() -> None:
    now = [0.0]
    limit = KeyedLimit(60, clock=lambda: now[0])
    assert [limit.wait_seconds("a") for _ in range(60)] == [0.0] * 60
    assert limit.wait_seconds("a") == pytest.approx(1.0)
    now[0] = 1.5
    assert limit.wait_seconds("a") == 0.0 and limit.wait_seconds("a") == pytest.approx(0.5)


def test_keys_are_read_whole_or_refused_without_being_shown() -> None:
    assert read_keys("shop:read:" + "k" * 20) == (ApiKey("shop", "read", "k" * 20),)
    assert read_keys("") == ()
    for wrong in ("shop:read:short", "shop:admin:" + "k" * 20, "k" * 20):
        with pytest.raises(SettingsError, match="entry 1") as refused:
            read_keys(wrong)
        assert "k" * 20 not in str(refused.value)


class Counting:
    """A model as it was before it looked at numbers itself."""

    def predict(self, context: Any, rows: pd.DataFrame, parameters: dict[str, Any]) -> pd.DataFrame:
        return pd.DataFrame({"k": [int(parameters.get("k", 1))] * len(rows)})


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    for name in ("EVERGREEN_MODEL_CACHE", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")  # which a server sets for its process
    settings = settings_of(tmp_path)
    models = ServedModels(settings, tmp_path / "serving", ["demand"])
    models._champions["demand"] = ServedModel("demand", 1, None, Counting(), datetime.now(UTC))
    return TestClient(create_app(settings, (), models))  # without its start: it asks no registry


def test_whoever_asks_whether_the_server_is_ready_is_not_told_the_registrys_password(
    counting: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(counting.app.state.settings, tracking_uri="http://ana:planted-password@127.0.0.1:9")
    models = ServedModels(settings, settings.home / "serving", ["demand"])
    models.look()
    answer = TestClient(create_app(settings, (ApiKey("shop", "read", "k" * 20),), models)).get("/health/ready")
    assert answer.status_code == 503 and "http://127.0.0.1:9" in answer.json()["errors"]["demand"]
    assert "planted-password" not in answer.text + caplog.text


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1:8088", 200), ("localhost:8088", 200), ("[::1]:8088", 200), ("127.0.0.9", 200), ("LOCALHOST", 200),
    ("rebound.example:8088", 403), ("localhost.rebound.example", 403), ("10.0.0.7:8088", 403), ("[rebound", 403),
    ("[::ffff:10.0.0.7]", 403), ("x@rebound.example", 403),
])
def test_a_page_whose_name_was_led_to_this_machine_is_not_answered_without_a_key(
    counting: TestClient, host: str, status: int
) -> None:
    asked = counting.post("/v1/models/demand", json={"rows": [{}]}, headers={"Host": host})
    assert asked.status_code == status, asked.text
    assert status == 200 or "EVERGREEN_API_KEYS" in asked.json()["detail"]


def test_a_server_with_keys_is_asked_by_any_name(counting: TestClient) -> None:
    settings, models = counting.app.state.settings, counting.app.state.models
    client = TestClient(create_app(settings, (ApiKey("shop", "read", "k" * 20),), models))
    told = {"Host": "models.shop.example", "X-API-Key": "k" * 20}
    assert client.post("/v1/models/demand", json={"rows": [{}]}, headers=told).status_code == 200


@pytest.mark.parametrize(("k", "status"), [
    ("200", 200), ('"200"', 200), ("true", 200), ("201", 422), ('"201"', 422), ("200.5", 422), ("1" + "0" * 400, 422),
    ("Infinity", 422), ("1e999", 422), ("-1e999", 400), ("NaN", 400), ('"many"', 400),
])
def test_any_task_answers_so_many_and_no_number_fails_the_server(counting: TestClient, k: str, status: int) -> None:
    body = f'{{"rows": [{{}}], "parameters": {{"k": {k}}}}}'
    answer = counting.post("/v1/models/demand", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert status != 422 or "k must be at most 200" in answer.json()["detail"]


@pytest.mark.parametrize("port", ["99999", "0", "-1"])
def test_a_port_that_is_none_is_refused_before_anybody_is_told_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    monkeypatch.setenv("EVERGREEN_MASK_KEY", "k" * 32)
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: pytest.fail("it serves"))
    assert main(["--port", port]) == 1
    told = capsys.readouterr()
    assert f"--port must lie in 1..65535; received {port}" in told.err and not told.out


def test_a_taken_port_is_refused_before_anybody_is_told_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVERGREEN_MASK_KEY", "k" * 32)
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["--port", port]) == 1
    told = capsys.readouterr()
    assert f"received 127.0.0.1 and {port}: Address already in use" in told.err and not told.out
    assert main(["--port", port]) == 0 and f":{port}" in capsys.readouterr().out
