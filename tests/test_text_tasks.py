"""The tasks on messages go the whole way: from landed hours to a champion that tells, answers, asks and is asked."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow.compute as pc
import pytest

from pipeline import labels, updating
from pipeline.ingest import ingest
from pipeline.lake import open_lake
from pipeline.registry import open_registry
from pipeline.settings import Settings
from pipeline.sources.words import ANSWERS
from pipeline.sources.words import MESSAGES as WORDS
from pipeline.tables import text_field
from pipeline.window import HOUR, Window
from tests.landed import json_lines, put
from tests.small_shop import settings_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)
T0 = datetime(2026, 1, 5, tzinfo=UTC)
pytestmark = pytest.mark.slow
INTENTS = ("late_delivery", "praise", "cancel_order", "product_question")


def inbox(hour: int, count: int = 24, intents: tuple[str, ...] = INTENTS) -> list[dict[str, object]]:
    """An hour's messages: of each intent in turn; every third without a label, half of them without a mood."""
    rows = []
    for place in range(count):
        intent = intents[place % len(intents)]
        sentiment, texts = WORDS[intent]
        item = ("red lamp", "blue chair", "desk")[(hour + place) % 3]
        row = {
            "message_id": f"m{hour}-{place}", "user_id": f"u{place}", "channel": "mail",
            "message_time": (T0 + HOUR * hour + timedelta(minutes=place)).isoformat(),
            "text": texts[(hour + place) % 2].format(item=item, n=f"#{hour}{place}"),
        }
        if place % 3:
            row |= {"label": intent, "answer": ANSWERS[intent]}
        if place // 4 % 2:
            row |= {"sentiment": sentiment}
        rows.append(row)
    return rows


def land(settings: Settings, *hours: int, **given: object) -> None:
    windows = [Window(T0 + HOUR * hour) for hour in hours]
    for hour, window in zip(hours, windows, strict=True):
        put(Path(settings.landing), "inbox.jsonl", json_lines(*inbox(hour, **given)), "messages", window)  # type: ignore[arg-type]
    ingest(windows, settings, lambda line: None, ["messages"])


