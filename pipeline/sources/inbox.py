"""The simulated shop's inbox: what customers write, with its truth.

An intent has two ways of being said, which any model would learn by heart. So people write as they do: about half say
something beside the point, in the words of another intent, and every fourth message has slips of the finger. Clerks
note the topic of half of the messages, and one time in thirty a wrong one. After the history a new topic begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from pipeline.sources.words import ANSWERS, ASIDES, LATER_MESSAGES, MESSAGES

_PER_SESSION = 0.06
# Of the messages: whose topic a clerk has noted, whose mood, whose answer is kept for the next who asks. Few are read
# twice, as in any shop.
_LABELLED, _MOOD_NOTED, _ANSWERED = 0.5, 0.2, 0.3
_ASIDE, _SLIPPED = 0.5, 0.25
_MISLABELLED = 1 / 30  # annotators of customer intents disagree on about as many
_WEEK_HOURS = 168
_TALK_OF_THE_DAY = 6.0  # a new topic is a third of the messages of its first days: the shop has announced it

COLUMNS = (
    "message_id", "message_time", "user_id", "channel", "text", "label", "sentiment", "answer", "intent",
    "true_sentiment",
)


@dataclass(frozen=True)
class Visits:
    """Who was in the shop in an hour; arrays of one length, a row for each thing that was done.

    Attributes:
        start: of the hour.
        number: of the hour, from the shop's first.
        later: whether the topics that begin after the history are written about.
        session, user, item, millisecond: of each row; a user or item of -1 is none.
    """

    start: datetime
    number: int
    later: bool
    session: np.ndarray
    user: np.ndarray
    item: np.ndarray
    millisecond: np.ndarray


def messages_of(
    visits: Visits, rng: np.random.Generator, notes: np.random.Generator, manners: np.random.Generator,
    title_of: Callable[[int], str],
) -> pa.Table:
    """The messages of an hour: COLUMNS, all text.

    Args:
        visits: who could write.
        rng: draws who writes and about what.
        notes: draws what clerks have noted.
        manners: draws how it is said.
        title_of: an item's title.
    """
    sessions, rows = np.unique(visits.session, return_index=True)
    rows = rows[rng.random(len(sessions)) < _PER_SESSION]
    intents, weights = _intents_of(visits)
    noted = notes.random((len(rows), 4))
    drawn = []
    for number, row in enumerate(rows):
        intent = intents[rng.choice(len(intents), p=weights / weights.sum())]
        sentiment, templates = (MESSAGES | LATER_MESSAGES)[intent]
        item = title_of(visits.item[row] if visits.item[row] >= 0 else 0).lower()
        text = templates[rng.integers(0, len(templates))].format(item=item, n=f"#{rng.integers(10_000, 99_999)}")
        label = _noted(intent, intents, noted[number, 3])
        at = visits.start + timedelta(milliseconds=int(visits.millisecond[row]))
        drawn.append({
            "message_id": f"M{visits.start:%y%m%d%H}-{number}",
            "message_time": f"{at:%Y-%m-%dT%H:%M:%SZ}",
            "user_id": f"U{visits.user[row]:06d}" if visits.user[row] >= 0 else None,
            "channel": ("mail", "chat", "form")[rng.integers(0, 3)],
            "text": _as_people_write(text, item, manners),
            "label": label if noted[number, 0] < _LABELLED else None,
            "sentiment": sentiment if noted[number, 1] < _MOOD_NOTED else None,
            "answer": ANSWERS[intent] if noted[number, 2] < _ANSWERED else None,
            "intent": intent,
            "true_sentiment": sentiment,
        })
    return pa.Table.from_pylist(drawn, pa.schema([pa.field(name, pa.string()) for name in COLUMNS]))


def _intents_of(visits: Visits) -> tuple[list[str], np.ndarray]:
    """What an hour's messages are about, and how often: [intents] weights."""
    intents = list(MESSAGES)
    weights = np.ones(len(intents))
    weights[visits.number // _WEEK_HOURS % len(intents)] = 2.0  # what customers write about drifts
    if not visits.later:
        return intents, weights
    return [*intents, *LATER_MESSAGES], np.append(weights, np.full(len(LATER_MESSAGES), _TALK_OF_THE_DAY))


def _noted(intent: str, intents: Sequence[str], draw: float) -> str:
    """The topic as a clerk notes it; `draw` is of [0, 1)."""
    if draw >= _MISLABELLED:
        return intent
    others = [other for other in intents if other != intent]
    return others[int(draw / _MISLABELLED * len(others))]


def _as_people_write(text: str, item: str, manners: np.random.Generator) -> str:
    aside, side, slips = manners.random(3)
    if aside < _ASIDE:
        beside = ASIDES[manners.integers(0, len(ASIDES))].format(item=item)
        text = f"{beside} {text}" if side < 0.5 else f"{text} {beside}"
    return _slipped(text.split(" "), manners) if slips < _SLIPPED else text


def _slipped(words: Sequence[str], manners: np.random.Generator) -> str:
    """Two letters of every fifth word have changed places."""
    written = list(words)
    for place in np.flatnonzero(manners.random(len(words)) < 0.2):
        word = written[place]
        if len(word) > 3:
            at = int(manners.integers(1, len(word) - 2))
            written[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(written)
