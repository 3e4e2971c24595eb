"""The network: row 0 is nobody's, one trace serves all shapes, what weighs nothing teaches nothing."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from models.layers import TREND_DAYS
from models.recommender import Recommender, RecommenderSizes
from models.trainer import Trainer, variables_of

SIZES = RecommenderSizes(text_dimension=4, dimension=4, heads=2, user_hidden=8, copy_hidden=4)


def batch(
    size: int, length: int, candidates: int = 6, rest: int = 2, moments: int = 1
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows of the item tables and a batch: the candidates, row 0 among them, then `rest` rows of histories only."""
    generator = np.random.default_rng(length)
    rows = candidates + rest

    def drawn(highest: int, *shape: int) -> np.ndarray:
        return generator.integers(0, highest, shape).astype(np.int32)

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    history = np.stack([generator.permutation(rows)[np.arange(length) % rows] for _ in range(size)]).astype(np.int32)
    history[:, rows:] = 0  # the items of a history are distinct
    example, place = (part.ravel() for part in np.mgrid[:size, : min(length, 16)])
    near = np.stack([example, drawn(candidates - 1, len(example)) + 1, place], axis=1).astype(np.int32)
    targets = np.zeros((size, 32), np.int32)
    targets[:, 0] = np.arange(size) % (candidates - 1) + 1
    return normal(rows, 4), {
        "rows_text": normal(rows, 4), "rows_price": normal(rows, 3), "rows_seen": np.ones(rows, np.float32),
        "trend": normal(moments, rows, len(TREND_DAYS)), "moment": drawn(moments, size),
        "correction": np.zeros(candidates, np.float32),
        "history_index": history, "history_counts": np.ones((size, length), np.float32),
        "history_views": np.zeros((size, length), np.float32), "history_days": np.ones((size, length), np.float32),
        "own_column": np.where(history < candidates, history, 0),
        "neighbour_entries": near, "neighbour_value": np.ones(len(near), np.float32),
        "whole": generator.random((size, rows), np.float32), "far": generator.random((size, rows), np.float32),
        "query_vector": normal(size, 4), "has_query": (np.arange(size) % 2).astype(np.float32),
        "target_index": np.where((targets[:, :, None] == history[:, None, :]).any(2), 0, targets),
        "own_targets": np.where(np.arange(32) == 0, _place(history, targets[:, 0]), 0).astype(np.int32),
        "rating_index": drawn(rows, size), "rating": drawn(6, size).astype(np.float32),
        "weight": np.ones(size, np.float32),
    }


def _place(history: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[size, 1]: 1 + the target's place in the history, 0: it is not there."""
    there = history == target[:, None]
    return np.where(there.any(1), 1 + there.argmax(1), 0)[:, None]


@pytest.fixture
def trainer() -> Trainer:
    return trained(Recommender(SIZES, seed=1))


def trained(network: Recommender) -> Trainer:
    """With no weight at zero, as after some training."""
    generator = np.random.default_rng(0)
    for variable in network.trainable_variables:
        variable.assign_add(generator.normal(0.0, 0.2, variable.shape))
    return Trainer(network)


def test_candidates_own_items_and_stars_have_a_logit_each(trainer: Trainer) -> None:
    rows, given = batch(3, 5, moments=2)
    shared, own, rating_logits = trainer.network(rows, given)
    assert (shared.shape, own.shape, rating_logits.shape) == ((3, 6), (3, 5), (3, 5))


def test_a_place_without_an_item_is_never_likely(trainer: Trainer) -> None:
    rows, given = batch(3, 12)
    own = trainer.network(rows, given)[1].numpy()
    nobody = given["history_index"] == 0
    assert (own[nobody] < -1e8).all()
    assert (own[~nobody] > -1e3).all()


def test_what_stands_in_row_0_changes_no_loss_and_learns_nothing(trainer: Trainer) -> None:
    rows, given = batch(4, 5)
    given["rating"][given["rating_index"] == 0] = 0.0
    before = trainer.measure(rows, given)
    for changed in (rows, given["rows_text"], given["rows_price"], given["trend"][0]):
        changed[0] += 3.0
    np.testing.assert_array_equal(trainer.measure(rows, given), before)
    moved = (trainer.train_step(rows, given, 1e-2)[1] != 0.0).any(axis=1)
    np.testing.assert_array_equal(moved[:6], [False, *[True] * 5])  # and each candidate learns


def test_rows_that_no_example_reads_learn_nothing(trainer: Trainer) -> None:
    rows, given = batch(4, 3, rest=3)
    read = np.isin(np.arange(6, 9), np.concatenate([given["history_index"].ravel(), given["rating_index"]]))
    given["rating"][:] = 0.0
    given["history_index"][given["history_index"] == 8] = 0
    gradient = trainer.train_step(rows, given, 1e-2)[1]
    assert read[2]  # it was read before
    np.testing.assert_array_equal(gradient[8], np.zeros(4))


def test_one_trace_serves_all_shapes(trainer: Trainer) -> None:
    for size, length, candidates, moments in ((4, 16, 6, 1), (4, 64, 9, 3), (2, 16, 20, 1)):
        trainer.train_step(*batch(size, length, candidates, moments=moments), 1e-3)
        trainer.measure(*batch(size, length, candidates, moments=moments))
    assert trainer._train.experimental_get_tracing_count() == 1
    assert trainer._measure.experimental_get_tracing_count() == 1


def test_an_example_of_no_weight_teaches_nothing() -> None:
    results = []
    for stray in (1, 5):
        trainer = trained(Recommender(SIZES, seed=1))
        rows, taught = batch(4, 5)
        taught["weight"][3] = 0.0
        taught["target_index"][3] = stray
        gradient = trainer.train_step(rows, taught, 1e-2)[1]
        moved = {name: variable.numpy() for name, variable in variables_of(trainer).items()}
        results.append({**moved, "rows": gradient})
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name], err_msg=name)


def test_the_gradient_of_the_rows_is_the_losses(trainer: Trainer) -> None:
    tf.config.experimental.enable_op_determinism()
    rows, given = batch(4, 5)
    trainer.network.user_tower.dropout.rate = 0.0
    direction = np.random.default_rng(5).normal(size=rows.shape).astype(np.float32)
    step = 1e-2 * direction
    rise = (trainer.measure(rows + step, given).mean() - trainer.measure(rows - step, given).mean()) / 2
    gradient = trainer.train_step(rows, given, 0.0)[1]
    np.testing.assert_allclose((gradient * step).sum(), rise, rtol=0.02)
