"""Vectors of texts, each embedded once: a cache in the lake by content hash and encoder.

The pretrained encoder is the dearest part of an update (about 500 short texts a second on two cores), and
most texts of an hour have been seen before. An hourly update does not move the encoder (DESIGN.md,
decision 5), so a vector stays right for as long as text and encoder are the same.

A retrain may teach a task an encoder of its own. Its vectors lie here as well, so that an hour embeds what is new and
no replayed or judged message again; `prune` takes them out when no model in use has that encoder any more.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.few_rows import rows_in_files
from pipeline.lake import Lake
from pipeline.schema import TEXT_VECTORS_SCHEMA
from pipeline.tables import sql_text, text_field

TAUGHT = "taught:"  # begins the name of an encoder that a retrain has made: there is a new one each time
TAG = "evergreen.vectors"  # of a model version: the name of its taught encoder; empty: it has none

_MOST_HASHES_IN_FILTER = 5000  # beyond that a scan of one encoder's vectors is faster than the membership test


class Encoder(Protocol):
    """What embeds texts."""

    dimension: int
    identity: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """`[n, dimension]` float32, rows of unit length."""


class TextVectors:
    """The vectors of texts under one encoder, from the lake's cache or embedded now."""

    def __init__(self, lake: Lake, encoder: Encoder, name: str = "") -> None:
        """Takes the cache's lake, the encoder that fills it, and its name there; empty: its identity."""
        self._lake = lake
        self._encoder = encoder
        self._name = name or encoder.identity
        self._known: dict[str, np.ndarray] = {}

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._encoder.dimension

    def of(self, texts: Sequence[str | None]) -> np.ndarray:
        """`[n, dimension]` float32, unit length; zeros for a missing or blank text."""
        hashes = [content_hash(text) if text and text.strip() else "" for text in texts]
        self._fill({key: text for key, text in zip(hashes, texts, strict=True) if key and text})
        vectors = np.zeros((len(hashes), self.dimension), np.float32)
        for row, key in enumerate(hashes):
            if key:
                vectors[row] = self._known[key]
        return vectors

    def known(self, hashes: Sequence[str]) -> np.ndarray:
        """`[n, dimension]` float32 of texts by their content hash; zeros for one that was never embedded."""
        self._read([key for key in hashes if key not in self._known])
        nothing = np.zeros(self.dimension, np.float32)
        return np.array([self._known.get(key, nothing) for key in hashes], np.float32).reshape(-1, self.dimension)

    def _fill(self, wanted: dict[str, str]) -> None:
        missing = [key for key in wanted if key not in self._known]
        if missing:
            self._read(missing)
        new = sorted(key for key in missing if key not in self._known)
        if not new:
            return
        vectors = np.ascontiguousarray(self._encoder.embed([wanted[key] for key in new]), "<f4")
        self._known.update(zip(new, vectors, strict=True))
        self._lake.append("text_vectors", pa.table({
            "encoder": [self._name] * len(new),
            "content_hash": new,
            "vector": [vector.tobytes() for vector in vectors],
        }, schema=TEXT_VECTORS_SCHEMA))

    def _read(self, hashes: Sequence[str]) -> None:
        table, columns = self._lake.dataset("text_vectors"), ["content_hash", "vector"]
        chosen = text_field("encoder") == self._name
        if len(hashes) <= _MOST_HASHES_IN_FILTER:
            # a look at the hashes alone, a fiftieth of the bytes, spares reading all vectors for those of a new file
            held = rows_in_files(table, chosen & text_field("content_hash").isin(list(hashes)), columns)
        else:
            held = table.to_table(columns=columns, filter=chosen)
        for key, vector in zip(held["content_hash"].to_pylist(), held["vector"].to_pylist(), strict=True):
            self._known[key] = np.frombuffer(vector, "<f4")


def prune(lake: Lake, in_use: Collection[str], *, dry_run: bool = False) -> int:
    """Takes out the vectors of taught encoders that are not in use; how many those were.

    They are a cache: a model that comes back, by a rollback to a lineage before, embeds again what it asks for.

    Args:
        lake: whose table `text_vectors`.
        in_use: the names of the taught encoders whose vectors stay.
        dry_run: only counts.
    """
    counts = pc.value_counts(lake.arrow("text_vectors", columns=["encoder"])["encoder"].cast(pa.string()))
    held = {one["values"]: one["counts"] for one in counts.to_pylist()}
    gone = {name: count for name, count in held.items() if name.startswith(TAUGHT) and name not in in_use}
    if gone and not dry_run:
        lake.remove("text_vectors", " OR ".join(f"encoder = {sql_text(name)}" for name in sorted(gone)))
    return sum(gone.values())


def content_hash(text: str) -> str:
    """32 hex digits of the text in Unicode's composed form: the same words give the same hash."""
    return hashlib.blake2b(unicodedata.normalize("NFC", text).encode(), digest_size=16).hexdigest()
