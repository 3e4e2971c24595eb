"""What catalogue and events know of items at a snapshot: the newest texts and price of each, and when it was last seen.

Every task whose examples are about items takes its context from here, so that an update's cost is that of the items
that changed, and an item that was deleted leaves every model alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import duckdb_connection, table_of
from pipeline.schema import TIME
from pipeline.snapshot import Snapshot
from pipeline.tables import text_field
from pipeline.texts import TextVectors, content_hash

_DESCRIPTION_CHARACTERS = 300  # the encoder reads at most 128 tokens; titles come first
_MOST_IDS_IN_FILTER = 50_000  # beyond, reading the whole catalogue is faster than the membership test
Reword = Callable[[str], str]  # a text in another wording
_SEEN_IN = {"items": "change_time", "events": "event_time"}
_SEEN_SCHEMA = pa.schema([pa.field("item_id", pa.string()), pa.field("last_seen", TIME)])
_CATALOGUE_COLUMNS = ("item_id", "change_id", "change_time", "title", "description", "category", "brand", "price")


def described(
    tables: Snapshot, since: Mapping[str, int] | None, texts: TextVectors, reword: Reword | None = None, *,
    told_only: bool = False, also: pa.Table | None = None,
) -> pa.Table:
    """All items, or those that changed after `since`, as `catalogue` has them, with `content_hash`, `text_vector`.

    `last_seen` is the time of an item's newest event or change (of those since then); null: it is known no more.

    Args:
        tables: at the versions that count.
        since: versions of the same tables.
        texts: gives the vectors.
        reword: says a text otherwise; then there is `wording_vector` as well, and no vector is left out.
        told_only: `text_vector` is null where the catalogue has said nothing since then: reading the vectors of all
            that was chosen costs a pass over those of the whole catalogue.
        also: further items (`item_id`, `last_seen`), whether they changed or not.
    """
    found = seen(tables) if since is None else seen_since(tables, since)
    items = catalogue(tables, found if also is None else _newest(pa.concat_tables([found, also])))
    words = items["text"].to_pylist()
    told = np.ones(len(items), bool)
    if told_only and since is not None and reword is None:
        changed = tables.lake.changes("items", since["items"], tables.versions["items"])["item_id"]
        told = pc.is_in(items["item_id"], value_set=changed.combine_chunks()).to_numpy(zero_copy_only=False)
    vectors = texts.of([word if one else None for word, one in zip(words, told, strict=True)])
    table = items.append_column(
        "content_hash", pa.array([content_hash(text or "") for text in words], pa.string())
    ).append_column("text_vector", vector_column(vectors, missing=~told))
    if reword is None:
        return table
    others = texts.of([reword(text) if text else text for text in words])
    return table.append_column("wording_vector", vector_column(others))


def catalogue(tables: Snapshot, seen: pa.Table) -> pa.Table:
    """The items of `seen` (`item_id`, `last_seen`) with `title`, `category`, `brand`, `price`, `text`, by id."""
    if len(seen) <= _MOST_IDS_IN_FILTER:  # the cost of an update is that of its own items
        rows = tables.arrow("items", _CATALOGUE_COLUMNS, text_field("item_id").isin(seen["item_id"].combine_chunks()))
        items = table_of(duckdb_connection(), "items", rows)
    else:
        items = tables.ibis(tables.connected(), "items")
    wanted = table_of(items.get_backend(), "seen", seen)
    moment = ibis.struct({"time": items.change_time, "id": items.change_id})
    newest = items.group_by("item_id").agg(**{  # nulls are passed over: a change may carry the price alone
        name: items[name].argmax(moment, where=items[name].notnull())
        for name in ("title", "description", "category", "brand", "price")
    })
    full = wanted.left_join(newest, "item_id").drop("item_id_right")
    parts = [full.title, full.category, full.brand, full.description.substr(0, _DESCRIPTION_CHARACTERS)]
    text = ibis.array(parts).filter(lambda part: part.notnull() & (part != "")).join(". ")
    text = text.fill_null("")  # of no parts Spark makes null, DuckDB an empty text
    return full.mutate(text=text).drop("description").order_by("item_id").to_pyarrow()


def seen(tables: Snapshot) -> pa.Table:
    """Every item that catalogue or events know: `item_id`, `last_seen`."""
    connection = tables.connected()
    times = [
        tables.ibis(connection, table).select("item_id", last_seen=time) for table, time in _SEEN_IN.items()
    ]
    both = ibis.union(*times).filter(lambda row: row.item_id.notnull())
    return both.group_by("item_id").agg(last_seen=both.last_seen.max()).to_pyarrow().cast(_SEEN_SCHEMA)


def seen_since(tables: Snapshot, since: Mapping[str, int]) -> pa.Table:
    """The items of which a row came, changed or went after the versions `since`: `item_id`, `last_seen`."""
    changes = pa.concat_tables([
        tables.lake.changes(table, since[table], tables.versions[table])
        .select(["item_id", time, "change"]).rename_columns(["item_id", "last_seen", "change"])
        .cast(pa.schema([*_SEEN_SCHEMA, pa.field("change", pa.string())]))
        for table, time in _SEEN_IN.items()
    ])
    changes = changes.filter(pc.is_valid(changes["item_id"]))
    came = changes.filter(pc.not_equal(changes["change"], "delete")).drop_columns(["change"])
    lost = pc.unique(changes["item_id"].filter(pc.invert(pc.is_in(changes["item_id"], came["item_id"].unique()))))
    if len(lost):  # rows were deleted or corrected: what is left of these items?
        left = [
            tables.arrow(table, ["item_id", time], text_field("item_id").isin(lost))
            .rename_columns(_SEEN_SCHEMA.names).cast(_SEEN_SCHEMA)
            for table, time in _SEEN_IN.items()
        ]
        nothing = pa.table([lost, pa.nulls(len(lost), TIME)], schema=_SEEN_SCHEMA)
        came = pa.concat_tables([came, *left, nothing])
    return _newest(came)


def seen_from(tables: Snapshot, since: datetime) -> pa.Table:
    """The items of which something happened in the hours from `since` on: `item_id`, `last_seen`."""
    rows = pa.concat_tables([
        tables.rows_from(table, since, columns=["item_id", time]).rename_columns(_SEEN_SCHEMA.names).cast(_SEEN_SCHEMA)
        for table, time in _SEEN_IN.items()
    ])
    return _newest(rows.filter(pc.is_valid(rows["item_id"])))


def _newest(seen: pa.Table) -> pa.Table:
    newest = seen.group_by("item_id").aggregate([("last_seen", "max")])
    return newest.rename_columns(_SEEN_SCHEMA.names).cast(_SEEN_SCHEMA)


def vector_column(vectors: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """The rows of `vectors` [n, width] as a column of float32 lists; null where `missing` ([n] bool)."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=mask)


def principal_directions(vectors: np.ndarray, kept: int) -> np.ndarray:
    """[dimension, kept] float32: the directions in which the vectors [n, dimension] vary most: cosines survive."""
    _, directions = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
    return directions[:, ::-1][:, :kept].astype(np.float32)
