"""Which rows a model version has learnt: recomputed from ledgers, tables at versions, change data and the split rule.

Nothing is written down for this at training time. A version's ledger says between which versions of its task's table
its own learning lies and from which hour on validation rows stayed out; the table's change data say which rows came,
changed or went in between; the split is a hash that never changes. So what a version did with a row is a computation,
the same one as `pipeline/lesson.py` makes before it trains (the tests compare both).

What the words mean, for a row of the task's table and a version:

- *learnt*: the row was part of an example that this version or an ancestor was trained on. A row of the validation part
  is not learnt before its span has passed and it has joined the training rows. A row that was learnt and then corrected
  or deleted stays learnt: weights keep what they were taught.
- *may be learnt*: the row is older than the days that a retrain was given, and an update since may have replayed it.
- *compared*: the row is of the validation part: early stopping and the gate use it (where there are many, a drawn part
  of them), the weights have not seen it.
- *context*: the row teaches nothing by itself (a view in a shop of purchases, the catalogue), but stands in histories
  and counts that examples are made of.
- *set aside*: the row is of a window that was refused for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, Protocol, cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.checkpoint import Ledger
from pipeline.difference import net_changes
from pipeline.examples import TRAIN, learnable, parts, without_windows
from pipeline.lake import Lake
from pipeline.lesson import Change, aside_spans, returned_rows
from pipeline.schema import FEEDS, TIME, Feed
from pipeline.snapshot import Snapshot
from pipeline.tables import LakeError
from pipeline.tasks.contract import Task
from pipeline.window import HOUR

# What a version's own learning did with a row.
TAUGHT, JOINED, HELD_OUT, CONTEXT, TOO_OLD, SET_ASIDE, DELETED = (
    "taught", "joined", "held out", "context", "too old", "set aside", "deleted"
)
# What a version and its ancestors together know of a row; the first that is true of some row names the whole.
LEARNT, MAYBE, COMPARED, READ, ASIDE, UNSEEN = (
    "learnt", "may be learnt", "compared", "context", "set aside", "not seen"
)
_VERDICTS = (LEARNT, MAYBE, COMPARED, READ, ASIDE)
_DID_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("landed_window", TIME), pa.field("did", pa.string())])


@dataclass(frozen=True)
class Version:
    """A registered version of a task's model.

    Attributes:
        number: its number.
        tags: all of them, `evergreen.*`.
    """

    number: int
    tags: Mapping[str, str]

    @cached_property
    def ledger(self) -> Ledger:
        """What it has learnt from."""
        return Ledger.of_tags(self.tags)

    @property
    def days(self) -> int | None:
        """How many of the newest days a retrain was given; None: all, or an update."""
        days = self.tags.get("evergreen.days")
        return int(days) if days else None


class _Tables(Protocol):
    """What is asked of a lake here."""

    def changes(self, table: str, after_version: int, to_version: int) -> pa.Table:
        """`Lake.changes`."""

    def dataset(self, table: str, version: int | None = None) -> ds.Dataset:
        """`Lake.dataset`."""


class FewRows:
    """Some rows of one feed's table with all their past, answering as `Lake` does, from memory.

    Attributes:
        feed: the feed.
        images: the rows' images in the table's change data, oldest first.
        engine: of table work on them; they lie in memory.
    """

    engine = "duckdb"

    def __init__(self, feed: Feed, images: pa.Table) -> None:
        """`images`: the table's columns, `_change_type` and `_commit_version`."""
        self.feed = feed
        order = [("_commit_version", "ascending"), (feed.key, "ascending"), ("_change_type", "descending")]
        self.images = images.sort_by(order)  # descending: a row's image before a change comes before that after it
        self.commits = sorted(set(images["_commit_version"].to_pylist()))
        self.hours = sorted(set(images["hour"].to_pylist()))

    @classmethod
    def of(cls, lake: Lake, feed: Feed, column: str, value: object) -> FewRows:
        """The rows whose `column` is or once was `value`."""
        key = feed.key
        found: list[pa.Array] = []
        wanted = pa.scalar(value, feed.table_schema.field(column).type)
        for batch in lake.images(feed.name, list(dict.fromkeys([key, column]))):
            mask = pc.equal(batch[column].cast(wanted.type), wanted)
            found.append(batch[key].cast(pa.string()).filter(mask))
        keys = pc.unique(pa.chunked_array(found, pa.string()))
        names = [*feed.table_schema.names, "_change_type", "_commit_version"]
        schema = pa.schema([
            *feed.table_schema, pa.field("_change_type", pa.string()), pa.field("_commit_version", pa.int64())
        ])
        images = [] if not len(keys) else [
            batch.filter(pc.is_in(batch[key].cast(pa.string()), value_set=keys))
            for batch in lake.images(feed.name, names)
        ]
        whole = pa.Table.from_batches(images) if images else schema.empty_table()
        return cls(feed, whole.select(schema.names).cast(schema))

    def changes(self, table: str, after_version: int, to_version: int) -> pa.Table:
        """`Lake.changes` of these rows."""
        schema = self.feed.table_schema.append(pa.field("change", pa.string()))
        commits = self.images["_commit_version"]
        inside = pc.and_(pc.greater(commits, after_version), pc.less_equal(commits, to_version))
        if table != self.feed.name or not len(log := self.images.filter(inside)):
            return schema.empty_table()
        return net_changes(log, self.feed)

    def days(self, table: str, version: int) -> ds.Dataset:
        """`Lake.days` of these rows."""
        return self.dataset(table, version)

    def dataset(self, table: str, version: int | None = None) -> ds.Dataset:
        """`Lake.dataset` of these rows: as they were at `version`."""
        if table != self.feed.name:
            raise LakeError(f"These rows are of {self.feed.name!r}; asked for {table!r}.")
        sql = duckdb.connect()
        sql.execute("SET TimeZone = 'UTC'")
        sql.register("images", self.images)
        names, key = ", ".join(self.feed.table_schema.names), self.feed.key
        until = "" if version is None else f"WHERE _commit_version <= {version}"
        rows = sql.sql(f"""
            SELECT {names} FROM (
                SELECT * FROM images {until} QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY
                    _commit_version DESC, (_change_type IN ('insert', 'update_postimage')) DESC) = 1)
            WHERE _change_type <> 'delete' ORDER BY {key}""").to_arrow_table()
        return ds.dataset(rows.cast(self.feed.table_schema))


