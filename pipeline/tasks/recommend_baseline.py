"""The plain method that the recommender must not fall below: what this user bought most often.

On real retail this beats ALS, item-kNN and a plain attention model (FACTS.md's table, Online Retail), so it
is the floor of the gate. A user's own items come first, by how often they were bought; of those bought as often, the
one that all users chose most in the four weeks before that day (on Online Retail's baskets of weeks 44 to 53 that
order finds 0.308, the latest first 0.290: `make bench-learning PARTS=online_retail` gives the former as "most
bought"). Those popular items also fill the places that are left. A search is answered the way a shop without a model
would: TF-IDF of the query against the catalogue's texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.evaluation import ranked_metrics
from pipeline.tasks.contract import Examples, Scores

K = 20  # items on a shop's first page of results
DEEP = 100  # places that the gate looks at (recommend.py says why)
POPULAR_DAYS = 28  # four whole weeks: every weekday counts the same
_SPARE_PLACES = 400  # popular items looked at to fill DEEP places beside a history of at most 256


def score_baseline(examples: Examples, chosen_by_day: pa.Table, catalogue: pa.Table) -> Scores:
    """The baseline's metrics on each example that has a target.

    Args:
        examples: EXAMPLES_SCHEMA.
        chosen_by_day: `day`, `item_id`, `chosen`: how often each item was chosen each day.
        catalogue: `item_id`, `text`.
    """
    rows = examples.table.select([
        "example_id", "unit", "hour", "time", "history_items", "history_counts", "history_days", "targets", "query",
    ]).to_pylist()
    rows = [row for row in rows if row["targets"]]
    popular = _Popularity(chosen_by_day)
    search = _Search(catalogue)
    numbers: dict[str, int] = {}
    ranked = np.full((len(rows), DEEP), -1, np.int64)
    targets = np.full((len(rows), max((len(row["targets"]) for row in rows), default=1)), -1, np.int64)
    for place, row in enumerate(rows):
        before = popular.before(row["time"].date())
        items = search.answer(row["query"], before) if row["query"] else _bought_most(row, before)
        ranked[place, : len(items)] = [numbers.setdefault(item, len(numbers)) for item in items]
        targets[place, : len(row["targets"])] = [numbers.setdefault(item, len(numbers)) for item in row["targets"]]
    metrics = ranked_metrics(ranked, targets, K, DEEP)
    frame = pd.DataFrame({
        "example_id": [row["example_id"] for row in rows],
        "unit": [row["unit"] for row in rows],
        "hour": pd.to_datetime([row["hour"] for row in rows], utc=True),
        **metrics,
    })
    return Scores(frame, tuple(metrics))


def _bought_most(row: dict, popular: _Popular) -> list[str]:
    own = sorted(
        (-count, popular.place(item), days, item)
        for item, count, days in zip(row["history_items"], row["history_counts"], row["history_days"], strict=True)
        if count > 0
    )
    return list(dict.fromkeys([*(item for *_, item in own), *popular.first]))[:DEEP]


class _Popular:
    """The items chosen in the POPULAR_DAYS before a day, most often first."""

    def __init__(self, items: Sequence[str]) -> None:
        self.first = items[:_SPARE_PLACES]
        self._places = {item: number for number, item in enumerate(items)}
        self._of_catalogue: np.ndarray | None = None

    def place(self, item: str) -> int:
        """0 for the most popular; those not chosen in these days share the last place."""
        return self._places.get(item, len(self._places))

    def places(self, catalogue: np.ndarray) -> np.ndarray:
        """[items] int, the places of a catalogue's items; looked up once, for whichever catalogue asks first."""
        if self._of_catalogue is None:
            self._of_catalogue = np.array([self.place(item) for item in catalogue], np.int64)
        return self._of_catalogue


class _Popularity:
    """What was popular before each day."""

    def __init__(self, chosen_by_day: pa.Table) -> None:
        encoded = chosen_by_day["item_id"].combine_chunks().dictionary_encode()
        self._items = np.array(encoded.dictionary.to_pylist(), object)
        self._index = encoded.indices.to_numpy()
        self._days = np.array(chosen_by_day["day"].to_pylist(), dtype="datetime64[D]")
        self._chosen = chosen_by_day["chosen"].to_numpy()
        self._popular: dict[date, _Popular] = {}

    def before(self, day: date) -> _Popular:
        if day not in self._popular:
            inside = (self._days < np.datetime64(day)) & (
                self._days >= np.datetime64(day - timedelta(days=POPULAR_DAYS))
            )
            totals = np.bincount(self._index[inside], self._chosen[inside], len(self._items))
            best = np.argsort(-totals, kind="stable")
            self._popular[day] = _Popular(list(self._items[best[totals[best] > 0]]))
        return self._popular[day]


class _Search:
    """TF-IDF over the catalogue's texts; equal matches in order of popularity."""

    def __init__(self, catalogue: pa.Table) -> None:
        self._items = np.array(catalogue["item_id"].to_pylist(), object)
        self._texts = [text or "" for text in catalogue["text"].to_pylist()]
        self._matrix = None

    def answer(self, query: str, popular: _Popular) -> list[str]:
        if self._matrix is None and not self._fit():
            return list(popular.first[:DEEP])
        matches = (self._matrix @ self._vectorizer.transform([query]).T).tocoo()
        nearest = np.lexsort((matches.row, -matches.data))[: 5 * DEEP]
        found, match = matches.row[nearest], np.round(matches.data[nearest], 6)
        found = found[np.lexsort((popular.places(self._items)[found], -match))]
        return list(dict.fromkeys([*self._items[found], *popular.first]))[:DEEP]

    def _fit(self) -> bool:
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not any(text.strip() for text in self._texts):
            return False
        self._vectorizer = TfidfVectorizer(sublinear_tf=True)
        self._matrix = self._vectorizer.fit_transform(self._texts)
        return True
