"""How a learner of messages reads them: its text encoder, and the vectors that this gives.

The encoder is the task's, or the first blocks of it, or these as messages have taught them in the last full retrain;
updates keep it. Champion and challenger may have different ones, so each learner embeds the texts of its examples
itself, from the lake's cache: both judge the same messages, each by its own vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.tasks import encoder_vectors
from pipeline.tasks.encoder_vectors import Vectors, Weights
from pipeline.texts import TAUGHT

_PREFIX = "encoder/"


class Embedding:
    """An encoder of messages."""

    def __init__(
        self, pretrained: Callable[[], Any], cached: Callable[[str, Any], Vectors], *, share: float = 1.0,
        changes: Mapping[str, np.ndarray] | None = None, changes_of: str = "",
    ) -> None:
        """Takes what gives the whole pretrained encoder, and what gives an encoder's vectors by the name they have.

        Args:
            pretrained: called only where a text must be embedded, or a package written.
            cached: of name and encoder.
            share: of the encoder's blocks.
            changes: how far messages have moved the weights (models/text_openings.py); none: not taught.
            changes_of: identity of the encoder that was taught.
        """
        self._pretrained, self._cached, self.share, self.changes_of = pretrained, cached, share, changes_of
        self._changes = Weights.of(changes or {})

    def restored(self, arrays: Mapping[str, np.ndarray], share: float, changes_of: str) -> Embedding:
        """The embedding of a checkpoint's `arrays`, made of the same pretrained encoder; see `__init__`."""
        changes = {name.removeprefix(_PREFIX): one for name, one in arrays.items() if name.startswith(_PREFIX)}
        return Embedding(self._pretrained, self._cached, share=share, changes=changes, changes_of=changes_of)

    def arrays(self) -> dict[str, np.ndarray]:
        """What messages have taught, for a checkpoint."""
        return {_PREFIX + name: one for name, one in self._changes.arrays.items()}

    @cached_property
    def encoder(self) -> Any:
        """What consumers embed messages by.

        Raises:
            ValueError: what messages have taught is of another pretrained encoder than the task's.
        """
        first = encoder_vectors.cut(self._pretrained(), self.share)
        if not self._changes.arrays:
            return first
        if first.identity != self.changes_of:
            raise ValueError(
                f"The text encoder must be the one that was taught ({self.changes_of}); it is {first.identity}. "
                "Set EVERGREEN_ENCODER as it was, or run the DAG that retrains this task."
            )
        return encoder_vectors.changed(first, self._changes)

    @property
    def vectors_name(self) -> str:
        """The name under which the vectors of a taught encoder lie in the lake; of one that was not taught empty."""
        return f"{TAUGHT}{self.encoder.identity}" if self._changes.arrays else ""

    def taught(
        self, texts: Sequence[str], *, most_steps: int, seed: int, report: Callable[[str], None]
    ) -> Embedding:
        """The encoder of the first blocks as these messages teach it; as it was where they are too few."""
        from models.text_openings import taught_changes

        first = encoder_vectors.cut(self._pretrained(), self.share)
        changes = taught_changes(first, texts, most_steps=most_steps, seed=seed, report=report)
        return Embedding(
            self._pretrained, self._cached, share=self.share, changes=changes, changes_of=first.identity
        )

    def of(self, table: pa.Table) -> pa.Table:
        """The table with `text_vector` [dimension] float32 of its `text`; a table that has one stays as it is."""
        if "text_vector" in table.column_names:
            return table
        vectors = np.ascontiguousarray(self._vectors.of(table["text"].to_pylist()), np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return table.append_column("text_vector", column)

    @cached_property
    def _vectors(self) -> Vectors:
        return encoder_vectors.vectors_of(self._cached, self.vectors_name, self.encoder)
