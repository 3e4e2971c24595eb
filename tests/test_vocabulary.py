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
    assert vocabulary.see(np.array([1, 1, 2, 0, 0, 0])) == 0
    assert vocabulary.see(np.array([1])) == 1
    np.testing.assert_array_equal(vocabulary.admitted, [False, True, False])


def test_it_comes_back_from_its_arrays_with_ids_of_any_script() -> None:
    vocabulary = Vocabulary()
    vocabulary.grow(["größe", "商品", "a" * 10_000])
    vocabulary.see(np.array([2]))
    twin = Vocabulary.from_arrays(vocabulary.arrays("v"), "v")
    assert list(twin.ids) == list(vocabulary.ids)
    np.testing.assert_array_equal(twin.sightings, [0, 0, 1, 0])


def test_an_empty_id_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="quarantine"):
        Vocabulary().grow([""])
