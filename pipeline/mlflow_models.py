"""How this project reaches MLflow: models by the name of their task, their versions, experiments and files.

What a version holds is `versions.py`'s, what several versions share `shared_parts.py`'s.
"""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.locking import Locks
from pipeline.registry_errors import PREFIX, VersionMissing, VersionRetired

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

RETIRED, FILES = "evergreen.retired", "evergreen.files"


class MlflowModels:
    """The models `evergreen-<task>` at one MLflow address."""

    def __init__(self, tracking_uri: str, locks: Locks, artifacts: str | None = None) -> None:
        """Opens nothing yet; arguments as of `Registry`."""
        self.tracking_uri, self._locks = tracking_uri, locks
        self._artifacts = None if tracking_uri.startswith(("http://", "https://")) else artifacts

    @property
    def _mlflow(self) -> Any:
        """MLflow, told where it is: parts of it know only the process's address."""
        import mlflow  # 1.3 s: only where it is used

        if mlflow.get_tracking_uri() != self.tracking_uri:
            mlflow.set_tracking_uri(self.tracking_uri)
        return mlflow

    @cached_property
    def _client(self) -> MlflowClient:
        return cast("MlflowClient", self._mlflow.MlflowClient(self.tracking_uri, self.tracking_uri))

    def _version(self, task: str, version: int) -> ModelVersion:
        try:
            return self._client.get_model_version(PREFIX + task, str(version))
        except mlflow_exception() as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise VersionMissing(task, version) from error

    def _whole(self, task: str, version: int) -> ModelVersion:
        """A version that has its files."""
        held = self._version(task, version)
        if RETIRED in held.tags:
            raise VersionRetired(task, version, held.tags[RETIRED])
        return held

    def _search(self, task: str, condition: str = "") -> list[ModelVersion]:
        rule = f"name = '{PREFIX}{task}'" + (f" and {condition}" if condition else "")
        found: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = self._client.search_model_versions(rule, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _create_model(self, name: str, description: str) -> None:
        if self._client.search_registered_models(f"name = '{name}'"):
            return
        try:
            self._client.create_registered_model(name, description=description)
        except mlflow_exception() as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _experiment(self, name: str) -> str:
        """The experiment of a model; its files go below `artifacts` where no server says otherwise."""
        held = self._client.get_experiment_by_name(name)
        if held is None:
            location = f"{_as_url(self._artifacts)}/{name}" if self._artifacts else None
            try:
                return self._client.create_experiment(name, artifact_location=location)
            except mlflow_exception() as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                held = self._client.get_experiment_by_name(name)
        return cast("Any", held).experiment_id  # found, or made by another process in between

    def _download(self, version: ModelVersion, path: str) -> str:
        with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
            return Path(self._mlflow.artifacts.download_artifacts(
                run_id=version.run_id, artifact_path=path, dst_path=scratch, tracking_uri=self.tracking_uri
            )).read_text()


def _as_url(place: str) -> str:
    return place.rstrip("/") if "://" in place else Path(place).resolve().as_uri()


def mlflow_exception() -> type[Any]:
    """MLflow's own, whose import waits until it is needed."""
    from mlflow.exceptions import MlflowException

    return MlflowException
