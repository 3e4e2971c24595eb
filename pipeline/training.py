"""Training one learner in one job: warm-up, passes, early stopping on the tuning examples, the best pass kept.

The same function trains a base for its first time and fine-tunes a checkpoint for an hour; the schedule and its
methods are what differs. Nothing here knows a task, a table or the registry.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.tasks.contract import Calibrated, Examples, Foresees, Learner, Schedule, State

_LEAST_SHARE = 0.01  # of the peak, at the end of a linear fall: the last steps still count
_MOSTLY_OLD = 0.5  # replayed share beyond which a further pass would above all repeat what was learnt long ago
_TRIAL_EXAMPLES = 512  # newest tuning examples that judge a learning rate: their mean loss is known to a few percent


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number; what was learnt is worthless and must not be registered."""

    def __init__(self, epoch: int, loss: float) -> None:
        self.epoch = epoch
        self.loss = loss
        super().__init__(
            f"The tuning loss must be a finite number; after pass {epoch} it is {loss}. "
            "Look for extreme values in the newest window, or lower the schedule's learning rate."
        )


@dataclass(frozen=True)
class Trained:
    """What one call of `fine_tune` did.

    Attributes:
        learner: the learner as it was after its best pass.
        steps: optimizer steps in all.
        best_epoch: the pass that was kept, from 1; 0: there was nothing to learn from.
        tuning_losses: after each pass.
        seconds: wall time.
    """

    learner: Learner
    steps: int
    best_epoch: int
    tuning_losses: tuple[float, ...]
    seconds: float


def learning_rate_at(step: int, schedule: Schedule, done: float = 0.0) -> float:
    """The rate of optimizer step `step` (from 0): a linear rise to the schedule's peak, then the peak or a linear fall.

    A job starts with the moments of another hour's data; the first steps of full size would be in their
    direction (warm-up: Goyal et al. 2017, arXiv:1706.02677, section 2.2).

    Args:
        step: how many steps were made.
        schedule: the job's numbers.
        done: the share of all passes' examples that was taught before this step, 0 to 1.
    """
    rate = schedule.learning_rate * min(1.0, (step + 1) / max(1, schedule.warmup_steps))
    return rate if schedule.decay == "none" else rate * max(_LEAST_SHARE, 1.0 - done)


def fine_tune(
    learner: Learner,
    restore: Callable[[State], Learner],
    train: Examples,
    tune: Examples,
    schedule: Schedule,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
    examples: int | None = None,
) -> Trained:
    """Trains `learner` in place on `train` until the loss on `tune` stops falling.

    Passes end after `schedule.epochs` (more where `least_steps` asks for them and most examples are new), or after
    `patience_epochs` without a new best (0: the last pass is kept, and no other is judged). At least one pass is kept:
    an hour of which nothing is learnt would be gone from the ledger and not in the model. Without tuning examples all
    passes are made.

    What the schedule's methods ask of the learner itself is `Learner.use`'s; the others are here: shrinking, trials
    of learning rates, batches prepared ahead, the mean with the start.

    Args:
        learner: trained in place; use the returned one.
        restore: builds a learner from a state (`Task.restore`).
        train: shuffled anew each pass.
        tune: for early stopping, and for the confidences of a learner that has some.
        schedule: the job's numbers.
        seed: of the shuffling.
        report: takes a line for people after each pass.
        examples: how many all workers have, where `train` is the share of one; None: `train` is all.

    Raises:
        TrainingDiverged: the tuning loss is not finite.
    """
    started = time.monotonic()
    if not len(train):
        return Trained(learner, 0, 0, (), time.monotonic() - started)
    if isinstance(learner, Foresees) and schedule.methods.weigh_foreseen:
        learner.foresee(train.keep(~train.replayed))
    start = learner.state() if schedule.methods.average_with_start else None
    examples = len(train) if examples is None else examples
    schedule = schedule.for_examples(examples)
    learner, schedule = _prepared(learner, restore, train, tune, schedule, seed, report)
    generator = np.random.default_rng(seed)
    losses: list[float] = []
    best: tuple[float, int, State | None] | None = None
    steps, epochs, patience = 0, _passes(schedule, examples, float(train.replayed.mean())), schedule.patience_epochs
    for epoch in range(1, epochs + 1):
        with _batches(learner, train, schedule, generator) as batches:
            for place, batch in enumerate(batches):
                taught = min(1.0, place * schedule.batch_size / examples)
                done = (epoch - 1 + taught) / epochs
                learner.train_step(batch, learning_rate_at(steps, schedule, done))
                steps += 1
        ended = epoch == epochs or 0 < schedule.enough_steps <= steps
        judged = len(tune) and (ended or patience)
        if judged:
            losses.append(learner.loss(tune, schedule.batch_size))
            report(f"pass {epoch}: {steps} steps, tuning loss {losses[-1]:.4f}")
            if not np.isfinite(losses[-1]):
                raise TrainingDiverged(epoch, losses[-1])
        if judged and patience and (best is None or losses[-1] < best[0]):
            # a copy costs what the catalogue holds: none of what no further pass can spoil
            best = (losses[-1], epoch, None if ended else learner.state())
        if ended or (best is not None and epoch - best[1] >= patience):
            break
    last = epoch
    if best is not None and best[2] is not None:
        learner, last = restore(best[2]), best[1]
    if start is not None:
        learner = restore(_mean(learner.state(), start, learner.weights(), schedule.methods.average_with_start))
    if len(tune) and isinstance(learner, Calibrated):
        learner.calibrate(tune)
    if isinstance(learner, Foresees) and schedule.methods.weigh_foreseen and not learner.has_foreseen:
        learner.foresee(tune)  # all that a first training has not taught
    return Trained(learner, steps, last, tuple(losses), time.monotonic() - started)


