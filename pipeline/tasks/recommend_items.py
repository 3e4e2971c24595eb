"""The tables of the catalogue that the recommender learns and reads: one row an item, growing.

They lie in the host's memory and only the rows of a batch travel into the compiled step, so that a new item costs a
row and not a new network, and a step costs what its batch holds and not what the catalogue holds. Id rows and their
category's rows train (models/optimizers.py); text and price are facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from models.growing import lengthened, with_room
from models.int8_rows import Int8Rows
from models.optimizers import RowMoments
from pipeline.vocabulary import Vocabulary

# Rows are learnt slower than the network: they are many, each is seen seldom, and text, trend and neighbours know much
# of an item already. Online Retail over ten weeks of updates: Recall@20 0.321 with 1, 0.324 with 0.3.
ROW_PACE = 0.3

# The length of a random first row, beside 1 of a text's vector. DIGINETICA, which has no texts, periods 0 to 4: tuning
# loss 7.224 with rows that stay zero, 7.150 with this (7.426 and 7.404 of period 0 alone with 1); Recall@20 of the next
# period is the same within its error (0.488, 0.487), since trend and neighbours know what rows can learn there.
FIRST_ROW_NORM = 0.5


# Older than this an item is old: a year, in which every season has come once. What was never told (0: 1970) is, too.
OLDEST_DAYS = 365


class PriceScale:
    """What is dear in this shop: the mean and the deviation of the log prices of its first catalogue."""

    def __init__(self, mean: float | None = None, deviation: float = 1.0) -> None:
        """Takes both; no mean: no price was seen."""
        self._mean, self._deviation = mean, deviation

    def features(self, prices: pa.ChunkedArray) -> np.ndarray:
        """[n, 3]: z-score of the log price (within 4), its square, price known. The scale is that of the first call."""
        values = prices.cast(pa.float64()).to_numpy()
        known = np.isfinite(values) & (values > 0)
        logs = np.log(np.where(known, values, 1.0))
        if self._mean is None and known.any():
            self._mean, self._deviation = float(logs[known].mean()), float(max(logs[known].std(), 1e-3))
        scores = np.clip((logs - (self._mean or 0.0)) / self._deviation, -4.0, 4.0) * known
        return np.stack([scores, scores**2, known], axis=1).astype(np.float32)

    def as_json(self) -> tuple[float, float] | None:
        """Mean and deviation; None: no price was seen."""
        return None if self._mean is None else (self._mean, self._deviation)

    @classmethod
    def from_json(cls, said: Sequence[float] | None) -> PriceScale:
        """What `as_json` gave."""
        return cls() if said is None else cls(*said)


class ItemTables:
    """Rows of items and of categories.

    Attributes:
        items, categories: vocabularies.
    """

    def __init__(self, text_dimension: int, dimension: int) -> None:
        """Knows no item; takes the lengths of a projected text vector and of an item's."""
        self.items, self.categories = Vocabulary(), Vocabulary()
        self._rows = np.zeros((1, dimension), np.float32)
        self._moments = RowMoments.zeros(1, dimension)
        self._category_rows = np.zeros((1, dimension), np.float32)
        self._category_moments = RowMoments.zeros(1, dimension)
        self._text = Int8Rows.zeros(1, text_dimension)
        self._wording: Int8Rows | None = None  # of the texts in another wording, where that is asked for
        self._price = np.zeros((1, 3), np.float32)
        self._category = np.zeros(1, np.int32)
        self._last_seen = np.zeros(1, np.int32)
        self._first_seen = np.zeros(1, np.int32)

    def __len__(self) -> int:
        """Rows in use, row 0 (no item) included."""
        return len(self.items)

    def grow(self) -> None:
        """Makes room for every id of the vocabularies."""
        items, categories = len(self.items), len(self.categories)
        self._rows, self._price, self._category, self._last_seen, self._first_seen = (
            lengthened(array, items)
            for array in (self._rows, self._price, self._category, self._last_seen, self._first_seen)
        )
        self._text.grow(items)
        self._category_rows = lengthened(self._category_rows, categories)
        if self._wording is not None:
            self._wording.grow(items)
        self._moments.grow(items)
        self._category_moments.grow(categories)

    @property
    def last_seen(self) -> np.ndarray:
        """[items] int32: the day (since 1970) on which each was last chosen, looked at or changed; 0: unknown."""
        return self._last_seen.copy()

    def see_on(self, rows: np.ndarray, days: np.ndarray) -> None:
        """Notes that the items `rows` ([n], distinct) were seen on `days` [n] int32; an earlier day changes nothing."""
        self._last_seen[rows] = np.maximum(self._last_seen[rows], days)
        new = rows[self._first_seen[rows] == 0]
        self._first_seen[new] = self._last_seen[new]

    def choose_on(self, rows: np.ndarray, days: np.ndarray) -> None:
        """Notes that the items `rows` ([n]) were chosen on `days` [n] int32: they were there that day."""
        chosen, place = np.unique(rows, return_inverse=True)
        first = np.full(len(chosen), np.iinfo(np.int32).max, np.int32)
        np.minimum.at(first, place, days)
        known = self._first_seen[chosen]
        self._first_seen[chosen] = np.where(known > 0, np.minimum(known, first), first)

    def ages(self, rows: np.ndarray, day: int) -> np.ndarray:
        """[n] float32: how old the items `rows` were on a day since 1970, in days, OLDEST_DAYS at most.

        An item's first day is that of its first choice or, where it is earlier, of what the catalogue first told of it
        (of the first catalogue: told last, since it has no older version).
        """
        ages = np.minimum(day - self._first_seen[rows], OLDEST_DAYS)
        return np.maximum(ages, 0).astype(np.float32)

    def describe(self, rows: np.ndarray, text: Int8Rows, price: np.ndarray, category: np.ndarray) -> None:
        """Writes facts of items: text of [n, text_dimension], price [n, 3], category [n]."""
        self._text[rows], self._price[rows], self._category[rows] = text, price, category
        if self._wording is not None:
            self._wording[rows] = text

    def describe_otherwise(self, rows: np.ndarray, wording: Int8Rows) -> None:
        """Writes the texts of items in another wording; items that are never given one have their text."""
        if self._wording is None:
            self._wording = self._text.copy()
        self._wording[rows] = wording

    def rows(self, index: np.ndarray) -> np.ndarray:
        """[n, dimension] float32: the trained rows of items, their own (once admitted) and their category's."""
        return self.rows_under(self._rows, self._category_rows, index)

    def rows_under(self, rows: np.ndarray, category_rows: np.ndarray, index: np.ndarray) -> np.ndarray:
        """[n, dimension] float32: the same of other rows, [items, dimension] and [categories, dimension]."""
        return rows[index] * self._admitted(index)[:, None] + category_rows[self._category[index]]

    def text(self, index: np.ndarray) -> np.ndarray:
        """[n, text_dimension] float32."""
        return self._text.floats(index)

    def described(self, index: np.ndarray) -> Int8Rows:
        """The same as it is kept, a copy."""
        return self._text[index]

    def wording(self, index: np.ndarray) -> np.ndarray:
        """[n, text_dimension] float32, the texts in another wording."""
        return (self._text if self._wording is None else self._wording).floats(index)

    def price(self, index: np.ndarray) -> np.ndarray:
        """[n, 3] float32."""
        return self._price[index]

    def decay_by(self, weight_decay: float) -> None:
        """From now on each step shrinks its rows by this much times its learning rate."""
        self._moments.weight_decay = self._category_moments.weight_decay = weight_decay

    def begin_rows(self, admitted: np.ndarray, seed: int) -> None:
        """Gives items that are admitted now, and of which nothing is known but their choices, a random first row.

        With text an item's row corrects a vector that is there, and starts at zero. Without, a zero row stays zero:
        the gradient of a product of two vectors is zero where both are (a saddle).

        Args:
            admitted: [n] int, the items, in order.
            seed: with the items it decides the draw.
        """
        bare = admitted[~self._text.values[admitted].any(axis=1)]
        if len(bare):
            generator = np.random.default_rng([seed, int(bare[0]), len(bare)])
            drawn = generator.normal(size=(len(bare), self._rows.shape[1]))
            self._rows[bare] = FIRST_ROW_NORM / np.sqrt(self._rows.shape[1]) * drawn

    def step(self, index: np.ndarray, gradient: np.ndarray, learning_rate: float) -> None:
        """Moves the rows `index` ([n], distinct, 0 is passed over) by their gradient [n, dimension]."""
        learning_rate *= ROW_PACE
        own = np.flatnonzero((self._admitted(index) > 0) & (index > 0))
        self._moments.step(self._rows, index[own], gradient[own], learning_rate)
        of = self._category[index]
        touched, place = np.unique(of, return_inverse=True)
        if touched[-1] == 0:
            return
        total = np.zeros((len(touched), gradient.shape[1]), np.float32)
        np.add.at(total, place, gradient)
        known = touched > 0
        self._category_moments.step(self._category_rows, touched[known], total[known], learning_rate)

    def keep(self, kept: np.ndarray) -> None:
        """Drops the rows of all items but `kept` ([m] int, row 0 first), their moments with them."""
        self.items.keep(kept)
        self._rows, self._price, self._category, self._last_seen, self._first_seen = (
            array[kept] for array in (self._rows, self._price, self._category, self._last_seen, self._first_seen)
        )
        self._text = self._text[kept]
        self._wording = None if self._wording is None else self._wording[kept]
        self._moments = self._moments[kept]

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for a checkpoint; only the rows in use."""
        items, categories = len(self.items), len(self.categories)
        held = {
            "items/rows": self._rows[:items], "items/price": self._price[:items],
            "items/category": self._category[:items], "items/last_seen": self.last_seen,
            "items/first_seen": self._first_seen[:items],
            "categories/rows": self._category_rows[:categories], **self._text.arrays("items/text", items),
        }
        if self._wording is not None:
            held |= self._wording.arrays("items/wording", items)
        held |= self._moments.arrays("items", items) | self._category_moments.arrays("categories", categories)
        copied = {name: np.array(array) for name, array in held.items()}
        return copied | self.items.arrays("vocabulary/items") | self.categories.arrays("vocabulary/categories")

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ItemTables:
        """The tables that `arrays` wrote."""
        tables = cls(arrays["items/text"].shape[1], arrays["items/rows"].shape[1])
        tables.items = Vocabulary.from_arrays(arrays, "vocabulary/items")
        tables.categories = Vocabulary.from_arrays(arrays, "vocabulary/categories")
        tables._rows, tables._price, tables._category, tables._last_seen, tables._category_rows = (
            with_room(arrays[name])
            for name in ("items/rows", "items/price", "items/category", "items/last_seen", "categories/rows")
        )
        # a checkpoint of before December 2026 does not know when its items came: all are old
        tables._first_seen = with_room(arrays.get("items/first_seen", np.zeros_like(arrays["items/last_seen"])))
        tables._text = Int8Rows.from_arrays(arrays, "items/text")
        tables._wording = Int8Rows.from_arrays(arrays, "items/wording") if "items/wording" in arrays else None
        tables._moments, tables._category_moments = (
            RowMoments.from_arrays(arrays, name) for name in ("items", "categories")
        )
        return tables

    def _admitted(self, index: np.ndarray) -> np.ndarray:
        return self.items.admitted_of(index).astype(np.float32)
