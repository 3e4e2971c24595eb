"""The text encoder as consumers use it: int8 weights, numpy, a tokenizer, and no TensorFlow.

A search embeds one query of a few words: six layers of small products, which numpy does in milliseconds. Weights are
stored as int8 with one scale for each output (symmetric, post-training: Jacob et al., CVPR 2018, section 3), a quarter
of their size; products are made in float32 from them, so that what is lost is rounding of weights alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

FILE = "compact.safetensors"
_LARGEST = 127  # of int8, symmetric
_NORM_EPSILON = 1e-12  # BERT's, as in KerasHub's BertBackbone


class CompactTextEncoder:
    """BERT's forward pass for one text at a time: the mean of the last layer over its tokens, at unit length.

    Attributes:
        dimension: length of a vector.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        """Takes what `quantised` made (int8 arrays `name` with float32 `name/scale`), the notes and the tokenizer."""
        self._arrays, self._notes, self._tokenizer = dict(arrays), dict(notes), tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(int(notes["most_tokens"]))
        self._kernels = {
            name: array.astype(np.float32) * arrays[f"{name}/scale"]
            for name, array in arrays.items() if array.dtype == np.int8 and name != "token_embedding"
        }
        self.dimension = int(arrays["token_embedding"].shape[1])

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[n, dimension] float32, unit length; a text of no tokens gives zeros."""
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for row, item in enumerate(self._tokenizer.encode_batch([str(text) for text in texts])):
            if item.ids:
                mean = self._states(np.array(item.ids)).mean(axis=0)
                vectors[row] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return vectors

    def save(self, folder: Path) -> None:
        """Writes weights, notes and tokenizer; the same encoder gives the same bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._arrays, folder / FILE)
        self._tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        (folder / "compact.json").write_text(json.dumps(self._notes, sort_keys=True, indent=1))

    @classmethod
    def load(cls, folder: Path | str) -> CompactTextEncoder:
        """What `save` wrote."""
        folder = Path(folder)
        notes = json.loads((folder / "compact.json").read_text())
        return cls(load_file(folder / FILE), notes, Tokenizer.from_file(str(folder / "tokenizer.json")))

    def _states(self, ids: np.ndarray) -> np.ndarray:
        """[tokens, dimension] of token ids [tokens]."""
        arrays = self._arrays
        states = arrays["token_embedding"][ids] * arrays["token_embedding/scale"][ids]
        states = states + self._kernels["position_embedding"][: len(ids)] + self._kernels["segment_embedding"][0]
        states = self._normal("embeddings_layer_norm", states)
        for layer in range(int(self._notes["num_layers"])):
            states = self._layer(f"transformer_layer_{layer}", states)
        return states

    def _layer(self, name: str, states: np.ndarray) -> np.ndarray:
        attention = f"{name}/self_attention_layer"
        heads = int(self._notes["num_heads"])
        query, key, value = (
            self._dense(f"{attention}/{part}", states).reshape(len(states), heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        score = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1]))
        score = np.exp(score - score.max(axis=-1, keepdims=True))
        mixed = (score / score.sum(axis=-1, keepdims=True)) @ value
        mixed = mixed.transpose(1, 0, 2).reshape(len(states), -1)
        states = self._normal(f"{attention}_norm", states + self._dense(f"{attention}/attention_output", mixed))
        inner = self._dense(f"{name}/feedforward_intermediate_dense", states)
        inner = _exact_gelu(inner) if self._notes["exact_gelu"] else _tanh_gelu(inner)
        return self._normal(
            f"{name}/feedforward_layer_norm", states + self._dense(f"{name}/feedforward_output_dense", inner)
        )

    def _dense(self, name: str, values: np.ndarray) -> np.ndarray:
        return values @ self._kernels[f"{name}/kernel"] + self._arrays[f"{name}/bias"]

    def _normal(self, name: str, values: np.ndarray) -> np.ndarray:
        centred = values - values.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(_NORM_EPSILON))
        return centred / deviation * self._arrays[f"{name}/gamma"] + self._arrays[f"{name}/beta"]


def quantised(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """BERT's weights with int8 in place of every matrix.

    Args:
        weights: by Keras' path (`transformer_layer_0/self_attention_layer/query/kernel`, ...), float32.

    Returns:
        By the same names (embeddings without `/embeddings`): matrices [in, out] int8 with `<name>/scale` float32
        ([1, out], of embeddings [rows, 1]), all else as it was, flat.
    """
    arrays: dict[str, np.ndarray] = {}
    for path, array in weights.items():
        if path.endswith("/embeddings"):
            name = path.removesuffix("/embeddings")
            arrays[name], arrays[f"{name}/scale"] = rounded(array, axis=1)
        elif path.endswith("/kernel"):
            into_heads = path.split("/")[-2] in ("query", "key", "value")
            flat = array.reshape(len(array), -1) if into_heads else array.reshape(-1, array.shape[-1])
            arrays[path], arrays[f"{path}/scale"] = rounded(flat, axis=0)
        else:
            arrays[path] = array.reshape(-1).astype(np.float32)
    return arrays


def rounded(matrix: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as int8 and the float32 scales along `axis` (kept as an axis of 1), whose product is nearest to it."""
    scale = np.abs(matrix).max(axis=axis, keepdims=True).astype(np.float32) / _LARGEST
    scale = np.where(scale > 0, scale, np.float32(1.0)).astype(np.float32)
    return np.rint(matrix / scale).astype(np.int8), scale


def _exact_gelu(values: np.ndarray) -> np.ndarray:
    return 0.5 * values * (1.0 + _erf(values * np.float32(np.sqrt(0.5))))


def _tanh_gelu(values: np.ndarray) -> np.ndarray:
    return 0.5 * values * (1.0 + np.tanh(np.float32(np.sqrt(2.0 / np.pi)) * (values + 0.044715 * values**3)))


def _erf(values: np.ndarray) -> np.ndarray:
    """The error function to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26): numpy has none."""
    size = np.abs(values)
    t = 1.0 / (1.0 + 0.3275911 * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(values) * (1.0 - series * np.exp(-size * size))
