"""The task `demand`: what each item will sell, how much to keep in stock, and which price range earns most.

Forecasts with intervals for 1, 7 and 28 days from texts, categories, prices, stock, calendar and recent sales; stock
advice and price ranges follow from them in the consumer's model (models/demand_service.py). This file says what is
particular: what the learner must know of the catalogue, the gate's and the schedules' numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.lake import Lake
from pipeline.snapshot import Snapshot
from pipeline.tasks import demand_examples
from pipeline.tasks.contract import Examples, GateRules, Schedule, Scores, State
from pipeline.tasks.demand_examples import array_of
from pipeline.tasks.demand_features import FEATURES, HISTORY_DAYS, UNITS_7, UNITS_28
from pipeline.tasks.demand_scores import METRIC, accuracy, judged
from pipeline.tasks.demand_series import SalesReader, complete_until, start_of
from pipeline.tasks.known_items import described, seen_from, vector_column
from pipeline.texts import TextVectors

if TYPE_CHECKING:
    from pipeline.tasks.demand_learner import DemandLearner


class DemandTask:
    """Forecasts of demand, and the answer of demand to price."""

    name = "demand"
    measures = {  # noqa: RUF012  # fixed for the class
        "accuracy@7d": "forecast over truth of a week's units, or truth over forecast",
        "pinball@7d": "pinball loss of the quantiles, negative",
        "inside@7d": "weeks inside their 80 % interval (0.8 is right)",
    }
    table = "events"
    context_tables = ("items",)
    unit_column = "item_id"
    teaching_columns = demand_examples.TEACHING_COLUMNS
    gate = GateRules(
        # WAPE has no value for a single item, and a few items of thousands of units would decide it alone: with them
        # an equal challenger is held for want of evidence. This one lies in 0..1 and every item counts the same.
        metric=METRIC,
        # What the gate can tell apart with the items of a small shop; small losses cannot add up (see `recommend`).
        margin=0.03,
        error_rate=0.05,  # the customary level
        least_units=100,  # the bootstrap's interval is trustworthy from some hundred units on
        slice_margin=0.10,  # a slice has a tenth of the units, hence three times the noise
        least_on_arrival=0.5,  # as in `recommend`: no hour of honest sales halves the accuracy
    )
    # A small shop's history is some hundred examples and needs many passes; a large one's is learnt in one or two.
    base_schedule = Schedule(
        learning_rate=2e-3, warmup_steps=50, epochs=30, patience_epochs=3, batch_size=128, enough_steps=3000,
    )
    # An hour has few examples: they move little, and as many old ones keep the network where it was.
    update_schedule = Schedule(
        learning_rate=5e-4, warmup_steps=5, epochs=2, patience_epochs=1, batch_size=128, enough_steps=256,
        replay_ratio=1.0, least_replayed=512,
    )

    def __init__(self, lake: Lake, encoder_preset: str) -> None:
        """Takes the lake that caches text vectors and the text encoder's preset."""
        self._lake = lake
        self._preset = encoder_preset

    def teaching(self, tables: Snapshot, rows: pa.Table) -> pa.Table:
        """An item's first rows of a day, where they end days that are taught."""
        return demand_examples.teaching(tables, rows)

    def examples(self, tables: Snapshot, rows: pa.Table) -> Examples:
        """Items at the ends of days (demand_examples.EXAMPLES_SCHEMA)."""
        return demand_examples.examples(tables, rows)

    def context(self, tables: Snapshot, since: Mapping[str, int] | None) -> pa.Table:
        """Items as `known_items.described` gives them, and their last HISTORY_DAYS.

        Further columns: `units`, `orders`, `in_stock`, `log_price` (lists of HISTORY_DAYS float32), `known_from` (day).
        The schema's metadata `demand` says of the shop: `end_day`, `shop`, `shop_first_day`.

        What changed on a day is told once that day is over, and again a day later: only then are the last day's price
        and stock those of the whole day, as which the learner goes on with them.
        """
        end, told = complete_until(tables), None
        before = end if since is None else complete_until(Snapshot(tables.lake, since))
        if before < end:
            told = seen_from(tables, start_of(before - 1))
        items = described(tables, since, self._texts, also=told)
        names = np.array(items["item_id"].to_pylist(), object)
        reader = SalesReader(tables, pa.array(names, pa.string()), end - HISTORY_DAYS, end)
        sales = reader.of(names, end - HISTORY_DAYS, end)
        for name in ("units", "orders", "in_stock", "log_price"):
            items = items.append_column(name, vector_column(getattr(sales, name)))
        items = items.append_column("known_from", pa.array(sales.known_from, pa.int64()))
        world = {"end_day": end, "shop": sales.shop.tolist(), "shop_first_day": sales.shop_first_day}
        return items.replace_schema_metadata({b"demand": json.dumps(world).encode()})

    def learner(self, seed: int) -> DemandLearner:
        """An untrained network above the pretrained text encoder's vectors."""
        from pipeline.tasks.demand_learner import DemandLearner

        return DemandLearner(seed=seed, text_dimension=self._texts.dimension)

    def restore(self, state: State) -> DemandLearner:
        """The learner that `state` was taken from."""
        from pipeline.tasks.demand_learner import DemandLearner

        return DemandLearner.restore(state)

    def baseline(self, tables: Snapshot, examples: Examples) -> Scores:
        """The better of last week again (seasonal naive) and the mean of the last four weeks, on these examples."""
        week = array_of(examples.table, "features", 3, len(FEATURES))[:, 1]
        rivals = [
            judged(examples, {METRIC: accuracy(examples, np.expm1(week[:, UNITS_7]))}),
            judged(examples, {METRIC: accuracy(examples, np.expm1(week[:, UNITS_28]) / 4.0)}),
        ]
        return max(rivals, key=lambda scores: float(scores.frame[METRIC].mean()) if len(scores.frame) else 0.0)

    @cached_property
    def _encoder(self) -> Any:
        from models.text_encoder import load_text_encoder

        return load_text_encoder(self._preset)

    @cached_property
    def _texts(self) -> TextVectors:
        return TextVectors(self._lake, self._encoder)
