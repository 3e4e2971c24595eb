"""Dirt for the simulated shop's events: eight named kinds, disjoint rows, counts known for each window.

They are what real exporters do: a line cut by a crash, a number spelt out, a retry that sends a row twice (at
once or in a later hour), a phone that was offline, a phone with a wrong clock, an empty field, an item that
the catalogue has never heard of.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# in place: the row itself becomes dirty; repeated: a second copy of a clean row is landed
IN_PLACE = ("malformed_line", "wrong_type", "late_event", "future_event", "null_field", "unknown_item")
REPEATED = ("exact_duplicate", "later_duplicate")
KINDS = IN_PLACE + REPEATED

_LATEST_HOURS = (
    47  # late, but within the 48 hours that a shop is allowed by default (Settings.lateness_hours)
)


@dataclass(frozen=True)
class Dirtied:
    """An hour's event rows by the exporter that writes them, text columns.

    Attributes:
        web: rows of the JSON lines files, duplicates at the end.
        app: rows of the CSV file.
        till: rows of the Parquet file; never dirty, a typed file cannot hold most kinds.
        broken: row of `web` -> where its line is cut, as a share of its length.
        counts: rows of each kind.
    """

    web: pa.Table
    app: pa.Table
    till: pa.Table
    broken: dict[int, float]
    counts: dict[str, int]


def _picks(rows: int, rng: np.random.Generator, share: float) -> dict[str, np.ndarray]:
    """Rows for each kind that happens in place or repeats at once, and (`""`) all others; disjoint."""
    order = rng.permutation(rows)
    picks, used = {}, 0
    for kind in (*IN_PLACE, "exact_duplicate"):
        count = min(int(rng.binomial(rows, share / len(KINDS))), rows - used)
        picks[kind] = np.sort(order[used : used + count])
        used += count
    picks[""] = np.sort(order[used:])
    return picks


def clean_rows(rows: int, rng: np.random.Generator, share: float) -> np.ndarray:
    """The rows that `add_dirt` leaves as they are when it is given a generator in the same state."""
    return _picks(rows, rng, share)[""]


def add_dirt(
    events: pa.Table,
    earlier: pa.Table | None,
    start: datetime,
    hours_before: int,
    share: float,
    rng: np.random.Generator,
    values: np.random.Generator,
) -> Dirtied:
    """Splits an hour's events over the exporters and makes a share of them dirty.

    Args:
        events: the hour's clean events, text columns.
        earlier: clean rows of an earlier window, some of which land once more; None in the first hours.
        start: the window's start.
        hours_before: hours of data before the window; a late event happened in one of them.
        share: dirty rows over all kinds, as a share of the events.
        rng: decides which rows; `clean_rows` repeats its draws.
        values: decides what they become.
    """
    picks = _picks(len(events), rng, share)
    if not hours_before:
        picks["late_event"] = picks["late_event"][:0]
    columns = {name: events[name].to_numpy(zero_copy_only=False).copy() for name in events.column_names}
    _spoil(columns, picks, start, hours_before, values)
    exporter = _exporters(events, picks)
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    repeated = [table.take(picks["exact_duplicate"])]
    if earlier is not None and len(earlier):
        count = min(int(values.binomial(len(events), share / len(KINDS))), len(earlier))
        repeated.append(earlier.take(np.sort(values.permutation(len(earlier))[:count])).cast(table.schema))
    web_rows = np.flatnonzero(exporter == 0)
    cut = np.searchsorted(web_rows, picks["malformed_line"])
    counts = {kind: len(picks[kind]) for kind in (*IN_PLACE, "exact_duplicate")}
    return Dirtied(
        web=pa.concat_tables([table.take(web_rows), *repeated]),
        app=table.take(np.flatnonzero(exporter == 1)),
        till=table.take(np.flatnonzero(exporter == 2)),
        broken=dict(zip(cut.tolist(), values.random(len(cut)).tolist(), strict=True)),
        counts=counts | {"later_duplicate": len(repeated[1]) if len(repeated) > 1 else 0},
    )


def _exporters(events: pa.Table, picks: dict[str, np.ndarray]) -> np.ndarray:
    """0 web, 1 app, 2 till: by session, but whatever is dirty comes from the web. `[rows]`."""
    last = pc.utf8_slice_codeunits(events["session_id"], -1).to_numpy(zero_copy_only=False)
    exporter = np.select([np.isin(last, ["7", "8"]), last == "9"], [1, 2], 0)
    for kind, rows in picks.items():
        # a CSV can hold a wrong type or an unknown item as well; only a cut line or a null needs JSON
        if kind in ("malformed_line", "null_field", "exact_duplicate"):
            exporter[rows] = 0
        elif kind:
            exporter[rows] = np.minimum(exporter[rows], 1)
    return exporter


def _spoil(
    columns: dict[str, np.ndarray],
    picks: dict[str, np.ndarray],
    start: datetime,
    hours_before: int,
    rng: np.random.Generator,
) -> None:
    """Writes the dirty values of the kinds that happen in place into the columns."""
    for number, row in enumerate(picks["wrong_type"]):
        column, value = (("event_time", "yesterday"), ("price", "free"), ("quantity", "two"))[number % 3]
        columns[column][row] = value
    for row in picks["late_event"]:
        hours = int(rng.integers(1, min(_LATEST_HOURS, hours_before) + 1))
        columns["event_time"][row] = _moved(columns["event_time"][row], -timedelta(hours=hours))
    for row in picks["future_event"]:
        columns["event_time"][row] = _moved(
            columns["event_time"][row], timedelta(days=int(rng.integers(2, 400)))
        )
    for number, row in enumerate(picks["null_field"]):
        columns[("event_time", "event_type")[number % 2]][row] = None
    for row in picks["unknown_item"]:
        columns["item_id"][row] = f"X{int(rng.integers(0, 10**9)):09d}"


def _moved(time: str, by: timedelta) -> str:
    return (datetime.fromisoformat(time) + by).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
