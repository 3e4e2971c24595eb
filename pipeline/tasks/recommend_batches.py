"""Batches of the recommender: from examples with ids to the arrays of one compiled step.

A step reads the rows of the candidates (of the softmax) and of the histories' items. A small catalogue is a candidate
as a whole; of a large one the candidates are the batch's targets and a sample, drawn by how often items were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.layers import NEIGHBOUR_HISTORY
from models.losses import NO_ITEM
from models.recommender import HISTORY_LENGTHS, TARGETS
from models.second_hop import first_steps, second_steps
from pipeline.tasks.recommend_items import ItemTables
from pipeline.tasks.recommend_neighbours import PAIR_HISTORY, Chosen, Neighbours
from pipeline.tasks.recommend_trends import Trends
from pipeline.vocabulary import Vocabulary

# Up to so many items the softmax is over all of them: no sampling error. A step of 128 costs 60 CPU-ms with 8,000 items
# (sampled: 34), 109 with 16,000 (35), 395 with 64,000 (35); the break-even is at 2,000 (bench_growth.py, two cores).
EXACT_ITEMS = 8192
SAMPLED_ITEMS = 2048  # beyond, over so many draws
_REWORDED = 0.5  # how often a text is seen in its other wording: as often as itself
_SAMPLING_POWER = 0.75  # word2vec's (Mikolov et al. 2013): between how often items are chosen and all alike

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Encoded:
    """Examples with indices in place of ids; lists lie end to end, `offsets` [n + 1] say where each begins."""

    times: np.ndarray
    history_offsets: np.ndarray
    history_index: np.ndarray
    history_counts: np.ndarray
    history_views: np.ndarray
    history_days: np.ndarray
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
            history_days=_flat(table["history_days"]), history_chosen=history_chosen,
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
            self.target_index[self.target_counted], self.times,
        )

    def with_targets_drawn(self, generator: np.random.Generator) -> Encoded:
        """The same with each basket's items in a random order, so that the first TARGETS are a draw."""
        return self.with_targets_by(generator.random(len(self.target_index)))

    def with_targets_by(self, draws: np.ndarray) -> Encoded:
        """The same with each basket's items in the order of `draws` ([targets])."""
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


