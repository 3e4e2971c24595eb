"""What is chosen together: counted by hand, kept current by parts, and an example's own part can be taken off."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tasks.recommend_neighbours import MEAN_LIFE_DAYS, Chosen, Neighbours, place_weights

DAY = 86_400_000_000
FIRST = 20_000 * DAY
Basket = tuple[list[int], list[int], float]  # items of the history, newest first, items chosen, day


def chosen(baskets: list[Basket]) -> Chosen:
    offsets = [np.concatenate([[0], np.cumsum([len(one[part]) for one in baskets])]) for part in (0, 1)]
    flat = [np.array([item for one in baskets for item in one[part]], np.int32) for part in (0, 1)]
    times = np.array([FIRST + round(day * DAY) for *_, day in baskets], np.int64)
    again = np.array([item in history for history, basket, _ in baskets for item in basket], bool)
    return Chosen(offsets[0].astype(np.int64), flat[0], offsets[1].astype(np.int64), flat[1], again, times)


def counted(baskets: list[Basket], items: int = 40, table: Neighbours | None = None) -> Neighbours:
    table = table or Neighbours()
    table.grow(items)
    table.count(chosen(baskets))
    return table


def unit(table: Neighbours, day: float) -> float:
    """What a choice on that day counts."""
    return float(table.weight(np.array([FIRST + round(day * DAY)]))[0])


def pairs(table: Neighbours, day: float = 0.0) -> dict[tuple[int, int], float]:
    """How often each item was chosen with each, in choices of that day."""
    there = np.argwhere(table.index > 0)
    return {
        (int(item), int(table.index[item, place])): float(table.value[item, place]) / unit(table, day)
        for item, place in there
    }


def both(wanted: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    return wanted | {(right, left): value for (left, right), value in wanted.items()}


def random_baskets(number: int, items: int = 12, seed: int = 0) -> list[Basket]:
    generator = np.random.default_rng(seed)
    return [
        (
            generator.permutation(items)[: generator.integers(0, 8)].tolist(),  # item 0, nobody, among them
            generator.permutation(np.arange(1, items))[: generator.integers(0, 4)].tolist(),
            float(place) / 3,
        )
        for place in range(number)
    ]


def test_items_of_a_basket_go_with_one_another_in_both_directions() -> None:
    table = counted([([], [1, 2, 3], 0.0), ([], [2, 3], 0.0)])
    expected = both({(1, 2): 3**-0.5, (1, 3): 3**-0.5, (2, 3): 3**-0.5 + 2**-0.5})
    assert pairs(table) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(table.seen[:5] / unit(table, 0.0), [0.0, 1.0, 2.0, 2.0, 0.0])


def test_a_historys_items_go_with_what_is_chosen_by_one_over_their_place_and_not_with_each_other() -> None:
    table = counted([([4, 5, 6], [1], 0.0), ([6], [2], 0.0)])
    expected = both({(4, 1): 1 / 2, (5, 1): 1 / 4, (6, 1): 1 / 6, (6, 2): 2**-0.5})
    assert pairs(table) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(table.seen[:7] / unit(table, 0.0), [0, 1, 1, 0, 0, 0, 0])  # only what was chosen


def test_an_item_that_nobody_knows_keeps_its_place_and_has_no_pairs() -> None:
    table = counted([([0, 5], [0, 1], 0.0)])
    assert pairs(table) == pytest.approx(both({(5, 1): 0.5 * 4**-0.5}), rel=1e-6)
    assert table.seen[0] == 0.0


def test_an_item_bought_again_goes_with_its_basket_and_not_with_the_history() -> None:
    # 1 and 3 are one basket, 3 is new and follows 1 and 2; four items, each pair counts a half of what it would alone
    expected = both({(1, 3): (1.0 + 1.0) / 2, (2, 3): 0.5 / 2})
    assert pairs(counted([([1, 2], [1, 3], 0.0)])) == pytest.approx(expected, rel=1e-6)


def test_who_has_bought_much_says_less_of_any_two_items() -> None:
    table = counted([(list(range(5, 12)), [1, 2], 0.0), ([], [3, 4], 0.0)])
    assert pairs(table)[1, 2] == pytest.approx(1 / 3, rel=1e-6)
    assert pairs(table)[3, 4] == pytest.approx(2**-0.5, rel=1e-6)


def test_a_table_of_before_goes_on_counting_each_pair_alike() -> None:
    baskets: list[Basket] = [([], [1, 2, 3], 0.0), ([4], [1, 2], 0.0)]
    older = {name: array for name, array in counted([]).arrays("n").items() if not name.endswith("by_size")}
    table = counted(baskets, table=Neighbours.from_arrays(older, "n"))
    expected = both({(1, 2): 2.0, (1, 3): 1.0, (2, 3): 1.0, (4, 1): 1.0, (4, 2): 1.0})
    assert pairs(table) == pytest.approx(expected, rel=1e-6)
    again = Neighbours.from_arrays(table.arrays("n"), "n")
    assert again.shares(chosen(baskets)).tolist() == [1.0, 1.0]


def test_an_older_basket_counts_less_by_e_in_each_mean_life() -> None:
    table = counted([([], [1, 2], 0.0), ([3], [4], 25.0)])
    now = pairs(table, 25.0)
    expected = both({(1, 2): 2**-0.5 * np.exp(-25.0 / MEAN_LIFE_DAYS), (3, 4): 2**-0.5})
    assert now == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(table.seen[1] / table.seen[4], np.exp(-25.0 / MEAN_LIFE_DAYS), rtol=1e-5)


def test_counting_in_several_calls_is_counting_in_one() -> None:
    baskets = random_baskets(100)
    one, several = counted(baskets), None
    for start in range(0, 100, 17):
        several = counted(baskets[start : start + 17], table=several)
    assert several is not None
    assert pairs(several, 30.0) == pytest.approx(pairs(one, 30.0), rel=1e-4)
    np.testing.assert_allclose(several.seen / unit(several, 30.0), one.seen / unit(one, 30.0), rtol=1e-4)


def test_what_an_example_adds_is_what_is_missing_without_it() -> None:
    baskets = random_baskets(40)
    table = counted(baskets)
    everything = pairs(table, 10.0)
    compared = 0
    for place, (history, basket, day) in enumerate(baskets):
        without = pairs(counted(baskets[:place] + baskets[place + 1 :]), 10.0)
        share = float(chosen([baskets[place]]).shares[0]) * unit(table, day) / unit(table, 10.0)
        for item, weight in zip(history, place_weights(len(history)), strict=True):
            for target in set(basket) - set(history):
                if item:
                    missing = everything[item, target] - without.get((item, target), 0.0)
                    assert missing == pytest.approx(share * (weight + (item in basket)), rel=1e-3, abs=1e-5)
                    compared += 1
    assert compared > 50


def test_the_most_frequent_are_kept_most_frequent_first() -> None:
    often = {item: 30 + item for item in range(2, 70)}
    table = counted([([], [1, item], 0.0) for item, times in often.items() for _ in range(times)], items=70)
    width = table.index.shape[1]
    assert width < len(often)
    np.testing.assert_array_equal(table.index[1], np.arange(69, 69 - width, -1))
    counts = np.sqrt(2.0) * table.value[1] / unit(table, 0.0)
    np.testing.assert_allclose(counts, [often[item] for item in range(69, 69 - width, -1)], rtol=1e-5)


def test_a_pair_that_becomes_frequent_takes_the_place_of_the_rarest() -> None:
    table = counted([([], [1, item], 0.0) for item in range(2, 60) for _ in range(100 - item)], items=70)
    rarest = int(table.index[1, -1])
    counted([([], [1, 69], 0.0)] * 99, items=70, table=table)
    assert table.index[1, 0] == 69
    assert rarest not in table.index[1]


def shares(table: Neighbours) -> dict[tuple[int, int], float]:
    """The share of an item's choices that went with another: what the network reads."""
    there = np.argwhere((table.index > 0) & (table.seen[:, None] > 0))
    return {
        (int(item), int(table.index[item, place])): float(table.value[item, place] / table.seen[item])
        for item, place in there
    }


