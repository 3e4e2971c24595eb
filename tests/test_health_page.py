"""The health page in a real browser: what is long stays on it, on a phone and on a desk."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.alerts import raise_alert
from pipeline.health import write_health_page
from pipeline.own_health import OwnHealth, TopicDay
from pipeline.surge import EVERYTHING
from pipeline.watch import TaskHealth
from tests.browser import browser
from tests.small_shop import settings_of

pytestmark = pytest.mark.skipif(browser() is None, reason="needs Chromium, such as Debian's package chromium")

AT = datetime(2026, 3, 1, 9, tzinfo=UTC)
FILE = "/home/shop/evergreen/.evergreen/mlflow/artifacts/1/models/m-0e5b6a3f2f3c4a0d9f1c2b3a4d5e6f70/checkpoint.npz"
TOPIC = "Rücksendungen und Erstattungen von Möbeln und großen Geräten, die beschädigt ankamen"
WIDER = """[...document.querySelectorAll("section")].flatMap(section => {
    const right = section.getBoundingClientRect().right, parts = [...section.querySelectorAll("p, th, td")];
    return parts.filter(one => one.getBoundingClientRect().right > right).map(one => one.textContent);
})"""


@pytest.mark.parametrize("width", [375, 1280])
def test_long_paths_and_topics_stay_within_their_sections(tmp_path: Path, width: int) -> None:
    from playwright.sync_api import sync_playwright

    settings = settings_of(tmp_path)
    raise_alert(settings, "cannot-score-sentiment", f"FileNotFoundError: {FILE} → Look at it.", AT)
    own = OwnHealth(topics=tuple(TopicDay(topic, "2026-02-28", 10, 2) for topic in (EVERYTHING, "delivery", TOPIC)))
    page = write_health_page([TaskHealth("sentiment", 2, 1, AT, AT, own=own)], [], {}, settings, AT, {})
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        shown = started.new_page(viewport={"width": width, "height": 900})
        shown.goto(page.as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") == width
        assert shown.evaluate(WIDER) == []
        started.close()
