"""A profile says of a user what their events say, and which; it is made anew for those who changed, and goes with them.

A tea shop made by hand: two teas at 2 and 4 (usual price 3), a mug at 10, and a thing without a category.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from fastapi.testclient import TestClient

from models.blend import untouched
from pipeline import updating, user_profile_facts, user_profile_updates
from pipeline.forgetting import forget
from pipeline.lake import Lake, open_lake
from pipeline.masking import Mask
from pipeline.quality import faults_of, read_suites
from pipeline.registry import open_registry
from pipeline.schema import EVENTS, ITEMS
from pipeline.served_models import ServedModels
from pipeline.serving import create_app
from pipeline.settings import REPOSITORY, Settings, SettingsError, read_settings
from pipeline.snapshot import Snapshot
from pipeline.tasks.recommend_profiles import answers_for_profiles
from pipeline.user_profile_facts import catalogue_of, facts_of
from pipeline.user_profile_updates import ProfilesStopped, flat, update
from pipeline.user_profiles import Profile, main, read_profile
from pipeline.window import HOUR, Window
from tests.benchmarks.bench_recommend import random_recommender
from tests.small_shop import publish, publish_hours, settings_of, small_shop

T0 = datetime(2026, 1, 5, 9, tzinfo=UTC)  # a Monday
DAY = timedelta(days=1)
KEY = "k" * 64
ITEMS_SOLD = (("tea1", "tea", 2.0), ("tea2", "tea", 4.0), ("mug", "mugs", 10.0), ("thing", None, 5.0))


def user(name: str) -> str:
    return Mask(KEY).value(name)


def event(name: str, who: str, kind: str, item: str | None, days: float, **values: Any) -> dict[str, Any]:
    """An event `days` after T0 that landed in its hour."""
    time = T0 + days * DAY
    window = Window.containing(time)
    bought = {"quantity": 1.0, "price": 1.0} if kind in ("purchase", "return") else {}
    return {
        "event_id": name, "event_type": kind, "event_time": time, "user_id": user(who), "item_id": item,
        "hour": window.start, "landed_window": window.start, "landed_date": window.start.date(),
        "source_file": f"{window.folder}/a.jsonl", "source_row": 1, **bought, **values,
    }


def land(settings: Settings, *rows: dict[str, Any], also: tuple[Window, ...] = ()) -> None:
    """Publishes the rows, each window of theirs (and `also`) in the place of what it held."""
    windows = sorted({Window(row["landed_window"]) for row in rows} | set(also))
    publish(open_lake(settings), EVENTS, windows, pa.Table.from_pylist(list(rows), EVENTS.table_schema))


ANN = (
    event("a1", "ann", "view", "tea1", 0), event("a2", "ann", "purchase", "tea1", 0.001, price=2.0, basket_id="b1"),
    event("a3", "ann", "purchase", "mug", 28.001, price=10.0), event("a4", "ann", "view", "thing", 28.001),
)
BOB = tuple(event(f"b{n}", "bob", "purchase", "tea1", 7 * n, price=2.0) for n in range(3))
CAT = (
    *(event(f"c{n}", "cat", "purchase", "mug", 2 + n, price=price) for n, price in enumerate((10.0, 15.0, 12.0))),
    event("c4", "cat", "purchase", "tea2", 6, price=4.0), event("c5", "cat", "return", "tea2", 7, price=4.0),
)


@pytest.fixture(scope="module")
def first_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("profiles")
    settings = shop_at(home)
    window = Window(T0)
    publish(open_lake(settings), ITEMS, [window], pa.Table.from_pylist([{
        "change_id": item, "item_id": item, "change_time": T0, "category": category, "price": price, "hour": T0,
        "landed_window": T0, "landed_date": T0.date(), "source_file": "a", "source_row": 1,
    } for item, category, price in ITEMS_SOLD], ITEMS.table_schema))
    guest = event("g1", "nobody", "view", "mug", 1) | {"user_id": None}
    land(settings, *ANN, *BOB, *CAT, guest)
    assert update(settings).made == 3
    return home


def shop_at(home: Path) -> Settings:
    # without `recommend` there is no champion to ask and MLflow stays away
    return replace(settings_of(home), tasks=("demand",), derived=("profiles",), mask_key=KEY)


@pytest.fixture
def shop(first_home: Path, tmp_path: Path) -> Settings:
    shutil.copytree(first_home / "lake", tmp_path / "lake")
    return shop_at(tmp_path)


@pytest.fixture(scope="module")
def lake(first_home: Path) -> Lake:
    return open_lake(shop_at(first_home))


def profile(lake: Lake, name: str) -> Profile:
    found = read_profile(lake, user(name))
    assert found is not None
    return found


def contents(lake: Lake) -> list[dict[str, Any]]:
    """The table but for when and from which versions each row was made."""
    rows = lake.arrow("user_profiles").sort_by("user_id").to_pylist()
    return [{name: row[name] for name in row if name not in ("as_of", "events_version", "items_version")}
            for row in rows]


# -- what a profile says ------------------------------------------------------------------------------------------


def test_an_interest_halves_in_four_weeks_and_is_the_sum_of_its_events(lake: Lake) -> None:
    mugs, tea = profile(lake, "ann").interests
    assert (mugs.category, tea.category) == ("mugs", "tea")
    assert mugs.weight == pytest.approx(1.0)
    assert tea.weight == pytest.approx(0.5 * (1.0 + 0.1), rel=1e-3)
    assert [one.event_id for one in tea.evidence] == ["a2", "a1"]
    assert sum(one.weight for one in tea.evidence) == pytest.approx(tea.weight)
    assert (tea.evidence[0].item_id, tea.evidence[0].event_time) == ("tea1", ANN[1]["event_time"])
    assert tea.evidence[0].landed_window == T0 and tea.evidence[0].source_file == "2026-01-05/09/a.jsonl"


def test_shares_are_of_everything_also_of_what_has_no_category(lake: Lake) -> None:
    mugs, tea = profile(lake, "ann").interests
    whole = 1.0 + tea.weight + 0.1  # the thing was viewed
    assert (mugs.share, tea.share) == (pytest.approx(1.0 / whole), pytest.approx(tea.weight / whole))


def test_a_return_takes_its_purchase_back(lake: Lake) -> None:
    cat = profile(lake, "cat")
    assert [one.category for one in cat.interests] == ["mugs"]
    assert cat.spent == pytest.approx(10.0 + 15.0 + 12.0)


def test_the_price_band_is_what_they_pay_over_the_usual_price_of_the_category(lake: Lake) -> None:
    bob, cat = profile(lake, "bob"), profile(lake, "cat")
    assert (bob.price_band, bob.price_p50) == ("below", pytest.approx(2.0 / 3.0))
    assert (cat.price_p25, cat.price_p50, cat.price_p75) == (1.0, 1.2, 4.0 / 3.0)
    assert cat.price_band == "usual" and [one.event_id for one in cat.price_evidence] == ["c0", "c2", "c4"]


def test_two_purchases_are_no_price_band(lake: Lake) -> None:
    ann = profile(lake, "ann")
    assert (ann.price_purchases, ann.price_band) == (2, None)


def test_rhythm_is_the_median_pause_between_visits_and_the_hours_and_days_they_begin(lake: Lake) -> None:
    bob = profile(lake, "bob")
    assert (bob.visits, bob.days_between_visits, bob.hours, bob.weekdays) == (3, 7.0, (9,), (1,))
    assert profile(lake, "ann").visits == 2  # looking and buying a minute later is one visit


def test_recency_counts_from_the_end_of_the_newest_landed_window(lake: Lake) -> None:
    bob = profile(lake, "bob")
    assert bob.as_of == T0 + 28 * DAY + HOUR
    assert bob.days_since(bob.as_of)["last_purchase"] == pytest.approx(14 + 1 / 24)
    assert bob.last_purchase_id == "b2"


def test_what_was_bought_in_two_orders_is_bought_regularly(lake: Lake) -> None:
    assert profile(lake, "bob").regular_categories == ("tea",)
    assert profile(lake, "ann").regular_categories == ()


# orders, their price, days since the last -> segment, days after the last order at which it changes
SEGMENTS = {
    "looking": (0, 0.0, 1, None), "new": (1, 1.0, 58, 58), "returning": (2, 1.0, 1, 58), "loyal": (5, 1.0, 1, 58),
    "best": (5, 20.0, 1, 58), "cooling": (4, 1.0, 59, 155), "at risk": (5, 20.0, 59, 155),
    "lapsed": (4, 1.0, 156, None), "lost": (5, 1.0, 156, None),
}


def test_the_segment_follows_from_orders_spending_and_days(tmp_path: Path) -> None:
    settings = shop_at(tmp_path)
    rows = [event("v", "looking", "view", "mug", 200)]
    for segment, (orders, price, days_ago, _) in SEGMENTS.items():
        rows += [event(f"{segment}{n}", segment, "purchase", "mug", 200 - days_ago - n, price=price)
                 for n in range(orders)]
    land(settings, *rows)
    tables = Snapshot(open_lake(settings), {"events": open_lake(settings).version("events"), "items": -1})
    users = [user(segment) for segment in SEGMENTS]
    facts = {row["user_id"]: row for row in facts_of(
        tables, users, catalogue_of(tables), 100.0, T0 + 200 * DAY
    ).to_pylist()}
    for segment, (_, _, days_ago, until_days) in SEGMENTS.items():
        found = facts[user(segment)]
        assert found["segment"] == segment
        last = T0 + (200 - days_ago) * DAY
        assert found["segment_until"] == (None if until_days is None else last + until_days * DAY), segment


def test_the_champions_answers_are_summed_by_category_without_what_is_bought_regularly() -> None:
    compact = random_recommender(40, np.random.default_rng(0))
    ids = compact.ids[1:].tolist()
    categories = {item: ("a", "b", "c", "d", None)[place % 5] for place, item in enumerate(ids)}
    histories = [[*ids[:3], "gone"], []]
    users = pa.table({
        "history_items": pa.array(histories, pa.list_(pa.string())),
        **{f"history_{name}": pa.array([[value] * len(one) for one in histories], pa.list_(pa.float32()))
           for name, value in (("counts", 1.0), ("views", 0.0), ("days", 1.0), ("habits", 1.0))},
        "regular_categories": pa.array([["a"], []], pa.list_(pa.string())),
    })
    catalogue = pa.table({"item_id": ids, "category": [categories[item] for item in ids]})
    first, second = answers_for_profiles(compact, users, catalogue).to_pylist()
    index = np.array([[*(compact.index[item] for item in ids[:3]), 0]])
    ones = np.ones((1, 4), np.float32)
    logits = compact.logits(index, ones, 0.0 * ones, ones, ones)[0].astype(float)
    chances = np.exp(logits[1:]) / np.exp(logits[1:]).sum()
    by_category = {
        name: sum(chance for chance, item in zip(chances, ids, strict=True) if categories[item] == name)
        for name in "bcd"
    }
    assert {one["category"] for one in first["next_categories"]} == set("bcd")
    for one in first["next_categories"]:
        assert one["probability"] == pytest.approx(by_category[one["category"]], rel=1e-4)
        best = max((item for item in ids if categories[item] == one["category"]), key=lambda i: chances[ids.index(i)])
        assert one["items"][0] == best
    assert len(second["next_categories"]) == 3 and len(first["vector"]) == compact.arrays["items"].shape[1]
    unweighed = compact.under({"blend": untouched()})
    taste = unweighed.reasons(index, ones, ones, ones, None, np.arange(1, 41))["taste"]
    np.testing.assert_allclose(compact.arrays["items"][1:] @ np.array(first["vector"], np.float32), taste, rtol=1e-4)


# -- whose is made anew -------------------------------------------------------------------------------------------


def test_only_who_changed_is_made_anew(shop: Settings) -> None:
    lake = open_lake(shop)
    before = {row["user_id"]: row for row in lake.arrow("user_profiles").to_pylist()}
    land(shop, event("a9", "ann", "cart", "tea2", 30), event("d1", "dan", "view", "mug", 30))
    done = update(shop)
    assert (done.made, done.gone, done.whole) == (2, 0, None)
    after = {row["user_id"]: row for row in lake.arrow("user_profiles").to_pylist()}
    assert {name for name in after if after[name] != before.get(name)} == {user("ann"), user("dan")}


def test_an_update_with_nothing_new_writes_nothing(shop: Settings) -> None:
    version = open_lake(shop).version("user_profiles")
    assert update(shop).made == 0
    assert open_lake(shop).version("user_profiles") == version


def test_a_correction_replaces_in_both_users_and_who_lost_all_events_goes(shop: Settings) -> None:
    lake = open_lake(shop)
    # the hour of ann's first two again, without them
    moved, kept = event("b2", "cat", "purchase", "tea1", 14, price=2.0), event("b0", "bob", "view", "tea1", 0)
    land(shop, moved, kept, also=tuple(Window.containing(row["event_time"]) for row in ANN[2:]))
    done = update(shop)
    assert (done.made, done.gone) == (2, 1) and read_profile(lake, user("ann")) is None
    assert (profile(lake, "bob").orders, profile(lake, "cat").events) == (1, 6)


def test_step_by_step_the_table_ends_as_if_everybodys_were_made_anew(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = open_lake(shop)
    land(  # the hour of b1 and c5 now has b1 alone, and it is dan's
        shop, event("a9", "ann", "cart", "tea2", 30), event("d1", "dan", "search", "mug", 30, query="mug"),
        event("b1", "dan", "purchase", "tea1", 7, price=3.0),
    )
    assert update(shop).made == 4
    stepwise = contents(lake)
    monkeypatch.setattr(user_profile_updates, "RULES", 99)
    done = update(shop)
    assert (done.made, done.whole) == (4, "the rules have changed")
    assert contents(lake) == stepwise


def test_after_four_weeks_everybodys_is_made_anew_with_what_is_much_to_spend_by_then(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_profile_facts, "_LEAST_BUYERS", 2)
    lake = open_lake(shop)
    days = (pc.max(lake.arrow("events")["landed_window"]).as_py() - T0).days  # at which all were made
    land(shop, event("a8", "ann", "purchase", "tea2", days + 27, price=50.0))
    assert update(shop).whole is None and profile(lake, "bob").high_spend is None
    land(shop, event("a9", "ann", "purchase", "tea2", days + 28, price=50.0))
    done = update(shop)
    assert (done.whole, done.made) == ("everybody's are made anew every 28 days", 3)
    assert {profile(lake, name).high_spend for name in ("ann", "bob", "cat")} == {profile(lake, "ann").high_spend}
    assert profile(lake, "bob").high_spend is not None and update(shop).made == 0


def test_time_alone_changes_a_segment(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_profile_updates, "_RENEWED_DAYS", 1_000)
    lake = open_lake(shop)
    assert profile(lake, "bob").segment == "returning"
    land(shop, event("a9", "ann", "view", "mug", 14 + 59))
    assert update(shop).made == 3  # ann, and those whose segment's time was over
    assert profile(lake, "bob").segment == "cooling"


def test_what_a_killed_run_left_is_completed_by_the_next(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(shop, event("a9", "ann", "cart", "tea2", 30), event("b9", "bob", "cart", "tea2", 30))
    monkeypatch.setattr(user_profile_updates, "_AT_ONCE", 1)
    keep, calls = Lake.keep, list[str]()

    def killed(lake: Lake, *given: Any, **named: Any) -> int:
        calls.append("keep")
        if len(calls) == 2:
            raise KeyboardInterrupt
        return keep(lake, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            update(shop)
    assert update(shop).made == 2
    assert [profile(open_lake(shop), name).events for name in ("ann", "bob")] == [5, 4]
    assert update(shop).made == 0


def test_forgetting_a_user_takes_the_profile_also_from_an_update_under_way(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = open_lake(shop)
    forget("user", "cat", shop, T0, "test")
    assert read_profile(lake, user("cat")) is None
    check = user_profile_updates._refuse_faulty

    def forgotten_meanwhile(rows: pa.Table, warnings: dict[str, int]) -> None:
        check(rows, warnings)
        forget("user", "bob", shop, T0, "test")

    with monkeypatch.context() as patch:
        patch.setattr(user_profile_updates, "_refuse_faulty", forgotten_meanwhile)
        update(shop, whole=True)
    assert [row["user_id"] for row in contents(lake)] == [user("ann")]


# -- the check ----------------------------------------------------------------------------------------------------

BAD = {
    "profile_user_missing": {"user_id": None}, "profile_user_unmasked": {"user_id": "ann@shop.example"},
    "profile_repeated": {}, "profile_without_events": {"events": 0},
    "profile_ends_before_it_begins": {"known_seconds": -1.0}, "profile_ahead_of_the_shop": {"ahead_seconds": 1.0},
    "interest_shares_exceed_one": {"interest_shares": 1.01}, "interest_without_evidence": {"bare_interests": 1},
    "interest_is_not_its_evidence": {"unexplained_interests": 1},
    "price_quantiles_disordered": {"least_price_step": -0.1},
    "price_far_from_usual": {"price_p50": 101.0}, "segment_unknown": {"segment": "whale"},
    "profile_without_visits": {"visits": 0}, "orders_negative": {"orders": -1},
    "returned_more_than_bought": {"spent": -0.01}, "next_categories_exceed_one": {"next_probability": 1.1},
    "vector_not_finite": {"vector_faults": 1}, "vector_without_version": {"vector_width": 8, "model_version": None},
}


def test_each_rule_of_the_suite_rejects_a_profile_and_all_pass_what_the_events_say(lake: Lake) -> None:
    assert {rule.name for rule in read_suites(REPOSITORY / "expectations" / "user_profiles.json").rows} == set(BAD)
    good = flat(lake.arrow("user_profiles"))
    assert faults_of("user_profiles", good).num_rows == 0
    rows = [
        good.to_pylist()[0] | {"user_id": f"{place:032x}"} | change for place, change in enumerate(BAD.values())
    ]
    rows[list(BAD).index("profile_repeated")]["user_id"] = rows[0]["user_id"] = f"{99:032x}"
    rows[0]["user_id"] = None
    rows.append(rows[list(BAD).index("profile_repeated")])
    faults = faults_of("user_profiles", pa.Table.from_pylist(rows, good.schema)).to_pylist()
    assert [fault["reason"] for fault in faults] == [*BAD, "profile_repeated"]


def test_faulty_profiles_are_not_written(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    version = open_lake(shop).version("user_profiles")
    facts = user_profile_updates.facts_of

    def wrong(*given: Any) -> pa.Table:
        found = facts(*given)
        at = found.schema.get_field_index("segment")
        return found.set_column(at, "segment", pa.array(["whale"] * len(found), pa.string()))

    monkeypatch.setattr(user_profile_updates, "facts_of", wrong)
    with pytest.raises(ProfilesStopped, match=r"3 of 3 do not, first [0-9a-f]{32}: segment_unknown"):
        update(shop, whole=True)
    assert open_lake(shop).version("user_profiles") == version


# -- commands and settings ----------------------------------------------------------------------------------------


def test_the_command_shows_a_raw_users_profile_with_its_evidence_and_never_the_raw_id(
    shop: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("HOME", str(shop.home)), ("MASK_KEY", KEY), ("TASKS", "demand,profiles")):
        monkeypatch.setenv(f"EVERGREEN_{name}", value)
    assert main(["show", "bob"]) == 0
    said = capsys.readouterr().out
    assert "Segment returning: 3 orders and 6.00" in said and "event b2" in said and user("bob") in said
    assert "bob" not in said
    assert main(["show", user("bob"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["interests"][0]["evidence"][0]["event_id"] == "b2"
    assert main(["show", "nobody"]) == 1
    assert "nobody" not in capsys.readouterr().err
    assert main(["update"]) == 0
    assert "0 profiles made" in capsys.readouterr().out


def test_a_profile_is_found_by_an_id_of_the_shop_that_looks_like_a_masked_one(
    shop: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "1234567890abcdef1234567890abcdef"  # a UUID, an MD5
    land(shop, event("h1", own, "purchase", "mug", 3))
    update(shop)
    for name, value in (("HOME", str(shop.home)), ("MASK_KEY", KEY), ("TASKS", "demand,profiles")):
        monkeypatch.setenv(f"EVERGREEN_{name}", value)
    for asked in (own, user(own)):
        assert main(["show", asked, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["user_id"] == user(own)
    assert main(["show", own[::-1]]) == 1
    assert own[::-1] not in capsys.readouterr().err


def test_the_server_tells_who_a_customer_is_by_the_raw_or_the_masked_id(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EVERGREEN_MODEL_CACHE", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")  # which a server sets for its process
    with TestClient(create_app(shop, (), ServedModels(shop, shop.home / "serving", ()))) as client:
        answer = client.post("/v1/profile", json={"user_id": "bob", "evidence": True})
        assert answer.status_code == 200, answer.text
        told, wanted = answer.json(), profile(open_lake(shop), "bob")
        assert set(told) == set(wanted.as_json()) and told["user_id"] == user("bob") and told["vector"] is None
        assert (told["orders"], told["spent"]) == (wanted.orders, wanted.spent)
        assert datetime.fromisoformat(told["last_purchase"]) == wanted.last_purchase
        assert told["interests"][0]["evidence"][0]["event_id"] == "b2" and "bob" not in answer.text
        short = client.post("/v1/profile", json={"user_id": user("bob")}).json()
        assert short["segment"] == "returning" and short["interests"][0]["evidence"] == []
        unknown = client.post("/v1/profile", json={"user_id": "somebody else"})
        assert unknown.status_code == 404 and "somebody else" not in unknown.text

        for entry in (shop.home / "lake" / "user_profiles" / "_delta_log").glob("*.json"):
            entry.write_text("no table any more")
        assert client.post("/v1/profile", json={"user_id": "bob"}).status_code == 503
    off = replace(shop, derived=())
    with TestClient(create_app(off, (), ServedModels(off, shop.home / "serving", ()))) as client:
        refused = client.post("/v1/profile", json={"user_id": "bob"})
        assert refused.status_code == 404 and "EVERGREEN_TASKS" in refused.text


def test_profiles_are_switched_on_among_the_tasks_and_learn_nothing() -> None:
    given = {"EVERGREEN_MASK_KEY": KEY, "EVERGREEN_TASKS": "recommend,profiles demand"}
    settings = read_settings(given)
    assert (settings.tasks, settings.derived) == (("recommend", "demand"), ("profiles",))
    with pytest.raises(SettingsError, match="must name a task that learns"):
        read_settings(given | {"EVERGREEN_TASKS": "profiles"})


# -- with a champion ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_vectors_say_which_version_made_them_and_a_retrain_makes_all_anew(
    tmp_path: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    settings = replace(settings_of(tmp_path), derived=("profiles",))
    source = small_shop(users=200, history_days=2, history_events=2_500)
    publish_hours(settings, source, 0, 48)
    assert update(settings).model_version is None  # before the first model
    learn(updating.retrain("recommend", settings, T0, "first", report=str)["version"], settings)
    done = update(settings)
    assert (done.model_version, done.whole) == (1, "the champion is of another lineage")
    everybody = done.made
    rows = made_by(settings)
    assert set(rows.values()) == {(1, 1)} and len(rows) == everybody
    publish_hours(settings, source, 48)
    learn(updating.update(updating.plan("recommend", settings), settings, T0, report=str)["version"], settings)
    done = update(settings)
    assert done.model_version == 2 and done.whole is None and 0 < done.made < everybody
    versions = list(made_by(settings).values())
    assert versions.count((2, 1)) == done.made and versions.count((1, 1)) == len(versions) - done.made > 0
    learn(updating.retrain("recommend", settings, T0, "again", report=str)["version"], settings)
    assert update(settings).whole == "the champion is of another lineage"
    assert set(made_by(settings).values()) == {(3, 3)}
    lake = open_lake(settings)
    some = [found for name in rows if (found := read_profile(lake, name)) and found.orders]
    assert all(found.vector and found.next_categories for found in some)
    for found in some:
        assert not {one.category for one in found.next_categories or ()} & set(found.regular_categories)


def learn(version: int, settings: Settings) -> None:
    """The version serves, whatever the gate says."""
    registry = open_registry(settings)
    registry.promote(
        "recommend", version, registry.champion("recommend"), who="test", reasons=[], action="force", decided_at=T0
    )


def made_by(settings: Settings) -> dict[str, tuple[int, int]]:
    rows = open_lake(settings).arrow("user_profiles", columns=["user_id", "model_version", "model_base"]).to_pylist()
    return {row["user_id"]: (row["model_version"], row["model_base"]) for row in rows}