def test_after_many_mean_lives_old_shares_are_what_they_were() -> None:
    table = counted([([3], [1, 2], 0.0), ([], [2, 4], 5.0)])
    before = shares(table)
    weight = unit(table, 5.0)
    counted([([], [7, 8], 5.0 + 30 * MEAN_LIFE_DAYS)], table=table)
    assert unit(table, 5.0) < weight  # the counts were renewed
    assert shares(table) == pytest.approx(before | both({(7, 8): 2**-0.5}), rel=1e-3)


@pytest.mark.parametrize("lives", [30, 85, 300])
def test_after_many_mean_lives_counts_are_finite_and_old_ones_worth_nothing(lives: int) -> None:
    table = counted([([], [1, 2], 0.0)])
    counted([([], [7, 8], lives * MEAN_LIFE_DAYS)], table=table)
    assert np.isfinite(table.value).all() and np.isfinite(table.seen).all()
    now = pairs(table, lives * MEAN_LIFE_DAYS)
    assert now[7, 8] == pytest.approx(2**-0.5, rel=1e-3)
    assert now.get((1, 2), 0.0) < 1e-12


def test_baskets_that_come_late_count_as_on_their_day() -> None:
    late = counted([([], [1, 2], 3.0)], table=counted([([], [3, 4], 40.0)]))
    in_time = counted([([], [1, 2], 3.0), ([], [3, 4], 40.0)])
    assert pairs(late, 40.0) == pytest.approx(pairs(in_time, 40.0), rel=1e-5)


