"""The graph for TensorFlow Serving, loaded by a process that has nothing of ours, answers as the numpy form does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from models.recommender_service import RecommenderService
from tests.benchmarks.bench_recommend import random_recommender

pytestmark = pytest.mark.slow  # two imports of TensorFlow
ITEMS, K = 200, 15

RUNNER = """
import json, sys
import tensorflow as tf
asked = json.load(open(sys.argv[2]))
model = tf.saved_model.load(sys.argv[1])
def said(name, **given):
    answer = model.signatures[name](k=tf.constant(asked["k"]), **given)
    return {"item_ids": [[one.decode() for one in row] for row in answer["item_ids"].numpy()],
            "scores": answer["scores"].numpy().tolist()}
history = {"history": tf.constant(asked["history"]), "history_days": tf.constant(asked["days"], tf.float32)}
json.dump({
    "serving_default": said("serving_default", **history), "recommend": said("recommend", **history),
    "search": said("search", query_vector=tf.constant(asked["vector"], tf.float32), **history),
    "similar": said("similar", item_id=tf.constant(asked["item"])),
    "ours": [name for name in sys.modules if name.split(".")[0] in ("models", "pipeline")],
}, sys.stdout)
"""


def test_a_saved_model_answers_in_a_fresh_process_as_the_pyfunc(tmp_path: Path) -> None:
    from models.recommender_graph import RecommenderGraph

    draw = np.random.default_rng(5)
    recommender = random_recommender(ITEMS, draw)
    vectors = draw.normal(size=(4, 384)).astype(np.float32)
    at = iter(range(4))
    service = RecommenderService(recommender, lambda: SimpleNamespace(embed=lambda texts: vectors[[next(at)]]))
    histories = [
        [f"item-{item}" for item in draw.integers(0, 30, 40)], ["item-3", "unknown", "item-9", "item-3"], [], ["item-7"]
    ]
    days = [sorted(draw.exponential(20, 40).tolist()), [1.0, 2.0, 3.0, float("nan")], [], [4e9]]
    RecommenderGraph(recommender).save(tmp_path / "1")
    filled = [[*one, *[""] * (40 - len(one))] for one in histories]
    asked = {
        "history": filled, "days": [[*one, *[0.0] * (40 - len(one))] for one in days], "k": K,
        "vector": vectors.tolist(), "item": ["item-3", "unknown"],
    }
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUNNER, str(tmp_path / "1"), str(tmp_path / "asked.json")], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    rows = [{"history": one, "history_days": ages} for one, ages in zip(histories, days, strict=True)]
    wanted = {
        "recommend": [service.one(row, K) for row in rows],
        "search": [service.one({**row, "query": "words"}, K) for row in rows],
        "similar": [service.one({"item_id": item}, K) for item in asked["item"]],
    }
    assert said["serving_default"] == said["recommend"] and said["ours"] == []
    for name, answers in wanted.items():
        for place, (ids, scores) in enumerate(answers):
            np.testing.assert_allclose(said[name]["scores"][place], scores, rtol=1e-3, atol=1e-3, err_msg=name)
            assert sorted(said[name]["item_ids"][place]) == sorted(ids), name
