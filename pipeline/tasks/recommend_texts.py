"""The recommender's text encoder: the task's, or the task's with low-rank changes that the last retrain has taught it.

Tasks embed texts by the pretrained encoder before any model sees them. A model whose encoder was adapted embeds texts
anew by its own, from the cache in the lake as well: so champion and challenger of two encoders judge the same examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.tasks import encoder_vectors
from pipeline.tasks.contract import Examples
from pipeline.tasks.encoder_vectors import Vectors, Weights
from pipeline.tasks.known_items import vector_column

_PREFIX = "encoder/lora/"
_NEWEST = 16  # of a history: as many as the neighbours go by (models/layers.py)
_MOST_PAIRS = 50_000  # 200 steps of 64 see a quarter of so many


class Texts:
    """An encoder and what it makes of context and examples."""

    def __init__(
        self, encoder: Callable[[], Any], cached: Callable[[Any], Vectors] | None,
        factors: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Takes the task's encoder, its cache of an encoder's vectors, and the factors of a change; none: none."""
        self._pretrained, self._cached, self._factors = encoder, cached, dict(factors or {})

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], encoder: Callable[[], Any], cached: Callable[[Any], Vectors] | None
    ) -> Texts:
        """What `arrays` wrote."""
        held = {name.removeprefix(_PREFIX): np.array(one) for name, one in arrays.items() if name.startswith(_PREFIX)}
        return cls(encoder, cached, held)

    def arrays(self) -> dict[str, np.ndarray]:
        """The factors, for a checkpoint."""
        return {_PREFIX + name: np.array(one) for name, one in self._factors.items()}

    @cached_property
    def encoder(self) -> Any:
        """What consumers embed queries by."""
        pretrained = self._pretrained()
        return encoder_vectors.adapted(pretrained, Weights.of(self._factors)) if self._factors else pretrained

    def adapt(self, context: pa.Table, examples: Examples, *, rank: int, steps: int, seed: int) -> Texts:
        """The same encoder taught by what was searched for and chosen, and by what was chosen together."""
        from models.text_adapters import trained_factors

        left, right = pairs(context, examples.table, np.random.default_rng(seed))
        if not left:
            return self
        factors = trained_factors(self._pretrained(), left, right, rank=rank, steps=steps, seed=seed)
        return Texts(self._pretrained, self._cached, factors)

    def of_items(self, context: pa.Table) -> pa.Table:
        """The context with `text_vector` by this encoder."""
        return self._embedded(context, "text", "text_vector")

    def of_queries(self, examples: pa.Table) -> pa.Table:
        """The examples with `query_vector` by this encoder."""
        return self._embedded(examples, "query", "query_vector")

    def known(self, hashes: Sequence[str]) -> np.ndarray:
        """[n, dimension] float32 of texts that were embedded before, by their content hash."""
        return self._vectors.known(hashes)

    def _embedded(self, table: pa.Table, words: str, vectors: str) -> pa.Table:
        if not self._factors or not len(table):
            return table
        texts = table[words].to_pylist()
        missing = np.array([not one for one in texts], bool) if words == "query" else None
        column = vector_column(self._vectors.of(texts), missing=missing)
        return table.set_column(table.schema.get_field_index(vectors), vectors, column)

    @cached_property
    def _vectors(self) -> Vectors:
        if self._cached is None:
            raise ValueError("Vectors that a context leaves out must be in the task's cache; this learner has none.")
        return encoder_vectors.vectors_of(self._cached, self.encoder)


def pairs(context: pa.Table, examples: pa.Table, generator: np.random.Generator) -> tuple[list[str], list[str]]:
    """Texts that belong together: a search and what was chosen by it, or two items of one customer.

    Args:
        context: `item_id`, `text`.
        examples: EXAMPLES_SCHEMA; at most _MOST_PAIRS of them are drawn.
        generator: draws examples and items.
    """
    told = zip(context["item_id"].to_pylist(), context["text"].to_pylist(), strict=True)
    text_of = {item: text for item, text in told if text}
    order = generator.permutation(len(examples))[:_MOST_PAIRS]
    rows = examples.select(["query", "targets", "history_items"]).take(pa.array(order)).to_pylist()
    left, right = [], []
    for row in rows:
        targets = [one for one in row["targets"] if one in text_of]
        if not targets:
            continue
        target = targets[int(generator.integers(len(targets)))]
        others = [one for one in {*targets, *row["history_items"][:_NEWEST]} - {target} if one in text_of]
        if row["query"]:
            left.append(row["query"])
        elif others:
            left.append(text_of[sorted(others)[int(generator.integers(len(others)))]])
        else:
            continue
        right.append(text_of[target])
    return left, right

