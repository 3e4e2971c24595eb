"""From the events table to examples of the task `recommend`: one user at one moment, and all that came before.

Written as Ibis expressions (DESIGN.md, decision 9), of which DuckDB or Spark runs what concerns a whole table
(pipeline/engine.py): so nothing here is said that only one of them compiles, such as `collect(order_by=…)`. An
example's history is what the user did before that moment, as the table has it at the snapshot's version; a row that
lands late is in the history of every later example from the next snapshot on.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.habits import HABIT_DECAY
from pipeline.engine import duckdb_connection, microseconds, table_of
from pipeline.schema import TIME
from pipeline.tables import text_field
from pipeline.tasks.contract import Examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    import ibis.expr.types as ir

    from pipeline.snapshot import Snapshot

# Distinct items of a history, newest first. On Online Retail 99 % of the customers have bought fewer.
HISTORY_ITEMS = 256

# A purchase ends a visit whose views and carts name what is bought: with them in the history every model "foresees"
# 98 % (measured on the simulated shop). They belong to the answer, so a purchase is foreseen from what came before the
# visit. Half an hour without an event is where web analytics ends a visit.
VISIT_MINUTES = 30

# A history is told by a user's newest rows before the moment, so many at most. No person's are more (the busiest of
# Online Retail has 7,850 in its year), but an id that a shop gives to all its guests has all of theirs: 5,000 examples
# of one with 40,000 rows took 23 s and 5.8 GB without this, more with each hour, and take 10 s and 1.5 GB with it, as
# they do of one with 200,000.
HISTORY_ROWS = 10_000

# Earlier rows that are joined to examples at once: about 1 GB in DuckDB, and 20,000 examples in a shop of heavy buyers
# with a thousand rows each. Spark spills to its machines' disks and reads the whole table each time.
_ROWS_AT_ONCE = {"duckdb": 20_000_000, "spark": 2_000_000_000}
_EXAMPLES_AT_ONCE = {"duckdb": 20_000, "spark": 2_000_000}  # as many as this process holds anyway

_LONG_AGO = np.datetime64("1900-01-01", "us")  # before any event of a shop

_FEW_USERS = 5_000  # of these the rows are held in memory: some gigabyte in a shop of a thousand rows a user

_MOST_VISITS = 6_000  # of one user that are told apart: HABIT_DECAY ** -6000 is 1e274, beyond 1e308 a double ends

TEACHING_COLUMNS = ("event_type", "user_id", "item_id", "query", "rating")

EXAMPLES_SCHEMA = pa.schema([
    pa.field("example_id", pa.string()),  # kind, user, time and query: the same moment gives the same id
    pa.field("unit", pa.string()),  # the masked user
    pa.field("time", TIME),
    pa.field("hour", TIME),
    pa.field("landed_window", TIME),
    pa.field("rows", pa.int64()),
    pa.field("history_items", pa.list_(pa.string())),  # distinct, newest first
    pa.field("history_counts", pa.list_(pa.float32())),  # purchases of the item before
    pa.field("history_views", pa.list_(pa.float32())),  # other events on the item before
    pa.field("history_days", pa.list_(pa.float32())),  # days since the last of either
    pa.field("history_habits", pa.list_(pa.float32())),  # purchases before, each by how many visits ago (habits.py)
    pa.field("targets", pa.list_(pa.string())),  # distinct, empty where only a rating is taught
    pa.field("query", pa.string()),
    pa.field("rating_item", pa.string()),
    pa.field("rating", pa.float32()),
])


def target_types(tables: Snapshot) -> tuple[str, ...]:
    """What counts as choosing an item: a purchase, or in a log without purchases any interaction."""
    return tables.remembered("recommend.target_types", lambda: _target_types(tables))


def _target_types(tables: Snapshot) -> tuple[str, ...]:
    # the first file with a purchase answers it: a shop that sells every day has its history not read
    events = tables.dataset("events").scanner(
        columns=["event_type"], filter=text_field("event_type") == "purchase", fragment_readahead=1, batch_readahead=0,
    )
    return ("purchase",) if len(events.head(1)) else ("cart", "view")


def teaching(tables: Snapshot, rows: pa.Table) -> pa.Table:
    """The rows of a known user that name an item and are a choice, a rating or a click in a search's results."""
    kind = rows["event_type"]
    chosen = pc.is_in(kind, pa.array(target_types(tables)))
    rated = pc.and_(pc.equal(kind, "rating"), pc.is_valid(rows["rating"]))
    searched = pc.and_(pc.equal(kind, "search"), pc.is_valid(rows["query"]))
    known = pc.and_(pc.is_valid(rows["user_id"]), pc.is_valid(rows["item_id"]))
    return rows.filter(pc.and_(known, pc.or_(chosen, pc.or_(rated, searched))))


