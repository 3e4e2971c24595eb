"""Recommendations for all users into a Delta table: `python -m pipeline.batch_scoring --task recommend --out PATH`.

For consumers who look answers up instead of asking: a mailing, a cache, a warehouse. One version of the model answers
every user of the lake, or of a table with histories of one's own, in numpy; TensorFlow is not needed. The table has one
row a user: `user_id`, `item_ids`, `scores`, `model_version`.

Users are dealt into buckets by a hash of their id. Each bucket is replaced in one commit, which carries the number of
the run as Delta's application transaction: a run that was killed goes on with the buckets that lack it, on the same
version of the model and of the data, so no row is doubled or lost. While a run goes on, a reader sees buckets of two
runs, never half a bucket. A user who has left the source leaves the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from pipeline.lake import Lake, open_lake
from pipeline.locking import LockNotTaken, locks_of
from pipeline.registry import open_registry
from pipeline.registry_errors import PREFIX, RegistryError
from pipeline.settings import Settings, SettingsError, read_settings
from pipeline.snapshot import Snapshot
from pipeline.stores import tree_at
from pipeline.tables import LakeError

if TYPE_CHECKING:
    import ibis.expr.types as ir

BUCKETS = 64  # of a million users 16,000 each: a second's work and 5 MB a commit
_AT_ONCE = 4_096  # users whose answers are one Arrow batch: what is in memory beside the histories
_NOTE, _BUCKETS = "evergreen.batch", "evergreen.buckets"
_LOCK_PATIENCE_SECONDS = 1.0  # another run into the same table goes on for minutes
SCHEMA = pa.schema([
    pa.field("user_id", pa.string(), nullable=False),
    pa.field("item_ids", pa.list_(pa.string())),  # best first
    pa.field("scores", pa.list_(pa.float32())),
    pa.field("model_version", pa.int64(), nullable=False),
    pa.field("bucket", pa.int32(), nullable=False),
])
Answers = Callable[[Sequence[Mapping[str, Any]]], tuple[np.ndarray, np.ndarray]]
Progress = Callable[[int, int], None]


class BatchRefused(RuntimeError):
    """Users cannot be scored as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Run:
    """What one run answers with and for whom.

    Attributes:
        number: of the runs into the table, from 1.
        version: of the model.
        source: `lake`, or the address of a table of users.
        source_version: of the events, or of that table; of files a hash of their names, sizes and times.
        k: items a user.
        exclude_history: whether what a user has bought is left out.
    """

    number: int
    version: int
    source: str
    source_version: str
    k: int
    exclude_history: bool


@dataclass(frozen=True)
class Scored:
    """What a run did.

    Attributes:
        run: which.
        users: scored now.
        seconds: that took.
        buckets_before: had been scored by the same run before it was killed.
    """

    run: Run
    users: int
    seconds: float
    buckets_before: int


def score_lake(
    settings: Settings, out: str, version: int, *, users: str | None = None, k: int = 20,
    exclude_history: bool = False, buckets: int = BUCKETS, progress: Progress = lambda done, whole: None,
) -> Scored:
    """Scores all users with a registered version of `recommend`.

    Args:
        settings: of the installation.
        out: path or URL of the Delta table.
        version: of the model.
        users: a Parquet or Delta table of users; None: those of the lake who have bought something.
        k: items a user.
        exclude_history: whether what a user has bought is left out.
        buckets: of a table that is not there yet.
        progress: told users done and users in all after each bucket.

    Raises:
        BatchRefused: a table that cannot be read or written so, or another run into the same one.
    """
    lake, source = open_lake(settings), users or "lake"
    wanted = Run(0, version, source, source_version(lake, users), k, exclude_history)
    lock = locks_of(settings.home, settings.lock_url, _LOCK_PATIENCE_SECONDS)
    try:
        with (
            lock("batch-" + hashlib.sha256(out.encode()).hexdigest()[:16]),
            tempfile.TemporaryDirectory(prefix="evergreen-") as scratch,
        ):
            return score_users(lake, out, wanted, lambda run: _answers_of(settings, run, scratch), buckets, progress)
    except LockNotTaken as error:
        raise BatchRefused(f"Another run writes {out} now: wait for its end, or name another --out. {error}") from error