class Batcher:
    """Makes the batches of one pass over examples."""

    def __init__(
        self, encoded: Encoded, tables: ItemTables, trends: Trends, neighbours: Neighbours,
        generator: np.random.Generator, *, counted: bool | np.ndarray, mask: float = 0.0, crop: float = 0.0,
        reword: bool = False,
    ) -> None:
        """Takes the examples and what is known of items.

        Args:
            encoded: the examples.
            tables, trends, neighbours: the learner's.
            generator: draws the candidates of a large catalogue, and what is left out of histories.
            counted: whether `trends` and `neighbours` have counted these examples; [n] bool: each of them.
            mask: chance of each item of a history to be left out.
            crop: share of each history that is cut away, but for one piece.
            reword: whether texts are seen in their other wording at times.
        """
        self._mask, self._crop, self._reword = mask, crop, reword
        self._encoded, self._tables, self._trends, self._neighbours = encoded, tables, trends, neighbours
        self._generator, self._counted = generator, np.broadcast_to(counted, len(encoded))
        self._moments = trends.moment_of(encoded.times)
        self._exact = len(tables) <= EXACT_ITEMS
        self._place = np.zeros(len(tables), np.int32)  # of an item among a batch's rows; 0 where it is not
        self._dense: dict[int, np.ndarray] = {}
        if self._exact:
            everything = np.arange(len(tables))
            self._whole = self._facts(everything)
            self._place[:] = everything
        else:
            chances = trends.shares().astype(np.float64) ** _SAMPLING_POWER
            chances[0] = 0.0
            self._cumulated = np.cumsum(chances / chances.sum())

    def batch(self, chosen: np.ndarray, length: int, batch_size: int) -> Batch:
        """The examples at `chosen`, padded to `batch_size` with examples of no weight, histories to `length`.

        Beside the arrays of the network's signature it has `rows`: which rows of the tables it needs.
        """
        encoded = self._encoded
        history = encoded.history(chosen, (batch_size, length))
        items = history["history_index"]
        target = padded(encoded.target_index, encoded.target_offsets, chosen, (batch_size, TARGETS))
        place = padded(encoded.target_place + 1, encoded.target_offsets, chosen, (batch_size, TARGETS))
        place = np.where(place <= length, place, 0)
        if self._mask or self._crop:
            kept = kept_places(items > 0, self._mask, self._crop, self._generator)
            history = {name: np.where(kept, table, table.dtype.type(0)) for name, table in history.items()}
            items = history["history_index"]
            hidden = (place > 0) & ~np.take_along_axis(kept, np.maximum(place - 1, 0), axis=1)
            place = np.where(hidden, 0, place)
        outside = np.where(place > 0, 0, target)
        rating = filled(encoded.rating_index[chosen], batch_size)
        rows, candidates, correction = self._rows(outside, items, rating)
        moments, moment = np.unique(self._moments[chosen], return_inverse=True)
        query = self._either(encoded.query_vector[chosen], encoded.query_wording[chosen])
        batch = {
            **history, "rows": rows,
            **(self._whole if self._exact else self._facts(rows)),
            "trend": np.stack([self._trend(int(one), rows) for one in moments]),
            "moment": filled(moment.astype(np.int32), batch_size), "correction": correction,
            "history_index": self._place[items],
            "own_column": np.where(self._place[items] < candidates, self._place[items], 0),
            **self._near(chosen, items, len(rows), candidates),
            "query_vector": filled(query, batch_size),
            "has_query": filled(encoded.has_query[chosen], batch_size),
            "target_index": self._place[outside], "own_targets": place.astype(np.int32),
            "rating_index": self._place[rating], "rating": filled(encoded.rating[chosen], batch_size),
            "weight": (np.arange(batch_size) < len(chosen)).astype(np.float32),
        }
        if not self._exact:
            self._place[rows] = 0
        return batch

    def _rows(
        self, targets: np.ndarray, history: np.ndarray, rating: np.ndarray
    ) -> tuple[np.ndarray, int, np.ndarray]:
        """The items of a batch's rows, how many of them are candidates, and the candidates' correction."""
        if self._exact:
            correction = np.zeros(len(self._tables), np.float32)
            correction[0] = NO_ITEM
            return np.arange(len(self._tables)), len(self._tables), correction
        draws = np.searchsorted(self._cumulated, self._generator.random(SAMPLED_ITEMS), side="right")
        drawn = np.unique(np.minimum(draws, len(self._tables) - 1))
        candidates = np.unique(np.concatenate([[0], drawn, targets.ravel()]))
        chance = self._cumulated[drawn] - self._cumulated[drawn - 1]  # row 0 is never drawn: its chance is 0
        correction = np.full(len(candidates), NO_ITEM, np.float32)
        expected = -np.expm1(SAMPLED_ITEMS * np.log1p(-np.minimum(chance, 1.0 - 1e-12)))  # drawn at least once
        correction[np.searchsorted(candidates, drawn)] = -np.log(np.maximum(expected, 1e-12))
        rest = np.setdiff1d(np.concatenate([history.ravel(), rating]), candidates)
        rows = np.concatenate([candidates, rest])
        self._place[rows] = np.arange(len(rows))
        return rows, len(candidates), correction

    def _facts(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        text = self._tables.text(rows)
        if self._reword:
            text = self._either(text, self._tables.wording(rows))
        return {"rows_text": text, "rows_price": self._tables.price(rows), "rows_seen": self._neighbours.seen[rows]}

    def _either(self, vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The vectors [n, width], or where texts are reworded some of the others in their places."""
        if not self._reword:
            return vectors
        return np.where(self._generator.random((len(vectors), 1)) < _REWORDED, others, vectors)

    def _trend(self, moment: int, rows: np.ndarray) -> np.ndarray:
        if not self._exact:
            return self._trends.logs(moment, rows)
        if moment not in self._dense:
            self._dense[moment] = self._trends.logs(moment)
        return self._dense[moment]

    def _near(self, chosen: np.ndarray, items: np.ndarray, rows: int, candidates: int) -> Batch:
        """What goes with the newest items of the histories, and what with that: the batch's neighbours and far steps.

        No second step is gone from or to what the example has had, nor from what it wants where it was counted: that
        was counted with the rest of its basket.
        """
        table, newest = self._neighbours, items[:, :NEIGHBOUR_HISTORY]
        every = np.arange(len(newest))[:, None, None]
        known, value = table.index[newest], table.value[newest]
        near = self._place[known]
        own = np.zeros((len(newest), rows), bool)
        own[every[..., 0], self._place[items]] = True
        own[:, 0] = False
        barred = own
        counted = filled(self._counted[chosen].astype(np.float32), len(newest))
        if counted.any():
            wanted = self._wanted(chosen, len(newest), rows)
            value = self._without_own(chosen, newest, near, value, wanted, counted)
            barred = own | (wanted & (counted > 0)[:, None])
        strength = first_steps(newest, known, value, table.seen) * ~barred[every, near]
        far, score = second_steps(known, strength, table.index, table.value, table.seen)
        far = self._place[far]
        example, step, place = np.nonzero((score > 0) & (far > 0) & (far < candidates) & ~own[every, far])
        entries, near_value = _entries(near, value)
        return {
            "neighbour_entries": entries, "neighbour_value": near_value,
            "far_entries": np.stack([example, far[example, step, place]], axis=1).astype(np.int32),
            "far_value": score[example, step, place].astype(np.float32),
        }

    def _wanted(self, chosen: np.ndarray, size: int, rows: int) -> np.ndarray:
        """[size, rows] bool: the targets of the examples that are counted; row 0 says nothing."""
        owner, target = flat_places(self._encoded.target_offsets, chosen)
        targets = np.where(self._encoded.target_counted[target], self._encoded.target_index[target], 0)
        wanted = np.zeros((size, rows), bool)
        wanted[owner, self._place[targets]] = True
        wanted[:, 0] = False
        return wanted

    def _without_own(
        self, chosen: np.ndarray, newest: np.ndarray, near: np.ndarray, value: np.ndarray, wanted: np.ndarray,
        counted: np.ndarray,
    ) -> np.ndarray:
        """The counts less what an example itself has added to them, or training would read the answer.

        Args:
            chosen: which examples.
            newest: [batch, places] int, the newest items of their histories.
            near, value: [batch, places, neighbours], their neighbours among the rows, and how often.
            wanted: see `_wanted`.
            counted: [batch] float32, 1: was counted.
        """
        encoded, every = self._encoded, np.arange(len(newest))[:, None, None]
        in_basket = padded(encoded.history_chosen, encoded.history_offsets, chosen, newest.shape)
        times = filled(encoded.times[chosen], len(newest))
        own = self._neighbours.own(np.arange(newest.shape[1]), in_basket, times) * counted[:, None]
        value = value - own[..., None] * wanted[every, near]
        # the history's items were counted with each item of the basket as well, also those that are no longer shown
        shares = np.zeros(wanted.shape, np.float32)
        before = padded(encoded.history_index, encoded.history_offsets, chosen, (len(newest), PAIR_HISTORY))
        shares[every[..., 0], self._place[before]] = 1.0 / (1.0 + np.arange(PAIR_HISTORY, dtype=np.float32))
        shares[:, 0] = 0.0
        weight = (self._neighbours.weight(times) * counted)[:, None, None]
        return np.maximum(value - weight * in_basket[..., None] * shares[every, near], 0.0)


def _entries(near: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positive values of a table [batch, newest, neighbours] as [pairs, 3] int32 and [pairs] float32."""
    example, place, neighbour = np.nonzero((near > 0) & (value > 1e-6))
    entries = np.stack([example, near[example, place, neighbour], place], axis=1)
    return entries.astype(np.int32), value[example, place, neighbour]


def kept_places(present: np.ndarray, mask: float, crop: float, generator: np.random.Generator) -> np.ndarray:
    """[n, length] bool: which places of histories stay, at random.

    Args:
        present: [n, length] bool, where there is an item.
        mask: chance of each place to be left out.
        crop: share of each history that is cut away; one piece of it is kept, wherever it begins.
        generator: draws.
    """
    places = np.arange(present.shape[1])
    kept = generator.random(present.shape) >= mask
    widths = ((places + 1) * present).max(axis=1)
    pieces = np.ceil((1.0 - crop) * widths)
    starts = np.floor(generator.random(len(present)) * (widths - pieces + 1))
    return kept & (places >= starts[:, None]) & (places < (starts + pieces)[:, None])


def groups_by_length(encoded: Encoded, order: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, int]]:
    """`order` cut into batches whose histories are at most as long as the length given with each."""
    return groups_by_width(np.diff(encoded.history_offsets), order, batch_size)


def groups_by_width(widths: np.ndarray, order: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, int]]:
    """The same of examples whose histories are as long as `widths` ([n]) says."""
    lengths = widths[order]
    groups: list[tuple[np.ndarray, int]] = []
    least = -1
    for length in HISTORY_LENGTHS:
        most = length if length != HISTORY_LENGTHS[-1] else np.iinfo(np.int64).max
        same = order[(lengths > least) & (lengths <= most)]
        groups += [(same[start : start + batch_size], length) for start in range(0, len(same), batch_size)]
        least = length
    return groups


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


def filled(values: np.ndarray, batch_size: int) -> np.ndarray:
    """The values of some examples [n, ...], with zeros up to `batch_size`."""
    return np.pad(values, [(0, batch_size - len(values))] + [(0, 0)] * (values.ndim - 1))


def _offsets(lists: pa.ChunkedArray) -> np.ndarray:
    widths = pc.list_value_length(lists).fill_null(0).to_numpy()
    return np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)


def _flat(lists: pa.ChunkedArray) -> np.ndarray:
    return pc.list_flatten(lists).to_numpy().astype(np.float32)


