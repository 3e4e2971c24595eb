"""What leaves again: items that nobody has seen for long, and users and items that must be forgotten."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline import forgetting, updating
from pipeline.checkpoint import Checkpoint, Ledger, load, save
from pipeline.forgetting import forget
from pipeline.ingest import ingest
from pipeline.lake import Lake, open_lake
from pipeline.masking import Mask
from pipeline.registry import open_registry
from pipeline.schema import EVENTS, ITEMS, TIME
from pipeline.settings import Settings
from pipeline.snapshot import Snapshot
from pipeline.tables import text_field
from pipeline.tasks.contract import Examples
from pipeline.tasks.recommend import Recommend
from pipeline.tasks.recommend_examples import EXAMPLES_SCHEMA
from pipeline.tasks.recommend_learner import RecommenderLearner
from pipeline.watch import watch as watch_once
from pipeline.window import Window
from tests import landed
from tests.small_shop import hour, publish, purchases

DIMENSION = 8
FIRST = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 3, 1, tzinfo=UTC)


# --- items that nobody has seen for long ---


def context(items: Sequence[str], day: int | None) -> pa.Table:
    """Items last seen on a day; None: nobody knows them any more."""
    vectors = np.random.default_rng(len(items)).normal(size=(len(items), DIMENSION)).astype(np.float32)
    seen = None if day is None else FIRST + timedelta(days=day)
    return pa.table({
        "item_id": pa.array(items, pa.string()), "category": pa.array(["c"] * len(items), pa.string()),
        "price": pa.array([3.0] * len(items)), "last_seen": pa.array([seen] * len(items), TIME),
        "text_vector": pa.array(list(vectors), pa.list_(pa.float32(), DIMENSION)),
    })


def choices(items: Sequence[str], day: int) -> Examples:
    """Each item chosen by one user after the item before it."""
    time = FIRST + timedelta(days=day)
    schema = EXAMPLES_SCHEMA.append(pa.field("query_vector", pa.list_(pa.float32(), DIMENSION)))
    return Examples(pa.Table.from_pylist([{
        "example_id": f"e{place}", "unit": "u", "time": time, "hour": time, "landed_window": time, "rows": 1,
        "history_items": [items[place - 1]], "history_counts": [1.0], "history_views": [0.0], "history_days": [1.0],
        "history_habits": [1.0],
        "targets": [item],
    } for place, item in enumerate(items)], schema=schema))


OLD = [f"old{place}" for place in range(4)]
KEPT = [f"kept{place}" for place in range(20)]


def learner_of_two_seasons(old_day: int = 0, days: int = 401) -> RecommenderLearner:
    """Items that were chosen often on a day, trained, and others that came so many days later."""
    learner = RecommenderLearner(seed=7, text_dimension=DIMENSION, encoder=lambda: None)
    for _ in range(3):  # as often as an item must be chosen for a row of its own
        grown(learner, context([*OLD, *KEPT], old_day), choices([*OLD, *KEPT], old_day))
    train(learner, choices([*OLD, *KEPT], old_day))
    grown(learner, context(KEPT, old_day + days), choices(KEPT, old_day + days))
    return learner


def grown(learner: RecommenderLearner, met: pa.Table, taught: Examples) -> None:
    """As an update that makes no step."""
    learner.grow(met, taught)
    learner.count(taught)


def train(learner: RecommenderLearner, taught: Examples) -> None:
    """Three steps: in the first an untrained network tells nothing to the rows."""
    for _ in range(3):
        for batch in learner.batches(taught, 32, np.random.default_rng(0)):
            learner.train_step(batch, 1e-2)


def ids(learner: RecommenderLearner) -> list[str]:
    return list(learner._tables.items.ids)[1:]


def test_items_that_nobody_has_seen_for_four_hundred_days_leave_every_table() -> None:
    learner = learner_of_two_seasons()
    assert ids(learner) == KEPT
    arrays = learner.state().arrays
    for name in ("items/rows", "items/first", "items/steps", "items/text", "items/text_scale", "items/last_seen",
                 "trends/counts", "neighbours/index", "neighbours/seen", "vocabulary/items/sightings"):
        assert len(arrays[name]) == len(KEPT) + 1, name
    assert arrays["neighbours/index"].max() <= len(KEPT)


def test_what_stays_keeps_its_own_row_moments_sightings_and_neighbours() -> None:
    with_old, without = learner_of_two_seasons(), learner_of_two_seasons(days=400)
    assert ids(without) == [*OLD, *KEPT]
    moved, all_of_them = with_old.state().arrays, without.state().arrays
    own = ("items/rows", "items/first", "items/second", "items/steps", "items/text", "vocabulary/items/sightings")
    for name in own:
        assert (all_of_them[name][5:] != 0).any(), name
        np.testing.assert_array_equal(moved[name][1:], all_of_them[name][5:], name)
    near = {name: neighbours_of(one, KEPT[7]) for name, one in (("moved", with_old), ("all", without))}
    assert near["moved"] == near["all"] and near["moved"]


def neighbours_of(learner: RecommenderLearner, item: str) -> list[str]:
    known = learner._tables.items
    return [known.ids[place] for place in learner._counters.neighbours.index[known.index_of(item)] if place]


def test_a_view_or_a_change_of_price_keeps_an_item() -> None:
    learner = RecommenderLearner(seed=7, text_dimension=DIMENSION, encoder=lambda: None)
    learner.grow(context([*OLD, *KEPT], 0), choices(OLD, 0))
    grown(learner, context(OLD[:1], 300), choices([], 300))
    grown(learner, context(KEPT, 450), choices(KEPT, 450))
    assert ids(learner) == [OLD[0], *KEPT]


def test_a_few_old_items_stay_until_dropping_them_is_worth_a_copy_of_the_tables() -> None:
    many = [f"k{place}" for place in range(80)]
    learner = RecommenderLearner(seed=7, text_dimension=DIMENSION, encoder=lambda: None)
    learner.grow(context([*OLD, *many], 0), choices(OLD, 0))
    grown(learner, context(many, 500), choices(many, 500))
    assert ids(learner) == [*OLD, *many]  # 4 of 85 rows
    learner.grow(context(many[:78], 1000), choices(many[:78], 1000))
    assert ids(learner) == many[:78]  # 6 of 85


def test_a_text_that_a_context_leaves_out_stays_and_one_that_the_learner_lost_is_read_by_its_hash() -> None:
    read: list[str] = []

    class Cache:
        def of(self, texts: Sequence[str | None]) -> np.ndarray:
            raise AssertionError(f"texts were embedded anew: {texts}")

        def known(self, hashes: Sequence[str]) -> np.ndarray:
            read.extend(hashes)
            return np.full((len(hashes), DIMENSION), 0.25, np.float32)

    learner = RecommenderLearner(
        seed=7, text_dimension=DIMENSION, encoder=lambda: None, cached=lambda encoder: Cache()
    )
    learner.grow(context(KEPT, 0), choices([], 0))
    before = learner._tables.text(np.arange(1, 21))
    untold = context([*KEPT[:3], "back"], 1)
    untold = untold.set_column(4, "text_vector", pa.nulls(4, pa.list_(pa.float32(), DIMENSION)))
    learner.grow(untold.append_column("content_hash", pa.array(["h0", "h1", "h2", "h3"])), choices([], 1))
    assert read == ["h3"] and before.any(axis=1).all()
    np.testing.assert_array_equal(learner._tables.text(np.arange(1, 21)), before)
    projected = 0.25 * learner._directions.matrix.sum(axis=0)
    np.testing.assert_allclose(learner._tables.text(np.array([21])), [projected], atol=2e-3)  # int8


def test_an_item_that_comes_back_is_new() -> None:
    learner = learner_of_two_seasons()
    log = learner.grow(context(OLD[:1], 402), choices(OLD[:1], 402))
    row = learner._tables.items.index_of(OLD[0])
    assert log["items_new"] == 1 and row == len(KEPT) + 1
    assert learner._tables.items.sightings[row] == 1
    assert not learner._tables.items.admitted[row]
    np.testing.assert_array_equal(learner.state().arrays["items/rows"][row], 0.0)


@pytest.mark.parametrize("dropped", [False, True])
def test_training_resumes_bit_for_bit_before_and_after_items_expire(tmp_path: Path, dropped: bool) -> None:
    learner = learner_of_two_seasons(days=401 if dropped else 390)
    assert (OLD[0] not in ids(learner)) is dropped
    ledger = Ledger(
        kind="base", parent=None, versions={}, learnt_from={}, window=FIRST, joined_until=FIRST, span_hours=24
    )
    save(Checkpoint(learner.state(), ledger), tmp_path)
    resumed = RecommenderLearner.restore(load(tmp_path).state, encoder=lambda: None)
    np.testing.assert_array_equal(resumed._tables.last_seen, learner._tables.last_seen)
    for one in (learner, resumed):
        one.grow(context([*KEPT, "new"], 420), choices([*KEPT, "new"], 420))
        train(one, choices(KEPT, 420))
        one.count(choices([*KEPT, "new"], 420))
    assert ids(learner) == ids(resumed) == [*KEPT, "new"]
    mine, theirs = learner.state().arrays, resumed.state().arrays
    for name, array in mine.items():
        np.testing.assert_array_equal(array, theirs[name], name)


def test_an_item_that_neither_catalogue_nor_events_know_leaves_at_once() -> None:
    learner = learner_of_two_seasons()
    log = learner.grow(context(KEPT[:1], None), choices([], 401))
    assert ids(learner) == KEPT[1:]
    assert log["items_gone"] == 1


# --- the context's last sighting ---


class NoText:
    dimension, identity = DIMENSION, "none"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), DIMENSION), np.float32)


def recommend(lake: Lake) -> Recommend:
    task = Recommend(lake, "")
    task.__dict__["_encoder"] = NoText()
    return task


def items_of(number: int, *names: str) -> pa.Table:
    start, window = hour(number).start, hour(number)
    return pa.Table.from_pylist([{
        "change_id": f"c{number}-{name}", "item_id": name, "change_time": start, "title": f"title of {name}",
        "price": 2.0, "hour": start, "landed_window": start, "landed_date": start.date(),
        "source_file": f"{window.folder}/a.jsonl", "source_row": place + 1,
    } for place, name in enumerate(names)], schema=ITEMS.table_schema)


def events_of(number: int, *items: str, user: str = "f" * 32) -> pa.Table:
    """A purchase of each item."""
    rows = purchases(number, count=len(items)).slice(0, len(items))
    for name, values in (("item_id", list(items)), ("user_id", [user] * len(items))):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(values, pa.string()))
    return rows


def now(lake: Lake) -> Snapshot:
    return Snapshot(lake, {name: lake.version(name) for name in ("events", "items")})


def last_seen(table: pa.Table) -> dict[str, datetime | None]:
    return dict(zip(table["item_id"].to_pylist(), table["last_seen"].to_pylist(), strict=True))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = open_lake(landed.settings_of(tmp_path))
    publish(lake, ITEMS, [hour(0)], items_of(0, "i1", "i2", "i3"))
    publish(lake, EVENTS, [hour(1)], events_of(1, "i1", "i4"))
    return lake


def test_the_context_says_when_each_item_was_last_bought_or_changed(lake: Lake) -> None:
    seen = last_seen(recommend(lake).context(now(lake), None))
    second = timedelta(seconds=1)
    assert seen == {"i1": hour(1).start, "i2": hour(0).start, "i3": hour(0).start, "i4": hour(1).start + second}


def test_the_context_of_a_change_has_the_items_of_the_change_alone(lake: Lake) -> None:
    before = now(lake).versions
    publish(lake, ITEMS, [hour(2)], items_of(2, "i2"))
    publish(lake, EVENTS, [hour(2)], events_of(2, "i3", "i5"))
    context = recommend(lake).context(now(lake), before)
    assert last_seen(context) == {
        "i2": hour(2).start, "i3": hour(2).start, "i5": hour(2).start + timedelta(seconds=1)
    }
    everything = recommend(lake).context(now(lake), None)
    chosen = everything.filter(pc.is_in(everything["item_id"], value_set=context["item_id"].combine_chunks()))
    untold = [None if item in ("i3", "i5") else vector for item, vector in zip(
        chosen["item_id"].to_pylist(), chosen["text_vector"].to_pylist(), strict=True
    )]  # of what was chosen only the learner has the texts
    assert context["text_vector"].to_pylist() == untold and untold[0] is not None
    assert chosen.drop_columns(["text_vector"]).to_pylist() == context.drop_columns(["text_vector"]).to_pylist()


def test_the_context_names_an_item_whose_last_row_went_and_not_one_that_has_others(lake: Lake) -> None:
    before = now(lake).versions
    publish(lake, EVENTS, [hour(1)], events_of(1).slice(0, 0))
    assert last_seen(recommend(lake).context(now(lake), before)) == {"i1": hour(0).start, "i4": None}


# --- deletion on request ---


def deleted_user_of(lake: Lake) -> str:
    """A user with several rows, one of them in the first window."""
    rows = lake.arrow("events", columns=["user_id", "landed_window"])
    first = rows.filter(pc.equal(rows["landed_window"], pc.min(rows["landed_window"])))
    return str(first["user_id"][0].as_py())


def rows_of(lake: Lake, table: str, column: str, identifier: str) -> int:
    return len(lake.arrow(table, columns=[column], filter=text_field(column) == identifier))


def test_a_deleted_user_leaves_the_events_and_the_ledger_counts_the_rows(price_shop: Settings) -> None:
    lake = open_lake(price_shop)
    user = deleted_user_of(lake)
    rows = rows_of(lake, "events", "user_id", user)
    assert forget("user", user, price_shop, NOW, "me") == rows > 1
    assert rows_of(lake, "events", "user_id", user) == 0
    done = updating.update(updating.plan("price", price_shop), price_shop, NOW, report=lambda line: None)
    ledger = updating._ledger(open_registry(price_shop), "price", done["version"])
    assert ledger.own_rows.deleted == rows and ledger.rows.balanced
    assert ledger.rows.inserted - ledger.rows.deleted == len(lake.arrow("events", columns=["event_id"]))


@pytest.mark.slow
def test_versions_that_learnt_from_a_deleted_user_are_named_until_a_retrain_serves(price_shop: Settings) -> None:
    lake, registry = open_lake(price_shop), open_registry(price_shop)
    settings = Settings(**{**vars(price_shop), "tasks": ("price",)})
    user = deleted_user_of(lake)

    def may_have_learnt(version: int) -> bool:
        return forgetting.learnt_from_deleted(lake, registry, "price", "events", version)

    def watch(settings: Settings) -> dict[str, Any]:
        return watch_once(settings, NOW, "a run")

    assert not may_have_learnt(1) and watch(settings)["retrain"] == {}
    forget("user", user, settings, NOW, "me")
    assert may_have_learnt(1)
    assert "deleted on request" in watch(settings)["retrain"]["price"]
    assert watch_once(settings, NOW, "the next run")["retrain"] == {}  # asked once
    after = updating.update(updating.plan("price", settings), settings, NOW, report=lambda line: None)["version"]
    assert may_have_learnt(after)  # an update goes on from what was learnt
    anew = updating.retrain("price", settings, NOW, "forgotten", report=lambda line: None)["version"]
    assert not may_have_learnt(anew)
    registry.promote("price", anew, 1, who="me", reasons=["deleted"], action="force", decided_at=NOW, window=None)
    assert not [said for said in watch(settings)["conditions"] if "deleted" in said]


def test_a_model_whose_lineage_has_lost_its_first_version_may_have_learnt_from_a_deleted_user(
    price_shop_an_hour_later: Settings
) -> None:
    """Somebody has deleted version 1 in MLflow by hand: nobody knows any more when the lineage began."""
    settings = Settings(**{**vars(price_shop_an_hour_later), "tasks": ("price",)})
    registry = open_registry(settings)
    registry._client.delete_registered_model_alias("evergreen-price", "previous")
    registry._client.delete_model_version("evergreen-price", "1")
    forget("user", deleted_user_of(open_lake(settings)), settings, NOW, "me")
    assert "deleted on request" in watch_once(settings, NOW, "a run")["retrain"]["price"]


def test_a_deleted_item_is_not_in_the_next_model(lake: Lake, tmp_path: Path) -> None:
    task, before = recommend(lake), now(lake)
    learner = RecommenderLearner(seed=7, text_dimension=DIMENSION, encoder=lambda: None)
    learner.grow(task.context(before, None), choices(["i1", "i4"], 0))
    assert ids(learner) == ["i1", "i2", "i3", "i4"]
    assert forget("item", "i1", landed.settings_of(tmp_path), NOW, "me") == 2
    assert rows_of(lake, "events", "item_id", "i1") == rows_of(lake, "items", "item_id", "i1") == 0
    learner.grow(task.context(now(lake), before.versions), choices([], 1))
    assert ids(learner) == ["i2", "i3", "i4"]
    assert "i1" not in learner.compact().ids.tolist()


def land_hour(settings: Settings, number: int = 0) -> Window:
    """Three users' rows, one of them broken, and one row twice."""
    window = landed.hours_later(number)
    rows = [
        landed.event(1, user_id="ann", item_id="i1"), landed.event(2, user_id="bob", item_id="i2"),
        landed.event(3, user_id="ann", event_type="nonsense"), landed.event(4, user_id="carl", item_id="i1"),
        landed.event(1, user_id="ann", item_id="i1"),
    ]
    landed.put(Path(settings.landing), "a.jsonl", landed.json_lines(*rows), window=window)
    return window