def own_rows(task: Task, lake: Lake, version: Version, parent: Version | None, few: FewRows | None = None) -> pa.Table:
    """What a version's own learning did with rows of its task's table.

    Args:
        task: whose version it is.
        lake: where the tables are.
        version: the version.
        parent: the one it was trained from; None: the base.
        few: the rows that are asked about; None: all.

    Returns:
        `key`, `landed_window`, `did` (taught, joined, held out, context, too old, set aside, deleted), a row each.
    """
    tables = Snapshot(lake, version.ledger.versions)
    # lake or rows from memory: Snapshot asks no more of either than what _Tables has
    rows = tables if few is None else Snapshot(cast("Lake", few), version.ledger.versions)
    if parent is None:
        return _own_of_base(task, tables, rows, version)
    return _own_of_update(task, tables, rows, version.ledger, parent.ledger)


def _own_of_base(task: Task, tables: Snapshot, rows: Snapshot, version: Version) -> pa.Table:
    ledger, key = version.ledger, FEEDS[task.table].key
    held = rows.arrow(task.table, _columns(task))
    counted = without_windows(held, ledger.set_aside)
    teaching = task.teaching(tables, counted)
    wanted = teaching
    if version.days is not None:
        since = ledger.window + HOUR - timedelta(days=version.days)
        wanted = teaching.filter(pc.greater_equal(teaching["hour"], pa.scalar(since, TIME)))
    mask = learnable(wanted[task.unit_column], wanted["hour"], ledger.joined_until)
    return pa.concat_tables([
        _did(TAUGHT, wanted.filter(pa.array(mask)), key), _did(HELD_OUT, wanted.filter(pa.array(~mask)), key),
        _did(TOO_OLD, _without(teaching, wanted, key), key), _did(CONTEXT, _without(counted, teaching, key), key),
        _did(SET_ASIDE, _without(held, counted, key), key),
    ])


