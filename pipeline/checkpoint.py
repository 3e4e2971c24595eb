"""A checkpoint: a learner's state and the ledger of what it has learnt, as plain files.

`arrays.safetensors` holds every array bit for bit, `state.json` the learner's own notes, `ledger.json`
the ledger. No pickle: a checkpoint that was tampered with can be wrong, but it cannot run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from pipeline.registry_errors import RegistryError
from pipeline.tasks.contract import State

LEDGER = "evergreen.ledger"  # the tag of a version that holds its ledger


@dataclass(frozen=True)
class RowCounts:
    """Rows of a task's table, counted over a lineage from its base on.

    Every row that came or changed is in exactly one of `taught`, `held_out`, `context`, `set_aside`;
    `joined` counts those of `held_out` that have been learnt since. The table has `inserted - deleted` rows.
    """

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    taught: int = 0
    held_out: int = 0
    context: int = 0  # rows that teach nothing by themselves, such as views in a shop of purchases
    set_aside: int = 0
    joined: int = 0

    def plus(self, other: RowCounts) -> RowCounts:
        """The sums of both."""
        return RowCounts(*(getattr(self, name) + getattr(other, name) for name in asdict(self)))

    @property
    def balanced(self) -> bool:
        """Whether every row that came or changed is accounted for."""
        return self.inserted + self.updated == self.taught + self.held_out + self.context + self.set_aside


@dataclass(frozen=True)
class Ledger:
    """What a model version has learnt from.

    Attributes:
        kind: `base` (first training), `update` or `retrain`.
        parent: the version it was trained from; None for a base or a retrain.
        versions: for each table, the newest version that has been read.
        learnt_from: for each table, the version after which this version's own learning began (-1: all).
        window: start of the newest landed window among the rows read.
        joined_until: validation rows that happened before this hour have joined the training rows.
        span_hours: how long validation rows stay out of training.
        rows: counts over the lineage.
        own_rows: counts of this version's own learning.
        updates: updates since the base.
        base: the version of the lineage's first model; None if this is it.
        set_aside: the landed windows (ISO 8601) whose rows were refused for good, each with the ranges of
            versions (after, up to) of the task's table in which they came.
    """

    kind: str
    parent: int | None
    versions: Mapping[str, int]
    learnt_from: Mapping[str, int]
    window: datetime
    joined_until: datetime
    span_hours: int
    rows: RowCounts = field(default_factory=RowCounts)
    own_rows: RowCounts = field(default_factory=RowCounts)
    updates: int = 0
    base: int | None = None
    set_aside: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The ledger in JSON's types."""
        return {
            **asdict(self),
            "window": self.window.isoformat(),
            "joined_until": self.joined_until.isoformat(),
            "set_aside": {window: [list(span) for span in spans] for window, spans in self.set_aside.items()},
        }

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> Ledger:
        """The ledger that a version's tags hold.

        Raises:
            RegistryError: they hold none.
        """
        if LEDGER not in tags:
            raise RegistryError(
                f"A version must say what it has learnt, in its tag {LEDGER}; this one has none, so that it was "
                "registered by hand. Take its aliases away, and have an update or a retrain make another."
            )
        return cls.from_json(json.loads(tags[LEDGER]))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Ledger:
        """The ledger that `as_json` wrote."""
        return cls(**{
            **record,
            "window": datetime.fromisoformat(record["window"]),
            "joined_until": datetime.fromisoformat(record["joined_until"]),
            "rows": RowCounts(**record["rows"]),
            "own_rows": RowCounts(**record["own_rows"]),
            "set_aside": {
                window: tuple((after, to) for after, to in spans) for window, spans in record["set_aside"].items()
            },
        })


@dataclass(frozen=True)
class Checkpoint:
    """All that training needs to go on."""

    state: State
    ledger: Ledger


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes a checkpoint's three files into `folder` (made if absent)."""
    save_state(checkpoint.state, folder)
    (folder / "ledger.json").write_text(json.dumps(checkpoint.ledger.as_json(), indent=2))


def load(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`.

    Raises:
        FileNotFoundError: one of its three files is missing.
    """
    return Checkpoint(load_state(folder), Ledger.from_json(json.loads((folder / "ledger.json").read_text())))


def save_state(state: State, folder: Path) -> None:
    """Writes a learner's state into `folder` (made if absent), as two files."""
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors keeps neither memory order nor zero-dimensional views apart from contiguous copies
    arrays = {name: np.ascontiguousarray(array) for name, array in state.arrays.items()}
    shapes = {name: list(array.shape) for name, array in state.arrays.items()}
    save_file(arrays, folder / "arrays.safetensors")
    (folder / "state.json").write_text(json.dumps({"meta": state.meta, "shapes": shapes}))


def load_state(folder: Path) -> State:
    """The state in `folder`, bit for bit."""
    notes = json.loads((folder / "state.json").read_text())
    arrays = load_file(folder / "arrays.safetensors")
    return State(
        arrays={name: arrays[name].reshape(shape) for name, shape in notes["shapes"].items()}, meta=notes["meta"]
    )
