"""Aging: an older model's loss against the fresh one on the same windows, by how old its data is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.aging import Scored, aging_curve, expected_loss

START = datetime(2026, 1, 5, tzinfo=UTC)


def at(hour: float) -> datetime:
    return START + timedelta(hours=hour)


def scored(hours: int, loss_a_day: float, older: int = 1) -> tuple[list[Scored], dict[int, datetime]]:
    """Each hour a fresh champion (version 10 and up) at 0.5 and the older one, which loses so much a day."""
    found, ends = [], {older: START}
    for hour in range(1, hours + 1):
        ends[10 + hour] = at(hour - 1)
        found += [
            Scored(at(hour), "champion", 10 + hour, 0.5, 40),
            Scored(at(hour), "never_updated", older, 0.5 * (1 - loss_a_day * hour / 24), 40),
        ]
    return found, ends


def test_the_curve_is_the_loss_beside_the_fresh_champion_by_age() -> None:
    curve = aging_curve(*scored(96, loss_a_day=0.02))
    assert [(one.low_hours, one.high_hours, one.windows) for one in curve] == [
        (0.0, 12.0, 11), (12.0, 24.0, 12), (24.0, 48.0, 24), (48.0, 96.0, 48)
    ][1:]  # eleven windows are too few to be trusted
    assert [one.loss for one in curve] == pytest.approx([0.02 * age / 24 for age in (18.5, 36.5, 72.5)])
    assert all(0 < one.error < one.loss for one in curve)


def test_a_window_that_no_fresh_model_scored_tells_nothing() -> None:
    found, ends = scored(96, 0.02)
    old = [Scored(one.window, "champion", 1, one.mean, 40) for one in found if one.version == 1]
    assert aging_curve(old, ends) == ()
    assert aging_curve(found, {1: START}) == ()  # nobody knows when the champions' data ended


def test_what_a_model_has_lost_is_told_by_its_age() -> None:
    curve = aging_curve(*scored(96, 0.02))
    assert expected_loss(curve, 0.0) is None
    assert expected_loss(curve, 30.0) == curve[1]
    assert expected_loss(curve, 5_000.0) == curve[-1]  # older than any that was measured: at least that
