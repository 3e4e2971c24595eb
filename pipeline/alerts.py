"""Alerts: one for each condition, raised when it begins and settled when it ends, never one an hour.

An alert is a line of `reports/alerts.jsonl`, which the health page shows, and where `EVERGREEN_ALERT_URL` is set a
POST of the same JSON to a chat's or a pager's webhook. A webhook that does not answer must not fail the work.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.locking import locks_of
from pipeline.settings import Settings

_WEBHOOK_SECONDS = 5  # a chat answers within one; the pipeline does not wait longer


def raise_alert(settings: Settings, condition: str, text: str) -> bool:
    """Raises an alert unless the condition has one that is open; whether it did."""
    return _change(settings, condition, "raised", text)


def settle_alert(settings: Settings, condition: str) -> bool:
    """Settles the condition's open alert, if there is one; whether it did."""
    return _change(settings, condition, "settled", "")


def open_alerts(settings: Settings) -> list[dict[str, Any]]:
    """The alerts that are raised and not settled, oldest first: `at`, `condition`, `text`."""
    found: dict[str, dict[str, Any]] = {}
    for line in _lines(_path(settings)):
        if line["event"] == "raised":
            found[line["condition"]] = line
        else:
            found.pop(line["condition"], None)
    return list(found.values())


def _change(settings: Settings, condition: str, event: str, text: str) -> bool:
    with locks_of(settings.home, settings.lock_url)("alerts"):
        is_open = any(one["condition"] == condition for one in open_alerts(settings))
        if is_open == (event == "raised"):
            return False
        # the time is for people; nothing computes with it
        line = {"at": datetime.now(UTC).isoformat(), "event": event, "condition": condition, "text": text}
        path = _path(settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"\n{json.dumps(line)}\n")  # begins anew after half a line of a killed process
    if settings.alert_url:
        _post(settings.alert_url, line)
    return True


def _path(settings: Settings) -> Path:
    return settings.reports / "alerts.jsonl"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines; a process that was killed in the midst of one has left half a line."""
    lines = []
    for text in filter(None, path.read_text().splitlines()) if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def _post(url: str, line: dict[str, Any]) -> None:
    import httpx

    try:
        httpx.post(url, json=line, timeout=_WEBHOOK_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        print(f"The alert's webhook did not take it: {error}. The alert stands in alerts.jsonl.")
