"""An ensemble of the last versions: what answers is their mean, in the learner and where it is served."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.compact_ensemble import CompactEnsemble, load_recommender
from models.compact_recommender import CompactRecommender
from models.recommender_service import RecommenderService
from pipeline.tasks.contract import Methods
from pipeline.tasks.recommend_learner import RecommenderLearner
from tests.test_methods import ITEMS, LESSON, NEW, OLD, restored, same, steps
from tests.test_recommend_learner import compact_logits, context, untrained

pytestmark = pytest.mark.slow  # three versions of a lineage: off by default


@pytest.fixture(scope="module")
def lineage() -> list[RecommenderLearner]:
    """The first model, and two updates of it that answer with those before them."""
    versions = [steps(untrained(ITEMS, OLD), OLD, Methods())]
    for _ in range(2):
        versions.append(steps(restored(versions[-1]), LESSON, Methods(ensemble=3)))
    return versions


def alone(learner: RecommenderLearner) -> RecommenderLearner:
    other = restored(learner)
    other._elders.forget()
    return other


def test_it_answers_with_the_mean_of_the_versions_before_it(lineage: list[RecommenderLearner]) -> None:
    single = [compact_logits(alone(one), NEW) for one in lineage]
    np.testing.assert_allclose(compact_logits(lineage[1], NEW), (single[0] + single[1]) / 2, atol=1e-4)
    np.testing.assert_allclose(compact_logits(lineage[2], NEW), sum(single) / 3, atol=1e-4)
    assert np.abs(single[2] - single[0]).max() > 0.1


def test_the_oldest_goes_when_there_are_enough(lineage: list[RecommenderLearner]) -> None:
    after = steps(restored(lineage[2]), LESSON, Methods(ensemble=2))
    single = [compact_logits(alone(one), NEW) for one in (lineage[2], after)]
    np.testing.assert_allclose(compact_logits(after, NEW), sum(single) / 2, atol=1e-4)


def test_what_was_never_trained_has_no_say() -> None:
    first = steps(untrained(ITEMS, OLD), OLD, Methods(ensemble=3))
    assert isinstance(first.compact(), CompactRecommender) and not isinstance(first.compact(), CompactEnsemble)


def test_training_goes_on_as_without_and_switched_off_it_leaves_nothing(lineage: list[RecommenderLearner]) -> None:
    plain = steps(alone(lineage[1]), LESSON, Methods())
    assert same(alone(lineage[2]), plain)
    assert same(steps(restored(lineage[1]), LESSON, Methods()), plain)


def test_a_checkpoint_holds_the_older_versions(lineage: list[RecommenderLearner]) -> None:
    again = restored(lineage[2])
    assert same(again, lineage[2])
    assert compact_logits(again, NEW).tobytes() == compact_logits(lineage[2], NEW).tobytes()


def test_older_versions_know_an_item_that_came_later_by_its_text_alone(lineage: list[RecommenderLearner]) -> None:
    learner = restored(lineage[1])
    learner.grow(context(["new"]), NEW.take(np.arange(0)))
    compact = learner.compact()
    assert isinstance(compact, CompactEnsemble)
    row, elder = compact.index["new"], compact.elders[0].arrays
    text = learner._tables.text(np.array([row]))
    category = next(iter(learner._elders))["categories/rows"][learner._tables.categories.index_of("even")]
    known_by_text = compact_text(text @ elder["text_adapter"], category)
    np.testing.assert_allclose(elder["items"][row], known_by_text, atol=1e-5)


def compact_text(adapted: np.ndarray, category: np.ndarray) -> np.ndarray:
    """The vector of an item without price: the context's first item has none, and the category `even`."""
    return (adapted + category)[0]


def test_an_item_that_goes_leaves_every_version(lineage: list[RecommenderLearner]) -> None:
    learner = restored(lineage[1])
    gone = context(ITEMS[:1])
    learner.grow(gone.append_column("last_seen", pa.nulls(1, pa.timestamp("us", "UTC"))), NEW.take(np.arange(0)))
    compact = learner.compact()
    assert isinstance(compact, CompactEnsemble)
    assert ITEMS[0] not in compact.index
    before = lineage[1].compact()
    assert isinstance(before, CompactEnsemble)
    for item in ITEMS[1:]:
        old, new = before.elders[0].arrays["items"], compact.elders[0].arrays["items"]
        np.testing.assert_allclose(old[before.index[item]], new[compact.index[item]], atol=1e-5)


def test_saved_and_loaded_it_answers_as_the_gate_judged(lineage: list[RecommenderLearner], tmp_path: Path) -> None:
    rounded = lineage[2].compact().rounded()
    lineage[2].compact().save(tmp_path)
    loaded = load_recommender(tmp_path)
    given: tuple[Any, ...] = (np.array([[1, 2]]), np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32),
                              np.array([[0.0, 5.0]], np.float32), np.array([[1.0, 0.9]], np.float32))
    assert isinstance(loaded, CompactEnsemble) and len(loaded.elders) == 2
    assert loaded.logits(*given).tobytes() == rounded.logits(*given).tobytes()
    assert loaded.logits(*given).tobytes() != loaded.elders[0].logits(*given).tobytes()
    assert load_recommender(saved(alone(lineage[2]), tmp_path / "alone")).logits(*given).shape == (1, len(ITEMS) + 1)


def saved(learner: RecommenderLearner, folder: Path) -> Path:
    learner.compact().save(folder)
    return folder


def test_the_reasons_add_up_to_the_score(lineage: list[RecommenderLearner]) -> None:
    service = RecommenderService(lineage[2].compact(), SimpleNamespace)
    row = {"history": ITEMS[:3]}
    answered, scores = service.one(row, 5)
    for told, score in zip(service.reasons(row, answered), scores, strict=True):
        assert sum(value for name, value in told.items() if name != "because") == pytest.approx(score, abs=1e-4)


def test_the_graph_answers_the_same(lineage: list[RecommenderLearner]) -> None:
    import tensorflow as tf

    from models.recommender_graph import RecommenderGraph

    compact = lineage[2].compact()
    ids, scores = RecommenderService(compact, SimpleNamespace).one({"history": ITEMS[:3]}, 5)
    given = tf.constant([ITEMS[:3]]), tf.constant([[0.0, 1.0, 2.0]])
    answer = RecommenderGraph(compact).recommend(*given, tf.constant(5))
    assert [one.decode() for one in answer["item_ids"].numpy()[0]] == ids
    np.testing.assert_allclose(answer["scores"].numpy()[0], scores, atol=1e-3)
