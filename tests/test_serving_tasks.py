"""Prices, stock and messages over HTTP: champions of a real registry, asked as a consumer asks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipeline.lake import open_lake
from pipeline.registry import open_registry
from pipeline.schema import EVENTS, ITEMS, MESSAGES
from pipeline.served_models import ServedModels
from pipeline.serving import create_app
from pipeline.settings import Settings
from pipeline.snapshot import Snapshot
from pipeline.sources.words import ANSWERS
from pipeline.sources.words import MESSAGES as WORDS
from pipeline.tasks.catalogue import task_named
from pipeline.training import fine_tune
from pipeline.window import Window
from tests.small_shop import publish, settings_of, typed
from tests.test_demand_examples import START, change, sale

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = datetime(2026, 2, 20, 5, tzinfo=UTC)
TASKS = ("demand", "support", "sentiment")
INTENTS = ("late_delivery", "praise", "cancel_order")

pytestmark = pytest.mark.slow


def sales() -> tuple[list[dict], list[dict]]:
    """Fifty days of six items; the price of the last was never known."""
    draw = np.random.default_rng(0)
    changes = [change(f"i{item}", 0, price=10.0 if item < 5 else None, category="cups") for item in range(6)]
    rows = [
        sale(f"i{item}", day, units=float(1 + draw.poisson(2 * item)), price=10.0 if item < 5 else None)
        for item in range(6) for day in range(50)
    ]
    return changes, rows


def inbox() -> pa.Table:
    rows = [{
        "message_id": f"m{place}", "message_time": (HOUR + timedelta(seconds=place)).isoformat(),
        "text": WORDS[INTENTS[place % 3]][1][place // 3 % 2].format(item="red lamp", n=f"#{place}"),
        "label": INTENTS[place % 3], "sentiment": WORDS[INTENTS[place % 3]][0], "answer": ANSWERS[INTENTS[place % 3]],
    } for place in range(90)]
    return typed(MESSAGES, pa.Table.from_pylist(rows), Window(HOUR))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Settings:
    """An installation with a champion of each task, trained for a few passes."""
    settings = replace(settings_of(tmp_path_factory.mktemp("shop")), tasks=TASKS)
    shutil.copy(empty_database, settings.home / "mlflow.db")
    lake, registry = open_lake(settings), open_registry(settings)
    for feed, rows in zip((ITEMS, EVENTS), sales(), strict=True):
        table = pa.Table.from_pylist(rows, schema=feed.table_schema)
        publish(lake, feed, [Window(START), Window(START + timedelta(days=50))], table)
    publish(lake, MESSAGES, [Window(HOUR)], inbox())
    registry._verifies = False  # costs a process each, and test_registry.py proves it
    for name in TASKS:
        task = task_named(name, settings, lake)
        tables = Snapshot(lake, {table: lake.version(table) for table in (task.table, *task.context_tables)})
        whole = lake.arrow(task.table)
        examples = task.examples(tables, whole)
        learner = task.learner(0)
        learner.grow(task.context(tables, None), examples)
        nothing = examples.keep(np.zeros(len(examples), bool))
        schedule = replace(task.base_schedule, epochs=3, enough_steps=0)
        learner = fine_tune(learner, task.restore, examples.marked(replayed=False), nothing, schedule, seed=0).learner
        (settings.home / "checkpoint").mkdir(exist_ok=True)
        version = registry.register(
            name, learner.package(settings.home / "package"), settings.home / "checkpoint",
            {"evergreen.task": name, "evergreen.window": HOUR.isoformat()}, {},
        )
        registry.promote(name, version, None, who="test", reasons=["first"], action="first", decided_at=NOW)
    return settings


@pytest.fixture(scope="module")
def models(shop: Settings) -> ServedModels:
    return ServedModels(shop, shop.home / "serving", TASKS)


@pytest.fixture(scope="module")
def client(shop: Settings, models: ServedModels) -> Iterator[TestClient]:
    with TestClient(create_app(shop, (), models)) as client:
        yield client


def answered(client: TestClient, path: str, **asked: object) -> dict:
    answer = client.post(path, json=asked)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["served"]["version"] == 1 and said["served"]["newest_hour"].startswith("2026-02-20T05")
    return said


def test_every_typed_answer_is_as_the_description_says(
    shop: Settings, models: ServedModels, client: TestClient
) -> None:
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    described = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    paths = set()
    for operation in (found.ok() for found in described.get_all_operations()):
        if operation.path not in ("/v1/price", "/v1/stock", "/v1/intent", "/v1/sentiment"):
            continue
        paths.add(operation.path)

        @hypothesis.settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @hypothesis.given(case=operation.as_strategy())
        def conforms(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=checks)

        conforms()
    assert len(paths) == 4


def test_a_price_is_advised_as_by_the_registrys_model_or_refused_with_the_reason(
    models: ServedModels, client: TestClient
) -> None:
    wanted = models.champion("demand").predict(pd.DataFrame({"item_id": ["i1", "i5"], "cost": [4.0, 4.0]}), {})
    for place, item in enumerate(("i1", "i5")):
        said, row = answered(client, "/v1/price", item_id=item, cost=4.0), wanted.iloc[place]
        assert said["reason"] == row["advice"] and said["advised"] == bool(np.isfinite(row["price_best"]))
        assert (said["best"] is not None) == said["advised"]
        assert said["elasticity"]["low"] == pytest.approx(row["elasticity_low"])
    none = answered(client, "/v1/price", item_id="i5")
    assert not none["advised"] and none["reason"].startswith("no advice") and none["low"] is None
    assert client.post("/v1/price", json={"item_id": "nothing"}).status_code == 404
    assert client.post("/v1/price", json={"item_id": "i1", "cost": -1}).status_code == 422


def test_a_certain_elasticity_brings_a_range_with_the_expected_change(models: ServedModels, client: TestClient) -> None:
    demand = models.champion("demand").model._service._demand
    row, held = demand.index["i1"], demand.arrays
    kept = {name: held[name].copy() for name in ("eta", "eta_deviation", "priced")}
    held["eta"][row], held["eta_deviation"][row], held["priced"][row] = 1.85, 0.05, 1  # about -2
    try:
        said = answered(client, "/v1/price", item_id="i1", guard_rail=0.2)
    finally:
        held.update(kept)
    assert said["advised"] and said["low"] <= said["best"] <= said["high"]
    assert said["best"] == pytest.approx(0.8 * float(held["usual_price"][row]), rel=1e-3)  # elastic: the lower rail
    assert said["change"]["low"] <= said["change"]["value"] <= said["change"]["high"]


def test_stock_runs_out_sooner_and_more_is_ordered_the_less_is_left(client: TestClient) -> None:
    little, much = (answered(client, "/v1/stock", item_id="i4", stock=stock) for stock in (5.0, 50.0))
    assert 0 < little["runs_out_days"] < much["runs_out_days"] <= 365
    assert little["reorder_units"] >= much["reorder_units"] and little["reorder_units"] > 0
    assert little["demand"]["p10"] <= little["demand"]["p50"] <= little["demand"]["p90"]
    longer = answered(client, "/v1/stock", item_id="i4", stock=5.0, lead_time_days=30.0, review_days=30.0)
    assert longer["reorder_units"] > little["reorder_units"]
    week = answered(client, "/v1/stock", item_id="i4", stock=5.0, horizon_days=7.0)["demand"]
    assert week["mean"] < little["demand"]["mean"]
    assert client.post("/v1/stock", json={"item_id": "nothing", "stock": 1}).status_code == 404
    assert client.post("/v1/stock", json={"item_id": "i4"}).status_code == 422


def test_a_message_gets_its_intent_confidence_answers_and_a_reader(client: TestClient) -> None:
    text = WORDS["praise"][1][0].format(item="red lamp", n="#1")
    said = answered(client, "/v1/intent", text=text, k=1)
    assert said["intent"] == "praise" and 0.3 < said["confidence"] <= 1.0
    assert [one["text"] for one in said["answers"]] == [ANSWERS["praise"]]
    assert isinstance(said["hand_over"], bool) and said["reason"]
    mood = answered(client, "/v1/sentiment", text=text)
    assert (mood["sentiment"], mood["topic"]) == ("positive", "praise")
    assert client.post("/v1/intent", json={"text": ""}).status_code == 422


def test_a_task_that_is_not_served_or_has_no_champion_says_what_to_do(shop: Settings, tmp_path: Path) -> None:
    one = ServedModels(shop, tmp_path, ["recommend"])  # this registry has no champion of it
    one.look()
    asking = TestClient(create_app(shop, (), one))
    elsewhere = asking.post("/v1/price", json={"item_id": "i1"})
    assert elsewhere.status_code == 404 and "EVERGREEN_TASKS=recommend,demand" in elsewhere.json()["detail"]
    absent = asking.post("/v1/recommend", json={})
    assert absent.status_code == 409 and "retrain_recommend" in absent.json()["detail"]