@pytest.fixture(scope="module")
def first_shop(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Settings:
    """Forty hours of messages, both tasks' first champions, then an hour with a new intent, learnt."""
    home = tmp_path_factory.mktemp("texts")
    shutil.copy(empty_database, home / "mlflow.db")
    settings = replace(settings_of(home), tasks=("support", "sentiment"))
    land(settings, *range(40))
    for task in settings.tasks:
        first = updating.retrain(task, settings, NOW, "first", report=lambda line: None)
        assert first["decision"] == "first", first
        updating.promote(task, first["version"], settings, NOW, who="retrain")
    land(settings, 40, count=40, intents=(*INTENTS, "payment_failed"))
    return settings


@pytest.fixture(scope="module")
def updated(first_shop: Settings) -> Settings:
    """The same after an update of `support`."""
    done = updating.update(updating.plan("support", first_shop), first_shop, NOW, report=lambda line: None)
    updating.promote("support", done["version"], first_shop, NOW)
    assert not updating.behind("support", first_shop)
    return first_shop


def test_a_champion_from_the_registry_tells_intent_and_answers_what_was_approved(updated: Settings) -> None:
    import mlflow

    mlflow.set_tracking_uri(updated.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/evergreen-support/2")
    texts = ["I love my red lamp, thank you so much!", "My card was charged but order #7 says payment failed."]
    told = model.predict(pd.DataFrame({"text": texts}), params={"k": 1})
    assert told["intent"].tolist() == ["praise", "payment_failed"]
    assert told["answers"].tolist() == [[ANSWERS["praise"]], [ANSWERS["payment_failed"]]]
    assert told["intent_confidence"].between(0.2, 1.0).all()
    assert told["reason"].str.contains("held-out messages").all()
    assert told["hand_over"].dtype == bool
    ways = ["My parcel is late, write to ann@mail.example", "My parcel is late, write to [e-mail]"]  # raw; as ingested
    raw, learnt = model.predict(pd.DataFrame({"text": ways})).drop(columns="reason").to_dict("records")
    assert raw == learnt
    example = model.predict(model.input_example)
    assert list(example.columns) == model.metadata.signature.outputs.input_names()


def test_each_update_names_unlabelled_messages_once_and_most_worth_first(updated: Settings) -> None:
    named = open_lake(updated).arrow("labels_wanted", filter=text_field("task") == "support")
    second = named.filter(pc.equal(named["version"], 2))
    assert second["rank"].to_pylist() == list(range(1, len(second) + 1))
    assert 0 < len(second) <= 20
    ids = second["message_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert all(one.startswith("m40-") and int(one.split("-")[1]) % 3 == 0 for one in ids)


def test_a_label_that_comes_in_is_learnt_by_the_next_update_and_survives_a_backfill(
    updated: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "read_settings", lambda: updated)
    file = tmp_path / "wanted.csv"
    assert labels.main(["export", str(file), "--task", "support", "--count", "3"]) == 0
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 3
    assert all(row["text"] and row["kind"] == "label" and not row["value"] for row in rows)
    rows[0]["value"] = "warranty"
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert labels.main(["import", str(file), "--who", "ada"]) == 0
    lake, message = open_lake(updated), rows[0]["message_id"]
    version = lake.version("messages")
    plan = updating.plan("support", updated)
    task_rows = lake.changes("messages", plan["start"], version)
    assert [(row["message_id"], row["label"], row["change"]) for row in task_rows.to_pylist()] == [
        (message, "warranty", "update")
    ]
    assert message not in [row["message_id"] for row in labels.wanted(lake, "support", 50)]
    ingest([Window(T0 + HOUR * 40)], updated, lambda line: None, ["messages"])
    assert lake.version("messages") == version
    assert labels.main(["import", str(file), "--who", "ada"]) == 0
    assert lake.version("messages") == version


def test_a_label_against_the_rules_of_messages_is_refused_whole(first_shop: Settings) -> None:
    lake = open_lake(first_shop)
    before = [lake.version(table) for table in ("messages", "labels")]
    lines = [
        {"message_id": "m1-0", "kind": "label", "value": "fine"},
        {"message_id": "m1-3", "kind": "sentiment", "value": "angry"},
    ]
    with pytest.raises(labels.LabelRefused, match=r"Line 3: .*expectations/messages.json.*angry"):
        labels.take_in(lake, lines, NOW, "ada")
    with pytest.raises(labels.LabelRefused, match=r"Line 2: message_id must be one of .* 'm99'"):
        labels.take_in(lake, [{"message_id": "m99", "kind": "label", "value": "x"}], NOW, "ada")
    with pytest.raises(labels.LabelRefused, match="Line 2: kind is one of label, sentiment, answer; received 'mood'"):
        labels.take_in(lake, [{"message_id": "m1-0", "kind": "mood", "value": "x"}], NOW, "ada")
    assert [lake.version(table) for table in ("messages", "labels")] == before


def test_what_the_first_champion_of_sentiment_reads_is_kept_for_every_message(first_shop: Settings) -> None:
    lake = open_lake(first_shop)
    readings = lake.arrow("readings", filter=text_field("task") == "sentiment").to_pylist()
    assert {row["message_id"] for row in readings} == {f"m{hour}-{place}" for hour in range(40) for place in range(24)}
    right = [
        (row["topic"], row["sentiment"]) == (INTENTS[int(row["message_id"].split("-")[1]) % 4],
                                             WORDS[INTENTS[int(row["message_id"].split("-")[1]) % 4]][0])
        for row in readings
    ]
    assert sum(right) / len(right) > 0.9


def test_a_repeated_promotion_of_what_was_read_adds_nothing(updated: Settings) -> None:
    lake = open_lake(updated)
    before = lake.version("labels_wanted")
    updating.promote("support", 2, updated, NOW)
    assert lake.version("labels_wanted") == before
    assert open_registry(updated).tags("support", 2)["evergreen.read"] == "labels_wanted"
