"""The reference server's metrics in Prometheus' format, over all of its processes."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from pipeline.served_models import NoModel, ServedModels

# a request in process takes 1 to 3 ms, one with a search some ten more; what is beyond a second is a fault
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class ServingMetrics:
    """Counts requests, and tells which versions serve and how old their data is."""

    def __init__(self, models: ServedModels) -> None:
        """Takes the models whose versions are told."""
        self._models = models
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "evergreen_request_seconds", "Time to an answer", ["route"], buckets=_BUCKETS, registry=self._registry
        )
        self._answers = Counter(
            "evergreen_answers", "Answers by route and status", ["route", "status"], registry=self._registry
        )
        self._version = self._gauge("evergreen_model_version", "The version that serves")
        self._age = self._gauge("evergreen_model_age_seconds", "Since the newest hour that it has learnt")
        self._failing = self._gauge("evergreen_registry_failing", "1 while the last look at the registry failed")

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, ["task"], registry=self._registry, multiprocess_mode="mostrecent")

    def count(self, route: str, status: int, seconds: float) -> None:
        """One answer."""
        self._seconds.labels(route).observe(seconds)
        self._answers.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        for task in self._models.tasks:
            self._failing.labels(task).set(float(task in self._models.errors))
            try:
                served = self._models.champion(task)
            except NoModel:
                continue
            self._version.labels(task).set(served.version)
            if served.window is not None:
                self._age.labels(task).set((datetime.now(UTC) - served.window).total_seconds())
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            together = CollectorRegistry()
            MultiProcessCollector(together)
            return generate_latest(together)
        return generate_latest(self._registry)


class Measured:
    """ASGI middleware: counts each answer, and tells browsers not to guess at its type.

    Starlette's own `@app.middleware("http")` runs each request in a task of its own behind two streams, which costs as
    much as the rest of the framework.
    """

    def __init__(self, app: Any, metrics: ServingMetrics) -> None:
        """Takes the application and where answers are counted."""
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Passes a request on; one that fails before it is answered counts as 500."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def counted(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self._metrics.count(route, status, time.perf_counter() - started)
