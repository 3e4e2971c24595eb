"""The model registry: versions with their checkpoints, who serves, every decision. The only user of MLflow.

A version is made by one atomic call that carries all its tags, after everything it refers to is stored; a
process killed before leaves an MLflow run that nothing refers to, never half a version. MLflow's aliases have
no compare-and-set, so the champion moves under a lock, by whoever still finds the champion that the
challenger was compared with. What is about to happen is first written on the version (`evergreen.move`), then
the aliases move, then the row is appended to the lake's `decisions`; whoever comes next completes what a
killed process left.

From a shell: `python -m pipeline.champion --help`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from pipeline.decisions import DecisionLog, DecisionRow, Service
from pipeline.lake import Lake, open_lake
from pipeline.locking import Locks, locks_of
from pipeline.packaging import MOST_CHARACTERS, code_version, content_hash, description, renamed
from pipeline.registry_errors import (
    PREFIX,
    PromotionConflict,
    RegistryError,
    VerificationFailed,
    VersionMissing,
    VersionRetired,
)
from pipeline.settings import Settings
from pipeline.verification import fault_of
from pipeline.version_files import folder_bytes, remove_folder

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

    from pipeline.tasks.contract import Package

MOVES = ("promote", "first", "force", "rollback")
NOTES = ("hold", "reject", "set-aside", "cannot-score")
_OF_CHAMPION = ("set-aside", "cannot-score")  # notes on who serves, not on what was done with a version

_LOGGED = "models:/"
RETIRED, _FILES = "evergreen.retired", "evergreen.files"

_STORED_WHOLE = "see the run's artifact tags.json"


@dataclass(frozen=True)
class Promotion:
    """A move of the champion.

    Attributes:
        task, version, action: what was done.
        champion_before, champion_after: who served before and serves now.
    """

    task: str
    version: int
    action: str
    champion_before: int | None
    champion_after: int | None


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


class Registry:
    """The models `evergreen-<task>` at one MLflow address."""

    def __init__(
        self,
        tracking_uri: str,
        lake: Lake,
        locks: Locks,
        artifacts: str | None = None,
        *,
        verifies: bool = True,
    ) -> None:
        """Opens nothing yet.

        Args:
            tracking_uri: MLflow's address: a server's URL, or a database's.
            lake: where `decisions` is.
            locks: mutual exclusion by name.
            artifacts: folder or URL where files go when no server decides that (a database's URL as address).
            verifies: whether a model is loaded in a fresh process before it may serve.
        """
        self.tracking_uri = tracking_uri
        self._log, self._locks, self._verifies = DecisionLog(lake), locks, verifies
        self._artifacts = None if tracking_uri.startswith(("http://", "https://")) else artifacts

    # -- reading ------------------------------------------------------------------------------------------

    def aliases(self, task: str) -> dict[str, int]:
        """Alias -> version."""
        try:
            aliases = self._client.get_registered_model(PREFIX + task).aliases
        except _mlflow_exception() as error:
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
        except _mlflow_exception() as error:
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
        found = [
            Entry(int(held.version), datetime.fromtimestamp(held.creation_timestamp / 1000, UTC), self._tags_of(held))
            for held in self._search(task)
        ]
        return sorted(found, key=lambda entry: entry.number)

    def versions(self, task: str) -> list[int]:
        """All versions, oldest first."""
        return sorted(int(version.version) for version in self._search(task))

    def children(self, task: str, parent: int | None) -> list[int]:
        """The versions that were trained from `parent` (None: from the base), oldest first."""
        found = self._search(task, f"tags.`evergreen.parent` = '{'' if parent is None else parent}'")
        return sorted(int(version.version) for version in found)

    def decided(self, task: str, version: int) -> bool:
        """Whether the log has what was done with a version: moved to champion, held or rejected."""
        return any(row.action not in _OF_CHAMPION for row in self._log.rows(task, version=version))

    def all_decided(self, task: str) -> set[int]:
        """The versions with which something was done."""
        return {row.version for row in self._log.rows(task) if row.action not in _OF_CHAMPION}

    def decisions(self, task: str) -> pa.Table:
        """The log of a task's decisions: DECISIONS_SCHEMA, in order of time."""
        return self._log.table(task)

    def services(self, task: str) -> list[Service]:
        """Who served when, and why; also of versions that are gone."""
        return self._log.services(task)

    def load_checkpoint(self, task: str, version: int, into: Path) -> Path:
        """Copies a version's checkpoint below `into`; returns its folder.

        Raises:
            VersionRetired: retention has removed its files.
        """
        return Path(self._mlflow.artifacts.download_artifacts(
            run_id=self._whole(task, version).run_id, artifact_path="checkpoint", dst_path=str(into),
            tracking_uri=self.tracking_uri,
        ))

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
        except (_mlflow_exception(), OSError):
            return None

    def package_bytes(self, task: str, version: int) -> int:
        """How much of what consumers load is a version's own; 0 where its files were removed."""
        return sum(folder_bytes(*place, self.tracking_uri) for place in self._places(task, version)[1:])

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
        tags = {"evergreen.code": code_version(), **tags}
        self._create_model(name, f"Evergreen's task `{task}`: `champion` serves, `previous` served before.")
        shared = {part: self._share(part, folder) for part, folder in package.shared.items()}
        run_name = " ".join(tags.get(f"evergreen.{key}", "") for key in ("kind", "window")).strip()
        with self._mlflow.start_run(experiment_id=self._experiment(name), run_name=run_name or None) as run:
            self._client.log_batch(run.info.run_id, metrics=_points(self._mlflow, metrics))
            self._store_files(run.info.run_id, package, checkpoint_folder, tags)
            logged = self._log_model(package, shared)
        version = self._client.create_model_version(
            name, source=logged.model_uri, run_id=run.info.run_id, model_id=logged.model_id,
            tags={key: _fitting(value) for key, value in tags.items()},
            description=description(tags, metrics), await_creation_for=0,
        )
        self._client.set_registered_model_alias(name, "challenger", version.version)
        return int(version.version)

    def name_challenger(self, task: str, version: int) -> None:
        """Gives a version the alias `challenger`, which a process killed while registering it could not."""
        self._client.set_registered_model_alias(PREFIX + task, "challenger", str(version))

    def _store_files(
        self, run_id: str, package: Package, checkpoint_folder: Path, tags: Mapping[str, str]
    ) -> None:
        self._client.log_artifacts(run_id, str(checkpoint_folder), "checkpoint")
        with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
            (Path(scratch) / "tags.json").write_text(json.dumps(dict(tags), indent=2))
            package.output_example.to_json(Path(scratch) / "output_example.json", orient="split")
            self._client.log_artifacts(run_id, scratch)

    def _log_model(self, package: Package, shared: Mapping[str, str]) -> Any:
        with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
            code = [renamed(folder, Path(scratch)) for folder in package.code_folders]
            config = {**package.config, "shared": dict(shared)}
            names = {folder.name: copy.name for folder, copy in zip(package.code_folders, code, strict=True)}
            if package.config.get("code_package") in names:
                config["code_package"] = names[package.config["code_package"]]
            return self._mlflow.pyfunc.log_model(
                name="model", python_model=str(package.model_code), code_paths=[str(copy) for copy in code],
                artifacts={part: str(path) for part, path in package.artifacts.items()}, model_config=config,
                pip_requirements=list(package.requirements), signature=_signature(package),
                input_example=package.input_example,
            )

    def _share(self, part: str, folder: Path) -> str:
        """The address of a folder's content, stored once as a version of `evergreen-<part>`."""
        name, content = PREFIX + part.replace("_", "-"), content_hash(folder)
        with self._locks(f"share-{part}"):
            held = self._search(name.removeprefix(PREFIX), f"tags.`evergreen.content` = '{content}'")
            if held:
                return f"models:/{name}/{min(int(version.version) for version in held)}"
            self._create_model(name, "A part that many versions of Evergreen's models share, stored once.")
            run = self._client.create_run(self._experiment(name), run_name=content[:12])
            self._client.log_artifacts(run.info.run_id, str(folder), "content")
            self._client.set_terminated(run.info.run_id)
            version = self._client.create_model_version(
                name, source=f"{run.info.artifact_uri}/content", run_id=run.info.run_id,
                tags={"evergreen.content": content}, await_creation_for=0,
            )
            return f"models:/{name}/{version.version}"

    # -- deciding -----------------------------------------------------------------------------------------

    def promote(
        self, task: str, version: int, expected_champion: int | None, *, who: str, reasons: Sequence[str],
        action: str = "promote", decided_at: datetime, window: datetime | None = None,
    ) -> Promotion:
        """Makes a version the champion, if the champion is still `expected_champion`.

        Called again after it was done, or after a process was killed in the midst of it, it ends in the same
        state with one row in the log. A promotion that was rolled back since is not repeated; `force` is.

        Raises:
            PromotionConflict: another champion serves now.
            VerificationFailed: the version does not answer.
            VersionMissing: there is no such version.
        """
        if action not in MOVES:
            raise RegistryError(f"An action that moves the champion is one of {MOVES}; received {action!r}.")
        with self._locks(f"promote-{task}"):
            self._settle(task)
            self._version(task, version)
            found = self.champion(task)
            if found == version:
                return Promotion(task, version, action, expected_champion, version)
            if action in ("promote", "first") and self._log.rows(
                task, action=action, version=version, champion_before=expected_champion
            ):
                return Promotion(task, version, action, expected_champion, found)
            if found != expected_champion:
                raise PromotionConflict(task, version, expected_champion, found)
            self._whole(task, version)
            if self._verifies:
                self.verify(task, version)
            row = DecisionRow(task, decided_at, action, version, found, version, window, who, tuple(reasons))
            return self._move(row)

    def rollback(
        self, task: str, to_version: int | None, *, who: str, why: str, decided_at: datetime
    ) -> Promotion:
        """Makes an earlier version the champion again: `to_version`, or the one that served before.

        Called again with the same `who`, `why` and `decided_at` it does nothing more.
        """
        with self._locks(f"promote-{task}"):
            self._settle(task)
            found = self.champion(task)
            done = self._log.rows(task, action="rollback", who=who, decided_at=decided_at, reasons=(why,))
            if done:
                return Promotion(task, done[0].version, "rollback", done[0].champion_before, found)
            target = self._served_before(task, found) if to_version is None else to_version
            held = self._version(task, target)
            if target == found:
                return Promotion(task, target, "rollback", found, found)
            self._whole(task, target)
            served = any(row.champion_after == target for row in self._log.rows(task))
            if self._verifies and not served:  # what served before need not prove itself while the shop waits
                self.verify(task, target)
            seen = held.tags.get("evergreen.window")
            window = datetime.fromisoformat(seen) if seen else None
            return self._move(DecisionRow(task, decided_at, "rollback", target, found, target, window, who, (why,)))

    def settle(self, task: str) -> None:
        """Completes the log where a process was killed after it had moved the champion."""
        with self._locks(f"promote-{task}"):
            self._settle(task)

    def record(
        self, task: str, action: str, version: int, *, who: str, reasons: Sequence[str], decided_at: datetime,
        window: datetime | None = None,
    ) -> None:
        """Appends a decision that leaves the champion (one of NOTES) to the log, once."""
        if action not in NOTES:
            raise RegistryError(f"An action that leaves the champion is one of {NOTES}; received {action!r}.")
        with self._locks(f"promote-{task}"):
            self._settle(task)
            if self._log.rows(task, action=action, version=version, reasons=tuple(reasons)):
                return
            found = self.champion(task)
            self._log.append(DecisionRow(task, decided_at, action, version, found, found, window, who, tuple(reasons)))

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

    # -- retention ----------------------------------------------------------------------------------------

    def retire(self, task: str, chosen: Callable[[], Mapping[int, str]]) -> list[int]:
        """Marks versions whose files shall go: from now on none of them can serve or be trained on.

        Args:
            task: whose.
            chosen: asked while no champion can move; version -> why.

        Returns:
            The versions that are marked and whose files are not removed yet, those of a killed call included.
        """
        with self._locks(f"promote-{task}"):
            self._settle(task)
            for version, why in chosen().items():
                self._client.set_model_version_tag(PREFIX + task, str(version), RETIRED, why)
            marked = self._search(task)
        return sorted(
            int(held.version) for held in marked if RETIRED in held.tags and held.tags.get(_FILES) != "removed"
        )

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
        self._client.set_model_version_tag(PREFIX + task, str(version), _FILES, "removed")

    def _places(self, task: str, version: int) -> list[tuple[str, str]]:
        """(address, folder) of a version's checkpoint and of its package."""
        held = self._version(task, version)
        places = [(self._client.get_run(held.run_id).info.artifact_uri, "checkpoint")] if held.run_id else []
        if held.source and held.source.startswith(_LOGGED):  # `model_id` is None on a version that is read again
            logged = self._client.get_logged_model(held.source.removeprefix(_LOGGED))
            places.append((logged.artifact_location, ""))
        return places

    def verify(self, task: str, version: int) -> None:
        """Loads a version in a fresh process, as a consumer would, and has it answer its input example.

        Raises:
            VerificationFailed: it does not load, or answers differently than when it was trained.
        """
        wanted = json.loads(self._download(self._version(task, version), "output_example.json"))
        seen = fault_of(f"models:/{PREFIX}{task}/{version}", self.tracking_uri, wanted)
        if seen is not None:
            raise VerificationFailed(task, version, seen)

    def _move(self, row: DecisionRow) -> Promotion:
        """The three steps that `_settle` completes."""
        name = PREFIX + row.task
        self._client.set_model_version_tag(name, str(row.version), "evergreen.move", row.as_json())
        if row.champion_before is not None:
            self._client.set_registered_model_alias(name, "previous", str(row.champion_before))
        self._client.set_registered_model_alias(name, "champion", str(row.version))
        self._settle(row.task)
        return Promotion(row.task, row.version, row.action, row.champion_before, row.champion_after)

    def _settle(self, task: str) -> None:
        """Appends the move that made the champion to the log, if a killed process could not."""
        move = self._last_move(task)
        if move is not None and move not in self._log.rows(task, version=move.version):
            self._log.append(move)

    def _last_move(self, task: str) -> DecisionRow | None:
        champion = self.champion(task)
        if champion is None:
            return None
        intent = self._version(task, champion).tags.get("evergreen.move")
        return DecisionRow.from_json(intent) if intent else None

    def _served_before(self, task: str, champion: int | None) -> int:
        """The version before the champion; never itself, though a killed move may have left that there."""
        before, move = self.previous(task), self._last_move(task)
        if before == champion and move is not None:
            before = move.champion_before
        if before is None:
            raise RegistryError(
                f"{PREFIX}{task} has no version that served before {champion}. Choose one with --to; "
                f"list them with: python -m pipeline.champion versions --task {task}"
            )
        return before

    # -- MLflow -------------------------------------------------------------------------------------------

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
        except _mlflow_exception() as error:
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
        try:
            self._client.create_registered_model(name, description=description)
        except _mlflow_exception() as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _experiment(self, name: str) -> str:
        """The experiment of a model; its files go below `artifacts` where no server says otherwise."""
        held = self._client.get_experiment_by_name(name)
        if held is None:
            location = f"{_as_url(self._artifacts)}/{name}" if self._artifacts else None
            try:
                return self._client.create_experiment(name, artifact_location=location)
            except _mlflow_exception() as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                held = self._client.get_experiment_by_name(name)
        return cast("Any", held).experiment_id  # found, or made by another process in between

    def _download(self, version: ModelVersion, path: str) -> str:
        with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
            return Path(self._mlflow.artifacts.download_artifacts(
                run_id=version.run_id, artifact_path=path, dst_path=scratch, tracking_uri=self.tracking_uri
            )).read_text()


def open_registry(settings: Settings) -> Registry:
    """The registry of an installation. Keeps MLflow quiet in this process, and from calling home."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    locks = locks_of(settings.home, settings.lock_url)
    return Registry(settings.tracking_uri, open_lake(settings), locks, settings.artifacts)


def _as_url(place: str) -> str:
    return place.rstrip("/") if "://" in place else Path(place).resolve().as_uri()


def _mlflow_exception() -> type[Any]:
    from mlflow.exceptions import MlflowException

    return MlflowException


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
