"""Addresses and numbers are found in what people write, and nothing that only looks like them."""

from __future__ import annotations

import pytest

from models.compact_text import CompactTextClassifier, Threshold
from models.contacts import without_contacts


@pytest.mark.parametrize(("written", "kept"), [
    ("Write to ann.b+shop@mail.example, please", "Write to [e-mail], please"),
    ("Call +49 (0)30 1234567 or 0151 2345678.", "Call [phone] or [phone]."),
    ("Size 42, 19.99 EUR, on 2026-01-05, EAN 4006381333931", "Size 42, 19.99 EUR, on 2026-01-05, EAN 4006381333931"),
    ("", ""),
])
def test_addresses_and_numbers_go_and_dates_prices_and_barcodes_stay(written: str, kept: str) -> None:
    assert without_contacts(written) == kept
    assert without_contacts(kept) == kept


def test_a_served_classifier_reads_messages_as_it_has_learnt_them() -> None:
    classifier = CompactTextClassifier({}, {"intent": ("a", "b")}, {"intent": 1.0}, Threshold())
    assert classifier.as_learnt(["I am bob@mail.example", "hello"]) == ["I am [e-mail]", "hello"]
