"""The first blocks of an encoder, and what messages teach them: like messages come nearer, kept and served the same."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest

from models import text_openings
from models.compact_text_encoder import CompactTextEncoder
from models.text_encoder import TextEncoder, load_saved, load_text_encoder
from models.text_openings import _followed, changed, parted, taught_changes

TEXTS = ["a red mug", "My lamp came late. Where is it?", "long " * 60]
MINILM_IDENTITY = "3028bc8d6cc199360d3c57ca811d946e"  # of before any encoder could be cut: vectors are kept by it
GLAD = "the colour of my {} is lovely and soft"
CROSS = "after two weeks the {} fell apart again"
THINGS = ("lamp", "dress", "mug", "clock", "chair", "soap", "coat", "shirt")


@pytest.fixture(scope="module")
def tiny() -> TextEncoder:
    return load_text_encoder("tiny")


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test; that the real numbers hold back is a test of its own."""
    monkeypatch.setattr(text_openings, "LEAST_MESSAGES", 16)
    monkeypatch.setattr(text_openings, "LEAST_TOKENS", 5)
    monkeypatch.setattr(text_openings, "RATE", 1e-3)


def messages() -> list[str]:
    """Those who like a thing open otherwise than those who do not."""
    glad = [f"Thank you, great! {GLAD.format(thing)}, {place}." for place in range(4) for thing in THINGS]
    cross = [f"Awful refund. {CROSS.format(thing)}, {place}." for place in range(4) for thing in THINGS]
    return [one for pair in zip(glad, cross, strict=True) for one in pair]


def apart(encoder: TextEncoder) -> float:
    """By how much nearer messages are to those of their kind than to the others, by things that nobody wrote of."""
    glad, cross = (encoder.embed([kind.format(thing) for thing in ("sofa", "belt", "vase")]) for kind in (GLAD, CROSS))
    return float((glad @ glad.T).mean() - (glad @ cross.T).mean())


def test_a_cut_encoder_gives_the_mean_of_the_hidden_states_after_its_last_block(tiny: TextEncoder) -> None:
    cut = tiny.cut(0.5)
    ids, mask = tiny.tokens(TEXTS)
    after_first = keras.Model(tiny.backbone.inputs, tiny.backbone.get_layer("transformer_layer_0").output)
    given = {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}
    weight = mask[..., None].astype(np.float32)
    means = (after_first(given).numpy() * weight).sum(axis=1) / weight.sum(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(cut.embed(TEXTS), means, atol=1e-6)
    assert np.abs(cut.embed(TEXTS) - tiny.embed(TEXTS)).max() > 1e-3


def test_a_cut_encoder_is_another_one_and_the_whole_stays_the_same(tiny: TextEncoder) -> None:
    assert tiny.cut(0.5).identity == tiny.cut(0.6).identity != tiny.identity
    assert tiny.cut(1.0) is tiny
    assert load_text_encoder("minilm").identity == MINILM_IDENTITY


def test_a_message_parts_after_its_first_sentence_or_line() -> None:
    assert parted("Lovely dress! It fits. I wear it daily.") == ("Lovely dress!", "It fits. I wear it daily.")
    assert parted("Size 4.5 is too small... Send it back") == ("Size 4.5 is too small...", "Send it back")
    assert parted("Hello\nwhere is my parcel") == ("Hello", "where is my parcel")
    assert parted("\u5f88\u597d\u3002\u6211\u5f88\u559c\u6b22") == ("\u5f88\u597d\u3002", "\u6211\u5f88\u559c\u6b22")
    assert parted("where is my parcel?") is None and parted("") is None


class Words:
    """An encoder whose tokens are the numbers in a text."""

    def words(self, text: str) -> set[int]:
        return {int(word) for word in text.strip(" .").split()}

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        mask = np.array([np.arange(9) < len(text.split()) for text in texts], np.int32)
        return mask, mask


def test_the_shares_of_an_openings_words_sum_to_one() -> None:
    """7 opens three messages and counts, 8 opens two and does not, 9 is followed by too little in one of three."""
    opened = ("7 9.", "7 8 9.", "7.", "8.", "9.")
    followed = ("a b c d e", "a b c d f", "a b c d g", "a b c d h", "a")
    texts, openings = _followed(Words(), [f"{one} {other}" for one, other in zip(opened, followed, strict=True)])
    assert texts == list(followed[:3])
    np.testing.assert_array_equal(openings.shares(np.array([2, 0, 1])), [[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(openings.usual(), [2 / 3, 1 / 3], rtol=1e-6)


def test_openings_take_the_memory_of_their_words_and_not_of_a_table_of_all() -> None:
    """Of 6,000 openings and 2,000 words the table alone would take 48 MB."""
    messages = [f"{place % 2000} {7 * place % 2000}. it came late and broken" for place in range(6000)]
    tracemalloc.start()
    texts, openings = _followed(Words(), messages)
    usual, peak = openings.usual(), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(texts) == 6000 and usual.shape == (2000,) and peak < 20e6


@pytest.mark.slow
def test_messages_that_open_alike_come_nearer_and_the_encoder_that_was_given_stays(tiny: TextEncoder) -> None:
    before, identity, said = apart(tiny), tiny.identity, []
    changes = taught_changes(tiny, messages(), most_steps=12, seed=1, report=said.append)
    other = changed(tiny, changes)
    assert apart(other) > 1.2 * before > 0.0
    assert load_text_encoder("tiny").identity == tiny.identity == identity != other.identity
    assert said[-1].startswith("the text encoder learns openings: step 12 of 12")
    again = taught_changes(tiny, messages(), most_steps=12, seed=1)
    assert changed(tiny, again).identity == other.identity


def test_steps_follow_from_the_messages_and_copies_count_once(tiny: TextEncoder) -> None:
    said: list[str] = []
    taught_changes(tiny, messages() * 3, most_steps=1000, seed=1, report=said.append)
    assert said[-1].startswith("the text encoder learns openings: step 16 of 16")  # 4 passes over 64 messages of 16


@pytest.mark.parametrize(("name", "least", "left"), [("LEAST_MESSAGES", 1000, 64), ("LEAST_TOKENS", 24, 0)])
def test_too_few_or_too_short_messages_teach_nothing(
    tiny: TextEncoder, monkeypatch: pytest.MonkeyPatch, name: str, least: int, left: int
) -> None:
    monkeypatch.setattr(text_openings, name, least)
    said: list[str] = []
    assert taught_changes(tiny, messages(), most_steps=12, seed=1, report=said.append) == {}
    assert len(said) == 1 and f"{left} messages have an opening" in said[0]
    assert taught_changes(tiny, [], most_steps=12, seed=1) == {}


@pytest.mark.slow
def test_a_taught_encoder_is_the_same_when_saved_and_nearly_so_when_compact(tiny: TextEncoder, tmp_path: Path) -> None:
    cut = tiny.cut(0.5)
    taught = changed(cut, taught_changes(cut, messages(), most_steps=12, seed=1))
    taught.save(tmp_path / "saved")
    loaded = load_saved(tmp_path / "saved")
    assert loaded.identity == taught.identity != cut.identity
    np.testing.assert_array_equal(loaded.embed(TEXTS), taught.embed(TEXTS))
    compact = taught.compact()
    assert compact is not None
    compact.save(tmp_path / "compact")
    served = CompactTextEncoder.load(tmp_path / "compact").embed(TEXTS)
    assert ((served * taught.embed(TEXTS)).sum(axis=1) > 0.999).all()  # int8
