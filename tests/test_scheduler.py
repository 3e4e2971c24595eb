"""The loop under the real scheduler: hours arrive, a corrected hour is backfilled, every row is accounted for."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from pipeline.alerts import open_alerts
from pipeline.checkpoint import Ledger
from pipeline.lake import open_lake
from pipeline.registry import open_registry
from pipeline.schema import TIME
from pipeline.sources.simulator import ShopSimulator
from pipeline.window import Window, windows_between
from tests.browser import browser, operator
from tests.installed import InstalledShop, installed_shop, landed_lines

pytestmark = pytest.mark.slow

SIZE = {"users": 1200, "items": 120, "history_days": 6, "history_events": 24_000, "events_per_hour": 300, "hours": 6}


@pytest.fixture(scope="module")
def simulator() -> ShopSimulator:
    return ShopSimulator(seed=7, **SIZE)


@pytest.fixture(scope="module")
def shop(simulator: ShopSimulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledShop]:
    home = tmp_path_factory.mktemp("shop")
    variables = {"EVERGREEN_ENCODER": "tiny", "EVERGREEN_SCHEDULE_END": str(Window(simulator.last))}
    with installed_shop(home, **variables) as shop:
        history = list(windows_between(simulator.first, simulator.streamed_from))
        simulator.land(history, shop.landing)
        shop.ingest(history)
        shop.run("retrain_recommend", {"reason": "first model"})
        yield shop


def ledger_of_newest(shop: InstalledShop) -> tuple[int, Ledger]:
    registry = open_registry(shop.settings)
    newest = max(registry.versions("recommend"))
    return newest, Ledger.from_json(json.loads(registry.tags("recommend", newest)["evergreen.ledger"]))


def events_of(shop: InstalledShop, window: Window) -> dict[str, dict]:
    landed = ds.field("landed_window") == pa.scalar(window.start, TIME)
    rows = open_lake(shop.settings).arrow("events", filter=landed)
    return {row["event_id"]: row for row in rows.to_pylist()}


def assert_every_row_is_accounted_for(shop: InstalledShop) -> None:
    lake = open_lake(shop.settings)
    _, ledger = ledger_of_newest(shop)
    assert ledger.versions["events"] == lake.version("events")
    assert ledger.rows.balanced
    assert ledger.rows.inserted - ledger.rows.deleted == len(lake.arrow("events", columns=["event_id"]))
    for row in lake.window_log().to_pylist():
        assert row["rows_in"] == row["published"] + row["quarantined"] + row["duplicates"]


def correct(folder: Path, window: Window) -> tuple[str, str, str]:
    """Corrects a window's files: a purchase goes, another costs more, a new one comes; their event ids."""
    lines = landed_lines(folder)
    landed = Counter(row.get("event_id") for _, _, row in lines)
    bought = [  # this hour's own: the files hold copies of earlier hours' rows too
        (path, place, row) for path, place, row in lines
        if row.get("event_type") == "purchase" and row.get("user_id") and landed[row["event_id"]] == 1
        and str(row.get("event_time")).startswith(window.start.strftime("%Y-%m-%dT%H:"))
        and row["event_id"].startswith(window.start.strftime("E%y%m%d%H"))
        and isinstance(row.get("price"), float | int) and isinstance(row.get("quantity"), float | int)
    ]
    (path, _, gone), (_, _, changed) = bought[0], bought[-1]
    lines = path.read_text().splitlines()
    kept = [line for line in lines if gone["event_id"] not in line]
    new = {**gone, "event_id": gone["event_id"] + "-corrected"}
    kept.append(json.dumps(new))
    path.write_text("\n".join(kept) + "\n")
    for other in sorted(folder.glob("*.jsonl")):
        text = [
            json.dumps({**json.loads(line), "price": 77.5}) if f'"{changed["event_id"]}"' in line else line
            for line in other.read_text().splitlines()
        ]
        other.write_text("\n".join(text) + "\n")
    return gone["event_id"], changed["event_id"], new["event_id"]


