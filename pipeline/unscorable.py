"""A model that cannot be asked any more: the code, the schema or the data have moved on since it was trained.

It is no crash of an update but a finding, with a reason that stands in the log of decisions: the challenger cannot be
compared, so nothing is promoted by the gate. The champion goes on serving from its own package, which carries its own
code. What may pass is a person's to say (`python -m pipeline.champion promote --force`, or the DAG `promote`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.checkpoint import Checkpoint, Ledger, load
from pipeline.registry_errors import FilesMissing, VersionMissing, VersionRetired

if TYPE_CHECKING:
    from pipeline.registry import Registry


class CannotScore(RuntimeError):
    """A model does not load in today's code or does not answer today's examples.

    Attributes:
        version: which.
        cause: what happened, in words.
    """

    def __init__(self, version: int, cause: str) -> None:
        """Takes the attributes."""
        self.version, self.cause = version, cause
        super().__init__(
            f"Version {version} must load and score today's examples to be compared with, and does not: {cause}. "
            "Nothing is promoted; it goes on serving from its own package. If code or schema were changed on purpose, "
            "run the retrain DAG and promote its version by force (the DAG promote); if not, correct that, and the "
            "next update goes on."
        )


def of_the_machine(error: Exception) -> bool:
    """Whether an error tells of a machine short of memory, disk or network, and nothing of the model."""
    # the last is TensorFlow's own, which need not be installed here
    return isinstance(error, (MemoryError, OSError)) or type(error).__name__ == "ResourceExhaustedError"


@contextmanager
def asking(version: int) -> Iterator[None]:
    """Within it, whatever a version raises is a `CannotScore`, but for a machine short of memory or disk."""
    try:
        yield
    except Exception as error:
        if of_the_machine(error):
            raise
        raise CannotScore(version, f"{type(error).__name__}: {error}") from error


def checkpoint_of(registry: Registry, task_name: str, version: int) -> Checkpoint:
    """A version's checkpoint.

    Raises:
        CannotScore: the version was deleted from the registry, or its files are gone.
    """
    with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
        try:
            folder = registry.load_checkpoint(task_name, version, Path(scratch))
        except (VersionMissing, VersionRetired, FilesMissing) as gone:
            raise CannotScore(version, str(gone)) from gone
        return load(folder)


def beyond_the_lake(version: int, ledger: Ledger, table: str, newest: int) -> str:
    """What is said of a model that has learnt more than its table holds; what comes next would pass for learnt."""
    return (
        f"version {version} has learnt {table} up to its version {ledger.versions[table]}, and the lake's newest is "
        f"{newest}: it was put back to an earlier state. A full retrain begins anew from what it holds; ingest the "
        "hours that it has lost once more"
    )
