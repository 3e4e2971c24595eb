"""Training one learner in one job: warm-up, passes, early stopping on the tuning examples, the best pass kept.

The same function trains a base for its first time and fine-tunes a checkpoint for an hour; the schedule is
what differs. Nothing here knows a task, a table or the registry.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.tasks.contract import Examples, Learner, Schedule, State


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
        tuning_losses: before the first pass and after each.
        seconds: wall time.
    """

    learner: Learner
    steps: int
    best_epoch: int
    tuning_losses: tuple[float, ...]
    seconds: float


def learning_rate_at(step: int, schedule: Schedule) -> float:
    """The rate of optimizer step `step` (from 0): a linear rise to the schedule's peak, then the peak.

    A job starts with the moments of another hour's data; the first steps of full size would be in their
    direction (warm-up: Goyal et al. 2017, arXiv:1706.02677, section 2.2).
    """
    return schedule.learning_rate * min(1.0, (step + 1) / max(1, schedule.warmup_steps))


def fine_tune(
    learner: Learner,
    restore: Callable[[State], Learner],
    train: Examples,
    tune: Examples,
    schedule: Schedule,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Trains `learner` in place on `train` until the loss on `tune` stops falling.

    Passes end after `schedule.epochs`, or after `patience_epochs` without a new best. At least one pass is
    kept: an hour of which nothing is learnt would be gone from the ledger and not in the model. Without
    tuning examples all passes are made.

    Args:
        learner: trained in place; use the returned one.
        restore: builds a learner from a state (`Task.restore`).
        train: shuffled anew each pass.
        tune: for early stopping only.
        schedule: the job's numbers.
        seed: of the shuffling.
        report: takes a line for people after each pass.

    Raises:
        TrainingDiverged: the tuning loss is not finite.
    """
    started = time.monotonic()
    if not len(train):
        return Trained(learner, 0, 0, (), time.monotonic() - started)
    generator = np.random.default_rng(seed)
    losses = [learner.loss(tune, schedule.batch_size)] if len(tune) else []
    best: tuple[float, int, State] | None = None
    steps = 0
    for epoch in range(1, schedule.epochs + 1):
        for batch in learner.batches(train, schedule.batch_size, generator):
            learner.train_step(batch, learning_rate_at(steps, schedule))
            steps += 1
        if not len(tune):
            continue
        losses.append(learner.loss(tune, schedule.batch_size))
        report(f"pass {epoch}: {steps} steps, tuning loss {losses[0]:.4f} -> {losses[-1]:.4f}")
        if not np.isfinite(losses[-1]):
            raise TrainingDiverged(epoch, losses[-1])
        if best is None or losses[-1] < best[0]:
            best = (losses[-1], epoch, learner.state())
        elif epoch - best[1] >= schedule.patience_epochs:
            break
    last = epoch
    if best is not None and best[1] != last:
        learner, last = restore(best[2]), best[1]
    return Trained(learner, steps, last, tuple(losses), time.monotonic() - started)
