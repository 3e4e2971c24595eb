"""Picked rows are those that `take` would give, in the order asked for."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.picking import picked

LETTERS = pa.chunked_array([["a", "b"], [], ["c", None, "e"]], pa.string())


@pytest.mark.parametrize("places", [[], [3], [0, 2, 4], [4, 0, 3], [2, 1]])
def test_rows_come_in_the_order_in_which_they_are_named(places: list[int]) -> None:
    wanted = np.array(places, np.int64)
    assert picked(LETTERS, wanted).to_pylist() == LETTERS.take(pa.array(wanted)).to_pylist()
    table = pa.table({"letter": LETTERS, "number": pa.array(range(5))})
    assert picked(table, wanted)["number"].to_pylist() == places
