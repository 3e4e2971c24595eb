"""What the reference server takes and gives, as its description says it."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    from pipeline.served_models import ServedModel

MOST_HISTORY = 256  # as many as the model has learnt from
MOST_ANSWERS = 200  # ten pages
MOST_ROWS = 1000  # of one request to any task

ItemId = Annotated[str, Field(min_length=1, max_length=200, examples=["sku-1"])]
ResultCount = Annotated[int, Field(ge=1, le=MOST_ANSWERS, description="how many items")]


class Strict(BaseModel):
    """A request: what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Bought(Strict):
    """One purchase of the customer's history; an item bought twice stands there twice."""

    item_id: ItemId
    days_ago: Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False)] = 0.0


class Recommend(Strict):
    """A customer, by what was bought before, newest first; nothing: a new customer."""

    history: Annotated[list[Bought], Field(max_length=MOST_HISTORY)] = []
    k: ResultCount = 20
    exclude_history: bool = Field(False, description="leave out what was bought before")
    explain: bool = Field(False, description="say for each item what spoke for it")


class Search(Strict):
    """Words, and a customer where one is known."""

    query: Annotated[str, Field(max_length=1_000)] = ""
    history: Annotated[list[Bought], Field(max_length=MOST_HISTORY)] = []
    k: ResultCount = 20
    explain: bool = False


class Served(BaseModel):
    """Which model gave an answer."""

    task: str
    version: int
    newest_hour: datetime | None = Field(None, description="the newest hour that it has learnt")


class Reasons(BaseModel):
    """Parts of an item's score: they add up to it."""

    popularity: float
    taste: float = Field(description="the customer's vector")
    words: float = Field(description="the query against the item's text")
    again: float = Field(description="the customer had it before")
    together: float = Field(description="it is chosen with items of the history")
    because: str | None = Field(description="the history's item that leads to it most by what is chosen together")


class Item(BaseModel):
    """One answered item; a higher score is better, scores of different requests do not compare."""

    item_id: str
    score: float
    reasons: Reasons | None = None


class Answer(BaseModel):
    """Items, best first."""

    served: Served
    items: list[Item]


class ModelRequest(Strict):
    """Rows in the columns of the model's signature."""

    rows: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_ROWS)]
    parameters: dict[str, bool | int | float | str] = Field({}, description=f"the model's; k at most {MOST_ANSWERS}")

    @field_validator("parameters")
    @classmethod
    def _few_answers(cls, given: dict[str, Any]) -> dict[str, Any]:
        k = given.get("k", 0)
        with suppress(ValueError):  # a text that is no number: the model refuses it
            k = int(k) if isinstance(k, str) else k
        if not isinstance(k, str) and k > MOST_ANSWERS:
            raise ValueError(f"k must be at most {MOST_ANSWERS}; received {k!s:.20}. Leave it out for the model's own.")
        return given


class ModelAnswer(BaseModel):
    """The model's rows."""

    served: Served
    rows: list[dict[str, Any]]


class ModelState(Served):
    """A model in service."""

    loaded_at: datetime
    age_hours: float | None = Field(description="since the newest hour that it has learnt")


class Health(BaseModel):
    """Whether the server can answer, and by which versions."""

    ready: bool
    models: list[ModelState]
    errors: dict[str, str] = Field(description="of the last look at the registry; the last good model goes on serving")


class Failure(BaseModel):
    """Why there is no answer, and what to do."""

    detail: str


FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": Failure} for code in (400, 401, 403, 409, 413, 422, 429, 503)
}
UNKNOWN: dict[int | str, dict[str, Any]] = {**FAILURES, 404: {"model": Failure}}


def served_by(served: ServedModel) -> Served:
    """A loaded version, as each of its answers names it."""
    return Served(task=served.task, version=served.version, newest_hour=served.window)
