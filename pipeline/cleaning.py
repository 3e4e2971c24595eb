"""Raw text becomes typed rows: what a value cannot be is a fault, what may be missing is filled in by a named rule.

Cleaning decides what can be *represented*: types, finite numbers, times
that fit the window.
What a typed row should *mean* (sets, ranges, columns that belong together) is said in expectations/ and checked
by `quality.py`; no rule is in both. Nothing that matters is invented: item, time and type are never filled in.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.contacts import MAY_TELL
from pipeline.masking import Mask
from pipeline.picking import picked
from pipeline.schema import Feed

# A UUID has 36 characters, an e-mail address up to 254 (RFC 5321); a longer id of a person is a fault of the exporter.
# Only persons' ids are measured here, because nothing behind the door sees how long they were.
MAX_PERSON_CHARACTERS = 256
# Clocks that follow NTP are right within a second; five minutes is what Kerberos (RFC 4120) lets a wrong one be.
CLOCK_SKEW_MINUTES = 5
# What of a bad value is shown.
_SHOWN_CHARACTERS = 60

_PERSONS = ("user_id", "session_id")
_PRICED = ("cart", "purchase", "return")

FAULTS_SCHEMA = pa.schema(
    [pa.field("landed_row", pa.int64()), pa.field("reason", pa.string()), pa.field("detail", pa.string())]
)


@dataclass(frozen=True)
class Cleaned:
    """What cleaning made of landed rows; each row is in exactly one of the two tables.

    Attributes:
        rows: the feed's table_schema and `landed_row` (index into the landed rows), in the order of landing.
        faults: `landed_row`, `reason` (stable name), `detail` (value seen, what is allowed).
    """

    rows: pa.Table
    faults: pa.Table


def clean(
    feed: Feed,
    landed: pa.Table,
    mask: Mask,
    lateness_hours: int,
    absent_columns: frozenset[str] = frozenset(),
    prices: pa.Table | None = None,
) -> Cleaned:
    """Types, fills in and masks landed rows.

    Imputing rules, by the name that `imputed` carries:
        `<key>_from_content`: a row without id gets the hash of its content, so that a copy of it is the same row.
        `quantity_one`: a cart, purchase or return of a shop whose log has no quantities (`events.quantity` in
            `absent_columns`) is one unit.
        `price_from_catalogue`: a purchase without price gets the item's last price in the catalogue at its time.

    Args:
        feed: the feed.
        landed: `Landed.rows`.
        mask: of the installation.
        lateness_hours: a row that happened longer before its window is refused.
        absent_columns: columns that this shop never delivers, as `feed.column`.
        prices: the catalogue's `item_id`, `change_time`, `price`; None: not known.
    """
    text = _trimmed(landed, feed)
    typed = _typed(_masked(_without_persons(text, feed, mask), mask), feed, lateness_hours)
    good = pc.is_null(typed["reason"]).combine_chunks()  # in one piece: a mask in chunks takes five times as long
    faults = _faults(feed, landed, typed.filter(pc.invert(good)), lateness_hours)
    rows = typed.drop_columns(["reason"])
    rows = rows.filter(good) if len(faults) else rows
    rows = _with_quantity(rows, feed, absent_columns) if feed.name == "events" else _not_imputed(rows)
    if feed.name == "events" and prices is not None and len(prices):
        rows = _with_price(rows, prices)
    return Cleaned(rows=_finished(rows, feed), faults=faults)


def _trimmed(landed: pa.Table, feed: Feed) -> pa.Table:
    """The landed rows with blanks around values taken off, empty text as null, event types in lower case."""
    for name in feed.raw_names:
        values = pc.utf8_trim_whitespace(landed[name])
        if name == "event_type":
            values = pc.utf8_lower(values)
        empty = pc.equal(values, "")
        landed = _replaced(landed, name, pc.if_else(empty, None, values) if pc.any(empty).as_py() else values)
    return landed


def _without_persons(landed: pa.Table, feed: Feed, mask: Mask) -> pa.Table:
    """The landed rows with what tells a person masked in the columns in which customers write."""
    persons = _persons(feed)
    for name in feed.free_text:
        telling = [f"regexp_matches({name}, '{MAY_TELL}')", *(f"contains({name}, {one})" for one in persons)]
        connection = duckdb.connect()
        numbered = landed.select([name, *persons]).append_column("number", pa.array(np.arange(len(landed))))
        connection.register("landed", numbered)
        chosen = connection.sql(f"SELECT * FROM landed WHERE {' OR '.join(telling)} ORDER BY number")
        found = chosen.to_arrow_table().to_pylist()
        if not found:
            continue
        masked = [mask.free_text(row[name], {row[one] for one in persons if row[one] is not None}) for row in found]
        where = np.zeros(len(landed), bool)
        where[[row["number"] for row in found]] = True
        values = pc.replace_with_mask(landed[name].combine_chunks(), pa.array(where), pa.array(masked, pa.string()))
        landed = _replaced(landed, name, pa.chunked_array([values]))
    return landed


def _masked(landed: pa.Table, mask: Mask) -> pa.Table:
    """The landed rows with hashes in the place of persons, and the length that each raw id had."""
    for name in _PERSONS:
        if name not in landed.column_names:
            continue
        lengths = pc.utf8_length(landed[name])
        landed = _replaced(landed, name, mask.column(landed[name])).append_column(f"{name}_length", lengths)
    return landed


def _typed(text: pa.Table, feed: Feed, lateness_hours: int) -> pa.Table:
    """The rows with times and numbers typed, `landed_row`, and `reason`: the first fault of a row, or null."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    numbers = _numbers(feed)
    needed = {feed.time, *numbers, *feed.required, "landed_window"} | {f"{name}_length" for name in _persons(feed)}
    connection.register("landed", text.select(sorted(needed)))
    # the length keeps out words such as `epoch` and dates without a time
    typed = [f"CASE WHEN length({feed.time}) >= 16 THEN TRY_CAST({feed.time} AS TIMESTAMPTZ) END AS typed_{feed.time}"]
    typed += [f"TRY_CAST({name} AS DOUBLE) AS typed_{name}" for name in numbers]
    connection.execute(f"CREATE TEMP VIEW typed AS SELECT *, {', '.join(typed)} FROM landed")
    chosen = ", ".join(f"typed_{name}" for name in (feed.time, *numbers))
    result = connection.sql(
        f"SELECT {chosen}, {_reason_sql(feed, lateness_hours)} AS reason FROM typed"
    ).to_arrow_table()
    for name in (feed.time, *numbers):
        text = _replaced(text, name, result[f"typed_{name}"])
    text = text.drop_columns([*(f"{name}_length" for name in _persons(feed)), "place"])
    text = text.append_column("reason", result["reason"])
    return text.append_column("landed_row", pa.array(np.arange(len(text))))


