"""The text encoder: the published vectors, whatever the batch, and the same after saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.text_encoder import EncoderCorrupt, _verify, load_saved, load_text_encoder

TITLES = ["white hanging heart t-light holder", "red mug", "a red coffee cup"]


@pytest.fixture(scope="module")
def tiny():
    return load_text_encoder("tiny")


def test_vectors_have_unit_length(tiny) -> None:
    np.testing.assert_allclose(np.linalg.norm(tiny.embed(TITLES), axis=1), 1.0, rtol=1e-5)


def test_a_vector_does_not_depend_on_its_batch(tiny) -> None:
    together = tiny.embed([*TITLES, "long " * 60] * 3, batch_size=4)
    np.testing.assert_allclose(together[1], tiny.embed(TITLES[1:2])[0], atol=1e-5)


def test_no_texts_give_no_vectors(tiny) -> None:
    assert tiny.embed([]).shape == (0, tiny.dimension)


def test_saving_gives_the_same_bytes_and_the_same_vectors(tiny, tmp_path: Path) -> None:
    tiny.save(tmp_path / "one")
    loaded = load_saved(tmp_path / "one")
    loaded.save(tmp_path / "two")
    np.testing.assert_array_equal(loaded.embed(TITLES), tiny.embed(TITLES))
    assert loaded.identity == tiny.identity
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_each_process_gives_an_encoder_the_same_identity(tiny) -> None:
    assert load_text_encoder("tiny").identity == tiny.identity  # the states of dropout's seeds differ


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not the weights")
    with pytest.raises(EncoderCorrupt, match="Install the package again"):
        _verify(path, "0" * 64)


def test_minilm_puts_a_cup_nearer_to_a_mug_than_to_a_light() -> None:
    encoder = load_text_encoder("minilm")
    light, mug, cup = encoder.embed(TITLES)
    assert encoder.dimension == 384
    assert mug @ cup > 0.5 > light @ cup + 0.2
