"""Files that versions of a model share, as the service of one of them fetches them from the registry."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow


@contextmanager
def part(context: Any, name: str) -> Iterator[Path]:
    """The folder of a model's part: in the registry once for many versions, or among the model's own artifacts.

    Args:
        context: MLflow's, of the model that is loaded.
        name: of the part.
    """
    told = context.model_config
    address = told.get("shared", {}).get(name)
    if address is None:
        yield Path(context.artifacts[name])
        return
    with fetched(address, told.get("shared_content", {}).get(name)) as folder:
        yield folder


@contextmanager
def fetched(address: str, content: str | None) -> Iterator[Path]:
    """The folder at an address, for as long as it is read.

    Where EVERGREEN_MODEL_CACHE names a folder, it is fetched into that once for all versions, and stays. Elsewhere it
    is removed again: what MLflow 3.17 downloads of itself stays in the system's temporary folder for ever, of a text
    encoder 16 to 88 MB for each version that was loaded (seen there after a demo).

    Args:
        address: `models:/<name>/<version>`.
        content: its hash, by which it is found in a cache, which may be that of several registries (each has a
            version 1); None: of a package that does not say it, which uses no cache.
    """
    cache = os.environ.get("EVERGREEN_MODEL_CACHE")
    if cache and content:
        yield _cached(address, Path(cache) / content)
        return
    with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
        yield Path(mlflow.artifacts.download_artifacts(address, dst_path=scratch))


def _cached(address: str, place: Path) -> Path:
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=".", dir=place.parent)
        mlflow.artifacts.download_artifacts(address, dst_path=scratch)
        try:
            os.replace(scratch, place)
        except OSError:  # another process was faster
            shutil.rmtree(scratch, ignore_errors=True)
    return place
