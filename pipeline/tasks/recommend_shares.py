"""One worker's share of a recommender's examples: how several workers make the batches that one alone would make.

Example i is worker `i % size`'s. All workers draw the same order, groups and candidates, for which they need to know no
more of the others' examples than how long each is; each then builds its own part of every batch from its own examples
alone. The loss of an example does not depend on which others are in its batch: candidates that were not drawn
count in no sum but that of the example whose target they are. So the sum of the workers' gradients is the gradient of
the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from pipeline.tasks.contract import Examples, Methods
from pipeline.tasks.recommend_batches import Batch, Batcher, groups_by_length, groups_by_width
from pipeline.tasks.recommend_encoded import Encoded, owners

if TYPE_CHECKING:
    from models.workers import Workers


def outline(examples: Examples) -> dict[str, np.ndarray]:
    """`history_widths` and `target_widths`, [n] int32 each: all that a worker must know of the others' examples."""
    return {
        f"{name}_widths": pc.list_value_length(examples.table[column]).fill_null(0).to_numpy().astype(np.int32)
        for name, column in (("history", "history_items"), ("target", "targets"))
    }


@dataclass(frozen=True)
class Whole:
    """All examples in one process: the batches as they are."""

    encoded: Encoded

    def __len__(self) -> int:
        """All examples."""
        return len(self.encoded)

    def target_draws(self, generator: np.random.Generator) -> np.ndarray:
        """A random number for each target."""
        return generator.random(len(self.encoded.target_index))

    def groups(self, order: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, int]]:
        """The batches: which examples, and how long their histories are at most."""
        return groups_by_length(self.encoded, order, batch_size)

    def batch(self, batcher: Batcher, chosen: np.ndarray, length: int) -> Batch:
        """One of them."""
        return batcher.batch(chosen, length, len(chosen))


@dataclass(frozen=True)
class Share:
    """One worker's share of all examples: the interface of `Whole`, and the sum over all.

    Attributes:
        workers: all of them.
        history_widths, target_widths: [all examples] int32, see `outline`.
    """

    workers: Workers
    history_widths: np.ndarray
    target_widths: np.ndarray

    @classmethod
    def of(cls, workers: Workers, widths: Mapping[str, np.ndarray]) -> Share:
        """The share of this worker; `widths` is the outline of all examples."""
        return cls(workers, widths["history_widths"], widths["target_widths"])

    def __len__(self) -> int:
        """All examples, not this worker's alone."""
        return len(self.history_widths)

    def target_draws(self, generator: np.random.Generator) -> np.ndarray:
        """A random number for each target of this worker's examples; drawn for all, so that each gets the same."""
        offsets = np.concatenate([[0], np.cumsum(self.target_widths)])
        return generator.random(offsets[-1])[self._is_mine(owners(offsets))]

    def groups(self, order: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, int]]:
        """The batches, of all workers' examples."""
        return groups_by_width(self.history_widths, order, batch_size)

    def batch(self, batcher: Batcher, chosen: np.ndarray, length: int) -> Batch:
        """The own part of the batch of the examples at `chosen` (of all).

        Beside what `Batcher.batch` gives: `examples`, how many all workers have in it, and `dropout_place` [own] and
        `dropout_size`: whose dropout, of a batch of that size, is this worker's.
        """
        place = np.flatnonzero(self._is_mine(chosen))
        own = chosen[place] // self.workers.size
        none = not len(own)
        if none:  # it still takes part in every sum: with an example of no weight
            own = place = np.zeros(1, np.int64)
        batch = batcher.batch(own, length, len(own))
        return {
            **batch, "weight": np.zeros(1, np.float32) if none else batch["weight"],
            "examples": np.array(len(chosen), np.float32), "dropout_place": place.astype(np.int32),
            "dropout_size": np.array(len(chosen), np.int32),
        }

    def rows_of_all(self, rows: np.ndarray, gradient: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of all workers' parts of a batch, each once, and the sums of their gradients."""
        there = slice(None) if weight.any() else slice(1)  # row 0 is no item: nobody moves it
        return self.workers.rows_of_all(rows[there], gradient[there])

    def _is_mine(self, examples: np.ndarray) -> np.ndarray:
        return examples % self.workers.size == self.workers.rank


def refuse_alone(methods: Methods) -> None:
    """Refuses methods whose draws or sums are of a whole batch, which no worker has."""
    alone = ("distillation", "l2_pull", "ewc", "adversarial_radius", "history_mask", "history_crop", "text_crop",
             "text_mask", "text_synonym")
    asked = [name for name in alone if getattr(methods, name)]
    if asked:
        raise ValueError(
            f"Several workers train without {', '.join(asked)}. Take it out of the schedule or set EVERGREEN_WORKERS=1."
        )
