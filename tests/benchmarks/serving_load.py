"""What one simulated consumer of the reference server asks, for locust: recommendations, now and then a search.

`locust -f tests/benchmarks/serving_load.py --headless -u 4 -t 20s --host http://127.0.0.1:8088`; PATHS=recommend asks
for recommendations alone, which a bare server (bare_server.py) answers too.
"""

from __future__ import annotations

import os
import random

from locust import FastHttpUser, constant, task

_ITEMS = [f"P{number:06d}" for number in range(200)]
_WORDS = ("gift", "red mug", "lamp for the garden", "birthday card")
_SEARCHES = 0 if os.environ.get("PATHS") == "recommend" else 1


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
