"""The text classifier's MLflow pyfunc, as code: what a message is about, how sure that is, and what to answer.

Every row of `text` gets, for each thing that the model tells (intent; or sentiment and topic), its name and a
calibrated confidence; where the model holds approved answers, also the nearest of them, whether a person should read
the message, and why. This script is copied into the model (models-from-code, no pickle) beside the package that it
imports under the name that the model's configuration gives (`code_package`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.pyfunc import PythonModel

PARAMETERS: Mapping[str, Any] = {"k": 3}


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


class TextService:
    """Answers rows of texts."""

    def __init__(self, classifier: Any, text_encoder: Callable[[], Any]) -> None:
        """Takes a CompactTextClassifier and what gives the text encoder."""
        self._classifier = classifier
        self._text_encoder = text_encoder

    def answer(self, requests: pd.DataFrame, parameters: Mapping[str, Any]) -> pd.DataFrame:
        """One answer a row.

        Args:
            requests: `text`.
            parameters: `k`, how many approved answers.

        Returns:
            `<head>` (text) and `<head>_confidence` (float) of each head; of the first head's confidence
            `hand_over` (bool) and `reason` (text); `answers` (lists of text, nearest first) and `similarities` (lists
            of float, cosines).

        Raises:
            RequestRefused: a text that is none, or a `k` that is none from 0 on.
        """
        wanted = {**PARAMETERS, **{name: value for name, value in parameters.items() if value is not None}}
        k = _count(wanted["k"])
        if k < 0:
            raise RequestRefused("k", "at least 0", k, f"Leave it out for {PARAMETERS['k']} answers.")
        texts = list(requests["text"])
        for text in texts:
            if not isinstance(text, str):
                raise RequestRefused("text", "text", text, "Leave messages without words out.")
        texts = self._classifier.as_learnt(texts)
        vectors = self._text_encoder().embed(texts)
        chances = self._classifier.probabilities(vectors, texts)
        columns: dict[str, list[Any]] = {}
        for head, names in self._classifier.classes.items():
            places, sure_of = self._classifier.told(head, chances[head])
            columns[head] = [names[place] if names else "" for place in places]
            columns[f"{head}_confidence"] = sure_of.tolist()
        threshold = self._classifier.threshold
        sure = columns[f"{self._classifier.heads[0]}_confidence"]
        columns["hand_over"] = [one < threshold.least for one in sure]
        columns["reason"] = [threshold.reason(one) for one in sure]
        nearest = [self._classifier.nearest_answers(vector, k) for vector in vectors]
        columns["answers"] = [answers for answers, _ in nearest]
        columns["similarities"] = [similarities for _, similarities in nearest]
        return pd.DataFrame(columns, index=requests.index)


class TextModel(PythonModel):
    """The service as MLflow loads it."""

    def load_context(self, context: Any) -> None:
        """Loads the arrays; the text encoder waits for the first request."""
        package = context.model_config["code_package"]
        compact = own_module(package, "compact_text")
        classifier = compact.CompactTextClassifier.load(Path(context.artifacts["classifier"]))
        held: list[Any] = []
        loading = Lock()  # MLflow's server answers each request in a thread of its own

        def text_encoder() -> Any:
            with loading:
                if not held:
                    with own_module(package, "fetching").part(context, "text_encoder") as folder:
                        held.append(own_module(package, "text_encoder").load_saved(folder))
            return held[0]

        self._service = TextService(classifier, text_encoder)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """See TextService.answer."""
        return self._service.answer(model_input, params or {})


def _count(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise RequestRefused("k", "a whole number", value, f"Leave it out for {PARAMETERS['k']} answers.") from None


def own_module(package: str, name: str) -> Any:
    """A module of the code that came with the model.

    Models of one code share it in a process. Where the first of them was loaded from a folder that is gone (MLflow
    tries a model out in a temporary one when it is registered), the rest of the code is found beside this model.
    """
    held = sys.modules.get(package)
    if held is not None and not any(Path(path).is_dir() for path in held.__path__):
        del sys.modules[package]
    return import_module(f"{package}.{name}")


mlflow.models.set_model(TextModel())