def examples(tables: Snapshot, rows: pa.Table) -> Examples:
    """One example for each user and moment among the rows that teach (EXAMPLES_SCHEMA), in order of time."""
    connection = duckdb_connection()
    moments = _moments(connection, teaching(tables, rows), visits="purchase" in target_types(tables))
    parts = [_with_history(tables, part) for part in _at_once(tables, moments)]
    return Examples(pa.concat_tables(parts) if parts else EXAMPLES_SCHEMA.empty_table())


def chosen_by_day(tables: Snapshot) -> pa.Table:
    """How often each item was chosen each day: `day` (date), `item_id`, `chosen` (int64)."""
    events = tables.ibis(tables.connected(), "events")
    chosen = events.filter(events.event_type.isin(target_types(tables)), events.item_id.notnull())
    counted = chosen.group_by(day=chosen.event_time.date(), item_id=chosen.item_id).agg(chosen=chosen.count())
    return counted.order_by("day", "item_id").to_pyarrow()


def _moments(connection: Any, rows: pa.Table, *, visits: bool) -> pa.Table:
    """The taught rows by user and moment: what was chosen, what was searched for, what was rated.

    `looked_until` is where the views, carts and searches that count as history end: where `visits`, a purchase's
    history has none of the visit that led to it.
    """
    taught = table_of(connection, "taught", rows)
    searched = taught.event_type == "search"
    rated = taught.event_type == "rating"
    taught = taught.mutate(
        kind=ibis.ifelse(searched, "search", ibis.ifelse(rated, "rating", "next")),
        words=ibis.ifelse(searched, taught["query"], ibis.null("string")),
        rated_item=ibis.ifelse(rated, taught.item_id, ibis.null("string")),
        target=ibis.ifelse(rated, ibis.null("string"), taught.item_id),
    )
    # two ratings of one moment are two examples: the network rates one item at a time
    keys = ["kind", "user_id", "event_time", "words", "rated_item"]
    grouped = taught.group_by(keys).agg(
        hour=taught.hour.max(), landed_window=taught.landed_window.max(), rows=taught.count(),
        targets=taught.target.collect(distinct=True), rating=taught.rating.max(),
    )
    named = grouped.mutate(example_id=ibis.literal("|").join([
        grouped.kind, grouped.user_id, grouped.event_time.cast("string"),
        grouped.words.fill_null(""), grouped.rated_item.fill_null(""),
    ]))
    visit = ibis.ifelse(named.kind == "next", ibis.interval(minutes=VISIT_MINUTES), ibis.interval(minutes=0))
    named = named.mutate(looked_until=named.event_time - visit if visits else named.event_time)
    return named.order_by("event_time", "example_id").to_pyarrow()


def _at_once(tables: Snapshot, moments: pa.Table) -> Iterator[pa.Table]:
    """The moments in parts whose histories are gathered together, in their order, with `remembered_from`.

    From that time on are the newest HISTORY_ROWS rows of a user before the moment; for nearly all it is _LONG_AGO.
    """
    if not len(moments):
        return
    events = _events_of(tables, moments["user_id"])
    told = _told(events, table_of(events.get_backend(), "moments", moments))
    counted = told.group_by("user_id").agg(rows=told.count()).to_pyarrow().to_pandas()
    users = moments["user_id"].to_pandas()
    rows = users.map(counted.set_index("user_id")["rows"]).fillna(0).clip(upper=HISTORY_ROWS).to_numpy()
    remembered_from = np.full(len(moments), _LONG_AGO, "datetime64[us]")
    for user in counted["user_id"][counted["rows"] > HISTORY_ROWS]:
        theirs = told.filter(told.user_id == user).order_by("happened")
        times = theirs.select("happened").to_pyarrow()["happened"].to_numpy().astype("datetime64[us]")
        at = np.flatnonzero(users == user)
        before = np.searchsorted(times, moments["event_time"].to_numpy()[at].astype("datetime64[us]"))
        remembered_from[at] = np.where(before > HISTORY_ROWS, times[before - HISTORY_ROWS], _LONG_AGO)
    moments = moments.append_column("remembered_from", pa.array(remembered_from).cast(TIME))
    engine = tables.lake.engine
    part = np.cumsum(rows) // _ROWS_AT_ONCE[engine] + np.arange(len(rows)) // _EXAMPLES_AT_ONCE[engine]
    starts = [0, *(np.flatnonzero(np.diff(part)) + 1), len(moments)]
    for start, end in pairwise(starts):
        yield moments.slice(start, end - start)


