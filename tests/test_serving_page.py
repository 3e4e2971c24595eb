"""The reference server's page in a real browser: the newest question's answer stands, and what went wrong is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.serving_page import page as shop_page
from tests.browser import browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytestmark = pytest.mark.skipif(browser() is None, reason="needs Chromium, such as Debian's package chromium")

SHOP = "http://shop.example/"
UUID = "7d0f3c52-9a41-4c6e-8b1f-2f6f0a1f9f0b"
HOSTILE = '"><img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        yield started
        started.close()


def answer(query: str) -> dict[str, Any]:
    items = [{"item_id": UUID, "title": f"a {query} {HOSTILE}"}, {"item_id": "Z" * 200, "title": None}]
    return {"now": {"version": 2, "newest_hour": None, "items": items}, "older": None}


def opened(chromium: Browser, **kind: Any) -> tuple[Page, dict[str, Route]]:
    """The page, and its questions that wait for an answer; the empty one, asked first, is answered."""
    shown, waiting = chromium.new_page(**kind), dict[str, Any]()

    def ask(route: Route) -> None:
        query = json.loads(route.request.post_data or "")["query"]
        if query:
            waiting[query] = route
        else:
            route.fulfill(json=answer("lamp"))

    shown.route(SHOP, lambda route: route.fulfill(content_type="text/html", body=shop_page()))
    shown.route(f"{SHOP}page/answers", ask)
    shown.goto(SHOP)
    shown.locator("#now li").first.wait_for()
    return shown, waiting


def ask(shown: Page, query: str) -> None:
    shown.locator("#query").fill(query)
    with shown.expect_request(f"{SHOP}page/answers"):
        shown.locator("#query").press("Enter")
    shown.evaluate("0")  # the route's handler has run


def test_an_answer_that_comes_after_a_later_questions_is_passed_over(chromium: Browser) -> None:
    shown, waiting = opened(chromium)
    ask(shown, "soap")
    ask(shown, "tea")
    waiting["tea"].fulfill(json=answer("tea"))
    shown.get_by_text("a tea").wait_for()
    with shown.expect_response(f"{SHOP}page/answers"):
        waiting["soap"].fulfill(json=answer("soap"))
    shown.wait_for_timeout(200)
    assert "a tea" in shown.locator("#now").inner_text()


def test_an_error_of_a_proxy_is_told_and_not_swallowed(chromium: Browser) -> None:
    shown, waiting = opened(chromium)
    ask(shown, "tea")
    waiting["tea"].fulfill(status=502, content_type="text/html", body="<h1>Bad gateway</h1>")
    shown.get_by_text("The server answered 502.").wait_for(timeout=5_000)


def test_long_ids_stay_on_a_phone_and_titles_are_text(chromium: Browser) -> None:
    shown, _ = opened(chromium, viewport={"width": 375, "height": 800})
    for button in shown.get_by_role("button", name="Into the bag").all():
        button.click()
    shown.get_by_role("button", name=f"{'Z' * 200} ×").wait_for()
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert shown.evaluate(wide) == 0
    assert shown.title() == "Evergreen · shop"
    assert not shown.locator("img").count()


def test_a_fault_is_readable_in_the_dark(chromium: Browser) -> None:
    """By the contrast that WCAG 2 asks of text, 4.5."""
    shown, waiting = opened(chromium, color_scheme="dark")
    ask(shown, "tea")
    waiting["tea"].fulfill(status=503, json={"detail": "No model."})
    shown.get_by_text("No model.").wait_for()
    colours = [
        shown.evaluate(f"getComputedStyle(document.querySelector('{of}')).{what}")
        for of, what in (("#fault", "color"), ("body", "backgroundColor"))
    ]
    assert contrast(*colours) >= 4.5


def contrast(one: str, other: str) -> float:
    """Of two colours as a browser tells them, `rgb(…)`."""
    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((light(one), light(other)))
    return (lighter + 0.05) / (darker + 0.05)
