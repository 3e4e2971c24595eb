"""SASRec of RecTools, run in an environment of its own: the sequence model that a team would train every night.

RecTools is the package on PyPI with a current, maintained SASRec (0.19.0 of June 2026). It needs torch and an older
numpy, which our environment must not get: `sequence_worker.py` runs in `.venv-rivals`, and the tables go through a
temporary folder. Trained from scratch at every step, since its item ids cannot grow.
"""

from __future__ import annotations

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
PYTHON = _WORKER.parents[3] / ".venv-rivals" / "bin" / "python"


def rank_both(
    train: pa.Table, tests: pa.Table, catalogue: Sequence[str], seed: int
) -> tuple[Ranked, Ranked]:
    """Ranks `catalogue` by SASRec trained on `train`: with and without what the history holds, from one training.

    The child's start and imports (some seconds of CPU) count as training, as they would every night.
    """
    if not PYTHON.exists():
        raise FileNotFoundError(
            f"the sequence recommender runs in an environment of its own, and {PYTHON} is not there: "
            "make it with `make bench-rivals-env`"
        )
    with tempfile.TemporaryDirectory(prefix="evergreen-rival-") as name:
        folder = Path(name)
        pq.write_table(train, folder / "train.parquet")
        pq.write_table(tests, folder / "tests.parquet")
        pq.write_table(pa.table({"item": pa.array(catalogue, pa.string())}), folder / "catalogue.parquet")
        before = _children_cpu_s()
        _run(folder, seed)
        spent = _children_cpu_s() - before
        cost = json.loads((folder / "cost.json").read_text())
        answers = pq.read_table(folder / "ranked.parquet")
    train_cpu_s = spent - cost["rank_cpu_s"] - cost["new_rank_cpu_s"]
    return (
        Ranked(_in_columns(answers["items"]), train_cpu_s, cost["rank_cpu_s"]),
        Ranked(_in_columns(answers["new_items"]), train_cpu_s, cost["new_rank_cpu_s"]),
    )


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
