"""The recommender as a learner: what it knows untrained, that it learns, grows, resumes bit for bit and is packed.

Run as a program it is the other process of the resuming test: `python test_recommend_learner.py IN OUT GROWN`.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models import trainer as trainer_module
from pipeline.checkpoint import Checkpoint, Ledger, load, save
from pipeline.tasks.contract import Examples, together
from pipeline.tasks.recommend_batches import Batcher
from pipeline.tasks.recommend_examples import EXAMPLES_SCHEMA
from pipeline.tasks.recommend_learner import RecommenderLearner
from pipeline.tasks.recommend_neighbours import Neighbours
from pipeline.tasks.recommend_ranking import times_of

DIMENSION = 8
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
LEDGER = Ledger(
    kind="base", parent=None, versions={}, learnt_from={}, window=NOON, joined_until=NOON, span_hours=24
)
Moment = dict[str, Any]


def moment(targets: list[str], **known: Any) -> Moment:
    """One example; `history` as {item: (count, days)}, newest first; `query_vector`; `day` after the first.

    All purchases before are of one visit: an item's habit is its count.
    """
    history = known.get("history", {})
    return {
        "time": NOON + timedelta(days=known.get("day", 0)), "unit": known.get("unit", "u"), "rows": 1,
        "targets": targets, "query": known.get("query"),
        "history_items": list(history), "history_counts": [float(count) for count, _ in history.values()],
        "history_views": [0.0] * len(history), "history_days": [float(days) for _, days in history.values()],
        "history_habits": [float(count) for count, _ in history.values()],
        "rating_item": known.get("rating_item"), "rating": known.get("rating"),
        "query_vector": known.get("query_vector"),
    }


def examples(moments: list[Moment]) -> Examples:
    """EXAMPLES_SCHEMA and query_vector."""
    times = {"hour": NOON, "landed_window": NOON}
    schema = EXAMPLES_SCHEMA.append(pa.field("query_vector", pa.list_(pa.float32(), DIMENSION)))
    rows = [{**one, **times, "example_id": f"e{place}"} for place, one in enumerate(moments)]
    return Examples(pa.Table.from_pylist(rows, schema=schema))


def context(items: list[str], vectors: np.ndarray | None = None) -> pa.Table:
    """The catalogue's columns; text vectors random unless given."""
    if vectors is None:
        vectors = np.random.default_rng(len(items)).normal(size=(len(items), DIMENSION))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    count = len(items)
    return pa.table({
        "item_id": pa.array(items, pa.string()), "title": pa.array(items, pa.string()),
        "category": pa.array([None if place % 3 else "even" for place in range(count)], pa.string()),
        "brand": pa.nulls(count, pa.string()),
        "price": pa.array([None if place % 5 == 0 else 1.0 + place for place in range(count)], pa.float64()),
        "content_hash": pa.array(items, pa.string()),
        "text_vector": pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32(), DIMENSION)),
    })


def untrained(items: list[str], taught: Examples, vectors: np.ndarray | None = None) -> RecommenderLearner:
    learner = RecommenderLearner(seed=7, text_dimension=DIMENSION, encoder=lambda: None)
    learner.grow(context(items, vectors), taught)
    return learner


def ranking(learner: RecommenderLearner, one: Moment) -> list[str]:
    """All items, best first."""
    logits = compact_logits(learner, examples([one]))[0]
    return [learner.compact().ids[row] for row in np.argsort(-logits, kind="stable") if row]


def compact_logits(learner: RecommenderLearner, asked: Examples) -> np.ndarray:
    """[n, items], as consumers compute them; column 0 is no item."""
    encoded, trends = learner._encoded(asked), learner._counters.trends
    history = encoded.history(np.arange(len(encoded)), (len(encoded), 256))
    return learner.compact().logits(
        history["history_index"], history["history_counts"], history["history_views"], history["history_days"],
        encoded.habits(np.arange(len(encoded)), (len(encoded), 256)), encoded.query_vector, encoded.has_query > 0,
        times_of(learner._tables, trends, np.arange(len(trends.moments) + 1), trends.moment_of(encoded.times)),
    )


