"""The recommender as a learner: it takes in new items, trains, scores, and packs itself for consumers.

The network works on arrays (models/recommender.py); this file holds what lies between it and tables of ids:
vocabularies, batches of fixed shape, the judge's metrics, state and package. Growing past a table's capacity
builds the network anew, twice as large, from the very state that a checkpoint would hold, so that weights and
moments of the rows that are there stay as they were.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

import models
from models import recommender_service
from models.compact_recommender import CompactRecommender, best
from models.layers import POPULARITY_PACE
from models.recommender import (
    HISTORY_LENGTHS,
    TARGETS,
    Recommender,
    RecommenderSizes,
    Trainer,
    as_json,
    variables_of,
)
from pipeline.evaluation import mrr_at_k, ndcg_at_k, recall_at_k
from pipeline.tasks.contract import Examples, Package, Scores, State
from pipeline.vocabulary import Vocabulary

K = 20  # items on a shop's first page of results
_SCORED_AT_ONCE = 256
_LEAST_CAPACITY = 256
_UNSEEN_CHOICES = 0.5  # choices that an item counts as having before its first (Krichevsky and Trofimov 1981)
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "tensorflow", "keras", "keras-hub", "tokenizers")
_ITEM_ROWS = ("id_rows", "item_popularity", "item_text", "item_price", "item_category", "item_admitted", "item_exists")

Batch = Mapping[str, np.ndarray]


class RecommenderLearner:
    """Fulfils `pipeline.tasks.contract.Learner`."""

    def __init__(
        self, *, seed: int, text_dimension: int, encoder: Callable[[], Any], sizes: RecommenderSizes | None = None
    ) -> None:
        """An untrained recommender that knows no item.

        Args:
            seed: of every random weight and of dropout.
            text_dimension: length of a text vector.
            encoder: gives the text encoder, called only when a package is written.
            sizes: other than the default ones.
        """
        tf.config.experimental.enable_op_determinism()
        self._seed = seed
        self._encoder = encoder
        self._items, self._categories = Vocabulary(), Vocabulary()
        self._price_scale: tuple[float, float] | None = None
        self._build(sizes or RecommenderSizes(_LEAST_CAPACITY, _LEAST_CAPACITY, text_dimension))

    # --- growth ---

    def grow(self, context: pa.Table, examples: Examples) -> Mapping[str, int]:
        """Takes in items and what changed of them, and counts the examples' targets as sightings.

        Args:
            context: `item_id`, `category`, `price`, `text_vector`; items that are known are overwritten.
            examples: what will be learnt.
        """
        first, known = len(self._items) == 1, len(self._items)
        rows = self._items.grow(context["item_id"].to_pylist())
        targets = self._items.indices_of(pc.list_flatten(examples.table["targets"]))
        seen = np.concatenate([targets, self._items.indices_of(examples.table["rating_item"])])
        admitted = self._items.see(seen)
        categories = self._categories_of(context["category"])
        self._make_room()
        self._describe(rows, context, categories)
        if first:
            self._start_text_adapter()
        self._start_popularity(known, targets)
        return {
            "items": len(self._items) - 1, "items_new": len(self._items) - known, "rows_admitted": admitted,
            "items_described": len(rows),
        }

    def _categories_of(self, names: pa.ChunkedArray) -> np.ndarray:
        self._categories.grow(sorted({name for name in names.to_pylist() if name}))
        return self._categories.indices_of(names.cast(pa.string()))

    def _make_room(self) -> None:
        sizes = replace(
            self._sizes, items=_capacity(len(self._items), self._sizes.items),
            categories=_capacity(len(self._categories), self._sizes.categories),
        )
        if sizes == self._sizes:
            return
        held = self._held()
        self._build(sizes)
        self._put(held)

    def _describe(self, rows: np.ndarray, context: pa.Table, categories: np.ndarray) -> None:
        """Writes what is known of items into the network's tables."""
        exists, admitted = np.zeros(self._sizes.items, np.float32), np.zeros(self._sizes.items, np.float32)
        exists[1 : len(self._items)] = 1.0
        admitted[: len(self._items)] = self._items.admitted
        self._network.item_exists.assign(exists)
        self._network.item_admitted.assign(admitted)
        if not len(rows):
            return
        for variable, values in (
            (self._network.item_text, _vectors(context["text_vector"], self._sizes.text_dimension)),
            (self._network.item_price, self._price_features(context["price"])),
            (self._network.item_category, categories),
        ):
            table = variable.numpy().copy()
            table[rows] = values
            variable.assign(table)

    def _price_features(self, prices: pa.ChunkedArray) -> np.ndarray:
        """[n, 3]: z-score of the log price (within 4), its square, price known. The scale is that of the first call."""
        values = prices.cast(pa.float64()).to_numpy()
        known = np.isfinite(values) & (values > 0)
        logs = np.log(np.where(known, values, 1.0))
        if self._price_scale is None and known.any():
            self._price_scale = float(logs[known].mean()), float(max(logs[known].std(), 1e-3))
        mean, deviation = self._price_scale or (0.0, 1.0)
        scores = np.clip((logs - mean) / deviation, -4.0, 4.0) * known
        return np.stack([scores, scores**2, known], axis=1).astype(np.float32)

    def _start_text_adapter(self) -> None:
        """Sets the text adapter to the principal directions of the catalogue's texts: cosines survive, noise goes."""
        text = self._network.item_text.numpy()
        _, directions = np.linalg.eigh((text.T @ text).astype(np.float64))
        adapter = np.zeros((self._sizes.text_dimension, self._sizes.dimension), np.float32)
        kept = min(adapter.shape)
        adapter[:, :kept] = directions[:, ::-1][:, :kept]
        self._network.item_tower.text_adapter.assign(adapter)

    def _start_popularity(self, known: int, targets: np.ndarray) -> None:
        """New items start at the log of their share of the choices."""
        chosen = np.bincount(targets, minlength=len(self._items))[known:] + _UNSEEN_CHOICES
        everything = max(int((targets > 0).sum()), 1) + _UNSEEN_CHOICES * (len(self._items) - 1)
        weights = self._network.popularity_weight.numpy().copy()
        weights[known : len(self._items)] = np.log(chosen / everything) / POPULARITY_PACE
        self._network.popularity_weight.assign(weights)

    # --- training ---

    def batches(self, examples: Examples, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """Shuffled batches; the histories of one batch are all short or all long (HISTORY_LENGTHS)."""
        encoded = self._encoded(examples)
        order = generator.permutation(len(examples))
        encoded = encoded.with_targets_drawn(generator)
        groups = _groups_by_length(encoded, order, batch_size)
        for place in generator.permutation(len(groups)):
            chosen, length = groups[place]
            yield encoded.batch(chosen, length, batch_size)

    def train_step(self, batch: Batch, learning_rate: float) -> float:
        """One step of Adam; the batch's mean loss before it."""
        return self._trainer.train_step(batch, learning_rate)

    def loss(self, examples: Examples, batch_size: int) -> float:
        """The mean training loss without dropout; 0 for no examples."""
        if not len(examples):
            return 0.0
        encoded = self._encoded(examples)
        total = 0.0
        for chosen, length in _groups_by_length(encoded, np.arange(len(examples)), batch_size):
            losses = self._trainer.measure(encoded.batch(chosen, length, batch_size))
            total += float(losses[: len(chosen)].astype(np.float64).sum())
        return total / len(examples)

    def _encoded(self, examples: Examples) -> _Encoded:
        return _Encoded.of(examples.table, self._items, self._sizes.text_dimension)

    # --- judging ---

    def score(self, examples: Examples) -> Scores:
        """recall@20, ndcg@20 and mrr@20 of each example with a target, over the whole catalogue.

        A target that the vocabulary does not know is a miss.
        """
        examples = examples.keep(pc.greater(pc.list_value_length(examples.table["targets"]), 0).to_numpy())
        encoded = self._encoded(examples)
        compact = self.compact()
        ranked = np.full((len(examples), K), -1, np.int64)
        for chosen, length in _groups_by_length(encoded, np.arange(len(examples)), _SCORED_AT_ONCE):
            batch = encoded.batch(chosen, length, len(chosen))
            logits = compact.logits(
                batch["history_index"], batch["history_counts"], batch["history_views"], batch["history_days"],
                batch["query_vector"], batch["has_query"] > 0,
            )
            logits[:, 0] = -np.inf
            ranked[chosen] = best(logits, K)[0]
        targets = encoded.padded_targets(unknown=len(self._items))
        table = examples.table
        metrics = {f"recall@{K}": recall_at_k, f"ndcg@{K}": ndcg_at_k, f"mrr@{K}": mrr_at_k}
        frame = pd.DataFrame({
            "example_id": table["example_id"].to_pylist(),
            "unit": table["unit"].to_pylist(),
            "hour": pd.to_datetime(table["hour"].to_pylist(), utc=True),
            **{name: metric(ranked, targets, K) for name, metric in metrics.items()},
            **self._slices(encoded, targets),
        })
        return Scores(frame, tuple(metrics))

    def _slices(self, encoded: _Encoded, targets: np.ndarray) -> dict[str, np.ndarray]:
        admitted = np.append(self._items.admitted, False)  # the last stands for an unknown item
        new_item = ((targets >= 0) & ~admitted[np.minimum(targets, len(self._items))]).any(axis=1)
        empty = np.diff(encoded.history_offsets) == 0
        return {
            "slice:new_user": empty, "slice:old_user": ~empty, "slice:new_item": new_item,
            "slice:repeat": encoded.repeats(), "slice:search": encoded.has_query > 0,
        }

    # --- state ---

    def state(self) -> State:
        """Weights, slots and seed generators' states (rows in use only), vocabularies with their sightings."""
        meta = {
            "seed": self._seed, "sizes": as_json(self._sizes), "price_scale": self._price_scale,
            "items": len(self._items), "categories": len(self._categories),
        }
        vocabularies = self._items.arrays("vocabulary/items") | self._categories.arrays("vocabulary/categories")
        return State(self._held() | vocabularies, meta)

    @classmethod
    def restore(cls, state: State, encoder: Callable[[], Any]) -> RecommenderLearner:
        """The learner that `state` was taken from, bit for bit."""
        sizes = RecommenderSizes(**state.meta["sizes"])
        learner = cls(
            seed=state.meta["seed"], text_dimension=sizes.text_dimension, encoder=encoder, sizes=sizes
        )
        learner._items = Vocabulary.from_arrays(state.arrays, "vocabulary/items")
        learner._categories = Vocabulary.from_arrays(state.arrays, "vocabulary/categories")
        scale = state.meta["price_scale"]
        learner._price_scale = None if scale is None else (scale[0], scale[1])
        learner._put({name: array for name, array in state.arrays.items() if not name.startswith("vocabulary/")})
        return learner

    def _build(self, sizes: RecommenderSizes) -> None:
        self._sizes = sizes
        self._network = Recommender(sizes, self._seed)
        self._trainer = Trainer(self._network)

    def _held(self) -> dict[str, np.ndarray]:
        """Every variable by path, tables of ids cut to the rows in use."""
        return {
            path: variable.numpy()[: self._rows_in_use(path)].copy() if self._rows_in_use(path) else
            np.array(variable.numpy())
            for path, variable in variables_of(self._trainer).items()
        }

    def _put(self, held: Mapping[str, np.ndarray]) -> None:
        """Sets every variable from `held`; rows that are not in it stay zero."""
        for path, variable in variables_of(self._trainer).items():
            array = held[path]
            if self._rows_in_use(path):
                array = np.pad(array, [(0, variable.shape[0] - len(array))] + [(0, 0)] * (array.ndim - 1))
            variable.assign(array)

    def _rows_in_use(self, path: str) -> int:
        """For a table of ids the rows in use, for anything else 0."""
        name = path.rsplit("/", 1)[-1]
        if any(name == table or name.endswith(f"_{table}_{slot}")
               for table in _ITEM_ROWS for slot in ("momentum", "velocity")):
            return len(self._items)
        if name == "category_rows" or "_category_rows_" in name:
            return len(self._categories)
        return 0

    # --- for consumers ---

    def compact(self) -> CompactRecommender:
        """The recommender in plain arrays, as consumers use it."""
        network, used = self._network, len(self._items)
        user, copy = network.user_tower, network.copy_head
        weights = {
            "weigh_item": user.weigh_item, "weigh_features": user.weigh_features,
            "user_hidden_kernel": user.hidden_kernel, "user_hidden_bias": user.hidden_bias,
            "user_direct_kernel": user.direct_kernel, "user_output_kernel": user.output_kernel,
            "copy_linear": copy.linear, "copy_popularity": copy.popularity, "copy_again": copy.again,
            "copy_hidden_kernel": copy.hidden_kernel, "copy_hidden_bias": copy.hidden_bias,
            "copy_output_kernel": copy.output_kernel, "text_adapter": network.item_tower.text_adapter,
            "query_kernel": network.query_kernel, "search_gates": network.search_gates,
        }
        popularity = POPULARITY_PACE * network.popularity_weight.numpy()[:used]
        popularity[0] = 0.0
        return CompactRecommender(self._items.ids, {
            **{name: variable.numpy() for name, variable in weights.items()},
            "items": network.item_vectors().numpy()[:used], "popularity": popularity,
        })

    def package(self, folder: Path) -> Package:
        """Writes the compact arrays and the text encoder below `folder`."""
        shutil.rmtree(folder, ignore_errors=True)
        compact = self.compact()
        compact.save(folder / "recommender")
        encoder = self._encoder()
        encoder.save(folder / "text_encoder")
        service = recommender_service.RecommenderService(compact, lambda: encoder)
        example = recommender_service.input_example(compact.ids[1:].tolist())
        return Package(
            model_code=Path(recommender_service.__file__),
            code_folders=(Path(models.__file__).parent,),
            artifacts={"recommender": folder / "recommender"},
            config={"code_package": "models"},
            requirements=tuple(f"{name}=={version(name)}" for name in _REQUIREMENTS),
            input_example=example,
            output_example=service.answer(example, recommender_service.PARAMETERS),
            parameters=recommender_service.PARAMETERS,
            shared={"text_encoder": folder / "text_encoder"},
        )


@dataclass(frozen=True)
class _Encoded:
    """Examples with indices in place of ids; lists lie end to end, `offsets` [n + 1] say where each begins."""

    history_offsets: np.ndarray
    history_index: np.ndarray
    history_counts: np.ndarray
    history_views: np.ndarray
    history_days: np.ndarray
    target_offsets: np.ndarray
    target_index: np.ndarray
    query_vector: np.ndarray
    has_query: np.ndarray
    rating_index: np.ndarray
    rating: np.ndarray

    @classmethod
    def of(cls, table: pa.Table, items: Vocabulary, text_dimension: int) -> _Encoded:
        table = table.combine_chunks()
        query = table["query_vector"]
        has_query = query.is_valid().to_numpy().astype(np.float32)
        rating_index = items.indices_of(table["rating_item"])
        rating = table["rating"].fill_null(0.0).to_numpy().astype(np.float32)
        return cls(
            history_offsets=_offsets(table["history_items"]),
            history_index=items.indices_of(pc.list_flatten(table["history_items"])),
            history_counts=_flat(table["history_counts"]),
            history_views=_flat(table["history_views"]),
            history_days=_flat(table["history_days"]),
            target_offsets=_offsets(table["targets"]),
            target_index=items.indices_of(pc.list_flatten(table["targets"])),
            query_vector=_vectors(query, text_dimension), has_query=has_query,
            rating_index=rating_index, rating=rating * (rating_index > 0),
        )

    def with_targets_drawn(self, generator: np.random.Generator) -> _Encoded:
        """The same with each basket's items in a random order, so that the first TARGETS are a draw."""
        owner = np.repeat(np.arange(len(self.target_offsets) - 1), np.diff(self.target_offsets))
        order = np.lexsort((generator.random(len(owner)), owner))
        return replace(self, target_index=self.target_index[order])

    def batch(self, chosen: np.ndarray, length: int, batch_size: int) -> Batch:
        """The examples at `chosen`, padded to `batch_size` with examples of no weight, histories to `length`."""
        history = {
            name: _padded(getattr(self, name), self.history_offsets, chosen, (batch_size, length))
            for name in ("history_index", "history_counts", "history_views", "history_days")
        }
        targets = _padded(self.target_index, self.target_offsets, chosen, (batch_size, TARGETS))
        rest = {
            name: np.pad(values[chosen], [(0, batch_size - len(chosen))] + [(0, 0)] * (values.ndim - 1))
            for name in ("query_vector", "has_query", "rating_index", "rating")
            for values in (getattr(self, name),)
        }
        weight = (np.arange(batch_size) < len(chosen)).astype(np.float32)
        return history | rest | {"target_index": targets, "weight": weight}

    def padded_targets(self, unknown: int) -> np.ndarray:
        """[n, most] int64, -1 after the end; the items that the vocabulary does not know get `unknown` and above."""
        widths = np.diff(self.target_offsets)
        rows = np.repeat(np.arange(len(widths)), widths)
        places = np.arange(len(rows)) - np.repeat(self.target_offsets[:-1] - self.target_offsets[0], widths)
        targets = np.full((len(widths), max(int(widths.max(initial=0)), 1)), -1, np.int64)
        targets[rows, places] = np.where(self.target_index > 0, self.target_index, unknown + places)
        return targets

    def repeats(self) -> np.ndarray:
        """[n] bool: a target is in the history."""
        span = np.int64(max(self.target_index.max(initial=0), self.history_index.max(initial=0)) + 1)
        history = _owners(self.history_offsets) * span + self.history_index
        owner = _owners(self.target_offsets)
        again = np.isin(owner * span + self.target_index, history) & (self.target_index > 0)
        return np.bincount(owner[again], minlength=len(self.target_offsets) - 1) > 0


def _groups_by_length(encoded: _Encoded, order: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, int]]:
    """`order` cut into batches whose histories are at most as long as the length given with each."""
    lengths = np.diff(encoded.history_offsets)[order]
    groups: list[tuple[np.ndarray, int]] = []
    least = -1
    for length in HISTORY_LENGTHS:
        most = length if length != HISTORY_LENGTHS[-1] else np.iinfo(np.int64).max
        same = order[(lengths > least) & (lengths <= most)]
        groups += [(same[start : start + batch_size], length) for start in range(0, len(same), batch_size)]
        least = length
    return groups


