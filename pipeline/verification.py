"""Whether a model version loads and answers as it did when it was trained, asked as a consumer would.

A fresh process in an empty folder, with nothing of this project on its path: what the registry holds must work
anywhere (DESIGN.md, decision 11), and what does not must not serve.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# TensorFlow's import and the answers take up to 22 s here; ten times that is a hang.
_VERIFY_SECONDS = 300

# Two answers to the same rows may differ by the order of float32 sums, and not by more.
_ANSWER_TOLERANCE = 1e-3

# All that a consumer does: nothing of this project is imported by it.
_CONSUMER = """
import sys, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
model.predict(model.input_example).to_json(sys.argv[2], orient="split")
"""


def fault_of(model: str, tracking_uri: str, wanted: Any) -> str | None:
    """What happened instead of the wanted answer; None where the model answered its input example as wanted.

    Args:
        model: MLflow's address of it, `models:/<name>/<version>`.
        tracking_uri: of the registry.
        wanted: the answer when it was trained, as parsed JSON (pandas' `split`).
    """
    with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
        answer = Path(scratch) / "answer.json"
        told = {
            "MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_REGISTRY_URI": tracking_uri,
            "TMPDIR": scratch,  # MLflow never removes the model that it downloads
        }
        others = {name: value for name, value in os.environ.items() if name != "EVERGREEN_MODEL_CACHE"}
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _CONSUMER, model, str(answer)],
                env={**others, **told}, cwd=scratch, capture_output=True, text=True, timeout=_VERIFY_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it took longer than {_VERIFY_SECONDS} s."
        if done.returncode:
            return f"the process ended with {done.returncode}: {done.stderr.strip()[-1_500:]}\n"
        given = json.loads(answer.read_text())
    return None if same_answer(wanted, given) else f"it answered {str(given)[:500]}."


def same_answer(wanted: Any, given: Any) -> bool:
    """Whether two answers agree: the same shape, and numbers within the tolerance.

    Texts are not compared: items of all but equal score may change places between two processes.
    """
    if isinstance(wanted, Mapping):
        return isinstance(given, Mapping) and wanted.keys() == given.keys() and all(
            same_answer(wanted[key], given[key]) for key in wanted
        )
    if isinstance(wanted, list):
        return isinstance(given, list) and len(wanted) == len(given) and all(map(same_answer, wanted, given))
    if isinstance(wanted, (int, float)) and isinstance(given, (int, float)):
        return abs(wanted - given) <= _ANSWER_TOLERANCE * max(1.0, abs(wanted))
    return type(wanted) is type(given)
