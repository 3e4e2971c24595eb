"""Which item of a history leads to an answer: in one step, from a place beyond the newest ones, in two steps."""

from __future__ import annotations

import numpy as np
import pytest

from models.compact_neighbours import NEIGHBOUR_HISTORY, CompactNeighbours


@pytest.fixture
def neighbours() -> CompactNeighbours:
    # 1 goes with 41 (twice) and 42 (four times), 2 with 41 (three times), 42 with 43; 3 and above go with nothing
    index, value = np.zeros((60, 2), np.int32), np.zeros((60, 2), np.float32)
    index[1], value[1] = [41, 42], [2.0, 4.0]
    index[2], value[2] = [41, 0], [3.0, 0.0]
    index[42], value[42] = [43, 1], [1.0, 4.0]
    return CompactNeighbours({
        "neighbour_index": index, "neighbour_value": value, "neighbour_seen": np.full(60, 4.0, np.float32),
    })


def test_the_item_that_is_chosen_with_it_most_leads_to_it(neighbours: CompactNeighbours) -> None:
    assert neighbours.nearest(np.array([1, 3, 2]), np.array([41, 42])).tolist() == [2, 0]


def test_an_item_beyond_the_newest_ones_leads_to_it(neighbours: CompactNeighbours) -> None:
    history = np.append(np.arange(3, 3 + NEIGHBOUR_HISTORY), 2)
    assert neighbours.nearest(history, np.array([41])).tolist() == [NEIGHBOUR_HISTORY]


def test_where_no_item_leads_to_it_in_one_step_two_steps_do(neighbours: CompactNeighbours) -> None:
    assert neighbours.nearest(np.array([2, 1]), np.array([43, 41])).tolist() == [1, 0]


def test_nothing_leads_to_what_is_chosen_with_nothing(neighbours: CompactNeighbours) -> None:
    assert neighbours.nearest(np.array([2, 1]), np.array([50])).tolist() == [-1]
    assert neighbours.nearest(np.zeros(0, np.int64), np.array([41])).tolist() == [-1]