def score_users(
    lake: Lake | None, out: str, wanted: Run, answers_of: Callable[[Run], Answers], buckets: int = BUCKETS,
    progress: Progress = lambda done, whole: None,
) -> Scored:
    """Scores what the last run left, where it asks for the same and is not through; else everything, in a new run.

    Args:
        lake: whose users are meant by the source `lake`.
        out: path or URL of the Delta table, into which nobody else writes now.
        wanted: what is asked for; its number is not looked at.
        answers_of: run -> what answers rows with `history` and `history_days`: ids [users, k] and scores [users, k].
        buckets: of a table that is not there yet.
        progress: told users done and users in all after each bucket.
    """
    table = _opened(out, buckets)
    buckets, run = _buckets_of(table), _continued(table, wanted)
    histories, answers = _histories(lake, run, buckets), answers_of(run)
    counts = histories.users_by_bucket()
    done = {bucket for bucket in range(buckets) if table.transaction_version(_app(bucket)) == run.number}
    started, scored, whole = time.monotonic(), 0, sum(counts.values())
    before = sum(counts.get(bucket, 0) for bucket in done)
    progress(before, whole)
    for bucket in range(buckets):
        if bucket not in done:
            _replace(table, run, bucket, histories.batches(bucket), answers)
            scored += counts.get(bucket, 0)
            progress(before + scored, whole)
    return Scored(run, scored, time.monotonic() - started, len(done))


def _replace(table: DeltaTable, run: Run, bucket: int, users: Iterator[pa.RecordBatch], answers: Answers) -> None:
    """Replaces a bucket in one commit that says so: who comes after a kill leaves it."""
    rows = pa.RecordBatchReader.from_batches(SCHEMA, (_scored(batch, run, bucket, answers) for batch in users))
    note = CommitProperties(
        custom_metadata={_NOTE: json.dumps(asdict(run))}, app_transactions=[Transaction(_app(bucket), run.number)]
    )
    write_deltalake(table, rows, mode="overwrite", predicate=f"bucket = {bucket}", commit_properties=note)


def _scored(batch: pa.RecordBatch, run: Run, bucket: int, answers: Answers) -> pa.RecordBatch:
    ids, scores = answers(batch.select(["history", "history_days"]).to_pylist())
    there = np.isfinite(scores)
    offsets = pa.array(np.concatenate([[0], there.sum(axis=1).cumsum()]), pa.int32())
    count = len(batch)
    return pa.record_batch([
        batch["user_id"].cast(pa.string()),
        pa.ListArray.from_arrays(offsets, pa.array(ids[there], pa.string())),
        pa.ListArray.from_arrays(offsets, pa.array(scores[there], pa.float32())),
        pa.array(np.full(count, run.version)), pa.array(np.full(count, bucket, np.int32)),
    ], schema=SCHEMA)


class Histories:
    """Users with what they bought, by bucket, read once into DuckDB (which spills to disk what memory cannot hold)."""

    def __init__(self, connection: Any, users: ir.Table, buckets: int) -> None:
        """Takes a DuckDB connection of Ibis and `user_id`, `history` (newest first), `history_days`."""
        dealt = users.mutate(bucket=(_md5_number_lower(users.user_id) % buckets).cast("int32"))
        self._users = connection.create_table("histories", dealt, temp=True)

    def users_by_bucket(self) -> dict[int, int]:
        """How many users each bucket has."""
        counted = self._users.group_by("bucket").agg(users=self._users.count()).to_pyarrow()
        return dict(zip(counted["bucket"].to_pylist(), counted["users"].to_pylist(), strict=True))

    def batches(self, bucket: int) -> Iterator[pa.RecordBatch]:
        """A bucket's users, those with like many purchases together, because a batch is as wide as its longest."""
        users = self._users.filter(self._users.bucket == bucket)
        ordered = users.order_by(users.history.length(), users.user_id).drop("bucket")
        return iter(ordered.to_pyarrow().combine_chunks().to_batches(max_chunksize=_AT_ONCE))


