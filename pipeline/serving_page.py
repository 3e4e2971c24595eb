"""The reference server's page for people: a shopper's search and recommendations, now and by a week ago's model.

One file without a build step or a network: it asks the same server. Ids and titles are put in as text, never as HTML.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from pipeline.settings import Settings

_TITLES_SECONDS = 300.0  # titles are read again so often; a new item shows its id until then
_FIRST_SECONDS = 3.0  # the first answer waits so long for them: the demo's are read in half a second


class Titles:
    """Item id -> title, read from the lake in a thread; without a lake the ids stand alone."""

    def __init__(self, settings: Settings) -> None:
        """Reads nothing yet."""
        self._settings, self._lock = settings, threading.Lock()
        self._titles: dict[str, str] = {}
        self._read_at = float("-inf")

    def of(self, item: str) -> str | None:
        """The title, where it is known by now; whoever asks first waits for the reading, but not for long."""
        with self._lock:
            if time.monotonic() - self._read_at > _TITLES_SECONDS:
                reading = threading.Thread(target=self._read, name="titles", daemon=True)
                reading.start()
                if not self._titles:
                    reading.join(_FIRST_SECONDS)
                self._read_at = time.monotonic()
        return self._titles.get(item)

    def _read(self) -> None:
        from pipeline.lake import open_lake

        try:
            rows = open_lake(self._settings).arrow("items", columns=["item_id", "title", "change_time"])
        except Exception:
            return
        rows = rows.sort_by([("change_time", "ascending")])
        pairs = zip(rows["item_id"].to_pylist(), rows["title"].to_pylist(), strict=True)
        self._titles = {item: title for item, title in pairs if title}


def page() -> str:
    """The HTML."""
    return Path(__file__).with_name("serving_page.html").read_text(encoding="utf-8")
