"""The reference server: recommend, search, similar items, price, stock, intent, sentiment, profile, over HTTP.

`make serve` or `python -m pipeline.serving --help`. It follows the registry's `champion` (pipeline/served_models.py),
holds no state but models, and scales by adding processes. Its description is at /openapi.json and, to read and try, at
/docs; a page for people is at /.

Who may ask is said by EVERGREEN_API_KEYS (`name:role:key`, comma separated; roles `read` and `operate`). Without keys
the server answers its own machine alone.
"""

from __future__ import annotations

import argparse
import hmac
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import APIKeyHeader
from pydantic import TypeAdapter

from pipeline.installation_place import HIGHEST_PORT
from pipeline.served_models import NoModel, ServedModel, ServedModels
from pipeline.serving_limits import KeyedLimit, SizeLimit, names_this_machine
from pipeline.serving_metrics import Measured, ServingMetrics
from pipeline.serving_page import page
from pipeline.serving_profile import profile_question
from pipeline.serving_schema import (
    FAILURES,
    UNKNOWN,
    Answer,
    Health,
    Item,
    ItemId,
    ModelAnswer,
    ModelRequest,
    ModelState,
    Reasons,
    Recommend,
    ResultCount,
    Search,
    served_by,
)
from pipeline.serving_tasks import typed_questions
from pipeline.settings import Settings, SettingsError, read_settings

MOST_BYTES = 256 * 1024  # of a request: 256 history items with ids of 200 characters are 60 KB
REQUESTS_PER_MINUTE = 6_000  # for each key and process: a hundred a second, so that one cannot starve the others
# With so many items product and partial sort take 0.2 ms, less than handing a request to a thread and back (0.3 ms,
# both measured on two cores): up to that, a recommendation is made in the event loop; above, or for a search's words,
# in a thread.
SOON_ITEMS = 10_000
_ITEMS = TypeAdapter(list[Item])  # all at once costs a third of one by one
_ROLES = {"read": {"read"}, "operate": {"read", "operate"}}
_LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ApiKey:
    """Who may ask for what.

    Attributes:
        name: in the log and the metrics, never the key.
        role: `read`: answers; `operate`: also `/v1/reload`.
        key: the secret.
    """

    name: str
    role: str
    key: str = field(repr=False)


def read_keys(text: str) -> tuple[ApiKey, ...]:
    """The keys of EVERGREEN_API_KEYS.

    Raises:
        SettingsError: an entry is not `name:role:key`, a role is unknown or a key is short; the key is not shown.
    """
    keys = []
    for place, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
        parts = entry.split(":", 2)
        if len(parts) != 3 or parts[1] not in _ROLES or len(parts[2]) < 16:
            raise SettingsError(
                f"EVERGREEN_API_KEYS must be name:role:key, comma separated, with the role {' or '.join(_ROLES)} and a "
                f"key of at least 16 characters; entry {place} is not. Make a key: openssl rand -hex 24."
            )
        keys.append(ApiKey(*parts))
    return tuple(keys)


def create_app(
    settings: Settings | None = None, keys: Sequence[ApiKey] | None = None, models: ServedModels | None = None,
    requests_per_minute: int = REQUESTS_PER_MINUTE,
) -> FastAPI:
    """The application; every argument but for tests comes from the environment.

    Args:
        settings: of the installation whose champions are served.
        keys: who may ask; none: everybody (`main` then listens to its own machine alone).
        models: where models come from.
        requests_per_minute: of one key.
    """
    settings = settings or read_settings()
    keys = read_keys(os.environ.get("EVERGREEN_API_KEYS", "")) if keys is None else tuple(keys)
    if models is None:
        models = ServedModels(settings, settings.home / "serving", settings.tasks)
    metrics = ServingMetrics(models)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        models.start()
        yield
        models.stop()

    app = FastAPI(
        title="Evergreen", version="1", lifespan=lifespan,
        description="Answers of the models that Evergreen keeps fresh. Each answer says which version gave it.",
    )
    app.state.models, app.state.settings = models, settings
    app.state.allowed = _allowed(keys, KeyedLimit(requests_per_minute))
    app.add_middleware(SizeLimit, most_bytes=MOST_BYTES)
    app.add_middleware(Measured, metrics=metrics)
    _errors(app)
    _health(app, models, metrics)
    _answers(app, models)
    app.include_router(typed_questions(models, Depends(app.state.allowed("read"))))
    app.include_router(profile_question(settings, Depends(app.state.allowed("read"))))
    _pages(app, models, settings)
    return app


