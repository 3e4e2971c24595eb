"""From a shell: a version as a SavedModel with signatures, for TensorFlow Serving or any other runner of such graphs.

`python -m pipeline.saved_model recommend 7 /models/recommend` writes `/models/recommend/7`, under which TensorFlow
Serving finds it by itself. It answers as the version's pyfunc does (models/recommender_graph.py): `recommend` and
`similar` by ids, `search` by the query's vector.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.asking import a_person_waits
from pipeline.registry import Registry, open_registry
from pipeline.registry_errors import RegistryError
from pipeline.settings import SettingsError, read_settings


def write_saved_model(registry: Registry, task: str, version: int, out: Path) -> Path:
    """Writes a version of `recommend` below `out`; returns its folder. One that is there already is left as it is.

    Raises:
        VersionMissing: there is no such version.
    """
    from models.compact_ensemble import load_recommender
    from models.recommender_graph import RecommenderGraph

    place = out / str(version)
    if place.exists():
        return place
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f".{version}.{os.getpid()}.tmp"  # no number: TensorFlow Serving does not look at it
    with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
        artifacts = registry.load_artifacts(task, version, Path(scratch))
        RecommenderGraph(load_recommender(artifacts / "recommender")).save(unfinished)
    try:
        unfinished.rename(place)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished)
    return place


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes one version; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.saved_model", description=__doc__)
    parser.add_argument("task", choices=["recommend"], help="whose model")
    parser.add_argument("version", type=int, help="the version")
    parser.add_argument("out", type=Path, help="the model's folder; the version becomes a folder in it")
    chosen = parser.parse_args(arguments)
    try:
        settings = read_settings()
        with a_person_waits(settings.tracking_uri):
            print(write_saved_model(open_registry(settings), chosen.task, chosen.version, chosen.out))
    except (RegistryError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