def _padded(flat: np.ndarray, offsets: np.ndarray, chosen: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The lists at `chosen` as rows of a table of `shape`, cut or filled with zeros."""
    places = np.arange(shape[1])
    starts, widths = offsets[chosen], offsets[chosen + 1] - offsets[chosen]
    there = places < widths[:, None]
    table = np.zeros(shape, flat.dtype)
    if len(flat):
        table[: len(chosen)] = np.where(there, flat[np.where(there, starts[:, None] + places, 0)], 0)
    return table


def _owners(offsets: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))


def _offsets(lists: pa.ChunkedArray) -> np.ndarray:
    widths = pc.list_value_length(lists).fill_null(0).to_numpy()
    return np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)


def _flat(lists: pa.ChunkedArray) -> np.ndarray:
    return pc.list_flatten(lists).to_numpy().astype(np.float32)


def _vectors(column: pa.ChunkedArray, dimension: int) -> np.ndarray:
    """[n, dimension] float32, zeros for nulls."""
    vectors = np.zeros((len(column), dimension), np.float32)
    valid = column.is_valid().to_numpy()
    flat = pc.list_flatten(column.filter(pa.array(valid))).to_numpy()
    vectors[valid] = flat.reshape(-1, dimension)
    return vectors


def _capacity(size: int, capacity: int) -> int:
    """The least power of two that holds `size` rows, never less than `capacity`."""
    while capacity < size:
        capacity *= 2
    return capacity