def _numbers(feed: Feed) -> list[str]:
    return [field.name for field in feed.columns if pa.types.is_floating(field.type)]


def _persons(feed: Feed) -> list[str]:
    return [name for name in feed.raw_names if name in _PERSONS]


def _reason_sql(feed: Feed, lateness_hours: int) -> str:
    """The first fault of a row, null if it has none."""
    numbers, time = _numbers(feed), f"typed_{feed.time}"
    too_long = [f"coalesce({name}_length > {MAX_PERSON_CHARACTERS}, false)" for name in _persons(feed)]
    untyped = [f"({name} IS NOT NULL AND typed_{name} IS NULL)" for name in numbers]
    endless = [f"coalesce(NOT isfinite(typed_{name}), false)" for name in numbers]
    return f"""CASE WHEN {_any_of(too_long)} THEN 'id_too_long'
        WHEN {_any_of([f"{name} IS NULL" for name in feed.required])} THEN 'missing_value'
        WHEN {time} IS NULL THEN 'unparseable_time'
        WHEN {_any_of(untyped)} THEN 'wrong_type'
        WHEN {_any_of(endless)} THEN 'not_finite'
        WHEN {time} >= landed_window + INTERVAL {60 + CLOCK_SKEW_MINUTES} MINUTE THEN 'future_time'
        WHEN {time} < landed_window - INTERVAL {lateness_hours} HOUR THEN 'too_late' END"""


def _any_of(conditions: list[str]) -> str:
    return " OR ".join(conditions) or "false"


def _faults(feed: Feed, landed: pa.Table, bad: pa.Table, lateness_hours: int) -> pa.Table:
    """The faults with their details; row by row, because few rows are bad."""
    raw = picked(landed.select([*feed.raw_names, "landed_window"]), bad["landed_row"].to_numpy()).to_pylist()
    numbers = _numbers(feed)
    judged = bad.select(["reason", *numbers]).to_pylist()  # without the time: it may be of a year that Python has not
    details = [_detail(feed, numbers, row, typed, lateness_hours) for row, typed in zip(raw, judged, strict=True)]
    return pa.table([bad["landed_row"], bad["reason"], pa.array(details, pa.string())], schema=FAULTS_SCHEMA)


