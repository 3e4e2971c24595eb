"""Ways in which an hour of a shop goes wrong at its source: clean rows in, poisoned rows out, all columns text.

Each is what has happened to real feeds: an exporter joins on the wrong key, a bot shops, a price comes in another
currency, a clock jumps, a queue is replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BOUGHT = ("purchase", "cart")


@dataclass(frozen=True)
class Hour:
    """What a shop lands in an hour, before it is written.

    Attributes:
        events: as the simulator makes them.
        catalogue: the whole catalogue as an export of this hour, `change_id`, `item_id`, `change_time`, texts, `price`.
        exports: whether the catalogue lands.
    """

    events: pa.Table
    catalogue: pa.Table
    exports: bool = False


Poison = Callable[[Hour, np.random.Generator], Hour]


def clean(hour: Hour, generator: np.random.Generator) -> Hour:
    """Nothing is wrong."""
    return hour


def labels(hour: Hour, generator: np.random.Generator) -> Hour:
    """What was bought is replaced by any item of the catalogue."""
    items = hour.events["item_id"].to_pylist()
    every = hour.catalogue["item_id"].to_pylist()
    chosen = [
        every[int(generator.integers(len(every)))] if kind in _BOUGHT else item
        for kind, item in zip(hour.events["event_type"].to_pylist(), items, strict=True)
    ]
    return _with(hour, item_id=chosen)


def users(hour: Hour, generator: np.random.Generator) -> Hour:
    """Each event is somebody else's: users are permuted."""
    return _with(hour, user_id=hour.events["user_id"].take(pa.array(generator.permutation(len(hour.events)))))


def bot(hour: Hour, generator: np.random.Generator) -> Hour:
    """One new user buys everything, five times."""
    items = hour.catalogue["item_id"].to_pylist() * 5
    return _more(hour, items, ["Ubot"] * len(items))


def ring(hour: Hour, generator: np.random.Generator) -> Hour:
    """Two hundred new users buy the same three items, to push them."""
    items = hour.catalogue["item_id"].to_pylist()[:3] * 200
    return _more(hour, items, [f"Uring{number // 3}" for number in range(len(items))])


def currency(hour: Hour, generator: np.random.Generator) -> Hour:
    """Prices come in another currency, a hundred times as high: in the catalogue and in the events."""
    catalogue = _replaced(hour.catalogue, "price", _times(hour.catalogue["price"], 100.0))
    return Hour(_replaced(hour.events, "price", _times(hour.events["price"], 100.0)), catalogue, exports=True)


def event_currency(hour: Hour, generator: np.random.Generator) -> Hour:
    """The same in the events alone."""
    return _with(hour, price=_times(hour.events["price"], 100.0))


def texts(hour: Hour, generator: np.random.Generator) -> Hour:
    """Half of the items get the texts of other items: an export that joined on the wrong key."""
    place = np.arange(len(hour.catalogue))
    half = generator.permutation(len(place))[: len(place) // 2]
    place[half] = np.roll(half, 1)
    catalogue = hour.catalogue
    for name in ("title", "description", "category", "brand"):
        catalogue = _replaced(catalogue, name, catalogue[name].take(pa.array(place)))
    return Hour(hour.events, catalogue, exports=True)


def slow_clock(hour: Hour, generator: np.random.Generator) -> Hour:
    """All clocks are twelve hours slow."""
    return _with(hour, event_time=_shifted(hour.events["event_time"], -12))


def fast_clock(hour: Hour, generator: np.random.Generator) -> Hour:
    """All clocks are twelve hours fast."""
    return _with(hour, event_time=_shifted(hour.events["event_time"], 12))


def same_again(hour: Hour, generator: np.random.Generator) -> Hour:
    """A queue delivers everything thirty times."""
    return Hour(pa.concat_tables([hour.events] * 30), hour.catalogue)


def new_again(hour: Hour, generator: np.random.Generator) -> Hour:
    """Everything comes twelve times, each time under new ids."""
    copies = [
        _replaced(hour.events, "event_id", pc.binary_join_element_wise(hour.events["event_id"], f"-{number}", ""))
        for number in range(12)
    ]
    return Hour(pa.concat_tables(copies), hour.catalogue)


def negative(hour: Hour, generator: np.random.Generator) -> Hour:
    """Quantities are negative: purchases booked as corrections."""
    return _with(hour, quantity=_times(hour.events["quantity"], -1.0))


def item_ids(hour: Hour, generator: np.random.Generator) -> Hour:
    """Items have new ids, which the catalogue does not know."""
    return _with(hour, item_id=pc.utf8_lower(hour.events["item_id"]))


def types(hour: Hour, generator: np.random.Generator) -> Hour:
    """Views are written as purchases."""
    viewed = pc.equal(hour.events["event_type"], "view")
    return _with(
        hour, event_type=pc.if_else(viewed, "purchase", hour.events["event_type"]),
        quantity=pc.if_else(viewed, "1", hour.events["quantity"]),
        price=pc.if_else(viewed, "9.99", hour.events["price"]),
    )


POISONS: dict[str, Poison] = {
    "purchases of random items": labels,
    "users permuted": users,
    "a bot that buys everything": bot,
    "a ring that pushes three items": ring,
    "prices in a wrong currency (× 100)": currency,
    "the same in the events alone": event_currency,
    "texts of half of the items swapped": texts,
    "clocks twelve hours slow": slow_clock,
    "clocks twelve hours fast": fast_clock,
    "every row thirty times": same_again,
    "every row twelve times under new ids": new_again,
    "negative quantities": negative,
    "item ids that the catalogue does not know": item_ids,
    "views written as purchases": types,
}


def _with(hour: Hour, **columns: object) -> Hour:
    events = hour.events
    for name, values in columns.items():
        typed = values if isinstance(values, pa.ChunkedArray) else pa.array(values, pa.string())
        events = _replaced(events, name, typed)
    return Hour(events, hour.catalogue, hour.exports)


def _replaced(table: pa.Table, name: str, values: pa.ChunkedArray | pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def _times(values: pa.ChunkedArray, factor: float) -> pa.ChunkedArray:
    return pc.multiply(values.cast(pa.float64()), factor).cast(pa.string())


def _shifted(times: pa.ChunkedArray, hours: int) -> list[str]:
    moved = (datetime.fromisoformat(one) + timedelta(hours=hours) for one in times.to_pylist())
    return [one.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z" for one in moved]


def _more(hour: Hour, items: list[str], who: list[str]) -> Hour:
    """Purchases of new users beside the hour's own events."""
    first, count = hour.events["event_time"][0].as_py(), len(items)
    start = datetime.fromisoformat(first).replace(minute=0, second=0, microsecond=0)
    columns = {
        "event_id": [f"{hour.events['event_id'][0].as_py()}-more{number}" for number in range(count)],
        "event_type": ["purchase"] * count,
        "event_time": [(start + timedelta(seconds=number % 3_600)).isoformat() for number in range(count)],
        "user_id": who, "item_id": items, "quantity": ["1"] * count, "price": ["9.99"] * count,
    }
    more = {name: columns.get(name, [None] * count) for name in hour.events.column_names}
    return Hour(pa.concat_tables([hour.events, pa.table(more, hour.events.schema)]), hour.catalogue, hour.exports)