def network_logits(learner: RecommenderLearner, asked: Examples) -> np.ndarray:
    """[n, items], as the network computes them for a batch that was not counted; column 0 is no item."""
    tables, generator = learner._tables, np.random.default_rng(0)
    batcher = Batcher(
        learner._encoded(asked), tables, learner._counters, generator, counted=False
    )
    arrays = dict(batcher.batch(np.arange(len(asked)), 256, len(asked)))
    rows = arrays.pop("rows")
    assert rows.tolist() == list(range(len(tables)))  # all are candidates
    shared, own, _ = learner._network(tables.rows(rows), arrays)
    logits, history = shared.numpy(), arrays["history_index"]
    example, place = np.nonzero(history)
    logits[example, history[example, place]] = own.numpy()[example, place]
    return logits


def train(learner: RecommenderLearner, taught: Examples, steps: int, rate: float, batch_size: int = 32) -> None:
    generator = np.random.default_rng(1)
    while steps > 0:
        for batch in learner.batches(taught, batch_size, generator):
            learner.train_step(batch, rate)
            steps -= 1


def test_untrained_it_ranks_what_was_bought_most_often_then_latest_then_popular_items() -> None:
    items = [f"i{place}" for place in range(8)]
    sold = [["i7"]] * 9 + [["i6"]] * 5 + [["i5"]] * 2 + [["i0"]] * 30
    learner = untrained(items, examples([moment(basket) for basket in sold]))
    history = {"i2": (1, 2), "i1": (1, 40), "i4": (3, 300), "i5": (1, 400)}
    assert ranking(learner, moment(["i0"], history=history))[:7] == ["i4", "i2", "i1", "i5", "i0", "i7", "i6"]


def test_untrained_a_search_finds_the_item_whose_text_fits() -> None:
    items = [f"i{place}" for place in range(8)]
    learner = untrained(items, examples([moment(["i0"])] * 20), np.eye(8))
    assert ranking(learner, moment(["i5"], query="five", query_vector=np.eye(8)[5].tolist()))[0] == "i5"


def checkerboard() -> tuple[list[str], Examples, Examples]:
    """A shop where even users like even items and odd users odd ones; the next item is one not bought before."""
    generator = np.random.default_rng(0)
    items = [f"i{place}" for place in range(60)]
    moments = []
    for user in range(2000):
        liked = generator.permutation(np.arange(user % 2, 60, 2))[:6]
        history = {f"i{item}": (1, days) for days, item in enumerate(liked[:5])}
        moments.append(moment([f"i{liked[5]}"], history=history, unit=f"u{user}"))
    return items, examples(moments[:1800]), examples(moments[1800:])


def solves_the_checkerboard(learner: RecommenderLearner, judged: Examples, at_least: float = 0.65) -> bool:
    # 25 of 30 items of the right colour are not yet bought: 20 of the 60 places hold 20 / 25 of the answers
    recall = learner.score(judged).frame["recall@20"].mean()
    ranked = ranking(learner, moment(["i0"], history={"i2": (1, 0), "i8": (1, 1)}))
    own_colour = [int(item[1:]) % 2 == 0 for item in ranked]
    return bool(recall > at_least and np.mean(own_colour[:20]) >= 0.9)


def test_counting_what_goes_together_solves_the_checkerboard_and_training_keeps_it_solved() -> None:
    items, taught, judged = checkerboard()
    learner = untrained(items, taught)
    assert solves_the_checkerboard(learner, judged, at_least=0.5)  # some popular items of the wrong colour among them
    train(learner, taught, 120, 1e-2, batch_size=128)
    assert solves_the_checkerboard(learner, judged)


def test_without_counts_of_what_goes_together_the_towers_learn_the_checkerboard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Neighbours, "_merge", lambda self, *pairs: None)
    items, taught, judged = checkerboard()
    learner = untrained(items, taught)
    before = learner.score(judged).frame["recall@20"].mean()
    train(learner, taught, 120, 1e-2, batch_size=128)
    assert before < 0.5
    assert solves_the_checkerboard(learner, judged)


