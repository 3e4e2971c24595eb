"""What the tasks on messages share: which messages teach, what a learner must know of the others, the baseline.

A message teaches where a person has said what it is about or how it is meant; all others are context: they are read by
the model, teach by what it is sure of, and may be named as worth labelling. Most messages come once from a customer and
many from guests, so each is a unit of its own for the split and the gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.lake import Lake
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples, GateRules, Schedule, Scores, State
from pipeline.tasks.text_embedding import Embedding
from pipeline.texts import Encoder, TextVectors

if TYPE_CHECKING:
    from pipeline.tasks.text_learner import TextLearner

_CONTEXT = ("message_id", "message_time", "hour", "text", "label", "sentiment", "answer")


class TextTask:
    """Fulfils `pipeline.tasks.contract.Task`, for the heads that a task names.

    Attributes:
        kinds: head -> the column of messages that a person fills; the main head first.
        self_training: whether messages that nobody has labelled teach.
        balance: how far rare classes are favoured in what is told; see `TextLearner`.
        encoder_share: of the text encoder's blocks, so many are used.
    """

    name: str
    kinds: Mapping[str, str]
    self_training: bool
    balance: float = 0.0
    encoder_share: float = 1.0
    gate: GateRules
    base_schedule: Schedule
    update_schedule: Schedule
    table = "messages"
    context_tables: tuple[str, ...] = ()
    unit_column = "message_id"
    measures: Mapping[str, str] = {  # fixed for the class
        "accuracy": "messages told rightly", "macro_recall": "the same, each class alike",
        "calibration": "honest confidence (1: sure and right)",
    }

    def __init__(self, lake: Lake, encoder_preset: str) -> None:
        """Takes the lake that caches text vectors and the text encoder's preset."""
        self._lake = lake
        self._preset = encoder_preset

    @property
    def teaching_columns(self) -> tuple[str, ...]:
        """The message's id and what people say of it."""
        return ("message_id", *self.kinds.values())

    def teaching(self, tables: Snapshot, rows: pa.Table) -> pa.Table:
        """Messages of which a person has said something."""
        said = [pc.is_valid(rows[column]) for column in self.kinds.values()]
        return rows.filter(reduce(pc.or_, said))

    def examples(self, tables: Snapshot, rows: pa.Table) -> Examples:
        """A message each: `text`, and what was said, by head. Learners embed texts themselves (text_embedding.py)."""
        rows = self.teaching(tables, rows)
        return Examples(pa.table({
            "example_id": rows["message_id"], "unit": rows["message_id"], "time": rows["message_time"],
            "hour": rows["hour"], "rows": pa.array(np.ones(len(rows), np.int64)),
            "landed_window": rows["landed_window"], "text": rows["text"],
            **{head: rows[column].cast(pa.string()) for head, column in self.kinds.items()},
        }))

    def context(self, tables: Snapshot, since: Mapping[str, int] | None) -> pa.Table:
        """Messages, oldest first: `message_id`, `hour`, `text`, `answer`, `gone`, a column per head."""
        if since is None:
            rows = tables.arrow("messages", _CONTEXT)
            gone = pa.array(np.zeros(len(rows), bool))
        else:
            rows = tables.lake.changes("messages", since["messages"], tables.versions["messages"])
            gone = pc.equal(rows["change"], "delete")
        rows = rows.select(_CONTEXT).append_column("gone", gone)
        rows = rows.sort_by([("message_time", "ascending"), ("message_id", "ascending")])
        return pa.table({
            **{name: rows[name] for name in ("message_id", "hour", "text", "answer", "gone")},
            **{head: rows[column].cast(pa.string()) for head, column in self.kinds.items()},
        })

    def learner(self, seed: int) -> TextLearner:
        """The pretrained text encoder under a classifier that knows no class."""
        from pipeline.tasks.text_learner import TextLearner

        return TextLearner(
            seed=seed, kinds=self.kinds, text_dimension=self._encoder.dimension,
            embedding=self.embedding, self_training=self.self_training, balance=self.balance,
        )

    def restore(self, state: State) -> TextLearner:
        """The classifier that `state` was taken from."""
        from pipeline.tasks.text_learner import TextLearner

        return TextLearner.restore(state, self.embedding)

    def outgrown(self, at_retrain: int, now: int) -> bool:
        """Whether twice as many messages as taught the encoder have come, and enough to teach it at all.

        At each doubling: all retrains of a shop's life together read less than twice what its newest one does.
        """
        if not self.base_schedule.methods.opening_steps or now < 2 * at_retrain:
            return False
        from models.text_openings import LEAST_MESSAGES  # with TensorFlow, which the watch needs for nothing else

        return now >= LEAST_MESSAGES

    def baseline(self, tables: Snapshot, examples: Examples) -> Scores:
        """TF-IDF with logistic regression."""
        from pipeline.tasks.text_baseline import score_baseline

        return score_baseline(tables, examples, self.kinds)

    @cached_property
    def _encoder(self) -> Any:
        from models.text_encoder import load_text_encoder

        return load_text_encoder(self._preset)

    @property
    def embedding(self) -> Embedding:
        """How a new learner reads messages, before anything is taught."""
        return Embedding(lambda: self._encoder, self._cached, share=self.encoder_share)

    def _cached(self, name: str, encoder: Encoder) -> TextVectors:
        return TextVectors(self._lake, encoder, name)
