"""The task `recommend`: which items a user chooses next, with a search's words or without.

Product recommendation and search are one catalogue scoring (DESIGN.md); this file says what is particular
to them: which rows teach, what the network must know of the catalogue, the gate's and the schedules' numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.lake import Lake
from pipeline.profiles import Counts
from pipeline.snapshot import Snapshot
from pipeline.tasks import recommend_examples
from pipeline.tasks.contract import Examples, GateRules, Methods, Schedule, Scores, State
from pipeline.tasks.known_items import Reword, catalogue, described, seen, vector_column
from pipeline.tasks.recommend_baseline import score_baseline
from pipeline.tasks.recommend_searches import searches_of_titles
from pipeline.tasks.wordings import near_words, reworded
from pipeline.texts import Encoder, TextVectors

if TYPE_CHECKING:
    from pipeline.tasks.recommend_learner import RecommenderLearner


class Recommend:
    """Next-item recommendation and search over one catalogue."""

    name = "recommend"
    measures = {  # noqa: RUF012  # fixed for the class
        "recall@20": "chosen items among the first 20", "ndcg@20": "the same, more for higher places",
        "mrr@20": "1 / the place of the first chosen item",
        "ndcg@100": "as ndcg@20, of the first 100: what the gate compares",
    }
    table = "events"
    context_tables = ("items",)
    unit_column = "user_id"
    teaching_columns = recommend_examples.TEACHING_COLUMNS
    gate = GateRules(
        # Shoppers see 20, but that a target is 19th or 21st is chance. Deeper and discounted, a metric tells models
        # apart with fewer users (Valcarce et al., RecSys 2018): for Online Retail's weekly updates an equal model
        # needs some 320 users by this one and 820 by recall@20, and a model that is never updated is a fifth worse by
        # either (`make bench-learning PARTS=judging`). On the simulated shop it is 560 and 420, of some 1,600.
        metric="ndcg@100",
        # An hour's gain is about 1 % and its noise as large. 3 % is what the gate can tell apart with some hundred
        # users, and small losses cannot add up: each update is also compared with the first model of its lineage.
        margin=0.03,
        error_rate=0.05,  # the customary level; one wrong promotion in twenty of those that are 3 % worse
        # the bootstrap's interval is trustworthy from some hundred units on (Efron and Tibshirani 1993, ch. 14)
        least_units=100,
        slice_margin=0.10,  # a slice has a tenth of the units, hence three times the noise
        # Clean hours of the simulated shop reach 0.65 to 1.1 of the usual score; random purchases leave a fifth outside
        # of searches, item ids that nobody knows nothing (tests/benchmarks/results/POISON.md).
        least_on_arrival=0.5,
        arrival_metric="recall@20",  # in a catalogue of some hundred items a hundred places hold half of any answers
    )
    # Online Retail, ten weeks of updates after it: Recall@20 0.320 after 3 passes, 0.321 after 4, 0.318 after 7 at a
    # constant rate, 0.313 after 6 that fall from 5e-3.
    base_schedule = Schedule(
        learning_rate=3e-3, warmup_steps=50, epochs=4, patience_epochs=2, decay="linear",
        # Of 7,000 examples batches of 256 are 27 steps a pass, too few for the copy head: weeks 34 to 43 of Online
        # Retail after them, seeds 0 and 1: Recall@20 0.3297 (one seed) of 256, 0.3304 and 0.3337 of 64, 0.3307 and
        # 0.3336 of 32; NDCG@20 0.307, 0.310 and 0.311, 0.310 and 0.312. A long history makes steps enough, and larger
        # batches are cheaper.
        batch_size=64, most_batch_size=256, steps_a_pass=400,
        # The same weeks, seeds 0, 1 and 2: Recall@20 0.3310, 0.3337, 0.3295 at the pace of the rest, 0.3340, 0.3346,
        # 0.3342 at ten times; NDCG@20 0.310, 0.311, 0.310 and 0.312, 0.310, 0.311. In updates it changes nothing.
        methods=Methods(copy_pace=10.0),
        # of six days of a simulated shop (4,256 examples): tuning loss 2.933 after 72 steps that fell to 0, 2.544 after
        # 216; Recall@20 beside the baseline -0.8 %, +7.9 %
        least_steps=200,
    )
    # Online Retail's weeks 34 to 43, which the benchmark does not judge, seeds 0, 1 and 2, Recall@20 and that of what
    # is new to the customer: one pass over the new examples and 512 old ones 0.3340, 0.3346, 0.3342 and 0.109; one over
    # the new ones alone 0.3343 and 0.109 (seed 0); two over them 0.3354, 0.3350, 0.3366 and 0.114, the better one kept;
    # as here, filled up to 512 and the last kept, 0.3348, 0.3351, 0.3344 and 0.112; with a tenth and a quarter as many
    # old ones beside 0.3335 and 0.3337 (seed 0). What was learnt before is in the counters that the network reads
    # (copies, neighbours, trends), and a base has passed over the old examples four times. A window of few examples is
    # filled up, though: the steps are not of one hour's customers alone. A day of a simulated shop's hours (some 210
    # examples each), trained by seeds 0 and 1, Recall@20: 0.7143, 0.7169 with 512 old ones beside the new, one pass;
    # 0.7159, 0.7150 filled up to 512, one pass; 0.7128, 0.7122 filled up, two passes; 0.7137 two passes of new ones.
    # So of 16 steps two passes are made where there are fewer than 1,024 examples, most of them new; else one.
    # Batches of 64 and 2e-3: one pass in batches of 128 had 0.3227 (0.3254 of 64, 0.3245 of 32) at 2e-3, 0.3180 at
    # 3e-3, 0.3223 at 1e-3 (seed 0, an older network). The rate falls to 0: 13 steps of the simulated shop's hour, which
    # at a constant rate lose 3.2 % NDCG@100, lose 0.6 % at one that falls (one update, seed 1). No pass is judged but
    # the last: keeping another takes a copy of all tables.
    update_schedule = Schedule(
        learning_rate=2e-3, warmup_steps=5, epochs=1, patience_epochs=0, batch_size=64, decay="linear",
        least_steps=16, filled_up_to=512,
    )

    def __init__(self, lake: Lake, encoder_preset: str) -> None:
        """Takes the lake that caches text vectors and the text encoder's preset."""
        self._lake = lake
        self._preset = encoder_preset

    def teaching(self, tables: Snapshot, rows: pa.Table) -> pa.Table:
        """Choices, clicks in search results and ratings of known users."""
        return recommend_examples.teaching(tables, rows)

    def examples(self, tables: Snapshot, rows: pa.Table) -> Examples:
        """Users at moments (recommend_examples.EXAMPLES_SCHEMA) and `query_vector` [dimension] float32 or null."""
        table = recommend_examples.examples(tables, rows).table
        return Examples(self._with_query_vectors(tables, table))

    def made(
        self, tables: Snapshot, learnt: Examples, methods: Methods, generator: np.random.Generator
    ) -> Examples:
        """Searches made up from the titles of chosen items, `title_queries` for each example."""
        chosen = searches_of_titles(tables, learnt.table, methods.title_queries, generator)
        return Examples(self._with_query_vectors(tables, chosen).select(learnt.table.column_names))

    def context(self, tables: Snapshot, since: Mapping[str, int] | None) -> pa.Table:
        """Items: `item_id`, `title`, `category`, `brand`, `price`, `text`, its hash and vector, `last_seen`; by id.

        Texts and price are the newest that the catalogue has; an item that only events know has none. `last_seen` is
        the time of its newest event or change (of those since then); null: catalogue and events know it no more.
        `text_vector` is null where the catalogue has said nothing since then: the learner has it.
        """
        return described(tables, since, self._texts, self._reword(tables), told_only=True)

    def learner(self, seed: int) -> RecommenderLearner:
        """The pretrained text encoder under an untrained recommender."""
        from pipeline.tasks.recommend_learner import RecommenderLearner

        return RecommenderLearner(
            seed=seed, text_dimension=self._texts.dimension, encoder=lambda: self._encoder, cached=self._cached
        )

    def restore(self, state: State) -> RecommenderLearner:
        """The recommender that `state` was taken from."""
        from pipeline.tasks.recommend_learner import RecommenderLearner

        return RecommenderLearner.restore(state, encoder=lambda: self._encoder, cached=self._cached)

    def baseline(self, tables: Snapshot, examples: Examples) -> Scores:
        """What the user bought most often; for a search, TF-IDF."""
        chosen = recommend_examples.chosen_by_day(tables)
        return score_baseline(examples, chosen, catalogue(tables, seen(tables)).select(["item_id", "text"]))

    def answered(self, artifacts: Path, tables: Snapshot, rows: pa.Table) -> Counts:
        """What the version recommends to those who chose something in `rows`, from their histories before it."""
        from pipeline.tasks.recommend_answers import answers_in_counts, load_compact

        moments = recommend_examples.examples(tables, rows).table
        told = tables.arrow("items", ["item_id", "change_time", "category"]).sort_by("change_time").to_pydict()
        categories = {item: one for item, one in zip(told["item_id"], told["category"], strict=True) if one}
        asked = rows["item_id"].drop_null().to_pylist()
        return answers_in_counts(load_compact(artifacts), moments, categories, asked)

    @cached_property
    def _encoder(self) -> Any:
        from models.text_encoder import load_text_encoder

        return load_text_encoder(self._preset)

    @cached_property
    def _texts(self) -> TextVectors:
        return self._cached(self._encoder)

    def _cached(self, encoder: Encoder) -> TextVectors:
        return TextVectors(self._lake, encoder)

    def _reword(self, tables: Snapshot) -> Reword | None:
        """Another wording of a text, where one of the schedules asks for it: the updates' first."""
        schedules = (self.update_schedule, self.base_schedule)
        methods = next((one.methods for one in schedules if one.methods.reword), None)
        if methods is None:
            return None
        near = tables.remembered("recommend.near_words", lambda: self._near(tables)) if methods.text_synonym else {}
        return lambda text: reworded(text, methods, near)

    def _near(self, tables: Snapshot) -> Mapping[str, Sequence[str]]:
        return near_words(catalogue(tables, seen(tables))["text"].to_pylist(), self._texts.of)

    def _with_query_vectors(self, tables: Snapshot, examples: pa.Table) -> pa.Table:
        """The examples with `query_vector`, and where texts are reworded `query_wording_vector`."""
        words, reword = examples["query"].to_pylist(), self._reword(tables)
        found = examples.append_column("query_vector", self._query_vectors(words))
        if reword is None:
            return found
        others = self._query_vectors([reword(text) if text else text for text in words])
        return found.append_column("query_wording_vector", others)

    def _query_vectors(self, words: Sequence[str | None]) -> pa.Array:
        return vector_column(self._texts.of(words), missing=np.array([not word for word in words], bool))
