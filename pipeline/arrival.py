"""What landed is scored before anything learns it: rows of the table `quality`, by an update or by the watch.

An update scores what it is about to learn, with the models that it has loaded anyway. Where no update has run (it is
paused, it fails, it waits behind a retrain) the watch scores instead, so that the curve of quality has no hole just
when it matters. That costs it the loading of two learners, and only in such an hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.checkpoint import Ledger
from pipeline.examples import few_of_each_window
from pipeline.lake import Lake
from pipeline.locking import LockNotTaken, locks_of
from pipeline.registry import Registry
from pipeline.schema import FEEDS, QUALITY_SCHEMA, TIME
from pipeline.settings import Settings
from pipeline.snapshot import Snapshot
from pipeline.tasks.catalogue import task_named
from pipeline.tasks.contract import Examples, Scores, Task
from pipeline.unscorable import CannotScore, asking, beyond_the_lake, checkpoint_of

# An update that runs holds the lock and scores the windows itself: nobody waits for it.
_LOCK_PATIENCE_SECONDS = 1.0

# Newer than a hundred hours, so that a bulk load of years that no update has learnt yet does not keep the watch busy.
_MOST_WINDOWS = 100


def quality_rows(
    scores: Scores, scored_on: str, window: datetime, role: str, version: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of `quality` of one model on some examples: a row a metric, in JSON's types, without the challenger."""
    from pipeline.evaluation import interval

    rows = []
    for metric in scores.metrics if len(scores.frame) else ():
        mean, low, high = interval(scores.frame[metric].to_numpy(), scores.frame["unit"].to_numpy(), seed)
        rows.append({
            "scored_on": scored_on, "window": window.isoformat(), "role": role, "model_version": version,
            "metric": metric, "mean": float(mean), "low": float(low), "high": float(high),
            "examples": len(scores.frame),
        })
    return rows


def arrival_rows(
    scores: Scores, arrived: Examples, role: str, version: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of `quality` of one model, for each window in which some of the examples landed."""
    return [
        row for window, part in by_window(scores, arrived).items()
        for row in quality_rows(part, "window", window, role, version, seed)
    ]


def by_window(scores: Scores, arrived: Examples) -> dict[datetime, Scores]:
    """One model's scores on examples, by the window in which these landed, in order."""
    landed = dict(zip(
        arrived.table["example_id"].to_pylist(), arrived.table["landed_window"].to_pylist(), strict=True
    ))
    windows = scores.frame["example_id"].map(landed)
    return {window: Scores(scores.frame[windows == window], scores.metrics) for window in sorted(windows.unique())}


def as_table(rows: Iterable[Mapping[str, Any]], task: str, challenger: int) -> pa.Table:
    """QUALITY_SCHEMA of such rows; `challenger`: whose update scored them, 0: the watch."""
    return pa.Table.from_pylist([
        {**row, "task": task, "window": datetime.fromisoformat(row["window"]), "challenger": challenger}
        for row in rows
    ], schema=QUALITY_SCHEMA)


def score_what_no_update_has(lake: Lake, registry: Registry, task_name: str, settings: Settings) -> list[datetime]:
    """Scores champion, first of its lineage and baseline on windows that landed since, where nothing has scored them.

    Returns:
        the windows that were scored now, in order; none while an update or a retrain of the task runs.

    Raises:
        CannotScore: the champion cannot be asked, or the first of its lineage: then the others' scores are kept.
    """
    try:
        with locks_of(settings.home, settings.lock_url, _LOCK_PATIENCE_SECONDS)(f"learn-{task_name}"):
            return _score(lake, registry, task_name, settings)
    except LockNotTaken:
        return []


def _score(lake: Lake, registry: Registry, task_name: str, settings: Settings) -> list[datetime]:
    champion = registry.champion(task_name)
    if champion is None:
        return []
    task = task_named(task_name, settings, lake)
    ledger = Ledger.of_tags(registry.tags(task_name, champion))
    versions = {table: lake.rows_version(table) for table in (task.table, *task.context_tables)}
    if versions[task.table] < ledger.versions[task.table]:
        raise CannotScore(champion, beyond_the_lake(champion, ledger, task.table, versions[task.table]))
    rows = _unscored(lake, task_name, task.table, ledger, versions[task.table])
    if not len(rows):
        return []
    tables = Snapshot(lake, versions)
    arrived = few_of_each_window(task.examples(tables, rows.sort_by([(FEEDS[task.table].key, "ascending")])))
    if not len(arrived):
        return []
    scores = _scored_by(task, registry, champion, arrived)
    found = arrival_rows(scores, arrived, "champion", champion, settings.seed)
    base = champion if ledger.base is None else ledger.base
    fault = None
    try:
        first = scores if base == champion else _scored_by(task, registry, base, arrived)
        found += arrival_rows(first, arrived, "never_updated", base, settings.seed)
    except CannotScore as error:  # told below: no update can be judged without it
        fault = error
    found += arrival_rows(task.baseline(tables, arrived), arrived, "baseline", 0, settings.seed)
    lake.append("quality", as_table(found, task_name, 0))
    if fault is not None:
        raise fault
    return sorted({datetime.fromisoformat(row["window"]) for row in found})


def _scored_by(task: Task, registry: Registry, version: int, examples: Examples) -> Scores:
    """A version's scores.

    Raises:
        CannotScore: it does not load or does not answer.
    """
    checkpoint = checkpoint_of(registry, task.name, version)
    with asking(version):
        return task.restore(checkpoint.state).score(examples)


def _unscored(lake: Lake, task: str, table: str, ledger: Ledger, newest: int) -> pa.Table:
    """The rows that came since the ledger, of the windows that `quality` has nothing of."""
    if newest <= ledger.versions[table]:
        return FEEDS[table].table_schema.empty_table()
    changes = lake.changes(table, ledger.versions[table], newest)
    came = changes.filter(pc.not_equal(changes["change"], "delete")).drop_columns(["change"])
    held = lake.arrow(
        "quality", columns=["window"], filter=(ds.field("task") == task) & (ds.field("scored_on") == "window")
    )
    missing = sorted(set(pc.unique(came["landed_window"]).to_pylist()) - set(held["window"].to_pylist()))
    return came.filter(pc.is_in(came["landed_window"], pa.array(missing[-_MOST_WINDOWS:], TIME)))