def test_three_hours_arrive_and_a_corrected_hour_is_backfilled_and_learnt_once(
    shop: InstalledShop, simulator: ShopSimulator
) -> None:
    hours = list(windows_between(simulator.streamed_from, simulator.last))[:3]
    for hour in hours:
        simulator.land([hour], shop.landing)
        shop.ingest([hour])
    shop.settle()
    assert_every_row_is_accounted_for(shop)
    updates, (version, ledger) = len(shop.updates()), ledger_of_newest(shop)
    table_version = open_lake(shop.settings).version("events")

    before = events_of(shop, hours[1])
    gone, changed, new = correct(shop.landing / "events" / hours[1].folder, hours[1])
    shop.backfill(hours[0], hours[2])
    shop.settle()

    after = events_of(shop, hours[1])
    assert gone in before and gone not in after and new in after
    assert after[changed]["price"] == 77.5
    assert open_lake(shop.settings).version("events") == table_version + 1  # the other two hours were no commit
    assert len(shop.updates()) == updates + 1
    newer, corrected = ledger_of_newest(shop)
    assert newer == version + 1
    taught = {name: getattr(corrected.own_rows, name) for name in ("inserted", "updated", "deleted")}
    if corrected.parent == version:  # promoted: only the correction is new to it
        assert taught == {"inserted": 1, "updated": 1, "deleted": 1}
    else:  # held: the correction comes together with the hours that nothing has consumed
        assert corrected.learnt_from == ledger.learnt_from
    assert_every_row_is_accounted_for(shop)


def test_a_page_shows_each_check_to_whoever_is_logged_in_only(shop: InstalledShop) -> None:
    run = next(run for run in shop.airflow.runs("ingest") if run["state"] == "success")["dag_run_id"]
    page = shop.airflow.returned("ingest", run, "publish_windows", "page")
    assert page.startswith(shop.installation.airflow_url)
    assert httpx.get(page).status_code == 401
    token = httpx.post(
        f"{shop.installation.airflow_url}/auth/token",
        json={"username": "admin", "password": shop.installation.secrets.admin_password},
    ).json()["access_token"]
    shown = httpx.get(page, headers={"Authorization": f"Bearer {token}"})
    assert shown.status_code == 200 and "quality of landed data" in shown.text
    links = shop.airflow.request("GET", f"/dags/ingest/dagRuns/{run}/taskInstances/publish_windows/links")
    assert links["extra_links"]["Quality page"] == page
    secret = httpx.get(
        f"{shop.installation.airflow_url}/evergreen/../secrets.json", headers={"Authorization": f"Bearer {token}"}
    )
    assert "mask_key" not in secret.text


def test_a_window_that_breaks_a_critical_rule_fails_in_the_ui_and_touches_nothing(
    shop: InstalledShop, simulator: ShopSimulator
) -> None:
    hour = list(windows_between(simulator.streamed_from, simulator.last))[4]
    folder = shop.landing / "events" / hour.folder
    folder.mkdir(parents=True)
    (folder / "broken.jsonl").write_text("\n".join(f'{{"event_type": "purchase" {n}' for n in range(500)) + "\n")
    version = open_lake(shop.settings).version("events")
    run = shop.airflow.trigger("ingest", {"window": str(hour)})
    assert shop.airflow.wait("ingest", run, 300) == "failed"
    said = shop.airflow.log("ingest", run, "publish_windows")
    assert "allowed" in said and "What to do" in said
    assert open_lake(shop.settings).version("events") == version
    assert shop.airflow.returned("ingest", run, "publish_windows", "page")
    failed = [alert["text"] for alert in open_alerts(shop.settings) if alert["condition"] == "failed-ingest"]
    assert len(failed) == 1 and "What to do" in failed[0] and run in failed[0]