def _md5_number_lower(text: ir.Value) -> Any:
    """DuckDB's: the lower half of a text's MD5, the same on every machine and in every version."""
    import ibis

    @ibis.udf.scalar.builtin(name="md5_number_lower", signature=(("string",), "uint64"))
    def number(text: Any) -> Any:
        """Declared here, computed by DuckDB."""

    return number(text)


def _histories(lake: Lake | None, run: Run, buckets: int) -> Histories:
    from pipeline.engine import duckdb_connection

    connection = duckdb_connection()
    if lake is None or run.source != "lake":
        return Histories(connection, _named_users(connection, run), buckets)
    tables = Snapshot(lake, {"events": int(run.source_version)})
    return Histories(connection, _buyers(connection, tables), buckets)


def _buyers(connection: Any, tables: Snapshot) -> ir.Table:
    """The users of the lake who chose something, days counted from the newest event.

    Items of one moment stand as they stood in training (recommend_examples.py): their place is a feature.
    """
    import ibis

    from pipeline.tasks.recommend_examples import target_types

    events = tables.ibis(connection, "events")
    newest = events.event_time.max().as_scalar()
    chosen = events.filter(
        events.event_type.isin(target_types(tables)), events.user_id.notnull(), events.item_id.notnull()
    )
    chosen = chosen.mutate(
        days=(newest.epoch_seconds() - chosen.event_time.epoch_seconds()) / 86400.0,
        times=chosen.count().over(ibis.window(group_by=["user_id", "item_id"])),
    )
    order = [chosen.days.asc(), chosen.times.desc(), chosen.item_id.asc()]
    return chosen.group_by("user_id").agg(
        history=chosen.item_id.collect(order_by=order), history_days=chosen.days.collect(order_by=order)
    )


def _named_users(connection: Any, run: Run) -> ir.Table:
    """A table of users: `user_id`, `history`, and `history_days` where it has them.

    Raises:
        BatchRefused: a column is missing, or a user stands there twice.
    """
    import ibis

    source = run.source
    if _is_delta(source):
        dataset = DeltaTable(source, version=int(run.source_version)).to_pyarrow_dataset(filesystem=tree_at(source))
    else:
        dataset = ds.dataset(source, format="parquet")
    missing = {"user_id", "history"} - set(dataset.schema.names)
    if missing:
        raise BatchRefused(
            f"A table of users must have the columns user_id and history (a list of item ids, newest first); {source} "
            f"has {', '.join(dataset.schema.names)}. Add {', '.join(sorted(missing))}."
        )
    connection.con.register("named_users", dataset)
    users = connection.table("named_users")
    days = users.history_days if "history_days" in users.columns else ibis.literal([], type="array<float64>")
    users = users.select(user_id=users.user_id.cast("string"), history=users.history, history_days=days)
    users = users.filter(users.user_id.notnull())
    twice = users.count().execute() - users.user_id.nunique().execute()
    if twice:
        raise BatchRefused(f"A table of users must have one row a user; {source} has {twice:,} rows too many.")
    return users


def _is_delta(source: str) -> bool:
    return not Path(source).is_file() and bool(DeltaTable.is_deltatable(source))


def source_version(lake: Lake, users: str | None) -> str:
    """Which state of the source a run reads: see `Run`.

    Raises:
        BatchRefused: there is no such table.
    """
    if users is None:
        return str(lake.version("events"))
    if _is_delta(users):
        return str(DeltaTable(users).version())
    path = Path(users)
    if not path.exists():
        raise BatchRefused(f"--users must be a Parquet file, a folder of them or a Delta table; {users} is not there.")
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    told = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


# -- the table ------------------------------------------------------------------------------------------------


def _app(bucket: int) -> str:
    return f"evergreen-batch-{bucket}"


def _opened(out: str, buckets: int) -> DeltaTable:
    """The table, made where there is none."""
    if not DeltaTable.is_deltatable(out):
        DeltaTable.create(
            out, SCHEMA, mode="ignore", partition_by=["bucket"], configuration={_BUCKETS: str(buckets)},
            raise_if_key_not_exists=False,
        )
    table = DeltaTable(out)
    if _BUCKETS not in table.metadata().configuration:
        raise BatchRefused(f"--out must be a table of earlier runs, or not there yet; {out} is another table.")
    return table