def _own_of_update(task: Task, tables: Snapshot, rows: Snapshot, ledger: Ledger, before: Ledger) -> pa.Table:
    table, key = task.table, FEEDS[task.table].key
    known, start, now = before.versions[table], ledger.learnt_from[table], ledger.versions[table]
    refused = Change(table, rows.lake.changes(table, known, start))
    change = Change(table, rows.lake.changes(table, start, now))
    spans = aside_spans(before, refused, (known, start))
    back = {window: spans[window] for window in spans if window not in ledger.set_aside}
    came = pa.concat_tables([change.came, returned_rows(table, rows, back, change)])
    teaching = task.teaching(tables, came)
    mask = learnable(teaching[task.unit_column], teaching["hour"], ledger.joined_until)
    joined = task.teaching(tables, rows.rows_from(table, before.joined_until, ledger.joined_until, _columns(task)))
    joined = joined.filter(pa.array(parts(joined[task.unit_column], joined["hour"]) != TRAIN))
    joined = without_windows(_without(joined, came, key), ledger.set_aside)
    return pa.concat_tables([
        _did(SET_ASIDE, _without(refused.came, came, key), key), _did(DELETED, refused.went, key),
        _did(DELETED, change.went, key), _did(CONTEXT, _without(came, teaching, key), key),
        _did(HELD_OUT, teaching.filter(pa.array(~mask)), key), _did(TAUGHT, teaching.filter(pa.array(mask)), key),
        _did(JOINED, joined, key),
    ])


def _columns(task: Task) -> list[str]:
    key = FEEDS[task.table].key
    return list(dict.fromkeys([key, "hour", "landed_window", task.unit_column, *task.teaching_columns]))


def _without(rows: pa.Table, others: pa.Table, key: str) -> pa.Table:
    return rows.filter(pc.invert(pc.is_in(rows[key].cast(pa.string()), value_set=others[key].cast(pa.string()))))


def _did(what: str, rows: pa.Table, key: str) -> pa.Table:
    columns = [rows[key].cast(pa.string()), rows["landed_window"], pa.array([what] * len(rows), pa.string())]
    return pa.table(columns, schema=_DID_SCHEMA)


