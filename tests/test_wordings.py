"""Texts in other wordings, and searches made of titles: what is changed, what is learnt from it, and what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.lake import open_lake
from pipeline.lesson import Lesson, lesson_of_change, lesson_of_everything
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Methods
from pipeline.tasks.recommend import Recommend
from pipeline.tasks.recommend_batches import Batcher
from pipeline.tasks.wordings import fragment, near_words, reworded
from tests.small_shop import publish_hours, settings_of, small_shop
from tests.test_recommend_learner import DIMENSION, context, examples, moment, untrained

TITLE = "white hanging heart light holder"
CROP, MASK = Methods(text_crop=0.4), Methods(text_mask=0.5)


def test_cropping_keeps_a_part_in_one_piece() -> None:
    for title in (TITLE, "a b c d e f g h i j", "one two"):
        kept = reworded(title, CROP, {})
        assert f" {kept} " in f" {title} "
        assert len(kept.split()) == np.ceil(0.6 * len(title.split()))


def test_masking_leaves_out_words_and_never_all() -> None:
    found = [reworded(f"{TITLE} {place}", MASK, {}).split() for place in range(200)]
    assert all(found)
    assert 0.4 < np.mean([len(words) for words in found]) / 6 < 0.6
    for place, words in enumerate(found):
        assert [word for word in f"{TITLE} {place}".split() if word in words] == words
    assert reworded("alone", Methods(text_mask=0.99), {}) == "alone"


def test_words_give_way_to_near_ones_alone() -> None:
    methods = Methods(text_synonym=0.5)
    found = {reworded(f"Mug {place} lamp", methods, {"mug": ("cup", "beaker")}).split()[0] for place in range(50)}
    assert found == {"Mug", "cup", "beaker"}
    assert reworded(TITLE, methods, {}) == TITLE


def test_a_text_has_one_other_wording() -> None:
    assert len({reworded(TITLE, MASK, {}) for _ in range(5)}) == 1
    assert reworded("  ", MASK, {}) == "  "


def test_fragments_are_of_every_length_and_in_one_piece() -> None:
    generator = np.random.default_rng(0)
    found = [fragment(TITLE, generator) for _ in range(300)]
    assert {len(one.split()) for one in found} == {1, 2, 3, 4, 5}
    assert all(f" {one} " in f" {TITLE} " for one in found)
    assert fragment(" ", generator) == ""


def test_near_words_are_those_of_close_vectors_in_two_texts() -> None:
    vectors = {"mug": [1, 0, 0], "cup": [0.8, 0.6, 0], "lamp": [0, 0, 1]}
    texts = ["Mug red!", "mug 12", "cup lamp", "lamp, cup", "once", None]
    found = near_words(texts, lambda words: np.array([vectors[word] for word in words], np.float32))
    assert found == {"mug": ("cup",), "cup": ("mug",)}


def test_batches_show_each_text_as_it_is_and_reworded_about_as_often() -> None:
    items = [f"i{place}" for place in range(100)]
    vectors, others = (np.random.default_rng(seed).normal(size=(100, DIMENSION)) for seed in (0, 1))
    asked = examples([moment([item], query="q", query_vector=[1.0] * DIMENSION) for item in items])
    learner = untrained(items, asked, vectors)
    told = context(items, vectors)
    wording = pa.array(list(others.astype(np.float32)), pa.list_(pa.float32(), DIMENSION))
    learner.grow(told.append_column("wording_vector", wording), asked.take(np.arange(0)))
    tables, everything = learner._tables, np.arange(1, 101)
    encoded = replace(learner._encoded(asked), query_wording=np.zeros((100, DIMENSION), np.float32))

    def shown(*, reword: bool) -> tuple[np.ndarray, np.ndarray]:
        batcher = Batcher(
            encoded, tables, learner._counters, np.random.default_rng(3), counted=True,
            reword=reword,
        )
        batch = batcher.batch(np.arange(100), 16, 100)
        return batch["rows_text"][1:], batch["query_vector"]

    text, query = shown(reword=True)
    is_other = (text == tables.wording(everything)).all(axis=1)
    assert (is_other | (text == tables.text(everything)).all(axis=1)).all()
    assert 35 <= is_other.sum() <= 65
    assert 35 <= (query == 0.0).all(axis=1).sum() <= 65
    text, query = shown(reword=False)
    assert text.tobytes() == tables.text(everything).tobytes()
    assert query.tobytes() == encoded.query_vector.tobytes()
    again = type(tables).from_arrays(tables.arrays())
    assert again.wording(everything).tobytes() == tables.wording(everything).tobytes()
    learner.grow(told.slice(0, 1), asked.take(np.arange(0)))  # a text that changes without one has no stale wording
    assert tables.wording(everything[:1]).tobytes() == tables.text(everything[:1]).tobytes()
    assert tables.wording(everything[1:]).tobytes() != tables.text(everything[1:]).tobytes()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recommend, Snapshot, Snapshot]:
    """A task that rewords and makes searches, and the shop's tables before and after an hour."""
    home: Path = tmp_path_factory.mktemp("wordings")
    settings, simulator = settings_of(home), small_shop()
    publish_hours(settings, simulator, 0, 30)
    lake = open_lake(settings)
    before = {table: lake.version(table) for table in ("events", "items")}
    publish_hours(settings, simulator, 30)
    task = Recommend(lake, "tiny")
    methods = Methods(text_mask=0.5, text_synonym=0.5, title_queries=0.5)
    for name in ("base_schedule", "update_schedule"):
        setattr(task, name, replace(getattr(task, name), methods=methods))
    after = {table: lake.version(table) for table in ("events", "items")}
    return task, Snapshot(lake, before), Snapshot(lake, after)


