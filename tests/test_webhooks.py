"""Whoever asked for it is called when an alias moves: a real MLflow server, a real receiver that checks signatures."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from pipeline.installation import Installation
from pipeline.registry import open_registry
from pipeline.settings import REPOSITORY, Settings
from pipeline.webhooks import main
from tests.conftest import NOW

SECRET = "a secret of more than 24 characters"


def readme_check() -> Any:
    """`is_genuine`, as the page for consumers gives it to receivers."""
    page = (REPOSITORY / "pipeline" / "docs" / "consumers.md").read_text()
    (code,) = re.findall(r"```python\n(import base64.*?)```", page, re.DOTALL)
    made: dict[str, Any] = {}
    exec(code, made)
    return made["is_genuine"]


class Receiver(ThreadingHTTPServer):
    """Keeps (is genuine, payload, headers, body) of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[bool, dict, dict, bytes]] = []
        is_genuine = readme_check()

        class Answer(BaseHTTPRequestHandler):
            def do_POST(inner) -> None:  # noqa: N805
                body = inner.rfile.read(int(inner.headers["Content-Length"]))
                genuine = "X-MLflow-Signature" in inner.headers and is_genuine(inner.headers, body, SECRET)
                self.calls.append((genuine, json.loads(body), dict(inner.headers), body))
                inner.send_response(204)
                inner.end_headers()

            def log_message(inner, *said: object) -> None:  # noqa: N805
                pass

        super().__init__(("127.0.0.1", 0), Answer)
        Thread(target=self.serve_forever, daemon=True).start()

    def awaited(self, count: int) -> list[tuple[bool, dict, dict, bytes]]:
        deadline = time.monotonic() + 30
        while len(self.calls) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(self.calls) >= count, self.calls
        return self.calls


@contextmanager
def mlflow_server(settings: Settings, folder: Path) -> Iterator[str]:
    """The registry of `settings`, served as an installation serves it, with its encryption key; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **Installation(folder, {"PATH": os.environ["PATH"]}).environment,
        "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri, "MLFLOW_WEBHOOK_CACHE_TTL": "1",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    }
    command = ["-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, *command], env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    address, give_up = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            assert server.poll() is None and time.monotonic() < give_up, (folder / "log").read_text()[-3000:]
            try:
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.mark.slow
def test_a_receiver_is_called_for_each_move_signed_also_after_a_restart(
    price_shop_an_hour_later: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    receiver, folder = Receiver(), tmp_path / "server"
    folder.mkdir()
    url = f"http://127.0.0.1:{receiver.server_port}/moved"
    told = {"EVERGREEN_HOME": str(price_shop_an_hour_later.home), "EVERGREEN_MASK_KEY": "k" * 64, "SECRET": SECRET}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with mlflow_server(price_shop_an_hour_later, folder) as address:
        monkeypatch.setenv("EVERGREEN_MLFLOW", address)
        assert main(["add", url, "--secret-env", "SECRET"]) == 0 == main(["add", url, "--secret-env", "SECRET"])
        assert main(["add", url]) == 1  # it would no more be signed
        assert main(["test", url]) == 0
        assert "answered 204" in capsys.readouterr().out
        assert main(["add", "ftp://127.0.0.1/x"]) == 1
        assert "Invalid webhook URL scheme" in capsys.readouterr().err
        [(genuine, example, headers, body)] = receiver.awaited(1)
        assert genuine and example["action"] == "created"
        is_genuine = readme_check()
        old = {**headers, "X-MLflow-Timestamp": str(int(headers["X-MLflow-Timestamp"]) - 400)}
        assert is_genuine(headers, body, SECRET)
        assert not is_genuine(headers, body + b" ", SECRET) and not is_genuine(headers, body, SECRET + "x")
        assert not is_genuine(old, body, SECRET)
    with mlflow_server(price_shop_an_hour_later, folder) as address:
        monkeypatch.setenv("EVERGREEN_MLFLOW", address)
        registry = open_registry(replace(price_shop_an_hour_later, tracking_uri=address))
        registry.rollback("price", 1, who="ada", why="wrong prices", decided_at=NOW + timedelta(hours=1))
        calls = receiver.awaited(3)[1:]
        moves = [(one["data"]["name"], one["data"]["alias"], one["data"]["version"]) for _, one, _, _ in calls]
        assert sorted(moves) == [("evergreen-price", "champion", "1"), ("evergreen-price", "previous", "2")]
        assert all(genuine for genuine, *_ in calls)
        assert main(["remove", url]) == 0 and main(["list"]) == 0 and main(["remove", url]) == 1
        seen = capsys.readouterr()
        assert "there is none of" in " ".join(seen.err.split()) and SECRET not in seen.out + seen.err
        time.sleep(1.2)  # the server's cache of addresses
        registry.rollback("price", 2, who="ada", why="right after all", decided_at=NOW + timedelta(hours=2))
        time.sleep(0.5)
        assert len(receiver.calls) == 3
    receiver.shutdown()


def test_a_registry_that_nobody_serves_and_a_short_secret_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    monkeypatch.setenv("EVERGREEN_MASK_KEY", "k" * 64)
    monkeypatch.delenv("EVERGREEN_MLFLOW", raising=False)
    assert main(["list"]) == 1
    assert "EVERGREEN_MLFLOW must be its http(s) address" in capsys.readouterr().err
    monkeypatch.setenv("EVERGREEN_MLFLOW", "http://127.0.0.1:9")
    monkeypatch.setenv("HOOK", "short-word")
    assert main(["add", "https://me:hidden@chat/x?token=hidden", "--secret-env", "HOOK"]) == 1
    said = capsys.readouterr().err
    assert "at least 24 characters; it has 10" in said and "short-word" not in said and "hidden" not in said
