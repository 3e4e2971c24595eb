"""Which directions of text vectors the recommender keeps: those in which the first catalogue's texts vary most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from models.int8_rows import Int8Rows
from pipeline.tasks.known_items import principal_directions
from pipeline.tasks.recommend_encoded import vectors_of

_AT_ONCE = 8192  # vectors: whole ones are twelve times as large as what is kept of them


class Directions:
    """A projection of text vectors.

    Attributes:
        matrix: [text dimension, kept] float32.
    """

    def __init__(self, matrix: np.ndarray) -> None:
        """Takes the projection."""
        self.matrix = matrix

    @classmethod
    def first(cls, text_dimension: int, kept: int) -> Directions:
        """Before any text was seen: the first ones."""
        return cls(np.eye(text_dimension, kept, dtype=np.float32))

    def of_catalogue(self, column: pa.ChunkedArray) -> Directions:
        """As many directions, those in which these text vectors vary most."""
        return Directions(principal_directions(vectors_of(column, len(self.matrix)), self.matrix.shape[1]))

    def projected(self, column: pa.ChunkedArray) -> Int8Rows:
        """[n, kept] of text vectors."""
        projected = Int8Rows.zeros(len(column), self.matrix.shape[1])
        for start in range(0, len(column), _AT_ONCE):
            vectors = vectors_of(column.slice(start, _AT_ONCE), len(self.matrix))
            projected[np.arange(start, start + len(vectors))] = Int8Rows.of(vectors @ self.matrix)
        return projected

    def of_items(
        self, context: pa.Table, held: Callable[[], Int8Rows], new: np.ndarray,
        known: Callable[[Sequence[str]], np.ndarray],
    ) -> Int8Rows:
        """[n, kept], the texts of a context's items.

        Args:
            context: `text_vector`, null where the catalogue has said nothing; then `content_hash` as well.
            held: gives what is held of the items.
            new: [n] bool, items of which nothing is held.
            known: gives text vectors by content hash.
        """
        told = context["text_vector"].is_valid().to_numpy()
        if told.all():
            return self.projected(context["text_vector"])
        text = held()
        text[told] = self.projected(context["text_vector"].filter(pa.array(told)))
        back = ~told & new  # expired once, chosen again, and the catalogue has said nothing since
        if back.any():
            hashes = context["content_hash"].filter(pa.array(back)).to_pylist()
            text[back] = Int8Rows.of(known(hashes) @ self.matrix)
        return text
