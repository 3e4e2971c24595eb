"""Low-rank changes of the text encoder: learnt from pairs, merged, kept in the checkpoint, held by updates, served."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from models.text_adapters import adapted, trained_factors
from models.text_encoder import TextEncoder, load_text_encoder
from pipeline.lake import open_lake
from pipeline.lesson import Lesson, lesson_of_change, lesson_of_everything
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Methods, Schedule
from pipeline.tasks.recommend import Recommend
from pipeline.tasks.recommend_learner import RecommenderLearner
from pipeline.tasks.recommend_texts import pairs
from pipeline.training import fine_tune
from tests.small_shop import publish_hours, settings_of, small_shop

pytestmark = pytest.mark.slow  # trains encoders: off by default

ASKED = ["red lamp", "blue mug", "green tea", "dog food", "wall clock", "garden pot", "soap bar", "nut mix"]
MEANT = ["luminaire", "beaker", "infusion", "animal", "time", "flower", "wash", "snack"]


@pytest.fixture(scope="module")
def tiny() -> TextEncoder:
    return load_text_encoder("tiny")


@pytest.fixture(scope="module")
def taught(tiny: TextEncoder) -> dict[str, np.ndarray]:
    return trained_factors(tiny, ASKED, MEANT, rank=2, steps=120, seed=1)


def told_apart(encoder: TextEncoder) -> float:
    """By how much a text's cosine with its own pair is above those with the others'."""
    cosines = encoder.embed(ASKED) @ encoder.embed(MEANT).T
    return float(np.diag(cosines).mean() - cosines.mean())


def test_pairs_come_nearer_and_the_encoder_that_was_given_stays(
    tiny: TextEncoder, taught: dict[str, np.ndarray]
) -> None:
    before, identity = told_apart(tiny), tiny.identity
    other = adapted(tiny, taught)
    assert told_apart(other) > 1.2 * before > 0.0  # of two random layers the attention moves little
    assert told_apart(tiny) == before
    assert load_text_encoder("tiny").identity == tiny.identity == identity != other.identity
    assert {array.shape[-1] if name.endswith("a") else array.shape[0] for name, array in taught.items()} == {2}


def test_the_same_factors_make_the_same_encoder_and_none_no_change(
    tiny: TextEncoder, taught: dict[str, np.ndarray]
) -> None:
    assert adapted(tiny, taught).embed(ASKED).tobytes() == adapted(tiny, taught).embed(ASKED).tobytes()
    nothing = {name: np.zeros_like(array) for name, array in taught.items()}
    assert adapted(tiny, nothing).identity == tiny.identity


def test_pairs_are_searches_with_what_was_chosen_and_items_chosen_together() -> None:
    context = pa.table({"item_id": ["a", "b", "c"], "text": ["A", "B", None]})
    examples = pa.table({
        "query": ["words", None, None, None, "lost"], "targets": [["a"], ["b"], ["a", "b"], ["a"], ["c"]],
        "history_items": pa.array([["b"], ["a", "c"], [], [], []], pa.list_(pa.string())),
    })
    found = sorted(zip(*pairs(context, examples, np.random.default_rng(0)), strict=True))
    assert found[1:] == [("A", "B"), ("words", "A")] or found[:1] == [("A", "B")]
    assert set(found) <= {("words", "A"), ("A", "B"), ("B", "A")} and len(found) == 3


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recommend, Lesson, RecommenderLearner, Lesson]:
    """A retrain that teaches the encoder, and the lesson of the hour after it."""
    settings, simulator = settings_of(tmp_path_factory.mktemp("lora")), small_shop()
    publish_hours(settings, simulator, 0, 30)
    lake = open_lake(settings)
    before = {table: lake.version(table) for table in ("events", "items")}
    publish_hours(settings, simulator, 30)
    after = {table: lake.version(table) for table in ("events", "items")}
    task = Recommend(lake, "tiny")
    first = lesson_of_everything(task, Snapshot(lake, before), None, None)
    learner = task.learner(7)
    learner.adapt(first.context, first.train, Methods(lora_rank=2, lora_steps=30))
    learner.grow(first.context, first.new)
    return task, first, learner, lesson_of_change(task, Snapshot(lake, after), 1, first.ledger, before["events"], 7)


def test_the_model_reads_items_and_queries_by_its_own_encoder(
    retrained: tuple[Recommend, Lesson, RecommenderLearner, Lesson]
) -> None:
    task, first, learner, _ = retrained
    own = learner._texts.encoder
    assert own.identity != task._encoder.identity
    texts = first.context["text"].to_pylist()
    held = learner._tables.text(learner._tables.items.indices_of(first.context["item_id"]))
    np.testing.assert_allclose(held, own.embed(texts) @ learner._directions.matrix, atol=4e-3)  # int8: half a step of 1
    asked = first.new.keep(np.array([bool(one) for one in first.new.table["query"].to_pylist()]))
    words = asked.table["query"].to_pylist()
    np.testing.assert_allclose(
        learner._encoded(asked).query_vector, own.embed(words) @ learner._directions.matrix, atol=1e-5
    )


def test_updates_keep_the_encoder_and_a_checkpoint_its_factors(
    retrained: tuple[Recommend, Lesson, RecommenderLearner, Lesson]
) -> None:
    task, _, learner, lesson = retrained
    other = task.restore(learner.state())
    assert other._texts.encoder is learner._texts.encoder  # made once in a process
    other.grow(lesson.context, lesson.new)
    once = Schedule(learning_rate=1e-3, warmup_steps=1, epochs=1, patience_epochs=1, batch_size=128)
    after = fine_tune(other, task.restore, lesson.train, lesson.tune, once, seed=1).learner
    own = task.restore(after.state())._texts.encoder
    assert own.identity == learner._texts.encoder.identity
    assert len(after.score(lesson.gate).frame)


def test_by_default_the_encoder_is_the_tasks_own(
    retrained: tuple[Recommend, Lesson, RecommenderLearner, Lesson]
) -> None:
    task, first, _, _ = retrained
    learner = task.learner(7)
    learner.adapt(first.context, first.train, task.base_schedule.methods)
    assert learner._texts.encoder is task._encoder
    with pytest.raises(ValueError, match="one wording"):
        replace(task.base_schedule.methods, lora_rank=2, text_mask=0.1)
