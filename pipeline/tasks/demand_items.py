"""What the demand learner knows of each item: its text, and its last days as the newest lesson told them.

The days are kept so that a package can forecast every item from the same day on, also those that no event has named
for a while: their sales since then were none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.demand import CATEGORY_BUCKETS
from pipeline.tasks.demand_examples import array_of
from pipeline.tasks.demand_features import HISTORY_DAYS, DailySales

SERIES = ("units", "orders", "in_stock", "log_price")
# An article of one season is back within a year and some weeks; after that it is more likely gone (as in `recommend`).
EXPIRY_DAYS = 400


class DemandItems:
    """Items in the order in which they came; row 0 is no item.

    Attributes:
        ids: [items] ids; ids[0] is empty.
        text: [items, text dimension] float32, projected.
        category: [items] int32, buckets; 0: none.
        end_day: the first day that was not over at the newest lesson.
    """

    def __init__(self, text_dimension: int) -> None:
        """Knows no item."""
        self.ids: list[str] = [""]
        self.text = np.zeros((1, text_dimension), np.float32)
        self.category = np.zeros(1, np.int32)
        self.end_day, self.shop_first_day = 0, 0
        self._index: dict[str, int] = {}
        self._series = {name: np.zeros((1, HISTORY_DAYS), np.float32) for name in SERIES}
        self._ends = np.zeros(1, np.int64)
        self._known_from = np.zeros(1, np.int64)
        self._last_seen = np.zeros(1, np.int64)
        self._shop = np.zeros(HISTORY_DAYS)

    def __len__(self) -> int:
        """Rows in use, row 0 included."""
        return len(self.ids)

    def rows_of(self, items: Sequence[str]) -> np.ndarray:
        """[n] int64: the items' rows; 0 for an unknown one."""
        return np.fromiter((self._index.get(item, 0) for item in items), np.int64, len(items))

    def take_in(self, context: pa.Table, text: np.ndarray) -> int:
        """Takes in items, new or changed, with their projected texts [n, text dimension]; returns how many are new."""
        names = context["item_id"].to_pylist()
        new = [name for name in names if name not in self._index]
        self._make_room(new)
        rows = self.rows_of(names)
        self.text[rows] = text
        self.category[rows] = [bucket_of(name) for name in context["category"].to_pylist()]
        for name in SERIES:
            self._series[name][rows] = array_of(context, name, HISTORY_DAYS)
        self._known_from[rows] = context["known_from"].to_numpy()
        self._last_seen[rows] = context["last_seen"].cast(pa.int64()).to_numpy() // 86_400_000_000
        world = world_of(context)
        self._ends[rows] = self.end_day = int(world["end_day"])
        self.shop_first_day, self._shop = int(world["shop_first_day"]), np.array(world["shop"])
        return len(new)

    def gone(self, context: pa.Table) -> np.ndarray:
        """[items] bool: which to drop: known no more, or not seen for EXPIRY_DAYS."""
        lost = context.filter(pc.is_null(context["last_seen"]))["item_id"].to_pylist()
        dropped = self._last_seen < self._last_seen.max() - EXPIRY_DAYS
        dropped[self.rows_of(lost)] = True
        dropped[0] = False
        return dropped

    def keep(self, kept: np.ndarray) -> None:
        """Drops all rows but `kept` ([m] int, ascending, 0 first)."""
        self.ids = [self.ids[row] for row in kept]
        self._index = {item: row for row, item in enumerate(self.ids) if row}
        self.text, self.category = self.text[kept], self.category[kept]
        self._series = {name: array[kept] for name, array in self._series.items()}
        self._ends, self._known_from, self._last_seen = (
            array[kept] for array in (self._ends, self._known_from, self._last_seen)
        )

    def sales(self) -> DailySales:
        """The last HISTORY_DAYS of all items, up to `end_day`; since an item's newest lesson nothing was sold of it."""
        columns = np.arange(HISTORY_DAYS)[None] + (self.end_day - self._ends)[:, None]
        inside, columns = columns < HISTORY_DAYS, np.minimum(columns, HISTORY_DAYS - 1)
        now = {name: np.take_along_axis(array, columns, axis=1) for name, array in self._series.items()}
        return DailySales(
            np.array(self.ids, object), self.end_day - HISTORY_DAYS, now["units"] * inside, now["orders"] * inside,
            now["in_stock"], now["log_price"], np.zeros(inside.shape, bool), self._known_from, self._shop,
            self.shop_first_day,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for a checkpoint; the ids are `ids`."""
        return {
            "items/text": self.text.copy(), "items/category": self.category.copy(), "items/ends": self._ends.copy(),
            "items/known_from": self._known_from.copy(), "items/last_seen": self._last_seen.copy(),
            "items/shop": self._shop.copy(), "items/days": np.array([self.end_day, self.shop_first_day]),
            **{f"items/{name}": array.copy() for name, array in self._series.items()},
        }

    @classmethod
    def from_arrays(cls, ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> DemandItems:
        """The items that `arrays` wrote."""
        items = cls(arrays["items/text"].shape[1])
        items.ids = list(ids)
        items._index = {item: row for row, item in enumerate(items.ids) if row}
        items.text, items.category = np.array(arrays["items/text"]), np.array(arrays["items/category"])
        items._series = {name: np.array(arrays[f"items/{name}"]) for name in SERIES}
        items._ends, items._known_from, items._last_seen, items._shop = (
            np.array(arrays[f"items/{name}"]) for name in ("ends", "known_from", "last_seen", "shop")
        )
        items.end_day, items.shop_first_day = (int(day) for day in arrays["items/days"])
        return items

    def _make_room(self, new: Sequence[str]) -> None:
        self._index.update((item, len(self.ids) + place) for place, item in enumerate(new))
        self.ids += new

        def grown(array: np.ndarray) -> np.ndarray:
            return np.concatenate([array, np.zeros((len(new), *array.shape[1:]), array.dtype)])

        self.text, self.category = grown(self.text), grown(self.category)
        self._series = {name: grown(array) for name, array in self._series.items()}
        self._ends, self._known_from, self._last_seen = map(grown, (self._ends, self._known_from, self._last_seen))


def bucket_of(category: str | None) -> int:
    """A category's bucket, by a hash that no version of any library changes; 0 for none."""
    if not category:
        return 0
    digest = hashlib.blake2b(category.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "big") % (CATEGORY_BUCKETS - 1)


def world_of(context: pa.Table) -> dict[str, Any]:
    """What a context says of the whole shop: `end_day`, `shop` (rows of purchases by day), `shop_first_day`."""
    import json

    world: dict[str, Any] = json.loads((context.schema.metadata or {})[b"demand"])
    return world
