"""Replay: old examples mixed into an update, so that a model that learns an hour keeps what it knew.

Rehearsal against forgetting is as old as Robins (1995, Connection Science 7(2)); for recommenders ADER
(Mi, Lin and Faltings, RecSys 2020) replays exemplars beside each period's new sessions. Here old examples
are drawn from the table itself at the update's version, so that nothing has to be stored with a checkpoint,
a row that was corrected is replayed as corrected, and one that was deleted is not replayed at all.

By default all that was learnt is drawn from evenly. `Methods.replay` may prefer recent days, as shops do whose old
seasons teach little, or examples that the champion answers badly, as in importance sampling by loss (Katharopoulos
and Fleuret, ICML 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.examples import learnable, without_windows
from pipeline.schema import FEEDS
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples, Methods, Task

# Whole days are read until they hold this many rows for each example wanted: the cost follows the size of the
# update, not of history. A shop of views and purchases has about ten rows to one that teaches.
_ROWS_READ_PER_EXAMPLE = 30
_DRAWN_PER_KEPT = 2  # of the examples drawn for replay by loss the worse half stays


def replayed_examples(
    task: Task, tables: Snapshot, joined_until: datetime, set_aside: Collection[str], new_keys: pa.Array, wanted: int,
    generator: np.random.Generator, methods: Methods, losses: Callable[[Examples], np.ndarray] | None = None,
) -> Examples:
    """`wanted` old examples (fewer where there are not as many), drawn from what was learnt before.

    Args:
        task: whose examples.
        tables: at the update's versions.
        joined_until: the champion's: validation rows of this hour and later it has not learnt.
        set_aside: landed windows (ISO 8601) that stay out.
        new_keys: keys of the rows that the update learns anyway.
        wanted: how many.
        generator: the draw is the same for the same state of it.
        methods: says by `replay` what is preferred.
        losses: the champion's, of each of some examples; replay by loss needs them.
    """
    if methods.replay != "loss":
        return _drawn(task, tables, joined_until, set_aside, new_keys, wanted, generator, methods)
    if losses is None:
        raise ValueError(
            "Replay by loss must be given the champion's losses; it got none. Pass `losses` to lesson_of_change."
        )
    several = _drawn(
        task, tables, joined_until, set_aside, new_keys, _DRAWN_PER_KEPT * wanted, generator, methods
    )
    if len(several) <= wanted:
        return several
    return several.take(np.sort(np.argsort(-losses(several), kind="stable")[:wanted]))


def _drawn(
    task: Task, tables: Snapshot, joined_until: datetime, set_aside: Collection[str], new_keys: pa.Array, wanted: int,
    generator: np.random.Generator, methods: Methods,
) -> Examples:
    mean_life_days = methods.replay_mean_life_days if methods.replay == "recent" else None
    rows = _some_days(task, tables, wanted * _ROWS_READ_PER_EXAMPLE, generator, mean_life_days)
    rows = task.teaching(tables, rows)
    rows = rows.filter(pc.invert(pc.is_in(rows[FEEDS[task.table].key], value_set=new_keys)))
    rows = without_windows(rows, set_aside)
    rows = rows.filter(pa.array(learnable(rows[task.unit_column], rows["hour"], joined_until)))
    examples = task.examples(tables, _some_moments(task, rows, wanted, generator))
    if len(examples) <= wanted:
        return examples
    return examples.take(np.sort(generator.permutation(len(examples))[:wanted]))


def _some_days(
    task: Task, tables: Snapshot, rows_wanted: int, generator: np.random.Generator, mean_life_days: float | None
) -> pa.Table:
    days = tables.rows_by_day(task.table)
    if mean_life_days is None:
        order = generator.permutation(len(days))
    else:
        order = _recent_first(days["landed_date"].cast(pa.date32()).to_numpy(), mean_life_days, generator)
    enough = int(np.searchsorted(np.cumsum(days["count_all"].to_numpy()[order]), rows_wanted)) + 1
    chosen = days["landed_date"].combine_chunks().take(pa.array(order[:enough]))
    rows = tables.arrow(task.table, filter=ds.field("landed_date").isin(chosen))
    return rows.sort_by([(FEEDS[task.table].key, "ascending")])


def _recent_first(dates: np.ndarray, mean_life_days: float, generator: np.random.Generator) -> np.ndarray:
    """A random order of days [n]: each is the next with weight exp(-age / mean life).

    Sorting by exponential variables over their weights draws without putting back (Efraimidis and Spirakis 2006);
    their logarithms do not overflow.
    """
    if not len(dates):
        return np.zeros(0, np.int64)
    ages = (dates.max() - dates).astype("timedelta64[D]").astype(float)
    return np.argsort(np.log(generator.exponential(size=len(dates))) + ages / mean_life_days, kind="stable")


def _some_moments(task: Task, rows: pa.Table, wanted: int, generator: np.random.Generator) -> pa.Table:
    """All rows of `wanted` pairs of unit and hour: enough for as many examples, since a pair has at least one."""
    pairs = pc.binary_join_element_wise(
        rows[task.unit_column], pc.cast(pc.cast(rows["hour"], pa.int64()), pa.string()), "|"
    ).combine_chunks()
    distinct = pc.unique(pairs).sort()
    chosen = distinct.take(pa.array(generator.permutation(len(distinct))[:wanted]))
    return rows.filter(pc.is_in(pairs, value_set=chosen))
