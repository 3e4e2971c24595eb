"""The registry behind a log-in: who has no account reads nothing, who may not promote moves no champion."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pipeline import registry_login
from pipeline.installation_place import free_port
from pipeline.registry_errors import PREFIX

pytestmark = pytest.mark.slow

PASSWORD, READERS = "an-administrators-password", "a-readers-password"
ALIASES = "/api/2.0/mlflow/registered-models"


@dataclass(frozen=True)
class Server:
    """A running registry."""

    url: str
    environment: dict[str, str]

    def moves_champion(self, name: str, password: str, version: str) -> int:
        body = {"name": f"{PREFIX}recommend", "alias": "champion", "version": version}
        return httpx.post(f"{self.url}{ALIASES}/alias", json=body, auth=(name, password)).status_code

    def champion(self, *auth: str) -> httpx.Response:
        query = {"name": f"{PREFIX}recommend", "alias": "champion"}
        return httpx.get(f"{self.url}{ALIASES}/alias", params=query, auth=auth or None)

    def command(self, *words: str, password: str = READERS) -> subprocess.CompletedProcess[str]:
        told = self.environment | {"EVERGREEN_MLFLOW": self.url, "EVERGREEN_ACCOUNT_PASSWORD": password}
        return subprocess.run(
            [sys.executable, "-m", "pipeline.registry_login", *words], env=told, capture_output=True, text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("registry")
    registry_login.write_configuration(folder / "accounts.ini", f"sqlite:///{folder / 'accounts.db'}")
    environment = os.environ | registry_login.variables(PASSWORD, "s" * 32, folder / "accounts.ini")
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    url = f"http://127.0.0.1:{(port := free_port(15_000))}"
    with (folder / "log").open("wb") as log:
        stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/files"]
        listens = ["--app-name", "basic-auth", "--workers", "1", "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *listens, *stores], env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while not _healthy(url):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.3)
        made = Server(url, environment)
        administrator = (registry_login.ADMINISTRATOR, PASSWORD)
        for path, body in (
            ("create", {"name": f"{PREFIX}recommend"}),
            *(("../model-versions/create", {"name": f"{PREFIX}recommend", "source": "s3://elsewhere/v"}),) * 2,
        ):
            httpx.post(f"{url}{ALIASES}/{path}", json=body, auth=administrator).raise_for_status()
        assert made.moves_champion(*administrator, "1") == 200
        yield made
    finally:
        os.killpg(process.pid, 9)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def test_a_reader_reads_and_only_who_may_promotes(server: Server) -> None:
    assert server.champion().status_code == 401
    assert server.command("add", "reader").returncode == 0
    assert server.champion("reader", READERS).json()["model_version"]["version"] == "1"
    assert server.champion("reader", "a-wrong-password").status_code == 401
    assert server.moves_champion("reader", READERS, "2") == 403
    assert server.command("allow", "reader", "recommend").returncode == 0
    assert server.moves_champion("reader", READERS, "2") == 200
    assert server.champion("reader", READERS).json()["model_version"]["version"] == "2"
    assert server.command("remove", "reader").returncode == 0
    time.sleep(0.1)
    assert server.champion("reader", READERS).status_code == 401


def test_a_short_password_and_an_unknown_account_are_refused_with_what_to_do(server: Server) -> None:
    short = server.command("add", "other", password="short")
    assert short.returncode == 1 and "at least 12 characters" in short.stderr
    unknown = server.command("allow", "nobody", "recommend")
    assert unknown.returncode == 1 and "refused grant user permission 'nobody'" in unknown.stderr


def test_the_rules_are_for_the_owner_alone_and_hold_no_password(tmp_path: Path) -> None:
    path = tmp_path / "accounts.ini"
    registry_login.write_configuration(path, "postgresql+psycopg2://postgres@/accounts?host=/run%20x")
    assert path.stat().st_mode & 0o077 == 0
    assert "password" not in path.read_text()
