"""The recommender as a learner: it takes in new items, trains, scores, and packs itself for consumers.

The network works on the arrays of a batch (models/recommender.py); this file holds what lies between it and the
catalogue: tables that grow (recommend_items.py), what was chosen lately and together (recommend_counters.py), the
judge's metrics, state and package.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from models.compact_ensemble import CompactEnsemble
from models.compact_recommender import CompactRecommender
from models.growing import fitted
from models.recommender import Recommender, RecommenderSizes, as_json, newer_weights
from models.trainer import StepMethods, Trainer, variables_of
from models.workers import Workers
from pipeline.evaluation import ranked_metrics
from pipeline.tasks.contract import Examples, Methods, Package, Scores, State
from pipeline.tasks.recommend_baseline import DEEP, K
from pipeline.tasks.recommend_batches import BESIDE, Batch, Batcher, groups_by_length
from pipeline.tasks.recommend_blend import BlendFit, Foreseen, recommendable
from pipeline.tasks.recommend_counters import Counters
from pipeline.tasks.recommend_directions import Directions
from pipeline.tasks.recommend_encoded import Encoded
from pipeline.tasks.recommend_ensemble import Elders, compact_weights
from pipeline.tasks.recommend_items import ItemTables, PriceScale
from pipeline.tasks.recommend_neighbours import Neighbours
from pipeline.tasks.recommend_package import written_package
from pipeline.tasks.recommend_ranking import ranked, slices
from pipeline.tasks.recommend_shares import Share, Whole, outline, refuse_alone
from pipeline.tasks.recommend_texts import Texts, Vectors
from pipeline.tasks.recommend_trends import DAY_US, Trends

TEXT_DIMENSION = 128  # principal directions of the first catalogue's texts that are kept: twice an item's vector
_WEIGHED_EXAMPLES = 128  # replayed examples, a step each, that tell the Fisher information

# An article of one season is back within a year (Christmas, back to school), and a season shifts by some weeks:
# after thirteen months without a choice, a look or a change it is more likely gone.
EXPIRY_DAYS = 400
_LEAST_EXPIRED_SHARE = 16  # dropping rows copies every table: only where at least one row in so many would go


class RecommenderLearner:
    """Fulfils `pipeline.tasks.contract.Learner`."""

    def __init__(
        self, *, seed: int, text_dimension: int, encoder: Callable[[], Any], sizes: RecommenderSizes | None = None,
        cached: Callable[[Any], Vectors] | None = None,
    ) -> None:
        """An untrained recommender that knows no item.

        Args:
            seed: of every random weight and of dropout.
            text_dimension: length of a text vector.
            encoder: gives the text encoder, called only when a package is written.
            sizes: other than the default ones.
            cached: the vectors of texts by an encoder; asked where this learner has one of its own, or where a context
                leaves out the vector of an item that is not known any more.
        """
        tf.config.experimental.enable_op_determinism()
        self._seed = seed
        self._texts = Texts(encoder, cached)
        self._sizes = sizes or RecommenderSizes(min(text_dimension, TEXT_DIMENSION))
        self._prices = PriceScale()
        self._directions = Directions.first(text_dimension, self._sizes.text_dimension)
        self._tables = ItemTables(self._sizes.text_dimension, self._sizes.dimension)
        self._counters = Counters(Trends(), Neighbours())
        self._trainer = Trainer.lent_to(self, self._sizes, seed)
        self._network = self._trainer.network
        self._methods = Methods()
        self._elders = Elders()
        self._blend = BlendFit()
        self._start: ItemTables | None = None  # as they were when a job began, for what holds to it
        self._share: Share | None = None  # of the examples, where several workers train

    # --- growth ---

    def adapt(
        self, context: pa.Table, examples: Examples, methods: Methods,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Teaches the text encoder, before anything else is learnt, where the methods ask for it."""
        if methods.lora_rank:
            self._texts = self._texts.adapt(
                context, examples, rank=methods.lora_rank, steps=methods.lora_steps, seed=self._seed
            )

    def grow(self, context: pa.Table, examples: Examples) -> Mapping[str, int]:
        """Takes in items and what changed of them, and what the examples choose.

        What later examples than the first of all choose is counted by `count`, once it is taught.

        Args:
            context: `item_id`, `category`, `price`, `text_vector`, `last_seen` (time; null: catalogue and events know
                the item no more); items that are known are overwritten, but for a text whose vector is null, which
                stays. Without `last_seen` none is dropped. `content_hash`, where vectors are null.
            examples: what will be learnt.

        Raises:
            RuntimeError: what the learner grew by before is not counted yet.
        """
        self._counters.refuse_more()
        tables, before = self._tables, len(self._tables)
        context = self._texts.of_items(self._without_gone(context))
        known = len(tables)
        rows = tables.items.grow(context["item_id"].to_pylist())
        tables.categories.grow(sorted({name for name in context["category"].to_pylist() if name}))
        tables.grow()
        self._counters.grow(len(tables))
        self._elders.grow(len(tables), len(tables.categories))
        if len(rows):
            if known == 1:
                self._directions = self._directions.of_catalogue(context["text_vector"])
            text = self._directions.of_items(
                context, held=lambda: tables.described(rows), new=rows >= known, known=self._texts.known
            )
            price = self._prices.features(context["price"])
            tables.describe(rows, text, price, tables.categories.indices_of(context["category"].cast(pa.string())))
            if "wording_vector" in context.column_names:
                tables.describe_otherwise(rows, self._directions.projected(context["wording_vector"]))
        if "last_seen" in context.column_names:
            tables.see_on(rows, context["last_seen"].cast(pa.date32(), safe=False).cast(pa.int32()).to_numpy())
        grown = len(tables)
        self._expire()
        encoded = self._encoded(examples)
        days = np.repeat(encoded.times // DAY_US, np.diff(encoded.target_offsets))
        tables.choose_on(encoded.target_index, days.astype(np.int32))
        admitted = self._admit(encoded)
        self._counters.take_in(encoded)
        return {
            "items": len(tables) - 1, "items_new": grown - known, "rows_admitted": len(admitted),
            "items_described": len(rows), "items_gone": before - known, "items_expired": grown - len(tables),
        }

    def _without_gone(self, context: pa.Table) -> pa.Table:
        """The context less the items that catalogue and events know no more; their rows are dropped."""
        if "last_seen" not in context.column_names or not context["last_seen"].null_count:
            return context
        there = pc.is_valid(context["last_seen"])
        dropped = np.zeros(len(self._tables), bool)
        dropped[self._tables.items.indices_of(context.filter(pc.invert(there))["item_id"])] = True
        self._drop(dropped)
        return context.filter(there)

    def _expire(self) -> None:
        """Drops the items that were not seen in the EXPIRY_DAYS before the newest sighting, once they are many."""
        last_seen = self._tables.last_seen
        expired = last_seen < last_seen.max() - EXPIRY_DAYS
        expired[0] = False
        if expired.sum() * _LEAST_EXPIRED_SHARE >= len(self._tables):
            self._drop(expired)

    def _drop(self, dropped: np.ndarray) -> None:
        """Takes the items at `dropped` ([items] bool) out of every table; the others move up. Row 0 stays."""
        dropped[0] = False
        if not dropped.any():
            return
        kept = np.flatnonzero(~dropped)
        moved = np.zeros(len(dropped), np.int64)
        moved[kept] = np.arange(len(kept))
        self._counters.keep(kept, moved)
        self._elders.keep(kept)
        self._tables.keep(kept)

    def _admit(self, encoded: Encoded) -> np.ndarray:
        """Takes in sightings; returns the rows of the items that get a row of their own by them."""
        admitted = self._tables.items.see(np.concatenate([encoded.target_index, encoded.rating_index]))
        self._tables.begin_rows(admitted, self._seed)
        return admitted

    def count(self, examples: Examples) -> None:
        """Counts what was chosen, lately and together, in the examples of the last `grow`, after they were taught."""
        if self._counters.waiting:
            self._counters.count(self._encoded(examples))

    # --- training ---

    @property
    def has_foreseen(self) -> bool:
        """Whether the weights of models/blend.py were fitted."""
        return self._blend.time > 0

    def foresee(self, examples: Examples) -> None:
        """Fits the weights of models/blend.py on some of the examples; none of them was taught or counted."""
        if not self._trainer.optimizer.iterations.numpy():
            return
        generator = np.random.default_rng(self._seed)
        encoded = self._encoded(recommendable(examples, generator))
        batcher = Batcher(encoded, self._tables, self._counters, generator, counted=False)
        scale = float(self._network.neighbour_head.whole_log_scale.numpy())
        foreseen = Foreseen.by(batcher, encoded, scale, lambda batch: self._trainer.foresee(
            self._tables.rows(batch["rows"]), {name: one for name, one in batch.items() if name not in BESIDE}
        ))
        newest = int(encoded.times.max(initial=0))
        self._blend.learn(foreseen, newest, beside_learnt=newest <= self._counters.trends.time)

    def outline(self, examples: Examples) -> Mapping[str, np.ndarray]:
        """How long each example's lists are."""
        return outline(examples)

    def join(self, workers: Workers, outline_of_all: Mapping[str, np.ndarray]) -> None:
        """From now on trains together with the other workers, on its share of the examples."""
        self._share = Share.of(workers, outline_of_all)
        self._trainer.join(workers)

    def use(self, methods: Methods, train: Examples) -> None:
        """From now on trains by these methods; what some of them hold to are weights and rows as they are now."""
        step = StepMethods(
            distillation=methods.distillation, l2_pull=methods.l2_pull, ewc=methods.ewc,
            adversarial_radius=methods.adversarial_radius, optimizer=methods.optimizer,
            weight_decay=methods.weight_decay, dropout=methods.dropout,
        )
        if self._share is not None:
            refuse_alone(methods)
        if methods.ensemble < 2:
            self._elders.forget()
        elif self._trainer.optimizer.iterations.numpy():  # what was never trained has nothing to say
            self._elders.remember(self._weights(), most=methods.ensemble - 1)
        if not methods.weigh_foreseen:
            self._blend = BlendFit()
        self._methods = methods
        self._trainer.use(step)
        self._trainer.copy_pace.assign(methods.copy_pace)
        self._tables.decay_by(methods.weight_decay)
        self._start = ItemTables.from_arrays(self._tables.arrays()) if step.holds_to_start else None
        if methods.ewc:
            self._trainer.weigh(self._one_by_one(train.keep(train.replayed)))

    def _one_by_one(self, examples: Examples) -> Iterator[tuple[np.ndarray, Batch]]:
        """Rows and batch of some of the examples, one each."""
        generator = np.random.default_rng(0)
        chosen = examples.take(generator.permutation(len(examples))[:_WEIGHED_EXAMPLES])
        encoded = self._encoded(chosen)
        batcher = Batcher(encoded, self._tables, self._counters, generator, counted=True)
        for one, length in groups_by_length(encoded, np.arange(len(chosen)), 1):
            arrays = dict(batcher.batch(one, length, 1))
            yield self._tables.rows(arrays.pop("rows")), arrays

    def batches(self, examples: Examples, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """Shuffled batches; the histories of one batch are all short or all long (HISTORY_LENGTHS).

        Those that are not full are not filled up: the compiled step takes any number of examples.
        """
        encoded = self._encoded(examples)
        share = self._share or Whole(encoded)
        order = generator.permutation(len(share))
        encoded = encoded.with_targets_by(share.target_draws(generator))
        groups = share.groups(order, batch_size)
        batcher = Batcher(
            encoded, self._tables, self._counters, generator,
            counted=self._counters.hold(examples.replayed),
            mask=self._methods.history_mask, crop=self._methods.history_crop,
            reword=self._methods.reword,
        )
        replayed = examples.replayed.astype(np.float32) if self._methods.distillation else None
        for place in generator.permutation(len(groups)):
            chosen, length = groups[place]
            batch = share.batch(batcher, chosen, length)
            yield batch if replayed is None else {**batch, "replayed": replayed[chosen]}

    def train_step(self, batch: Batch, learning_rate: float) -> float:
        """One step of the optimizer; the batch's mean loss before it."""
        arrays = dict(batch)
        rows, replayed = arrays.pop("rows"), arrays.pop("replayed", None)
        start_rows = None if self._start is None else self._start.rows(rows)
        loss, gradient = self._trainer.train_step(
            self._tables.rows(rows), arrays, learning_rate, start_rows=start_rows, replayed=replayed
        )
        if self._share is not None:
            rows, gradient = self._share.rows_of_all(rows, gradient, arrays["weight"])
        self._tables.step(rows, gradient, learning_rate)
        return loss

    def loss(self, examples: Examples, batch_size: int) -> float:
        """The mean training loss without dropout, on examples that were not counted; 0 for no examples."""
        losses = self.losses(examples, batch_size, learnt=False)
        return float(losses.astype(np.float64).mean()) if len(losses) else 0.0

    def losses(self, examples: Examples, batch_size: int, *, learnt: bool) -> np.ndarray:
        """[n] float32: each example's training loss without dropout; `learnt`: whether they were counted."""
        encoded = self._encoded(examples)
        generator = np.random.default_rng(0)  # the same candidates each time
        batcher = Batcher(encoded, self._tables, self._counters, generator, counted=learnt)
        losses = np.zeros(len(examples), np.float32)
        for chosen, length in groups_by_length(encoded, np.arange(len(examples)), batch_size):
            arrays = dict(batcher.batch(chosen, length, len(chosen)))
            losses[chosen] = self._trainer.measure(self._tables.rows(arrays.pop("rows")), arrays)
        return losses

    def weights(self) -> Collection[str]:
        """The dense weights, and the rows of items and categories."""
        return {one.path for one in self._network.trainable_variables} | {"items/rows", "categories/rows"}

    def _weights(self) -> dict[str, np.ndarray]:
        arrays = self._tables.arrays() | {one.path: one.numpy() for one in self._network.trainable_variables}
        return {name: np.array(arrays[name]) for name in self.weights()}

    def _encoded(self, examples: Examples) -> Encoded:
        return Encoded.of(self._texts.of_queries(examples.table), self._tables.items, self._directions.matrix)

    # --- judging ---

    def score(self, examples: Examples) -> Scores:
        """recall@20, ndcg@20, mrr@20 and ndcg@100 of each example with a target, over the whole catalogue.

        A target that the vocabulary does not know is a miss.
        """
        examples = examples.keep(pc.greater(pc.list_value_length(examples.table["targets"]), 0).to_numpy())
        encoded = self._encoded(examples)
        targets = encoded.padded_targets(unknown=len(self._tables))
        table, metrics = examples.table, ranked_metrics(self._ranked(encoded, DEEP), targets, K, DEEP)
        frame = pd.DataFrame({
            "example_id": table["example_id"].to_pylist(),
            "unit": table["unit"].to_pylist(),
            "hour": pd.to_datetime(table["hour"].to_pylist(), utc=True),
            **metrics,
            **slices(encoded, self._tables, targets),
        })
        return Scores(frame, tuple(metrics))

    def answers(self, examples: Examples, *, k: int = K, new_only: bool = False) -> np.ndarray:
        """[n, k] object: the ids that each example is answered with, best first, None after the end.

        Args:
            examples: of any kind.
            k: how many.
            new_only: leave out what the history holds.
        """
        ids = np.array([None, *self._tables.items.ids[1:], None], dtype=object)  # the last for -1
        return ids[self._ranked(self._encoded(examples), k, new_only=new_only)]

    def _ranked(self, encoded: Encoded, k: int, *, new_only: bool = False) -> np.ndarray:
        compact = self.compact().rounded()
        return ranked(compact, encoded, self._tables, self._counters.trends, k, new_only=new_only)

    # --- state ---

    def state(self) -> State:
        """Weights, slots and seed generators' states, tables with their moments, vocabularies, counters."""
        meta = {
            "seed": self._seed, "sizes": as_json(self._sizes), "price_scale": self._prices.as_json(),
            "text_dimension": len(self._directions.matrix), "optimizer": self._methods.optimizer,
            "uncounted": self._counters.waiting,
        }
        weights = {path: np.array(variable.numpy()) for path, variable in variables_of(self._trainer).items()}
        held = self._tables.arrays() | self._counters.arrays() | self._elders.arrays() | self._texts.arrays()
        held |= self._blend.arrays("blend")
        return State(weights | held | {"projection": self._directions.matrix.copy()}, meta)

    @classmethod
    def restore(
        cls, state: State, encoder: Callable[[], Any], cached: Callable[[Any], Vectors] | None = None
    ) -> RecommenderLearner:
        """The learner that `state` was taken from, bit for bit; one of a smaller network goes on in this larger one."""
        learner = cls(
            seed=state.meta["seed"], text_dimension=state.meta["text_dimension"], encoder=encoder,
            sizes=RecommenderSizes(**state.meta["sizes"]),
        )
        state = replace(state, arrays=newer_weights(state.arrays))
        learner._prices = PriceScale.from_json(state.meta["price_scale"])
        learner._directions = Directions(np.array(state.arrays["projection"]))
        learner._tables = ItemTables.from_arrays(state.arrays)
        learner._counters = Counters.from_arrays(state.arrays, waiting=bool(state.meta.get("uncounted", False)))
        learner.use(Methods(optimizer=state.meta["optimizer"]), Examples(pa.table({})))
        for path, variable in variables_of(learner._trainer).items():
            variable.assign(fitted(state.arrays.get(path), variable.shape))
        learner._texts = Texts.from_arrays(state.arrays, encoder, cached)
        learner._elders = Elders.from_arrays(state.arrays)
        learner._blend = BlendFit.from_arrays(state.arrays, "blend")
        return learner

    # --- for consumers ---

    def compact(self) -> CompactRecommender:
        """The recommender in plain arrays, as consumers use it, with the versions that answer with it."""
        everything, counters, now = np.arange(len(self._tables)), self._counters, len(self._counters.trends.moments)
        newest = compact_weights(self._network, self._tables, self._tables.rows(everything)) | {
            "trend": counters.trends.logs(now), "ages": self._tables.ages(everything, counters.trends.day_of(now)),
            "text_projection": self._directions.matrix,
            "neighbour_index": counters.neighbours.index, "neighbour_value": counters.neighbours.value,
            "neighbour_seen": counters.neighbours.seen, "blend": self._blend.weights.astype(np.float32),
        }
        if not len(self._elders):
            return CompactRecommender(self._tables.items.ids, newest)
        elders = self._elders.compact_weights(Recommender(self._sizes, self._seed), self._tables)
        return CompactEnsemble(self._tables.items.ids, newest, elders)

    def package(self, folder: Path) -> Package:
        """Writes the compact arrays and the text encoder below `folder`."""
        return written_package(self.compact().rounded(), self._texts.encoder, folder)
