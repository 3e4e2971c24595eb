"""What the reference server takes and gives for prices, stock and messages, as its description says it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from pipeline.serving_schema import ItemId, Served, Strict

MOST_UNITS = 1e9  # of one item on one shelf
MOST_MONEY = 1e9  # of one unit, in any currency
MOST_TEXT = 10_000  # characters of one message: some three pages

Days = Annotated[float, Field(ge=0, le=365, allow_inf_nan=False)]
Money = Annotated[float, Field(ge=0.01, le=MOST_MONEY, allow_inf_nan=False)]


class PriceQuestion(Strict):
    """An item whose price is to be set for lasting."""

    item_id: ItemId
    cost: Annotated[float, Field(ge=0, le=MOST_MONEY, allow_inf_nan=False)] | None = Field(
        None, description="of one unit: then the margin is made large, else the revenue"
    )
    guard_rail: Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)] = Field(
        0.3, description="how far from the usual price an advice may go, as a share of it"
    )


class Range(BaseModel):
    """A value with its 80 % interval."""

    low: float
    value: float
    high: float


class PriceAdvice(BaseModel):
    """In which range the price earns most; where the data tells too little: none, and why."""

    served: Served
    item_id: str
    advised: bool
    reason: str = Field(description="the advice in words, or why there is none")
    low: float | None = None
    best: float | None = None
    high: float | None = None
    change: Range | None = Field(
        None, description="of revenue (of margin, where a cost was given) at the best price beside today's, as a share"
    )
    elasticity: Range = Field(description="of demand: by how many percent it grows when the price grows by one")


class StockQuestion(Strict):
    """An item, what is left of it, and how it is ordered."""

    item_id: ItemId
    stock: Annotated[float, Field(ge=0, le=MOST_UNITS, allow_inf_nan=False)] = Field(description="units on the shelf")
    lead_time_days: Days = Field(7.0, description="from an order to its delivery")
    review_days: Days = Field(7.0, description="from one order to the next")
    service_level: Annotated[float, Field(ge=0.001, le=0.999)] = Field(
        0.95, description="the chance that the stock lasts until the delivery after the next"
    )
    horizon_days: Days = Field(28.0, description="for which `demand` is foreseen")
    price: Money | None = Field(None, description="a planned price, where it is not today's")


class Demand(BaseModel):
    """Units over the horizon: expected, and what they stay below in one, five and nine of ten cases."""

    mean: float
    p10: float
    p50: float
    p90: float


class StockAdvice(BaseModel):
    """When the stock runs out, and how much to order now."""

    served: Served
    item_id: str
    runs_out_days: float = Field(description="at the expected demand; 365: in a year or later")
    reorder_units: float = Field(description="to order now; 0: nothing")
    demand: Demand


class Message(Strict):
    """What a customer wrote."""

    text: Annotated[str, Field(min_length=1, max_length=MOST_TEXT, examples=["Where is my parcel?"])]


class MessageToAnswer(Message):
    """What a customer wrote, and how many answers to propose."""

    k: Annotated[int, Field(ge=0, le=20, description="how many approved answers")] = 3


class ApprovedAnswer(BaseModel):
    """An answer that was given to such messages, and how near they are (a cosine)."""

    text: str
    similarity: float


class Intent(BaseModel):
    """What a message is about; whether a person should read it, and why."""

    served: Served
    intent: str = Field(description="empty where the model has learnt no intent yet")
    confidence: float = Field(description="calibrated: of messages told with 0.9, nine of ten are told rightly")
    hand_over: bool
    reason: str
    answers: list[ApprovedAnswer] = Field(description="nearest first")


class Sentiment(BaseModel):
    """How a message is meant and what it is about, each with its calibrated confidence."""

    served: Served
    sentiment: str
    confidence: float
    topic: str
    topic_confidence: float