def _allowed(keys: Sequence[ApiKey], limit: KeyedLimit) -> Callable[[str], Callable[..., Awaitable[str]]]:
    header = Depends(APIKeyHeader(name="X-API-Key", auto_error=False, description="needed where keys are set"))

    def for_role(role: str) -> Callable[..., Awaitable[str]]:
        async def who(request: Request, given: str | None = header) -> str:
            name = "local"
            if keys:
                found = [one for one in keys if hmac.compare_digest(one.key.encode(), (given or "").encode())]
                if not found:
                    raise HTTPException(401, "X-API-Key must be one of the server's keys. Ask its operator for one.")
                if role not in _ROLES[found[0].role]:
                    raise HTTPException(403, f"This needs a key of the role {role}; yours is {found[0].role}.")
                name = found[0].name
            elif not names_this_machine(request.headers.get("host", "")):
                raise HTTPException(
                    403, "A server without keys is asked by its own machine's address, http://127.0.0.1 or localhost; "
                    "Host was another. Ask there, or set EVERGREEN_API_KEYS.",
                )
            wait = limit.wait_seconds(name) if keys else 0.0  # whoever needs no key is on this machine
            if wait > 0:
                raise HTTPException(
                    429, f"At most {limit.per_minute} requests a minute are answered to {name!r}. Ask again later.",
                    headers={"Retry-After": str(max(1, round(wait)))},
                )
            request.state.who = name
            return name

        return who

    return for_role


def _errors(app: FastAPI) -> None:
    @app.exception_handler(NoModel)
    async def no_model(_: Request, error: NoModel) -> JSONResponse:
        status, headers = (409, {}) if error.absent else (503, {"Retry-After": "5"})
        return JSONResponse({"detail": str(error)}, status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        said = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"detail": "; ".join(said)[:2_000]}, 422)


def _health(app: FastAPI, models: ServedModels, metrics: ServingMetrics) -> None:
    @app.get("/health/live", tags=["health"])
    def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/health/ready", tags=["health"], responses={503: {"model": Health}})
    def ready(response: Response) -> Health:
        """Whether every task has a model, which, and what the last look at the registry found."""
        response.status_code = 200 if models.ready else 503
        return Health(ready=models.ready, models=_states(models), errors=dict(models.errors))

    @app.get("/metrics", tags=["health"], response_class=Response)
    def prometheus() -> Response:
        """Latency, answers by status, versions and their age, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _answers(app: FastAPI, models: ServedModels) -> None:
    read, operate = Depends(app.state.allowed("read")), Depends(app.state.allowed("operate"))

    if "recommend" in models.tasks:
        @app.post("/v1/recommend", tags=["recommend"], dependencies=[read], responses=FAILURES)
        async def recommend(asked: Recommend) -> Answer:
            """Items that a customer with this history wants next."""
            row = {
                "history": [one.item_id for one in asked.history],
                "history_days": [one.days_ago for one in asked.history],
            }
            served = models.champion("recommend")
            work = partial(_answered, served, row, asked.k, exclude=asked.exclude_history, explain=asked.explain)
            return work() if _soon(served, asked.explain) else await run_in_threadpool(work)

        @app.post("/v1/search", tags=["recommend"], dependencies=[read], responses=FAILURES)
        def search(asked: Search) -> Answer:
            """Items that fit the words, and the customer where a history is given."""
            row = {
                "query": asked.query, "history": [one.item_id for one in asked.history],
                "history_days": [one.days_ago for one in asked.history],
            }
            return _answered(models.champion("recommend"), row, asked.k, exclude=False, explain=asked.explain)

        @app.get("/v1/similar", tags=["recommend"], dependencies=[read], responses=UNKNOWN)
        def similar(item_id: ItemId, k: ResultCount = 20) -> Answer:
            """Items like this one."""
            served = models.champion("recommend")
            if not served.model.service.knows(item_id):
                raise HTTPException(404, f"item_id must be an item that version {served.version} knows; it is not.")
            ids, scores = served.model.service.one({"item_id": item_id}, k)
            return Answer(served=served_by(served), items=_items(ids, scores))

    @app.post("/v1/models/{task}", tags=["any task"], dependencies=[read], responses=UNKNOWN)
    def ask(task: str, asked: ModelRequest) -> ModelAnswer:
        """Rows for the model of any task, in the columns of its signature in the registry."""
        if task not in models.tasks:
            raise HTTPException(404, f"task must be one of {', '.join(models.tasks)}; it is not.")
        return _asked(models, task, asked)

    @app.post("/v1/reload", tags=["health"], dependencies=[operate], responses=FAILURES)
    def reload() -> list[ModelState]:
        """Looks at the registry now instead of within seconds."""
        models.look()
        return _states(models)


def _soon(served: ServedModel, explain: bool) -> bool:
    """Whether an answer is there before a thread would have begun with it."""
    items = getattr(served.model.service, "items", None)  # versions of before 2026-11-29 do not say
    return not explain and items is not None and items <= SOON_ITEMS


def _answered(served: ServedModel, row: dict[str, Any], k: int, *, exclude: bool, explain: bool) -> Answer:
    service = served.model.service
    ids, scores = service.one(row, k, exclude)
    items = _items(ids, scores)
    if explain:
        for item, why in zip(items, service.reasons(row, ids), strict=True):
            item.reasons = Reasons(**why)
    return Answer(served=served_by(served), items=items)


def _asked(models: ServedModels, task: str, asked: ModelRequest) -> ModelAnswer:
    import pandas as pd
    from mlflow.exceptions import MlflowException

    served = models.champion(task)
    try:
        answer = served.predict(pd.DataFrame(asked.rows), asked.parameters)
    except (MlflowException, KeyError, TypeError, ValueError, OverflowError) as error:
        raise HTTPException(400, f"The model of {task!r} refused the request: {error}"[:2_000]) from error
    return ModelAnswer(served=served_by(served), rows=_plain(answer.to_dict(orient="records")))


def _pages(app: FastAPI, models: ServedModels, settings: Settings) -> None:
    read = Depends(app.state.allowed("read"))

    @app.get("/", include_in_schema=False)
    def shop() -> HTMLResponse:
        return HTMLResponse(page())

    if "recommend" in models.tasks:
        from pipeline.serving_page import Titles

        titles = Titles(settings)

        @app.post("/page/answers", include_in_schema=False, dependencies=[read])
        def beside(asked: Search) -> dict[str, Any]:
            row: dict[str, Any] = {"history": [one.item_id for one in asked.history], "query": asked.query}
            now, then = models.champion("recommend"), models.older("recommend")
            return {
                name: None if served is None else {
                    **served_by(served).model_dump(mode="json"),
                    "items": [
                        {"item_id": item, "title": titles.of(item)}
                        for item in served.model.service.one(row, asked.k)[0]
                    ],
                }
                for name, served in (("now", now), ("older", then))
            }


def _items(ids: Sequence[str], scores: Sequence[float]) -> list[Item]:
    return _ITEMS.validate_python([{"item_id": item, "score": score} for item, score in zip(ids, scores, strict=True)])


def _states(models: ServedModels) -> list[ModelState]:
    states = []
    for task in models.tasks:
        try:
            served = models.champion(task)
        except NoModel:
            continue
        age = None if served.window is None else (datetime.now(UTC) - served.window).total_seconds() / 3600
        states.append(ModelState(**served_by(served).model_dump(), loaded_at=served.loaded_at, age_hours=age))
    return states


def _plain(value: Any) -> Any:
    """JSON's own types for numpy's; what is no number becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "ndarray":
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value != value:  # noqa: PLR0124 - NaN alone differs from itself
        return None
    return value.isoformat() if isinstance(value, datetime) else value


