"""Airflow's web server shows Evergreen's pages (quality of each window, health) to whoever is logged in.

The pages are files below `EVERGREEN_REPORTS`; a link from a task or from the navigation opens them with no second
server and no second log-in.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from airflow.api_fastapi.core_api.security import get_user
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import FileResponse

from pipeline.settings import read_settings

app = FastAPI(title="Evergreen's pages", docs_url=None, redoc_url=None, openapi_url=None)

_SHOWN = {".html": "text/html", ".png": "image/png"}


@app.get("/{path:path}")
def page(path: str, _: Annotated[Any, Depends(get_user)]) -> FileResponse:
    """A page or picture below the reports folder; anything else is not there."""
    folder = read_settings().reports.resolve()
    file = (folder / path).resolve()
    if not file.is_relative_to(folder) or file.suffix not in _SHOWN or not file.is_file():
        days = read_settings().pages_days
        raise HTTPException(404, f"There is no page {path!r} yet, or it was removed by retention after {days} days. "
                                 "Backfill the hour, or ask python -m pipeline.lineage: either writes it anew.")
    # pages carry their own styles and no script: nothing that landed in the shop's files can run
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:"
    return FileResponse(file, media_type=_SHOWN[file.suffix], headers={"Content-Security-Policy": policy})


class EvergreenPages(AirflowPlugin):
    """The pages and their entry in the navigation."""

    name = "evergreen_pages"
    fastapi_apps: ClassVar[list[Any]] = [{"app": app, "url_prefix": "/evergreen", "name": "Evergreen's pages"}]
    external_views: ClassVar[list[Any]] = [
        {
            "name": "Evergreen health", "href": "/evergreen/health.html", "destination": "nav",
            "url_route": "evergreen-health", "category": "browse",
        }
    ]
