"""Drift: what moved is found and named, what a shop does by itself is not; a fall of quality, but not a hard hour."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from pipeline.drift import Fall, Gain, fall_of, holm, shifts, total_variation

START = datetime(2026, 1, 5, tzinfo=UTC)


def day(generator: np.random.Generator, shares: dict[str, float], rows: int = 4_000, spread: float = 400.0) -> dict:
    """A day's counts: its own shares differ a little from the shop's (Dirichlet), as real days' do."""
    own = generator.dirichlet(np.array(list(shares.values())) * spread)
    return {"kind": dict(zip(shares, generator.multinomial(rows, own).tolist(), strict=True))}


SHOP = {"view": 0.55, "cart": 0.2, "purchase": 0.2, "search": 0.05}


def test_total_variation_is_the_share_of_rows_that_are_elsewhere() -> None:
    assert total_variation(np.array([8, 2]), np.array([60, 40])) == pytest.approx(0.2)
    assert total_variation(np.array([1, 3]), np.array([10, 30])) == 0.0


def test_p_values_are_corrected_for_the_number_of_columns() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_a_mix_that_changed_is_found_and_named() -> None:
    generator = np.random.default_rng(0)
    changed = {**SHOP, "view": 0.35, "cart": 0.4}
    (found,) = shifts(day(generator, changed), [day(generator, SHOP) for _ in range(4)])
    assert found.exceeds(0.10) and found.share == pytest.approx(0.2, abs=0.05)
    assert (found.grew[0], found.fell[0], found.rows) == ("cart", "view", 4_000)
    assert found.grew[1] == pytest.approx(0.2, abs=0.05) and found.grew[2] == pytest.approx(0.4, abs=0.05)


def test_days_that_differ_as_they_always_did_are_no_drift() -> None:
    generator = np.random.default_rng(1)
    alarms = sum(
        shifts(day(generator, SHOP), [day(generator, SHOP) for _ in range(4)])[0].exceeds(0.10) for _ in range(300)
    )
    assert alarms == 0


def test_a_shop_whose_days_differ_widely_needs_a_wider_shift() -> None:
    """The same 12 % that drift in a steady shop are one of its days in a restless one."""
    generator = np.random.default_rng(2)
    steady = [day(generator, SHOP, spread=4_000) for _ in range(4)]
    restless = [day(generator, {**SHOP, "view": 0.55 + d, "cart": 0.2 - d}) for d in (-0.15, 0.15, -0.1, 0.1)]
    moved = day(generator, {**SHOP, "view": 0.43, "cart": 0.32})
    assert shifts(moved, steady)[0].exceeds(0.10)
    assert not shifts(moved, restless)[0].exceeds(0.10)


def test_a_small_change_of_many_rows_is_certain_and_still_no_drift() -> None:
    generator = np.random.default_rng(3)
    before = [day(generator, SHOP, rows=1_000_000, spread=1e6) for _ in range(4)]
    (found,) = shifts(day(generator, {**SHOP, "view": 0.52, "cart": 0.23}, rows=1_000_000, spread=1e6), before)
    assert found.p_value < 1e-6 and not found.exceeds(0.10)


def test_where_days_hardly_differ_half_of_the_share_is_enough() -> None:
    generator = np.random.default_rng(9)
    steady = [day(generator, SHOP, rows=40_000, spread=40_000) for _ in range(4)]
    restless = [day(generator, {**SHOP, "view": 0.55 + d, "cart": 0.2 - d}, 40_000) for d in (-0.02, 0.02, -0.01, 0.01)]
    moved = day(generator, {**SHOP, "view": 0.48, "cart": 0.27}, rows=40_000, spread=40_000)
    assert 0.05 < shifts(moved, steady)[0].share < 0.10
    assert shifts(moved, steady)[0].exceeds(0.10) and not shifts(moved, restless)[0].exceeds(0.10)


def test_too_few_rows_or_days_are_not_judged() -> None:
    generator = np.random.default_rng(4)
    before = [day(generator, SHOP) for _ in range(4)]
    assert shifts(day(generator, SHOP, rows=100), before) == []
    assert shifts(day(generator, SHOP), before[:2]) == []


