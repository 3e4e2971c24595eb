"""The item tables: they grow and shrink without touching the rows that stay; rows are earned, categories share."""

from __future__ import annotations

import numpy as np
import pytest

from models.int8_rows import Int8Rows
from models.layers import ItemTower
from pipeline.tasks.recommend_items import ItemTables

TEXT, WIDTH = 3, 2


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tables_of(items: int, admitted: list[int], category: list[int]) -> ItemTables:
    """Items 1, 2, ... of the categories given, some of them admitted."""
    tables = ItemTables(TEXT, WIDTH)
    rows = tables.items.grow([f"i{place}" for place in range(1, items + 1)])
    tables.categories.grow([f"c{place}" for place in range(1, max(category) + 1)])
    tables.grow()
    tables.describe(rows, Int8Rows.of(random(items, TEXT)), random(items, 3, seed=1), np.array(category))
    tables.items.see(np.repeat(admitted, 10))
    return tables


def taught(tables: ItemTables, steps: int = 3) -> ItemTables:
    for step in range(steps):
        tables.step(np.arange(len(tables)), random(len(tables), WIDTH, seed=step), 1e-1)
    return tables


def test_growing_keeps_rows_and_moments_and_starts_new_rows_at_zero() -> None:
    tables = taught(tables_of(4, [1, 2, 3], [1, 2, 0, 1]))
    before = tables.arrays()
    tables.items.grow([f"n{place}" for place in range(1000)])
    tables.categories.grow(["new"])
    tables.grow()
    after = tables.arrays()
    assert (before["items/rows"] != 0).any()
    assert len(after["items/rows"]) == 1005
    for name, array in before.items():
        if not name.startswith("vocabulary/"):
            assert array.tobytes() == after[name][: len(array)].tobytes(), name
            assert not after[name][len(array) :].any(), name


def test_tables_from_a_checkpoint_grow_as_those_that_wrote_it() -> None:
    tables = taught(tables_of(4, [1, 2, 3], [1, 2, 0, 1]))
    twins = [tables, ItemTables.from_arrays(tables.arrays())]
    for size in (7, 5_000):  # within the room that a checkpoint's arrays have, and beyond it
        for one in twins:
            one.items.grow([f"n{place}" for place in range(size)])
            one.grow()
            taught(one, steps=1)
        first, other = [one.arrays() for one in twins]
        assert {name: array.tobytes() for name, array in first.items()} == {
            name: array.tobytes() for name, array in other.items()
        }


def test_a_step_after_growing_is_the_step_without_it() -> None:
    grown, same = (taught(tables_of(4, [1, 2, 3], [1, 2, 0, 1])) for _ in range(2))
    grown.items.grow(["new"])
    grown.grow()
    index, gradient = np.array([0, 3, 1]), random(3, WIDTH, seed=9)
    grown.step(index, gradient, 1e-1)
    same.step(index, gradient, 1e-1)
    np.testing.assert_array_equal(grown.rows(np.arange(5)), same.rows(np.arange(5)))


def test_an_item_that_is_not_admitted_has_the_vector_of_its_text_alone() -> None:
    tables = tables_of(2, [2], [0, 0])
    tables.describe(np.array([1, 2]), Int8Rows.of(np.eye(2, TEXT)), np.zeros((2, 3)), np.zeros(2))
    tables.step(np.array([1, 2]), np.ones((2, WIDTH), np.float32), 5.0)
    tower = ItemTower(TEXT, WIDTH)
    index = np.array([1, 2])
    vectors = tower(tables.rows(index), tables.text(index), tables.price(index))
    np.testing.assert_array_equal(vectors[0], [1.0, 0.0])
    assert (vectors[1] < [-1.0, 0.0]).numpy().all()


def test_an_item_that_is_not_admitted_learns_no_row_and_starts_at_zero_when_it_is() -> None:
    tables = taught(tables_of(2, [2], [0, 0]))
    held = tables.arrays()
    assert held["items/steps"].tolist() == [0, 0, 3]
    assert not held["items/rows"][1].any() and not held["items/first"][1].any()
    tables.items.see(np.array([1] * 10))
    assert not tables.rows(np.array([1])).any()
    taught(tables, 1)
    assert tables.rows(np.array([1])).all()


def test_row_0_never_learns() -> None:
    tables = taught(tables_of(2, [1, 2], [1, 0]))
    assert not tables.rows(np.array([0])).any()
    held = tables.arrays()
    assert (held["items/steps"][0], held["categories/steps"][0]) == (0, 0)


