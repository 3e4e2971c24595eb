"""A lesson: everything that one training job reads, from tables at fixed versions, and the ledger it ends with.

Two kinds: the change since a checkpoint's ledger (an update), and the whole window of history (a retrain).
Both answer the same questions, for any task: what is learnt, what stays out to judge, what is replayed,
and how each row of the table is accounted for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.checkpoint import Ledger, RowCounts
from pipeline.examples import TRAIN, judging_examples, judging_rows, learnable, parts, span_for, without_windows
from pipeline.replay import replayed_examples
from pipeline.schema import FEEDS, TIME
from pipeline.snapshot import Snapshot
from pipeline.tables import text_field
from pipeline.tasks.contract import Examples, MakesExamples, Methods, Task, together
from pipeline.window import HOUR


class NothingToLearn(RuntimeError):
    """The task's table has no row; the message says which table."""


@dataclass(frozen=True)
class Lesson:
    """What one training job reads.

    Attributes:
        context: what the learner must take in before it sees an example.
        arrived: all examples of the change, to be scored before anything learns them; none for a retrain.
        new: what is learnt for the first time in this lineage: the train part of what arrived, and
            validation examples whose span has passed.
        replayed: old examples beside them.
        made: examples that the task makes of both, and that nobody ever had.
        tune: for early stopping.
        gate: for the gate.
        ledger: of the model that has learnt this; its parent is filled in already.
    """

    context: pa.Table
    arrived: Examples
    new: Examples
    replayed: Examples
    tune: Examples
    gate: Examples
    ledger: Ledger
    made: Examples

    @property
    def train(self) -> Examples:
        """New, replayed and made examples, marked."""
        return together(
            self.new.marked(replayed=False), self.replayed.marked(replayed=True), self.made.marked(replayed=False)
        )


def lesson_of_change(
    task: Task, tables: Snapshot, parent: int, ledger: Ledger, start: int, seed: int,
    losses: Callable[[Examples], np.ndarray] | None = None,
) -> Lesson:
    """What the tables gained or lost since the checkpoint of version `parent`, whose ledger is given.

    Args:
        task: what is learnt.
        tables: at the versions up to which is learnt.
        parent: the champion's version.
        ledger: the champion's.
        start: learn the task's table from after this version on; changes between the ledger's version and
            this one were refused for good and are set aside.
        seed: of the replay.
        losses: the champion's loss on each of some examples that it has learnt; only replay by loss asks for it.
    """
    table, known, now = task.table, ledger.versions[task.table], tables.versions[task.table]
    refused = Change(table, tables.lake.changes(table, known, start))
    change = Change(table, tables.lake.changes(table, start, now))
    spans = aside_spans(ledger, refused, (known, start))
    returned = returned_rows(table, tables, {one: spans[one] for one in spans if one in change.windows}, change)
    came = pa.concat_tables([change.came, returned])
    window = max(ledger.window, change.newest_window or ledger.window)
    boundary = max(ledger.joined_until, window + HOUR - timedelta(hours=ledger.span_hours))
    aside = {one: spans[one] for one in spans if one not in change.windows}  # one corrected since counts again
    grown = replace(
        ledger, kind="update", parent=parent, base=parent if ledger.base is None else ledger.base,
        versions=dict(tables.versions), learnt_from={**ledger.versions, table: start}, window=window,
        joined_until=boundary, updates=ledger.updates + 1, set_aside=dict(sorted(aside.items())),
    )
    keys = came[FEEDS[table].key].combine_chunks()
    joining = _joining_rows(task, tables, ledger.joined_until, grown, keys)
    judging = judging_rows(task, tables, boundary, aside)
    for rows in (came, joining, judging):
        tables.expect(table, task.unit_column, rows[task.unit_column])
    arrived, joined = task.examples(tables, came), task.examples(tables, joining)
    new = arrived.keep(learnable(arrived.table["unit"], arrived.table["hour"], boundary))
    schedule = task.update_schedule
    wanted = schedule.replayed_beside(len(new) + len(joined))
    generator = np.random.default_rng([seed, parent, max(now, 0)])
    replayed = replayed_examples(
        task, tables, ledger.joined_until, aside, keys, wanted, generator, schedule.methods, losses
    )
    tune, gate = judging_examples(task, tables, judging)
    own = RowCounts(
        inserted=change.inserted + refused.inserted, updated=change.updated + refused.updated,
        deleted=change.deleted + refused.deleted, taught=new.taught_rows,
        held_out=arrived.taught_rows - new.taught_rows, context=len(came) - arrived.taught_rows,
        set_aside=len(refused.came) - len(returned), joined=joined.taught_rows,
    )
    return Lesson(
        task.context(tables, ledger.versions), arrived, together(new, joined), replayed, tune, gate,
        replace(grown, own_rows=own, rows=ledger.rows.plus(own)),
        _made(task, tables, together(new, joined, replayed), schedule.methods, generator),
    )


