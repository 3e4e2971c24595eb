"""The models that a server answers with: whoever the registry calls champion, held in memory, swapped whole.

A thread asks the registry every few seconds who the champion is. A new one is fetched into a folder of its own, loaded
and asked its own example before it takes the place of the old one; a request holds one `ServedModel` from its start to
its end, so that no answer mixes two versions. Where the registry is away, or the new version does not answer, the last
good one goes on; a server that starts meanwhile takes what it fetched before from its folder.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from pipeline.asking import without_passwords
from pipeline.mlflow_models import RETIRED
from pipeline.registry import Registry, open_registry
from pipeline.registry_errors import PREFIX
from pipeline.settings import Settings

_log = logging.getLogger(__name__)

POLL_SECONDS = 5.0  # a promotion is an hourly matter; asking costs the registry one query
VERSIONS_KEPT = 3  # on disk, for each task: the champion, the one before and the older one that the page compares with
OLDER = timedelta(days=7)  # the page shows what the champion of a week ago would have answered


class NoModel(RuntimeError):
    """No version of a task can answer.

    Attributes:
        task: its name.
        absent: whether the registry says that the task has no champion; else none could be loaded yet.
    """

    def __init__(self, task: str, *, absent: bool) -> None:
        self.task, self.absent = task, absent
        super().__init__(
            f"evergreen-{task} must have a champion before it can answer; the registry has none yet. Run the DAG "
            f"retrain_{task}, and look at `python -m pipeline.champion log --task {task}`." if absent else
            f"A champion of evergreen-{task} must have been loaded before it can answer; none was yet. Look at "
            f"/health/ready, at the server's log and at `python -m pipeline.champion show --task {task}`."
        )


@dataclass(frozen=True)
class ServedModel:
    """One loaded version.

    Attributes:
        task, version: which.
        window: the newest hour that it has learnt, where the registry said.
        model: the code that answers (`unwrap_python_model`), whose `predict(None, frame, parameters)` is the pyfunc's.
        loaded_at: when it was ready here.
    """

    task: str
    version: int
    window: datetime | None
    model: Any
    loaded_at: datetime

    def predict(self, rows: pd.DataFrame, parameters: Mapping[str, Any]) -> pd.DataFrame:
        """The pyfunc's answer, without MLflow's check of the signature: the server checks its own schema."""
        answer: pd.DataFrame = self.model.predict(None, rows, dict(parameters))
        return answer


class ServedModels:
    """The champions of some tasks, and for the page an older one of each."""

    def __init__(self, settings: Settings, folder: Path, tasks: Sequence[str]) -> None:
        """Loads nothing yet.

        Args:
            settings: of the installation whose registry is followed.
            folder: where versions are kept on this machine.
            tasks: whose champions are served.
        """
        self.tasks = tuple(tasks)
        self.errors: dict[str, str] = {}
        self._settings, self._folder = settings, folder
        self._champions: dict[str, ServedModel] = {}
        self._absent: set[str] = set()
        self._older: dict[str, ServedModel] = {}
        self._retired: set[tuple[str, int]] = set()
        self._fetched_anew: set[tuple[str, int]] = set()
        self._looking = threading.Lock()  # the thread that follows and a request to reload look each at its time
        self._ending = threading.Event()
        self._listeners: list[Callable[[ServedModel], None]] = []
        self._shared = folder / "shared"
        os.environ.setdefault("EVERGREEN_MODEL_CACHE", str(self._shared))
        # MLflow would try for minutes; here the next look is seconds away
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

    def champion(self, task: str) -> ServedModel:
        """The version that answers now.

        Raises:
            NoModel: none was loaded yet.
        """
        try:
            return self._champions[task]
        except KeyError:
            raise NoModel(task, absent=task in self._absent) from None

    def older(self, task: str) -> ServedModel | None:
        """The champion of a week ago, or the first one of a younger shop; None where it is the champion itself.

        Where retention has removed its files, the nearest champion before it that has them, else after it.
        """
        return self._older.get(task)

    @property
    def ready(self) -> bool:
        """Whether every task has a model."""
        return set(self.tasks) <= set(self._champions)

    def on_swap(self, listener: Callable[[ServedModel], None]) -> None:
        """Calls `listener` with each champion that was loaded."""
        self._listeners.append(listener)

    def start(self, poll_seconds: float = POLL_SECONDS) -> None:
        """Looks once, then goes on looking in a thread until `stop`."""
        self.look()
        threading.Thread(target=self._follow, args=(poll_seconds,), name="champions", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread after its present look."""
        self._ending.set()

    def look(self) -> None:
        """Brings every task to its champion, as far as the registry answers; one look at a time."""
        with self._looking:
            for task in self.tasks:
                try:
                    self._look(task)
                    self.errors.pop(task, None)
                except Exception as error:
                    said = without_passwords(str(error))  # /health/ready tells it to whoever asks, without a key
                    self.errors[task] = f"{type(error).__name__}: {said}"
                    _log.warning("evergreen-%s: the registry or a new version did not answer: %s", task, said)
                    if task not in self._champions:
                        self._from_disk(task)

    def _follow(self, poll_seconds: float) -> None:
        while not self._ending.wait(poll_seconds):
            self.look()

    def _look(self, task: str) -> None:
        registry = open_registry(self._settings)
        version = registry.champion(task)
        if version is None:
            self._absent.add(task)
            return
        self._absent.discard(task)
        held = self._champions.get(task)
        if held is None or held.version != version:
            self._swap(self._loaded(task, version, registry.tags(task, version).get("evergreen.window")))
        nearest = _older_champions(registry.decisions(task).to_pylist(), version, datetime.now(UTC) - OLDER)
        try:
            self._look_back(registry, task, nearest)
        except Exception as error:  # the page alone shows it: the champion serves all the same
            said = without_passwords(str(error))
            _log.warning("evergreen-%s: the older version to compare with did not load: %s", task, said)
        self._tidy(task)

    def _look_back(self, registry: Registry, task: str, nearest: Sequence[int]) -> None:
        """Holds the first of `nearest` that has its files."""
        for version in nearest:
            if task in self._older and self._older[task].version == version:
                return
            if (task, version) in self._retired:  # for ever; so each is asked for once, not every few seconds
                continue
            tags = registry.tags(task, version)
            if RETIRED in tags:
                self._retired.add((task, version))
                continue
            self._older[task] = self._loaded(task, version, tags.get("evergreen.window"))
            return
        self._older.pop(task, None)

    def _swap(self, model: ServedModel) -> None:
        self._champions[model.task] = model  # one assignment: a request sees the old one or the new one
        note = self._folder / model.task / "champion.json"
        unfinished = note.with_suffix(f".{os.getpid()}.tmp")
        window = model.window.isoformat() if model.window else None
        unfinished.write_text(json.dumps({"version": model.version, "window": window}))
        unfinished.replace(note)
        _log.info("evergreen-%s: version %s serves", model.task, model.version)
        for listener in self._listeners:
            listener(model)

    def _loaded(self, task: str, version: int, window: str | None) -> ServedModel:
        """A version from the registry, or from disk where it was fetched before; it has answered its example.

        What lies on disk may be broken, so where it does not answer it is fetched anew: once, for a version may be
        broken in the registry too.
        """
        place = self._folder / task / str(version)
        on_disk = place.is_dir()
        if not on_disk:
            self._fetch(task, version, place)
        try:
            return self._opened(task, version, window, place)
        except Exception as error:
            if not on_disk or (task, version) in self._fetched_anew:
                raise
            _log.warning("evergreen-%s: version %s on disk did not answer, is fetched anew: %s", task, version, error)
            self._fetch(task, version, place, anew=True)
            self._fetched_anew.add((task, version))
            return self._opened(task, version, window, place)

    def _fetch(self, task: str, version: int, place: Path, *, anew: bool = False) -> None:
        """Copies a version from the registry to `place`, all of it or nothing; `anew`: instead of what lies there."""
        import mlflow

        place.parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(self._settings.tracking_uri)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{version}.") as scratch:
            whole = Path(scratch) / "whole"
            whole.mkdir()
            mlflow.artifacts.download_artifacts(f"models:/{PREFIX}{task}/{version}", dst_path=str(whole))
            if not (whole / "MLmodel").is_file():  # of a folder that is gone MLflow copies nothing and says nothing
                raise FileNotFoundError(
                    f"Version {version} of {PREFIX}{task} must have its files in the registry; they are not there. See "
                    f"`python -m pipeline.champion versions --task {task}`."
                )
            with suppress(OSError):  # another worker of this machine was faster
                if anew:
                    place.rename(Path(scratch) / "broken")
                whole.rename(place)

    def _opened(self, task: str, version: int, window: str | None, place: Path) -> ServedModel:
        import mlflow

        pyfunc = mlflow.pyfunc.load_model(str(place))
        model = ServedModel(
            task, version, datetime.fromisoformat(window) if window else None, pyfunc.unwrap_python_model(),
            datetime.now(UTC),
        )
        example = pyfunc.input_example
        if example is not None:
            model.predict(pd.DataFrame(example), {})  # what loads late (the text encoder) loads now
        return model

    def _from_disk(self, task: str) -> None:
        """The champion that this machine served last, for a start while the registry is away."""
        try:
            note = json.loads((self._folder / task / "champion.json").read_text())
            self._champions[task] = self._loaded(task, int(note["version"]), note["window"])
        except Exception as error:
            _log.warning("evergreen-%s: nothing to serve on disk either: %s", task, error)

    def _tidy(self, task: str) -> None:
        """Removes versions from disk that neither serve nor are compared with, but for the newest few."""
        used = {held.version for held in (self._champions.get(task), self._older.get(task)) if held}
        places = [path for path in (self._folder / task).iterdir() if path.is_dir() and path.name.isdigit()]
        newest = sorted(places, key=lambda path: int(path.name), reverse=True)
        for path in newest[VERSIONS_KEPT:]:
            if int(path.name) not in used and time.time() - path.stat().st_mtime > 60 * POLL_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
                self._tidy_shared()

    def _tidy_shared(self) -> None:
        """Removes what versions shared and none on disk is made of any more; in a cache of others nothing."""
        from mlflow.models import Model

        if Path(os.environ["EVERGREEN_MODEL_CACHE"]) != self._shared:
            return
        told = [
            Model.load(str(path.parent)).flavors["python_function"].get("config", {})
            for path in self._folder.glob("*/*/MLmodel")
        ]
        needed = {content for one in told for content in one.get("shared_content", {}).values()}
        # by its address does a version find it whose code is of before 2026-12
        needed |= {quote(address, safe="") for one in told for address in one.get("shared", {}).values()}
        for path in self._shared.glob("[!.]*"):  # with a dot begins what is being fetched
            if path.name not in needed:
                shutil.rmtree(path, ignore_errors=True)


def _older_champions(decisions: Sequence[Mapping[str, Any]], champion: int, before: datetime) -> list[int]:
    """Who served at the moment `before`, or first of all, then who did next before and after; none: the champion did.

    Args:
        decisions: rows of the registry's log, oldest first.
        champion: who serves now.
        before: the moment.
    """
    moves = [row for row in decisions if row["champion_after"] not in (None, row["champion_before"])]
    then = [row for row in moves if row["decided_at"] <= before] or moves[:1]
    nearest = dict.fromkeys(int(row["champion_after"]) for row in (*reversed(then), *moves[len(then):]))
    return [] if next(iter(nearest), champion) == champion else [version for version in nearest if version != champion]