@pytest.fixture(scope="module")
def lessons(shop: tuple[Recommend, Snapshot, Snapshot]) -> tuple[Lesson, Lesson]:
    """Of a retrain, and of the update after it."""
    task, before, after = shop
    first = lesson_of_everything(task, before, None, None, 7)
    return first, lesson_of_change(task, after, 1, first.ledger, before.versions["events"], 7)


def test_items_and_queries_come_with_another_wording(lessons: tuple[Lesson, Lesson]) -> None:
    for lesson in lessons:
        told = lesson.context
        assert (np.stack(told["wording_vector"].to_numpy()) != np.stack(told["text_vector"].to_numpy())).any()
        asked = lesson.new.table.filter(pc.is_valid(lesson.new.table["query"]))
        assert asked["query_wording_vector"].null_count == 0
        nobody = lesson.new.table.filter(pc.is_null(lesson.new.table["query"]))
        assert nobody["query_wording_vector"].null_count == len(nobody)


def test_made_searches_find_a_chosen_item_by_its_title_and_teach_no_row(lessons: tuple[Lesson, Lesson]) -> None:
    for lesson in lessons:
        made, told = lesson.made.table.to_pylist(), dict(zip(
            lessons[0].context["item_id"].to_pylist(), lessons[0].context["title"].to_pylist(), strict=True
        ))
        told |= dict(zip(lesson.context["item_id"].to_pylist(), lesson.context["title"].to_pylist(), strict=True))
        real = lesson.new.table.to_pylist() + lesson.replayed.table.to_pylist()
        choices = [one for one in real if one["targets"] and one["query"] is None]
        assert len(made) == round(0.5 * len(choices)) > 0
        units = {(one["unit"], one["time"]): one["targets"] for one in choices}
        for one in made:
            (target,) = one["targets"]
            assert one["query"] in told[target]
            assert target in units[one["unit"], one["time"]]
            assert not one["history_items"] and not one["rows"] and one["query_vector"] is not None
        assert len(lesson.train) == len(lesson.new) + len(lesson.replayed) + len(made)
        assert not any(one.startswith("title|") for one in lesson.gate.table["example_id"].to_pylist())
        assert lesson.ledger.rows.balanced


def test_by_default_none_is_made(shop: tuple[Recommend, Snapshot, Snapshot]) -> None:
    _, tables, _ = shop
    lesson = lesson_of_everything(Recommend(tables.lake, "tiny"), tables, None, None)
    assert not len(lesson.made)
    assert "wording_vector" not in lesson.context.column_names


def test_the_same_tables_make_the_same_searches(
    shop: tuple[Recommend, Snapshot, Snapshot], lessons: tuple[Lesson, Lesson]
) -> None:
    task, before, after = shop
    again = lesson_of_change(task, after, 1, lessons[0].ledger, before.versions["events"], 7)
    assert again.made.table.equals(lessons[1].made.table)
