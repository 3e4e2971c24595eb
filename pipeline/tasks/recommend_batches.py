"""Batches of the recommender: from encoded examples to the arrays of one compiled step.

A step reads the rows of the candidates (of the softmax) and of the histories' items. A small catalogue is a candidate
as a whole; of a large one the candidates are the batch's targets and a sample, drawn by how often items were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.losses import NO_ITEM
from models.recommender import HISTORY_LENGTHS, TARGETS
from pipeline.tasks.recommend_counters import Counters
from pipeline.tasks.recommend_encoded import Encoded, filled, padded
from pipeline.tasks.recommend_items import ItemTables
from pipeline.tasks.recommend_near import Near

# Up to so many items the softmax is over all of them: no sampling error. A step of 128 costs 60 CPU-ms with 8,000 items
# (sampled: 34), 109 with 16,000 (35), 395 with 64,000 (35); the break-even is at 2,000 (bench_growth.py, two cores).
EXACT_ITEMS = 8192
SAMPLED_ITEMS = 2048  # beyond, over so many draws
BESIDE = frozenset({"rows", "ages", "habits"})  # arrays of a batch that the network does not read
_REWORDED = 0.5  # how often a text is seen in its other wording: as often as itself

Batch = Mapping[str, np.ndarray]


class Batcher:
    """Makes the batches of one pass over examples."""

    def __init__(
        self, encoded: Encoded, tables: ItemTables, counters: Counters, generator: np.random.Generator, *,
        counted: bool | np.ndarray, mask: float = 0.0, crop: float = 0.0, reword: bool = False,
    ) -> None:
        """Takes the examples and what is known of items.

        Args:
            encoded: the examples.
            tables, counters: the learner's.
            generator: draws the candidates of a large catalogue, and what is left out of histories.
            counted: whether `counters` hold these examples; [n] bool: each of them.
            mask: chance of each item of a history to be left out.
            crop: share of each history that is cut away, but for one piece.
            reword: whether texts are seen in their other wording at times.
        """
        self._mask, self._crop, self._reword = mask, crop, reword
        trends, neighbours = counters.trends, counters.neighbours
        self._encoded, self._tables, self._trends, self._seen = encoded, tables, trends, neighbours.seen
        self._generator, self._near = generator, Near(encoded, neighbours, counted)
        self._moments = trends.moment_of(encoded.times)
        self._exact = len(tables) <= EXACT_ITEMS
        self._place = np.zeros(len(tables), np.int32)  # of an item among a batch's rows; 0 where it is not
        self._dense: dict[int, np.ndarray] = {}
        if self._exact:
            everything = np.arange(len(tables))
            self._whole = self._facts(everything)
            self._place[:] = everything
        else:
            self._cumulated = trends.cumulated_chances()

    def batch(self, chosen: np.ndarray, length: int, batch_size: int, *, blind: bool = False) -> Batch:
        """The examples at `chosen`, padded to `batch_size` with examples of no weight, histories to `length`.

        Beside the arrays of the network's signature it has `rows`: which rows of the tables it needs. A `blind` one's
        candidates are found as an answer's are, without its targets: what goes with the histories in their place. It
        has `ages` [moments, rows] and `habits` [batch, length] as well, which what is foreseen is weighed by.
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
        rows, candidates, correction = self._rows(self._near.reached(items) if blind else outside, items, rating)
        moments, moment = np.unique(self._moments[chosen], return_inverse=True)
        query = self._either(encoded.query_vector[chosen], encoded.query_wording[chosen])
        batch = {
            **history, "rows": rows,
            **(self._whole if self._exact else self._facts(rows)),
            "trend": np.stack([self._trend(int(one), rows) for one in moments]),
            "moment": filled(moment.astype(np.int32), batch_size), "correction": correction,
            "history_index": self._place[items],
            "own_column": np.where(self._place[items] < candidates, self._place[items], 0),
            **self._near.of(chosen, items, self._place, len(rows)),
            "query_vector": filled(query, batch_size),
            "has_query": filled(encoded.has_query[chosen], batch_size),
            "target_index": np.where(self._place[outside] < candidates, self._place[outside], 0),
            "own_targets": place.astype(np.int32),
            "rating_index": self._place[rating], "rating": filled(encoded.rating[chosen], batch_size),
            "weight": (np.arange(batch_size) < len(chosen)).astype(np.float32),
        }
        if blind:
            days = [self._trends.day_of(int(one)) for one in moments]
            batch["ages"] = np.stack([self._tables.ages(rows, day) for day in days])
            batch["habits"] = encoded.habits(chosen, (batch_size, length))
        if not self._exact:
            self._place[rows] = 0
        return batch

    def _rows(
        self, among: np.ndarray, history: np.ndarray, rating: np.ndarray
    ) -> tuple[np.ndarray, int, np.ndarray]:
        """The items of a batch's rows, how many of them are candidates, and the candidates' correction.

        Of a large catalogue the candidates are those `among` others that are drawn.
        """
        if self._exact:
            correction = np.zeros(len(self._tables), np.float32)
            correction[0] = NO_ITEM
            return np.arange(len(self._tables)), len(self._tables), correction
        draws = np.searchsorted(self._cumulated, self._generator.random(SAMPLED_ITEMS), side="right")
        drawn = np.unique(np.minimum(draws, len(self._tables) - 1))
        candidates = np.unique(np.concatenate([[0], drawn, among.ravel()]))
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
        return {"rows_text": text, "rows_price": self._tables.price(rows), "rows_seen": self._seen[rows]}

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
