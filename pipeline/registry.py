"""The model registry: versions with their checkpoints, who serves, every decision. The only user of MLflow.

A version is made by one atomic call that carries all its tags, after everything it refers to is stored; a
process killed before leaves an MLflow run that nothing refers to, never half a version. MLflow's aliases have
no compare-and-set, so the champion moves under a lock, by whoever still finds the champion that the
challenger was compared with. What is about to happen is first written on the version (`evergreen.move`), then
the aliases move, then the row is appended to the lake's `decisions`; whoever comes next completes what a
killed process left.

From a shell: `python -m pipeline.registry --help`.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.lake import Lake, open_lake
from pipeline.locking import Locks, locks_of
from pipeline.schema import DECISIONS_SCHEMA
from pipeline.settings import REPOSITORY, Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

    from pipeline.tasks.contract import Package

PREFIX = "evergreen-"

MOVES = ("promote", "first", "force", "rollback")
NOTES = ("hold", "reject", "set-aside")

# MLflow's database holds a description of 5,000 characters, and older ones a tag of 5,000.
_MOST_CHARACTERS = 5_000
_STORED_WHOLE = "see the run's artifact tags.json"

# TensorFlow's import and the answers take up to 22 s here; ten times that is a hang.
_VERIFY_SECONDS = 300

# Two answers to the same rows may differ by the order of float32 sums, and not by more.
_ANSWER_TOLERANCE = 1e-3

# All that a consumer does: nothing of this project is imported by it.
_CONSUMER = """
import sys, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
model.predict(model.input_example).to_json(sys.argv[2], orient="split")
"""


class RegistryError(RuntimeError):
    """Something that was asked of the registry cannot be; the message says what to do."""


class VersionMissing(RegistryError):
    """A model has no such version."""

    def __init__(self, task: str, version: int | str) -> None:
        """Takes the task and the version that was asked for."""
        self.task, self.version = task, version
        super().__init__(
            f"{PREFIX}{task} must have version {version}, and has not. "
            f"List its versions with: python -m pipeline.registry versions --task {task}"
        )


class PromotionConflict(RegistryError):
    """The champion is no longer the one that the version was compared with.

    Attributes:
        task, version: what was to be promoted.
        expected: the champion that it was compared with.
        found: the champion now.
        remedy: what to do.
    """

    def __init__(self, task: str, version: int, expected: int | None, found: int | None) -> None:
        """Takes the attributes but the remedy."""
        self.task, self.version, self.expected, self.found = task, version, expected, found
        self.remedy = f"Nothing was changed; the next update starts from champion {found}, with all data."
        super().__init__(
            f"Version {version} of {PREFIX}{task} was compared with champion {expected}; "
            f"the champion is now {found}. {self.remedy}"
        )


class VerificationFailed(RegistryError):
    """A version does not load or answer as it did when it was trained.

    Attributes:
        task, version: which.
        seen: what happened instead.
    """

    def __init__(self, task: str, version: int, seen: str) -> None:
        """Takes the attributes."""
        self.task, self.version, self.seen = task, version, seen
        super().__init__(
            f"Version {version} of {PREFIX}{task} must load in a fresh process and answer its input example "
            f"as it did when it was trained; {seen} The champion stays. Correct the package and retrain."
        )


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


class Registry:
    """The models `evergreen-<task>` at one MLflow address."""

    def __init__(
        self,
        tracking_uri: str,
        lake: Lake,
        locks: Locks,
        artifacts: Path | None = None,
        *,
        verifies: bool = True,
    ) -> None:
        """Opens nothing yet.

        Args:
            tracking_uri: MLflow's address: a server's URL, or a database's.
            lake: where `decisions` is.
            locks: mutual exclusion by name.
            artifacts: where files go when no server decides that (a database's URL as address).
            verifies: whether a model is loaded in a fresh process before it may serve.
        """
        self.tracking_uri = tracking_uri
        self._lake, self._locks, self._verifies = lake, locks, verifies
        self._artifacts = None if tracking_uri.startswith(("http://", "https://")) else artifacts

    # -- reading ------------------------------------------------------------------------------------------

    def champion(self, task: str) -> int | None:
        """The version that serves."""
        return self._aliases(task).get("champion")

    def previous(self, task: str) -> int | None:
        """The version that served before."""
        return self._aliases(task).get("previous")

    def tags(self, task: str, version: int) -> dict[str, str]:
        """All tags of a version, those stored as a file included.

        Raises:
            VersionMissing: there is none.
        """
        held = self._version(task, version)
        tags = dict(held.tags)
        if _STORED_WHOLE in tags.values():
            whole = json.loads(self._download(held, "tags.json"))
            tags |= {key: whole[key] for key, value in tags.items() if value == _STORED_WHOLE}
        return tags

    def versions(self, task: str) -> list[int]:
        """All versions, oldest first."""
        return sorted(int(version.version) for version in self._search(task))

    def children(self, task: str, parent: int) -> list[int]:
        """The versions that were trained from `parent`, oldest first."""
        found = self._search(task, f"tags.`evergreen.parent` = '{parent}'")
        return sorted(int(version.version) for version in found)

    def refusals(self, task: str, champion: int) -> list[int]:
        """The versions trained from `champion` that were held or rejected, oldest first."""
        found = self._search(task, f"tags.`evergreen.parent` = '{champion}'")
        refused = (one for one in found if one.tags.get("evergreen.decision") in ("hold", "reject"))
        return sorted(int(version.version) for version in refused)

    def decisions(self, task: str) -> pa.Table:
        """The log of a task's decisions: DECISIONS_SCHEMA, in order of time."""
        log = self._lake.arrow(
            "decisions", columns=DECISIONS_SCHEMA.names, filter=ds.field("task") == task
        )
        return log.sort_by([("decided_at", "ascending"), ("version", "ascending")])

    def load_checkpoint(self, task: str, version: int, into: Path) -> Path:
        """Copies a version's checkpoint below `into`; returns its folder."""
        return Path(self._mlflow.artifacts.download_artifacts(
            run_id=self._version(task, version).run_id, artifact_path="checkpoint", dst_path=str(into),
            tracking_uri=self.tracking_uri,
        ))

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
        tags = {"evergreen.code": _code_version(), **tags}
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
            description=_description(tags, metrics), await_creation_for=0,
        )
        self._client.set_registered_model_alias(name, "challenger", version.version)
        return int(version.version)

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
            code = [_renamed(folder, Path(scratch)) for folder in package.code_folders]
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
            if action in ("promote", "first") and self._logged(
                task, action=action, version=version, champion_before=expected_champion
            ):
                return Promotion(task, version, action, expected_champion, found)
            if found != expected_champion:
                raise PromotionConflict(task, version, expected_champion, found)
            if self._verifies:
                self.verify(task, version)
            row = _Row(task, decided_at, action, version, found, version, window, who, tuple(reasons))
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
            done = self._logged(task, action="rollback", who=who, decided_at=decided_at, reasons=(why,))
            if done:
                return Promotion(task, done[0].version, "rollback", done[0].champion_before, found)
            target = self._served_before(task, found) if to_version is None else to_version
            held = self._version(task, target)
            if target == found:
                return Promotion(task, target, "rollback", found, found)
            served = any(row.champion_after == target for row in self._logged(task))
            if self._verifies and not served:  # what served before need not prove itself while the shop waits
                self.verify(task, target)
            seen = held.tags.get("evergreen.window")
            window = datetime.fromisoformat(seen) if seen else None
            return self._move(_Row(task, decided_at, "rollback", target, found, target, window, who, (why,)))

    def record(
        self, task: str, action: str, version: int, *, who: str, reasons: Sequence[str], decided_at: datetime,
        window: datetime | None = None,
    ) -> None:
        """Appends a decision that leaves the champion (hold, reject, set-aside) to the log, once."""
        if action not in NOTES:
            raise RegistryError(f"An action that leaves the champion is one of {NOTES}; received {action!r}.")
        with self._locks(f"promote-{task}"):
            self._settle(task)
            if self._logged(task, action=action, version=version, reasons=tuple(reasons)):
                return
            found = self.champion(task)
            self._append(_Row(task, decided_at, action, version, found, found, window, who, tuple(reasons)))

    def verify(self, task: str, version: int) -> None:
        """Loads a version in a fresh process, as a consumer would, and has it answer its input example.

        Raises:
            VerificationFailed: it does not load, or answers differently than when it was trained.
        """
        held = self._version(task, version)
        with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
            answer = Path(scratch) / "answer.json"
            model = f"models:/{PREFIX}{task}/{version}"
            address = {"MLFLOW_TRACKING_URI": self.tracking_uri, "MLFLOW_REGISTRY_URI": self.tracking_uri}
            try:
                done = subprocess.run(
                    [sys.executable, "-I", "-c", _CONSUMER, model, str(answer)],
                    env={**os.environ, **address}, cwd=scratch, capture_output=True, text=True,
                    timeout=_VERIFY_SECONDS,
                )
            except subprocess.TimeoutExpired:
                seen = f"it took longer than {_VERIFY_SECONDS} s."
                raise VerificationFailed(task, version, seen) from None
            if done.returncode:
                tail = done.stderr.strip()[-1_500:]
                raise VerificationFailed(task, version, f"the process ended with {done.returncode}: {tail}\n")
            given = json.loads(answer.read_text())
        if not _same_answer(json.loads(self._download(held, "output_example.json")), given):
            raise VerificationFailed(task, version, f"it answered {str(given)[:500]}.")

    def _move(self, row: _Row) -> Promotion:
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
        if move is not None and move not in self._logged(task):
            self._append(move)

    def _last_move(self, task: str) -> _Row | None:
        champion = self.champion(task)
        if champion is None:
            return None
        intent = self._version(task, champion).tags.get("evergreen.move")
        return _Row.from_json(intent) if intent else None

    def _served_before(self, task: str, champion: int | None) -> int:
        """The version before the champion; never itself, though a killed move may have left that there."""
        before, move = self.previous(task), self._last_move(task)
        if before == champion and move is not None:
            before = move.champion_before
        if before is None:
            raise RegistryError(
                f"{PREFIX}{task} has no version that served before {champion}. Choose one with --to; "
                f"list them with: python -m pipeline.registry versions --task {task}"
            )
        return before

    def _logged(self, task: str, **fields: Any) -> list[_Row]:
        rows = [_Row.from_record(record) for record in self.decisions(task).to_pylist()]
        return [row for row in rows if all(getattr(row, name) == value for name, value in fields.items())]

    def _append(self, row: _Row) -> None:
        record = {**asdict(row), "reasons": json.dumps(list(row.reasons))}
        self._lake.append("decisions", pa.Table.from_pylist([record], schema=DECISIONS_SCHEMA))

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

    def _aliases(self, task: str) -> dict[str, int]:
        try:
            aliases = self._client.get_registered_model(PREFIX + task).aliases
        except _mlflow_exception() as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: int(version) for alias, version in aliases.items()}

    def _version(self, task: str, version: int) -> ModelVersion:
        try:
            return self._client.get_model_version(PREFIX + task, str(version))
        except _mlflow_exception() as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise VersionMissing(task, version) from error

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
            location = (self._artifacts / name).resolve().as_uri() if self._artifacts else None
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
    return Registry(settings.tracking_uri, open_lake(settings), locks, settings.home / "mlflow" / "artifacts")