def check_place(host: str, port: int) -> None:
    """Refuses a place at which this machine cannot listen, before anybody is told of it.

    Raises:
        SettingsError: the port is none or taken, or the host is none of this machine's.
    """
    if not 1 <= port <= HIGHEST_PORT:
        raise SettingsError(f"--port must lie in 1..{HIGHEST_PORT}; received {port}. Choose another.")
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn: one that has just ended is none
            probe.bind(place)
    except OSError as error:
        raise SettingsError(
            f"--host and --port must be free on this machine; received {host} and {port}: {error.strerror}. "
            "End what listens there, or choose another port."
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the server until it is told to end; returns the process's exit status."""
    import uvicorn

    parser = argparse.ArgumentParser(prog="python -m pipeline.serving", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8088, help="port (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port (%(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        read_settings()
        keys = read_keys(os.environ.get("EVERGREEN_API_KEYS", ""))
        if not keys and chosen.host not in _LOCAL:
            raise SettingsError(
                f"A server that listens at {chosen.host} must have keys; EVERGREEN_API_KEYS is empty. Set it to "
                "name:role:key (a key: openssl rand -hex 24), or listen at 127.0.0.1."
            )
        check_place(chosen.host, chosen.port)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    if chosen.workers > 1:
        folder = read_settings().home / "serving" / "metrics"
        folder.mkdir(parents=True, exist_ok=True)
        for old in Path(folder).glob("*.db"):
            old.unlink()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    print(f"Evergreen serves at http://{chosen.host}:{chosen.port} (description: /docs)", flush=True)
    uvicorn.run(
        "pipeline.serving:create_app", factory=True, host=chosen.host, port=chosen.port, workers=chosen.workers,
        log_level="warning", access_log=False, server_header=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
