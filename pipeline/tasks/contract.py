"""The contract between the mechanism and a task: examples, learner, scores, gates, package.

Ingest, checkpoint, replay, gate, promotion and DAGs are written against this file and know no task by
name. A new task is one network in `models/`, one file in `pipeline/tasks/` that fulfils `Task`, and one
line in `pipeline/tasks/catalogue.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tasks.methods import Methods

if TYPE_CHECKING:
    from models.workers import Workers
    from pipeline.snapshot import Snapshot


@dataclass(frozen=True)
class Examples:
    """Examples of one task, a row each.

    Attributes:
        table: columns `example_id` (string, stable: the same facts give the same id), `unit` (string: who or
            what the example is about, the resampling unit of the gate's bootstrap and the key of the split),
            `time` (timestamp UTC), `hour` (timestamp UTC, start of the hour in which it happened), `rows`
            (int64, how many rows of the task's table the example teaches), `landed_window` (timestamp UTC,
            newest of those rows), and whatever else the task needs. All rows that an example teaches have its
            unit and its hour, because the split is by both, for rows as for examples. What an update trains on
            has `replayed` (bool) as well.
    """

    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    def keep(self, mask: np.ndarray) -> Examples:
        """The examples where `mask` ([n] bool) is true."""
        return Examples(self.table.filter(pa.array(mask)))

    def take(self, indices: np.ndarray) -> Examples:
        """The examples at `indices` ([m] int), in that order."""
        return Examples(self.table.take(pa.array(indices)))

    def marked(self, *, replayed: bool) -> Examples:
        """The same with the column `replayed`."""
        return Examples(self.table.append_column("replayed", pa.array(np.full(len(self), replayed))))

    @property
    def replayed(self) -> np.ndarray:
        """[n] bool: which were learnt before; none where nobody has marked them."""
        if "replayed" not in self.table.column_names:
            return np.zeros(len(self), bool)
        return self.table["replayed"].to_numpy()

    @property
    def taught_rows(self) -> int:
        """How many rows of the task's table these examples teach."""
        return int(pc.sum(self.table["rows"]).as_py() or 0)


def together(*parts: Examples) -> Examples:
    """The examples of all parts, one after the other (same columns)."""
    return Examples(pa.concat_tables([part.table for part in parts]))


@dataclass(frozen=True)
class Scores:
    """One model's quality on examples.

    Attributes:
        frame: one row per example that can be judged, in the examples' order: `example_id`, `unit`, `hour`,
            one float column per metric (higher is better), and one bool column `slice:<name>` per slice that
            the example belongs to.
        metrics: the names of the metric columns, the gate's own first.
    """

    frame: pd.DataFrame
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class GateRules:
    """What a challenger of this task must show; each number's reason stands where a task states it.

    Attributes:
        metric: the metric that decides; what is shown first to people is the first of a task's `Scores.metrics`.
        margin: how much worse than the champion still counts as not worse, relative to the champion's mean.
        error_rate: stated probability of promoting a model that is worse by more than the margin.
        least_units: fewer distinct units than this on the validation examples: hold.
        slice_margin: the same as margin, for each slice.
        beats_baseline: the challenger must not be shown to be below the plain baseline.
        least_on_arrival: a window on which the champion is shown to reach less than this share of its usual score is
            not learnt: so much does no hour change. 0: whatever lands is learnt.
        arrival_metric: the metric for that; empty: the one that decides.
    """

    metric: str
    margin: float
    error_rate: float
    least_units: int
    slice_margin: float
    beats_baseline: bool = True
    least_on_arrival: float = 0.0
    arrival_metric: str = ""


@dataclass(frozen=True)
class Schedule:
    """How a learner is trained in one job.

    Attributes:
        learning_rate: peak of the rate.
        warmup_steps: linear rise from 0 to the peak.
        epochs: most passes over the training examples.
        patience_epochs: passes without a better tuning loss before stopping; the best pass is kept. 0: the last one is,
            without the copy of the learner that keeping another takes.
        batch_size: examples a step.
        most_batch_size: of a history so large that a pass would have more than `steps_a_pass` steps the batches are
            larger, up to this. 0: never.
        steps_a_pass: see `most_batch_size`.
        least_steps: few examples, most of them new, are passed over more often than `epochs`, until so many steps are
            made; early stopping ends it before.
        enough_steps: after so many steps no further pass begins, however many `epochs` allows: a second pass is for
            small windows. 0: no such end.
        replay_ratio: replayed old examples for each new one.
        least_replayed: at least so many, however few the new ones are.
        filled_up_to: at least as many as bring the examples up to this number in all: the gradients of a small window
            alone are those of a few customers. 0: never.
        decay: "none": the peak stays. "linear": the rate falls in a line to (almost) 0 over all passes, the best or
            as good as any schedule in Defazio et al. 2023 (arXiv:2310.07831).
        methods: what else is done; nothing by default.
    """

    learning_rate: float
    warmup_steps: int
    epochs: int
    patience_epochs: int
    batch_size: int
    replay_ratio: float = 0.0
    least_replayed: int = 0
    enough_steps: int = 0
    least_steps: int = 0
    decay: Literal["none", "linear"] = "none"
    methods: Methods = field(default_factory=Methods)
    most_batch_size: int = 0
    steps_a_pass: int = 1
    filled_up_to: int = 0

    def for_examples(self, examples: int) -> Schedule:
        """The schedule with the batch size that so many examples are taught in."""
        wanted = min(math.ceil(examples / self.steps_a_pass), self.most_batch_size)
        return replace(self, batch_size=max(self.batch_size, wanted))

    def replayed_beside(self, new: int) -> int:
        """How many old examples are replayed beside `new` new ones."""
        return max(int(self.replay_ratio * new), self.least_replayed, self.filled_up_to - new)

    def __post_init__(self) -> None:
        """Refuses a decay that is none."""
        if self.decay not in ("none", "linear"):
            raise ValueError(f"decay must be none or linear; it is {self.decay!r}. Correct the schedule.")


@dataclass(frozen=True)
class State:
    """All of a learner, in plain arrays and JSON: no pickle, the same bits after a round trip.

    Attributes:
        arrays: weights, optimizer slots, seed generators' states, growth counters, by path.
        meta: JSON-able: sizes, vocabularies, settings.
    """

    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Package:
    """What a consumer gets from the registry.

    Attributes:
        model_code: the models-from-code script of the pyfunc.
        code_folders: importable folders that the script needs (renamed so that they collide with nobody).
        artifacts: name -> file or folder, stored with each version.
        shared: name -> folder that is the same for many versions (the text encoder): stored once by its
            content's hash and referred to.
        config: model_config of the script (JSON-able).
        requirements: exact pip requirements of the pyfunc.
        input_example: rows that the pyfunc answers.
        output_example: its answer to them.
        parameters: inference parameters with their defaults.
    """

    model_code: Path
    code_folders: tuple[Path, ...]
    artifacts: Mapping[str, Path]
    config: Mapping[str, Any]
    requirements: tuple[str, ...]
    input_example: pd.DataFrame
    output_example: pd.DataFrame
    parameters: Mapping[str, Any]
    shared: Mapping[str, Path] = field(default_factory=dict)


class Learner(Protocol):
    """A model together with its vocabularies, optimizer and random state."""

    def grow(self, context: pa.Table, examples: Examples) -> Mapping[str, int]:
        """Takes in new ids (and changed texts, prices) of the context and sightings in the examples.

        Returns counts for the log, such as `{"items_new": 12, "rows_admitted": 3}`.
        """

    def use(self, methods: Methods, train: Examples) -> None:
        """From now on trains on `train` by these methods; the start that some of them hold to is the state now."""

    def batches(self, examples: Examples, batch_size: int, generator: np.random.Generator) -> Iterator[Any]:
        """Shuffled batches of at most so many examples, for a step that is compiled once.

        They do not depend on the steps made meanwhile: the next one may be prepared by a thread.
        """

    def train_step(self, batch: Any, learning_rate: float) -> float:
        """One step of the optimizer; returns the batch's loss before it."""

    def loss(self, examples: Examples, batch_size: int) -> float:
        """The training loss without dropout, mean over the examples."""

    def losses(self, examples: Examples, batch_size: int, *, learnt: bool) -> np.ndarray:
        """[n] float: each example's loss without dropout; `learnt`: whether the learner has grown by them before."""

    def weights(self) -> Collection[str]:
        """Which of the state's arrays are what training moves (floats): what is averaged, shrunk and perturbed."""

    def score(self, examples: Examples) -> Scores:
        """The model's metrics on each example."""

    def state(self) -> State:
        """All that `Task.restore` needs to go on bit for bit."""

    def package(self, folder: Path) -> Package:
        """Writes the consumer's form below `folder`."""


@runtime_checkable
class Calibrated(Protocol):
    """A learner whose confidences are fitted on examples that it does not learn from. Not every learner is one."""

    def calibrate(self, held_out: Examples) -> None:
        """Fits confidences and thresholds on the tuning examples; called after the last pass, on the pass kept."""


@runtime_checkable
class Foresees(Protocol):
    """A learner that learns from how well it foresees, beside what it is taught. Not every learner is one."""

    @property
    def has_foreseen(self) -> bool:
        """Whether it has done so, in this job or one before."""

    def foresee(self, examples: Examples) -> None:
        """Takes in examples that were never taught; a learner that was not trained yet foresees nothing."""


@runtime_checkable
class Counts(Protocol):
    """A learner whose network reads counts of what was chosen, beside its weights. Not every learner is one.

    In service a model reads counts of what was learnt, and nothing of what it is asked. So an update teaches examples
    with the counts as they stood before these, and counts them afterwards.
    """

    def count(self, examples: Examples) -> None:
        """Counts what the learner grew by, once it is taught; what was counted already is not counted again."""


@runtime_checkable
class AdaptsEncoder(Protocol):
    """A learner whose text encoder a retrain may teach; updates keep it as it is. Not every learner is one."""

    def adapt(
        self, context: pa.Table, examples: Examples, methods: Methods, report: Callable[[str], None] = ...
    ) -> None:
        """Called of a base, before it grows; nothing is done where the methods do not ask for it.

        Args:
            context: what there is.
            examples: those that are taught; no judge sees them.
            methods: of the retrain.
            report: takes a line for people now and then.
        """


@runtime_checkable
class KeepsVectors(Protocol):
    """A learner whose texts' vectors lie in the lake for as long as it is in use. Not every learner is one."""

    @property
    def vectors_name(self) -> str:
        """The name that they have there; empty: they are of an encoder that no retrain makes anew."""


@runtime_checkable
class Sharable(Protocol):
    """A learner that several workers can train together, each on its share of the examples. Not every learner is one.

    Example i is worker `i % size`'s. Joined learners that begin equal end equal, and within float error as one alone.
    """

    def outline(self, examples: Examples) -> Mapping[str, np.ndarray]:
        """What each worker must know of all examples, the others' included, to make its part of every batch."""

    def join(self, workers: Workers, outline_of_all: Mapping[str, np.ndarray]) -> None:
        """From now on trains with the other workers; `batches` gets this worker's examples alone."""


@runtime_checkable
class Reader(Protocol):
    """A learner that reads what came and says what it finds in tables of the lake. Not every learner is one."""

    def read(self, context: pa.Table) -> Mapping[str, pa.Table]:
        """Table -> rows that the lake shall hold of `context` (`Task.context`).

        An update asks the champion, before anything learns what came, so the rows stand whatever the gate decides; a
        retrain asks the model that it made, and the rows stand if it serves. The same table may get rows of the same
        facts again, from a later version: its readers take the newest.
        """


@runtime_checkable
class Explained(Protocol):
    """A task that says in words what its metrics tell, for the health page. Not every task does.

    Attributes:
        measures: metric -> what it says; the deciding one first.
    """

    measures: Mapping[str, str]


@runtime_checkable
class Outgrows(Protocol):
    """A task whose full retrain learns from rows what no update does, so that it is worth more the more there are."""

    def outgrown(self, at_retrain: int, now: int) -> bool:
        """Whether another retrain is worth its cost: rows of the task's table that the last one read, and rows now."""


@runtime_checkable
class MakesExamples(Protocol):
    """A task that makes up examples of its own beside those that happened. Not every task does.

    They are trained on and nothing else: they teach no row, no judge sees them.
    """

    def made(
        self, tables: Snapshot, learnt: Examples, methods: Methods, generator: np.random.Generator
    ) -> Examples:
        """What is made of the examples that are learnt, by the methods; none where these ask for none."""


class Task(Protocol):
    """One thing to learn.

    Attributes:
        name: the registered model is `evergreen-<name>`.
        table: the table whose changes it learns.
        context_tables: further tables that it reads at a version, such as the catalogue.
        unit_column: the column of `table` that holds an example's unit.
        teaching_columns: the columns of `table` from which `teaching` tells which rows teach.
        gate, base_schedule, update_schedule: its numbers, each with its reason where the task states it.
    """

    name: str
    table: str
    context_tables: tuple[str, ...]
    unit_column: str
    teaching_columns: tuple[str, ...]
    gate: GateRules
    base_schedule: Schedule
    update_schedule: Schedule

    def teaching(self, tables: Snapshot, rows: pa.Table) -> pa.Table:
        """Those of `rows` (with `teaching_columns`) that teach something; the others are context only."""

    def examples(self, tables: Snapshot, rows: pa.Table) -> Examples:
        """The examples that `rows` (of the task's table, all its columns) teach, as of `tables`' versions.

        The inputs of an example are what was known before it happened. The same rows in the same order give the
        same examples in the same order: a killed job must end with the same bits when it is run again.
        """

    def context(self, tables: Snapshot, since: Mapping[str, int] | None) -> pa.Table:
        """What a learner must know of the world at `tables`' versions: ids, texts, prices.

        Only what changed after the versions `since`, or everything where that is None.
        """

    def learner(self, seed: int) -> Learner:
        """The base: pretrained parts and untrained heads."""

    def restore(self, state: State) -> Learner:
        """The learner that `state` was taken from, bit for bit."""

    def baseline(self, tables: Snapshot, examples: Examples) -> Scores:
        """The plain method that any model must not fall below, on the same examples."""
