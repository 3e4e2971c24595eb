"""Alerts: one for each condition, raised when it begins and settled when it ends, never one an hour.

What the watch has asked for (a full retrain) stands in the same log, so that it is not asked for again each hour.

An alert is a line of `reports/alerts.jsonl`, which the health page shows, and where `EVERGREEN_ALERT_URL` is set a
POST of the same JSON to a chat's or a pager's webhook. A webhook that does not answer must not fail the work.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.asking import without_passwords
from pipeline.locking import locks_of
from pipeline.settings import Settings

_WEBHOOK_SECONDS = 5  # a chat answers within one; the pipeline does not wait longer


def raise_alert(settings: Settings, condition: str, text: str, at: datetime | None = None) -> bool:
    """Raises an alert unless the condition has one that is open; whether it did. `at`: when; None: now."""
    return _change(settings, condition, "raised", text, at)


def settle_alert(settings: Settings, condition: str, at: datetime | None = None) -> bool:
    """Settles the condition's open alert, if there is one; whether it did. `at`: when; None: now."""
    return _change(settings, condition, "settled", "", at)


def ask(settings: Settings, what: str, text: str, at: datetime, by: str, hours: float) -> bool:
    """Whether `what` is to be asked for now: not again within so many hours, but again by the run that did.

    Args:
        settings: of the installation.
        what: a name, such as `retrain-recommend`.
        text: why.
        at: when.
        by: the asking run; one that was killed after it had asked asks the same again.
        hours: how long nobody else asks.
    """
    with locks_of(settings.home, settings.lock_url)("alerts"):
        asked = [line for line in _lines(_path(settings)) if (line["event"], line["condition"]) == ("asked", what)]
        if asked and asked[-1].get("by") == by:
            return True
        if asked and at - datetime.fromisoformat(asked[-1]["at"]) < timedelta(hours=hours):
            return False
        _write(settings, {"at": at.isoformat(), "event": "asked", "condition": what, "text": text, "by": by})
        return True


def last_asked(settings: Settings, what: str) -> dict[str, Any] | None:
    """The newest line of the log in which `what` was asked for: `at`, `text`; None: it never was."""
    asked = [line for line in _lines(_path(settings)) if (line["event"], line["condition"]) == ("asked", what)]
    return asked[-1] if asked else None


def open_alerts(settings: Settings) -> list[dict[str, Any]]:
    """The alerts that are raised and not settled, oldest first: `at`, `condition`, `text`."""
    found: dict[str, dict[str, Any]] = {}
    for line in _lines(_path(settings)):
        if line["event"] == "raised":
            found[line["condition"]] = line
        elif line["event"] == "settled":
            found.pop(line["condition"], None)
    return list(found.values())


def _change(settings: Settings, condition: str, event: str, text: str, at: datetime | None) -> bool:
    with locks_of(settings.home, settings.lock_url)("alerts"):
        is_open = any(one["condition"] == condition for one in open_alerts(settings))
        if is_open == (event == "raised"):
            return False
        when = datetime.now(UTC) if at is None else at
        said = without_passwords(text)  # of a failed run it is the error, which may name an address with its password
        line = {"at": when.isoformat(), "event": event, "condition": condition, "text": said}
        _write(settings, line)
    if settings.alert_url:
        _post(settings.alert_url, line)
    return True


def _write(settings: Settings, line: dict[str, Any]) -> None:
    path = _path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"\n{json.dumps(line)}\n")  # begins anew after half a line of a killed process


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
    except Exception as error:  # also of an address that is none, or a proxy that httpx cannot use
        # what httpx says names the address, and whoever knows a webhook's address may write to it
        said = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
        print(f"The alert's webhook did not take it ({said}). The alert stands in alerts.jsonl.")