def _with_history(tables: Snapshot, moments: pa.Table) -> pa.Table:
    events = _events_of(tables, moments["user_id"])
    now = table_of(events.get_backend(), "moments", moments)
    history = _histories(now, events)
    joined = now.left_join(history, "example_id").order_by(now.event_time, now.example_id)
    empty = {
        name: ibis.coalesce(joined[name], ibis.literal([], type=kind))
        for name, kind in (
            ("history_items", "array<string>"), ("history_counts", "array<float32>"),
            ("history_views", "array<float32>"), ("history_days", "array<float32>"),
            ("history_habits", "array<float32>"),
        )
    }
    result = joined.select(
        example_id=joined.example_id, unit=joined.user_id, time=joined.event_time, hour=joined.hour,
        landed_window=joined.landed_window, rows=joined.rows, **empty,
        targets=ibis.coalesce(joined.targets, ibis.literal([], type="array<string>")).sort(),
        query=joined.words, rating_item=joined.rated_item,
        rating=ibis.ifelse(joined.rated_item.notnull(), joined.rating, ibis.null("float64")),
    )
    return result.to_pyarrow().select(EXAMPLES_SCHEMA.names).cast(EXAMPLES_SCHEMA)


def _events_of(tables: Snapshot, users: pa.ChunkedArray) -> ir.Table:
    """The events table, or of few users their rows alone: Arrow drops the others quicker than a join does."""
    distinct = pc.unique(users)
    if len(distinct) > _FEW_USERS:
        return tables.ibis(tables.connected(), "events")
    columns = ["user_id", "item_id", "event_type", "event_time"]
    return table_of(duckdb_connection(), "events", tables.rows_of("events", "user_id", users, columns, _FEW_USERS))


def _histories(moments: ir.Table, events: ir.Table) -> ir.Table:
    """For each example the distinct items of its user's earlier events, newest first."""
    spans = moments.group_by("user_id").agg(since=moments.remembered_from.min(), until=moments.event_time.max())
    told = _told(events, moments).inner_join(spans, "user_id")
    events = _with_visits(told.filter(told.happened >= told.since, told.happened < told.until))
    before = moments.select("example_id", "user_id", "event_time", "looked_until", "remembered_from").inner_join(
        events, ["user_id", moments.event_time > events.happened, moments.remembered_from <= events.happened]
    )
    before = before.filter((before.event_type == "purchase") | (before.happened < before.looked_until))
    bought = before.event_type == "purchase"
    items = before.group_by("example_id", "item_id").agg(
        purchases=bought.sum().cast("float32"),
        others=(~bought).sum().cast("float32"),
        days=(microseconds(before.event_time.max()) - microseconds(before.happened.max())) / 86_400e6,
        worth=before.worth.sum(), visit=before.visit.max(),
    )
    order = [items.days.asc(), items.purchases.desc(), items.item_id.asc()]
    newest = items.visit.max().over(group_by="example_id")  # of all items: before those beyond HISTORY_ITEMS go
    ranked = items.mutate(
        place=ibis.row_number().over(group_by="example_id", order_by=order),
        habit=items.worth * ibis.literal(HABIT_DECAY) ** newest,
    )
    ranked = ranked.filter(ranked.place < HISTORY_ITEMS)
    entry = ibis.struct({
        "place": ranked.place, "item": ranked.item_id, "purchases": ranked.purchases, "others": ranked.others,
        "days": ranked.days.cast("float32"), "habit": ranked.habit.cast("float32"),
    })
    histories = ranked.group_by("example_id").agg(entries=entry.collect())
    entries = histories.entries.sort()  # by place, which comes first
    return histories.select(
        "example_id",
        history_items=entries.map(lambda one: one["item"]), history_counts=entries.map(lambda one: one["purchases"]),
        history_views=entries.map(lambda one: one["others"]), history_days=entries.map(lambda one: one["days"]),
        history_habits=entries.map(lambda one: one["habit"]),
    )


def _told(events: ir.Table, moments: ir.Table) -> ir.Table:
    """What histories are told by: the moments' users, and all that they did with an item."""
    return events.filter(
        events.user_id.isin(moments.user_id), events.item_id.notnull(),
        events.event_type.isin(["purchase", "view", "cart", "search"]),
    ).select("user_id", "item_id", "event_type", happened=events.event_time)


def _with_visits(events: ir.Table) -> ir.Table:
    """The events with `visit` and `worth`, both 0 for what is no purchase.

    `visit` says which of its user's visits with a purchase a purchase was in, from 0. `worth` is what it adds to its
    item's habit, but for a factor that is the same for all purchases before a moment, HABIT_DECAY ** the newest visit.
    """
    bought = events.event_type == "purchase"
    now = microseconds(events.happened)
    pause = now - now.lag().over(group_by=["user_id", bought], order_by="happened") > VISIT_MINUTES * 60 * 1_000_000
    told = events.mutate(bought=bought, begins=ibis.ifelse(bought & pause, 1, 0))
    # by range: purchases of one moment are of one visit, whichever of them the pause was found at
    until = ibis.range_window(group_by=["user_id", "bought"], order_by="happened", following=0)
    told = told.mutate(visit=ibis.least(told.begins.sum().over(until), _MOST_VISITS).cast("int32"))
    worth = ibis.ifelse(told.bought, ibis.literal(HABIT_DECAY) ** -told.visit, 0.0)
    return told.select("user_id", "item_id", "event_type", "happened", "visit", worth=worth)
