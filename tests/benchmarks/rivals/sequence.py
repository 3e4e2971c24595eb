"""SASRec of RecTools, run in an environment of its own: the sequence model that a team would train every night.

RecTools is the package on PyPI with a current, maintained SASRec (0.19.0 of June 2026). It needs torch and an older
numpy, which our environment must not get: `sequence_worker.py` runs in `.venv-rivals`, and the tables go through a
temporary folder. Trained from scratch at every step, since its item ids cannot grow.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.rivals.exchange import RANKED_ITEMS, Ranked

_WORKER = Path(__file__).with_name("sequence_worker.py")
_LOCK = _WORKER.with_name("requirements.lock")
PYTHON = _WORKER.parents[3] / ".venv-rivals" / "bin" / "python"


def rank_both(
    train: pa.Table, tests: pa.Table, catalogue: Sequence[str], seed: int, kept: Path
) -> tuple[Ranked, Ranked]:
    """Ranks `catalogue` by SASRec trained on `train`: with and without what the history holds, from one training.

    The child's start and imports (some seconds of CPU) count as training, as they would every night. A training takes
    minutes: its answers and costs are kept below `kept` under a hash of everything that they come from, and taken from
    there by a run that was stopped and is started again.
    """
    if not PYTHON.exists():
        raise FileNotFoundError(
            f"the sequence recommender runs in an environment of its own, and {PYTHON} is not there: "
            "make it with `make bench-rivals-env`"
        )
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="training-", dir=kept) as name:
        folder = Path(name)
        pq.write_table(train, folder / "train.parquet")
        pq.write_table(tests, folder / "tests.parquet")
        pq.write_table(pa.table({"item": pa.array(catalogue, pa.string())}), folder / "catalogue.parquet")
        done = kept / _hash_of([*sorted(folder.iterdir()), _WORKER, _LOCK], seed)
        if not done.is_dir():
            before = _children_cpu_s()
            _run(folder, seed)
            cost = json.loads((folder / "cost.json").read_text()) | {"spent_cpu_s": _children_cpu_s() - before}
            (folder / "cost.json").write_text(json.dumps(cost))
            folder.rename(done)
            folder.mkdir()  # for its context, which takes it away
    cost = json.loads((done / "cost.json").read_text())
    answers = pq.read_table(done / "ranked.parquet")
    train_cpu_s = cost["spent_cpu_s"] - cost["rank_cpu_s"] - cost["new_rank_cpu_s"]
    return (
        Ranked(_in_columns(answers["items"]), train_cpu_s, cost["rank_cpu_s"]),
        Ranked(_in_columns(answers["new_items"]), train_cpu_s, cost["new_rank_cpu_s"]),
    )


def _hash_of(files: Sequence[Path], seed: int) -> str:
    told = hashlib.blake2b(str(seed).encode(), digest_size=16)
    for file in files:
        told.update(file.read_bytes())
    return told.hexdigest()


def _in_columns(answers: pa.ChunkedArray) -> np.ndarray:
    items = np.full((len(answers), RANKED_ITEMS), None, object)
    for row, answer in enumerate(answers.to_pylist()):
        items[row, : len(answer)] = answer
    return items


def _run(folder: Path, seed: int) -> None:
    # libgomp's threads otherwise spin while they wait: on a busy machine 28 CPU-seconds an epoch instead of 3.6
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    command = [str(PYTHON), "-I", str(_WORKER), str(folder), str(seed)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{child.stderr[-4000:]}")


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
