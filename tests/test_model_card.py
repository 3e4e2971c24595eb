"""The model card tells what the ledger, the gate and the log tell, can be used as it stands, and fits its places."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest

from pipeline import model_card
from pipeline.lake import open_lake
from pipeline.model_card import card_sections, main, note_moves
from pipeline.packaging import MOST_CHARACTERS
from pipeline.registry import open_registry
from pipeline.settings import Settings
from pipeline.tasks.catalogue import TASKS
from tests.conftest import NOW


@pytest.fixture
def shop(price_shop_an_hour_later: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(model_card, "read_settings", lambda: price_shop_an_hour_later)
    return price_shop_an_hour_later


def test_the_card_of_a_promoted_version_tells_its_decision_quality_data_and_use(
    shop: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["price"]) == 0  # as it was written when the decision was acted on
    card, registry = capsys.readouterr().out, open_registry(shop)
    tags = registry.tags("price", 2)
    assert card.startswith("# evergreen-price, version 2\n") and "update from version 1" in card
    for reason in json.loads(tags["evergreen.reasons"]):
        assert f"- {reason}" in card
    assert re.search(r"\| 2026-03-01T00:00 \| promote \| update \|", card)
    quality = {
        row["role"]: row for row in open_lake(shop).arrow("quality").to_pylist()
        if row["challenger"] == 2 and row["scored_on"] == "validation"
    }
    for role, said in (("challenger", "this version"), ("champion", "champion then"), ("baseline", "plain baseline")):
        row = quality[role]
        line = f"| {said} | closeness | {row['mean']:.4f} | {row['low']:.4f} to {row['high']:.4f} |"
        assert line in card
    own = json.loads(tags["evergreen.ledger"])["own_rows"]
    counts = " | ".join(str(own[name]) for name in ("taught", "joined", "held_out", "context", "set_aside"))
    assert f"| this version | {counts} |" in card
    assert re.search(r"\| champion \| cheap \| closeness \|", card)
    assert registry._version("price", 2).description.strip() == card.strip()


def test_the_cards_own_code_loads_the_model_and_asks_it(
    shop: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    assert main(["price", "2", "--anew"]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", capsys.readouterr().out, re.DOTALL)
    mlflow.set_tracking_uri(shop.tracking_uri)
    seen: dict = {}
    exec(code, seen)
    assert seen["answers"]["price"].between(1.0, 40.0).all()


def test_a_move_by_hand_is_on_the_card_with_the_next_look(shop: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    registry = open_registry(shop)
    assert not note_moves("price", shop)
    registry.rollback("price", 1, who="ada", why="wrong | <b>prices</b>", decided_at=NOW + timedelta(hours=1))
    assert note_moves("price", shop) and not note_moves("price", shop)
    assert main(["price"]) == 0
    assert "| 2026-03-01T01:00 | rollback | ada | wrong \\| &lt;b>prices&lt;/b> |" in capsys.readouterr().out


def test_a_card_of_many_slices_keeps_whole_sections_where_room_is_small() -> None:
    rows = dict.fromkeys(("taught", "joined", "held_out", "context", "set_aside"), 1)
    learnt = {
        "task": "support", "version": 3, "parent": None, "decision": "hold", "kind": "base", "window": "w", "code": "c",
        "retired": None, "compared_with": None, "reasons": [], "served": [], "tables": [], "own_rows": rows,
        "rows": rows, "base": 3, "settings": {},
    }
    comparison = {
        "against": "champion", "metric": "accuracy", "difference": 0.1, "low": 0.0, "high": 0.2, "margin": 0.03,
        "units": 100, "worse": False, "decides": True,
    }
    compared = [{**comparison, "slice": f"intent {place}"} for place in range(77)]
    compared.append({**comparison, "slice": "old windows", "worse": True})
    sections = card_sections(learnt, "The task.", TASKS["support"].limits, [], compared, 1_000_000)
    assert "| champion | old windows | accuracy | +0.1000 | +0.0000 to +0.2000 | -0.0300 | 100 | worse |" in sections[6]
    short = model_card._fitting(sections)
    assert len("\n".join(sections)) > MOST_CHARACTERS >= len(short)
    assert short.startswith("\n".join(sections[:5])) and "intent 0" not in short and short.endswith("model_card`.")
    assert model_card._fitting(sections[:3]) == "\n".join(sections[:3])


def test_a_version_that_is_not_there_is_named(shop: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["price", "9"]) == 1
    assert "version 9" in " ".join(capsys.readouterr().err.split())


def test_the_card_of_a_retired_version_stays_as_it_was(shop: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    registry = open_registry(shop)
    assert main(["price", "1"]) == 0
    before = capsys.readouterr().out
    registry.retire("price", lambda: {1: "older than a month"})
    assert main(["price", "1", "--anew"]) == 0
    assert capsys.readouterr().out == before and "| baseline | all | closeness |" in before
    assert registry.read_file("price", 1, "no such file") is None
