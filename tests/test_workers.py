"""Several workers make one retrain: each has its share alone, and together they learn what one alone would."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import workers
from pipeline.checkpoint import load_state
from pipeline.settings import SettingsError, read_settings
from pipeline.tasks import recommend_batches
from pipeline.tasks.contract import Examples, Methods, Sharable
from pipeline.tasks.recommend_batches import Batcher
from pipeline.tasks.recommend_learner import RecommenderLearner
from pipeline.tasks.recommend_shares import Share, Whole, outline
from pipeline.workers import WorkersFailed, shard
from tests.benchmarks import bench_beyond
from tests.small_shop import publish_hours, settings_of, small_shop
from tests.test_recommend_learner import examples, moment, untrained

ITEMS = [f"i{place}" for place in range(60)]


@dataclass(frozen=True)
class Place:
    """A worker's place; nobody to speak with."""

    rank: int
    size: int


@pytest.fixture(scope="module")
def taught() -> Examples:
    draw = np.random.default_rng(4)
    return examples([
        moment([ITEMS[item] for item in draw.choice(60, 1 + place % 3, replace=False)], day=place % 7,
               history={ITEMS[item]: (1, 3) for item in draw.choice(60, place % 20, replace=False)})
        for place in range(41)
    ])


@pytest.fixture(scope="module")
def learner(taught: Examples) -> RecommenderLearner:
    return untrained(ITEMS, taught)


def batches_of(learner: RecommenderLearner, own: Examples, share: Share | None) -> list[tuple[np.ndarray, dict]]:
    """What `learner.batches` makes of the examples: the rows of each batch, and its arrays."""
    encoded, generator = learner._encoded(own), np.random.default_rng(9)
    of = share or Whole(encoded)
    order = generator.permutation(len(of))
    encoded = encoded.with_targets_by(of.target_draws(generator))
    batcher = Batcher(encoded, learner._tables, learner._counters, generator, counted=True)
    made = [dict(of.batch(batcher, chosen, length)) for chosen, length in of.groups(order, 8)]
    return [(arrays.pop("rows"), arrays) for arrays in made]


@pytest.mark.parametrize("exact_items", [8192, 10], ids=["small catalogue", "large catalogue"])
def test_the_parts_of_a_batch_have_the_losses_of_the_whole_batch(
    learner: RecommenderLearner, taught: Examples, exact_items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommend_batches, "EXACT_ITEMS", exact_items)
    monkeypatch.setattr(recommend_batches, "SAMPLED_ITEMS", 12)
    whole = batches_of(learner, taught, None)
    parts = [
        batches_of(learner, shard(taught, rank, 3), Share.of(Place(rank, 3), outline(taught)))  # type: ignore[arg-type]
        for rank in range(3)
    ]
    for number, (rows, arrays) in enumerate(whole):
        wanted = learner._trainer.measure(learner._tables.rows(rows), arrays)
        found, there = np.zeros_like(wanted), set()
        for own_rows, own in (part[number] for part in parts):
            assert own.pop("examples") == arrays["weight"].sum()
            assert own.pop("dropout_size") == len(arrays["weight"])
            place = own.pop("dropout_place")
            losses = learner._trainer.measure(learner._tables.rows(own_rows), own)
            found[place] += losses * own["weight"]
            there |= set(own_rows[: None if own["weight"].any() else 1].tolist())
        np.testing.assert_allclose(found, wanted * arrays["weight"], rtol=1e-5, atol=1e-6)
        assert there == set(rows.tolist())


def test_a_worker_has_no_example_of_another(taught: Examples) -> None:
    shards = [shard(taught, rank, 3).table["example_id"].to_pylist() for rank in range(3)]
    assert [len(one) for one in shards] == [14, 14, 13]
    assert sorted(one for own in shards for one in own) == sorted(taught.table["example_id"].to_pylist())


def test_a_method_that_needs_the_whole_batch_is_refused_with_several_workers(
    learner: RecommenderLearner, taught: Examples
) -> None:
    joined = untrained(ITEMS[:5], taught)
    assert isinstance(joined, Sharable)
    joined._share = Share.of(Place(0, 2), outline(taught))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without l2_pull, history_mask"):
        joined.use(Methods(l2_pull=0.1, history_mask=0.2), taught)


def test_no_workers_are_none_to_train_with() -> None:
    with pytest.raises(SettingsError, match="EVERGREEN_WORKERS must be at least 1; received 0"):
        read_settings({"EVERGREEN_MASK_KEY": "k" * 64, "EVERGREEN_WORKERS": "0"})


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path)
    publish_hours(settings, small_shop(history_days=3, history_events=4_000), 0, 72)
    read: dict[int, list[str]] = {}

    def run(folder: Path, given: object) -> None:
        for rank in range(2):
            read[rank] = workers._read_examples(folder / f"train-{rank}.arrow").table["example_id"].to_pylist()
        started(folder, given)
        assert load_state(folder / "trained").arrays

    started = workers._run
    monkeypatch.setattr(workers, "_run", run)
    one, two = (bench_beyond.trained_by(settings, workers, 5)[0] for workers in (1, 2))
    assert one.steps == two.steps >= 5
    assert not any((tmp_path / "training" / "recommend").iterdir())
    alone, both = one.learner.state(), two.learner.state()
    assert not set(read[0]) & set(read[1])
    assert alone.arrays.keys() == both.arrays.keys()
    moved = [name for name in alone.arrays if name.startswith(("recommender/", "items/rows", "categories/rows"))]
    assert len(moved) > 20
    for name in moved:
        np.testing.assert_allclose(both.arrays[name], alone.arrays[name], rtol=0, atol=1e-5, err_msg=name)
    for name in ("items/steps", "categories/steps", "seed_generator/0"):
        np.testing.assert_array_equal(both.arrays[name], alone.arrays[name], err_msg=name)


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_job_with_its_words(tmp_path: Path) -> None:
    settings = replace(settings_of(tmp_path), workers=2)
    with pytest.raises(WorkersFailed, match=r"(?s)worker \d ended with 2: .*must hold a retrain's job.json"):
        workers._run(tmp_path, settings)


@pytest.mark.parametrize(
    ("words", "said"), [([], "required: folder"), (["nowhere"], "must hold a retrain's job.json; received nowhere")]
)
def test_a_worker_without_a_job_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        workers.main(words)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "usage: python -m pipeline.workers" in told and said in told
