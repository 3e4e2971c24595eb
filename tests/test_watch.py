"""The watch on a real lake and registry: no hour unscored, one alert a condition, a retrain asked for once."""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import updating
from pipeline.alerts import _lines, _path, open_alerts, raise_alert
from pipeline.arrival import score_what_no_update_has
from pipeline.checkpoint import Ledger, load
from pipeline.conditions import Condition, Threshold, feed_conditions, retrain_due, task_conditions
from pipeline.drift import Fall, Shift
from pipeline.lake import open_lake
from pipeline.locking import file_locks
from pipeline.registry import open_registry
from pipeline.schema import DECISIONS_SCHEMA, EVENTS, ITEMS, QUALITY_SCHEMA, QUARANTINE_SCHEMA
from pipeline.settings import Settings
from pipeline.tasks.contract import State
from pipeline.watch import FeedHealth, TaskHealth, feed_health, task_health, watch
from pipeline.window import HOUR
from tests.price_task import PriceLearner, PriceTask
from tests.small_shop import hour, log_windows, publish, publish_purchases, settings_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def shop(price_shop: Settings) -> Settings:
    """A hundred hours that the champion knows, in the window log too; the log of the shop has an end."""
    settings = replace(price_shop, tasks=("price",), schedule_end=NOW)
    log_windows(open_lake(settings), EVENTS, *map(hour, range(100)))
    return settings


def land(settings: Settings, *numbers: int, **given: object) -> None:
    lake = open_lake(settings)
    publish_purchases(lake, *numbers, **given)
    log_windows(lake, EVENTS, *map(hour, numbers))


def look(settings: Settings, after_hours: float = 0.0, run: str = "") -> dict:
    return watch(settings, NOW + timedelta(hours=after_hours), run or f"run {after_hours}")


def scores(settings: Settings) -> list[tuple]:
    rows = open_lake(settings).arrow("quality").to_pylist()
    return sorted(
        (row["window"], row["role"], row["model_version"], row["challenger"]) for row in rows
        if row["scored_on"] == "window"
    )


# --- scoring what no update has ---


def test_an_hour_that_no_update_has_scored_is_scored_once_by_the_watch(shop: Settings) -> None:
    land(shop, 100)
    land(shop, 101)
    look(shop)
    expected = [(hour(number).start, role, version, 0) for number in (100, 101)
                for role, version in (("baseline", 0), ("champion", 1), ("never_updated", 1))]
    assert scores(shop) == expected
    look(shop, 1)
    assert scores(shop) == expected


@pytest.mark.slow
def test_the_hour_is_shown_with_the_watchs_score_and_the_updates_decision(shop: Settings) -> None:
    land(shop, 100)
    look(shop)
    before = task_health(open_lake(shop), open_registry(shop), "price").lines[-1]
    assert (before.version, before.decision) == (None, "")
    assert before.on_arrival["never_updated"] == before.on_arrival["champion"], "the champion is its lineage's first"
    done = updating.update(updating.plan("price", shop), shop, NOW, report=lambda line: None)
    updating.promote("price", done["version"], shop, NOW)
    after = task_health(open_lake(shop), open_registry(shop), "price").lines[-1]
    assert (after.version, after.decision) == (2, "promote")
    assert after.on_arrival["champion"] == before.on_arrival["champion"]


def test_while_an_update_runs_the_watch_leaves_the_scoring_to_it(shop: Settings) -> None:
    land(shop, 100)
    lake, registry = open_lake(shop), open_registry(shop)
    with file_locks(shop.home / "locks")("learn-price"):
        assert score_what_no_update_has(lake, registry, "price", shop) == []
    assert score_what_no_update_has(lake, registry, "price", shop) == [hour(100).start]