def _buckets_of(table: DeltaTable) -> int:
    return int(table.metadata().configuration[_BUCKETS])


def _continued(table: DeltaTable, wanted: Run) -> Run:
    """The last run where it asks for the same and is not through, else one with a number that no bucket has had."""
    numbers = [table.transaction_version(_app(bucket)) or 0 for bucket in range(_buckets_of(table))]
    anew, held = Run(**{**asdict(wanted), "number": max(numbers) + 1}), _last_run(table)
    if held is None or held.number != max(numbers) or set(numbers) == {held.number}:
        return anew
    free = {"number", *(("source_version",) if wanted.source == "lake" or _is_delta(wanted.source) else ())}
    same = all(getattr(held, name) == value for name, value in asdict(wanted).items() if name not in free)
    return held if same else anew


def _last_run(table: DeltaTable) -> Run | None:
    """The run of the newest commit that is one of a run: others vacuum the table and put its files together."""
    for most in (1, None):  # the whole history, of 64 commits a run, only where it must be
        for commit in table.history(most):
            if _NOTE in commit:
                return Run(**json.loads(commit[_NOTE]))
    return None


def _answers_of(settings: Settings, run: Run, scratch: str) -> Answers:
    """The answers of the model, which is downloaded into a folder, to users, many at once."""
    import mlflow

    mlflow.set_tracking_uri(settings.tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/{PREFIX}recommend/{run.version}", dst_path=scratch)
    service = model.unwrap_python_model().service
    if not hasattr(service, "many"):
        raise BatchRefused(f"Version {run.version} is of code that answers users one by one; take a newer version.")
    return cast("Answers", lambda rows: service.many(rows, run.k, run.exclude_history))


# -- the command line -----------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Scores all users; returns the process's exit status."""
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TimeRemainingColumn

    parser = argparse.ArgumentParser(
        prog="python -m pipeline.batch_scoring", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", choices=["recommend"], default="recommend", help="whose model answers (%(default)s)")
    parser.add_argument("--out", required=True, metavar="PATH", help="the Delta table, made or brought up to date")
    parser.add_argument("--users", metavar="PATH", help="a Parquet or Delta table with user_id, history and perhaps "
                        "history_days (default: who has bought something, from the lake)")
    parser.add_argument("--version", type=int, help="of the model (default: the champion)")
    parser.add_argument("--k", type=int, default=20, help="items a user (%(default)s)")
    parser.add_argument("--exclude-history", action="store_true", help="leave out what a user has bought")
    parser.add_argument("--buckets", type=int, default=BUCKETS, help="commits a run, of a new table (%(default)s)")
    chosen = parser.parse_args(arguments)
    console, errors = Console(), Console(stderr=True, soft_wrap=True)
    try:
        settings = read_settings()
        version = chosen.version or open_registry(settings).champion(chosen.task)
        if version is None:
            raise BatchRefused(f"{PREFIX}{chosen.task} has no champion yet: run the DAG retrain_{chosen.task} first.")
        with Bar(*Bar.get_default_columns()[:-1], TimeRemainingColumn(), console=errors) as bar:
            line = bar.add_task(f"version {version}", total=None)
            done = score_lake(
                settings, chosen.out, version, users=chosen.users, k=chosen.k, exclude_history=chosen.exclude_history,
                buckets=chosen.buckets, progress=lambda users, whole: bar.update(line, completed=users, total=whole),
            )
    except (BatchRefused, RegistryError, SettingsError, LakeError) as error:
        errors.print(str(error), style="red", highlight=False, markup=False)
        return 1
    before = f", after {done.buckets_before} buckets done before it was stopped" if done.buckets_before else ""
    console.print(
        f"{done.users:,} users in {done.seconds:.1f} s, {done.users / max(done.seconds, 1e-9):,.0f} a second, with "
        f"version {done.run.version}, run {done.run.number}{before}: {chosen.out}", highlight=False, soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
