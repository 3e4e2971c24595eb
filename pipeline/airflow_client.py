"""Airflow's public REST API (v2), as far as demos, tests and benchmarks drive it: trigger, backfill, wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import httpx

_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 120.0  # for one answer: an API that shares two cores with training was seen to need over 30
_DONE = ("success", "failed")


class AirflowError(RuntimeError):
    """A request was refused or a run failed; the message says what Airflow said."""


class AirflowClient:
    """One Airflow, logged in."""

    def __init__(self, url: str, user: str, password: str) -> None:
        """Takes the address and the log-in; asks for a token when the first request needs one."""
        self._url, self._login = url.rstrip("/"), {"username": user, "password": password}
        self._http = httpx.Client(base_url=f"{self._url}/api/v2", timeout=_PATIENCE_SECONDS)

    def request(self, method: str, path: str, **options: Any) -> Any:
        """One request; a token that has run out is asked for anew, once.

        Raises:
            AirflowError: the answer is an error.
        """
        for attempt in range(2):
            if "Authorization" not in self._http.headers:
                answer = httpx.post(f"{self._url}/auth/token", json=self._login, timeout=_PATIENCE_SECONDS)
                answer.raise_for_status()
                self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
            answer = self._http.request(method, path, **options)
            if answer.status_code == httpx.codes.UNAUTHORIZED and attempt == 0:
                del self._http.headers["Authorization"]
                continue
            break
        if answer.is_error:
            raise AirflowError(f"Airflow answered {method} {path} with {answer.status_code}: {answer.text[:1000]}")
        return answer.json() if answer.content else None

    def trigger(self, dag: str, conf: Mapping[str, Any] | None = None) -> str:
        """Starts a run by hand; returns its id."""
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self.request("POST", f"/dags/{dag}/dagRuns", json=body)["dag_run_id"])

    def backfill(
        self, dag: str, first: datetime, last: datetime, reprocess: str = "none", max_active_runs: int = 4
    ) -> int:
        """Starts a backfill of the hours `first` to `last`, both included; returns its id."""
        end = last + timedelta(minutes=59)  # the run of an hour may be named some minutes after the hour's start
        body = {
            "dag_id": dag, "from_date": first.isoformat(), "to_date": end.isoformat(), "run_backwards": False,
            "reprocess_behavior": reprocess, "max_active_runs": max_active_runs, "dag_run_conf": {},
        }
        return int(self.request("POST", "/backfills", json=body)["id"])

    def backfill_ended(self, backfill: int) -> bool:
        """Whether a backfill has ended: not before, another of the same DAG can start."""
        return self.request("GET", f"/backfills/{backfill}")["completed_at"] is not None

    def run(self, dag: str, run_id: str) -> dict[str, Any]:
        """A run as Airflow describes it."""
        return dict(self.request("GET", f"/dags/{dag}/dagRuns/{run_id}"))

    def runs(self, dag: str) -> list[dict[str, Any]]:
        """The newest 100 runs of a DAG, newest first."""
        answer = self.request("GET", f"/dags/{dag}/dagRuns", params={"order_by": "-run_after", "limit": 100})
        return list(answer["dag_runs"])

    def returned(self, dag: str, run_id: str, task: str, key: str = "return_value") -> Any:
        """What a task of a run returned; None if it returned nothing."""
        path = f"/dags/{dag}/dagRuns/{run_id}/taskInstances/{task}/xcomEntries/{key}"
        try:
            return self.request("GET", path, params={"deserialize": "false"})["value"]
        except AirflowError:
            return None

    def task_states(self, dag: str, run_id: str) -> dict[str, str]:
        """Task -> state."""
        answer = self.request("GET", f"/dags/{dag}/dagRuns/{run_id}/taskInstances")
        return {one["task_id"]: one["state"] for one in answer["task_instances"]}

    def log(self, dag: str, run_id: str, task: str, attempt: int = 1) -> str:
        """A task's log as text."""
        path = f"/dags/{dag}/dagRuns/{run_id}/taskInstances/{task}/logs/{attempt}"
        content = self.request("GET", path, params={"full_content": "true"})["content"]
        return "\n".join(_said(line) if isinstance(line, dict) else str(line) for line in content)

    def wait(
        self, dag: str, run_id: str, patience_seconds: float, tick: Callable[[str], object] = lambda state: None
    ) -> str:
        """Waits until a run has ended; returns `success` or `failed`.

        Raises:
            AirflowError: it has not ended in time.
        """
        for _ in self._patiently(patience_seconds, f"the run {run_id} of {dag}"):
            state = str(self.run(dag, run_id)["state"])
            tick(state)
            if state in _DONE:
                return state
        raise AssertionError("unreachable")

    def wait_for_dags(self, dags: list[str], patience_seconds: float = 120) -> None:
        """Waits until Airflow has parsed these DAGs.

        Raises:
            AirflowError: it has not in time, with what the DAG files' import said.
        """
        for _ in self._patiently(patience_seconds, f"the DAGs {dags}", self._import_errors):
            there = {dag["dag_id"] for dag in self.request("GET", "/dags", params={"limit": 100})["dags"]}
            if set(dags) <= there:
                return

    def idle(self, dag: str) -> bool:
        """Whether no run of the DAG is queued or running."""
        answer = self.request(
            "GET", f"/dags/{dag}/dagRuns", params={"state": ["queued", "running"], "limit": 1}
        )
        return int(answer["total_entries"]) == 0

    def _import_errors(self) -> str:
        return str(self.request("GET", "/importErrors")["import_errors"])

    @staticmethod
    def _patiently(seconds: float, what: str, why: Callable[[], str] = lambda: "") -> Iterator[None]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            yield
            time.sleep(_POLL_SECONDS)
        raise AirflowError(f"Waited {seconds:.0f} s in vain for {what}. {why()}")


def _said(line: Mapping[str, Any]) -> str:
    """A structured log line with the exceptions that it carries."""
    errors = (f"{error.get('exc_type')}: {error.get('exc_value')}" for error in line.get("error_detail") or ())
    return "\n".join([str(line.get("event", "")), *errors])