def log_of(lake: Lake) -> dict[str, int]:
    row = lake.window_log().filter(pc.equal(lake.window_log()["feed"], "events")).to_pylist()[0]
    return {name: row[name] for name in ("rows_in", "published", "quarantined", "duplicates")}


@pytest.mark.slow
def test_a_backfill_does_not_bring_a_deleted_user_back(tmp_path: Path) -> None:
    settings = landed.settings_of(tmp_path)
    lake, ann = open_lake(settings), Mask(settings.mask_key).value("ann")
    window = land_hour(settings)
    ingest([window], settings, report=lambda line: None, feeds=["events"])
    assert log_of(lake) == {"rows_in": 5, "published": 3, "quarantined": 1, "duplicates": 1}
    assert any(ann in (raw or "") for raw in lake.arrow("quarantine")["raw"].to_pylist())
    assert forget("user", "ann", settings, NOW, "me") == 1
    deleted = {"rows_in": 5, "published": 2, "quarantined": 3, "duplicates": 0}
    version = lake.version("events")
    for again in (False, True):
        if again:
            ingest([window], settings, report=lambda line: None, feeds=["events"])
        assert log_of(lake) == deleted
        assert rows_of(lake, "events", "user_id", ann) == rows_of(lake, "duplicates_events", "user_id", ann) == 0
        quarantine = lake.arrow("quarantine").to_pylist()
        assert [row["reason"] for row in quarantine].count("deleted_on_request") == 2
        assert not any(ann in json.dumps(row, default=str) for row in quarantine)
        assert lake.version("events") == version


