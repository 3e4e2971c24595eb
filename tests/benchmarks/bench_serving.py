"""The consumer's side in figures, written to results/serving.json: `make bench-serving`.

A small shop with the real text encoder and two versions in a real registry. Servers are processes of their own, the
load comes from locust, and what is compared is asked in turns in one run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from models.compact_recommender import CompactRecommender
from pipeline import updating
from pipeline.batch_scoring import score_lake
from pipeline.checkpoint import load
from pipeline.lake import open_lake
from pipeline.lesson import lesson_of_everything
from pipeline.registry import Registry, open_registry
from pipeline.settings import REPOSITORY, Settings
from pipeline.snapshot import Snapshot
from pipeline.tasks.catalogue import task_named
from tests.small_shop import publish_hours, settings_of, small_shop

RESULTS = REPOSITORY / "tests" / "benchmarks" / "results" / "serving.json"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SECONDS = 15  # of each load
USERS = 4  # at once: twice the cores
SWAPS = 24
BATCH_USERS = 1_000_000
PORT = 8871


@contextmanager
def shop(folder: Path) -> Iterator[Settings]:
    """An installation with two versions of one recommender; the first serves."""
    settings = replace(settings_of(folder), encoder="minilm")
    publish_hours(settings, small_shop(users=400, history_days=3, history_events=5_000), 0, 72)
    first = updating.retrain("recommend", settings, NOW, "first", report=_quiet)
    updating.promote("recommend", first["version"], settings, NOW)
    updating.retrain("recommend", settings, NOW, "another", days=2, report=_quiet)
    yield settings


def measure_compact(settings: Settings) -> dict[str, float]:
    """Size, quality and latency of the form that consumers get, beside the full one.

    Quality is the gate's metric on all of its examples: item vectors and counts as they are served, and the queries
    embedded by the int8 encoder, beside full precision and the full encoder.
    """
    lake = open_lake(settings)
    task = task_named("recommend", settings, lake)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = load(open_registry(settings).load_checkpoint("recommend", 1, Path(scratch)))
    learner = task.restore(checkpoint.state)
    lesson = lesson_of_everything(task, Snapshot(lake, dict(checkpoint.ledger.versions)), None, None)
    encoder = task._encoder  # type: ignore[attr-defined]
    small = encoder.compact()
    place = lesson.gate.table.schema.get_field_index("query_vector")
    queries = lesson.gate.table["query"].to_pylist()
    vectors = small.embed([query or "" for query in queries])
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.ravel()), vectors.shape[1], mask=pa.array([not query for query in queries])
    )
    as_served = type(lesson.gate)(lesson.gate.table.set_column(place, "query_vector", column))
    served = learner.score(as_served).frame["recall@20"].mean()
    rounded = CompactRecommender.rounded
    CompactRecommender.rounded = lambda self: self  # type: ignore[method-assign]
    full = learner.score(lesson.gate).frame["recall@20"].mean()
    CompactRecommender.rounded = rounded  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as scratch:
        sizes = _sizes(learner.compact(), encoder, small, Path(scratch))
    seconds: dict[str, list[float]] = {"full": [], "small": []}
    for turn in range(31):
        for name, one in (("full", encoder), ("small", small)):
            started = time.perf_counter()
            one.embed(["red mug with a heart"])
            seconds[name].append(time.perf_counter() - started) if turn else None
    full_ms, small_ms = (1e3 * float(np.median(seconds[name])) for name in ("full", "small"))
    return {
        "compact.size_ratio": sizes["small"] / sizes["full"], "compact.quality_ratio": float(served / full),
        "compact.latency_ratio": small_ms / full_ms, "compact.size_mb": sizes["small"] / 1e6,
        "full.size_mb": sizes["full"] / 1e6, "compact.query_ms": small_ms, "full.query_ms": full_ms,
        "compact.examples": float(len(queries)),
    }


def _sizes(recommender: CompactRecommender, encoder: Any, small: Any, folder: Path) -> dict[str, float]:
    from safetensors.numpy import save_file

    save_file(recommender.arrays, folder / "full.safetensors")
    recommender.rounded().save(folder / "small")
    encoder.save(folder / "full-encoder")
    small.save(folder / "small-encoder")
    tokenizer = (folder / "small-encoder" / "tokenizer.json").stat().st_size  # the same file in both
    full = _bytes(folder / "full.safetensors") + _bytes(folder / "full-encoder") - tokenizer
    return {"full": full, "small": _bytes(folder / "small") + _bytes(folder / "small-encoder") - tokenizer}


def _bytes(path: Path) -> float:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return float(sum(one.stat().st_size for one in files))


def measure_server(settings: Settings) -> dict[str, float]:
    """Latency under load beside a bare server and `mlflow models serve`, and errors while champions change."""
    ours = ("pipeline.serving", "--port", str(PORT))
    registry = open_registry(settings)
    registry._verifies = False  # both versions have answered before; how fast the alias moves is no part of this
    figures: dict[str, float] = {}
    with running((sys.executable, "-m", *ours), settings, "/health/ready"):
        alone = load_of("recommend", "recommend")
        both = load_of("", "Aggregated")
        before = _champion(registry)
        with_swaps = load_of("", "Aggregated", meanwhile=lambda: swap(registry, SWAPS), seconds=2 * SECONDS)
        figures["server.swaps"] = float(with_swaps["swaps"])
        figures["server.errors_during_swaps"] = with_swaps["failures"]
        figures["server.requests_during_swaps"] = with_swaps["requests"]
        registry.promote("recommend", before, _champion(registry), who="benchmark", reasons=["back"], action="force",
                         decided_at=datetime.now(UTC))
    bare = (sys.executable, "-m", "uvicorn", "tests.benchmarks.bare_server:app", "--port", str(PORT),
            "--log-level", "warning", "--no-access-log")
    with running(bare, settings, "/openapi.json"):
        constant = load_of("recommend", "recommend")
    with running((sys.executable, "-m", *ours, "--workers", "2"), settings, "/health/ready"):
        two = load_of("recommend", "recommend")
    figures |= {
        "server.p50_ms": alone["p50"], "server.p50_vs_bare": alone["p50"] / constant["p50"],
        "server.bare_p50_ms": constant["p50"], "server.bare_p99_ms": constant["p99"],
        "server.p99_ms_under_load": both["p99"], "server.requests_per_s": alone["rate"],
        "server.requests_per_s_2_workers": two["rate"], "server.failures": alone["failures"] + both["failures"],
    }
    return figures | _mlflow_serve(settings)


def _mlflow_serve(settings: Settings) -> dict[str, float]:
    command = (
        sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/evergreen-recommend@champion",
        "--env-manager", "local", "-p", str(PORT),
    )
    asked = {"dataframe_records": [{"history": ["P000000", "P000003"]}]}
    with running(command, settings, "/ping"):
        theirs = _one_client("/invocations", asked)
    with running((sys.executable, "-m", "pipeline.serving", "--port", str(PORT)), settings, "/health/ready"):
        ours = _one_client("/v1/recommend", {"history": [{"item_id": "P000000"}, {"item_id": "P000003"}]})
    return {"mlflow_serve.p50_ms_one_client": theirs, "server.p50_ms_one_client": ours}


def _one_client(path: str, body: Any, times: int = 210) -> float:
    """The median milliseconds of one client that keeps its connection, after ten answers."""
    milliseconds = []
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=30) as client:
        for _ in range(times):
            started = time.perf_counter()
            client.post(path, json=body).raise_for_status()
            milliseconds.append(1e3 * (time.perf_counter() - started))
    return float(np.median(milliseconds[10:]))


def measure_batch(settings: Settings) -> dict[str, float]:
    """Users a second of `pipeline.batch_scoring`: from a Parquet file of histories to the Delta table, all of it.

    Loading the model and reading, dealing and sorting the histories are in the time; making them is not.
    """
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
        users, out = Path(folder) / "users.parquet", Path(folder) / "recommended"
        pq.write_table(histories(BATCH_USERS), users)
        started, processor = time.monotonic(), time.process_time()
        done = score_lake(settings, str(out), 1, users=str(users), k=20, progress=_say)
        seconds, processor = time.monotonic() - started, time.process_time() - processor
        assert done.users == BATCH_USERS == DeltaTable(out).to_pyarrow_dataset().count_rows()
        size = _bytes(out)
    return {
        "batch.users": float(BATCH_USERS), "batch.users_per_s": BATCH_USERS / seconds, "batch.seconds": seconds,
        "batch.users_per_cpu_s": BATCH_USERS / processor, "batch.table_mb": size / 1e6,
    }


def histories(users: int) -> pa.Table:
    """Users with 1 to some 25 purchases, ten on average, of the shop's items, a few of which are bought by most."""
    draw = np.random.default_rng(1)
    lengths = 1 + draw.poisson(9, users)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    items = np.minimum(draw.geometric(0.04, offsets[-1]) - 1, 59)  # the small shop's 60 items
    ids = pa.array([f"P{item:06d}" for item in range(60)]).take(pa.array(items))
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    days = place * 7.0 + draw.random(offsets[-1])
    return pa.table({
        "user_id": [f"{user:032x}" for user in range(users)],
        "history": pa.ListArray.from_arrays(offsets, ids),
        "history_days": pa.ListArray.from_arrays(offsets, pa.array(days)),
    })


