"""The hourly loop's promises, on a real lake and a real registry: every hour is learnt once, or is accounted for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import examples, updating
from pipeline.alerts import open_alerts
from pipeline.champion import forced
from pipeline.checkpoint import Ledger
from pipeline.decisions import DecisionLog
from pipeline.lake import Lake, open_lake
from pipeline.locking import file_locks
from pipeline.registry import open_registry
from pipeline.registry_errors import RegistryError
from pipeline.schema import EVENTS
from pipeline.settings import Settings
from pipeline.tasks.contract import State
from pipeline.unscorable import CannotScore, asking
from pipeline.watch import watch
from tests.price_task import PriceLearner, PriceTask
from tests.small_shop import hour, publish, publish_purchases, purchases

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def land(settings: Settings, number: int, **given: Any) -> None:
    publish_purchases(open_lake(settings), number, **given)


def update(settings: Settings) -> dict[str, Any]:
    """plan and update, as a DAG's run would."""
    return updating.update(updating.plan("price", settings), settings, NOW, report=lambda line: None)


def promote(settings: Settings, version: int) -> dict[str, Any]:
    return updating.promote("price", version, settings, NOW)


def ledger_of(settings: Settings, version: int) -> Ledger:
    return Ledger.from_json(json.loads(open_registry(settings).tags("price", version)["evergreen.ledger"]))


def log(settings: Settings) -> list[tuple[str, int]]:
    rows = open_registry(settings).decisions("price").to_pylist()
    return sorted((row["action"], row["version"]) for row in rows)


def quality(settings: Settings, challenger: int) -> set[tuple[str, str, int]]:
    rows = [row for row in open_lake(settings).arrow("quality").to_pylist() if row["challenger"] == challenger]
    keys = [(row["scored_on"], row["role"], row["model_version"]) for row in rows]
    assert len(keys) == len(set(keys))
    return set(keys)


def roll_back(settings: Settings, to: int) -> None:
    open_registry(settings).rollback("price", to, who="ann", why=f"odd prices, not in {to}", decided_at=NOW)