def _passes(schedule: Schedule, examples: int, replayed: float) -> int:
    """How many passes are made at most: `epochs`, or as many as make `least_steps` where most examples are new."""
    if replayed > _MOSTLY_OLD:
        return schedule.epochs
    steps = math.ceil(examples / schedule.batch_size)
    return max(schedule.epochs, math.ceil(schedule.least_steps / steps))


def _prepared(
    learner: Learner, restore: Callable[[State], Learner], train: Examples, tune: Examples, schedule: Schedule,
    seed: int, report: Callable[[str], None],
) -> tuple[Learner, Schedule]:
    """The learner, shrunk where that is asked for and told the methods, and the schedule with the rate to train at."""
    methods = schedule.methods
    if methods.shrink < 1.0 or methods.perturb:
        noise = np.random.default_rng([seed, 1])
        learner = restore(_shrunk(learner.state(), learner.weights(), methods.shrink, methods.perturb, noise))
    if methods.rate_trials and len(tune):
        schedule = replace(schedule, learning_rate=_best_rate(learner, restore, train, tune, schedule, seed, report))
    learner.use(methods, train)
    return learner, schedule


@contextmanager
def _batches(
    learner: Learner, train: Examples, schedule: Schedule, generator: np.random.Generator
) -> Iterator[Iterator[Any]]:
    """One pass's batches; with prefetch their thread has ended when the pass has, however it has."""
    batches = learner.batches(train, schedule.batch_size, generator)
    if not schedule.methods.prefetch:
        yield batches
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        yield _ahead(batches, thread)


def _ahead(batches: Iterator[Any], thread: ThreadPoolExecutor) -> Iterator[Any]:
    coming = thread.submit(next, batches, None)
    while (batch := coming.result()) is not None:
        coming = thread.submit(next, batches, None)
        yield batch


def _best_rate(
    learner: Learner, restore: Callable[[State], Learner], train: Examples, tune: Examples, schedule: Schedule,
    seed: int, report: Callable[[str], None],
) -> float:
    """The one of several learning rates whose first steps lower the loss on the newest tuning examples most."""
    methods, start = schedule.methods, learner.state()
    newest = tune.take(np.argsort(tune.table["time"].to_numpy(), kind="stable")[-_TRIAL_EXAMPLES:])
    losses: dict[float, float] = {}
    for rate in schedule.learning_rate * np.geomspace(0.01, 1.0, methods.rate_trials):
        trial = restore(start)
        trial.use(methods, train)
        batches = trial.batches(train, schedule.batch_size, np.random.default_rng(seed))
        for _, batch in zip(range(methods.rate_trial_steps), batches, strict=False):
            trial.train_step(batch, float(rate))
        loss = trial.loss(newest, schedule.batch_size)
        losses[float(rate)] = loss if np.isfinite(loss) else np.inf
    report("trials: " + ", ".join(f"rate {rate:.1e}: tuning loss {loss:.4f}" for rate, loss in losses.items()))
    return min(losses, key=losses.__getitem__)


def _shrunk(
    state: State, weights: Collection[str], shrink: float, perturb: float, noise: np.random.Generator
) -> State:
    """The state with its weights times `shrink` and normal noise added; what is exactly 0 stays."""
    changed = {}
    for name in sorted(weights):
        array = state.arrays[name]
        moved = shrink * array + perturb * noise.normal(size=array.shape)
        changed[name] = np.where(array != 0.0, moved, 0.0).astype(array.dtype)
    return State({**state.arrays, **changed}, state.meta)


def _mean(state: State, start: State, weights: Collection[str], share: float) -> State:
    """The state with its weights moved the `share` of their way back to the start's; all else is the state's."""
    changed = {
        name: ((1.0 - share) * state.arrays[name] + share * start.arrays[name]).astype(state.arrays[name].dtype)
        for name in weights
    }
    return State({**state.arrays, **changed}, state.meta)
