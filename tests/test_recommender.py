"""The network: column 0 and empty rows are nobody's, one trace serves all shapes, dropout only when training."""

from __future__ import annotations

import numpy as np
import pytest

from models.recommender import Recommender, RecommenderSizes, Trainer, variables_of

SIZES = RecommenderSizes(items=8, categories=2, text_dimension=4, dimension=4, heads=2, user_hidden=8, copy_hidden=4)


def batch(size: int, length: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(length)
    return {
        "history_index": generator.integers(0, 6, (size, length)).astype(np.int32),
        "history_counts": np.ones((size, length), np.float32), "history_views": np.zeros((size, length), np.float32),
        "history_days": np.ones((size, length), np.float32), "query_vector": np.zeros((size, 4), np.float32),
        "has_query": np.zeros(size, np.float32), "target_index": np.eye(size, 32, dtype=np.int32),
        "rating_index": np.zeros(size, np.int32), "rating": np.zeros(size, np.float32),
        "weight": np.ones(size, np.float32),
    }


@pytest.fixture
def trainer() -> Trainer:
    network = Recommender(SIZES, seed=1)
    network.item_exists.assign([0, 1, 1, 1, 1, 1, 0, 0])
    return Trainer(network)


def test_rows_that_hold_no_item_are_never_likely(trainer: Trainer) -> None:
    logits, rating_logits = trainer.network(batch(3, 5))
    assert logits.shape == (3, 8)
    assert rating_logits.shape == (3, 5)
    assert (logits.numpy()[:, [0, 6, 7]] < -1e8).all()
    assert (logits.numpy()[:, 1:6] > -1e3).all()


def test_one_trace_serves_all_lengths_and_batch_sizes(trainer: Trainer) -> None:
    for size, length in ((4, 16), (4, 64), (2, 16)):
        trainer.train_step(batch(size, length), 1e-3)
    assert trainer._train.experimental_get_tracing_count() == 1


def test_an_example_of_no_weight_teaches_nothing() -> None:
    results = []
    for stray in (1, 5):
        network = Recommender(SIZES, seed=1)
        network.item_exists.assign([0, 1, 1, 1, 1, 1, 0, 0])
        trainer = Trainer(network)
        taught = batch(4, 5)
        taught["weight"][3] = 0.0
        taught["target_index"][3] = stray
        trainer.train_step(taught, 1e-2)
        results.append({name: variable.numpy() for name, variable in variables_of(trainer).items()})
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name], err_msg=name)


def test_rows_that_hold_no_item_do_not_move(trainer: Trainer) -> None:
    before = trainer.network.popularity_weight.numpy()
    trainer.train_step(batch(4, 5), 1e-2)
    moved = trainer.network.popularity_weight.numpy() != before
    np.testing.assert_array_equal(moved, [False, True, True, True, True, True, False, False])
