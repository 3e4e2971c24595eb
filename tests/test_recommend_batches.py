"""Batches: the sampled softmax estimates the exact one, indices point at their items, no example reads its answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from models.layers import NEIGHBOUR_HISTORY
from pipeline.tasks import recommend_batches
from pipeline.tasks.contract import Examples
from pipeline.tasks.recommend_batches import Batcher, groups_by_length
from pipeline.tasks.recommend_encoded import Encoded
from pipeline.tasks.recommend_learner import RecommenderLearner
from pipeline.tasks.recommend_neighbours import Neighbours
from tests.test_recommend_learner import DIMENSION, Moment, context, examples, moment

ITEMS = 80


def baskets(number: int, most: int, seed: int = 0, longest: int = 30) -> list[Moment]:
    """Examples of `most` targets at most; every fourth is a search, every third is rated."""
    generator = np.random.default_rng(seed)
    found = []
    for place in range(number):
        liked = np.minimum(generator.geometric(0.04, size=400), ITEMS) - 1  # a few items are popular
        history = dict.fromkeys(f"i{item}" for item in liked[: generator.integers(0, longest)])
        targets = dict.fromkeys(f"i{item}" for item in liked[-int(generator.integers(1, most + 1)) :])
        query = {"query": "q", "query_vector": generator.normal(size=DIMENSION).tolist()} if place % 4 == 0 else {}
        rated = {"rating_item": f"i{liked[20]}", "rating": float(generator.integers(1, 6))} if place % 3 == 0 else {}
        bought = {item: (int(generator.integers(0, 3)), age) for age, item in enumerate(history)}
        found.append(moment(list(targets), history=bought, day=place // 20, **query, **rated))
    return found


def learner_of(moments: list[Moment]) -> RecommenderLearner:
    """It has counted the moments; no weight and no row is idle."""
    learner = RecommenderLearner(seed=2, text_dimension=DIMENSION, encoder=lambda: None)
    learner.grow(context([f"i{place}" for place in range(ITEMS)]), examples(moments))
    generator = np.random.default_rng(3)
    for variable in learner._network.trainable_variables:
        variable.assign_add(generator.normal(0.0, 0.1, variable.shape))
    tables = learner._tables
    tables.step(np.arange(ITEMS + 1), generator.normal(size=(ITEMS + 1, 64)).astype(np.float32), 0.05)
    return learner


@pytest.fixture(scope="module")
def counted() -> list[Moment]:
    return baskets(100, most=3)


@pytest.fixture(scope="module")
def learner(counted: list[Moment]) -> RecommenderLearner:
    return learner_of(counted)


def batcher_of(
    learner: RecommenderLearner, taught: Examples | Encoded, *, counted: bool, mask: float = 0.0
) -> Batcher:
    encoded = learner._encoded(taught) if isinstance(taught, Examples) else taught
    generator = np.random.default_rng(0)
    return Batcher(encoded, learner._tables, learner._counters, generator, counted=counted, mask=mask)


def losses(learner: RecommenderLearner, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    arrays = dict(batch)
    return learner._trainer.measure(learner._tables.rows(arrays.pop("rows")), arrays)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A catalogue of 80 items is large, and of a large one 30 are drawn."""
    monkeypatch.setattr(recommend_batches, "EXACT_ITEMS", 10)
    monkeypatch.setattr(recommend_batches, "SAMPLED_ITEMS", 30)
    return monkeypatch


