"""What the alert on negative messages does on hours whose truth is known: false alarms a year, windows to an alarm.

A shop gets so many messages an hour on average (100; beside it 30 and 300), with a daily curve, on TOPICS topics. A
topic's share of negative ones sways by hour of the day and, from hour to hour, more than a coin would (beta). The model
errs: it calls HIT of the negative ones negative, and MISTAKEN of the others. Each hour is judged as the watch judges
it, all topics and all messages together, from what came in the 30 days before.
"""

from __future__ import annotations

import numpy as np

from pipeline.surge import HOURS_PER_YEAR, RECENT_HOURS, USUAL_HOURS, surging

TOPICS = 6
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)  # of negative messages, by topic
HIT, MISTAKEN = 0.9, 0.05
_SWAY, _DISPERSION = 0.15, 0.005
_KNOWN = RECENT_HOURS + USUAL_HOURS
_DOUBLED_HOURS = 12  # a surge that nobody has found after half a day is missed


def measure_surges(years: float = 4.0, surges: int = 200, seed: int = 0) -> dict[str, float]:
    """`false_alarms_per_year`, `windows_to_alarm` (mean), `found_within_3_windows` (share of the doubled shares).

    The last two also for a small and a large shop, `..._30` and `..._300`.
    """
    figures = {"false_alarms_per_year": _false_alarms(100.0, years, seed)}
    for volume, ending in ((100.0, ""), (30.0, "_30"), (300.0, "_300")):
        generator = np.random.default_rng([seed, int(volume)])
        waited = np.array([_windows_to_alarm(volume, generator) for _ in range(surges)])
        figures[f"windows_to_alarm{ending}"] = float(waited.mean())
        figures[f"found_within_3_windows{ending}"] = float((waited <= 3).mean())
    return figures


def _false_alarms(volume: float, years: float, seed: int) -> float:
    generator = np.random.default_rng(seed)
    hours = _KNOWN + int(years * HOURS_PER_YEAR)
    messages, negative = _hours(volume, generator, np.ones(hours))
    alarms, before = 0, False
    for end in range(_KNOWN, hours + 1):
        now = _alarmed(messages[:, end - _KNOWN : end], negative[:, end - _KNOWN : end])
        alarms += now and not before
        before = now
    return alarms / years


def _windows_to_alarm(volume: float, generator: np.random.Generator) -> int:
    """Windows from the first doubled one to the alarm, both counted; `_DOUBLED_HOURS` + 1: it was missed."""
    start = _KNOWN + int(generator.integers(0, 24))
    hours = start + _DOUBLED_HOURS
    factor = np.ones(hours)
    factor[start:] = 2.0
    messages, negative = _hours(volume, generator, factor)
    for waited in range(1, _DOUBLED_HOURS + 1):
        end = start + waited
        if _alarmed(messages[:, end - _KNOWN : end], negative[:, end - _KNOWN : end]):
            return waited
    return _DOUBLED_HOURS + 1


def _hours(volume: float, generator: np.random.Generator, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[1 + topics, hours] messages and negative ones as the model sees them; row 0: all topics."""
    clock = 2.0 * np.pi * np.arange(len(factor)) / 24.0
    each = volume / TOPICS * (1.0 + 0.8 * np.sin(clock))
    messages, negative = [], []
    for share in SHARES:
        mean = np.clip(share * factor * (1.0 + _SWAY * np.sin(clock + 1.0)), 0.01, 0.95)
        total = 1.0 / _DISPERSION - 1.0
        seen = generator.beta(mean * total, (1.0 - mean) * total) * (HIT - MISTAKEN) + MISTAKEN
        messages.append(generator.poisson(each))
        negative.append(generator.binomial(messages[-1], seen))
    return np.stack([sum(messages), *messages]), np.stack([sum(negative), *negative])


def _alarmed(messages: np.ndarray, negative: np.ndarray) -> bool:
    parts = [2, *[2 * TOPICS] * TOPICS]
    return any(surging(m, n, part) is not None for m, n, part in zip(messages, negative, parts, strict=True))
