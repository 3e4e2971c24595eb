"""Old windows: examples that every model of a lineage has learnt, scored at each update to see what is forgotten.

A model that learns hour after hour may lose what it knew, and recent validation examples do not show it (catastrophic
forgetting: McCloskey and Cohen 1989; measured as here, on earlier data after later learning, by Lopez-Paz and Ranzato,
NeurIPS 2017). The windows are fixed for a lineage: the last span that its first model learnt. A retrain begins another
lineage, with windows of its own.

Replay may draw these examples like any others that were learnt: what it does against forgetting is meant to count.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property

import pyarrow as pa

from pipeline.checkpoint import Ledger
from pipeline.examples import GATE, few_examples, parts, without_windows
from pipeline.gate import OldScores
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples, Learner, Scores, Task

# A loss of a tenth (the margin of slices) shows with a hundred users; a thousand examples have several hundred of
# them, and cost an update a quarter of what its other judging examples do.
MOST_OLD_EXAMPLES = 1_000


class Remembered:
    """Scores on the lineage's old windows."""

    def __init__(self, task: Task, tables: Snapshot, rows: pa.Table) -> None:
        """Takes the old windows' rows; their examples are made when they are first asked for."""
        self._task, self._tables, self._rows = task, tables, rows
        self._scores: dict[str, Scores] = {}

    @cached_property
    def examples(self) -> Examples:
        """The old examples."""
        return few_examples(self._task.examples(self._tables, self._rows), MOST_OLD_EXAMPLES)

    @classmethod
    def of(cls, task: Task, tables: Snapshot, ledger: Ledger, base: Ledger) -> Remembered:
        """Of a lineage.

        Args:
            task: whose examples.
            tables: at the update's versions.
            ledger: of the champion; what it sets aside is left out.
            base: of the lineage's first model, which has learnt every row of the hours before its `joined_until`.
        """
        since = base.joined_until - timedelta(hours=base.span_hours)
        rows = task.teaching(tables, tables.rows_from(task.table, since, base.joined_until))
        rows = rows.filter(pa.array(parts(rows[task.unit_column], rows["hour"]) == GATE))
        rows = without_windows(rows, ledger.set_aside)
        tables.expect(task.table, task.unit_column, rows[task.unit_column])  # read with the update's own examples
        return cls(task, tables, rows)

    def add(self, role: str, learner: Learner) -> None:
        """Scores a model in a role: `champion`, `reference`."""
        if len(self.examples):
            self._scores[role] = learner.score(self.examples)

    def beside(self, challenger: Learner) -> OldScores | None:
        """All scores, the challenger's too; None where the lineage has no old windows yet."""
        if "champion" not in self._scores:
            return None
        return OldScores(
            self._scores["champion"], challenger.score(self.examples), self._scores.get("reference")
        )
