"""What one simulated consumer of the reference server asks, for locust: recommendations, now and then a search.

`locust -f tests/benchmarks/serving_load.py --headless -u 4 -t 20s --host http://127.0.0.1:8088`; PATHS=recommend asks
for recommendations alone, which a bare server (bare_server.py) answers too. TIMES=file.json receives the time of each
answer, which the table of locust rounds to milliseconds.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant, events, task

_ITEMS = [f"P{number:06d}" for number in range(200)]
_WORDS = ("gift", "red mug", "lamp for the garden", "birthday card")
_SEARCHES = 0 if os.environ.get("PATHS") == "recommend" else 1


_TIMES: list[tuple[str, float]] = []


@events.request.add_listener
def _answered(name: str, response_time: float, **_: Any) -> None:
    _TIMES.append((name, response_time))


@events.quitting.add_listener
def _ended(**_: Any) -> None:
    if "TIMES" in os.environ:
        Path(os.environ["TIMES"]).write_text(json.dumps(_TIMES))


class Consumer(FastHttpUser):
    """Asks again as soon as it is answered."""

    wait_time = constant(0)

    @task(9)
    def recommend(self) -> None:
        """Recommendations for ten purchases."""
        history = [{"item_id": item, "days_ago": place} for place, item in enumerate(random.sample(_ITEMS, 10))]
        self.client.post("/v1/recommend", json={"history": history}, name="recommend")

    @task(_SEARCHES)
    def search(self) -> None:
        """A search."""
        self.client.post("/v1/search", json={"query": random.choice(_WORDS)}, name="search")
