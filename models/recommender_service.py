"""The recommender's MLflow pyfunc, as code: recommend, search and similar items, for whoever holds the registry.

A row with `item_id` asks for similar items, one with `query` searches, any other recommends for its history;
what is unknown is passed over, and where nothing is left to go by the popular items answer. This script is copied
into the model (models-from-code, no pickle) beside the package that it imports under the name that the model's
configuration gives (`code_package`), so that two models of different code can live in one process.
A value that is missing (null, NaN) is as if it were not there; one of a wrong type is refused, because popular
items in its place would look like an answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.pyfunc import PythonModel

PARAMETERS: Mapping[str, Any] = {"k": 20, "exclude_history": False}
_COLUMNS = ("history", "history_days", "query", "item_id")
_ANSWERED = pd.Index(["item_ids", "scores"])  # made of text for each answer it costs four times the frame
_HISTORY_ITEMS = 256  # as many as the model has learnt from
_MOST_AT_ONCE = 512  # histories of a batch: beyond, a catalogue of 200 to 100,000 items gains nothing
_MOST_LOGITS = 16_000_000  # 64 MB
_OLDEST_DAYS = 36_500.0  # a century, older than any log: beyond 1e38 float32 ends and the scores would be NaN


class RequestRefused(MlflowException):
    """A request that cannot be answered as it was meant; MLflow's server answers 400 with the message.

    Attributes:
        part: the column or parameter.
        received: its value.
    """

    def __init__(self, part: str, rule: str, received: Any, remedy: str) -> None:
        self.part, self.received = part, received
        shown = f"{received!r:.200} ({type(received).__name__})"
        super().__init__(f"`{part}` must be {rule}; received {shown}. {remedy}", INVALID_PARAMETER_VALUE)


class RecommenderService:
    """Answers rows of requests."""

    def __init__(self, recommender: Any, text_encoder: Callable[[], Any]) -> None:
        """Takes a CompactRecommender and what gives the text encoder when a query first needs it."""
        self._recommender = recommender
        self._text_encoder = text_encoder

    @property
    def items(self) -> int:
        """How many can be answered."""
        return len(self._recommender.ids) - 1

    def answer(self, requests: pd.DataFrame, parameters: Mapping[str, Any]) -> pd.DataFrame:
        """One answer a row.

        Args:
            requests: any of `history` (lists of item ids, newest first, an id once for each purchase),
                `history_days` (lists of days since each; where absent each is a day older than the one before),
                `query` (text), `item_id` (text).
            parameters: `k`, how many items; `exclude_history`, whether items of the history may be answered.

        Returns:
            `item_ids` (lists of text, best first) and `scores` (lists of float64, logits; cosines for similar items).

        Raises:
            RequestRefused: a value of a wrong type, no column of these and no row, or a `k` that is none from 1 on.
        """
        wanted = {**PARAMETERS, **{name: value for name, value in parameters.items() if value is not None}}
        k, exclude = _count(wanted["k"]), bool(wanted["exclude_history"])
        if k < 1:
            raise RequestRefused("k", "at least 1", k, f"Leave it out for {PARAMETERS['k']} items.")
        given = [name for name in _COLUMNS if name in requests.columns]
        if not given and not len(requests):  # MLflow drops unknown columns, and with the last of them the rows
            raise RequestRefused("columns", f"among {', '.join(_COLUMNS)}", [], "Name at least one of them.")
        columns = [requests[name].tolist() for name in given]  # DataFrame.to_dict costs as much as a product
        rows = (dict(zip(given, row, strict=True)) for row in zip(*columns, strict=True)) if columns else (
            {} for _ in range(len(requests))
        )
        answers = [self._one(row, k, exclude) for row in rows]
        table = np.empty((len(answers), 2), object)  # one block: a frame from two lists costs five times as much
        for place, answered in enumerate(answers):
            table[place, 0], table[place, 1] = answered
        return pd.DataFrame(table, index=requests.index, columns=_ANSWERED.view(), copy=False)

    def reasons(self, row: Mapping[str, Any], answered: Sequence[str]) -> list[dict[str, Any]]:
        """Why some items were answered to a row that recommends or searches.

        Returns:
            For each item `popularity`, `taste`, `words`, `again`, `together` (parts of its score) and `because` (the
            item of the history that speaks most for it by what is chosen together; None: no one does).
        """
        history = self._history(row)
        query = _text("query", row.get("query"))
        vector = self._query_vector(query) if query and query.strip() else None
        index, counts, _, days, habits = history
        columns = np.array([self._recommender.index[item] for item in answered], np.int64)
        parts = self._recommender.reasons(index, counts, days, habits, vector, columns)
        because = parts.pop("because")
        return [
            {name: float(values[place]) for name, values in parts.items()}
            | {"because": str(self._recommender.ids[index[0, because[place]]]) if because[place] >= 0 else None}
            for place in range(len(columns))
        ]

    def knows(self, item: str) -> bool:
        """Whether an item is in the catalogue that was learnt."""
        return item in self._recommender.index

    def one(self, row: Mapping[str, Any], k: int, exclude: bool = False) -> tuple[list[str], list[float]]:
        """The answer to one row of `answer`'s columns, without a frame around it: ids and scores, best first."""
        return self._one(row, k, exclude)

    def many(
        self, rows: Sequence[Mapping[str, Any]], k: int, exclude: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is recommended to many histories, in one product for each few hundred of them.

        Args:
            rows: `history` and `history_days` of each; `query` and `item_id` are not looked at.
            k: how many items.
            exclude: whether items of the history are left out.

        Returns:
            [rows, k] object, ids, best first, and [rows, k] float32, scores; -inf where there are no more items.
        """
        items = len(self._recommender.ids)
        at_once = max(1, min(_MOST_AT_ONCE, _MOST_LOGITS // items))
        ids, scores = np.empty((len(rows), k), object), np.empty((len(rows), k), np.float32)
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            history = _side_by_side([self._history(row) for row in rows[part]])
            logits = self._recommender.logits(*history)
            if exclude:
                logits[np.arange(len(logits))[:, None], history[0]] = -np.inf
            logits[:, 0] = -np.inf
            columns, scores[part] = self._recommender.ranked(logits, k)
            ids[part] = self._recommender.ids[columns]  # column -1, no item, has no score
        return ids, scores

    def _one(self, row: Mapping[str, Any], k: int, exclude: bool) -> tuple[list[str], list[float]]:
        known = self._recommender.index.get(_text("item_id", row.get("item_id")), 0)
        if known:
            scores = self._recommender.similarities(known)
            scores[known] = -np.inf
            return self._best(scores, k)
        history = self._history(row)
        query = _text("query", row.get("query"))
        vector = self._query_vector(query) if query and query.strip() else None
        logits = self._recommender.logits(
            *history, query_vector=vector, has_query=None if vector is None else np.ones(1, bool)
        )[0]
        if exclude:
            logits[history[0][0]] = -np.inf
        return self._best(logits, k)

    def _best(self, scores: np.ndarray, k: int) -> tuple[list[str], list[float]]:
        scores[0] = -np.inf
        rows, values = (one[0] for one in self._recommender.ranked(scores[None], min(k, len(scores) - 1)))
        there = np.isfinite(values)
        return list(self._recommender.ids[rows[there]]), values[there].astype(np.float64).tolist()

    def _history(self, row: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
        """Distinct known items, newest first, as the model wants them: rows, counts, views, days, habits; [1, items].

        A purchase of an item that is not known was a visit all the same, and counts for how long ago the others were.
        """
        items = _list("history", row.get("history"))
        days = _list("history_days", row.get("history_days"))
        counts: dict[int, float] = {}
        ages: dict[int, float] = {}
        bought_rows, bought_ages = [], []
        for place, item in enumerate(items):
            text = _text("history", item)
            known = self._recommender.index.get(text, 0)
            age = _age(days[place]) if place < len(days) else float(place)
            if text:
                bought_rows.append(known)
                bought_ages.append(age)
            if known:
                counts[known] = counts.get(known, 0.0) + 1.0
                ages[known] = min(age, ages.get(known, age))
        newest = sorted(counts, key=lambda known: ages[known])[:_HISTORY_ITEMS]
        bought = np.array([[counts[known] for known in newest]], np.float32)
        days_ago = np.array([[ages[known] for known in newest]], np.float32)
        rows, strength = self._recommender.habits_of(np.array(bought_rows, np.int64), np.array(bought_ages))
        index = np.array([newest], np.int64)
        habits = strength[np.searchsorted(rows, index)].astype(np.float32)
        return index, bought, np.zeros_like(bought), days_ago, habits

    def _query_vector(self, query: str) -> np.ndarray:
        return self._recommender.project(self._text_encoder().embed([query]))


class RecommenderModel(PythonModel):
    """The service as MLflow loads it."""

    def load_context(self, context: Any) -> None:
        """Loads the arrays; the text encoder waits for the first query."""
        package = context.model_config["code_package"]
        compact = own_module(package, "compact_ensemble")
        recommender = compact.load_recommender(Path(context.artifacts["recommender"]))
        held: list[Any] = []
        loading = Lock()  # MLflow's server answers each request in a thread of its own

        def text_encoder() -> Any:
            with loading:
                if not held:
                    with own_module(package, "fetching").part(context, "text_encoder") as folder:
                        held.append(load_text_encoder(package, folder))
            return held[0]

        self.service = RecommenderService(recommender, text_encoder)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """See RecommenderService.answer."""
        return self.service.answer(model_input, params or {})


def _side_by_side(histories: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Histories [1, items] as one batch [histories, most items], filled up with no item."""
    longest = max(one[0].shape[1] for one in histories)
    batch = tuple(np.zeros((len(histories), longest), array.dtype) for array in histories[0])
    for place, one in enumerate(histories):
        for whole, array in zip(batch, one, strict=True):
            whole[place, : array.shape[1]] = array[0]
    return batch


def input_example(ids: Sequence[str]) -> pd.DataFrame:
    """Three requests: recommend for a history, search, similar items."""
    first = [str(item) for item in ids[:2]] or ["unknown"]
    return pd.DataFrame({
        "history": [first, [], []],
        "history_days": [[float(place) for place in range(len(first))], [], []],
        "query": ["", "gift", ""],
        "item_id": ["", "", first[0]],
    })


def load_text_encoder(package: str, folder: Any) -> Any:
    """The encoder in a folder (a path): the compact one, or one that needs TensorFlow where it has no such form."""
    if (folder / "compact.json").is_file():
        return own_module(package, "compact_text_encoder").CompactTextEncoder.load(folder)
    return own_module(package, "text_encoder").load_saved(folder)


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def _text(column: str, value: Any) -> str | None:
    """The text, or None where there is none; anything else is refused."""
    if isinstance(value, str):
        return value
    if _missing(value):
        return None
    raise RequestRefused(column, "text", value, "Send ids and queries as text, numbers in quotation marks.")


def _list(column: str, value: Any) -> list[Any]:
    """The list, empty where there is none; anything else is refused."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return list(value)
    if _missing(value):
        return []
    raise RequestRefused(column, "a list", value, "Put even a single value into a list.")


def _count(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise RequestRefused("k", "a whole number", value, f"Leave it out for {PARAMETERS['k']} items.") from None


def _age(days: Any) -> float:
    """Days from 0 to a century; what is no number counts as today."""
    try:
        age = float(days)
    except (TypeError, ValueError):
        return 0.0
    except OverflowError:  # a whole number beyond what a float holds
        return _OLDEST_DAYS if days > 0 else 0.0
    return 0.0 if np.isnan(age) else min(max(age, 0.0), _OLDEST_DAYS)


def own_module(package: str, name: str) -> Any:
    """A module of the code that came with the model.

    Models of one code share it in a process. Where the first of them was loaded from a folder that is gone (MLflow
    tries a model out in a temporary one when it is registered), the rest of the code is found beside this model.
    """
    held = sys.modules.get(package)
    if held is not None and not any(Path(path).is_dir() for path in held.__path__):
        del sys.modules[package]
    return import_module(f"{package}.{name}")


mlflow.models.set_model(RecommenderModel())
