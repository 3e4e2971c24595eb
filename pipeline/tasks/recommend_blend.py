"""Fits the weights of models/blend.py on examples that the model has foreseen before they were taught.

Of each such example the items that an answer would be chosen from are looked at, and the weights raise the chance of
those that were wanted: a softmax over what was retrieved, as a re-ranking stage has it. (Over the whole catalogue the
many items that nobody is shown decide, and Recall@20 loses 0.002 against it.) A few hundred examples an update cannot
tell eleven weights, so what earlier ones said is kept as a quadratic around the weights, the Laplace approximation of
their likelihood, and fades as other counts do (Spiegelhalter and Lauritzen, Networks 1990; online: Opper and Winther,
1998).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from models.blend import AGE, HABIT, TREND, WEIGHTS, ages_as_inputs, all_weights, untouched
from models.losses import NO_ITEM
from pipeline.tasks.contract import Examples
from pipeline.tasks.recommend_batches import Batch, Batcher, groups_by_length
from pipeline.tasks.recommend_encoded import Encoded
from pipeline.tasks.recommend_trends import DAY_US

Value = tuple[float, np.ndarray, np.ndarray]  # of a function, its gradient, its Hessian

# Examples of one update that are foreseen: their weights are known to some per cent, and a week of Online Retail
# has as many.
MOST_FORESEEN = 512
# Items outside of the history that compete for an example: the best by logit, and by the whole history's neighbours.
# Online Retail, weeks 36 to 43 and 44 to 53, seed 0, a re-ranking outside the pipeline: NDCG@20 0.3087, 0.3056 with 300
# and 100, 0.3096, 0.3068 with these.
BY_LOGIT, BY_WHOLE = 100, 50
# What the untouched weights count beside the examples, as so many of them: less than a busy hour has. 1 and 10 answer
# alike, with 100 Recall@20 of weeks 36 to 43 loses 0.003.
PRIOR_EXAMPLES = 1.0
MEAN_LIFE_DAYS = 60.0  # of what examples said, as of the counts of neighbours; with no fading NDCG@20 is the same
_AT_ONCE = 64  # examples; with what goes with their histories some 10,000 rows at most
_MOST_STEPS = 20  # of Newton's method; it takes four to six
_ENOUGH = 1e-6  # fall of the loss an example below which it has arrived


def recommendable(examples: Examples, generator: np.random.Generator) -> Examples:
    """Of some examples those that recommend for a history, a draw of them where they are more than MOST_FORESEEN."""
    lists = [pc.greater(pc.list_value_length(examples.table[name]), 0) for name in ("targets", "history_items")]
    asked = np.flatnonzero(pc.and_(pc.and_(*lists), pc.is_null(examples.table["query"])).to_numpy())
    if len(asked) > MOST_FORESEEN:
        asked = np.sort(generator.permutation(asked)[:MOST_FORESEEN])
    return examples.take(asked)


@dataclass(frozen=True)
class Foreseen:
    """What some examples were to choose from, example by example.

    Attributes:
        inputs: [pairs, WEIGHTS] float64, what each weight is multiplied with.
        wanted: [pairs] bool, the items that were chosen.
        starts: [examples] int, where each example's pairs begin; each has one that was wanted.
    """

    inputs: np.ndarray
    wanted: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        """Examples."""
        return len(self.starts)

    @classmethod
    def together(cls, parts: Iterable[Foreseen]) -> Foreseen:
        """The examples of all parts."""
        held = list(parts) or [cls(np.zeros((0, WEIGHTS)), np.zeros(0, bool), np.zeros(0, np.int64))]
        offsets = np.cumsum([0, *(len(one.wanted) for one in held)])
        return cls(
            np.concatenate([one.inputs for one in held]), np.concatenate([one.wanted for one in held]),
            np.concatenate([one.starts + offset for one, offset in zip(held, offsets[:-1], strict=True)]),
        )

    @classmethod
    def by(
        cls, batcher: Batcher, encoded: Encoded, whole_log_scale: float,
        foresee: Callable[[Batch], tuple[np.ndarray, np.ndarray]],
    ) -> Foreseen:
        """From what `foresee` says of each batch of the examples: the first two arguments of `of`."""
        batches = (
            batcher.batch(chosen, length, len(chosen), blind=True)
            for chosen, length in groups_by_length(encoded, np.arange(len(encoded)), _AT_ONCE)
        )
        return cls.together(cls.of(*foresee(batch), batch, whole_log_scale) for batch in batches)

    @classmethod
    def of(cls, shared: np.ndarray, own: np.ndarray, batch: Batch, whole_log_scale: float) -> Foreseen:
        """From what the network says of a batch whose candidates were found without a look at its targets.

        Args:
            shared: [batch, candidates] float32, logits; column 0 is no item.
            own: [batch, length] float32, logits of the histories' items, NO_ITEM where there is none.
            batch: see `models.recommender.batch_signature`, with `ages` and `habits`.
            whole_log_scale: log of the scale of the whole history's neighbours.
        """
        candidates = shared.shape[1]
        trend, every = batch["trend"][batch["moment"]], np.arange(len(own))[:, None]  # [batch, rows, spans]
        ages = ages_as_inputs(batch["ages"])[batch["moment"]]
        whole = np.log1p(batch["whole"][:, :candidates] * np.exp(-whole_log_scale))
        outside = shared.copy()
        outside[every, batch["own_column"]] = NO_ITEM
        outside[:, 0] = NO_ITEM
        near = np.where(outside > NO_ITEM, whole, 0.0)
        retrieved = (outside > NO_ITEM) & (outside >= _least(outside, BY_LOGIT))
        retrieved |= (near > 0.0) & (near >= _least(near, BY_WHOLE))
        wanted = np.zeros(outside.shape, bool)
        wanted[every, batch["target_index"]] = True
        again = np.zeros((len(own), own.shape[1] + 1), bool)
        again[every, batch["own_targets"]] = True
        example, column = np.nonzero(retrieved)
        owner, place = np.nonzero(own > NO_ITEM)
        inputs = np.zeros((len(example) + len(owner), WEIGHTS))
        inputs[: len(example), 0], inputs[: len(example), 3] = outside[example, column], whole[example, column]
        inputs[: len(example), TREND], inputs[: len(example), AGE] = trend[example, column], ages[example, column]
        inputs[len(example) :, 1], inputs[len(example) :, 2] = own[owner, place], 1.0
        inputs[len(example) :, TREND] = trend[owner, batch["history_index"][owner, place]]
        inputs[len(example) :, HABIT] = batch["habits"][owner, place]
        return cls._by_example(
            np.concatenate([example, owner]), inputs,
            np.concatenate([wanted[example, column], again[owner, place + 1]]),
        )

    @classmethod
    def _by_example(cls, example: np.ndarray, inputs: np.ndarray, wanted: np.ndarray) -> Foreseen:
        """Puts pairs in the order of their examples, of which those without a wanted one say nothing."""
        some = np.bincount(example, wanted, example.max(initial=-1) + 1) > 0
        order = np.argsort(example, kind="stable")
        order = order[some[example[order]]]
        starts = np.flatnonzero(np.diff(example[order], prepend=-1))
        return cls(inputs[order], wanted[order], starts)

    def loss(self, weights: np.ndarray) -> Value:
        """The sum over examples of the mean of -log p over what was wanted; its gradient; its Hessian."""
        sizes = np.diff(np.append(self.starts, len(self.wanted)))
        logits = self.inputs @ weights
        logits -= np.repeat(np.maximum.reduceat(logits, self.starts), sizes)
        chances = np.exp(logits)
        totals = np.add.reduceat(chances, self.starts)
        chances /= np.repeat(totals, sizes)
        share = self.wanted / np.repeat(np.add.reduceat(self.wanted.astype(np.float64), self.starts), sizes)
        loss = np.log(totals).sum() - share @ logits
        expected = chances[:, None] * self.inputs
        means = np.add.reduceat(expected, self.starts)
        return float(loss), self.inputs.T @ (chances - share), self.inputs.T @ expected - means.T @ means


class BlendFit:
    """The weights, and what they are known by.

    Attributes:
        weights: [WEIGHTS] float64.
        evidence: the same, squared: the Hessian of what all examples said, faded.
        time: of the newest example, microseconds since 1970; 0: none was foreseen.
    """

    def __init__(self) -> None:
        """Nothing was foreseen."""
        self.weights = untouched().astype(np.float64)
        self.evidence = np.zeros((len(self.weights), len(self.weights)))
        self.time = 0

    def learn(self, foreseen: Foreseen, time: int, *, beside_learnt: bool = False) -> None:
        """Takes in examples, each of them once.

        Args:
            foreseen: what they chose from.
            time: of the newest of them, microseconds since 1970.
            beside_learnt: they happened while what was learnt did, as a first training's tuning examples. The network
                knows how it went on with a new item or a customer's habit, so they do not tell what these are worth:
                such weights stay as they are. (Online Retail, week 44 after a first training up to it, seed 0:
                Recall@20 0.300 without ages and habits, 0.286 with weights of them that tuning examples told.)
        """
        if not len(foreseen):
            return
        if beside_learnt:
            foreseen = replace(foreseen, inputs=foreseen.inputs * (np.arange(WEIGHTS) < HABIT))
        self.evidence *= np.exp(-max(time - self.time, 0) / (MEAN_LIFE_DAYS * DAY_US)) if self.time else 1.0
        prior, start = PRIOR_EXAMPLES * np.eye(len(self.weights)), untouched().astype(np.float64)

        def objective(weights: np.ndarray) -> Value:
            loss, gradient, hessian = foreseen.loss(weights)
            for strength, center in ((self.evidence, self.weights), (prior, start)):
                away = weights - center
                loss += float(away @ strength @ away) / 2.0
                gradient, hessian = gradient + strength @ away, hessian + strength
            return loss, gradient, hessian

        weights = _minimum(objective, self.weights, _ENOUGH * len(foreseen))
        self.evidence = self.evidence + foreseen.loss(weights)[2]
        self.weights, self.time = weights, max(time, self.time)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All of it as arrays, for a checkpoint."""
        return {
            f"{prefix}/weights": self.weights.copy(), f"{prefix}/evidence": self.evidence.copy(),
            f"{prefix}/time": np.array([self.time], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> BlendFit:
        """What `arrays` wrote; a checkpoint of before December 2026 has foreseen nothing, or without some weights."""
        fit = cls()
        if f"{prefix}/time" in arrays:
            fit.weights = all_weights(arrays[f"{prefix}/weights"])
            missing = len(fit.weights) - len(arrays[f"{prefix}/weights"])
            fit.evidence = np.pad(arrays[f"{prefix}/evidence"], (0, missing))
            fit.time = int(arrays[f"{prefix}/time"][0])
        return fit


def _minimum(objective: Callable[[np.ndarray], Value], start: np.ndarray, enough: float) -> np.ndarray:
    """Where a convex function has its least value, by Newton's method with halved steps."""
    weights, value = start, objective(start)
    for _ in range(_MOST_STEPS):
        step = np.linalg.solve(value[2], value[1])
        while (following := objective(weights - step))[0] > value[0] and np.abs(step).max() > 1e-9:
            step = step / 2.0
        if following[0] > value[0]:
            return weights
        fall = value[0] - following[0]
        weights, value = weights - step, following
        if fall < enough:
            break
    return weights


def _least(scores: np.ndarray, most: int) -> np.ndarray:
    """[n, 1]: the smallest of the `most` largest of each row."""
    width = scores.shape[1]
    return np.partition(scores, max(width - most, 0), axis=1)[:, max(width - most, 0), None]
