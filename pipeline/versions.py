"""The versions of the models in MLflow: how one is made with its checkpoint, what it holds, what names it.

A version is made by one atomic call that carries all its tags, after everything it refers to is stored; a process
killed before leaves an MLflow run that nothing refers to, never half a version. Which of them serves is `registry.py`'s
to decide. MLflow is reached through `mlflow_models.py`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.mlflow_models import FILES, RETIRED, mlflow_exception
from pipeline.packaging import MOST_CHARACTERS, code_version, content_hash, description, renamed
from pipeline.registry_errors import PREFIX, FilesMissing, RegistryError, VerificationFailed
from pipeline.shared_parts import SHARED, SharedParts
from pipeline.verification import fault_of
from pipeline.version_files import folder_bytes, remove_folder

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

    from pipeline.tasks.contract import Package

_LOGGED = "models:/"
_CHECKPOINT = "checkpoint"
_STORED_WHOLE = "see the run's artifact tags.json"

# MLflow gives the number after the newest that it has: also one whose version was deleted, or lost with a registry that
# was put back from a backup. Decisions, quality and lineage would then be told of two models as if they were one.
_LOST = "The version of this number is gone from the registry; what was decided on it is in the log."


@dataclass(frozen=True)
class Entry:
    """A version as the registry lists it.

    Attributes:
        number: the version.
        registered_at: when.
        tags: all its tags.
    """

    number: int
    registered_at: datetime
    tags: Mapping[str, str]

    @property
    def retired(self) -> str | None:
        """Why its files were removed; None: it has them."""
        return self.tags.get(RETIRED)


class Versions(SharedParts):
    """The models `evergreen-<task>` at one MLflow address."""

    # -- reading ------------------------------------------------------------------------------------------

    def aliases(self, task: str) -> dict[str, int]:
        """Alias -> version."""
        try:
            aliases = self._client.get_registered_model(PREFIX + task).aliases
        except mlflow_exception() as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: int(version) for alias, version in aliases.items()}

    def champion(self, task: str) -> int | None:
        """The version that serves."""
        return self._named(task, "champion")

    def previous(self, task: str) -> int | None:
        """The version that served before."""
        return self._named(task, "previous")

    def _named(self, task: str, alias: str) -> int | None:
        """The version that an alias names; None: none.

        Asked for one alias MLflow reads one version; asked for all of them, each version of the model (3.17).
        """
        try:
            return int(self._client.get_model_version_by_alias(PREFIX + task, alias).version)
        except mlflow_exception() as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model; no alias
                raise
            return None

    def tags(self, task: str, version: int) -> dict[str, str]:
        """All tags of a version, those stored as a file included.

        Raises:
            VersionMissing: there is none.
        """
        return self._tags_of(self._version(task, version))

    def _tags_of(self, held: ModelVersion) -> dict[str, str]:
        tags = dict(held.tags)
        if _STORED_WHOLE in tags.values():
            whole = json.loads(self._download(held, "tags.json"))
            tags |= {key: whole[key] for key, value in tags.items() if value == _STORED_WHOLE}
        return tags

    def entries(self, task: str) -> list[Entry]:
        """All versions with their tags, oldest first, in few calls however many they are."""
        return self._entries(self._search(task))

    def versions(self, task: str) -> list[int]:
        """All versions, oldest first."""
        return sorted(int(version.version) for version in self._search(task))

    def children(self, task: str, parent: int | None) -> list[Entry]:
        """The versions that were trained from `parent` (None: from the base), oldest first, in few calls as `entries`.

        A champion that is held for days has one an hour, and each that was asked for by itself took 10 ms.
        """
        return self._entries(self._search(task, f"tags.`evergreen.parent` = '{'' if parent is None else parent}'"))

    def _entries(self, found: Iterable[ModelVersion]) -> list[Entry]:
        entries = [
            Entry(int(held.version), datetime.fromtimestamp(held.creation_timestamp / 1000, UTC), self._tags_of(held))
            for held in found
        ]
        return sorted(entries, key=lambda entry: entry.number)

    def load_checkpoint(self, task: str, version: int, into: Path) -> Path:
        """Copies a version's checkpoint below `into`; returns its folder.

        Raises:
            VersionRetired: retention has removed its files.
            FilesMissing: somebody else has, with its run or without.
        """
        held = self._whole(task, version)
        try:
            return Path(self._mlflow.artifacts.download_artifacts(
                run_id=held.run_id, artifact_path=_CHECKPOINT, dst_path=str(into), tracking_uri=self.tracking_uri,
            ))
        except mlflow_exception() as error:
            if self._has_checkpoint(str(held.run_id)):  # a store that is away is asked again by the next run
                raise
            raise FilesMissing(task, version) from error

    def _has_checkpoint(self, run_id: str) -> bool:
        try:
            return any(file.path == _CHECKPOINT for file in self._client.list_artifacts(run_id))
        except mlflow_exception() as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the run is gone
                raise
            return False

    def load_artifacts(self, task: str, version: int, into: Path) -> Path:
        """Copies what a version's package holds beside its code below `into`; returns its folder."""
        self._version(task, version)
        return Path(self._mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{PREFIX}{task}/{version}/artifacts", dst_path=str(into),
            tracking_uri=self.tracking_uri,
        ))

    def read_file(self, task: str, version: int, path: str) -> str | None:
        """A text file that lies with a version's run; None where there is none, or no more."""
        held = self._version(task, version)
        try:
            return self._download(held, path)
        except (mlflow_exception(), OSError):
            return None

    def package_bytes(self, task: str, version: int) -> int:
        """How much of what consumers load is a version's own; 0 where its files were removed."""
        package = self._stored(self._version(task, version))[1]
        return 0 if package is None else folder_bytes(*package, self.tracking_uri)

    # -- registering --------------------------------------------------------------------------------------

    def register(
        self, task: str, package: Package, checkpoint_folder: Path, tags: Mapping[str, str],
        metrics: Mapping[str, float],
    ) -> int:
        """Stores a model with its checkpoint and makes it a version, with the alias `challenger`.

        Args:
            task: the model is `evergreen-<task>`.
            package: what consumers get.
            checkpoint_folder: what the next update goes on from.
            tags: `evergreen.*`: of the version, from its first moment.
            metrics: of the run, for MLflow's charts.

        Returns:
            The version.
        """
        name = PREFIX + task
        self._create_model(name, f"Evergreen's task `{task}`: `champion` serves, `previous` served before.")
        contents = {part: content_hash(folder) for part, folder in package.shared.items()}
        shared = {part: self._share(part, folder, contents[part]) for part, folder in package.shared.items()}
        tags = {"evergreen.code": code_version(), **tags, SHARED: ",".join(sorted(shared.values()))}
        run_name = " ".join(tags.get(f"evergreen.{key}", "") for key in ("kind", "window")).strip()
        with self._mlflow.start_run(experiment_id=self._experiment(name), run_name=run_name or None) as run:
            self._client.log_batch(run.info.run_id, metrics=_points(self._mlflow, metrics))
            self._store_files(run.info.run_id, package, checkpoint_folder, tags)
            logged = self._log_model(package, shared, contents)
        for _ in range(self._newest_spoken_of(task) - max(self.versions(task), default=0)):
            self._client.create_model_version(name, logged.model_uri, tags={RETIRED: _LOST, FILES: "removed"})
        version = self._client.create_model_version(
            name, source=logged.model_uri, run_id=run.info.run_id, model_id=logged.model_id,
            tags={key: _fitting(value) for key, value in tags.items()},
            description=description(tags, metrics), await_creation_for=0,
        )
        self._client.set_registered_model_alias(name, "challenger", version.version)
        return int(version.version)

    def _newest_spoken_of(self, task: str) -> int:
        """The newest number of which more is known than the registry holds: it is given to no other version."""
        return 0

    def name_challenger(self, task: str, version: int) -> None:
        """Gives a version the alias `challenger`, which a process killed while registering it could not."""
        self._client.set_registered_model_alias(PREFIX + task, "challenger", str(version))

    def _store_files(
        self, run_id: str, package: Package, checkpoint_folder: Path, tags: Mapping[str, str]
    ) -> None:
        self._client.log_artifacts(run_id, str(checkpoint_folder), _CHECKPOINT)
        with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
            (Path(scratch) / "tags.json").write_text(json.dumps(dict(tags), indent=2))
            package.output_example.to_json(Path(scratch) / "output_example.json", orient="split")
            self._client.log_artifacts(run_id, scratch)

    def _log_model(self, package: Package, shared: Mapping[str, str], contents: Mapping[str, str]) -> Any:
        with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
            code = [renamed(folder, Path(scratch)) for folder in package.code_folders]
            config = {**package.config, "shared": dict(shared), "shared_content": dict(contents)}
            names = {folder.name: copy.name for folder, copy in zip(package.code_folders, code, strict=True)}
            if package.config.get("code_package") in names:
                config["code_package"] = names[package.config["code_package"]]
            return self._mlflow.pyfunc.log_model(
                name="model", python_model=str(package.model_code), code_paths=[str(copy) for copy in code],
                artifacts={part: str(path) for part, path in package.artifacts.items()}, model_config=config,
                pip_requirements=list(package.requirements), signature=_signature(package),
                input_example=package.input_example,
            )

    # -- what is known later, and checked -------------------------------------------------------------------

    def note(self, task: str, version: int, name: str, text: str) -> None:
        """Sets the tag `evergreen.<name>` of a version: for what is known only after it was registered."""
        with self._locks(f"note-{task}"):  # of two that set a tag at once MLflow fails one
            self._client.set_model_version_tag(PREFIX + task, str(version), f"evergreen.{name}", text)

    def write_card(self, task: str, version: int, name: str, card: str, short: str) -> None:
        """Stores a version's card, Markdown, as the file `name` of its run, and `short` as its description."""
        held = self._version(task, version)
        with self._locks(f"note-{task}"):
            self._client.log_text(str(held.run_id), card, name)
            self._client.update_model_version(PREFIX + task, str(version), description=short)

    def verify(self, task: str, version: int) -> None:
        """Loads a version in a fresh process, as a consumer would, and has it answer its input example.

        Raises:
            VerificationFailed: it does not load, or answers differently than when it was trained.
        """
        wanted = json.loads(self._download(self._version(task, version), "output_example.json"))
        seen = fault_of(f"models:/{PREFIX}{task}/{version}", self.tracking_uri, wanted)
        if seen is not None:
            raise VerificationFailed(task, version, seen)

    # -- files ----------------------------------------------------------------------------------------------

    def bytes_of(self, task: str, version: int) -> int:
        """How much a version's checkpoint and package take."""
        return sum(folder_bytes(*place, self.tracking_uri) for place in self._places(task, version))

    def remove_files(self, task: str, version: int) -> None:
        """Removes the checkpoint and the package of a retired version; its tags stay. Safe to repeat."""
        held = self._version(task, version)
        if RETIRED not in held.tags:
            raise RegistryError(f"Version {version} of {PREFIX}{task} must be retired before its files are removed.")
        for place in self._places(task, version):
            remove_folder(*place, self.tracking_uri)
        self._client.set_model_version_tag(PREFIX + task, str(version), FILES, "removed")

    def _places(self, task: str, version: int) -> list[tuple[str, str]]:
        """(address, folder) of a version's checkpoint and of its package."""
        return [place for place in self._stored(self._version(task, version)) if place is not None]

    def _stored(self, held: ModelVersion) -> list[tuple[str, str] | None]:
        """Checkpoint and package; None for what somebody has deleted in MLflow, which then tells no address of it."""
        from_run = self._still_there(self._client.get_run, held.run_id) if held.run_id else None
        # `model_id` is None on a version that is read again
        name = held.source.removeprefix(_LOGGED) if held.source and held.source.startswith(_LOGGED) else None
        logged = self._still_there(self._client.get_logged_model, name) if name else None
        return [
            None if from_run is None else (from_run.info.artifact_uri, _CHECKPOINT),
            None if logged is None else (logged.artifact_location, ""),
        ]

    def _still_there(self, found: Callable[[str], Any], name: str) -> Any:
        try:
            return found(name)
        except mlflow_exception() as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def _signature(package: Package) -> ModelSignature:
    """The signature of a package; any column may be left out of a request.

    A list of texts is declared as a list of anything: MLflow 3.17 on pandas 3 cuts every text of a list to its
    first letter where one of them is null, so that the model has to look at them itself.
    """
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

    parameters = dict(package.parameters) or None
    inferred = infer_signature(package.input_example, package.output_example, parameters)
    columns: list[Any] = [
        ColSpec(Array(AnyType()) if column.type == Array(DataType.string) else column.type, column.name, required=False)
        for column in inferred.inputs.inputs
    ]
    return ModelSignature(Schema(columns), inferred.outputs, inferred.params)


def _points(mlflow: Any, metrics: Mapping[str, float]) -> list[Any]:
    now = int(datetime.now(UTC).timestamp() * 1000)  # MLflow's charts need a time; nothing here reads it
    return [mlflow.entities.Metric(name, float(value), now, 0) for name, value in metrics.items()]


def _fitting(value: str) -> str:
    return value if len(value) <= MOST_CHARACTERS else _STORED_WHOLE
