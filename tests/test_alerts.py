"""Alerts: one when a condition begins, none while it lasts, a new one when it begins again."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.alerts import open_alerts, raise_alert, settle_alert
from pipeline.settings import Settings


def settings_of(home: Path, alert_url: str | None = None) -> Settings:
    return Settings(
        home=home, landing=str(home / "landing"), lake=str(home / "lake"),
        artifacts=str(home / "mlflow" / "artifacts"), reports=home / "reports",
        tracking_uri="sqlite://", mask_key="k" * 32, alert_url=alert_url,
    )


def test_a_condition_that_lasts_alerts_once(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    assert raise_alert(settings, "missing-feed-events", "no file came")
    assert not raise_alert(settings, "missing-feed-events", "no file came again")
    assert [one["text"] for one in open_alerts(settings)] == ["no file came"]


def test_a_settled_condition_is_closed_and_alerts_anew(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    assert not settle_alert(settings, "behind")
    raise_alert(settings, "behind", "one")
    raise_alert(settings, "other", "two")
    assert settle_alert(settings, "behind")
    assert [one["condition"] for one in open_alerts(settings)] == ["other"]
    assert raise_alert(settings, "behind", "three")


def test_half_a_line_of_a_killed_process_loses_no_other_alert(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    raise_alert(settings, "one", "first")
    with (settings.reports / "alerts.jsonl").open("a") as file:
        file.write('{"at": "2026-01-01T00')
    raise_alert(settings, "two", "second")
    assert [one["condition"] for one in open_alerts(settings)] == ["one", "two"]


@pytest.fixture
def received() -> tuple[str, list[dict]]:
    taken: list[dict] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", taken
    server.shutdown()


def test_the_webhook_gets_each_change_once(tmp_path: Path, received: tuple[str, list[dict]]) -> None:
    url, taken = received
    settings = settings_of(tmp_path, url)
    raise_alert(settings, "behind", "seven hours")
    raise_alert(settings, "behind", "eight hours")
    settle_alert(settings, "behind")
    assert [(one["event"], one["text"]) for one in taken] == [("raised", "seven hours"), ("settled", "")]


def test_what_a_failed_run_says_loses_the_password_of_an_address(
    tmp_path: Path, received: tuple[str, list[dict]]
) -> None:
    url, taken = received
    settings = settings_of(tmp_path, url)
    raise_alert(settings, "failed-watch", "watch: request to https://ana:planted@mlflow.shop:1/api failed → ann@shop")
    said = "watch: request to https://mlflow.shop:1/api failed → ann@shop"
    assert [one["text"] for one in taken] == [one["text"] for one in open_alerts(settings)] == [said]
    assert "planted" not in (settings.reports / "alerts.jsonl").read_text()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "https://hooks.example:port/x", "https://hooks.example/x\n"])
def test_a_webhook_that_does_not_answer_or_is_no_address_fails_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    settings = settings_of(tmp_path, url)
    assert raise_alert(settings, "behind", "seven hours")
    assert "did not take it" in capsys.readouterr().out
    assert len(open_alerts(settings)) == 1


def test_a_proxy_that_cannot_be_used_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert raise_alert(settings_of(tmp_path, "http://shop.example/hook"), "behind", "seven hours")


def test_the_address_of_a_webhook_that_refuses_is_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # which has no POST: 501
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = settings_of(tmp_path, f"http://127.0.0.1:{server.server_port}/hook-of-ours")
    assert raise_alert(settings, "behind", "seven hours")
    server.shutdown()
    said = capsys.readouterr().out
    assert "(501)" in said and "hook-of-ours" not in said