def test_the_watch_writes_the_health_page_and_a_rollback_is_logged(shop: InstalledShop) -> None:
    registry = open_registry(shop.settings)
    shop.run("watch")
    assert "evergreen-recommend" in (shop.settings.reports / "health.html").read_text()
    champion = registry.champion("recommend")
    others = [version for version in registry.versions("recommend") if version != champion]
    shop.run("rollback", {"task": "recommend", "version": others[0], "why": "a test of the form"})
    assert registry.champion("recommend") == others[0]
    newest = registry.decisions("recommend").to_pylist()[-1]
    assert (newest["action"], newest["who"], newest["champion_before"]) == ("rollback", "admin", champion)


@pytest.mark.skipif(browser() is None, reason="needs Chromium, such as Debian's package chromium")
def test_an_operator_backfills_an_hour_in_the_browser_and_reads_its_pages(
    shop: InstalledShop, simulator: ShopSimulator, tmp_path: Path
) -> None:
    hour = list(windows_between(simulator.streamed_from, simulator.last))[3]
    simulator.land([hour], shop.landing)
    assert not events_of(shop, hour)
    watched = shop.run("watch")
    with operator(shop.installation.airflow_url, tmp_path) as someone:
        someone.sign_in("admin", shop.installation.secrets.admin_password)
        someone.backfill("ingest", hour, hour)
        run = shop.backfilled(hour)
        someone.wait_until_it_ended("ingest", run)
        assert events_of(shop, hour)
        checks = someone.follow("ingest", run, "publish_windows", "Quality page").locator("main").inner_text()
        assert str(hour) in checks and "rows passed the check" in checks
        health = someone.open_health().inner_text()
        assert "evergreen-recommend" in health and "Feed events" in health
        alone = someone.follow("watch", watched, "look", "Health page").locator("main").inner_text()
        assert alone.split("\n\n")[:3] == health.split("\n\n")[:3]  # up to when the watch looked
    assert "failed-ingest" not in [alert["condition"] for alert in open_alerts(shop.settings)]  # it works again


def test_a_file_that_came_after_its_hour_is_taken_in_with_the_next(shop: InstalledShop) -> None:
    hour = Window.containing(datetime.now(UTC) - timedelta(hours=3))
    folder = shop.landing / "messages" / hour.folder
    folder.mkdir(parents=True)
    for number, conf in enumerate(({"window": str(hour)}, None)):
        message = {"message_id": f"m{number}", "message_time": hour.start.isoformat(), "text": "Where is my parcel?"}
        (folder / f"{number}.jsonl").write_text(json.dumps(message) + "\n")
        shop.run("ingest", conf)
    landed = ds.field("landed_window") == pa.scalar(hour.start, TIME)
    messages = open_lake(shop.settings).arrow("messages", filter=landed)
    assert set(messages["message_id"].to_pylist()) == {"m0", "m1"}


@pytest.mark.parametrize("program", ["airflow-scheduler", "postgres", "mlflow"])
def test_what_dies_is_started_again(shop: InstalledShop, program: str) -> None:
    installation = shop.installation
    pid = installation.pid_of(program)
    workers = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while installation.status().get(program) != "RUNNING" or installation.pid_of(program) == pid:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    installation.up(lambda line: None)  # waits until everything answers
    if program == "airflow-scheduler":  # its workers would go on with tasks that the new one begins anew
        assert workers and not [one for one in workers if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    if program == "mlflow":  # what answers is the new server: the old one's workers held the port
        listening = {
            one.pid for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr.port == installation.ports.mlflow
        }
        new = psutil.Process(installation.pid_of(program))
        assert listening <= {new.pid, *(child.pid for child in new.children(recursive=True))}


def test_an_operators_slots_stay_when_the_installation_starts_again(shop: InstalledShop) -> None:
    name = "evergreen_learning"

    def give(slots: int) -> None:
        asked = {"pool": name, "slots": slots, "include_deferred": False}
        shop.airflow.request("PATCH", f"/pools/{name}", params={"update_mask": "slots"}, json=asked)

    assert shop.airflow.request("GET", f"/pools/{name}")["slots"] == 1
    give(2)
    try:
        shop.installation.up(lambda line: None)
        assert shop.airflow.request("GET", f"/pools/{name}")["slots"] == 2
    finally:
        give(1)
