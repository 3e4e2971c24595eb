"""Of several copies of a row the first good one counts, each window judged as if it had come alone."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cleaning import FAULTS_SCHEMA
from pipeline.copies import first_copies, usable_copies
from pipeline.schema import EVENTS, TIME
from tests.landed import T0


def rows(*landed: tuple[str, int, float]) -> pa.Table:
    """Rows (event id, hour in which it landed, price) in order of landing; a price below zero is refused."""
    keys, hours, prices = zip(*landed, strict=True)
    starts = pa.array([T0 + timedelta(hours=hour) for hour in hours], TIME)
    places = pa.array(range(len(landed)), pa.int64())
    return pa.table({"event_id": pa.array(keys), "landed_window": starts, "price": prices, "landed_row": places})


def judge(some: pa.Table) -> pa.Table:
    bad = some.filter(pc.less(some["price"], 0))["landed_row"]
    return pa.table([bad, ["price"] * len(bad), [None] * len(bad)], schema=FAULTS_SCHEMA)


def sorted_out(*landed: tuple[str, int, float]) -> tuple[list[int], list[int], list[int]]:
    """Which of the rows count, are duplicates, and are refused, by their places."""
    firsts, copies = first_copies(rows(*landed), EVENTS)
    good = firsts.filter(pc.greater_equal(firsts["price"], 0))
    counting, duplicates, faults = usable_copies(good, copies, EVENTS, judge)
    refused = [*judge(firsts)["landed_row"].to_pylist(), *faults["landed_row"].to_pylist()]
    return (
        sorted(counting["landed_row"].to_pylist()),
        sorted(duplicates["landed_row"].to_pylist()),
        sorted(refused),
    )


def test_rows_without_copies_all_count() -> None:
    assert sorted_out(("a", 0, 1.0), ("b", 0, 1.0)) == ([0, 1], [], [])


def test_a_copy_after_a_good_row_of_its_window_is_a_duplicate_however_bad() -> None:
    assert sorted_out(("a", 0, 1.0), ("b", 0, 1.0), ("a", 0, -1.0)) == ([0, 1], [2], [])


def test_the_first_good_copy_counts_and_those_before_it_are_refused() -> None:
    assert sorted_out(("a", 0, -1.0), ("a", 0, -2.0), ("a", 0, 3.0), ("a", 0, -4.0)) == ([2], [3], [0, 1])


def test_a_bad_copy_in_a_later_window_is_refused_as_if_that_window_came_alone() -> None:
    assert sorted_out(("a", 0, 1.0), ("a", 1, -1.0), ("a", 1, 2.0), ("a", 2, 3.0)) == ([0], [2, 3], [1])


def test_a_later_window_counts_where_the_earlier_has_no_good_copy() -> None:
    assert sorted_out(("a", 0, -1.0), ("a", 1, 2.0), ("a", 2, 3.0)) == ([1], [2], [0])


def test_thousands_of_bad_rows_under_one_id_are_judged_in_one_go() -> None:
    calls = []

    def counted(some: pa.Table) -> pa.Table:
        calls.append(len(some))
        return judge(some)

    firsts, copies = first_copies(rows(*[("a", 0, -1.0)] * 5000, ("a", 0, 1.0)), EVENTS)
    counting, duplicates, faults = usable_copies(firsts.slice(0, 0), copies, EVENTS, counted)
    assert (len(counting), len(duplicates), len(faults), calls) == (1, 0, 4999, [5000])
