"""The methods of the field that make training gentler, steadier or faster, each a plain setting of a schedule.

`make bench-learning PARTS=methods` compares each with the default update; what has not been shown to pay is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Methods:
    """What the field knows to make training gentler, steadier or faster; all is off but the last two of how it steps.

    "The start" is the learner as it is when a job begins: for an update the champion, grown by the new ids.

    What is replayed:
        replay: "random": evenly from all that was learnt. "recent": days are drawn with weight exp(-age / mean life).
            "loss": of twice as many drawn evenly, the half with the highest loss under the champion.
        replay_mean_life_days: of "recent", above 0.

    What holds the learner to the start; strengths from 0, 0: off:
        l2_pull: of l2_pull / 2 times the squared distance of all weights and of the rows in a step (L2-SP: Li,
            Grandvalet and Davoine, ICML 2018).
        ewc: of ewc / 2 times the squared distance of the dense weights, each times its Fisher information, which the
            replayed examples tell (elastic weight consolidation: Kirkpatrick et al., PNAS 2017). Nothing without them.
        distillation: of the KL divergence from the start's answers, temperature 1, on replayed examples only (Hinton,
            Vinyals and Dean 2015; for recommenders ADER: Mi, Lin and Faltings, RecSys 2020).
        average_with_start: 0 to 1, the start's share in the mean of both weights after training (WiSE-FT: Wortsman et
            al., CVPR 2022).
        ensemble: 0, or from 2: so many versions answer together, this one and those that it was updated from, by the
            mean of their logits (snapshot ensembles: Huang et al., ICLR 2017). A retrain begins alone.
        shrink, perturb: before training weights are multiplied by shrink (above 0, to 1; 1: off) and normal noise of
            this standard deviation is added (Ash and Adams, NeurIPS 2020). A weight that is exactly 0 was never
            trained and stays. The methods above, but for the average, then hold to the shrunk learner.

    How it steps:
        optimizer: of the dense weights; item rows always have the lazy Adam of models/optimizers.py. Another one than
            the checkpoint's begins with empty slots ("adam" and "adamw" share theirs).
        weight_decay: of "adamw" and "adafactor", decoupled (Loshchilov and Hutter, ICLR 2019), also of the rows in a
            step; times the learning rate a step. Vectors and scalars do not decay.
        adversarial_radius: from 0; each step is the mean of two gradients, the second with the step's rows moved this
            far, all together, up their own gradient (Miyato, Dai and Goodfellow, ICLR 2017).
        dropout: 0 to below 1, in place of the network's own; None: that one.
        rate_trials: 0 or from 2: so many learning rates from a hundredth of the schedule's to all of it, evenly by
            their logarithm, are tried for `rate_trial_steps` steps each, and the one with the lowest loss on the
            newest tuning examples is the peak (the start of a search as in Smith, WACV 2017).
        copy_pace: above 0; the steps of the recommender's copy head are so many times as long. It is small and reads no
            item's row: what it learns of one customer holds for all, and it cannot learn by heart.
        prefetch: the next batch is prepared by a thread while a step runs; changes no number.
        weigh_foreseen: before new examples are taught, a few weights of the parts of an answer are fitted on how they
            are foreseen (models/blend.py); of a retrain on the tuning examples.

    What the learner sees of histories, 0 to below 1 (CL4SRec: Xie et al., ICDE 2022):
        history_mask: chance of each item of a history to be left out.
        history_crop: share of each history that is cut away; a random part in one piece is kept.

    What it sees of texts, items' and queries', 0 to below 1 (wordings.py). Each text has one other wording, embedded
    once as the text itself is, and every second time that is what the learner sees:
        text_crop: share of the words that is cut away; a random part in one piece is kept.
        text_mask: chance of each word to be left out.
        text_synonym: chance of each word to give way to one of the catalogue's words nearest to it.

    Of a retrain alone (text_adapters.py); updates keep the encoder that the retrain has made:
        lora_rank: 0, or the rank of the change of the text encoder's attention (LoRA: Hu et al., ICLR 2022), which is
            taught by searches and by what is chosen together. Not together with other wordings.
        lora_steps: of 64 pairs of texts.

        opening_steps: 0, or how many steps the encoder of a task on messages is taught in at most, without labels, by
            what messages open with (models/text_openings.py). Sentiment alone uses it; there is what it gives.

    Where nobody writes down what customers search for:
        title_queries: from 0; so many made-up searches beside each example, a part of a chosen item's title for words
            and that item for answer.
    """

    replay: Literal["random", "recent", "loss"] = "random"
    replay_mean_life_days: float = 30.0
    l2_pull: float = 0.0
    ewc: float = 0.0
    distillation: float = 0.0
    average_with_start: float = 0.0
    ensemble: int = 0
    shrink: float = 1.0
    perturb: float = 0.0
    optimizer: Literal["adam", "adamw", "adafactor"] = "adam"
    weight_decay: float = 0.0
    adversarial_radius: float = 0.0
    dropout: float | None = None
    rate_trials: int = 0
    rate_trial_steps: int = 10
    copy_pace: float = 1.0
    prefetch: bool = True
    weigh_foreseen: bool = True
    history_mask: float = 0.0
    history_crop: float = 0.0
    text_crop: float = 0.0
    text_mask: float = 0.0
    text_synonym: float = 0.0
    title_queries: float = 0.0
    lora_rank: int = 0
    lora_steps: int = 200
    opening_steps: int = 0

    def __post_init__(self) -> None:
        """Refuses what is out of range."""
        _must(self.replay in ("random", "recent", "loss"), "replay must be random, recent or loss", self.replay)
        _must(self.replay_mean_life_days > 0, "replay_mean_life_days must be above 0", self.replay_mean_life_days)
        strengths = ("l2_pull", "ewc", "distillation", "perturb", "weight_decay", "adversarial_radius", "title_queries")
        for name in strengths:
            value = getattr(self, name)
            _must(0.0 <= value < np.inf, f"{name} must be a number from 0", value)
        for name in ("history_mask", "history_crop", "text_crop", "text_mask", "text_synonym", "dropout"):
            value = getattr(self, name)
            _must(value is None or 0.0 <= value < 1.0, f"{name} must be from 0 to below 1", value)
        _must(0.0 <= self.average_with_start <= 1.0, "average_with_start must be 0 to 1", self.average_with_start)
        _must(self.ensemble == 0 or self.ensemble > 1, "ensemble must be 0 or at least 2", self.ensemble)
        _must(0.0 < self.shrink <= 1.0, "shrink must be above 0 and at most 1", self.shrink)
        kinds = ("adam", "adamw", "adafactor")
        _must(self.optimizer in kinds, "optimizer must be adam, adamw or adafactor", self.optimizer)
        decays = self.optimizer != "adam" or not self.weight_decay
        _must(decays, "weight_decay needs the optimizer adamw or adafactor", self.weight_decay)
        _must(self.rate_trials == 0 or self.rate_trials > 1, "rate_trials must be 0 or at least 2", self.rate_trials)
        _must(0.0 < self.copy_pace < np.inf, "copy_pace must be a number above 0", self.copy_pace)
        _must(self.lora_rank >= 0, "lora_rank must be 0 or above", self.lora_rank)
        _must(self.lora_steps > 0, "lora_steps must be above 0", self.lora_steps)
        _must(self.opening_steps >= 0, "opening_steps must be 0 or above", self.opening_steps)
        _must(not (self.lora_rank and self.reword), "lora_rank needs texts in one wording", self.lora_rank)
        _must(self.rate_trial_steps > 0, "rate_trial_steps must be above 0", self.rate_trial_steps)

    @property
    def reword(self) -> bool:
        """Whether texts are seen in another wording."""
        return bool(self.text_crop or self.text_mask or self.text_synonym)


def _must(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{rule}; it is {value!r}. Correct the schedule's methods.")
