"""From examples of texts to the arrays that the classifier's steps read: labels, weights, n-grams, pseudo-labels.

Where a task switches self-training on (Lee 2013; Xie et al., CVPR 2020), what nobody has labelled teaches too: before
each pass the model as it stands says what it is sure of, and learns it with dropout on, hence as something that must
still hold when half of the features are gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from models.text_features import Ngrams, hashed_ngrams

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Texts:
    """Texts as the network reads them.

    Attributes:
        vectors: [n, dimension] float32.
        ngrams: of the same texts.
        targets: head -> [n] int64, the class; -1: nobody has said, -2: one that the model does not know.
    """

    vectors: np.ndarray
    ngrams: Ngrams
    targets: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def of(cls, table: pa.Table, classes: Mapping[str, Mapping[str, int]], buckets: int) -> Texts:
        """Of rows with `text`, `text_vector` and a column per head; `classes`: head -> name -> place."""
        return cls(
            vectors_of(table), hashed_ngrams(table["text"].to_pylist(), buckets),
            {head: places(table[head].to_pylist(), known) for head, known in classes.items()},
        )


@dataclass(frozen=True)
class Pseudo:
    """What the model is sure of, of texts that nobody has labelled.

    Attributes:
        texts: all of them.
        targets: head -> [n, classes] float32, what it says.
        weights: head -> [n] float32, 0: it is not sure, or somebody has said.
        chosen: [m] int, those of which a pass takes some.
    """

    texts: Texts
    targets: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray]
    chosen: np.ndarray


def batches(
    texts: Texts, replayed: np.ndarray, capacity: Mapping[str, int], batch_size: int, generator: np.random.Generator,
    pseudo: Pseudo | None = None,
) -> Iterator[Batch]:
    """A shuffled pass; with `pseudo` as many texts again that nobody has labelled, half of each batch's rows.

    Args:
        texts: labelled.
        replayed: [n] bool.
        capacity: head -> classes that the network has room for.
        batch_size: labelled texts a batch.
        generator: of order and dropout.
        pseudo: see there.
    """
    order = generator.permutation(len(texts))
    others = np.zeros(0, np.int64)
    if pseudo is not None and len(pseudo.chosen):
        others = generator.permutation(np.resize(generator.permutation(pseudo.chosen), len(texts)))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = _labelled(texts, rows, replayed, capacity)
        if len(others) and pseudo is not None:
            batch = _joined(batch, _pseudo(pseudo, others[start : start + batch_size], capacity))
        batch["seed"] = generator.integers(0, 2**31 - 1, 2, dtype=np.int32)
        yield batch


def _labelled(texts: Texts, rows: np.ndarray, replayed: np.ndarray, capacity: Mapping[str, int]) -> Batch:
    batch = {
        "vectors": texts.vectors[rows], "ngrams": texts.ngrams.dense(rows),
        "replayed": replayed[rows].astype(np.float32),
    }
    for head, targets in texts.targets.items():
        known = targets[rows] >= 0
        filled = np.zeros((len(rows), capacity[head]), np.float32)
        filled[np.flatnonzero(known), targets[rows][known]] = 1.0
        batch[f"{head}_target"], batch[f"{head}_weight"] = filled, known.astype(np.float32)
    return batch


def _pseudo(pseudo: Pseudo, rows: np.ndarray, capacity: Mapping[str, int]) -> Batch:
    batch = {
        "vectors": pseudo.texts.vectors[rows], "ngrams": pseudo.texts.ngrams.dense(rows),
        "replayed": np.zeros(len(rows), np.float32),
    }
    for head, targets in pseudo.targets.items():
        filled = np.zeros((len(rows), capacity[head]), np.float32)
        filled[:, : targets.shape[1]] = targets[rows]
        batch[f"{head}_target"], batch[f"{head}_weight"] = filled, pseudo.weights[head][rows]
    return batch


def _joined(one: Batch, other: Batch) -> Batch:
    return {name: np.concatenate([one[name], other[name]]) for name in one}


def vectors_of(table: pa.Table) -> np.ndarray:
    """[n, dimension] float32 of a table's `text_vector`."""
    column = table["text_vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), column.type.list_size).astype(np.float32, copy=False)


def places(names: Sequence[str | None], known: Mapping[str, int]) -> np.ndarray:
    """[n] int64: the place of each name, -1 where there is none, -2 where the model does not know it."""
    return np.array([-1 if name is None else known.get(name, -2) for name in names], np.int64)