def test_no_examples_and_empty_baskets_count_nothing() -> None:
    table = counted([])
    counted([([1, 2], [], 0.0)], table=table)
    assert pairs(table) == {}
    assert not table.seen.any()


def test_growing_keeps_what_was_counted() -> None:
    table = counted(random_baskets(20), items=12)
    before = table.arrays("n")
    counted([], items=1000, table=table)
    for name, array in table.arrays("n").items():
        np.testing.assert_array_equal(array[: len(before[name])], before[name])
    assert len(table.seen) == 1000


def test_keep_drops_items_also_as_neighbours_and_counts_on() -> None:
    table = counted([([], [1, 2, 3], 0.0), ([], [3, 5], 0.0), ([], [3, 5], 0.0)], items=6)
    kept = np.array([0, 2, 3, 5])
    moved = np.zeros(6, np.int64)
    moved[kept] = np.arange(4)
    table.keep(kept, moved)
    assert pairs(table) == pytest.approx(both({(1, 2): 3**-0.5, (2, 3): 2**0.5}), rel=1e-6)
    np.testing.assert_allclose(table.seen / unit(table, 0.0), [0.0, 1.0, 3.0, 2.0])
    assert table.value[table.index == 0].sum() == 0.0
    counted([([], [1, 2], 0.0)], items=4, table=table)
    assert pairs(table) == pytest.approx(both({(1, 2): 3**-0.5 + 2**-0.5, (2, 3): 2**0.5}), rel=1e-6)


def test_it_comes_back_from_its_arrays_and_goes_on_the_same() -> None:
    table = counted(random_baskets(30))
    twin = Neighbours.from_arrays(table.arrays("n"), "n")
    for one in (table, twin):
        counted(random_baskets(30, seed=1), table=one)
    for (name, array), other in zip(table.arrays("n").items(), twin.arrays("n").values(), strict=True):
        assert array.dtype == other.dtype, name
        np.testing.assert_array_equal(array, other, err_msg=name)


def test_a_checkpoints_arrays_do_not_follow_later_choices() -> None:
    table = counted(random_baskets(30))
    held = table.arrays("n")
    before = {name: array.copy() for name, array in held.items()}
    counted([*random_baskets(30, seed=1), ([], [1, 2], 5_000.0)], table=table)
    for name, array in before.items():
        np.testing.assert_array_equal(held[name], array, err_msg=name)
