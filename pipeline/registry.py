"""The model registry: the models' versions (`versions.py`), who of them serves, and every decision.

MLflow's aliases have no compare-and-set, so the champion moves under a lock, by whoever still finds the champion that
the challenger was compared with. What is about to happen is first written on the version (`evergreen.move`), then
the aliases move, then the row is appended to the lake's `decisions`; whoever comes next completes what a
killed process left.

From a shell: `python -m pipeline.champion --help`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from pipeline.decisions import OF_CHAMPION, DecisionLog, DecisionRow, Service
from pipeline.lake import Lake, open_lake
from pipeline.locking import Locks, locks_of
from pipeline.mlflow_models import FILES, RETIRED
from pipeline.registry_errors import PREFIX, PromotionConflict, RegistryError
from pipeline.settings import Settings
from pipeline.versions import Versions

MOVES = ("promote", "first", "force", "rollback")
NOTES = ("hold", "reject", "set-aside", "cannot-score")


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


class Registry(Versions):
    """Who serves, of the models at one MLflow address: moves of the champion, decisions, retirement."""

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
        super().__init__(tracking_uri, locks, artifacts)
        self._log, self._verifies = DecisionLog(lake), verifies

    # -- what was decided -----------------------------------------------------------------------------------

    def decided(self, task: str, version: int) -> bool:
        """Whether the log has what was done with a version: moved to champion, held or rejected."""
        return any(row.action not in OF_CHAMPION for row in self._log.rows(task, version=version))

    def all_decided(self, task: str) -> set[int]:
        """The versions with which something was done."""
        return {row.version for row in self._log.rows(task) if row.action not in OF_CHAMPION}

    def _newest_spoken_of(self, task: str) -> int:
        return max((row.version for row in self._log.rows(task)), default=0)

    def decisions(self, task: str) -> pa.Table:
        """The log of a task's decisions: DECISIONS_SCHEMA, in order of time."""
        return self._log.table(task)

    def services(self, task: str) -> list[Service]:
        """Who served when, and why; also of versions that are gone."""
        return self._log.services(task)

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
            int(held.version) for held in marked if RETIRED in held.tags and held.tags.get(FILES) != "removed"
        )

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

def open_registry(settings: Settings) -> Registry:
    """The registry of an installation. Keeps MLflow quiet in this process, and from calling home."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    locks = locks_of(settings.home, settings.lock_url)
    return Registry(settings.tracking_uri, open_lake(settings), locks, settings.artifacts)