@dataclass(frozen=True)
class Known:
    """What a version knows of the rows that were asked about.

    Attributes:
        version: the version.
        own: what its own learning did -> how many of the rows; empty where nothing.
        rows: learnt, may be learnt, compared, context, set aside -> how many of the rows, ancestors included; a row
            that was learnt and is held out since it was corrected counts in both.
    """

    version: Version
    own: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The strongest that is true of any of the rows."""
        return next((verdict for verdict in _VERDICTS if self.rows.get(verdict)), UNSEEN)


def known_by_versions(task: Task, lake: Lake, versions: Sequence[Version], few: FewRows) -> list[Known]:
    """What each version of a task knows of some rows of the task's table or of one that it reads as context.

    Args:
        task: the task.
        lake: where the tables are.
        versions: all versions of the task's model in order of their numbers; parents come before their children.
        few: the rows.

    Raises:
        LakeError: the table's change data do not reach back to what the versions' ledgers name.
    """
    if few.feed.name != task.table:
        return [_read_as_context(version, few) for version in versions]
    numbered = {version.number: version for version in versions}
    states: dict[int, dict[str, frozenset[str]]] = {}
    found = []
    for version in versions:
        parent = None if version.ledger.parent is None else numbered.get(version.ledger.parent)
        if version.ledger.parent is not None and parent is None:
            raise LakeError(
                f"Version {version.number} must have its parent {version.ledger.parent} in the registry to say what it "
                "has learnt; it was deleted there. Delete versions' files with python -m pipeline.retention instead."
            )
        before = states.get(parent.number, {}) if parent else {}
        state, own = before, Counter[str]()
        if _concerned(version, parent, few):
            did = own_rows(task, lake, version, parent, few)
            state, own = _after(before, did, is_update=parent is not None), Counter(did["did"].to_pylist())
        elif parent is not None:
            state = _after(before, _DID_SCHEMA.empty_table(), is_update=True)
        states[version.number] = state
        counts = Counter(bit for bits in state.values() for bit in bits)
        found.append(Known(version, dict(own), {one: counts[one] for one in _VERDICTS if counts[one]}))
    return found


def _concerned(version: Version, parent: Version | None, few: FewRows) -> bool:
    """Whether the version's own learning can have done anything with the rows; cheap, and never wrongly no."""
    ledger, table = version.ledger, few.feed.name
    if parent is None:
        return any(commit <= ledger.versions[table] for commit in few.commits)
    before = parent.ledger
    return (
        any(before.versions[table] < commit <= ledger.versions[table] for commit in few.commits)
        or any(before.joined_until <= hour < ledger.joined_until for hour in few.hours)
        or bool(set(before.set_aside) - set(ledger.set_aside))
    )


def _after(
    before: dict[str, frozenset[str]], did: pa.Table, *, is_update: bool
) -> dict[str, frozenset[str]]:
    """The state of each row after a version's own learning; `before` is its parent's and is not edited."""
    if not len(did) and not (is_update and any(TOO_OLD in bits for bits in before.values())):
        return before
    state = dict(before)
    for key, what in zip(did["key"].to_pylist(), did["did"].to_pylist(), strict=True):
        lasting = state.get(key, frozenset()) - {COMPARED, ASIDE, TOO_OLD}
        new = {
            TAUGHT: {LEARNT}, JOINED: {LEARNT}, HELD_OUT: {COMPARED}, CONTEXT: {READ}, TOO_OLD: {READ, TOO_OLD},
            SET_ASIDE: {ASIDE}, DELETED: set(),
        }[what]
        state[key] = lasting | new
    if is_update:  # its replay draws from all the rows that may be learnt
        for key, bits in state.items():
            if TOO_OLD in bits:
                state[key] = (bits - {TOO_OLD}) | {MAYBE}
    return state


def _read_as_context(version: Version, few: FewRows) -> Known:
    """A context table is read as it stands: each version has seen every row that came before its ledger's version."""
    ledger, table = version.ledger, few.feed.name
    if table not in ledger.versions:
        return Known(version)
    after, to = ledger.learnt_from.get(table, -1), ledger.versions[table]
    seen = pc.less_equal(few.images["_commit_version"], to)
    keys = few.images.filter(seen)[few.feed.key]
    new = few.images.filter(pc.and_(seen, pc.greater(few.images["_commit_version"], after)))[few.feed.key]
    counts = {name: pc.count_distinct(column).as_py() for name, column in (("all", keys), ("own", new))}
    return Known(
        version, {CONTEXT: counts["own"]} if counts["own"] else {}, {READ: counts["all"]} if counts["all"] else {}
    )


def lineage_of(versions: Mapping[int, Version], number: int) -> Iterator[Version]:
    """A version, its parent, and so on to the base, as far as the registry has them."""
    at: int | None = number
    while at is not None and at in versions:
        yield versions[at]
        at = versions[at].ledger.parent


def in_words(did: Mapping[str, Any]) -> str:
    """Counts as a phrase: `3 taught, 1 held out`."""
    return ", ".join(f"{number:,} {name}" for name, number in did.items() if number)
