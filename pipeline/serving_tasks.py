"""The reference server's typed questions to the models of demand and of messages: price, stock, intent, sentiment.

Each is a row for the pyfunc of one task and a name for what comes back; what the answers mean is said by
models/demand_service.py and models/text_service.py. Every path is there whichever tasks are on, so that a consumer's
client is made once: a task that this server does not serve is answered 404 with what to do, one that has no champion
yet 409.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.params import Depends

from pipeline.served_models import ServedModel, ServedModels
from pipeline.serving_schema import UNKNOWN, served_by
from pipeline.serving_task_schema import (
    ApprovedAnswer,
    Demand,
    Intent,
    Message,
    MessageToAnswer,
    PriceAdvice,
    PriceQuestion,
    Range,
    Sentiment,
    StockAdvice,
    StockQuestion,
)


def typed_questions(models: ServedModels, read: Depends) -> APIRouter:
    """The paths, for whoever passes `read`."""
    router = APIRouter(dependencies=[read])

    @router.post("/v1/price", tags=["demand"], responses=UNKNOWN)
    def price(asked: PriceQuestion) -> PriceAdvice:
        """The range of prices in which an item earns most, or why there is no advice."""
        served = _serving(models, "demand")
        row = _of_item(served, asked.item_id, {"cost": asked.cost}, {"guard_rail": asked.guard_rail})
        advised = _finite(row["price_best"])
        return PriceAdvice(
            served=served_by(served), item_id=asked.item_id, advised=advised, reason=row["advice"],
            **{name: row[f"price_{name}"] if advised else None for name in ("low", "best", "high")},
            change=_range(row, "revenue_change") if _finite(row["revenue_change"]) else None,
            elasticity=_range(row, "elasticity"),
        )

    @router.post("/v1/stock", tags=["demand"], responses=UNKNOWN)
    def stock(asked: StockQuestion) -> StockAdvice:
        """When an item's stock runs out, and how much to order now."""
        served = _serving(models, "demand")
        given = asked.model_dump(exclude={"item_id", "review_days"})
        row = _of_item(served, asked.item_id, given, {"review_days": asked.review_days})
        if not all(_finite(row[name]) for name in ("mean", "p90", "runs_out_days", "reorder_units")):
            raise HTTPException(400, "price must be near enough to today's for a forecast; at this one it overflows.")
        return StockAdvice(
            served=served_by(served), item_id=asked.item_id, runs_out_days=row["runs_out_days"],
            reorder_units=row["reorder_units"], demand=Demand(**{name: row[name] for name in Demand.model_fields}),
        )

    @router.post("/v1/intent", tags=["messages"], responses=UNKNOWN)
    def intent(asked: MessageToAnswer) -> Intent:
        """What a message is about, approved answers to such, and whether a person should read it."""
        served = _serving(models, "support")
        row = _row(served, {"text": asked.text}, {"k": asked.k})
        near = zip(row["answers"], row["similarities"], strict=True)
        return Intent(
            served=served_by(served), intent=row["intent"], confidence=row["intent_confidence"],
            hand_over=bool(row["hand_over"]), reason=row["reason"],
            answers=[ApprovedAnswer(text=text, similarity=similarity) for text, similarity in near],
        )

    @router.post("/v1/sentiment", tags=["messages"], responses=UNKNOWN)
    def sentiment(asked: Message) -> Sentiment:
        """How a message is meant, and its topic."""
        served = _serving(models, "sentiment")
        row = _row(served, {"text": asked.text}, {"k": 0})
        return Sentiment(
            served=served_by(served), sentiment=row["sentiment"], confidence=row["sentiment_confidence"],
            topic=row["topic"], topic_confidence=row["topic_confidence"],
        )

    return router


def _serving(models: ServedModels, task: str) -> ServedModel:
    """The champion of a task, where this server serves it."""
    if task not in models.tasks:
        raise HTTPException(404, (
            f"This needs a server of the task {task!r}; this one serves {', '.join(models.tasks)}. Start it with "
            f"EVERGREEN_TASKS={','.join((*models.tasks, task))}."
        ))
    return models.champion(task)


def _row(served: ServedModel, row: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The model's answer to one row."""
    import pandas as pd
    from mlflow.exceptions import MlflowException

    given = pd.DataFrame([{name: value for name, value in row.items() if value is not None}])
    try:
        answer = served.predict(given, parameters)
    except (MlflowException, ValueError) as error:
        raise HTTPException(400, f"The model of {served.task!r} refused the request: {error}"[:2_000]) from error
    return {str(name): answer[name].iloc[0] for name in answer.columns}


def _of_item(
    served: ServedModel, item: str, row: Mapping[str, Any], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The answer for an item that the model knows."""
    answer = _row(served, {"item_id": item, **row}, parameters)
    if math.isnan(answer["elasticity"]):
        raise HTTPException(404, f"item_id must be an item that version {served.version} knows; it is not.")
    return answer


def _range(row: Mapping[str, Any], name: str) -> Range:
    return Range(low=row[f"{name}_low"], value=row[name], high=row[f"{name}_high"])


def _finite(number: float) -> bool:
    return math.isfinite(number)
