"""The log of decisions: who served when, why, and what was held or rejected. Append-only, in the lake.

Delta itself refuses to change or delete a row of the table (`delta.appendOnly`), and nothing in it depends on the
registry: it answers for versions that are long gone.

The registry writes a move on the version before it happens and appends it here after; what a killed process
left between the two is completed by whoever comes next (`Registry`), by comparing rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.lake import Lake
from pipeline.schema import DECISIONS_SCHEMA

OF_CHAMPION = ("set-aside", "cannot-score")  # notes on who serves, not on what was done with a version


@dataclass(frozen=True)
class DecisionRow:
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
        """The row as a version's tag holds it."""
        return json.dumps(asdict(self), default=datetime.isoformat)

    @classmethod
    def from_json(cls, text: str) -> DecisionRow:
        """The row that `as_json` wrote."""
        record = json.loads(text)
        for name in ("decided_at", "window"):
            record[name] = datetime.fromisoformat(record[name]) if record[name] else None
        return cls(**{**record, "reasons": tuple(record["reasons"])})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DecisionRow:
        """The row of a record of the table."""
        return cls(**{**record, "reasons": tuple(json.loads(record["reasons"]))})


@dataclass(frozen=True)
class Service:
    """A time during which one version served.

    Attributes:
        version: which.
        since: when it became the champion.
        until: when another did; None: it serves.
        action, who, reasons: of the move that brought it.
        window: the newest landed window that it has seen.
        follows: the version that served before; None: none did.
        gap: whether the log lacks the move that made that one the champion.
    """

    version: int
    since: datetime
    until: datetime | None
    action: str
    who: str
    reasons: tuple[str, ...]
    window: datetime | None
    follows: int | None
    gap: bool = False

    def as_json(self) -> dict[str, Any]:
        """In JSON's types."""
        return json.loads(json.dumps(asdict(self), default=datetime.isoformat))


def services(rows: Sequence[DecisionRow]) -> list[Service]:
    """Who served when, oldest first, from a task's log alone: it is whole though the versions may be gone.

    A move's time is that of the run that decided it, so a long update may have decided before and moved after a
    rollback: moves are put in the order in which each finds the champion that the one before it left.
    """
    left = sorted(
        (row for row in rows if row.champion_after is not None and row.champion_after != row.champion_before),
        key=lambda row: (row.decided_at, row.version),
    )
    found: list[Service] = []
    champion: int | None = None
    while left:
        place = next((at for at, row in enumerate(left) if row.champion_before == champion), None)
        row = left.pop(place or 0)
        since = max(row.decided_at, found[-1].since) if found else row.decided_at
        if found:
            found[-1] = replace(found[-1], until=since)
        champion = row.champion_after
        found.append(Service(
            row.version, since, None, row.action, row.who, row.reasons, row.window, row.champion_before, place is None
        ))
    return found


class DecisionLog:
    """The table `decisions` of a lake."""

    def __init__(self, lake: Lake) -> None:
        """Takes the lake."""
        self._lake = lake

    def table(self, task: str, version: int | None = None) -> pa.Table:
        """A task's rows, of one version alone where it is named: DECISIONS_SCHEMA, in order of time."""
        chosen = ds.field("task") == task
        if version is not None:
            chosen &= ds.field("version") == version
        log = self._lake.arrow("decisions", columns=DECISIONS_SCHEMA.names, filter=chosen)
        return log.sort_by([("decided_at", "ascending"), ("version", "ascending")])

    def rows(self, task: str, **fields: Any) -> list[DecisionRow]:
        """A task's rows that have these values."""
        rows = [DecisionRow.from_record(record) for record in self.table(task, fields.get("version")).to_pylist()]
        return [row for row in rows if all(getattr(row, name) == value for name, value in fields.items())]

    def services(self, task: str) -> list[Service]:
        """Who served when and why, oldest first."""
        return services(self.rows(task))

    def append(self, row: DecisionRow) -> None:
        """Writes one row."""
        record = {**asdict(row), "reasons": json.dumps(list(row.reasons))}
        self._lake.append("decisions", pa.Table.from_pylist([record], schema=DECISIONS_SCHEMA))