def _detail(
    feed: Feed, numbers: list[str], raw: dict[str, str], typed: dict[str, object], lateness_hours: int
) -> str:
    """What was seen and what is allowed, without the content of a column that tells a person."""
    reason = typed["reason"]
    if reason == "id_too_long":
        name = next(n for n in _PERSONS if len((raw.get(n) or "").strip()) > MAX_PERSON_CHARACTERS)
        return f"{name} has {len(raw[name])} characters; allowed: {MAX_PERSON_CHARACTERS}"
    if reason == "missing_value":
        names = [name for name in feed.required if not (raw[name] or "").strip()]
        return f"{', '.join(names)} is empty; every row needs it"
    if reason == "unparseable_time":
        return f"{feed.time} {_shown(raw[feed.time])} is no ISO 8601 time such as 2026-01-05T13:30:00Z"
    if reason == "wrong_type":
        name = next(n for n in numbers if typed[n] is None and (raw[n] or "").strip())
        return f"{name} {_shown(raw[name])} is not a number"
    if reason == "not_finite":
        name = next(n for n in numbers if typed[n] is not None and not np.isfinite(typed[n]))  # type: ignore[call-overload]
        return f"{name} {_shown(raw[name])}; allowed: finite numbers"
    if reason == "future_time":
        allowed = f"before the end of the window of {raw['landed_window']:%Y-%m-%dT%H:%MZ} and {CLOCK_SKEW_MINUTES} min"
        return f"{feed.time} {_shown(raw[feed.time])}; allowed: {allowed}"
    allowed = f"up to {lateness_hours} h before the window of {raw['landed_window']:%Y-%m-%dT%H:%MZ}"
    return f"{feed.time} {_shown(raw[feed.time])}; allowed: {allowed}"


def _shown(value: str) -> str:
    return repr(value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "…")


def _not_imputed(rows: pa.Table) -> pa.Table:
    return rows.append_column("imputed", pa.nulls(len(rows), pa.string()))


def _noted(rows: pa.Table, where: pa.ChunkedArray, rule: str) -> pa.Table:
    """`imputed` with `rule` added where it filled something in."""
    before = rows["imputed"]
    added = pc.fill_null(pc.binary_join_element_wise(before, rule, ","), rule)
    position = rows.schema.get_field_index("imputed")
    return rows.set_column(position, "imputed", pc.if_else(where, added, before))


def _replaced(rows: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


def _with_quantity(rows: pa.Table, feed: Feed, absent_columns: frozenset[str]) -> pa.Table:
    rows = _not_imputed(rows)
    if f"{feed.name}.quantity" not in absent_columns:
        return rows
    where = pc.and_(pc.is_null(rows["quantity"]), pc.is_in(rows["event_type"], pa.array(_PRICED)))
    return _noted(_replaced(rows, "quantity", pc.if_else(where, 1.0, rows["quantity"])), where, "quantity_one")


def _with_price(rows: pa.Table, prices: pa.Table) -> pa.Table:
    where = pc.and_(
        pc.equal(rows["event_type"], "purchase"), pc.and_(pc.is_null(rows["price"]), pc.is_valid(rows["item_id"]))
    )
    if not pc.any(where).as_py():
        return rows
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("wanting", rows.filter(where).select(["landed_row", "item_id", "event_time"]))
    connection.register("prices", prices.filter(pc.is_valid(prices["price"])))
    found = connection.sql(
        """SELECT w.landed_row, max(p.price) AS price FROM wanting w ASOF JOIN
           (SELECT item_id, change_time, arg_max(price, change_id) AS price FROM prices GROUP BY ALL) p
           ON w.item_id = p.item_id AND w.event_time >= p.change_time GROUP BY w.landed_row"""
    ).to_arrow_table()
    at = pc.index_in(rows["landed_row"], found["landed_row"].combine_chunks())
    price = found["price"].combine_chunks().take(at.combine_chunks())
    known = pc.is_valid(price)
    filled = pc.coalesce(rows["price"], price)
    return _noted(_replaced(rows, "price", filled), known, "price_from_catalogue")


def _finished(rows: pa.Table, feed: Feed) -> pa.Table:
    """Key, hour and date filled in, columns in the table's order."""
    missing = pc.is_null(rows[feed.key])
    if pc.any(missing).as_py():
        ids = _content_ids(rows.filter(missing), feed)
        filled = pc.replace_with_mask(rows[feed.key].combine_chunks(), missing.combine_chunks(), ids)
        rows = _noted(_replaced(rows, feed.key, pa.chunked_array([filled])), missing, f"{feed.key}_from_content")
    window, hour = rows["landed_window"], pc.floor_temporal(rows[feed.time], unit="hour")
    # a row cannot happen after it landed: where a clock is ahead within the tolerance, the window is its hour
    hour = pc.if_else(pc.less(hour, window), hour, window)
    rows = rows.append_column("hour", hour).append_column("landed_date", window.cast(pa.date32()))
    schema = feed.table_schema.append(pa.field("landed_row", pa.int64(), nullable=False))
    return rows.select(schema.names).cast(schema)


def _content_ids(rows: pa.Table, feed: Feed) -> pa.Array:
    """The hash of each row's typed content, whatever file format it came in."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("content", rows)
    names = [name for name in feed.raw_names if name != feed.key]
    values = ", ".join(f"coalesce(CAST({name} AS VARCHAR), chr(30))" for name in names)
    ids = connection.sql(f"SELECT md5(concat_ws(chr(31), {values})) AS id FROM content").to_arrow_table()["id"]
    return ids.combine_chunks().cast(pa.string())
