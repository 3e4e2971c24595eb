"""All that a task's model and its history are: what must be the same with and without a fault in between."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import updating
from pipeline.checkpoint import load
from pipeline.lake import open_lake
from pipeline.registry import Registry, open_registry
from pipeline.settings import Settings

_TAGS_OF_A_WHOLE_VERSION = {"evergreen.ledger", "evergreen.decision", "evergreen.reasons", "evergreen.code"}


def copy_of(home: Path, to: Path) -> None:
    """Copies lake and registry of an installation; new artifacts go where the first one's are."""
    shutil.copytree(home / "lake", to / "lake")
    shutil.copy(home / "mlflow.db", to / "mlflow.db")


def half_registered(registry: Registry, task: str) -> list[str]:
    """What of the registry is not whole: a version without tags or checkpoint, an alias of a version that is not."""
    versions, found = registry.versions(task), []
    for version in versions:
        if not set(registry.tags(task, version)) >= _TAGS_OF_A_WHOLE_VERSION:
            found.append(f"version {version} lacks tags")
        with tempfile.TemporaryDirectory() as folder:
            try:
                load(registry.load_checkpoint(task, version, Path(folder)))
            except Exception as error:  # noqa: BLE001, RUF100 - whatever it is, the version is not whole
                found.append(f"version {version} has no checkpoint: {error}")
    aliases = registry.aliases(task)
    return found + [f"{alias} names {version}" for alias, version in aliases.items() if version not in versions]


def end_of(task: str, settings: Settings) -> dict[str, Any]:
    """Versions, aliases, tags, the log, quality, the champion's arrays and ledger, and what is still to be learnt."""
    registry, lake = open_registry(settings), open_lake(settings)
    versions, aliases = registry.versions(task), registry.aliases(task)
    with tempfile.TemporaryDirectory() as folder:
        held = load(registry.load_checkpoint(task, aliases["champion"], Path(folder)))
    quality = lake.arrow("quality").to_pylist()
    tags = {version: registry.tags(task, version) for version in versions}
    return {
        "versions": versions, "aliases": aliases, "half of a version": half_registered(registry, task),
        "tags": {version: {key: one for key, one in own.items() if key != "evergreen.code"}
                 for version, own in tags.items()},
        "log": [{**row, "decided_at": None} for row in registry.decisions(task).to_pylist()],
        "quality": sorted(json.dumps(row, default=str, sort_keys=True) for row in quality),
        "arrays": {name: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
                   for name, array in held.state.arrays.items()},
        "meta": held.state.meta, "ledger": held.ledger.as_json(), "nothing to do": updating.plan(task, settings),
    }