def test_with_all_items_drawn_the_sampled_loss_is_the_exact_one(
    learner: RecommenderLearner, counted: list[Moment], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = np.arange(100)
    exact = batcher_of(learner, examples(counted), counted=True).batch(chosen, 64, 104)
    monkeypatch.setattr(recommend_batches, "EXACT_ITEMS", 10)
    monkeypatch.setattr(recommend_batches, "SAMPLED_ITEMS", 200_000)
    sampled = batcher_of(learner, examples(counted), counted=True).batch(chosen, 64, 104)
    assert len(sampled["correction"]) == len(exact["correction"]) == ITEMS + 1
    np.testing.assert_allclose(losses(learner, sampled)[:100], losses(learner, exact)[:100], rtol=1e-4)


@pytest.mark.slow
def test_over_many_draws_the_sum_over_the_catalogue_is_estimated_without_bias(
    learner: RecommenderLearner, counted: list[Moment], sampled: pytest.MonkeyPatch
) -> None:
    one_target = examples([{**one, "targets": one["targets"][:1], "rating": None} for one in counted[:24]])
    chosen = np.arange(24)
    batcher = batcher_of(learner, one_target, counted=False)
    drawn = np.stack([losses(learner, batcher.batch(chosen, 64, 24)) for _ in range(800)]).astype(np.float64)
    sampled.undo()
    exact = losses(learner, batcher_of(learner, one_target, counted=False).batch(chosen, 64, 24)).astype(np.float64)
    ratio = np.exp(drawn - exact)  # of the estimated sum to the exact one: the target's logit cancels out
    error = ratio.std(axis=0) / np.sqrt(len(ratio))
    assert np.median(error) < 0.03  # enough draws to tell
    assert np.median(ratio.std(axis=0)) > 0.1  # and it is an estimate
    assert (np.abs(ratio.mean(axis=0) - 1.0) < 4 * error + 1e-3).all()


def test_of_a_large_catalogue_a_batch_has_each_of_its_items_once_and_the_candidates_first(
    learner: RecommenderLearner, counted: list[Moment], sampled: pytest.MonkeyPatch
) -> None:
    batcher = batcher_of(learner, examples(counted), counted=True)
    for start in range(0, 100, 10):
        batch = batcher.batch(np.arange(start, start + 10), 64, 10)
        rows, candidates = batch["rows"], len(batch["correction"])
        assert rows[0] == 0
        assert len(np.unique(rows)) == len(rows) < ITEMS + 1
        assert batch["target_index"].max() < candidates
        assert batch["own_column"].max() < candidates
        assert batch["neighbour_entries"][:, 1].max() < len(batch["rows"])
        assert (batch["correction"][1:] > -1e8).sum() <= 30  # drawn; the rest are targets only


@pytest.mark.parametrize("items", ["all are candidates", "some are drawn"])
def test_after_several_batches_indices_still_point_at_their_items(
    learner: RecommenderLearner, counted: list[Moment], items: str, request: pytest.FixtureRequest
) -> None:
    if items == "some are drawn":
        request.getfixturevalue("sampled")
    encoded = learner._encoded(examples(counted))
    batcher = batcher_of(learner, encoded, counted=True)
    moments = learner._counters.trends.moment_of(encoded.times)
    for start in range(0, 96, 12):
        chosen = np.arange(start, start + 12)
        batch = batcher.batch(chosen, 64, 12)
        rows, candidates = batch["rows"], len(batch["correction"])
        for place, example in enumerate(chosen):
            history = encoded.history_index[slice(*encoded.history_offsets[example : example + 2])]
            targets = encoded.target_index[slice(*encoded.target_offsets[example : example + 2])]
            listed = rows[batch["history_index"][place]]
            assert listed[: len(history)].tolist() == history.tolist()
            assert not listed[len(history) :].any()
            own, other = batch["own_targets"][place], rows[batch["target_index"][place]]
            assert sorted([*listed[own[own > 0] - 1], *other[other > 0]]) == sorted(targets)
            assert not set(other[other > 0]) & set(history)
            same = batch["own_column"][place]
            assert (rows[same][same > 0] == listed[same > 0]).all()
            assert np.isin(listed[(same == 0) & (listed > 0)], rows[:candidates]).sum() == 0
            np.testing.assert_array_equal(
                batch["trend"][batch["moment"][place]], learner._counters.trends.logs(int(moments[example]), rows)
            )
        assert rows[batch["rating_index"]].tolist() == encoded.rating_index[chosen].tolist()
        np.testing.assert_array_equal(batch["rows_text"], learner._tables.text(rows))
        np.testing.assert_array_equal(batch["rows_seen"], learner._counters.neighbours.seen[rows])


@pytest.mark.parametrize("items", ["all are candidates", "some are drawn"])
def test_neighbours_of_a_history_are_those_among_the_rows(
    learner: RecommenderLearner, counted: list[Moment], items: str, request: pytest.FixtureRequest
) -> None:
    if items == "some are drawn":
        request.getfixturevalue("sampled")
    encoded, table = learner._encoded(examples(counted)), learner._counters.neighbours
    batcher = batcher_of(learner, encoded, counted=False)
    for start in (60, 80, 0):  # earlier batches leave nothing behind
        batch = batcher.batch(np.arange(start, min(start + 40, 100)), 64, 40)
    history = batch["rows"][batch["history_index"]]
    wanted = {
        (example, int(item), place): float(value)
        for example in range(40)
        for place in range(NEIGHBOUR_HISTORY)
        for item, value in zip(table.index[history[example, place]], table.value[history[example, place]], strict=True)
        if item and item in batch["rows"]
    }
    assert near(batch) == wanted
    assert len({place for *_, place in wanted}) == NEIGHBOUR_HISTORY


def near(batch: Mapping[str, np.ndarray]) -> dict[tuple[int, int, int], float]:
    """How often an item was chosen with that at a place of an example's history: {(example, item, place): count}."""
    items = batch["rows"][batch["neighbour_entries"][:, 1]]
    return {
        (int(example), int(item), int(place)): float(value)
        for (example, _, place), item, value in zip(
            batch["neighbour_entries"], items, batch["neighbour_value"], strict=True
        )
    }


def neighbours_without(learner: RecommenderLearner, moments: list[Moment], place: int) -> Neighbours:
    """What is counted of all examples but one."""
    table = Neighbours()
    table.grow(ITEMS + 1)
    table.count(learner._encoded(examples(moments[:place] + moments[place + 1 :])).chosen)
    return table


@pytest.mark.parametrize(
    ("most", "longest", "mask"), [(3, 40, 0.0), (75, 12, 0.0), (6, 40, 0.5)],
    ids=["long histories", "baskets beyond the cut", "histories with gaps"],
)
def test_an_example_sees_the_counts_of_its_targets_as_if_it_had_not_been_counted(
    most: int, longest: int, mask: float
) -> None:
    moments = baskets(30, most, seed=1, longest=longest)
    learner = learner_of(moments)
    encoded = learner._encoded(examples(moments))
    encoded = encoded.with_targets_by(np.random.default_rng(1).random(len(encoded.target_index)))
    batches = [
        batcher_of(learner, encoded, counted=counted, mask=mask).batch(np.arange(30), 64, 30)
        for counted in (True, False)
    ]
    seen, everything = map(near, batches)
    less = same = 0
    for place in range(30):
        table = neighbours_without(learner, moments, place)
        scale = float(learner._counters.neighbours.weight(encoded.times[:1])[0] / table.weight(encoded.times[:1])[0])
        history = batches[0]["rows"][batches[0]["history_index"][place]]
        started, ended = encoded.history_offsets[place : place + 2]
        history_of_all = set(encoded.history_index[started:ended])
        targets = set(batches[0]["rows"][batches[0]["target_index"][place]])
        counted_with = targets | history_of_all
        first, last = encoded.target_offsets[place : place + 2]
        counted_with |= set(encoded.target_index[first:last][encoded.target_counted[first:last]])
        for (_, item, at), value in ((key, value) for key, value in everything.items() if key[0] == place):
            if item not in counted_with:
                assert seen[place, item, at] == value
                continue
            known = table.value[history[at]] * scale
            left = float(known[table.index[history[at]] == item].sum())
            if left or not known.min():  # else it may have been among those that are not kept
                assert seen.get((place, item, at), 0.0) == pytest.approx(left, rel=1e-3, abs=1e-4)
                new = item in targets - history_of_all
                less, same = less + (left < value - 1e-4), same + (new and left >= value - 1e-4)
    assert less > 20
    assert (same > 5) == (most > 32)  # drawn from beyond what is counted


def test_examples_that_fill_up_a_batch_weigh_nothing_and_change_no_other(
    learner: RecommenderLearner, counted: list[Moment]
) -> None:
    chosen = np.arange(50, 57)
    bare = batcher_of(learner, examples(counted), counted=True).batch(chosen, 64, 7)
    filled = batcher_of(learner, examples(counted), counted=True).batch(chosen, 64, 16)
    assert filled["weight"].tolist() == [1.0] * 7 + [0.0] * 9
    np.testing.assert_allclose(losses(learner, filled)[:7], losses(learner, bare), rtol=1e-5)
    assert not losses(learner, filled)[7:].any()


def test_a_target_beyond_the_cut_of_a_history_is_like_any_other_item(learner: RecommenderLearner) -> None:
    history = {f"i{place}": (1, place) for place in range(10)}
    taught = examples([moment(["i1", "i5"], history=history)])
    batch = batcher_of(learner, taught, counted=False).batch(np.array([0]), 3, 1)
    rows = batch["rows"]
    assert rows[batch["history_index"]].tolist() == [[1, 2, 3]]
    assert sorted(batch["own_targets"][0].tolist())[-2:] == [0, 2]
    assert sorted(rows[batch["target_index"][0]].tolist())[-2:] == [0, 6]


def test_where_a_target_stands_in_its_own_history_is_known(learner: RecommenderLearner) -> None:
    taught = examples([
        moment(["i7", "i3", "i9"], history={"i3": (1, 0), "gone": (1, 1), "i9": (1, 2)}), moment(["i3"]),
        moment(["unknown", "i2"], history={"gone": (1, 1), "i2": (1, 2)}),
    ])
    encoded = learner._encoded(taught)
    assert encoded.target_place.tolist() == [-1, 0, 2, -1, -1, 1]
    assert encoded.repeats().tolist() == [True, False, True]


def test_targets_are_drawn_within_their_basket_with_all_that_is_theirs(learner: RecommenderLearner) -> None:
    encoded = learner._encoded(examples(baskets(20, most=75, seed=5)))
    drawn = encoded.with_targets_by(np.random.default_rng(0).random(len(encoded.target_index)))
    assert (drawn.target_index != encoded.target_index).any()
    for example in range(20):
        inside = slice(*encoded.target_offsets[example : example + 2])
        columns = ("target_index", "target_place", "target_counted")
        before, after = (
            sorted(zip(*(getattr(one, name)[inside].tolist() for name in columns), strict=True))
            for one in (encoded, drawn)
        )
        assert before == after


def test_of_a_large_basket_no_more_is_counted_than_a_batch_holds(learner: RecommenderLearner) -> None:
    encoded = learner._encoded(examples(baskets(20, most=75, seed=5)))
    sizes, counted = np.diff(encoded.target_offsets), np.diff(encoded.chosen.target_offsets)
    assert sizes.max() > 32
    np.testing.assert_array_equal(counted, np.minimum(sizes, 32))
    assert len(encoded.chosen.targets) == counted.sum()


def test_each_example_is_in_one_batch_with_histories_of_about_its_length(learner: RecommenderLearner) -> None:
    encoded = learner._encoded(examples(baskets(50, most=2, longest=70)))
    groups = groups_by_length(encoded, np.random.default_rng(0).permutation(50), 8)
    assert sorted(np.concatenate([chosen for chosen, _ in groups]).tolist()) == list(range(50))
    lengths = np.diff(encoded.history_offsets)
    for chosen, length in groups:
        assert len(chosen) <= 8
        assert lengths[chosen].max() <= length


@pytest.mark.parametrize("counted", [True, False])
def test_what_a_whole_history_goes_with_is_without_what_the_example_has_added(counted: bool) -> None:
    shop = 30  # fewer than the neighbours that are kept: none is lost
    generator = np.random.default_rng(4)
    moments = [
        moment(
            [f"i{item}" for item in generator.permutation(shop)[:4]], day=place,
            history={f"i{item}": (1, age) for age, item in enumerate(generator.permutation(shop)[: 5 + place])},
        )
        for place in range(20)
    ]
    learner = learner_of(moments)
    batch = batcher_of(learner, examples(moments), counted=counted).batch(np.arange(20), 64, 20)
    seen = learner._counters.neighbours.seen
    for place in (0, 7, 19):  # a history longer than what is paired with a basket among them
        table = neighbours_without(learner, moments, place) if counted else learner._counters.neighbours
        time = learner._encoded(examples(moments)).times[:1]
        scale = float(learner._counters.neighbours.weight(time)[0] / table.weight(time)[0])
        wanted = np.zeros(ITEMS + 1)
        for item in batch["history_index"][place][batch["history_index"][place] > 0]:
            near = table.index[item]
            np.add.at(wanted, near, table.value[item] * scale / np.sqrt(np.maximum(seen[item] * seen[near], 1e-6)))
        wanted[0] = 0.0
        np.testing.assert_allclose(batch["whole"][place], wanted, rtol=1e-3, atol=1e-4)
        assert (wanted > 0).sum() > 20