def _say(users: int, whole: int) -> None:
    print(f"{users:,} of {whole:,} users", flush=True)


@contextmanager
def running(command: Sequence[str], settings: Settings, path: str) -> Iterator[None]:
    """A server that answers at `path`, ended afterwards with all its processes."""
    environment = {
        **os.environ, "EVERGREEN_HOME": str(settings.home), "EVERGREEN_MASK_KEY": settings.mask_key,
        "EVERGREEN_MLFLOW": settings.tracking_uri, "MLFLOW_TRACKING_URI": settings.tracking_uri,
        "EVERGREEN_ENCODER": settings.encoder, "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    server = subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await(server, path)
        yield
    finally:
        os.killpg(server.pid, 15)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


def _await(server: subprocess.Popen[bytes], path: str, seconds: float = 240.0) -> None:
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if server.poll() is not None:
            raise RuntimeError(f"The server ended with {server.returncode} before it answered {path}.")
        try:
            if httpx.get(f"http://127.0.0.1:{PORT}{path}", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise TimeoutError(f"The server did not answer {path} within {seconds:.0f} s.")


def load_of(paths: str, row: str, meanwhile: Any = None, seconds: int = SECONDS) -> dict[str, float]:
    """What locust saw: `p50`, `p99` (ms), `rate` (a second), `requests`, `failures`; `swaps` made `meanwhile`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "locust", "-f", "tests/benchmarks/serving_load.py", "--headless", "-u", str(USERS),
            "-r", str(USERS), "-t", f"{seconds}s", "--host", f"http://127.0.0.1:{PORT}", "--csv", f"{folder}/load",
            "--only-summary",
        ]
        locust = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, "PATHS": paths, "TIMES": f"{folder}/times.json"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        swaps = meanwhile() if meanwhile else 0
        locust.wait(seconds + 60)
        with (Path(folder) / "load_stats.csv").open() as file:
            found = next(line for line in csv.DictReader(file) if line["Name"] == row)
        answers = json.loads(Path(folder, "times.json").read_text())
    p50, p99 = np.percentile([ms for name, ms in answers if row in (name, "Aggregated")], (50, 99))
    return {
        "p50": float(p50), "p99": float(p99), "rate": float(found["Requests/s"]),
        "requests": float(found["Request Count"]), "failures": float(found["Failure Count"]), "swaps": float(swaps),
    }


def swap(registry: Registry, times: int) -> int:
    """Moves the champion to and fro while requests go on; the server is told to look after each."""
    for _ in range(times):
        now = _champion(registry)
        other = 3 - now
        registry.promote("recommend", other, now, who="benchmark", reasons=["swap"], action="force",
                         decided_at=datetime.now(UTC))
        httpx.post(f"http://127.0.0.1:{PORT}/v1/reload", timeout=60).raise_for_status()
    return times


def _champion(registry: Registry) -> int:
    found = registry.champion("recommend")
    assert found is not None
    return found


def _quiet(line: str) -> None:
    """Reports to nobody."""


PROTOCOL = f"make bench-serving; {USERS} consumers for {SECONDS} s on one machine; ratios are of one run"


def write(figures: Mapping[str, float], parts: Sequence[str], protocol: str = PROTOCOL, below: str = "") -> None:
    """Merges figures into the results; where they come from stands on top, or `below` a name of its own."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.strip()
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"figures": {}}
    source = {
        "commit": commit, "measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "parts": list(parts),
        "machine": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)},
        "protocol": protocol,
    }
    figures = {**held["figures"], **{name: _rounded(value) for name, value in figures.items()}}
    result = {**held, **({below: source} if below else source), "figures": figures}
    unfinished = RESULTS.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
    unfinished.replace(RESULTS)
    print(json.dumps(result["figures"], indent=2))


def _rounded(value: float) -> float:
    return round(value, 4) if abs(value) >= 0.001 else float(f"{value:.3g}")  # differences are tiny and not nothing


def main() -> None:
    """Measures all or what is named."""
    parts = {"compact": measure_compact, "server": measure_server, "batch": measure_batch}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure (default: all)")
    chosen = parser.parse_args().parts or list(parts)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder, shop(Path(folder)) as settings:
        for name in chosen:
            print(f"measuring {name}", flush=True)
            figures |= parts[name](settings)
    write(figures, chosen)


if __name__ == "__main__":
    sys.exit(main())