def content_hash(folder: Path) -> str:
    """The SHA-256 of a folder's files, by path and content."""
    whole = hashlib.sha256()
    for path in sorted(_files(folder)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{content}  {path.relative_to(folder).as_posix()}\n".encode())
    return whole.hexdigest()


@dataclass(frozen=True)
class _Row:
    """A row of `decisions`."""

    task: str
    decided_at: datetime
    action: str
    version: int
    champion_before: int | None
    champion_after: int | None
    window: datetime | None
    who: str
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.decided_at.tzinfo is None:
            raise ValueError(f"A decision's time must have a time zone; received {self.decided_at!r}.")

    def as_json(self) -> str:
        return json.dumps(asdict(self), default=datetime.isoformat)

    @classmethod
    def from_json(cls, text: str) -> _Row:
        record = json.loads(text)
        for name in ("decided_at", "window"):
            record[name] = datetime.fromisoformat(record[name]) if record[name] else None
        return cls(**{**record, "reasons": tuple(record["reasons"])})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> _Row:
        return cls(**{**record, "reasons": tuple(json.loads(record["reasons"]))})


def _mlflow_exception() -> type[Any]:
    from mlflow.exceptions import MlflowException

    return MlflowException


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _renamed(folder: Path, into: Path) -> Path:
    """A copy of a code folder under a name that says its content, so that two of them live in one process."""
    copy = into / f"evergreen_{folder.name}_{content_hash(folder)[:12]}"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def _signature(package: Package) -> ModelSignature:
    """The signature of a package; any column may be left out of a request."""
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types.schema import ColSpec, Schema

    parameters = dict(package.parameters) or None
    inferred = infer_signature(package.input_example, package.output_example, parameters)
    columns: list[Any] = [
        ColSpec(column.type, column.name, required=False) for column in inferred.inputs.inputs
    ]
    return ModelSignature(Schema(columns), inferred.outputs, inferred.params)


def _points(mlflow: Any, metrics: Mapping[str, float]) -> list[Any]:
    now = int(datetime.now(UTC).timestamp() * 1000)  # MLflow's charts need a time; nothing here reads it
    return [mlflow.entities.Metric(name, float(value), now, 0) for name, value in metrics.items()]


def _fitting(value: str) -> str:
    return value if len(value) <= _MOST_CHARACTERS else _STORED_WHOLE


def _description(tags: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """What a person wants to know of a version, in Markdown."""
    parent = tags.get("evergreen.parent")
    decision, kind = tags.get("evergreen.decision", "undecided"), tags.get("evergreen.kind", "model")
    origin = f" from version {parent}" if parent else ""
    lines = [
        f"**{decision}** · {kind}{origin} · newest window {tags.get('evergreen.window', 'unknown')}", "",
        *(f"- {reason}" for reason in json.loads(tags.get("evergreen.reasons", "[]"))), "",
    ]
    if metrics:
        lines += ["| on the validation examples | mean |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in sorted(metrics.items())]
    text = "\n".join(lines)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 2] + " …"


def _same_answer(wanted: Any, given: Any) -> bool:
    """Whether two answers agree: the same shape, and numbers within the tolerance.

    Texts are not compared: items of all but equal score may change places between two processes.
    """
    if isinstance(wanted, Mapping):
        return isinstance(given, Mapping) and wanted.keys() == given.keys() and all(
            _same_answer(wanted[key], given[key]) for key in wanted
        )
    if isinstance(wanted, list):
        return isinstance(given, list) and len(wanted) == len(given) and all(map(_same_answer, wanted, given))
    if isinstance(wanted, (int, float)) and isinstance(given, (int, float)):
        return abs(wanted - given) <= _ANSWER_TOLERANCE * max(1.0, abs(wanted))
    return type(wanted) is type(given)


def _code_version() -> str:
    """The commit of the code that runs, or the version of the installed package."""
    if (REPOSITORY / ".git").exists():
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True,
        )
        if done.returncode == 0:
            return done.stdout.strip()
    return f"evergreen {metadata.version('evergreen')}"


# -- the command line -------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit status."""
    from rich.console import Console

    chosen = _parser().parse_args(arguments)
    try:
        registry = open_registry(read_settings())
        chosen.run(registry, chosen, Console())
    except (RegistryError, SettingsError) as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.registry",
        description="Shows which model versions serve and why, and moves the champion by hand. "
        "The installation is the one of the environment's EVERGREEN_* variables.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument("--task", default="recommend", help="the task (default: recommend)")
        made.set_defaults(run=run)
        return made

    command("champion", _show_champion, "Print the version that serves.")
    command("versions", _show_versions, "List all versions with their decisions and aliases.")
    command("log", _show_log, "List every promotion, hold, rejection and rollback, oldest first.")
    promote = command("promote", _promote, "Make a version the champion.")
    promote.add_argument("version", type=int, help="the version")
    promote.add_argument("--force", action="store_true", help="though the gate did not say so; needs --why")
    back = command("rollback", _rollback, "Make an earlier version the champion again.")
    back.add_argument("--to", type=int, metavar="VERSION", help="that version (default: the previous one)")
    for one in (promote, back):
        one.add_argument("--who", default=getpass.getuser(), help="your name, for the log (%(default)s)")
        one.add_argument("--why", default="", help="the reason, for the log")
    return parser


def _show_champion(registry: Registry, chosen: argparse.Namespace, console: Any) -> None:
    champion = registry.champion(chosen.task)
    if champion is None:
        raise RegistryError(
            f"{PREFIX}{chosen.task} has no champion yet: run the DAG retrain_{chosen.task} first."
        )
    console.print(champion, highlight=False)


def _show_versions(registry: Registry, chosen: argparse.Namespace, console: Any) -> None:
    from rich.table import Table

    aliases: dict[int, list[str]] = {}
    for alias, version in registry._aliases(chosen.task).items():
        aliases.setdefault(version, []).append(alias)
    table = Table("version", "alias", "kind", "from", "newest window", "decision", "because")
    for version in registry.versions(chosen.task):
        tags = registry.tags(chosen.task, version)
        seen = (tags.get(f"evergreen.{key}", "") for key in ("kind", "parent", "window", "decision"))
        reasons = json.loads(tags.get("evergreen.reasons", "[]"))
        table.add_row(str(version), " ".join(sorted(aliases.get(version, []))), *seen, " ".join(reasons))
    console.print(table)


def _show_log(registry: Registry, chosen: argparse.Namespace, console: Any) -> None:
    from rich.table import Table

    table = Table("decided at", "action", "version", "champion", "window", "who", "because")
    for row in registry.decisions(chosen.task).to_pylist():
        before, after = row["champion_before"] or "none", row["champion_after"] or "none"
        table.add_row(
            f"{row['decided_at']:%Y-%m-%d %H:%M}", row["action"], str(row["version"]),
            str(after) if before == after else f"{before} → {after}",
            f"{row['window']:%Y-%m-%d %H:%M}" if row["window"] else "", row["who"],
            " ".join(json.loads(row["reasons"])),
        )
    console.print(table)


def _promote(registry: Registry, chosen: argparse.Namespace, console: Any) -> None:
    tags = registry.tags(chosen.task, chosen.version)
    decision = tags.get("evergreen.decision", "undecided")
    action, reasons = decision, json.loads(tags.get("evergreen.reasons", "[]"))
    compared_with = tags.get("evergreen.compared_with")
    expected = int(compared_with) if compared_with else None
    if chosen.force:
        if not chosen.why:
            raise RegistryError("A promotion by force must say why, for the log: add --why \"...\".")
        action, reasons, expected = "force", [chosen.why], registry.champion(chosen.task)
    elif decision not in ("promote", "first"):
        raise RegistryError(
            f"The gate must have decided to promote version {chosen.version}; it decided {decision!r}: "
            f"{' '.join(reasons)} To promote it all the same, add --force --why \"...\"."
        )
    window = tags.get("evergreen.window")
    done = registry.promote(
        chosen.task, chosen.version, expected, who=chosen.who, reasons=reasons, action=action,
        decided_at=datetime.now(UTC), window=datetime.fromisoformat(window) if window else None,
    )
    _say_moved(done, console)


def _rollback(registry: Registry, chosen: argparse.Namespace, console: Any) -> None:
    if not chosen.why:
        raise RegistryError("A rollback must say why, for the log: add --why \"...\".")
    now = datetime.now(UTC)
    done = registry.rollback(chosen.task, chosen.to, who=chosen.who, why=chosen.why, decided_at=now)
    _say_moved(done, console)


def _say_moved(done: Promotion, console: Any) -> None:
    before = "none" if done.champion_before is None else done.champion_before
    console.print(f"Version {done.champion_after} of {PREFIX}{done.task} serves; before: {before}.")


if __name__ == "__main__":
    sys.exit(main())