def test_nulls_are_a_column_of_their_own() -> None:
    """Prices that go missing are named as that, though the other bins keep their proportions."""
    generator = np.random.default_rng(5)
    before = [day(generator, {"3": 0.5, "4": 0.48, "missing": 0.02}) for _ in range(4)]
    found = {one.column: one for one in shifts(day(generator, {"3": 0.35, "4": 0.33, "missing": 0.32}), before)}
    assert found["kind missing"].exceeds(0.10) and found["kind missing"].grew[0] == "missing"


def test_nulls_that_never_were_there_before_are_named() -> None:
    generator = np.random.default_rng(6)
    before = [day(generator, {"3": 0.5, "4": 0.5}) for _ in range(4)]
    found = {one.column: one for one in shifts(day(generator, {"3": 0.4, "4": 0.4, "missing": 0.2}), before)}
    assert found["kind missing"].exceeds(0.10) and found["kind missing"].grew[0] == "missing"
    assert found["kind missing"].usual == 0.0


def test_a_name_that_never_was_there_before_is_named() -> None:
    generator = np.random.default_rng(7)
    (found,) = shifts(day(generator, {**SHOP, "wish": 0.2}), [day(generator, SHOP) for _ in range(4)])
    assert found.exceeds(0.10) and found.grew[0] == "wish" and found.grew[1] == 0.0


def test_a_level_that_moved_is_seen_where_every_bin_moves_a_little() -> None:
    """Prices a third higher, bins of half octaves: numbered they are seen far more often than by their names alone."""
    generator = np.random.default_rng(8)
    centre = np.arange(12)
    shares = [np.exp(-(((centre - middle) / 2.5) ** 2) / 2) for middle in (5.0, 5.0, 5.0, 5.0, 5.8)]
    seen = {"numbered": 0, "named": 0}
    for _ in range(50):
        *before, moved = (
            day(generator, dict(zip(map(str, centre), share / share.sum(), strict=True)), 700, 500.0)
            for share in shares
        )
        named = [{"kind": {f"n{name}": rows for name, rows in one["kind"].items()}} for one in (*before, moved)]
        seen["numbered"] += shifts(moved, before)[0].p_value <= 0.001
        seen["named"] += shifts(named[-1], named[:-1])[0].p_value <= 0.001
    assert seen["numbered"] >= 40 and seen["named"] <= 20, seen


# --- quality ---


def gains(generator: np.random.Generator, hours: int, lead: float = 0.1, noise: float = 0.04) -> list[Gain]:
    sizes = generator.integers(20, 120, hours)
    values = lead + noise * generator.normal(size=hours) * np.sqrt(70 / sizes)
    return [
        Gain(START + timedelta(hours=hour), float(value), 0.7, int(size))
        for hour, (value, size) in enumerate(zip(values, sizes, strict=True))
    ]


def lowered(series: list[Gain], place: int, by: float) -> list[Gain]:
    return [
        Gain(one.window, one.gain - by * (number >= place), one.level, one.examples)
        for number, one in enumerate(series)
    ]


def test_a_lead_that_scatters_as_it_always_did_has_not_fallen() -> None:
    generator = np.random.default_rng(6)
    falls = [fall_of(gains(generator, 24 * 28)) for _ in range(8)]
    assert sum(fall is not None and fall.loss >= 0.03 for fall in falls) == 0


def test_a_lead_that_falls_is_noticed_within_a_day_and_measured() -> None:
    series = lowered(gains(np.random.default_rng(7), 400), 300, by=0.06)
    assert fall_of(series[:300]) is None
    fall = fall_of(series)
    assert fall is not None and 300 <= (fall.seen - START) / timedelta(hours=1) <= 324
    assert fall.before == pytest.approx(0.1, abs=0.02) and fall.after == pytest.approx(0.04, abs=0.02)
    assert fall.loss == pytest.approx(0.06 / 0.7, abs=0.03)


def test_a_lead_that_recovered_is_no_loss_any_more() -> None:
    series = lowered(gains(np.random.default_rng(8), 500), 300, by=0.06)
    back = lowered(series, 340, by=-0.06)
    fall = fall_of(back)
    assert fall is not None and fall.loss < 0.03 and fall_of(series).loss > 0.05


def test_a_series_shorter_than_two_days_tells_nothing() -> None:
    assert fall_of(lowered(gains(np.random.default_rng(9), 48), 20, by=0.5)) is None


def test_the_loss_is_relative_to_the_level_before() -> None:
    assert Fall(START, before=0.2, after=0.14, level=0.6).loss == pytest.approx(0.1)
