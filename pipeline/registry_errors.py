"""What can go wrong with the model registry, each with the next step in its message."""

from __future__ import annotations

PREFIX = "evergreen-"  # a task's model is named by this and the task


class RegistryError(RuntimeError):
    """Something that was asked of the registry cannot be; the message says what to do."""


class VersionMissing(RegistryError):
    """A model has no such version."""

    def __init__(self, task: str, version: int | str) -> None:
        """Takes the task and the version that was asked for."""
        self.task, self.version = task, version
        super().__init__(
            f"{PREFIX}{task} must have version {version}, and has not. "
            f"List its versions with: python -m pipeline.champion versions --task {task}"
        )


class VersionRetired(RegistryError):
    """A version's files were removed by the rule of retention; its tags remain."""

    def __init__(self, task: str, version: int, why: str) -> None:
        """Takes the version and what the rule said."""
        self.task, self.version, self.why = task, version, why
        super().__init__(
            f"Version {version} of {PREFIX}{task} must have its files to serve or to be trained on; retention has "
            f"removed them: {why} List the versions that have theirs with: "
            f"python -m pipeline.champion versions --task {task}"
        )


class FilesMissing(RegistryError):
    """A version's checkpoint is not where it was stored, and retention has not removed it."""

    def __init__(self, task: str, version: int) -> None:
        """Takes the version."""
        self.task, self.version = task, version
        super().__init__(
            f"Version {version} of {PREFIX}{task} must have its checkpoint in the artifact store to be trained on; it "
            "is not there, and retention has not removed it. Put it back from a backup, or run the DAG "
            f"retrain_{task}, whose model needs none."
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
