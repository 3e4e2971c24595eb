"""Parts that many model versions share (text encoders): stored once by their content, removed when nobody needs them.

A part is a version of `evergreen-<part>` whose tags say its content. A retrain may make one of its own (an encoder that
messages have taught, some 80 MB); it goes with the last version that is made of it. A part is marked under the lock
under which trainings look for theirs, then its files are removed; whoever comes next completes what a killed process
left.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.mlflow_models import FILES, RETIRED, MlflowModels
from pipeline.registry_errors import PREFIX
from pipeline.version_files import folder_bytes, remove_folder

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SHARED = "evergreen.shared"  # of a model version: the addresses of its parts, comma separated
_CONTENT, _USED = "evergreen.content", "evergreen.used"  # of a part: its hash, and when a training last asked for it
_FOLDER = "content"


class SharedParts(MlflowModels):
    """What versions of the models at one MLflow address have in common."""

    def _share(self, part: str, folder: Path, content: str) -> str:
        """The address of a folder of some content (its hash), stored once as a version of `evergreen-<part>`."""
        name = PREFIX + part.replace("_", "-")
        tags = {_CONTENT: content, _USED: datetime.now(UTC).isoformat()}
        with self._locks(f"share-{name}"):
            found = self._search(name.removeprefix(PREFIX), f"tags.`{_CONTENT}` = '{content}'")
            held = min((int(one.version) for one in found if RETIRED not in one.tags), default=None)
            if held is not None:
                self._client.set_model_version_tag(name, str(held), _USED, tags[_USED])
                return f"models:/{name}/{held}"
            self._create_model(name, "A part that many versions of Evergreen's models share, stored once.")
            run = self._client.create_run(self._experiment(name), run_name=content[:12])
            self._client.log_artifacts(run.info.run_id, str(folder), _FOLDER)
            self._client.set_terminated(run.info.run_id)
            version = self._client.create_model_version(
                name, source=f"{run.info.artifact_uri}/{_FOLDER}", run_id=run.info.run_id, tags=tags,
                await_creation_for=0,
            )
            return f"models:/{name}/{version.version}"

    def remove_unused_parts(self, before: datetime, why: str, *, dry_run: bool = False) -> dict[str, int]:
        """Removes the files of parts that no version with files is made of; their entries stay. Safe to repeat.

        Args:
            before: a part that a training has asked for since then stays: its version may not be registered yet.
            why: noted on each.
            dry_run: nothing is marked or removed.

        Returns:
            Address -> bytes of those that go.
        """
        every = self._all_versions()
        needed = {address for held in every if _CONTENT not in held.tags for address in self._parts_of(held)}
        gone = {}
        for part in every:
            address = f"models:/{part.name}/{part.version}"
            if _CONTENT not in part.tags or part.tags.get(FILES) == "removed" or address in needed:
                continue
            if RETIRED not in part.tags and not self._marked(part, before, why, dry_run=dry_run):
                continue
            place = (str(self._client.get_run(str(part.run_id)).info.artifact_uri), _FOLDER, self.tracking_uri)
            gone[address] = folder_bytes(*place)
            if not dry_run:
                remove_folder(*place)
                self._client.set_model_version_tag(part.name, str(part.version), FILES, "removed")
        return gone

    def _marked(self, part: ModelVersion, before: datetime, why: str, *, dry_run: bool) -> bool:
        """Marks a part that nobody has asked for since `before`; False where somebody has, or does so now."""
        with self._locks(f"share-{part.name}"):
            now = self._client.get_model_version(part.name, str(part.version))
            stored = datetime.fromtimestamp(now.creation_timestamp / 1000, UTC)
            if datetime.fromisoformat(now.tags.get(_USED, stored.isoformat())) >= before:
                return False
            if not dry_run:
                self._client.set_model_version_tag(part.name, str(part.version), RETIRED, why)
            return True

    def _all_versions(self) -> list[ModelVersion]:
        """The versions of all models of this project, also of tasks that are switched off."""
        found: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = self._client.search_registered_models(f"name LIKE '{PREFIX}%'", page_token=token)
            for model in page:
                found += self._search(model.name.removeprefix(PREFIX))
            token = page.token
            if not token:
                return found

    def _parts_of(self, held: ModelVersion) -> set[str]:
        """The addresses of what a version is made of; of one without files none."""
        if held.tags.get(FILES) == "removed" or "evergreen.code" not in held.tags:  # the latter: not this project's
            return set()
        if SHARED in held.tags:
            return set(held.tags[SHARED].split(","))
        # registered before the tag was: its configuration says so
        told = self._mlflow.models.get_model_info(f"models:/{held.name}/{held.version}").flavors
        shared: Mapping[str, Any] = told.get("python_function", {}).get("config", {}).get("shared", {})
        return set(shared.values())
