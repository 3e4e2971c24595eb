"""The reference server over a real registry: who may ask, what is answered, and by which version."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from deltalake import DeltaTable
from fastapi.testclient import TestClient
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipeline import saved_model, updating
from pipeline.lake import open_lake
from pipeline.registry import open_registry
from pipeline.served_models import ServedModels, _older_champions
from pipeline.serving import ApiKey, create_app, main
from pipeline.settings import REPOSITORY, Settings
from tests.small_shop import publish_hours, settings_of, small_shop

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEYS = (ApiKey("shop", "read", "r" * 24), ApiKey("ops", "operate", "o" * 24))
READ, OPERATE = {"X-API-Key": "r" * 24}, {"X-API-Key": "o" * 24}
KNOWN, OTHER = "P000000", "P000003"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Settings:
    """An installation with two versions, the first of them the champion."""
    settings = settings_of(tmp_path_factory.mktemp("shop"))
    shutil.copy(empty_database, settings.home / "mlflow.db")
    publish_hours(settings, small_shop(users=200, history_days=2, history_events=2_500), 0, 48)
    first = updating.retrain("recommend", settings, NOW, "first", report=lambda line: None)
    updating.promote("recommend", first["version"], settings, NOW)
    updating.retrain("recommend", settings, NOW, "again", days=1, report=lambda line: None)
    return settings


@pytest.fixture(scope="module")
def models(shop: Settings) -> ServedModels:
    return ServedModels(shop, shop.home / "serving", ["recommend"])


@pytest.fixture(scope="module")
def client(shop: Settings, models: ServedModels) -> Iterator[TestClient]:
    with TestClient(create_app(shop, KEYS, models)) as client:
        yield client


@pytest.fixture(scope="module")
def described(shop: Settings, models: ServedModels, client: TestClient) -> schemathesis.BaseSchema:
    """The server without keys, as it describes itself; `client` has loaded its models."""
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(shop, (), models))


def test_every_answer_is_as_the_description_says(described: schemathesis.BaseSchema) -> None:
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    paths = set()
    for operation in (found.ok() for found in described.get_all_operations()):
        paths.add(operation.path)

        @hypothesis.settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @hypothesis.given(case=operation.as_strategy())
        def conforms(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=checks)

        conforms()
    assert {"/v1/recommend", "/v1/search", "/v1/similar", "/v1/models/{task}", "/health/ready"} <= paths


def recommended(client: TestClient, **asked: object) -> dict:
    answer = client.post("/v1/recommend", json=asked, headers=READ)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_request_needs_a_key_of_its_role(client: TestClient) -> None:
    assert client.post("/v1/recommend", json={}).status_code == 401
    assert client.post("/v1/recommend", json={}, headers={"X-API-Key": "wrong"}).status_code == 401
    assert client.post("/v1/reload", headers=READ).status_code == 403
    assert client.post("/v1/reload", headers=OPERATE).status_code == 200
    assert client.get("/health/live").status_code == client.get("/health/ready").status_code == 200


def test_the_answer_is_the_registrys_model_and_says_which(client: TestClient, models: ServedModels) -> None:
    import pandas as pd

    answer = recommended(client, history=[{"item_id": KNOWN, "days_ago": 2}, {"item_id": OTHER, "days_ago": 5}], k=5)
    row = pd.DataFrame([{"history": [KNOWN, OTHER], "history_days": [2.0, 5.0]}])
    wanted = models.champion("recommend").predict(row, {"k": 5}).iloc[0]
    assert [one["item_id"] for one in answer["items"]] == wanted["item_ids"]
    assert answer["served"]["version"] == 1 and answer["served"]["newest_hour"]
    assert len(recommended(client)["items"]) == 20
    others = recommended(client, history=[{"item_id": KNOWN}], exclude_history=True)
    assert KNOWN not in [one["item_id"] for one in others["items"]]


def test_reasons_add_up_to_the_score_and_name_the_history(client: TestClient) -> None:
    answer = recommended(client, history=[{"item_id": KNOWN}, {"item_id": OTHER, "days_ago": 3}], k=40, explain=True)
    for item in answer["items"]:
        parts = {name: value for name, value in item["reasons"].items() if name != "because"}
        assert sum(parts.values()) == pytest.approx(item["score"], abs=1e-3)
    own = {one["item_id"]: one["reasons"] for one in answer["items"]}
    assert own[KNOWN]["again"] > 0.0
    near = [one["reasons"] for one in answer["items"] if one["reasons"]["together"] > 0]
    assert near and all(one["because"] in (KNOWN, OTHER) for one in near)
    found = client.post("/v1/search", json={"query": "gift", "explain": True, "k": 3}, headers=READ).json()
    assert all(one["reasons"]["words"] != 0.0 for one in found["items"])
    for one in found["items"]:
        parts = {name: value for name, value in one["reasons"].items() if name != "because"}
        assert sum(parts.values()) == pytest.approx(one["score"], abs=1e-3)


def test_similar_items_are_of_a_known_item(client: TestClient) -> None:
    found = client.get("/v1/similar", params={"item_id": KNOWN, "k": 3}, headers=READ)
    assert len(found.json()["items"]) == 3 and KNOWN not in found.text.split("items", 1)[1]
    assert client.get("/v1/similar", params={"item_id": "none"}, headers=READ).status_code == 404


def test_any_task_answers_rows_and_refuses_what_its_model_refuses(client: TestClient) -> None:
    asked = {"rows": [{"history": [KNOWN]}, {"query": "gift"}], "parameters": {"k": 2}}
    answer = client.post("/v1/models/recommend", json=asked, headers=READ).json()
    assert [len(row["item_ids"]) for row in answer["rows"]] == [2, 2]
    refused = client.post("/v1/models/recommend", json={"rows": [{"history": 5}]}, headers=READ)
    assert refused.status_code == 400 and "history" in refused.json()["detail"]
    assert client.post("/v1/models/none", json=asked, headers=READ).status_code == 404


@pytest.mark.parametrize("asked", [
    {"k": 0}, {"k": 10**9}, {"history": [{"item_id": ""}]}, {"history": [{"item_id": "x", "days_ago": -1}]},
    {"histroy": []}, {"history": "P000000"}, {"history": [{"item_id": "x"}] * 257},
])
def test_a_request_outside_the_schema_says_where(client: TestClient, asked: dict) -> None:
    answer = client.post("/v1/recommend", json=asked, headers=READ)
    assert answer.status_code == 422 and answer.json()["detail"].startswith("body.")


def test_too_large_a_request_is_not_read(client: TestClient) -> None:
    answer = client.post("/v1/recommend", content=b"x" * 300_000, headers=READ)
    assert answer.status_code == 413 and "bytes" in answer.json()["detail"]
    chunks = (b"x" * 100_000 for _ in range(3))  # without a length
    assert client.post("/v1/recommend", content=chunks, headers=READ).status_code == 413


def test_a_key_is_answered_at_its_rate(shop: Settings, models: ServedModels) -> None:
    app = create_app(shop, KEYS, models, requests_per_minute=2)
    asking = TestClient(app)  # without its start: the models are loaded already
    statuses = [asking.post("/v1/recommend", json={}, headers=READ).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert asking.post("/v1/recommend", json={}, headers=OPERATE).status_code == 200  # another key has its own


def test_metrics_tell_versions_age_and_answers(client: TestClient) -> None:
    recommended(client)
    text = client.get("/metrics").text
    assert 'evergreen_model_version{task="recommend"} 1.0' in text
    assert 'evergreen_answers_total{route="/v1/recommend",status="200"}' in text
    age = next(line for line in text.splitlines() if line.startswith("evergreen_model_age_seconds{"))
    assert float(age.split()[-1]) > 0


def test_a_server_goes_on_and_starts_while_the_registry_is_away(shop: Settings, models: ServedModels) -> None:
    from dataclasses import replace

    away = replace(shop, tracking_uri="http://127.0.0.1:9")
    ServedModels(shop, shop.home / "serving", ["recommend"]).look()
    started = ServedModels(away, shop.home / "serving", ["recommend"])
    started.look()
    assert started.ready and started.champion("recommend").version == models.champion("recommend").version
    assert "recommend" in started.errors
    nowhere = ServedModels(away, shop.home / "elsewhere", ["recommend"])
    nowhere.look()
    assert not nowhere.ready
    answer = TestClient(create_app(away, KEYS, nowhere)).post("/v1/recommend", json={}, headers=READ)
    assert answer.status_code == 503 and "champion show" in answer.json()["detail"]


def test_no_request_fails_or_mixes_versions_while_champions_change(shop: Settings, models: ServedModels) -> None:
    client = TestClient(create_app(shop, KEYS, models, requests_per_minute=10**9))  # they ask thousands
    registry, statuses, mixed = open_registry(shop), [], []
    before = dict.fromkeys((1, 2))
    for version in before:
        loaded = models._loaded("recommend", version, None)
        before[version] = loaded.model.service.one({"history": [KNOWN]}, 5)
    ending = threading.Event()

    def ask() -> None:
        while not ending.is_set():
            answer = client.post("/v1/recommend", json={"history": [{"item_id": KNOWN}], "k": 5}, headers=OPERATE)
            statuses.append(answer.status_code)
            if answer.status_code != 200:
                continue
            said = answer.json()
            ids, scores = before[said["served"]["version"]]
            if [one["item_id"] for one in said["items"]] != ids:
                mixed.append((said, ids, scores))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for one in askers:
        one.start()
    for version in (2, 1, 2, 1):
        registry.promote(
            "recommend", version, registry.champion("recommend"), who="test", reasons=["swap"], action="force",
            decided_at=NOW + timedelta(hours=len(statuses)),
        )
        models.look()
        assert models.champion("recommend").version == version
    ending.set()
    for one in askers:
        one.join()
    assert statuses and set(statuses) == {200} and not mixed


def test_the_page_shows_the_version_of_a_week_ago_beside_the_champion(client: TestClient) -> None:
    moves = [
        {"decided_at": NOW, "champion_before": None, "champion_after": 1},
        {"decided_at": NOW + timedelta(days=1), "champion_before": 1, "champion_after": 2},
        {"decided_at": NOW + timedelta(days=2), "champion_before": 2, "champion_after": 2},
        {"decided_at": NOW + timedelta(days=8), "champion_before": 2, "champion_after": 3},
    ]
    assert _older_champions(moves, 3, NOW + timedelta(days=1, hours=1)) == [2, 1]
    assert _older_champions(moves, 3, NOW + timedelta(hours=1)) == [1, 2]
    assert _older_champions(moves, 3, NOW - timedelta(days=9)) == [1, 2]  # a young shop: the first
    assert _older_champions(moves, 1, NOW) == _older_champions([], 1, NOW) == []
    assert "bag" in client.get("/").text
    both = client.post("/page/answers", json={"query": "", "k": 3}, headers=READ).json()
    assert len(both["now"]["items"]) == 3
    assert all(item["title"] for item in both["now"]["items"])  # the very first answer has them


def test_a_server_without_keys_listens_to_its_own_machine_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shop: Settings
) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(shop.home))
    monkeypatch.setenv("EVERGREEN_MASK_KEY", "k" * 64)
    monkeypatch.delenv("EVERGREEN_API_KEYS", raising=False)
    assert main(["--host", "0.0.0.0"]) == 1
    assert "EVERGREEN_API_KEYS" in capsys.readouterr().err


def test_all_users_of_the_lake_are_scored_once_though_the_run_is_killed(shop: Settings, tmp_path: Path) -> None:
    import pandas as pd
    import pyarrow.compute as pc

    out = tmp_path / "recommended"
    command = [sys.executable, "-m", "pipeline.batch_scoring", "--out", str(out), "--version", "1", "--buckets", "40"]
    environment = {
        **os.environ, "EVERGREEN_HOME": str(shop.home), "EVERGREEN_MASK_KEY": shop.mask_key,
        "PYTHONPATH": str(REPOSITORY),
    }
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not (out / "_delta_log" / f"{5:020}.json").exists():
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    assert killed.returncode == -signal.SIGKILL and 5 <= DeltaTable(out).version() < 40
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "a second, with version 1, run 1, after " in done.stdout, done.stdout
    rows = DeltaTable(out).to_pyarrow_table()
    events = open_lake(shop).arrow("events")
    bought = events.filter(pc.equal(events["event_type"], "purchase"))
    buyers = set(bought["user_id"].to_pylist()) - {None}
    assert sorted(rows["user_id"].to_pylist()) == sorted(buyers)
    user = max(buyers, key=bought["user_id"].to_pylist().count)
    own = bought.filter(pc.equal(bought["user_id"], user)).select(["item_id", "event_time"]).to_pandas()
    own["days"] = (pc.max(events["event_time"]).as_py() - own["event_time"]).dt.total_seconds() / 86_400
    own["times"] = -own.groupby("item_id")["days"].transform("count")  # oftener bought goes first
    own = own.sort_values(["days", "times", "item_id"])
    asked = pd.DataFrame([{"history": own["item_id"].tolist(), "history_days": own["days"].tolist()}])
    wanted = ServedModels(shop, shop.home / "serving", ["recommend"])._loaded("recommend", 1, None)
    [answered] = rows.filter(pc.equal(rows["user_id"], user)).to_pylist()
    assert answered["scores"] == pytest.approx(wanted.predict(asked, {"k": 20})["scores"][0], abs=1e-3)


def test_the_consumer_of_the_docs_follows_the_champion_and_outlives_the_registry(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    page = (REPOSITORY / "pipeline" / "docs" / "consumers.md").read_text()
    [code] = re.findall(r"```python\n(import threading.*?)```", page, re.DOTALL)
    made: dict = {}
    exec(code, made)
    mlflow.set_tracking_uri(shop.tracking_uri)
    registry, first = open_registry(shop), open_registry(shop).champion("recommend")
    champion = made["Champion"]("evergreen-recommend", seconds=0.1)
    assert int(champion.version) == first and len(champion.recommend([KNOWN, OTHER], k=3)) == 3
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    time.sleep(0.5)
    assert len(champion.recommend([KNOWN], k=2)) == 2
    mlflow.set_tracking_uri(shop.tracking_uri)
    other = 3 - first
    registry.promote("recommend", other, first, who="test", reasons=["swap"], action="force", decided_at=NOW)
    deadline = time.monotonic() + 60
    while int(champion.version) != other and time.monotonic() < deadline:
        time.sleep(0.1)
    assert int(champion.version) == other and champion.recommend([KNOWN])
    champion.look = threading.Event().wait  # its thread rests
    registry.promote("recommend", first, other, who="test", reasons=["back"], action="force", decided_at=NOW)


def test_a_version_becomes_a_saved_model_that_answers_as_it_does(
    shop: Settings, models: ServedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import tensorflow as tf

    monkeypatch.setenv("EVERGREEN_HOME", str(shop.home))
    monkeypatch.setenv("EVERGREEN_MASK_KEY", shop.mask_key)
    for _ in range(2):
        assert saved_model.main(["recommend", "1", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    graph = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    given = {"history": tf.constant([[KNOWN, OTHER]]), "history_days": tf.constant([[2.0, 5.0]])}
    said = graph(k=tf.constant(5), **given)
    ids, scores = models._loaded("recommend", 1, None).model.service.one(
        {"history": [KNOWN, OTHER], "history_days": [2.0, 5.0]}, 5
    )
    assert [one.decode() for one in said["item_ids"][0].numpy()] == ids
    assert said["scores"][0].numpy() == pytest.approx(scores, abs=1e-3)
    assert saved_model.main(["recommend", "99", str(tmp_path)]) == 1 and "version 99" in capsys.readouterr().err
