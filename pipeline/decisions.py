"""The log of decisions: who served when, why, and what was held or rejected. Append-only, in the lake.

The registry writes a move on the version before it happens and appends it here after; what a killed process
left between the two is completed by whoever comes next (`Registry`), by comparing rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.lake import Lake
from pipeline.schema import DECISIONS_SCHEMA


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


class DecisionLog:
    """The table `decisions` of a lake."""

    def __init__(self, lake: Lake) -> None:
        """Takes the lake."""
        self._lake = lake

    def table(self, task: str) -> pa.Table:
        """A task's rows: DECISIONS_SCHEMA, in order of time."""
        log = self._lake.arrow("decisions", columns=DECISIONS_SCHEMA.names, filter=ds.field("task") == task)
        return log.sort_by([("decided_at", "ascending"), ("version", "ascending")])

    def rows(self, task: str, **fields: Any) -> list[DecisionRow]:
        """A task's rows that have these values."""
        rows = [DecisionRow.from_record(record) for record in self.table(task).to_pylist()]
        return [row for row in rows if all(getattr(row, name) == value for name, value in fields.items())]

    def append(self, row: DecisionRow) -> None:
        """Writes one row."""
        record = {**asdict(row), "reasons": json.dumps(list(row.reasons))}
        self._lake.append("decisions", pa.Table.from_pylist([record], schema=DECISIONS_SCHEMA))
