"""The rivals of bench-learning on a checkerboard shop, whose right answer is known: even users buy even items.

Each user lacks the item of the diagonal, as in implicit's own tests; whoever has learnt anything offers it first among
what the user has not had, and offers nothing of the other colour.
"""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.benchmarks.rivals import als, item_knn, sequence
from tests.benchmarks.rivals.exchange import RANKED_ITEMS, TESTS, TRAIN, Ranked, Rival, counts_of_users, known_items

_SIZE = 24  # users and items
_START = datetime(2026, 1, 1, tzinfo=UTC)
_ALONE = [partial(item_knn.rank), partial(als.rank), partial(als.rank, alpha=als.CLICKS_ALPHA)]
_NAMES = ["item_knn", "als", "als_of_clicks"]


def liked(user: int) -> list[str]:
    """The items of the user's colour, less the diagonal, in an order of the user's own."""
    items = [f"{item:02}" for item in range(user % 2, _SIZE, 2) if item != user % _SIZE]
    return random.Random(user).sample(items, len(items))


def checkerboard(users: int = _SIZE) -> tuple[pa.Table, pa.Table, list[str]]:
    """Baskets of three of every user, one test for each user, and all items; users past the board start again."""
    baskets = [(user, liked(user)[first : first + 3]) for first in range(0, _SIZE // 2, 3) for user in range(users)]
    train = pa.table(
        [
            [f"user-{user}" for user, _ in baskets],
            [_START + timedelta(minutes=minute) for minute in range(len(baskets))],
            [basket for _, basket in baskets],
        ],
        schema=TRAIN,
    )
    later = [_START + timedelta(days=90)] * users
    tests = pa.table(
        [[f"user-{user}" for user in range(users)], later, [liked(user) for user in range(users)]], schema=TESTS
    )
    return train, tests, [f"{item:02}" for item in range(_SIZE)]


def assert_learnt(ranked: Ranked) -> None:
    for user, row in enumerate(ranked.items):
        colour = [item for item in row[: _SIZE // 2] if int(item) % 2 == user % 2]
        assert len(colour) == _SIZE // 2, f"user {user} was offered the other colour: {list(row)}"
        assert f"{user % _SIZE:02}" in colour  # never bought by this user, by all others of the colour


@pytest.mark.parametrize("rank", _ALONE, ids=_NAMES)
def test_rival_offers_a_users_colour_and_the_withheld_item(rank: Rival) -> None:
    train, tests, catalogue = checkerboard()
    ranked = rank(train, tests, catalogue, 1)
    assert ranked.items.shape == (_SIZE, RANKED_ITEMS)
    assert_learnt(ranked)
    assert ranked.train_cpu_s > 0 and ranked.rank_cpu_s > 0


@pytest.mark.parametrize("rank", _ALONE, ids=_NAMES)
def test_only_the_catalogue_is_ranked_and_no_item_twice(rank: Rival) -> None:
    train, tests, catalogue = checkerboard()
    allowed = set(catalogue) - {"00", "01", "07"} | {"never sold"}
    for row in rank(train, tests, sorted(allowed), 1).items:
        offered = [item for item in row if item is not None]
        assert set(offered) <= allowed
        assert len(set(offered)) == len(offered)
        assert len(offered) >= _SIZE // 2 - 2  # the colour's items that are left
        assert list(row[len(offered) :]) == [None] * (RANKED_ITEMS - len(offered))


@pytest.mark.parametrize("rank", _ALONE, ids=_NAMES)
def test_user_unknown_to_training_is_ranked_for_by_history_and_an_unknown_history_gets_nothing(rank: Rival) -> None:
    train, _, catalogue = checkerboard()
    histories = [["04", "06", "06"], ["05"], ["never sold"], []]
    tests = pa.table([["new"] * 4, [_START + timedelta(days=90)] * 4, histories], schema=TESTS)
    even, odd, unknown, empty = rank(train, tests, catalogue, 1).items
    assert {int(item) % 2 for item in even[: _SIZE // 2]} == {0}
    assert {int(item) % 2 for item in odd[: _SIZE // 2]} == {1}
    assert set(unknown) == set(empty) == {None}


def test_same_seed_gives_the_same_ranks() -> None:
    train, tests, catalogue = checkerboard()
    first, again = (als.rank(train, tests, catalogue, 7) for _ in range(2))
    assert (first.items == again.items).all()


def test_user_has_an_item_as_often_as_it_was_bought_over_all_baskets() -> None:
    train = pa.table([["a", "b", "a"], [_START] * 3, [["x", "y"], ["y"], ["y", "y"]]], schema=TRAIN)
    items = known_items(train)
    assert items.to_pylist() == ["x", "y"]
    np.testing.assert_array_equal(counts_of_users(train, items).toarray(), [[1, 3], [0, 1]])


def test_absent_environment_is_named_with_its_remedy(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "PYTHON", tmp_path / "python")
    with pytest.raises(FileNotFoundError, match="make bench-rivals-env"):
        sequence.rank_both(*checkerboard(), 1, tmp_path)


@pytest.mark.skipif(not sequence.PYTHON.exists(), reason="no .venv-rivals: `make bench-rivals-env` makes it")
def test_sequence_rival_offers_a_users_colour_and_the_withheld_item(tmp_path: Path) -> None:
    train, tests, catalogue = checkerboard(users=10 * _SIZE)  # a network needs more than one user of a kind
    anything, new = sequence.rank_both(train, tests, catalogue, 1, tmp_path)
    assert anything.items.shape == (10 * _SIZE, RANKED_ITEMS)
    own_colour = [{int(item) % 2 for item in row[:6]} == {user % 2} for user, row in enumerate(anything.items)]
    withheld = [row[0] == f"{user % _SIZE:02}" for user, row in enumerate(new.items)]
    assert np.mean(own_colour) > 0.8  # 0.94 when written; by chance 1 in 64
    assert np.mean(withheld) > 0.9  # 0.99 when written; by chance 1 in 13
    assert not any(set(row) & set(liked(user)) for user, row in enumerate(new.items))
    assert anything.train_cpu_s > 0 and anything.rank_cpu_s > 0


def test_what_was_trained_is_not_trained_again_and_anything_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def worker(folder: Path, seed: int) -> None:
        trained.append(seed)
        rows = pq.read_table(folder / "tests.parquet").num_rows
        answers = pa.array([["00", "01"]] * rows, pa.list_(pa.string()))
        pq.write_table(pa.table({"items": answers, "new_items": answers}), folder / "ranked.parquet")
        (folder / "cost.json").write_text('{"rank_cpu_s": 0.5, "new_rank_cpu_s": 0.25}')

    monkeypatch.setattr(sequence, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(sequence, "_run", worker)
    train, tests, catalogue = checkerboard()
    first, again = (sequence.rank_both(train, tests, catalogue, 1, tmp_path)[0] for _ in range(2))
    assert trained == [1]
    assert (first.items == again.items).all() and (first.train_cpu_s, first.rank_cpu_s) == (
        again.train_cpu_s, again.rank_cpu_s
    )
    sequence.rank_both(train, tests, catalogue, 2, tmp_path)
    sequence.rank_both(train.slice(1), tests, catalogue, 1, tmp_path)
    assert trained == [1, 2, 1]
    assert len(list(tmp_path.iterdir())) == 3, "no folder of a training stays"
