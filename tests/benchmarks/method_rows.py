"""The methods of the field as rows of a table: what is switched on, whether it is on by default, and why.

Apart from what measures them (learning_methods.py), so that the table is written without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.tasks.contract import Schedule

NOTHING = "no searches"  # of the table of searches: what the others are compared with
DEFAULT = "the default update"


@dataclass(frozen=True)
class Method:
    """One way to update.

    Attributes:
        change: the schedule of it, from the default one.
        why: whether it is on by default, and the reason.
        seed: added to the lineage's.
        from_base: whether the first model is trained by it too; else all ways begin at the default one's.
    """

    change: Callable[[Schedule], Schedule]
    why: str
    seed: int = 0
    from_base: bool = False


def with_methods(**chosen: Any) -> Callable[[Schedule], Schedule]:
    """A schedule with some methods switched on."""
    return lambda schedule: replace(schedule, methods=replace(schedule.methods, **chosen))


def with_schedule(**chosen: Any) -> Callable[[Schedule], Schedule]:
    """A schedule with other numbers."""
    return lambda schedule: replace(schedule, **chosen)


METHODS: Mapping[str, Method] = {
    DEFAULT: Method(with_schedule(), ""),
    "… with other draws": Method(with_schedule(), "what chance alone changes", seed=1000),
    "no replay": Method(with_schedule(replay_ratio=0.0, least_replayed=0), "replay is on"),
    "replay: twice as much": Method(
        lambda schedule: replace(schedule, least_replayed=2 * schedule.least_replayed), "off"
    ),
    "replay: recent days": Method(with_methods(replay="recent"), "off"),
    "replay: highest loss": Method(with_methods(replay="loss"), "off"),
    "distillation 1": Method(with_methods(distillation=1.0), "off"),
    "L2 pull 0.1": Method(with_methods(l2_pull=0.1), "off"),
    "EWC 1000": Method(with_methods(ewc=1000.0), "off"),
    "dropout 0": Method(with_methods(dropout=0.0), "dropout is on"),
    "dropout 0.2": Method(with_methods(dropout=0.2), "dropout is on"),
    "no early stopping, 4 passes": Method(with_schedule(epochs=4, patience_epochs=99), "early stopping is on"),
    "no warm-up": Method(with_schedule(warmup_steps=0), "warm-up is on"),
    "learning rate by trials": Method(with_methods(rate_trials=4), "off"),
    "learning rate / 10": Method(
        lambda schedule: replace(schedule, learning_rate=schedule.learning_rate / 10), "off"
    ),
    "AdamW 0.1": Method(with_methods(optimizer="adamw", weight_decay=0.1), "off"),
    "Adafactor": Method(with_methods(optimizer="adafactor"), "off"),
    "FGM 0.1": Method(with_methods(adversarial_radius=0.1), "off"),
    "history mask 0.2": Method(with_methods(history_mask=0.2), "off"),
    "history crop 0.2": Method(with_methods(history_crop=0.2), "off"),
    "averaged with the start 0.5": Method(with_methods(average_with_start=0.5), "off"),
    "the last 3 versions together": Method(with_methods(ensemble=3), "off"),
    "the last 5 versions together": Method(with_methods(ensemble=5), "off"),
    "texts cropped by 0.3": Method(with_methods(text_crop=0.3), "off", from_base=True),
    "words of texts masked 0.2": Method(with_methods(text_mask=0.2), "off", from_base=True),
    "words of texts replaced by near ones 0.3": Method(with_methods(text_synonym=0.3), "off", from_base=True),
    "searches made of titles 0.25": Method(with_methods(title_queries=0.25), "off", from_base=True),
    "LoRA of rank 4 in the encoder, 50 steps": Method(
        with_methods(lora_rank=4, lora_steps=50), "off", from_base=True
    ),
    "shrink 0.9, perturb 0.01": Method(with_methods(shrink=0.9, perturb=0.01), "off"),
}
