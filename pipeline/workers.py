"""A retrain by several workers: processes that each read their own shard and make every step together.

The job writes the grown learner and one shard of the training examples for each worker into a folder, starts the
workers, and takes up the state that the first of them leaves: they end equal, bit for bit, and within float error where
one process alone would (models/workers.py, pipeline/tasks/recommend_shares.py say how). Processes of their own, because
TensorFlow can join others only before its first use, and the job has used it already to score the champion.

Updates are too short for this: an hour is learnt in seconds. A worker that dies ends the job, and a job that dies its
workers; the job is then run again from its start, as any killed job is, and removes what that one left.

A worker: `python -m pipeline.workers FOLDER`, with TF_CONFIG.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.checkpoint import load_state, save_state
from pipeline.settings import REPOSITORY, Settings, read_settings
from pipeline.tasks.contract import Examples, Learner, Methods, Schedule, Sharable, State, Task
from pipeline.training import Trained, fine_tune

Report = Callable[[str], None]

_LOOK_SECONDS = 0.2
_TOLD = 2000  # characters of a failed worker's last words


class WorkersFailed(RuntimeError):
    """A worker ended before the training did; the message has its last words."""


def train_with(
    settings: Settings, task: Task, learner: Learner, train: Examples, tune: Examples, schedule: Schedule, *,
    seed: int, report: Report,
) -> Trained:
    """`fine_tune` by as many workers as the settings say; by this process alone where the learner is not sharable.

    Raises:
        WorkersFailed: one of them failed, as by a loss that is no longer a number.
        TrainingDiverged: the same in this process.
    """
    if settings.workers == 1 or not isinstance(learner, Sharable) or len(train) < settings.workers:
        return fine_tune(learner, task.restore, train, tune, schedule, seed=seed, report=report)
    started = time.monotonic()
    place = settings.home / "training" / task.name
    shutil.rmtree(place, ignore_errors=True)  # of a job that was killed: one at a time trains a task
    place.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        folder = Path(scratch)
        _write_job(folder, task.name, learner, train, tune, schedule, seed, settings.workers)
        report(f"{settings.workers} workers train on {len(train)} examples")
        _run(folder, settings)
        done = json.loads((folder / "trained.json").read_text())
        for line in done["lines"]:
            report(line)
        return Trained(
            task.restore(load_state(folder / "trained")), done["steps"], done["best_epoch"],
            tuple(done["tuning_losses"]), time.monotonic() - started,
        )


def shard(examples: Examples, rank: int, size: int) -> Examples:
    """The examples that are worker `rank`'s of `size`."""
    return examples.take(np.arange(rank, len(examples), size))


def _write_job(
    folder: Path, task: str, learner: Any, train: Examples, tune: Examples, schedule: Schedule, seed: int, size: int
) -> None:
    save_state(learner.state(), folder / "state")
    np.savez(folder / "outline.npz", **learner.outline(train))
    for rank in range(size):
        _write_examples(shard(train, rank, size), folder / f"train-{rank}.arrow")
    _write_examples(tune, folder / "tune.arrow")
    job = {"task": task, "seed": seed, "examples": len(train), "schedule": asdict(schedule)}
    (folder / "job.json").write_text(json.dumps(job))


def _run(folder: Path, settings: Settings) -> None:
    """Starts the workers and waits for their end; where one fails, none goes on."""
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(settings.workers)]
    with ExitStack() as stack:
        processes = []
        for rank in range(settings.workers):
            log = stack.enter_context((folder / f"log-{rank}.txt").open("wb"))
            processes.append(subprocess.Popen(
                [sys.executable, "-m", "pipeline.workers", str(folder)], stdout=log, stderr=subprocess.STDOUT,
                env=_environment(settings, addresses, rank), cwd=REPOSITORY,
            ))
            stack.callback(_end, processes[-1])
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break
            time.sleep(_LOOK_SECONDS)
        for rank, process in enumerate(processes):
            if process.poll():
                words = (folder / f"log-{rank}.txt").read_text(errors="replace")[-_TOLD:]
                raise WorkersFailed(
                    f"All {settings.workers} workers must end well; worker {rank} ended with {process.poll()}: {words} "
                    "Run the retrain again; EVERGREEN_WORKERS=1 trains in one process."
                )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _environment(settings: Settings, addresses: Sequence[str], rank: int) -> dict[str, str]:
    cluster = {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": rank}}
    threads = max(1, (os.cpu_count() or 1) // len(addresses))
    return {
        **os.environ, "TF_CONFIG": json.dumps(cluster), "TF_NUM_INTRAOP_THREADS": str(threads),
        "EVERGREEN_HOME": str(settings.home), "EVERGREEN_LAKE": settings.lake, "EVERGREEN_ENCODER": settings.encoder,
        "EVERGREEN_MASK_KEY": settings.mask_key,
    }


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _write_examples(examples: Examples, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, examples.table.schema) as writer:
        writer.write_table(examples.table)


def _read_examples(path: Path) -> Examples:
    with pa.memory_map(str(path)) as source:
        return Examples(pa.ipc.open_file(source).read_all())


# -- a worker ------------------------------------------------------------------------------------------------


def work(folder: Path, settings: Settings) -> None:
    """Trains on this worker's shard of the job in `folder`; the first worker writes what all have learnt."""
    job = json.loads((folder / "job.json").read_text())
    from models.workers import Workers

    workers = Workers()  # before anything else uses TensorFlow
    from pipeline.lake import open_lake
    from pipeline.tasks.catalogue import task_named

    task = task_named(job["task"], settings, open_lake(settings))
    with np.load(folder / "outline.npz") as held:
        outline: Mapping[str, np.ndarray] = dict(held)

    def restore(state: State) -> Learner:
        learner: Any = task.restore(state)
        learner.join(workers, outline)
        return learner

    lines: list[str] = []
    trained = fine_tune(
        restore(load_state(folder / "state")), restore, _read_examples(folder / f"train-{workers.rank}.arrow"),
        _read_examples(folder / "tune.arrow"), _schedule(job["schedule"]), seed=job["seed"], report=lines.append,
        examples=job["examples"],
    )
    if workers.rank == 0:
        save_state(trained.learner.state(), folder / "trained")
        (folder / "trained.json").write_text(json.dumps({
            "steps": trained.steps, "best_epoch": trained.best_epoch, "tuning_losses": trained.tuning_losses,
            "lines": lines,
        }))


def _schedule(record: Mapping[str, Any]) -> Schedule:
    return Schedule(**{**record, "methods": Methods(**record["methods"])})


def _end_with(parent: int) -> None:
    """Ends this process once the job that started it is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Is a worker until the training is done; returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.workers",
        description="Is one worker of a retrain, which starts its workers itself where EVERGREEN_WORKERS is above 1.",
    )
    parser.add_argument("folder", type=Path, help="the job, as the retrain has written it")
    folder = parser.parse_args(arguments).folder
    if not (folder / "job.json").is_file():
        parser.error(f"folder must hold a retrain's job.json; received {folder}. Start the retrain instead.")
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    work(folder, read_settings())
    return 0


if __name__ == "__main__":
    sys.exit(main())
