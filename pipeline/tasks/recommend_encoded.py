"""The recommender's examples with indices in place of ids, and their lists as tables.

Lists of one column lie end to end, with offsets that say where each begins, as in Arrow: nothing is padded until a
batch is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.recommender import TARGETS
from pipeline.tasks.recommend_neighbours import Chosen
from pipeline.vocabulary import Vocabulary


@dataclass(frozen=True)
class Encoded:
    """Examples with indices in place of ids; lists lie end to end, `offsets` [n + 1] say where each begins."""

    times: np.ndarray
    history_offsets: np.ndarray
    history_index: np.ndarray
    history_counts: np.ndarray
    history_views: np.ndarray
    history_days: np.ndarray
    history_habits: np.ndarray
    history_chosen: np.ndarray  # whether it is among the targets that are counted
    target_offsets: np.ndarray
    target_index: np.ndarray
    target_place: np.ndarray  # of each target in its example's history, from 0; -1: it is not there
    target_counted: np.ndarray  # whether what goes with it is counted: of a large basket the first TARGETS items are
    query_vector: np.ndarray
    query_wording: np.ndarray  # of the query in another wording; where there is none, as it is
    has_query: np.ndarray
    rating_index: np.ndarray
    rating: np.ndarray

    @classmethod
    def of(cls, table: pa.Table, items: Vocabulary, projection: np.ndarray) -> Encoded:
        """The examples (EXAMPLES_SCHEMA and `query_vector`); queries are projected as the items' texts are.

        There may be a `query_wording_vector` as well, of the query in another wording.
        """
        table = table.combine_chunks()
        query = table["query_vector"]
        has_query = query.is_valid().to_numpy().astype(np.float32)
        rating_index = items.indices_of(table["rating_item"])
        rating = table["rating"].fill_null(0.0).to_numpy().astype(np.float32)
        history_offsets, target_offsets = _offsets(table["history_items"]), _offsets(table["targets"])
        history_index = items.indices_of(pc.list_flatten(table["history_items"]))
        target_index = items.indices_of(pc.list_flatten(table["targets"]))
        target_place = _places(history_offsets, history_index, target_offsets, target_index)
        target_counted = _ranks(target_offsets) < TARGETS
        history_chosen = np.zeros(len(history_index), bool)
        again = np.flatnonzero((target_place >= 0) & target_counted)
        history_chosen[history_offsets[owners(target_offsets)[again]] + target_place[again]] = True
        query_vector = _projected_queries(query, has_query, projection)
        query_wording = query_vector
        if "query_wording_vector" in table.column_names:
            query_wording = _projected_queries(table["query_wording_vector"], has_query, projection)
        return cls(
            times=table["time"].cast(pa.int64()).to_numpy(),
            history_offsets=history_offsets, history_index=history_index,
            history_counts=_flat(table["history_counts"]),
            history_views=_flat(table["history_views"]),
            history_days=_flat(table["history_days"]),
            history_habits=_flat(table["history_habits"]), history_chosen=history_chosen,
            target_offsets=target_offsets, target_index=target_index, target_place=target_place,
            target_counted=target_counted,
            query_vector=query_vector, query_wording=query_wording, has_query=has_query,
            rating_index=rating_index, rating=rating * (rating_index > 0),
        )

    def __len__(self) -> int:
        """Examples."""
        return len(self.times)

    @property
    def chosen(self) -> Chosen:
        """What the examples say of items that go together; of a large basket its first TARGETS items."""
        counts = np.minimum(np.diff(self.target_offsets), TARGETS)
        return Chosen(
            self.history_offsets, self.history_index, np.concatenate([[0], np.cumsum(counts)]),
            self.target_index[self.target_counted], self.target_place[self.target_counted] >= 0, self.times,
        )

    def with_targets_by(self, draws: np.ndarray) -> Encoded:
        """The same with each basket's items in the order of `draws` ([targets]): the first TARGETS are then a draw."""
        order = np.lexsort((draws, owners(self.target_offsets)))
        return replace(
            self, target_index=self.target_index[order], target_place=self.target_place[order],
            target_counted=self.target_counted[order],
        )

    def padded_targets(self, unknown: int) -> np.ndarray:
        """[n, most] int64, -1 after the end; the items that the vocabulary does not know get `unknown` and above."""
        widths = np.diff(self.target_offsets)
        places = _ranks(self.target_offsets)
        targets = np.full((len(widths), max(int(widths.max(initial=0)), 1)), -1, np.int64)
        rows = owners(self.target_offsets)
        targets[rows, places] = np.where(self.target_index > 0, self.target_index, unknown + places)
        return targets

    def repeats(self) -> np.ndarray:
        """[n] bool: a target is in the history."""
        again = owners(self.target_offsets)[self.target_place >= 0]
        return np.bincount(again, minlength=len(self)) > 0

    def history(self, chosen: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        """`history_index`, `_counts`, `_views`, `_days` of the examples at `chosen`, as tables of `shape`."""
        return {
            name: padded(getattr(self, name), self.history_offsets, chosen, shape)
            for name in ("history_index", "history_counts", "history_views", "history_days")
        }

    def habits(self, chosen: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """The habits (models/habits.py) beside `history`'s tables, float32 of `shape`: no input of the network."""
        return padded(self.history_habits, self.history_offsets, chosen, shape)


def padded(flat: np.ndarray, offsets: np.ndarray, chosen: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The lists at `chosen` as rows of a table of `shape`, cut or filled with zeros."""
    places = np.arange(shape[1])
    starts, widths = offsets[chosen], offsets[chosen + 1] - offsets[chosen]
    there = places < widths[:, None]
    table = np.zeros(shape, flat.dtype)
    if len(flat):
        table[: len(chosen)] = np.where(there, flat[np.where(there, starts[:, None] + places, 0)], 0)
    return table


def flat_places(offsets: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the values in the lists at `chosen`: whose each is, counted in `chosen`, and where it lies; [values] int64."""
    widths = offsets[chosen + 1] - offsets[chosen]
    starts = offsets[chosen] - np.cumsum(widths) + widths
    return np.repeat(np.arange(len(chosen)), widths), np.repeat(starts, widths) + np.arange(widths.sum())


def owners(offsets: np.ndarray) -> np.ndarray:
    """[values] int64: whose list each value of flattened lists is in."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))


def vectors_of(column: pa.ChunkedArray, dimension: int) -> np.ndarray:
    """[n, dimension] float32, zeros for nulls."""
    vectors = np.zeros((len(column), dimension), np.float32)
    valid = column.is_valid().to_numpy()
    flat = pc.list_flatten(column.filter(pa.array(valid))).to_numpy()
    vectors[valid] = flat.reshape(-1, dimension)
    return vectors


def filled(values: np.ndarray, batch_size: int) -> np.ndarray:
    """The values of some examples [n, ...], with zeros up to `batch_size`."""
    return np.pad(values, [(0, batch_size - len(values))] + [(0, 0)] * (values.ndim - 1))


def _projected_queries(query: pa.ChunkedArray, has_query: np.ndarray, projection: np.ndarray) -> np.ndarray:
    vectors = np.zeros((len(query), projection.shape[1]), np.float32)
    asked = np.flatnonzero(has_query)
    if len(asked):
        vectors[asked] = vectors_of(query.filter(pa.array(has_query > 0)), len(projection)) @ projection
    return vectors


def _places(
    history_offsets: np.ndarray, history: np.ndarray, target_offsets: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Where each target stands in its example's history, from 0; -1: it is not there."""
    span = np.int64(max(targets.max(initial=0), history.max(initial=0)) + 1)
    keys = owners(history_offsets) * span + history
    order = np.argsort(keys, kind="stable")
    wanted = owners(target_offsets) * span + targets
    found = np.searchsorted(keys[order], wanted)
    found = np.minimum(found, max(len(keys) - 1, 0))
    if not len(keys):
        return np.full(len(targets), -1, np.int32)
    there = (keys[order][found] == wanted) & (targets > 0)
    return np.where(there, _ranks(history_offsets)[order[found]], -1).astype(np.int32)


def _ranks(offsets: np.ndarray) -> np.ndarray:
    """[values]: each value's place in its list."""
    return np.arange(offsets[-1] - offsets[0]) - np.repeat(offsets[:-1] - offsets[0], np.diff(offsets))


def _offsets(lists: pa.ChunkedArray) -> np.ndarray:
    widths = pc.list_value_length(lists).fill_null(0).to_numpy()
    return np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)


def _flat(lists: pa.ChunkedArray) -> np.ndarray:
    return pc.list_flatten(lists).to_numpy().astype(np.float32)


