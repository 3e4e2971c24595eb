"""The reference server's framework with nothing in it: a request is parsed and a constant answered."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

app = FastAPI()
_ANSWER = {"items": [{"item_id": f"P{place:06d}", "score": 1.0} for place in range(20)]}


@app.post("/v1/recommend")
def recommend(asked: dict[str, Any]) -> dict[str, Any]:
    """The same for everybody."""
    return _ANSWER