def held_to(monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    """The task's gate asks for so many validation units."""
    monkeypatch.setattr(PriceTask, "gate", replace(PriceTask.gate, least_units=units))


def test_nothing_is_planned_before_the_first_champion_and_without_news(price_shop: Settings) -> None:
    assert "no champion" in updating.plan("recommend", price_shop)["nothing_because"]
    assert updating.plan("price", price_shop) == {
        "nothing_because": "version 1 has learnt all of events (version 1)."
    }
    assert log(price_shop) == [("first", 1)]
    assert quality(price_shop, 1) == {("validation", "baseline", 0), ("validation", "challenger", 1)}


def test_two_hours_make_two_champions_that_are_compared_with_the_first(price_shop_an_hour_later: Settings) -> None:
    price_shop = price_shop_an_hour_later
    land(price_shop, 101)
    done = update(price_shop)
    assert (done["version"], done["decision"], done["window"]) == (3, "promote", hour(101).start.isoformat())
    assert promote(price_shop, 3)["champion_after"] == 3
    before, after = ledger_of(price_shop, 2), ledger_of(price_shop, 3)
    assert (after.parent, after.base, after.updates) == (2, 1, 2)
    assert after.learnt_from == before.versions == {"events": 2}
    assert after.own_rows.inserted == 12 and after.rows.inserted == 1224 and after.rows.balanced
    assert quality(price_shop, 3) == {
        *(("validation", role, version) for role, version in (
            ("baseline", 0), ("champion", 2), ("never_updated", 1), ("challenger", 3)
        )),
        *(("window", role, version) for role, version in (("baseline", 0), ("champion", 2), ("never_updated", 1))),
    }
    reasons = json.loads(open_registry(price_shop).tags("price", 3)["evergreen.reasons"])
    assert any("against the reference" in reason for reason in reasons)
    assert not updating.behind("price", price_shop)


def test_a_promotion_called_again_changes_nothing(price_shop_an_hour_later: Settings) -> None:
    assert promote(price_shop_an_hour_later, 2) == {"action": "promote", "champion_before": 1, "champion_after": 2}
    assert log(price_shop_an_hour_later) == [("first", 1), ("promote", 2)]
    assert len(quality(price_shop_an_hour_later, 2)) == 7


def test_two_runs_that_act_on_one_version_at_once_publish_its_quality_once(
    price_shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(price_shop, 100)
    held_to(monkeypatch, 10_000)
    assert update(price_shop)["decision"] == "hold"
    append = Lake.append

    def slow(self: Lake, table: str, rows: pa.Table) -> int:
        time.sleep(0.5)  # both runs have looked by now
        return append(self, table, rows)

    monkeypatch.setattr(Lake, "append", slow)
    with ThreadPoolExecutor(2) as both:
        done = list(both.map(lambda _: promote(price_shop, 2), range(2)))
    assert done[0] == done[1]
    assert quality(price_shop, 2) and log(price_shop) == [("first", 1), ("hold", 2)]


def test_what_was_held_is_learnt_with_the_next_hour(price_shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    land(price_shop, 100)
    held_to(monkeypatch, 10_000)
    assert update(price_shop)["decision"] == "hold"
    assert updating.behind("price", price_shop)  # a killed process left it: nobody has acted on it yet
    assert promote(price_shop, 2) == {"action": "hold", "champion_before": 1, "champion_after": 1}
    assert "version 2" in updating.plan("price", price_shop)["nothing_because"]
    held_to(monkeypatch, 20)
    land(price_shop, 101)
    assert updating.plan("price", price_shop)["start"] == 1
    assert update(price_shop)["version"] == 3
    ledger = ledger_of(price_shop, 3)
    assert (ledger.parent, ledger.learnt_from, ledger.own_rows.inserted) == (1, {"events": 1}, 24)
    assert log(price_shop) == [("first", 1), ("hold", 2)]


def test_a_window_that_is_scored_again_after_a_hold_is_kept_once(
    price_shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 3 scores the window that 2 was held with a second time, and its own; readers take the first."""
    held_to(monkeypatch, 10_000)
    for version in (2, 3):
        land(price_shop, 98 + version)
        assert update(price_shop)["decision"] == "hold"
        promote(price_shop, version)
    rows = open_lake(price_shop).arrow("quality").to_pylist()
    keys = [(row["window"], row["role"], row["metric"]) for row in rows if row["scored_on"] == "window"]
    assert len(keys) == len(set(keys)) and len({window for window, _, _ in keys}) == 2
    assert {row["challenger"] for row in rows if row["scored_on"] == "validation"} == {1, 2, 3}


@pytest.mark.slow
def test_an_hour_refused_three_times_is_set_aside_and_learnt_when_corrected(price_shop: Settings) -> None:
    land(price_shop, 100, count=60, factor=4.0)
    poisoned = hour(100).start.isoformat()
    for number in (101, 102, 103):
        done = update(price_shop)
        assert done["decision"] == "reject", done["reasons"]
        promote(price_shop, done["version"])
        if number < 103:
            land(price_shop, number)
    plan = updating.plan("price", price_shop)  # the three have hour 100 in common; 101 and 102 go on without it
    assert plan["start"] == 2
    done = updating.update(plan, price_shop, NOW, report=lambda line: None)
    assert done["decision"] == "promote", done["reasons"]
    ledger = ledger_of(price_shop, 5)
    assert ledger.set_aside == {poisoned: ((1, 2),)}
    assert (ledger.own_rows.set_aside, ledger.own_rows.inserted) == (72, 96) and ledger.rows.balanced
    promote(price_shop, 5)
    assert log(price_shop) == [
        ("first", 1), ("promote", 5), ("reject", 2), ("reject", 3), ("reject", 4), ("set-aside", 1)
    ]
    noted = [row for row in open_registry(price_shop).decisions("price").to_pylist() if row["action"] == "set-aside"]
    assert poisoned in noted[0]["reasons"] and "backfill" in noted[0]["reasons"]
    land(price_shop, 100, count=60)
    assert update(price_shop)["decision"] == "promote"
    ledger = ledger_of(price_shop, 6)
    assert ledger.set_aside == {} and ledger.rows.balanced
    # the twelve views kept their content but for the price of a view, so all 72 rows changed
    assert (ledger.own_rows.updated, ledger.own_rows.set_aside) == (72, 0)


def test_a_plan_that_was_overtaken_trains_nothing(price_shop_an_hour_later: Settings) -> None:
    plan = {"task": "price", "champion": 1, "versions": {"events": 2}, "start": 1}
    done = updating.update(plan, price_shop_an_hour_later, NOW)
    assert (done["version"], done["decision"]) == (None, "overtaken")
    assert open_registry(price_shop_an_hour_later).versions("price") == [1, 2]


def test_an_update_beside_a_retrain_of_its_task_is_no_failure_and_leaves_its_rows_to_the_next(
    price_shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(price_shop, 100)
    monkeypatch.setattr(updating, "locks_of", lambda home, url: file_locks(home / "locks", 0.1))
    with ThreadPoolExecutor(1) as other, file_locks(price_shop.home / "locks")("learn-price"):
        done = other.submit(update, price_shop).result()
    assert (done["version"], done["decision"]) == (None, "waits")
    assert update(price_shop)["decision"] == "promote"


def test_a_challenger_that_was_overtaken_is_held_and_its_hours_are_learnt_anew(
    price_shop_an_hour_later: Settings
) -> None:
    settings = price_shop_an_hour_later
    roll_back(settings, to=1)
    land(settings, 101)
    assert update(settings)["decision"] == "promote"
    roll_back(settings, to=2)
    overtaken = {"action": "overtaken", "champion_before": 2, "champion_after": 2}
    assert promote(settings, 3) == promote(settings, 3) == overtaken
    assert log(settings) == [("first", 1), ("hold", 3), ("promote", 2), ("rollback", 1), ("rollback", 2)]
    assert updating.plan("price", settings)["start"] == 2


def test_what_a_killed_process_registered_is_taken_up_and_not_trained_twice(price_shop: Settings) -> None:
    land(price_shop, 100)
    first = update(price_shop)
    client = open_registry(price_shop)._client
    client.delete_registered_model_alias("evergreen-price", "challenger")
    said: list[str] = []
    second = updating.update(updating.plan("price", price_shop), price_shop, NOW, report=said.append)
    assert second == first and "not" not in said[0].split(":")[0] and len(said) == 1
    registry = open_registry(price_shop)
    assert registry.versions("price") == [1, 2]
    assert registry.aliases("price") == {"champion": 1, "challenger": 2}


def test_a_promotion_killed_before_its_row_in_the_log_is_completed_by_the_next_plan(
    price_shop_an_hour_later: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = price_shop_an_hour_later

    class Killed(BaseException):
        """Nothing may catch it."""

    def killed(log: DecisionLog, row: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(DecisionLog, "append", killed)
        roll_back(settings, to=1)
    assert open_registry(settings).champion("price") == 1 and ("rollback", 1) not in log(settings)
    updating.plan("price", settings)
    assert ("rollback", 1) in log(settings)


def test_a_retrain_killed_before_its_promotion_is_taken_up_and_a_decided_one_is_not(
    price_shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_to(monkeypatch, 10_000)
    first = updating.retrain("price", price_shop, NOW, "weekly", report=lambda line: None)
    assert (first["version"], first["decision"]) == (2, "hold")
    assert updating.retrain("price", price_shop, NOW, "weekly", report=lambda line: None) == first
    other = updating.retrain("price", price_shop, NOW, "weekly", days=2, report=lambda line: None)
    assert other["version"] == 3
    promote(price_shop, 2)
    assert updating.retrain("price", price_shop, NOW, "weekly", report=lambda line: None)["version"] == 4


class RenewedLearner(PriceLearner):
    """The learner after its code was changed: a checkpoint must have something that older ones have not."""

    def state(self) -> State:
        state = super().state()
        return State(state.arrays, {**state.meta, "currency": "EUR"})

    @classmethod
    def restore(cls, state: State) -> RenewedLearner:
        assert state.meta["currency"]
        learner = super().restore(state)
        learner.__class__ = cls
        return learner


@pytest.mark.slow
def test_a_champion_that_cannot_score_is_a_finding_and_a_person_may_force_the_retrain(
    price_shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PriceTask, "learner", lambda task, seed: RenewedLearner(seed))
    monkeypatch.setattr(PriceTask, "restore", lambda task, state: RenewedLearner.restore(state))
    land(price_shop, 100)
    done = update(price_shop)
    assert (done["version"], done["decision"]) == (None, "cannot-score")
    assert "Version 1 must load and score" in done["reasons"][0] and "KeyError: 'currency'" in done["reasons"][0]
    assert update(price_shop) == done and log(price_shop) == [("cannot-score", 1), ("first", 1)]
    assert [one["condition"] for one in open_alerts(price_shop)] == ["cannot-score-price"]
    assert updating.behind("price", price_shop)  # its rows are still to be learnt, by whoever can
    anew = updating.retrain("price", price_shop, NOW, "new schema", report=lambda line: None)
    assert (anew["version"], anew["decision"]) == (2, "hold")
    assert "Version 1 must load and score" in anew["reasons"][0] and "against the baseline" in anew["reasons"][1]
    assert promote(price_shop, 2)["champion_after"] == 1
    with pytest.raises(RegistryError, match="must say why"):
        forced(open_registry(price_shop), "price", 2, who="ann", why=" ", decided_at=NOW)
    forced(open_registry(price_shop), "price", 2, who="ann", why="prices have a currency now", decided_at=NOW)
    (row,) = [row for row in open_registry(price_shop).decisions("price").to_pylist() if row["action"] == "force"]
    assert (row["who"], row["champion_before"], row["champion_after"]) == ("ann", 1, 2)
    land(price_shop, 101)
    assert update(price_shop)["decision"] == "promote"
    assert not open_alerts(price_shop)


@pytest.mark.slow
def test_a_lineage_whose_first_model_was_deleted_is_told_and_the_retrain_begins_another(
    price_shop_an_hour_later: Settings
) -> None:
    import mlflow

    shop = price_shop_an_hour_later
    mlflow.MlflowClient(shop.tracking_uri).delete_model_version("evergreen-price", "1")
    land(shop, 101)
    done = update(shop)
    assert (done["version"], done["decision"]) == (None, "cannot-score") and "must have version 1" in done["reasons"][0]
    assert [one["condition"] for one in open_alerts(shop)] == ["cannot-score-price"]
    anew = updating.retrain("price", shop, NOW, "the watch asks for it", report=lambda line: None)
    assert (anew["version"], anew["decision"]) == (3, "promote")
    assert promote(shop, 3)["champion_after"] == 3
    land(shop, 102)
    assert update(shop)["decision"] == "promote"
    assert not open_alerts(shop)


@pytest.mark.slow
def test_a_lineage_whose_first_model_has_lost_its_files_is_told_and_the_retrain_begins_another(
    price_shop_an_hour_later: Settings
) -> None:
    import mlflow

    shop = price_shop_an_hour_later
    client = mlflow.MlflowClient(shop.tracking_uri)
    run = client.get_run(str(client.get_model_version("evergreen-price", "1").run_id))
    place = Path(str(run.info.artifact_uri).removeprefix("file://"))
    place.rename(place.with_name("lost"))  # a copy's files are those of the first home
    try:
        land(shop, 101)
        done = update(shop)
        assert done["decision"] == "cannot-score" and "must have its checkpoint in the artifact" in done["reasons"][0]
        assert [one["condition"] for one in open_alerts(shop)] == ["cannot-score-price"]
        anew = updating.retrain("price", shop, NOW, "the watch asks for it", report=lambda line: None)
        assert promote(shop, anew["version"])["champion_after"] == anew["version"]
        land(shop, 102)
        assert update(shop)["decision"] == "promote" and not open_alerts(shop)
    finally:
        place.with_name("lost").rename(place)


def test_a_registry_put_back_from_a_backup_gives_no_number_again_that_the_log_speaks_of(
    price_shop_an_hour_later: Settings, first_price_shop: Path
) -> None:
    shop = price_shop_an_hour_later
    assert open_registry(shop).champion("price") == 2
    shutil.copy(first_price_shop / "mlflow.db", shop.home / "mlflow.db")  # as it was when version 1 served
    done = update(shop)
    assert (done["version"], done["decision"]) == (3, "promote") and promote(shop, 3)["champion_after"] == 3
    (lost,) = [one for one in open_registry(shop).entries("price") if one.number == 2]
    assert "gone from the registry" in lost.retired
    quality = open_lake(shop).arrow("quality").to_pylist()
    assert {row["challenger"] for row in quality if row["role"] == "challenger"} == {1, 2, 3}


@pytest.mark.slow
def test_a_lake_put_back_from_a_backup_is_told_until_a_retrain_learns_what_it_holds(
    price_shop_an_hour_later: Settings, first_price_shop: Path
) -> None:
    shop = replace(price_shop_an_hour_later, tasks=("price",))
    shutil.rmtree(shop.home / "lake")
    shutil.copytree(first_price_shop / "lake", shop.home / "lake")  # version 1 of events; the champion has learnt 2
    assert "it was put back to an earlier state" in updating.plan("price", shop)["nothing_because"]
    assert "put back to an earlier state" in watch(shop, NOW, "hourly")["retrain"]["price"]
    anew = updating.retrain("price", shop, NOW, "the watch asks for it", report=lambda line: None)
    assert promote(shop, anew["version"])["champion_after"] == anew["version"]
    land(shop, 100)
    assert update(shop)["decision"] == "promote"


@pytest.mark.slow
def test_an_update_is_held_up_to_the_windows_that_its_lineage_learnt_long_ago(
    price_shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "WANTED_UNITS", 30)  # a span of hours, not of weeks
    monkeypatch.setattr(PriceTask, "gate", replace(PriceTask.gate, slice_margin=0.9, least_units=5))
    updating.retrain("price", price_shop, NOW, "shorter span", report=lambda line: None)
    roll_back(price_shop, to=2)
    land(price_shop, 100)
    done = update(price_shop)
    assert done["version"] == 3
    reasons = json.loads(open_registry(price_shop).tags("price", 3)["evergreen.reasons"])
    assert any("on old windows against the champion" in reason for reason in reasons), reasons


def test_a_machine_short_of_memory_is_no_fault_of_the_model() -> None:
    for error in (MemoryError(), OSError("no space left on device")):
        with pytest.raises(type(error)), asking(1):
            raise error
    with pytest.raises(CannotScore, match=r"Version 7 .* KeyError: 'size'"), asking(7):
        raise KeyError("size")


def test_after_a_rollback_the_same_hours_are_not_learnt_in_a_circle(price_shop_an_hour_later: Settings) -> None:
    price_shop = price_shop_an_hour_later
    roll_back(price_shop, to=1)
    assert "version 2" in updating.plan("price", price_shop)["nothing_because"]
    land(price_shop, 101)
    assert updating.plan("price", price_shop)["start"] == 1


def test_a_corrected_hour_is_one_more_update_of_the_rows_that_differ(price_shop: Settings) -> None:
    rows = purchases(50)
    prices = rows["price"].to_pylist()
    prices[3] += 0.5
    corrected = rows.set_column(rows.schema.get_field_index("price"), "price", pa.array(prices, pa.float64()))
    publish(open_lake(price_shop), EVENTS, [hour(50)], corrected.slice(0, 11))  # one row differs, one is gone
    done = update(price_shop)
    own = ledger_of(price_shop, done["version"]).own_rows
    assert (own.inserted, own.updated, own.deleted) == (0, 1, 1) and own.balanced
    assert done["window"] == hour(99).start.isoformat()  # the newest window that it knows is as before


def test_a_retrain_starts_a_lineage_of_its_own(price_shop: Settings) -> None:
    land(price_shop, 100)
    done = updating.retrain("price", price_shop, NOW, "aging", days=3, report=lambda line: None)
    tags = open_registry(price_shop).tags("price", done["version"])
    assert (tags["evergreen.parent"], tags["evergreen.compared_with"]) == ("", "1")
    assert (tags["evergreen.why"], tags["evergreen.days"]) == ("aging", "3")
    ledger = ledger_of(price_shop, done["version"])
    assert (ledger.kind, ledger.base, ledger.learnt_from) == ("retrain", None, {"events": -1})
    assert ledger.joined_until >= ledger_of(price_shop, 1).joined_until and ledger.rows.balanced


def test_planning_and_promoting_load_no_tensorflow(price_shop: Settings) -> None:
    script = f"""
import sys
from datetime import UTC, datetime
from pathlib import Path
from pipeline import examples, updating
from pipeline.tasks import catalogue
from tests.small_shop import settings_of
catalogue.TASKS["price"] = catalogue.Entry("tests.price_task", "PriceTask", "events")
settings = settings_of(Path({str(price_shop.home)!r}))
assert not updating.behind("price", settings) and not updating.behind("recommend", settings)
assert updating.promote("price", 1, settings, datetime(2026, 3, 1, tzinfo=UTC))["champion_after"] == 1
assert not {{"tensorflow", "keras"}} & set(sys.modules), "TensorFlow was imported"
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
