"""An operator at Airflow's web interface: a real Chromium, driven by what a person sees (labels, buttons, texts)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.window import Window

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

PATIENCE_MS = 120_000  # an order above what a busy machine takes for a page
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def browser() -> str | None:
    """The browser that this machine has."""
    return next((found for found in map(shutil.which, BROWSERS) if found), None)


class Operator:
    """Somebody who is logged in, and the pictures of what they saw."""

    def __init__(self, page: Page, url: str, pictures: Path) -> None:
        self.page, self._url, self._pictures = page, url, pictures
        pictures.mkdir(parents=True, exist_ok=True)

    def sign_in(self, user: str, password: str) -> None:
        """Opens Airflow, which asks who is there."""
        self.page.goto(f"{self._url}/dags/ingest")
        self.page.locator("input[name=username]").fill(user)
        self.page.locator("input[name=password]").fill(password)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("button", name="Trigger").first.wait_for()

    def backfill(self, dag: str, first: Window, last: Window) -> None:
        """Trigger, Backfill, the range, All Runs, Run Backfill."""
        self.page.goto(f"{self._url}/dags/{dag}")
        self.page.get_by_role("button", name="Trigger").first.click()
        form = self.page.get_by_role("dialog").first
        form.get_by_text("Backfill", exact=True).click()
        for place, window in enumerate((first, last)):
            form.get_by_text("Select date and time").first.click()
            self._choose(window)
            assert form.get_by_text("Select date and time").count() == 1 - place
        form.get_by_text("All Runs", exact=True).click()
        self.see("backfill")
        run = form.get_by_role("button", name="Run Backfill")
        run.scroll_into_view_if_needed()
        run.click()
        form.wait_for(state="hidden")

    def _choose(self, window: Window) -> None:
        """Fills in the picker that is open."""
        self.page.get_by_placeholder("YYYY/MM/DD").last.fill(window.start.strftime("%Y/%m/%d"))
        self.page.get_by_placeholder("HH:mm").last.fill(window.start.strftime("%H:%M"))
        self.page.keyboard.press("Enter")
        self.page.keyboard.press("Escape")

    def wait_until_it_ended(self, dag: str, run: str) -> None:
        """Watches the run's page until it says that it has ended."""
        self.page.goto(f"{self._url}/dags/{dag}/runs/{run}")
        self.page.get_by_text(re.compile("^(Success|Failed)$")).first.wait_for()
        self.see("run")

    def follow(self, dag: str, run: str, task: str, words: str) -> Page:
        """Opens a task's details and clicks its link there; the page that it opens."""
        self.page.goto(f"{self._url}/dags/{dag}/runs/{run}/tasks/{task}/details")
        link = self.page.get_by_role("link", name=words)
        link.wait_for()
        self.see("task")
        if link.get_attribute("target") == "_blank":
            with self.page.context.expect_page() as opened:
                link.click()
            opened.value.wait_for_load_state()
            return opened.value
        link.click()
        self.page.wait_for_load_state()
        return self.page

    def open_health(self) -> Locator:
        """Browse, Evergreen health: the page's text inside Airflow's frame."""
        self.page.goto(self._url)
        self.page.get_by_role("button", name="Browse").click()
        self.page.get_by_text("Evergreen health").click()
        shown = self.page.frame_locator("iframe").locator("main")
        shown.wait_for()
        self.see("health")
        return shown

    def see(self, name: str, page: Page | None = None, *, whole: bool = False) -> None:
        """Takes a picture."""
        (page or self.page).screenshot(path=self._pictures / f"{name}.png", full_page=whole)


@contextmanager
def operator(url: str, pictures: Path) -> Iterator[Operator]:
    """An operator before a browser of their own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # root has no sandbox; nothing but this machine's own pages is opened
        started = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        try:
            page = started.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(PATIENCE_MS)
            yield Operator(page, url, pictures)
        finally:
            started.close()
