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
        why: what speaks for or against it beside its figures; may be empty.
        without: what the default has and this way lacks; empty: this way has something that the default lacks.
        seed: added to the lineage's.
        from_base: whether the first model is trained by it too; else all ways begin at the default one's.
    """

    change: Callable[[Schedule], Schedule]
    why: str = ""
    without: str = ""
    seed: int = 0
    from_base: bool = False

    def verdict(self, row: Mapping[str, Any]) -> str:
        """On or off, and why, by a row's difference and cost."""
        if self.seed:
            return self.why
        low, high = row["interval"]
        cost = row["cpu_s"] / row["default_cpu_s"]
        shown = "it gains" if low > 0.0 else "it loses" if high < 0.0 else "no gain shown"
        if self.without:
            kept = {"it gains": "though it loses", "it loses": "it gains"}.get(shown, "no loss shown")
            reason, state = kept, f"{self.without}: on"
        else:
            reason, state = shown + (f", {cost - 1.0:.0%} dearer" if cost > _DEARER else ""), "off"
        return f"{state}; {reason}" + (f"; {self.why}" if self.why else "")


_DEARER = 1.05  # less is within what a busy machine changes


def with_methods(**chosen: Any) -> Callable[[Schedule], Schedule]:
    """A schedule with some methods switched on."""
    return lambda schedule: replace(schedule, methods=replace(schedule.methods, **chosen))


def with_schedule(**chosen: Any) -> Callable[[Schedule], Schedule]:
    """A schedule with other numbers."""
    return lambda schedule: replace(schedule, **chosen)


def with_replay(**chosen: Any) -> Callable[[Schedule], Schedule]:
    """A schedule that replays 512 old examples, with some methods that need them."""
    return lambda schedule: with_methods(**chosen)(replace(schedule, least_replayed=512))


METHODS: Mapping[str, Method] = {
    DEFAULT: Method(with_schedule()),
    "… with other draws": Method(with_schedule(), "what chance alone changes", seed=1000),
    "not weighed by what was foreseen": Method(
        with_methods(weigh_foreseen=False), without="weights of what was foreseen"
    ),
    "replay of 512": Method(with_schedule(least_replayed=512), "a small window has it anyway (`filled_up_to`)"),
    "replay of 512: recent days": Method(with_replay(replay="recent")),
    "replay of 512: highest loss": Method(
        with_replay(replay="loss"), "twice as many are read and scored, beside this CPU"
    ),
    "replay of 512, distillation 1": Method(with_replay(distillation=1.0)),
    "replay of 512, EWC 1000": Method(with_replay(ewc=1000.0)),
    "L2 pull 0.1": Method(with_methods(l2_pull=0.1)),
    "dropout 0": Method(with_methods(dropout=0.0), without="dropout of 0.6"),
    "dropout 0.2": Method(with_methods(dropout=0.2), without="dropout of 0.6"),
    "one pass": Method(with_schedule(least_steps=0), without="two passes of fewer than 1,024 mostly new examples"),
    "4 passes": Method(with_schedule(epochs=4), "twice as many"),
    "up to 4 passes, early stopping": Method(with_schedule(epochs=4, patience_epochs=1)),
    "no warm-up": Method(with_schedule(warmup_steps=0), without="warm-up of 5 steps"),
    "learning rate by trials": Method(with_methods(rate_trials=4)),
    "learning rate / 10": Method(
        lambda schedule: replace(schedule, learning_rate=schedule.learning_rate / 10), without="a rate of 2e-3"
    ),
    "AdamW 0.1": Method(with_methods(optimizer="adamw", weight_decay=0.1)),
    "Adafactor": Method(with_methods(optimizer="adafactor")),
    "FGM 0.1": Method(with_methods(adversarial_radius=0.1)),
    "history mask 0.2": Method(with_methods(history_mask=0.2)),
    "history crop 0.2": Method(with_methods(history_crop=0.2)),
    "averaged with the start 0.5": Method(with_methods(average_with_start=0.5)),
    "the last 3 versions together": Method(with_methods(ensemble=3), "a request costs three times as much"),
    "the last 5 versions together": Method(with_methods(ensemble=5), "a request costs five times as much"),
    "texts cropped by 0.3": Method(with_methods(text_crop=0.3), "each text is embedded twice", from_base=True),
    "words of texts masked 0.2": Method(with_methods(text_mask=0.2), "each text is embedded twice", from_base=True),
    "words of texts replaced by near ones 0.3": Method(
        with_methods(text_synonym=0.3), "each text is embedded twice", from_base=True
    ),
    "searches made of titles 0.25": Method(
        with_methods(title_queries=0.25), "for a shop without a log of searches: the table below", from_base=True
    ),
    "LoRA of rank 4 in the encoder, 50 steps": Method(
        with_methods(lora_rank=4, lora_steps=50), "a retrain embeds the whole catalogue anew", from_base=True
    ),
    "shrink 0.9, perturb 0.01": Method(with_methods(shrink=0.9, perturb=0.01)),
}