def test_training_does_not_read_the_answer_in_the_counts() -> None:
    # Each pair is bought once: a count knows a taught example's answer and nothing of any other.
    pairs = [moment([f"i{2 * place + 1}"], history={f"i{2 * place}": (1, 1)}) for place in range(100)]
    items, taught = [f"i{place}" for place in range(200)], examples(pairs)
    learner = untrained(items, taught)
    assert learner.score(taught).frame["recall@20"].mean() == 1.0  # it would be read
    [batch] = learner.batches(taught, 100, np.random.default_rng(0))
    learner._network.user_tower.dropout.rate = 0.0
    loss = learner.train_step(batch, 0.0)
    uncounted = RecommenderLearner(seed=7, text_dimension=DIMENSION, encoder=lambda: None)
    uncounted.grow(context(items), examples([moment(one["targets"]) for one in pairs]))
    assert loss == pytest.approx(uncounted.loss(taught, 100), rel=1e-5)
    assert learner.loss(taught, 100) < loss - 1.0


def test_training_does_not_read_the_answer_by_a_second_step() -> None:
    # h is bought before a and b, together, once each: a count leads from h over a to b and from nothing else
    baskets = [moment([f"a{place}", f"b{place}"], history={f"h{place}": (1, 1)}) for place in range(30)]
    items, taught = [f"{kind}{place}" for kind in "hab" for place in range(30)], examples(baskets)
    learner = untrained(items, taught)
    [batch] = learner.batches(taught, 30, np.random.default_rng(0))
    assert not batch["far"].any() and not batch["whole"].any() and not len(batch["neighbour_entries"])
    asked = Batcher(
        learner._encoded(taught), learner._tables, learner._counters, np.random.default_rng(0),
        counted=False,
    ).batch(np.arange(30), 16, 30)
    example, row = np.nonzero(asked["far"])
    reached = {(int(one), learner._tables.items.ids[asked["rows"][two]]) for one, two in zip(example, row, strict=True)}
    assert reached == {(place, f"{kind}{place}") for place in range(30) for kind in "ab"}  # not h: it is in the history


def neighbours_read(learner: RecommenderLearner, taught: Examples) -> np.ndarray:
    """[n]: what all neighbours of each example's history add up to as it is taught."""
    [batch] = learner.batches(taught, 64, np.random.default_rng(0))
    total = np.zeros(len(batch["weight"]), np.float32)
    np.add.at(total, batch["neighbour_entries"][:, 0], batch["neighbour_value"])
    return np.sort(total)


def test_an_update_teaches_with_the_counts_as_they_stood_before_it() -> None:
    items = [f"i{place}" for place in range(6)]
    old = examples([moment(["i1"], history={"i0": (1, 1)})] * 3)
    new = examples([moment(["i2"], history={"i0": (1, 1)}, day=3)] * 5)
    learner = untrained(items, old)
    of_old = learner._counters.neighbours.value.copy()
    learner.grow(context(items), new)
    np.testing.assert_array_equal(learner._counters.neighbours.value, of_old)
    three_times_bought = float(learner._counters.neighbours.value[learner._tables.items.index_of("i0")].sum())
    assert neighbours_read(learner, new) == pytest.approx([three_times_bought] * 5)
    # a replayed example is in the counts: its own part is taken off
    both = together(new.marked(replayed=False), old.marked(replayed=True))
    two_of_three = [two / 3 * three_times_bought for two in (2, 2, 2)]
    assert neighbours_read(learner, both) == pytest.approx([*two_of_three, *[three_times_bought] * 5])
    learner.count(new)
    assert learner._counters.neighbours.value.sum() > of_old.sum()
    counted = learner._counters.neighbours.value.copy()
    learner.count(new)  # asked twice: counted once
    np.testing.assert_array_equal(learner._counters.neighbours.value, counted)