def lesson_of_everything(
    task: Task, tables: Snapshot, days: int | None, champion: Ledger | None, seed: int = 0
) -> Lesson:
    """The whole history, or its newest `days`, for a model that starts from the base.

    Args:
        task: what is learnt.
        tables: at the versions up to which is learnt.
        days: rows that happened earlier are context only; None: all are learnt.
        champion: its ledger, where there is one: what it has learnt must not judge, and what was set aside
            and not corrected since stays aside.
        seed: of what is made up.

    Raises:
        NothingToLearn: the task's table is empty.
    """
    key = FEEDS[task.table].key
    rows = tables.arrow(task.table, FEEDS[task.table].table_schema.names).sort_by([(key, "ascending")])
    if not len(rows):
        raise NothingToLearn(
            f"The table {task.table!r} must have rows before task {task.name!r} can be trained; it has none. "
            "Land history and run the ingest (make run shows it), then trigger the retrain again."
        )
    window = pc.max(rows["landed_window"]).as_py()
    end = window + HOUR
    span_hours = span_for(task, tables, end)
    boundary = end - timedelta(hours=span_hours)
    aside: Collection[str] = ()
    if champion is not None:
        boundary = max(boundary, champion.joined_until)
        known, now = champion.versions[task.table], tables.versions[task.table]
        change = Change(task.table, tables.lake.changes(task.table, known, now))
        aside = sorted(set(champion.set_aside) - change.windows)
    counted = without_windows(rows, aside)
    teaching = task.teaching(tables, counted)
    if days is not None:
        teaching = teaching.filter(pc.greater_equal(teaching["hour"], pa.scalar(end - timedelta(days=days), TIME)))
    mask = learnable(teaching[task.unit_column], teaching["hour"], boundary)
    new = task.examples(tables, teaching.filter(pa.array(mask)))
    tune, gate = judging_examples(task, tables, judging_rows(task, tables, boundary, aside))
    own = RowCounts(
        inserted=len(rows), taught=new.taught_rows, held_out=int((~mask).sum()),
        context=len(counted) - len(teaching), set_aside=len(rows) - len(counted),
    )
    ledger = Ledger(
        kind="base" if champion is None else "retrain", parent=None, versions=dict(tables.versions),
        learnt_from=dict.fromkeys(tables.versions, -1), window=window, joined_until=boundary,
        span_hours=span_hours, rows=own, own_rows=own,
        set_aside=dict.fromkeys(aside, ((-1, tables.versions[task.table]),)),
    )
    nothing = new.keep(np.zeros(len(new), bool))
    made = _made(task, tables, new, task.base_schedule.methods, np.random.default_rng(seed))
    return Lesson(task.context(tables, None), nothing, new, nothing, tune, gate, ledger, made)


def _made(
    task: Task, tables: Snapshot, learnt: Examples, methods: Methods, generator: np.random.Generator
) -> Examples:
    if isinstance(task, MakesExamples):
        return task.made(tables, learnt, methods, generator)
    return learnt.take(np.arange(0))


class Change:
    """A net change of a table, by what happened to its rows.

    Attributes:
        inserted, updated, deleted: how many rows.
        came: those inserted or updated, in order of their key.
        went: those deleted.
        windows: the landed windows (ISO 8601) that it touches.
        newest_window: the newest of them; None: it touches none.
    """

    def __init__(self, table: str, changes: pa.Table) -> None:
        """Takes what `Lake.changes` gives."""
        kinds = changes["change"]
        self.inserted = pc.sum(pc.equal(kinds, "insert")).as_py() or 0
        self.updated = pc.sum(pc.equal(kinds, "update")).as_py() or 0
        self.deleted = pc.sum(pc.equal(kinds, "delete")).as_py() or 0
        came = changes.filter(pc.not_equal(kinds, "delete")).drop_columns(["change"])
        self.came = came.sort_by([(FEEDS[table].key, "ascending")])  # a change feed has no order of its own
        self.went = changes.filter(pc.equal(kinds, "delete")).drop_columns(["change"])
        landed = pc.unique(changes["landed_window"]).to_pylist()
        self.windows = {time.isoformat() for time in landed}
        self.newest_window = max(landed, default=None)


def _joining_rows(task: Task, tables: Snapshot, since: datetime, ledger: Ledger, new_keys: pa.Array) -> pa.Table:
    """Validation rows of the hours `[since, ledger.joined_until)`: their span has passed, they are learnt now."""
    rows = task.teaching(tables, tables.rows_from(task.table, since, ledger.joined_until))
    rows = rows.filter(pa.array(parts(rows[task.unit_column], rows["hour"]) != TRAIN))
    rows = rows.filter(pc.invert(pc.is_in(rows[FEEDS[task.table].key], value_set=new_keys)))
    return without_windows(rows, ledger.set_aside)


def aside_spans(ledger: Ledger, refused: Change, span: tuple[int, int]) -> dict[str, Sequence[tuple[int, int]]]:
    """Every window that was refused for good, before or now, with the ranges of versions in which its rows came.

    Args:
        ledger: of the parent.
        refused: what is set aside now.
        span: the range (after, up to) of versions in which that came.
    """
    spans = dict(ledger.set_aside)
    for window in refused.windows:
        spans[window] = (*spans.get(window, ()), span)
    return spans


def returned_rows(
    table: str, tables: Snapshot, back: Mapping[str, Sequence[tuple[int, int]]], change: Change
) -> pa.Table:
    """The rows of windows set aside and corrected now that the correction left as they were: they count again.

    Args:
        table: the task's.
        tables: at the update's versions.
        back: these windows, each with the ranges of versions in which its rows came.
        change: the correction.
    """
    key = FEEDS[table].key
    if not back:
        return change.came.slice(0, 0)
    keys: set[str] = set()
    for span in sorted({tuple(span) for spans in back.values() for span in spans}):
        windows = pa.array([datetime.fromisoformat(one) for one, spans in back.items() if span in spans], TIME)
        came = Change(table, tables.lake.changes(table, *span)).came
        keys.update(came.filter(pc.is_in(came["landed_window"], value_set=windows))[key].to_pylist())
    keys -= set(change.came[key].to_pylist())
    rows = tables.arrow(table, change.came.column_names, text_field(key).isin(pa.array(sorted(keys), pa.string())))
    return rows.sort_by([(key, "ascending")])
