"""A whole installation for tests and benchmarks: real PostgreSQL, MLflow and Airflow under supervisord, in a folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.airflow_client import AirflowClient
from pipeline.installation import Installation
from pipeline.installation_place import ADMIN, InstallationError
from pipeline.window import Window

PATIENCE_SECONDS = 1200.0  # an order and more above what each step takes on an idle machine


class InstalledShop:
    """A running installation and its shop's landing zone."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.settings = installation.settings
        self.landing = Path(self.settings.landing)
        self.airflow = AirflowClient(installation.airflow_url, ADMIN, installation.secrets.admin_password)

    def run(self, dag: str, conf: dict[str, Any] | None = None) -> str:
        """Triggers a DAG and waits for its success; returns the run's id."""
        run = self.airflow.trigger(dag, conf)
        state = self.airflow.wait(dag, run, PATIENCE_SECONDS)
        assert state == "success", self.logs(dag, run)
        return run

    def ingest(self, windows: Sequence[Window]) -> str:
        """Has the windows (in a row) taken in by one run by hand."""
        return self.run("ingest", {"window": str(windows[0]), "until": str(Window(windows[-1].end))})

    def backfill(
        self, first: Window, last: Window, reprocess: str = "completed", patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Backfills a range of hours as the UI's form does, and waits until its runs have ended."""
        before = {run["dag_run_id"]: run["start_date"] for run in self.airflow.runs("ingest")}
        backfill = self.airflow.backfill("ingest", first.start, last.start, reprocess=reprocess)
        hours = int((last.start - first.start).total_seconds() // 3600) + 1
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline:
            done = [
                run for run in self.airflow.runs("ingest")
                if run["run_type"] == "backfill" and run["state"] in ("success", "failed")
                and before.get(run["dag_run_id"]) != run["start_date"]
            ]
            if len(done) >= hours and self.airflow.backfill_ended(backfill):
                assert {run["state"] for run in done} == {"success"}
                return
            time.sleep(0.5)
        raise AssertionError(f"The backfill {first} to {last} did not end: {self.airflow.runs('ingest')[:5]}")

    def backfilled(self, window: Window) -> str:
        """The run of a window that somebody has begun to backfill."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for run in self.airflow.runs("ingest"):
                start = run["data_interval_start"]
                if run["run_type"] == "backfill" and start and datetime.fromisoformat(start) == window.start:
                    return str(run["dag_run_id"])
            time.sleep(0.5)
        raise AssertionError(f"No backfill of {window} began: {self.airflow.runs('ingest')[:3]}")

    def updates(self, task: str = "recommend") -> list[dict[str, Any]]:
        """The runs of the task's update that trained something."""
        return [
            run for run in self.airflow.runs(f"update_{task}")
            if self.airflow.task_states(f"update_{task}", run["dag_run_id"]).get("learn") == "success"
        ]

    def settle(self, task: str = "recommend", patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until the task has nothing more to learn and no update runs."""
        from pipeline.updating import behind

        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline:
            failed = [run for run in self.airflow.runs(f"update_{task}") if run["state"] == "failed"]
            assert not failed, self.logs(f"update_{task}", failed[0]["dag_run_id"])
            if not behind(task, self.settings) and self.airflow.idle(f"update_{task}"):
                return
            time.sleep(1.0)
        raise AssertionError(f"update_{task} did not settle: {self.airflow.runs(f'update_{task}')[:3]}")

    def logs(self, dag: str, run: str) -> str:
        """The logs of a run's tasks that did not succeed."""
        states = self.airflow.task_states(dag, run)
        return "\n".join(
            f"--- {dag}.{task}: {state}\n{self.airflow.log(dag, run, task)[-4000:]}"
            for task, state in states.items() if state in ("failed", "up_for_retry")  # the others have no log
        )


@contextmanager
def installed_shop(home: Path, **variables: str) -> Iterator[InstalledShop]:
    """Starts an installation below `home` on free ports and stops it at the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "AIRFLOW"))}
    installation = Installation(home, environment)
    installation.remember(variables)
    try:
        for patience_left in (2, 1, 0):
            try:
                installation.up(lambda line: None)  # goes on where it was
                break
            except InstallationError:
                if not patience_left:  # a machine that others keep busy needs longer than an operator's patience
                    raise
        shop = InstalledShop(installation)
        shop.airflow.wait_for_dags(["ingest", "update_recommend", "retrain_recommend", "watch", "rollback"])
        yield shop
    finally:
        installation.down()


def landed_lines(folder: Path) -> list[tuple[Path, int, dict[str, Any]]]:
    """Every line of the JSON lines files in a folder that is an object: file, place, content."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for place, line in enumerate(path.read_text().splitlines()):
            try:
                content = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(content, dict):
                found.append((path, place, content))
    return found