def test_a_champion_that_cannot_score_is_reported_and_the_page_is_written(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise KeyError("a column that is gone")

    land(shop, 100)
    monkeypatch.setattr(PriceLearner, "score", refused)
    found = look(shop)
    assert "a column that is gone" in found["conditions"][0] and "price" in found["retrain"]
    assert "a column that is gone" in (shop.reports / "health.html").read_text()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_a_machine_that_is_short_is_reported_and_asks_for_no_retrain(
    shop: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refused(*_: object) -> None:
        raise error

    land(shop, 100)
    monkeypatch.setattr(PriceLearner, "score", refused)
    found = look(shop)
    assert type(error).__name__ in found["conditions"][0] and "disk" in found["conditions"][0]
    assert found["retrain"] == {} and cannot_score(shop) == ["raised"]


def cannot_score(settings: Settings) -> list[str]:
    """What became of the alert, in order."""
    return [line["event"] for line in _lines(_path(settings)) if line["condition"] == "cannot-score-price"]


def test_an_alert_of_what_cannot_score_waits_for_what_can(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise KeyError("a column that is gone")

    land(shop, 100)
    with monkeypatch.context() as broken:
        broken.setattr(PriceLearner, "score", refused)
        look(shop)
        with file_locks(shop.home / "locks")("learn-price"):  # the retrain that was asked for goes on
            look(shop, 1)
        assert cannot_score(shop) == ["raised"]
    look(shop, 2)
    assert cannot_score(shop) == ["raised", "settled"]
    raise_alert(shop, "cannot-score-price", "found by an update", NOW)
    look(shop, 3)  # nothing is there to be scored
    assert cannot_score(shop) == ["raised", "settled", "raised"]


def test_a_first_model_of_the_lineage_that_cannot_score_is_one_alert_and_asks_for_a_retrain(
    price_shop_an_hour_later: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = replace(price_shop_an_hour_later, tasks=("price",), schedule_end=NOW)
    log_windows(open_lake(shop), EVENTS, *map(hour, range(101)))
    with tempfile.TemporaryDirectory() as scratch:
        first = load(open_registry(shop).load_checkpoint("price", 1, Path(scratch))).state.meta["steps"]
    real = PriceTask.restore

    def restore(task: PriceTask, state: State) -> PriceLearner:
        if state.meta["steps"] == first:
            raise KeyError("a column that is gone")
        return real(task, state)

    monkeypatch.setattr(PriceTask, "restore", restore)
    for number in (101, 102):
        land(shop, number)
        done = updating.update(updating.plan("price", shop), shop, NOW, report=lambda line: None)
        assert done["decision"] == "cannot-score"
        looks = [look(shop, 2 * number + again) for again in (0, 1)]
        assert ("price" in looks[0]["retrain"]) == (number == 101) and looks[1]["retrain"] == {}
    assert cannot_score(shop) == ["raised"]
    assert {role for window, role, *_ in scores(shop) if window == hour(102).start} == {"champion", "baseline"}


# --- conditions ---


def task_with(**state: object) -> TaskHealth:
    given = {"task": "price", "champion": 3, "previous": 2, "knows": hour(0).start, "landed": hour(0).start}
    return TaskHealth(**{**given, **state})


def names(health: TaskHealth, *opened: str) -> list[str]:
    return [one.name for one in task_conditions(health, dict.fromkeys(opened, NOW))]


def test_a_condition_is_raised_at_one_level_and_settled_at_another() -> None:
    level = Threshold(raises=7, settles=4)
    assert not level.met(6, is_open=False) and level.met(7, is_open=False)
    assert level.met(4, is_open=True) and not level.met(3.9, is_open=True)


@pytest.mark.parametrize(("name", "state", "trembling"), [
    ("behind", {"landed": hour(7).start}, {"landed": hour(5).start}),
    ("refused", {"refused_in_a_row": 6, "decisions": ({"reasons": '["why"]'},)},
     {"refused_in_a_row": 2, "decisions": ({"reasons": '["why"]'},)}),
    ("quality-fell", {"fall": Fall(NOW, 0.10, 0.07, 0.9)}, {"fall": Fall(NOW, 0.10, 0.08, 0.9)}),
    ("unknown-items", {"unknown_share": 0.11}, {"unknown_share": 0.06}),
    ("answers-drift", {"answers": (Shift("category", 0.11, 0.04, 0.0, ("a", 0, 0), ("b", 0, 0), 900),)},
     {"answers": (Shift("category", 0.08, 0.04, 0.0, ("a", 0, 0), ("b", 0, 0), 900),)}),
])
def test_a_value_between_both_levels_raises_nothing_and_settles_nothing(
    name: str, state: dict, trembling: dict
) -> None:
    assert names(task_with(**state)) == [f"{name}-price"]
    assert names(task_with(**trembling)) == []
    assert names(task_with(**trembling), f"{name}-price") == [f"{name}-price"]


def test_a_note_on_the_champion_ends_no_row_of_refusals(shop: Settings) -> None:
    """Six updates are held; then the champion could not be asked once, which promotes nothing."""
    registry = open_registry(shop)
    for number in range(2, 8):
        registry.record(
            "price", "hold", number, who="update", reasons=[f"too few {number}"], decided_at=NOW + number * HOUR,
        )
    noted = {"who": "update", "decided_at": NOW + 9 * HOUR}
    registry.record("price", "cannot-score", 1, reasons=["no such column"], **noted)
    health = task_health(open_lake(shop), registry, "price")
    assert health.refused_in_a_row == 6
    (refused,) = [one for one in task_conditions(health, {}) if one.name == "refused-price"]
    assert "because: too few 7" in refused.text


@pytest.mark.parametrize(("action", "who"), [("promote", "retrain"), ("force", "ann")])
def test_the_lead_is_told_since_the_retrain_that_serves_whoever_promoted_it(
    shop: Settings, action: str, who: str
) -> None:
    registry, given = open_registry(shop), {"window": hour(100).start, "reasons": ["anew"]}
    registry.record("price", "hold", 1, who="retrain", decided_at=NOW, **given)
    land(shop, 100, 101)
    look(shop)
    log = open_lake(shop)
    log.append("decisions", pa.Table.from_pylist([{
        "task": "price", "decided_at": NOW + HOUR, "action": action, "version": 1, "champion_before": 1,
        "champion_after": 1, "window": hour(100).start, "who": who, "reasons": "[]",
    }], schema=DECISIONS_SCHEMA))
    assert [one.window for one in task_health(log, registry, "price").gains] == [hour(101).start]


def test_a_task_without_a_champion_has_that_condition_alone() -> None:
    assert names(task_with(champion=None, landed=hour(50).start)) == ["no-champion-price"]
    (deleted,) = task_conditions(task_with(champion=None, previous=1), {})  # deleted by hand
    assert "Put version 1 back" in deleted.remedy


def test_an_hour_that_was_never_taken_in_is_named_until_it_is(shop: Settings) -> None:
    land(shop, 102)
    health = feed_health(open_lake(shop), "events", shop, NOW)
    assert health.not_taken_in == (hour(100), hour(101))
    (condition,) = feed_conditions(health, {})
    assert condition.name == "gap-events" and str(hour(100)) in condition.text and "Backfill" in condition.remedy
    land(shop, 100, 101)
    assert feed_conditions(feed_health(open_lake(shop), "events", shop, NOW), {}) == []


def test_an_hour_of_a_feed_that_was_stopped_alone_is_named_though_the_next_hour_works(shop: Settings) -> None:
    lake = open_lake(shop)
    log_windows(lake, ITEMS, hour(96), hour(98))  # 97 broke a critical rule; 99 is not over yet
    assert "items" not in shop.expected_feeds
    (condition,) = feed_conditions(feed_health(lake, "items", shop, NOW), {})
    assert condition.name == "gap-items" and str(hour(97)) in condition.text
    log_windows(lake, ITEMS, hour(97), hour(103))  # hours 100 to 102 no feed has: they are told of the events
    assert feed_health(lake, "items", shop, NOW).not_taken_in == (hour(99),)


def test_silence_is_told_of_a_live_shop_only(shop: Settings) -> None:
    at = hour(99).end + 3 * HOUR
    lake = open_lake(shop)
    assert feed_conditions(feed_health(lake, "events", shop, at), {}) == []
    live = replace(shop, schedule_end=None)
    assert [one.name for one in feed_conditions(feed_health(lake, "events", live, at), {})] == ["silent-events"]
    assert feed_conditions(feed_health(lake, "events", live, at - HOUR), {}) == []
    assert feed_conditions(feed_health(lake, "messages", live, at), {}) == []  # no feed that must come


# --- alerts and requests ---


@pytest.mark.slow
def test_falling_behind_is_one_alert_that_is_settled_when_the_champion_has_caught_up(shop: Settings) -> None:
    land(shop, *range(100, 108))
    assert look(shop)["conditions"] and look(shop, 1)["conditions"]
    assert [one["condition"] for one in open_alerts(shop)] == ["behind-price"]
    done = updating.update(updating.plan("price", shop), shop, NOW, report=lambda line: None)
    updating.promote("price", done["version"], shop, NOW)
    look(shop, 2)
    assert open_alerts(shop) == []


def test_the_alerts_of_a_task_that_was_taken_out_are_settled_at_the_next_look(shop: Settings) -> None:
    look(replace(shop, tasks=("price", "demand")))
    for name in ("failed-update_demand", "failed-retrain_demand", "failed-update_price", "failed-ingest"):
        raise_alert(shop, name, "it failed", NOW)
    assert "no-champion-demand" in [one["condition"] for one in open_alerts(shop)]
    look(shop, 1)
    assert [one["condition"] for one in open_alerts(shop)] == ["failed-update_price", "failed-ingest"]


def test_the_alert_about_a_feed_that_is_expected_no_more_is_settled_at_the_next_look(shop: Settings) -> None:
    for name in ("missing-feed-events", "missing-feed-messages", "failed-profiles"):
        raise_alert(shop, name, "no file came, or no profile", NOW)
    look(replace(shop, expected_feeds=("events", "messages"), derived=("profiles",)))
    assert len(open_alerts(shop)) == 3
    look(shop, 1)
    assert [one["condition"] for one in open_alerts(shop)] == ["missing-feed-events"]


def below_baseline(settings: Settings, hours: int = 24) -> None:
    """A day on which the plain baseline was better."""
    rows = [{
        "task": "price", "scored_on": "window", "window": hour(number).start, "role": role, "model_version": version,
        "metric": "closeness", "mean": mean, "low": mean, "high": mean, "examples": 10, "challenger": 2,
    } for number in range(100 - hours, 100) for role, version, mean in (("champion", 1, 0.4), ("baseline", 0, 0.5))]
    open_lake(settings).append("quality", pa.Table.from_pylist(rows, schema=QUALITY_SCHEMA))


def test_a_retrain_is_asked_for_once_and_again_only_a_day_and_a_half_later(shop: Settings) -> None:
    below_baseline(shop)
    assert "plain baseline 0.500" in look(shop)["retrain"]["price"]
    assert look(shop, 1)["retrain"] == {} and look(shop, 35)["retrain"] == {}
    assert "price" in look(shop, 36)["retrain"]


def test_a_look_that_was_killed_after_it_had_asked_asks_again_under_its_name(shop: Settings) -> None:
    below_baseline(shop)
    assert "price" in look(shop, 0, "run 1")["retrain"]
    assert "price" in look(shop, 0, "run 1")["retrain"]
    assert look(shop, 0, "run 2")["retrain"] == {}


@pytest.mark.slow
def test_a_lineage_that_has_outgrown_its_retrain_asks_for_another_until_one_serves(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PriceTask, "outgrown", lambda self, before, now: now >= 2 * before, raising=False)
    ledger = Ledger.of_tags(open_registry(shop).tags("price", 1))
    land(shop, *range(100, 199))
    done = updating.update(updating.plan("price", shop), shop, NOW, report=lambda line: None)
    updating.promote("price", done["version"], shop, NOW)
    assert look(shop)["retrain"] == {}
    land(shop, 199)
    done = updating.update(updating.plan("price", shop), shop, NOW, report=lambda line: None)
    updating.promote("price", done["version"], shop, NOW)
    reason = look(shop, 1)["retrain"]["price"]
    assert f"has read {ledger.rows.inserted:,} rows" in reason and f"{2 * ledger.rows.inserted:,} by now" in reason
    done = updating.retrain("price", shop, NOW, reason, report=lambda line: None)
    updating.promote("price", done["version"], shop, NOW, who="retrain")
    assert "outgrown-price" in [one["condition"] for one in open_alerts(shop)]
    look(shop, 2)
    assert "outgrown-price" not in [one["condition"] for one in open_alerts(shop)]


def test_half_a_day_below_the_baseline_asks_for_nothing(shop: Settings) -> None:
    below_baseline(shop, hours=12)
    assert look(shop)["retrain"] == {}


def test_drift_asks_for_a_retrain_once_it_has_lasted() -> None:
    drift = Condition("drift-events", "moved.", "look.", retrain_after_hours=48.0)
    assert retrain_due([drift], {"drift-events": NOW - timedelta(hours=47)}, NOW) is None
    assert retrain_due([drift], {"drift-events": NOW - timedelta(hours=48)}, NOW) == "moved."
    assert retrain_due([drift], {}, NOW) is None
    assert retrain_due([Condition("behind", "late.", "look.")], {"behind": NOW - timedelta(days=9)}, NOW) is None


def test_a_changed_mix_of_events_drifts_in_its_feed_and_is_one_alert(shop: Settings) -> None:
    """Half of the rows are purchases; in the days before five of six were."""
    rows = [{
        "event_id": f"m{number}-{place}", "event_type": "purchase" if place % 2 else "view",
        "event_time": hour(number).start, "user_id": f"{place:032x}", "item_id": f"i{place % 8}", "quantity": 1.0,
        "price": 9.0, "hour": hour(number).start, "landed_window": hour(number).start,
        "landed_date": hour(number).start.date(), "source_file": "a", "source_row": place + 1,
    } for number in range(100, 124) for place in range(12)]
    lake, hours = open_lake(shop), [hour(number) for number in range(100, 124)]
    publish(lake, EVENTS, hours, pa.Table.from_pylist(rows, schema=EVENTS.table_schema))
    log_windows(lake, EVENTS, *hours)
    look(shop)
    assert "drift-events" in [one["condition"] for one in open_alerts(shop)]
    (moved,) = [one for one in feed_health(lake, "events", shop, NOW).shifts if one.column == "event_type"]
    assert moved.share == pytest.approx(1 / 3, abs=0.01) and moved.grew[0] == "view"


@pytest.mark.parametrize(("column", "grew", "said"), [
    ("category", "2100", "most 2100 from 10% to 60%"),  # a number as a name: 2 to its power is no float
    ("price", "6", "most 8–11.3 from 10% to 60%"),
    ("stock", "0", "most 0 or 1–1.41 from 10% to 60%"),
    ("price missing", "missing", "most missing from 10% to 60%"),
])
def test_a_column_that_drifted_is_told_by_its_own_bins(column: str, grew: str, said: str) -> None:
    shift = Shift(column, 0.5, 0.01, 1e-9, (grew, 0.1, 0.6), ("7", 0.9, 0.5), 4_000)
    (condition,) = feed_conditions(FeedHealth("items", hour(0).start, shifts=(shift,)), {})
    assert said in condition.text


# --- the page ---


def test_the_page_says_what_serves_how_fresh_how_good_and_what_to_look_at(shop: Settings) -> None:
    below_baseline(shop)
    land(shop, *range(100, 108))
    raise_alert(shop, "failed-ingest", "ingest.publish_windows: <b>disk full</b>", NOW)
    look(shop)
    page = (shop.reports / "health.html").read_text()
    for part in (
        "version 1", "8 h behind", "Against the baseline", "not due", "things to look at", "&lt;b&gt;disk full",
        "failed-ingest", 'class="verdict stop"', "Feed events", "knows rows up to 2026-01-09 03:00",
        "Quality on arrival",
    ):
        assert part in page, part
    assert "<script" not in page and "<b>disk" not in page


def test_the_page_of_a_shop_that_is_well_says_so(shop: Settings) -> None:
    look(shop)
    page = (shop.reports / "health.html").read_text()
    assert "All is well" in page and "price by version 1" in page and "up to date" in page


def test_a_shop_without_anything_yet_has_a_page(
    tmp_path: Path, empty_database: Path, price_task: None
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    settings = replace(settings_of(tmp_path), tasks=("price",))
    assert look(settings)["conditions"] == ["price has no champion. → Run the DAG retrain_price."]
    page = (settings.reports / "health.html").read_text()
    assert "nothing to roll back to" in page and "No hour was scored yet" in page


def test_hours_without_rows_have_their_place_in_the_pictures(shop: Settings) -> None:
    """A shop that is closed for two days: 48 hours that no ingest took in, then one more."""
    land(shop, 100, 149)
    look(shop)
    health = feed_health(open_lake(shop), "events", shop, NOW)
    assert len(health.hourly) == 150 and health.hourly[101:149] == (0,) * 48 and health.hourly[149] > 0
    assert {len(shares) for shares in health.strangers.values()} == {150}
    assert all(math.isnan(share) for shares in health.strangers.values() for share in shares[101:149])
    page = (shop.reports / "health.html").read_text()
    assert page.count("150 hours ago") == 2 and ">nan" not in page


def test_a_feed_of_which_everything_is_refused_is_on_the_page(shop: Settings) -> None:
    land(shop, 100)
    lake, window = open_lake(shop), hour(100)
    lake.append("quarantine", pa.Table.from_pylist([{
        "feed": "items", "landed_window": window.start, "landed_date": window.start.date(), "source_file": "a",
        "source_row": row, "reason": "missing_value", "detail": "item_id", "raw": "{}", "raw_bytes": 2,
    } for row in range(500)], schema=QUARANTINE_SCHEMA))
    log_windows(lake, ITEMS, window)
    look(shop)
    page = (shop.reports / "health.html").read_text()
    assert "Feed items" in page and "500 rows in the last week" in page
