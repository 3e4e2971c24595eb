"""A task that is not `recommend` goes the whole way: the mechanism knows no task."""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path

import pytest

import pipeline
from pipeline import updating
from pipeline.lake import open_lake
from pipeline.registry import open_registry
from pipeline.settings import Settings
from tests.small_shop import publish_purchases

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MECHANISM = (
    "updating", "lesson", "examples", "replay", "training", "checkpoint", "gate", "registry", "decisions", "champion",
    "verification", "packaging",
)
OWN_TO_RECOMMEND = {
    "recommend", "item_id", "user_id", "query", "rating", "targets", "history_items", "recall@20", "event_type",
}


def test_a_second_task_goes_from_its_first_champion_to_the_next(price_shop: Settings) -> None:
    publish_purchases(open_lake(price_shop), 100)
    plan = updating.plan("price", price_shop)
    assert plan == {"task": "price", "champion": 1, "versions": {"events": 2}, "start": 1}
    assert updating.update(plan, price_shop, NOW)["decision"] == "promote"
    assert updating.promote("price", 2, price_shop, NOW) == {
        "action": "promote", "champion_before": 1, "champion_after": 2
    }
    assert not updating.behind("price", price_shop)
    assert open_registry(price_shop).aliases("price") == {"champion": 2, "challenger": 2, "previous": 1}


@pytest.mark.parametrize("module", MECHANISM)
def test_no_name_or_column_of_a_task_stands_in_the_mechanism(module: str) -> None:
    tree = ast.parse((Path(pipeline.__file__).parent / f"{module}.py").read_text())
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not OWN_TO_RECOMMEND & texts
