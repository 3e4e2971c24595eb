"""What protects the reference server: a size for each request, a rate for each key, and its name where it has none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

Scope = dict[str, Any]


def names_this_machine(host: str) -> bool:
    """Whether a request's `Host` is a loopback address or a name without a dot, such as localhost.

    A page of another site can have its own name lead to 127.0.0.1 (DNS rebinding), and the browser lets it read what is
    answered there; such a name has a dot, and it stands in `Host`.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # an unpaired bracket
        return False
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return "." not in name


class KeyedLimit:
    """A token bucket for each key (RFC 2697's single rate): a minute's allowance at once, refilled evenly.

    Attributes:
        per_minute: requests that are answered to one key.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes the rate and a clock in seconds."""
        self.per_minute = per_minute
        self._clock, self._lock = clock, threading.Lock()
        self._held: dict[str, tuple[float, float]] = {}

    def wait_seconds(self, key: str) -> float:
        """Takes one request's allowance: 0 where there is one, else the seconds until there will be."""
        now = self._clock()
        with self._lock:
            left, since = self._held.get(key, (float(self.per_minute), now))
            left = min(float(self.per_minute), left + (now - since) * self.per_minute / 60.0)
            if left < 1.0:
                self._held[key] = left, now
                return (1.0 - left) * 60.0 / self.per_minute
            self._held[key] = left - 1.0, now
            return 0.0


class SizeLimit:
    """ASGI middleware: a body larger than `most_bytes` is answered 413 and never read to its end."""

    def __init__(self, app: Any, most_bytes: int) -> None:
        """Takes the application and the limit."""
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Passes a request on, counting what comes; the whole body is in memory, so it is gathered here first."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        named = dict(scope["headers"]).get(b"content-length", b"0")
        if named.isdigit() and int(named) > self.most_bytes:
            await self._refuse(send)
            return
        body, more = b"", scope["method"] not in ("GET", "HEAD")
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > self.most_bytes:
                await self._refuse(send)
                return
        given = False

        async def again() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    async def _refuse(self, send: Any) -> None:
        body = f'{{"detail":"A request must have at most {self.most_bytes} bytes. Send less history or fewer rows."}}'
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})