def test_what_waits_to_be_counted_outlives_a_restore_and_is_not_forgotten() -> None:
    items, new = [f"i{place}" for place in range(6)], examples([moment(["i2"], history={"i0": (1, 1)}, day=3)] * 5)
    learner = untrained(items, examples([moment(["i1"], history={"i0": (1, 1)})] * 3))
    learner.grow(context(items), new)
    with pytest.raises(RuntimeError, match=r"must be counted before it grows again; .* Call count\(\)"):
        learner.grow(context(items), new)
    resumed = RecommenderLearner.restore(learner.state(), encoder=lambda: None)
    np.testing.assert_array_equal(neighbours_read(resumed, new), neighbours_read(learner, new))
    for one in (learner, resumed):
        one.count(new)
    np.testing.assert_array_equal(resumed._counters.neighbours.value, learner._counters.neighbours.value)
    np.testing.assert_array_equal(resumed._counters.trends.logs(0), learner._counters.trends.logs(0))


def test_what_a_learner_leaves_behind_serves_the_next_as_if_new() -> None:
    items, taught, _ = checkerboard()

    def trained() -> tuple[dict[str, np.ndarray], int]:
        learner = untrained(items, taught)
        train(learner, taught.take(np.arange(96)), 3, 1e-2)
        return dict(learner.state().arrays), learner._trainer._train.experimental_get_tracing_count()

    trainer_module._SPARE.clear()
    first, traced = trained()
    gc.collect()
    again, traced_again = trained()
    assert (traced, traced_again) == (1, 1)
    assert set(first) == set(again)
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)
    left = next(trainer for some in trainer_module._SPARE.values() for trainer in some)
    one, other = untrained(items, taught), untrained(items, taught)
    assert one._trainer is left
    assert other._trainer is not left


def test_a_new_item_is_recommended_after_an_update_in_which_it_sells() -> None:
    items, taught, _ = checkerboard()
    learner = untrained(items, taught)
    train(learner, taught, 30, 1e-2)
    hour = examples([moment(["fresh"], history={f"i{place}": (1, 1)}) for place in range(40)])
    counts = learner.grow(context(["fresh"]), hour)
    assert (counts["items_new"], counts["rows_admitted"]) == (1, 1)
    train(learner, hour, 20, 3e-3)
    learner.count(hour)
    assert "fresh" in ranking(learner, moment(["fresh"]))[:5]


def test_unknown_targets_are_misses_and_examples_without_targets_are_not_judged() -> None:
    items = [f"i{place}" for place in range(30)]
    learner = untrained(items, examples([moment(["i3"])] * 9))
    judged = [
        moment(["nobody knows it"]), moment([], rating_item="i1", rating=4.0), moment(["i3", "also unknown"]),
        moment(["i4"], history={"i4": (2, 1), "gone": (9, 1)}),
        moment(["i1"], query="q", query_vector=[1.0] * DIMENSION),
    ]
    frame = learner.score(examples(judged)).frame
    assert frame["example_id"].tolist() == ["e0", "e2", "e3", "e4"]
    assert frame["recall@20"].tolist()[:3] == [0.0, 0.5, 1.0]
    assert frame["mrr@20"].tolist()[:3] == [0.0, 1.0, 1.0]
    assert frame["slice:new_item"].tolist() == [True, True, True, True]  # only i3 was seen before
    assert frame["slice:repeat"].tolist() == [False, False, True, False]
    assert frame["slice:new_user"].tolist() == [True, True, False, True]
    assert frame["slice:search"].tolist() == [False, False, False, True]


def test_no_examples_give_no_scores_and_no_loss() -> None:
    learner = untrained(["a"], examples([moment(["a"])]))
    none = examples([])
    assert len(learner.score(none).frame) == 0
    assert learner.loss(none, 8) == 0.0
    assert list(learner.batches(none, 8, np.random.default_rng(0))) == []


def test_padding_of_the_last_batch_does_not_change_the_loss() -> None:
    items, taught, _ = checkerboard()
    learner = untrained(items, taught)
    assert learner.loss(taught, 64) == pytest.approx(learner.loss(taught, 300), rel=1e-5)


