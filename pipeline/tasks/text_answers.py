"""Approved answers: which message got which, so that the next who asks alike gets the same.

Retrieval instead of generation: a shop must be able to say who approved a sentence before a customer reads it. Nearest
by cosine of the encoder's vectors, as in dense retrieval (Karpukhin et al., EMNLP 2020); each answer is as near as the
nearest message that it was given to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipeline.tasks.text_batches import vectors_of

MOST_MESSAGES = 10_000  # the newest: what was answered long ago may no longer be so, and a request scans all of them


class Answers:
    """Messages that were answered, oldest first, and the answers."""

    def __init__(
        self, dimension: int, vectors: np.ndarray | None = None, messages: Sequence[str] = (),
        answers: Sequence[str] = (),
    ) -> None:
        """Takes vectors [n, dimension] float16, ids [n] and answers [n] of the messages; none to begin with."""
        self._vectors = np.zeros((0, dimension), np.float16) if vectors is None else vectors
        self._messages, self._answers = list(messages), list(answers)

    def __len__(self) -> int:
        return len(self._messages)

    def update(self, context: pa.Table) -> int:
        """Takes in what came, changed or went (`message_id`, `answer`, `gone`, `text_vector`); how many are new."""
        if not len(context):
            return 0
        ids, answers = context["message_id"].to_pylist(), context["answer"].to_pylist()
        gone = context["gone"].to_pylist()
        touched = set(ids)
        kept = [place for place, message in enumerate(self._messages) if message not in touched]
        came = [place for place, answer in enumerate(answers) if answer and not gone[place]]
        before = len(self)
        vectors = vectors_of(context.take(pa.array(came, pa.int64()))).astype(np.float16)
        self._vectors = np.concatenate([self._vectors[kept], vectors])[-MOST_MESSAGES:]
        held = [(self._messages[place], self._answers[place]) for place in kept]
        held = [*held, *((ids[place], answers[place]) for place in came)][-MOST_MESSAGES:]
        self._messages, self._answers = [one for one, _ in held], [one for _, one in held]
        return max(len(self) - before, 0)

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint; `notes` has the rest."""
        return {"answered/vectors": self._vectors.copy()}

    def notes(self) -> dict[str, list[str]]:
        """JSON-able: `messages`, `answers`."""
        return {"messages": self._messages, "answers": self._answers}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Sequence[str]]) -> Answers:
        """What `arrays` and `notes` were taken from."""
        vectors = np.array(arrays["answered/vectors"])
        return cls(vectors.shape[1], vectors, notes["messages"], notes["answers"])

    def compact(self) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """For consumers: distinct answers, vectors [n, dimension] float16, which answer each message got [n] int64."""
        distinct = {answer: place for place, answer in enumerate(sorted(set(self._answers)))}
        return tuple(distinct), self._vectors.copy(), np.array([distinct[one] for one in self._answers], np.int64)