def test_an_id_of_the_shop_that_looks_like_a_masked_one_is_masked_before_it_is_deleted(tmp_path: Path) -> None:
    settings, own = landed.settings_of(tmp_path), "1234567890abcdef1234567890abcdef"  # a UUID, an MD5
    lake, mask = open_lake(settings), Mask(settings.mask_key)
    rows = [landed.event(1, user_id=own), landed.event(2, user_id=own), landed.event(3, user_id="ann")]
    landed.put(Path(settings.landing), "a.jsonl", landed.json_lines(*rows), window=landed.WINDOW)
    ingest([landed.WINDOW], settings, report=lambda line: None, feeds=["events"])
    assert [forget("user", own, settings, NOW, "me") for _ in range(2)] == [2, 0]
    assert [forget("user", mask.value("ann"), settings, NOW, "me") for _ in range(2)] == [1, 0]
    assert len(lake.arrow("events", columns=["user_id"])) == 0
    forget("user", own[::-1], settings, NOW, "me")  # nobody's so far
    asked = lake.arrow("deletions", columns=["id"])["id"].to_pylist()
    assert set(asked) == {mask.value(own), mask.value("ann"), mask.value(own[::-1])}


def test_a_deletion_that_was_killed_halfway_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = landed.settings_of(tmp_path)
    lake = open_lake(settings)
    ingest([land_hour(settings)], settings, report=lambda line: None, feeds=["events"])

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Lake, "_recount_deleted", killed)
        forget("user", "ann", settings, NOW, "me")
    assert forget("user", "ann", settings, NOW, "me") == 0
    assert log_of(lake) == {"rows_in": 5, "published": 2, "quarantined": 3, "duplicates": 0}


def test_the_command_says_what_it_deleted_and_what_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = landed.settings_of(tmp_path)
    ingest([land_hour(settings)], settings, report=lambda line: None, feeds=["events"])
    monkeypatch.setattr(forgetting, "read_settings", lambda: settings)
    assert forgetting.main(["item", "i2"]) == 0
    said = capsys.readouterr().out
    assert "1 published rows of item i2 deleted" in said and "next update" in said and "vacuumed" in said
    assert forgetting.main(["item", "none"]) == 0
    assert "Was the id right?" in capsys.readouterr().out
    assert forgetting.main(["item", " "]) == 2
    with pytest.raises(SystemExit):
        forgetting.main(["basket", "b1"])
    assert "'user', 'item'" in capsys.readouterr().err
