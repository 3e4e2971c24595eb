"""What a Celery installation loses when a worker's machine dies in the middle of an update: nothing, or it is counted.

Two workers as machines of their own (network namespaces with addresses and names, homes that nobody shares) take tasks
from Redis; scheduler, registry, PostgreSQL and an object store with landing zone, lake and models' files are on a third
address. All of it by variables alone, the ones of pipeline/docs/production.md. Hours arrive; each time the update has
trained for a while, everything in the namespace that runs it is killed: once by kill -9, once after its cable was cut,
so that neither PostgreSQL nor Redis hears of it. The other worker has to run the update again. In the end every task of
every run must have done its work, the tables are compared row by row with a home that took the same files in once, the
ledger with the table, and every version has to be whole.

Debian's redis-server and postgresql must be installed, and it needs root: `ip netns` makes the machines.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pipeline.ingest import ingest
from pipeline.installation_secrets import Secrets
from pipeline.lake import open_lake
from pipeline.registry import open_registry
from pipeline.settings import REPOSITORY
from pipeline.sources.simulator import ShopSimulator
from pipeline.window import Window, windows_between
from tests.benchmarks.trust_scheduler import out_of_balance
from tests.ends import half_registered
from tests.hosts import SERVER, Host, hosts, postgres, redis
from tests.installed import InstalledShop, installed_shop
from tests.object_store import BUCKET, client, object_store
from tests.same_tables import TABLES, rows_differing, rows_of

SEED = 17
SIZE = {"users": 600, "items": 80, "history_days": 1, "history_events": 5_000, "events_per_hour": 150, "hours": 3}
TRAINED_SECONDS = (5.0, 20.0)  # an update's task takes some 30 s here: after its imports, before its end
_PATIENCE_SECONDS = 1800.0
_DONE = ("success", "skipped")

# A machine that has died is missed after two minutes, not after five; so is a task that it was given and never began:
# Airflow's own settings.
HASTE = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "120", "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "120",
}


@dataclass
class Cluster:
    """A running installation of several machines.

    Attributes:
        shop: the installation of the machine with scheduler and registry.
        workers: the machines that run tasks.
        landed: folder from which files are brought to the store.
    """

    shop: InstalledShop
    workers: list[Host]
    landed: Path
    source: ShopSimulator
    _draw: random.Random = field(default_factory=lambda: random.Random(SEED))

    def start(self, worker: Host) -> None:
        """Starts a Celery worker as an operator does, with a home of its own."""
        home = self.landed.with_name(f"home-of-{worker.name}")
        home.mkdir(exist_ok=True)
        told = self.shop.installation.environment
        own = {"PATH": told["PATH"], "HOME": str(home), "PYTHONPATH": str(REPOSITORY), "EVERGREEN_HOME": str(home)}
        shared = ("AWS_", "EVERGREEN_ENCODER", "EVERGREEN_SCHEDULE_END", "EVERGREEN_LANDING", "EVERGREEN_LAKE",
                  "EVERGREEN_HOST", "EVERGREEN_DATABASE", "EVERGREEN_ARTIFACTS", "EVERGREEN_AIRFLOW_PORT",
                  "EVERGREEN_MLFLOW_PORT", "AIRFLOW__CORE__EXECUTOR", "AIRFLOW__CORE__HOSTNAME_CALLABLE",
                  "AIRFLOW__CELERY__", *Secrets.SHARED)
        own |= {name: value for name, value in told.items() if name.startswith(shared)}
        worker.start([sys.executable, "-m", "pipeline.installation", "worker"], own, home)

    def land(self, windows: list[Window]) -> None:
        """Brings the windows' files into the store, as a shop does."""
        store, before = client(self.shop.installation.environment), set(self.landed.rglob("*"))
        self.source.land(windows, self.landed)
        for path in sorted(set(self.landed.rglob("*")) - before):
            if path.is_file():
                store.upload_file(str(path), BUCKET, f"landing/{path.relative_to(self.landed).as_posix()}")

    def learning(self) -> tuple[str, dict[str, Any]]:
        """The run and task of the update that trains now, once there is one."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for run in self.shop.airflow.runs("update_recommend")[:2]:
                task = self.task(run["dag_run_id"])
                if task["state"] == "running" and task["hostname"]:
                    return run["dag_run_id"], task
            time.sleep(0.5)
        raise AssertionError(f"No update began to learn; the workers said: {[host.said for host in self.workers]}")

    def task(self, run: str) -> dict[str, Any]:
        """The task that learns, in its newest attempt."""
        path = f"/dags/update_recommend/dagRuns/{run}/taskInstances/learn"
        return dict(self.shop.airflow.request("GET", path))

    def kill_learner(self, cut: bool) -> float:
        """Kills the machine on which an update trains; seconds until the other has done the update's training."""
        run, task = self.learning()
        dying = next(host for host in self.workers if host.address == task["hostname"])
        time.sleep(self._draw.uniform(*TRAINED_SECONDS))
        if (now := self.task(run)["state"]) != "running":
            raise AssertionError(f"The update was to die while it trained; it was {now}.")
        began, killed = time.monotonic(), dying.cut_power() if cut else dying.kill()
        print(f"{dying.name} died with {killed} processes, cable cut: {cut}", flush=True)
        while (now := self.task(run))["state"] != "success":
            if time.monotonic() - began > _PATIENCE_SECONDS or now["state"] == "failed":
                raise AssertionError(f"The update was not learnt again: {now}")
            time.sleep(1.0)
        seconds = time.monotonic() - began
        assert now["try_number"] == task["try_number"] + 1, now
        assert now["hostname"] == next(host.address for host in self.workers if host is not dying), now
        print(f"learnt again at {now['hostname']} after {seconds:.0f} s", flush=True)
        dying.plug_in()
        self.start(dying)
        return seconds


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Services at SERVER, scheduler and registry beside them, and two workers."""
    source = ShopSimulator(seed=SEED, **SIZE)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evergreen-")))
        folder.chmod(0o755)  # PostgreSQL's own user has a folder in it
        workers = stack.enter_context(hosts(["evergreen-a", "evergreen-b"], folder))
        store = stack.enter_context(object_store(SERVER))
        stack.enter_context(patch.dict(os.environ, store))
        variables = {
            **store, **HASTE, "EVERGREEN_ENCODER": "tiny", "EVERGREEN_SCHEDULE_END": str(Window(source.last)),
            "EVERGREEN_HOST": SERVER, "EVERGREEN_DATABASE": stack.enter_context(postgres(folder)),
            "EVERGREEN_LANDING": f"s3://{BUCKET}/landing", "EVERGREEN_LAKE": f"s3://{BUCKET}/lake",
            "EVERGREEN_ARTIFACTS": f"s3://{BUCKET}/models",
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "airflow.utils.net.get_host_ip_address",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
            "AIRFLOW__CELERY__BROKER_URL": stack.enter_context(redis(folder)),
        }
        shop = stack.enter_context(installed_shop(folder / "shop", **variables))
        whole = Cluster(shop, workers, folder / "landed", source)
        for worker in workers:
            whole.start(worker)
        yield whole


def measure_celery() -> dict[str, float]:
    """`celery.tasks_lost`, and what stands beside it."""
    began = time.monotonic()
    with cluster() as whole:
        source, shop = whole.source, whole.shop
        history = list(windows_between(source.first, source.streamed_from))
        hours = list(windows_between(source.streamed_from, source.last))
        whole.land(history)
        shop.ingest(history)
        print(f"history taken in after {time.monotonic() - began:.0f} s", flush=True)
        shop.run("retrain_recommend", {"reason": "first model"})
        recoveries = []
        for place, hour in enumerate(hours):
            whole.land([hour])
            shop.ingest([hour])
            if place < 2:
                recoveries.append(whole.kill_learner(cut=place == 1))
            shop.settle(patience_seconds=_PATIENCE_SECONDS)
        figures = _left(whole, [history, *([hour] for hour in hours)])
    return {
        **figures, "celery.workers": len(whole.workers), "celery.kills": len(recoveries),
        "celery.recovery_seconds": max(recoveries), "celery.seconds": time.monotonic() - began,
    }


def _left(whole: Cluster, taken: list[list[Window]]) -> dict[str, float]:
    """What is not as it should be in the end: tasks, rows, the ledger, versions."""
    shop, home = whole.shop, whole.landed.with_name("calm")
    tasks = {
        (dag, run["dag_run_id"], task): state for dag in ("ingest", "retrain_recommend", "update_recommend")
        for run in shop.airflow.runs(dag) for task, state in shop.airflow.task_states(dag, run["dag_run_id"]).items()
    }
    lost = {task: state for task, state in tasks.items() if state not in _DONE}
    calm = replace(shop.settings, home=home, landing=str(whole.landed), lake=str(home / "lake"), lock_url=None,
                   reports=home / "reports")
    for windows in taken:
        ingest(windows, calm, report=lambda line: None)
    wrong = rows_differing(open_lake(shop.settings), open_lake(calm))
    registry = open_registry(shop.settings)
    half = half_registered(registry, "recommend")
    print(f"tasks lost: {lost}; tables that differ: {wrong}; not whole: {half}", flush=True)
    return {
        "celery.tasks": len(tasks), "celery.tasks_lost": len(lost),
        "celery.rows": sum(rows_of(open_lake(calm), table).total() for table in TABLES),
        "celery.rows_wrong": sum(lacking + more for lacking, more in wrong.values()),
        "celery.rows_out_of_balance": out_of_balance(shop), "celery.half_registered": len(half),
        "celery.versions": len(registry.versions("recommend")),
    }
