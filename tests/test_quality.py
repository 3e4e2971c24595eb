"""What the checks promise: every expectation rejects something, the first rule names the row, quiet hours pass."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import weakref
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline import judging, quality
from pipeline.quality import WINDOW_FACTS, Checked, SuiteError, WindowStopped, check, read_suites
from pipeline.schema import FEEDS
from pipeline.window import Window

REPOSITORY = Path(__file__).resolve().parent.parent
ONLINE_RETAIL = REPOSITORY.parent / "shared" / "data" / "online_retail.parquet"
START = datetime(2011, 11, 14, 9, tzinfo=UTC)
MASKED = "0123456789abcdef" * 2

VIEW = {"event_id": "e1", "event_type": "view", "event_time": START, "user_id": MASKED, "item_id": "85123A"}
BOUGHT = VIEW | {"event_type": "purchase", "quantity": 2.0, "price": 2.55}
CHANGE = {"change_id": "c1", "item_id": "85123A", "change_time": START, "title": "lamp", "price": 2.55, "stock": 4.0}
MESSAGE = {"message_id": "m1", "message_time": START, "text": "Where is my\nparcel?", "user_id": MASKED}
GOOD = {"events": BOUGHT, "items": CHANGE, "messages": MESSAGE}

# rule -> what is changed in the good row of the feed (None: the case is built in the test itself)
BAD_ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "events": {
        "event_id_missing": {"event_id": None},
        "event_id_repeated": {},
        "event_id_length": {"event_id": "e" * 201},
        "event_id_control_characters": {"event_id": "e\x001"},
        "event_type_missing": {"event_type": None},
        "event_type_unknown": {"event_type": "wishlist"},
        "event_time_missing": {"event_time": None},
        "user_id_unmasked": {"user_id": "anna@example.org"},
        "session_id_unmasked": {"session_id": MASKED.upper()},
        "event_without_item": {"item_id": None},
        "item_id_length": {"item_id": "x" * 10_000},
        "item_id_control_characters": {"item_id": "85123A\n"},
        "basket_id_control_characters": {"basket_id": "b\x7f"},
        "basket_id_length": {"basket_id": ""},
        "quantity_range": {"quantity": 0.0},
        "price_range": {"price": 1e308},
        "rating_range": {"rating": 0.0},
        "purchase_without_quantity": {"quantity": None},
        "purchase_without_price": {"price": None},
        "purchase_price_zero": {"price": 0.0},
        "return_without_quantity": {"event_type": "return", "quantity": None},
        "rating_without_value": {"event_type": "rating"},
        "search_without_query": {"event_type": "search"},
        "query_length": {"query": "q" * 1001},
        "unknown_item": {},
        "user_too_wide": {},
    },
    "items": {
        "change_id_missing": {"change_id": None},
        "change_id_repeated": {},
        "change_id_length": {"change_id": ""},
        "change_id_control_characters": {"change_id": "c\t1"},
        "item_id_missing": {"item_id": None},
        "item_id_length": {"item_id": "x" * 201},
        "item_id_control_characters": {"item_id": "\x1b[31m"},
        "change_time_missing": {"change_time": None},
        "title_length": {"title": "t" * 1001},
        "item_without_title": {"title": None},
        "description_length": {"description": "d" * 50_001},
        "category_length": {"category": "c" * 501},
        "brand_length": {"brand": "b" * 201},
        "price_range": {"price": -0.01},
        "stock_range": {"stock": -1.0},
    },
    "messages": {
        "message_id_missing": {"message_id": None},
        "message_id_repeated": {},
        "message_id_length": {"message_id": "m" * 201},
        "message_id_control_characters": {"message_id": "m\x02"},
        "message_time_missing": {"message_time": None},
        "text_missing": {"text": None},
        "text_length": {"text": "t" * 50_001},
        "text_control_characters": {"text": "PK\x03\x04"},
        "user_id_unmasked": {"user_id": "12346"},
        "channel_length": {"channel": "c" * 51},
        "channel_control_characters": {"channel": "mail\r"},
        "label_length": {"label": "l" * 101},
        "label_control_characters": {"label": "late\n"},
        "sentiment_unknown": {"sentiment": "Negative"},
        "answer_length": {"answer": "a" * 10_001},
        "answer_control_characters": {"answer": "It is on its way\x00"},
    },
}
# rule -> columns whose type or presence it guards: dropped or made text in the test
BAD_SHAPES = {
    "events": {
        "columns_missing": "basket_id",
        "event_time_type": "event_time",
        "quantity_type": "quantity",
        "price_type": "price",
        "rating_type": "rating",
    },
    "items": {
        "columns_missing": "brand",
        "change_time_type": "change_time",
        "price_type": "price",
        "stock_type": "stock",
    },
    "messages": {"columns_missing": "label", "message_time_type": "message_time"},
}
# rule -> facts of a window that it rejects; the good window has 1,000 rows, 1,000 usual
BAD_WINDOWS: dict[str, dict[str, Any]] = {
    "files_gone": {"files": 0, "files_gone": 2, "rows_in": 0, "readable": 0, "newest_minutes": None, "item_rows": 0},
    "unreadable_share_critical": {"quarantined": 501},
    "unreadable_share_high": {"quarantined": 201},
    "rejected_share_critical": {"readable": 50},
    "rejected_share_high": {"readable": 50},
    "nothing_usable": {"rows_in": 20, "readable": 0, "quarantined": 20},
    "volume_far_above_usual": {"rows_in": 5_001, "usual_rows": 3.0},
    "volume_above_usual": {"rows_in": 5_001},
    "volume_below_usual": {"rows_in": 99},
    "newest_row_old": {"newest_minutes": 1_441.0},
    "duplicate_share_high": {"duplicates": 201},
    "late_share_high": {"late": 501},
    "unknown_item_share": {"unknown_items": 201},
    "price_far_from_known": {"price_times_known": 0.19},
}


def rules_of(feed: str, part: str) -> list[str]:
    content = json.loads((REPOSITORY / "expectations" / f"{feed}.json").read_text())
    return [expectation["meta"]["rule"] for expectation in content[part]["expectations"]]


def rows_of(feed: str, *rows: dict[str, Any]) -> pa.Table:
    """Typed rows as ingest hands them over, the columns nullable so that a null can reach the check."""
    fields = [field.with_nullable(True) for field in FEEDS[feed].columns]
    return pa.Table.from_pylist(
        [dict.fromkeys(field.name for field in fields) | row for row in rows], pa.schema(fields)
    )


def facts_of(*windows: dict[str, Any]) -> pa.Table:
    good = {
        "files": 1,
        "files_gone": 0,
        "rows_in": 1_000,
        "readable": 1_000,
        "quarantined": 0,
        "duplicates": 0,
        "late": 0,
        "usual_rows": 1_000.0,
        "newest_minutes": 1.0,
        "item_rows": 1_000,
        "unknown_items": 0,
        "price_times_known": 1.0,
        "hour_of_week": 9,
    }
    return pa.Table.from_pylist(
        [{"landed_window": START + timedelta(hours=hour)} | good | window for hour, window in enumerate(windows)],
        WINDOW_FACTS,
    )


def checked(
    feed: str, *rows: dict[str, Any], facts: pa.Table | None = None, absent: str = "",
    unknown: list[bool] | None = None, widths: list[float | None] | None = None,
) -> Checked:
    return check(
        FEEDS[feed],
        rows_of(feed, *rows),
        facts if facts is not None else facts_of({}),
        frozenset(absent.split()),
        pa.array(unknown, pa.bool_()) if unknown is not None else None,
        pa.array(widths, pa.float64()) if widths is not None else None,
    )


def result_of(verdict: Checked, rule: str) -> dict[str, Any]:
    (result,) = (one for one in verdict.results["expectations"] if one["rule"] == rule)
    return result


@pytest.mark.parametrize("feed", list(FEEDS))
def test_every_expectation_has_a_case_that_it_rejects(feed: str) -> None:
    assert set(rules_of(feed, "rows")) == set(BAD_ROWS[feed]) | set(BAD_SHAPES[feed])
    extra = {"volume_far_above_usual", "unknown_item_share"} if feed != "events" else set()
    extra |= {"price_far_from_known"} if feed == "messages" else set()
    assert set(rules_of(feed, "window")) == set(BAD_WINDOWS) - extra


@pytest.mark.parametrize("feed", list(FEEDS))
def test_good_rows_in_a_good_window_break_nothing(feed: str) -> None:
    verdict = checked(feed, GOOD[feed], unknown=[False] if feed == "events" else None)
    assert not len(verdict.row_breaches)
    assert verdict.window_breaches == ()
    assert all(result["success"] for result in verdict.results["expectations"])
    json.dumps(verdict.results)


@cache
def all_bad_rows(feed: str) -> tuple[Checked, dict[str, range]]:
    """One check of a good row, number 0, and of bad rows for each rule on rows; which are whose."""
    rows, of_rule = [GOOD[feed] | {FEEDS[feed].key: "good"}], {}
    for rule, change in BAD_ROWS[feed].items():
        of_rule[rule] = range(len(rows), len(rows) + (2 if rule.endswith("_repeated") else 1))
        rows += [GOOD[feed] | {FEEDS[feed].key: f"of {rule}"} | change] * len(of_rule[rule])
    if feed != "events":
        return checked(feed, *rows), of_rule
    numbers = range(len(rows))
    return checked(
        feed, *rows, unknown=[row in of_rule["unknown_item"] for row in numbers],
        widths=[0.51 if row in of_rule["user_too_wide"] else 0.5 if row else None for row in numbers],
    ), of_rule


@pytest.mark.parametrize(("feed", "rule"), [(feed, rule) for feed, rules in BAD_ROWS.items() for rule in rules])
def test_row_rule_rejects_its_row_and_keeps_the_good_one(feed: str, rule: str) -> None:
    verdict, of_rule = all_bad_rows(feed)
    assert result_of(verdict, rule)["failed"] == len(of_rule[rule])
    reasons = {breach["row"]: breach["reason"] for breach in verdict.row_breaches.to_pylist()}
    noted = rule in {"unknown_item", "item_without_title"}
    assert [reasons.get(row) for row in of_rule[rule]] == [None if noted else rule] * len(of_rule[rule])
    assert 0 not in reasons


@pytest.mark.parametrize(("feed", "rule"), [(feed, rule) for feed, rules in BAD_SHAPES.items() for rule in rules])
def test_wrong_shape_of_the_table_stops_every_window(feed: str, rule: str) -> None:
    column = BAD_SHAPES[feed][rule]
    rows = rows_of(feed, GOOD[feed])
    if rule == "columns_missing":
        rows = rows.rename_columns([f"other_{name}" if name == column else name for name in rows.column_names])
    else:
        rows = rows.set_column(rows.column_names.index(column), column, pa.array([None], pa.timestamp("us")))
    if rule == "columns_missing":
        with pytest.raises(SuiteError, match=column):
            check(FEEDS[feed], rows, facts_of({}), frozenset())
        verdict = check(FEEDS[feed], rows, facts_of({}), frozenset({f"{feed}.{column}"}))
    else:
        verdict = check(FEEDS[feed], rows, facts_of({}), frozenset())
    assert [breach.rule for breach in verdict.window_breaches if breach.severity == "critical"] == [rule]


@cache
def all_bad_windows(feed: str) -> tuple[Checked, dict[str, Window]]:
    """One check of a good window and, after it, of one for each rule on windows; which is whose."""
    rules = rules_of(feed, "window")
    hours = {rule: START + timedelta(hours=hour) for hour, rule in enumerate(rules, 1)}
    rejected = [hours[rule] for rule in rules if rule.startswith("rejected") for _ in range(41)]
    key = FEEDS[feed].key
    rows = rows_of(feed, GOOD[feed] | {key: "good"}, *[GOOD[feed] | {key: None}] * len(rejected))
    rows = rows.append_column("landed_window", pa.array([START, *rejected], pa.timestamp("us", tz="UTC")))
    verdict = check(FEEDS[feed], rows, facts_of({}, *(BAD_WINDOWS[rule] for rule in rules)), frozenset())
    return verdict, {rule: Window(hour) for rule, hour in hours.items()}


@pytest.mark.parametrize(("feed", "rule"), [(feed, rule) for feed in FEEDS for rule in rules_of(feed, "window")])
def test_window_rule_rejects_its_window_and_keeps_the_good_one(feed: str, rule: str) -> None:
    verdict, of_rule = all_bad_windows(feed)
    about = [breach.window for breach in verdict.window_breaches if breach.rule == rule]
    if result_of(verdict, rule)["severity"] == "info":
        assert about == []
        assert str(of_rule[rule]) in result_of(verdict, rule)["windows"]
    else:
        assert of_rule[rule] in about
    assert all(breach.window != Window(START) for breach in verdict.window_breaches)


@pytest.mark.parametrize("feed", list(FEEDS))
def test_every_expectation_says_severity_reason_and_remedy(feed: str) -> None:
    suites = read_suites(REPOSITORY / "expectations" / f"{feed}.json")
    for rule in (*suites.rows, *suites.window):
        assert rule.severity in {"critical", "warning", "info"}
        assert len(rule.why) > 30, rule.name
        assert len(rule.remedy) > 20, rule.name
        assert rule.allowed


def test_first_rule_in_file_order_names_the_row() -> None:
    verdict = checked("events", BOUGHT | {"item_id": None, "quantity": -1.0, "price": -1.0})
    assert verdict.row_breaches["reason"].to_pylist() == ["event_without_item"]
    assert result_of(verdict, "quantity_range")["failed"] == 1
    assert result_of(verdict, "price_range")["failed"] == 1
    assert verdict.results["rejected"] == {"event_without_item": 1}


def test_details_say_what_was_seen_and_what_is_allowed() -> None:
    verdict = checked(
        "events",
        BOUGHT | {"event_id": "a", "quantity": 0.0},
        BOUGHT | {"event_id": "b", "event_type": "x\n"},
        BOUGHT | {"event_id": "c", "price": 1e308},
        BOUGHT | {"event_id": "d", "item_id": "i" * 10_000},
    )
    assert verdict.row_breaches["detail"].to_pylist() == [
        "quantity is 0.0; allowed: more than 0, at most 100,000",
        "event_type is 'x\\n'; allowed: one of view, cart, purchase, return, rating, search",
        "price is 1e+308; allowed: at least 0, at most 1,000,000,000",
        f"item_id is {'i' * 80}… (10,000 characters); allowed: a text of 1 to 200 characters",
    ]


def test_an_id_that_masking_missed_is_never_shown() -> None:
    verdict = checked("events", BOUGHT | {"user_id": "anna@example.org"})
    assert "anna" not in str(verdict.row_breaches.to_pylist()) + json.dumps(verdict.results)
    assert verdict.row_breaches["detail"][0].as_py().startswith("user_id is a text of 16 characters, not shown")


def test_infinity_and_not_a_number_cannot_pass_as_a_price() -> None:
    rows = [
        BOUGHT | {"event_id": str(number), "price": value} for number, value in enumerate((np.inf, -np.inf, np.nan))
    ]
    assert checked("events", *rows).row_breaches["row"].to_pylist() == [0, 1, 2]


def test_every_row_with_a_repeated_text_is_found() -> None:
    rows = [
        VIEW | {"event_id": f"e{number}", "item_id": "bad\x00" if number % 3 == 0 else "good"} for number in range(100)
    ]
    found = checked("events", *rows).row_breaches["row"].to_pylist()
    assert found == list(range(0, 100, 3))


def test_columns_that_a_shop_lacks_leave_their_rules_out() -> None:
    verdict = checked("events", VIEW | {"event_type": "purchase"}, absent="events.price events.quantity")
    assert not len(verdict.row_breaches)
    assert {"price_range", "purchase_without_price", "purchase_without_quantity"} <= set(verdict.results["left_out"])
    assert checked("events", VIEW | {"event_type": "purchase"}, absent="events.price").row_breaches[
        "reason"
    ].to_pylist() == ["purchase_without_quantity"]


def test_a_shop_without_a_catalogue_is_not_asked_for_known_items() -> None:
    facts = facts_of({"unknown_items": 1_000})
    assert checked("events", VIEW, facts=facts, absent="items.item_id").window_breaches == ()
    assert checked("events", VIEW, facts=facts).window_breaches[0].rule == "unknown_item_share"


def test_an_unknown_item_is_counted_and_kept() -> None:
    verdict = checked("events", VIEW, BOUGHT | {"event_id": "e2"}, unknown=[True, False])
    assert not len(verdict.row_breaches)
    assert result_of(verdict, "unknown_item")["failed"] == 1


@pytest.mark.parametrize(
    "quiet",
    [
        {"rows_in": 3, "readable": 3, "usual_rows": 200.0, "item_rows": 3},
        {"rows_in": 3, "readable": 0, "quarantined": 3, "usual_rows": 3.0, "item_rows": 0, "newest_minutes": None},
        {"rows_in": 0, "files": 0, "readable": 0, "usual_rows": 400.0, "item_rows": 0, "newest_minutes": None},
        {"rows_in": 1_114, "readable": 1_114, "usual_rows": 3.0},
        {"rows_in": 3_000, "readable": 3_000, "usual_rows": 1_000.0},
        {"rows_in": 1_000, "usual_rows": None},
        {"rows_in": 16, "readable": 1, "quarantined": 15, "usual_rows": None},
        {
            "rows_in": 30,
            "readable": 30,
            "duplicates": 29,
            "late": 30,
            "unknown_items": 30,
            "item_rows": 30,
            "usual_rows": None,
        },
    ],
    ids=[
        "night",
        "three bad rows",
        "closed",
        "one wholesale order",
        "Christmas",
        "no history",
        "corrections",
        "few and odd",
    ],
)
def test_a_quiet_or_busy_hour_is_not_stopped_by_chance(quiet: dict[str, Any]) -> None:
    breaches = checked("events", VIEW, facts=facts_of(quiet)).window_breaches
    assert [breach for breach in breaches if breach.severity == "critical"] == []
    if quiet.get("rows_in") != 3 or quiet.get("usual_rows") != 200.0:
        assert breaches == ()


def test_an_empty_window_without_rows_passes() -> None:
    empty = {"rows_in": 0, "files": 0, "readable": 0, "usual_rows": None, "item_rows": 0, "newest_minutes": None}
    for feed in FEEDS:
        verdict = check(
            FEEDS[feed],
            rows_of(feed),
            facts_of(empty),
            frozenset(),
            pa.array([], pa.bool_()) if feed == "events" else None,
        )
        assert not len(verdict.row_breaches)
        assert verdict.window_breaches == ()


def test_stopped_window_says_which_rule_what_was_seen_what_is_allowed_and_what_to_do() -> None:
    verdict = checked("events", VIEW, facts=facts_of({"quarantined": 700, "readable": 300}))
    critical = [breach for breach in verdict.window_breaches if breach.severity == "critical"]
    said = str(WindowStopped("events", critical, "items: also stopped."))
    for part in (
        "events: not published",
        "2011-11-14T09:00Z",
        "unreadable_share_critical",
        "70.0 % of the rows unreadable (700 of 1,000)",
        "at most 50 % of rows unreadable",
        "What to do: The page of this check lists the reasons",
        "items: also stopped.",
    ):
        assert part in said


def test_rows_of_several_windows_must_say_where_they_landed() -> None:
    with pytest.raises(ValueError, match="landed_window"):
        checked("events", VIEW, facts=facts_of({}, {}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"severity": "fatal"}, "severity is one of"),
        ({"notes": " "}, "`notes` must be a text"),
        ({"meta": {"remedy": "r"}}, "`meta.rule` must be a text"),
        ({"meta": {"rule": "r"}}, "`meta.remedy` must be a text"),
        ({"type": "expect_column_values_to_be_nice"}, "Great Expectations refuses it"),
        ({"kwargs": {"column": "price", "min_value": "2011-01-01"}}, "`min_value` must be a number; received '2011"),
        ({"kwargs": {"column": "price", "min_value": "cheap"}}, "Great Expectations refuses it"),
        ({"kwargs": {"column": ["price"], "min_value": 0}}, "Great Expectations refuses it"),
        ({"kwargs": {"column": "price", "least": 0}}, "Great Expectations refuses it"),
        ({"kwargs": {"column": "price", "row_condition": "a == 1"}}, "condition_parser"),
        (
            {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "price", "regex": "1"}},
            "`meta.allowed` must say",
        ),
        (
            {"type": "expect_column_mean_to_be_between", "meta": {"rule": "r", "remedy": "x", "allowed": "y"}},
            "neither single rows",
        ),
    ],
)
def test_a_wrong_expectation_is_refused_by_file_and_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    one = {
        "type": "expect_column_values_to_be_between",
        "kwargs": {"column": "price", "min_value": 0},
        "severity": "warning",
        "notes": "why",
        "meta": {"rule": "price_range", "remedy": "what"},
    }
    path = tmp_path / "events.json"
    path.write_text(json.dumps({"rows": {"expectations": [one | change]}, "window": {"expectations": []}}))
    with pytest.raises(SuiteError, match=r"events\.json, rows, expectation 1") as refused:
        read_suites(path)
    assert said in str(refused.value)


def test_a_rule_name_used_twice_is_refused(tmp_path: Path) -> None:
    one = {
        "type": "expect_column_values_to_not_be_null",
        "kwargs": {"column": "price"},
        "severity": "info",
        "notes": "why",
        "meta": {"rule": "same", "remedy": "what"},
    }
    path = tmp_path / "events.json"
    path.write_text(json.dumps({"rows": {"expectations": [one]}, "window": {"expectations": [one]}}))
    with pytest.raises(SuiteError, match="used twice: same"):
        read_suites(path)


def test_the_check_prints_and_logs_nothing(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        checked("events", VIEW)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_judged_frames_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[weakref.ref[pd.DataFrame]] = []
    judge = judging.judge

    def watched(rules: Any, frame: pd.DataFrame) -> Any:
        frames.append(weakref.ref(frame))
        return judge(rules, frame)

    monkeypatch.setattr(judging, "judge", watched)
    monkeypatch.setattr(quality, "judge", watched)
    for _ in range(3):
        checked("events", VIEW)
    gc.collect()
    assert len(frames) > 3
    assert len([frame for frame in frames if frame() is not None]) <= 1  # the last one: of windows, so tiny


def test_a_rule_with_a_condition_says_how_many_rows_it_was_about() -> None:
    prices = [None, 0.0, 2.5, 2.5, None]
    bought = [BOUGHT | {"event_id": f"e{number}", "price": price} for number, price in enumerate(prices)]
    verdict = checked("events", *bought, VIEW | {"event_id": "v", "price": 2.5})
    about = {one["rule"]: (one["checked"], one["failed"]) for one in verdict.results["expectations"]}
    assert about["purchase_without_price"] == (5, 2)
    assert about["purchase_price_zero"] == (3, 1)
    assert about["price_range"] == (4, 0)


@pytest.mark.parametrize("kinds", [2, 400])  # few pairs are possible, or more than there are rows
def test_each_different_row_is_judged_once_and_stands_for_all_like_it(kinds: int) -> None:
    draw = np.random.default_rng(0)
    columns = {
        "one": pa.array([None if n == 0 else f"t{n}" for n in draw.integers(0, kinds, 1000)]),
        "other": pa.array([float(n) for n in draw.integers(0, kinds, 1000)]),
    }
    coded = {name: column.dictionary_encode(null_encoding="encode") for name, column in columns.items()}
    chosen, place = judging._different(coded)
    rows = {name: coded[name].dictionary.take(chosen[name]).to_pylist() for name in coded}
    pairs = list(zip(rows["one"], rows["other"], strict=True))
    assert len(set(pairs)) == len(pairs)
    expected = list(zip(columns["one"].to_pylist(), columns["other"].to_pylist(), strict=True))
    assert [pairs[at] for at in place.tolist()] == expected


@pytest.mark.skipif(not ONLINE_RETAIL.exists(), reason="needs the UCI Online Retail file")
def test_a_year_of_a_real_shop_is_not_stopped() -> None:
    shop = pd.read_parquet(ONLINE_RETAIL)
    shop = shop[shop.InvoiceDate < "2011-03-01"]
    returned = shop.InvoiceNo.str.startswith("C")
    rows = pa.table(
        {
            "event_id": [str(number) for number in range(len(shop))],
            "event_type": np.where(returned, "return", "purchase"),
            "event_time": pa.array(shop.InvoiceDate.to_numpy()).cast(pa.timestamp("us", tz="UTC")),
            "user_id": pa.array(np.where(shop.CustomerID.isna(), None, MASKED), pa.string()),
            "session_id": pa.nulls(len(shop), pa.string()),
            "item_id": shop.StockCode.to_numpy(),
            "quantity": np.where(returned, -shop.Quantity, shop.Quantity).astype(float),
            "price": shop.UnitPrice.to_numpy(),
            "rating": pa.nulls(len(shop), pa.float64()),
            "query": pa.nulls(len(shop), pa.string()),
            "basket_id": shop.InvoiceNo.to_numpy(),
            "landed_window": pa.array(shop.InvoiceDate.dt.floor("h").to_numpy()).cast(pa.timestamp("us", tz="UTC")),
        }
    )
    per_hour = pd.Series(1, shop.InvoiceDate.dt.floor("h")).groupby(level=0).sum().tz_localize("UTC")
    usual = [per_hour.get(hour - timedelta(weeks=1)) for hour in per_hour.index]
    facts = facts_of(
        *(
            {
                "landed_window": hour.to_pydatetime(),
                "rows_in": int(n),
                "readable": int(n),
                "usual_rows": u,
                "item_rows": int(n),
            }
            for (hour, n), u in zip(per_hour.items(), usual, strict=True)
        )
    )
    verdict = check(FEEDS["events"], rows, facts, frozenset({"events.session_id", "events.rating", "events.query"}))
    assert [str(breach) for breach in verdict.window_breaches if breach.severity == "critical"] == []
    bad = (
        ((shop.UnitPrice <= 0) & ~returned)
        | (np.where(returned, -shop.Quantity, shop.Quantity) <= 0)
        | (shop.UnitPrice < 0)
    )
    assert verdict.row_breaches["row"].to_pylist() == np.flatnonzero(bad).tolist()


@pytest.mark.slow
def test_great_expectations_writes_nothing_into_a_task_s_log() -> None:
    script = """
import logging
logging.basicConfig(level=logging.INFO, format="%(name)s")  # as Airflow has it in a task
from pipeline import judging
judging.context()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    assert [line for line in done.stderr.splitlines() if line.startswith("great_expectations")] == []