def test_the_logits_that_consumers_compute_are_the_networks() -> None:
    generator = np.random.default_rng(4)
    items = [f"i{place}" for place in range(60)]

    def one(place: int, **known: Any) -> Moment:
        several = generator.permutation(60)[: int(generator.integers(1, 30))]
        history = {f"i{item}": (int(generator.integers(0, 3)), int(generator.integers(0, 90))) for item in several}
        targets = sorted({f"i{item}" for item in several[:2] // 2})
        return moment(targets, history=history, day=place // 40, **known)

    taught = examples([one(place) for place in range(400)])
    query = {"query": "q", "query_vector": [0.3] * DIMENSION}
    asked = examples([one(place * 10, **(query if place % 2 else {})) for place in range(60)] + [moment(["i1"])])
    learner = untrained(items, taught)
    train(learner, taught, 10, 1e-2)
    for variable in learner._network.trainable_variables:  # no part is idle
        variable.assign_add(generator.normal(0.0, 0.1, variable.shape))
    network, compact = network_logits(learner, asked), compact_logits(learner, asked)
    np.testing.assert_allclose(compact[:, 1:], network[:, 1:], atol=1e-3, rtol=1e-4)
    moments = learner._counters.trends.moment_of(learner._encoded(asked).times)
    assert len(np.unique(moments)) > 5  # trends of several times
    learner._counters.neighbours.value[:] = 0.0
    assert np.abs(compact_logits(learner, asked) - compact)[:-1].max(axis=1).min() > 0.01  # neighbours of each history


def test_a_request_without_a_search_is_the_same_alone_and_among_searches() -> None:
    items, taught, _ = checkerboard()
    learner = untrained(items, taught)
    train(learner, taught, 3, 1e-2)
    history = {"i2": (1, 0), "i8": (1, 1)}
    search = moment([], history=history, query="q", query_vector=[0.3] * DIMENSION)
    alone = compact_logits(learner, examples([moment([], history=history)]))
    among = compact_logits(learner, examples([search, moment([], history=history)]))
    np.testing.assert_allclose(among[1, 1:], alone[0, 1:], rtol=1e-4, atol=1e-5)


def test_growing_keeps_weights_rows_and_moments() -> None:
    items, taught, _ = checkerboard()
    learner = untrained(items, taught)
    train(learner, taught, 5, 1e-2)
    before = learner.state().arrays
    learner.grow(context([f"n{place}" for place in range(300)]), examples([]))
    after = learner.state().arrays
    assert set(after) == set(before)
    for name in before:
        if name.startswith("vocabulary/"):
            continue
        np.testing.assert_array_equal(after[name][: len(before[name])] if before[name].ndim else after[name],
                                      before[name], err_msg=name)
    for name in ("items/rows", "items/text", "items/first", "trends/counts", "neighbours/index"):
        assert (len(before[name]), len(after[name])) == (61, 361), name


NEWER_INPUTS = {"user_tower/hidden_kernel": 5, "user_tower/direct_kernel": 5}


def test_a_checkpoint_of_fewer_inputs_goes_on_with_those_counting_for_nothing() -> None:
    items, taught, asked = checkerboard()
    learner = untrained(items, taught)
    train(learner, taught, 5, 1e-2)
    state, held = learner.state(), {}
    for path, array in state.arrays.items():
        cut = [lines for name, lines in NEWER_INPUTS.items() if path.split("recommender/")[-1] == name]
        if not path.endswith("own_gain"):
            held[path] = array[: len(array) - cut[0]] if cut else array
    assert len(held) < len(state.arrays)
    older = RecommenderLearner.restore(replace(state, arrays=held), encoder=lambda: None)
    for name, lines in NEWER_INPUTS.items():
        part, weight = name.split("/")
        getattr(getattr(learner._network, part), weight)[-lines:].assign(np.zeros((lines, 1)))
    learner._network.neighbour_head.own_gain.assign([0.0, 0.0])
    np.testing.assert_allclose(compact_logits(older, asked), compact_logits(learner, asked), rtol=1e-5, atol=1e-5)
    train(older, taught, 1, 1e-2)


def test_a_checkpoint_whose_copy_head_read_its_inputs_as_they_are_answers_the_same() -> None:
    items, taught, asked = checkerboard()
    learner = untrained(items, taught)
    train(learner, taught, 5, 1e-2)
    state, compact = learner.state(), learner.compact().arrays
    newer = [path for path in state.arrays if "copy_head" in path and "standard_" in path]
    held = {path: array for path, array in state.arrays.items() if path not in newer}
    prefix = next(path for path in newer if not path.startswith("optimizer/")).split("standard_")[0]
    raw = {"hidden_kernel": compact["copy_hidden_kernel"], "hidden_bias": compact["copy_hidden_bias"]}
    held |= {prefix + name: array for name, array in raw.items()}
    older = RecommenderLearner.restore(replace(state, arrays=held), encoder=lambda: None)
    np.testing.assert_allclose(compact_logits(older, asked), compact_logits(learner, asked), rtol=1e-5, atol=1e-5)
    held[prefix + "hidden_kernel"] = raw["hidden_kernel"][:-5]  # older still: five inputs fewer
    older = RecommenderLearner.restore(replace(state, arrays=held), encoder=lambda: None).compact().arrays
    np.testing.assert_allclose(older["copy_hidden_kernel"][-5:], 0.0)
    np.testing.assert_allclose(older["copy_hidden_kernel"][:-5], raw["hidden_kernel"][:-5], rtol=1e-6)
    np.testing.assert_allclose(older["copy_hidden_bias"], raw["hidden_bias"], rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_another_network_is_refused_with_both_shapes() -> None:
    items, taught, _ = checkerboard()
    state = untrained(items, taught).state()
    wider = {path: np.pad(array, [(0, 1)] * array.ndim) for path, array in state.arrays.items() if "user_tower" in path}
    with pytest.raises(ValueError, match=r"must fit into .*; it is .*retrain"):
        RecommenderLearner.restore(replace(state, arrays={**state.arrays, **wider}), encoder=lambda: None)


def third_step(learner: RecommenderLearner, grown: bool) -> None:
    _, taught, _ = checkerboard()
    if grown:
        fresh = examples([moment(["n1", "n2"], day=1)] * 4)  # a day later: a snapshot of the trends is made
        learner.grow(context([f"n{place}" for place in range(300)]), fresh)
        taught = examples([moment(["n1", "i3"], history={"i1": (1, 1), "n2": (2, 1)}, day=1)] * 30)
    learner.train_step(next(learner.batches(taught, 32, np.random.default_rng(3))), 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("grown", [False, True], ids=["same vocabulary", "vocabulary and tables grown"])
def test_a_new_process_takes_the_third_step_bit_for_bit(grown: bool, tmp_path: Path) -> None:
    items, taught, _ = checkerboard()
    learner = untrained(items, taught)
    for batch in list(learner.batches(taught, 32, np.random.default_rng(1)))[:2]:
        learner.train_step(batch, 1e-2)
    save(Checkpoint(learner.state(), LEDGER), tmp_path / "two")
    third_step(learner, grown)
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    arguments = [sys.executable, __file__, str(tmp_path / "two"), str(tmp_path / "three"), str(int(grown))]
    done = subprocess.run(arguments, check=False, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    here, there = learner.state(), load(tmp_path / "three").state
    assert set(here.arrays) == set(there.arrays)
    for name, array in here.arrays.items():
        assert array.dtype == there.arrays[name].dtype, name
        assert array.tobytes() == there.arrays[name].tobytes(), name
    assert there.arrays["optimizer/iteration"] == 3


if __name__ == "__main__":
    resumed = RecommenderLearner.restore(load(Path(sys.argv[1])).state, encoder=lambda: None)
    third_step(resumed, sys.argv[3] == "1")
    save(Checkpoint(resumed.state(), LEDGER), Path(sys.argv[2]))
