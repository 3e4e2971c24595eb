"""The vocabulary: indices are for good, unknown ids are nobody, rows are earned."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.vocabulary import Vocabulary


def test_an_index_stays_when_the_vocabulary_grows() -> None:
    vocabulary = Vocabulary()
    vocabulary.grow(["a", "b"])
    np.testing.assert_array_equal(vocabulary.grow(["c", "a"]), [3, 1])
    assert (vocabulary.index_of("b"), len(vocabulary)) == (2, 4)


def test_unknown_and_missing_ids_are_nobody() -> None:
    vocabulary = Vocabulary()
    vocabulary.grow(["a"])
    np.testing.assert_array_equal(vocabulary.indices_of(pa.array(["x", None, "a", ""])), [0, 0, 1, 0])


def test_an_id_earns_its_row_with_the_third_sighting() -> None:
    vocabulary = Vocabulary()
    vocabulary.grow(["a", "b"])
    np.testing.assert_array_equal(vocabulary.see(np.array([1, 1, 2, 0, 0, 0])), [])
    np.testing.assert_array_equal(vocabulary.see(np.array([1])), [1])
    np.testing.assert_array_equal(vocabulary.admitted, [False, True, False])
    np.testing.assert_array_equal(vocabulary.see(np.array([2, 1, 2])), [2])


def test_whether_some_ids_are_admitted_is_what_it_is_of_all() -> None:
    vocabulary = Vocabulary()
    vocabulary.grow(["a", "b", "c"])
    vocabulary.see(np.array([1, 1, 1, 3, 3, 3, 3]))
    np.testing.assert_array_equal(vocabulary.admitted_of(np.array([3, 2, 3, 0, 1])), [True, False, True, False, True])


def test_keep_drops_ids_and_the_others_move_up_with_their_sightings() -> None:
    vocabulary = Vocabulary()
    vocabulary.grow(["a", "b", "c", "d"])
    vocabulary.see(np.array([1, 2, 3, 3, 3, 4]))
    vocabulary.keep(np.array([0, 3, 4]))
    assert list(vocabulary.ids) == ["", "c", "d"]
    assert [vocabulary.index_of(name) for name in ("a", "b", "c", "d", "")] == [0, 0, 1, 2, 0]
    np.testing.assert_array_equal(vocabulary.sightings, [0, 3, 1])


def test_an_id_that_was_dropped_comes_back_as_a_new_one() -> None:
    vocabulary = Vocabulary()
    vocabulary.grow(["a", "b"])
    vocabulary.see(np.array([1, 1, 1]))
    vocabulary.keep(np.array([0, 2]))
    np.testing.assert_array_equal(vocabulary.grow(["b", "a"]), [1, 2])
    np.testing.assert_array_equal(vocabulary.admitted, [False, False, False])


def test_it_comes_back_from_its_arrays_with_ids_of_any_script() -> None:
    vocabulary = Vocabulary()
    vocabulary.grow(["größe", "商品", "a" * 10_000])
    vocabulary.see(np.array([2]))
    twin = Vocabulary.from_arrays(vocabulary.arrays("v"), "v")
    assert list(twin.ids) == list(vocabulary.ids)
    np.testing.assert_array_equal(twin.sightings, [0, 0, 1, 0])


def test_among_very_many_ids_each_is_found_and_no_other_whether_grown_or_read_back() -> None:
    names = [f"item-{number}" for number in range(5_000)]
    vocabulary = Vocabulary()
    for start in range(0, 5_000, 700):
        vocabulary.grow(names[start : start + 700])
    for one in (vocabulary, Vocabulary.from_arrays(vocabulary.arrays("v"), "v")):
        np.testing.assert_array_equal(one.indices_of(pa.array(names[::-1])), np.arange(5_000, 0, -1))
        assert [one.index_of(name) for name in ("item-", "item-5000", "tem-1", "item-01")] == [0] * 4
        assert one.ids[4_321] == "item-4320" and len(one) == 5_001


def test_an_empty_id_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="quarantine"):
        Vocabulary().grow([""])