def test_a_category_learns_the_sum_of_its_items_gradients() -> None:
    tables = tables_of(4, [4], [1, 1, 2, 2])
    gradient = np.array([[1.0, 0.0], [2.0, 4.0], [7.0, 7.0], [-7.0, -7.0]], np.float32)
    tables.step(np.array([1, 2, 3, 4]), gradient, 0.1)
    first, second, third = tables.rows(np.array([1, 2, 3]))
    np.testing.assert_allclose(first / np.linalg.norm(first), [-0.6, -0.8], rtol=1e-5)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(third, [0.0, 0.0])  # those of category 2 cancel out
    assert tables.rows(np.array([4])).all()  # its own row is free to go


def test_keep_drops_rows_and_moves_the_others_with_all_that_is_theirs() -> None:
    tables = taught(tables_of(5, [1, 2, 4, 5], [1, 2, 0, 2, 1]))
    kept = np.array([0, 2, 4, 5])
    before = {name: array[kept] for name, array in tables.arrays().items() if name.startswith("items/")}
    of_categories = tables.arrays()["categories/rows"]
    rows = tables.rows(kept)
    tables.keep(kept)
    after = tables.arrays()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    np.testing.assert_array_equal(tables.rows(np.arange(4)), rows)
    np.testing.assert_array_equal(after["categories/rows"], of_categories)
    assert list(tables.items.ids) == ["", "i2", "i4", "i5"]
    assert [tables.items.index_of(item) for item in ("i1", "i5")] == [0, 3]
    assert len(tables) == 4


def test_after_keep_new_items_take_the_free_places_and_start_at_zero() -> None:
    tables = taught(tables_of(3, [1, 2, 3], [0, 0, 0]))
    tables.keep(np.array([0, 3]))
    tables.items.grow(["new"])
    tables.grow()
    tables.items.see(np.array([2] * 10))
    assert tables.rows(np.array([1])).all()
    assert not tables.rows(np.array([2])).any()
    assert not tables.text(np.array([2])).any()


def test_it_comes_back_from_its_arrays_and_goes_on_the_same() -> None:
    tables = taught(tables_of(4, [1, 2, 3], [1, 2, 0, 1]))
    twin = ItemTables.from_arrays(tables.arrays())
    for one in (tables, twin):
        one.items.grow(["new"])
        one.grow()
        taught(one, 2)
    for (name, array), other in zip(tables.arrays().items(), twin.arrays().values(), strict=True):
        assert array.dtype == other.dtype, name
        np.testing.assert_array_equal(array, other, err_msg=name)


def test_a_checkpoints_arrays_do_not_follow_later_steps() -> None:
    tables = taught(tables_of(2, [1, 2], [1, 1]))
    held = tables.arrays()
    before = {name: array.copy() for name, array in held.items()}
    taught(tables)
    for name, array in before.items():
        np.testing.assert_array_equal(held[name], array, err_msg=name)


@pytest.mark.parametrize("of", ["text", "price"])
def test_facts_are_as_described(of: str) -> None:
    tables = tables_of(3, [1], [0, 0, 0])
    described = random(3, TEXT) if of == "text" else random(3, 3, seed=1)
    given = getattr(tables, of)(np.array([3, 1, 0]))
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, [described[2], described[0], np.zeros(3)], atol=0.02)  # int8


def test_an_admitted_item_without_text_begins_at_random_and_one_with_text_at_zero() -> None:
    tables = tables_of(4, [1, 2, 3], [0, 0, 0, 0])
    bare = np.array([2, 3])
    tables.describe(bare, Int8Rows.zeros(2, TEXT), np.zeros((2, 3)), np.zeros(2, int))
    tables.begin_rows(np.array([1, 2, 3]), seed=5)
    rows = tables.rows(np.arange(5))
    assert not rows[[0, 1, 4]].any() and (rows[bare] != 0).all() and np.linalg.norm(rows[bare]) < 3.0
    again = tables_of(4, [1, 2, 3], [0, 0, 0, 0])
    again.describe(bare, Int8Rows.zeros(2, TEXT), np.zeros((2, 3)), np.zeros(2, int))
    again.begin_rows(np.array([1, 2, 3]), seed=5)
    np.testing.assert_array_equal(again.rows(np.arange(5)), rows)
