"""Cleaning's promises: typed or refused with a stable reason, filled in only by named rules, persons masked."""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cleaning import Cleaned, clean
from pipeline.masking import Mask
from pipeline.schema import EVENTS, ITEMS, MESSAGES, TIME, Feed
from tests.landed import KEY, T0, WINDOW, column, event, json_lines, parquet, put, read

HASH_A = hmac.new(KEY.encode(), b"user-a", hashlib.sha256).hexdigest()[:32]


def cleaned(
    folder: Path,
    *rows: dict[str, object],
    feed: Feed = EVENTS,
    absent: frozenset[str] = frozenset(),
    prices: pa.Table | None = None,
) -> Cleaned:
    put(folder, f"{uuid.uuid4()}.jsonl", json_lines(*rows), feed=feed.name)
    return clean(feed, read(folder, feed).rows, Mask(KEY), 48, absent, prices)


@pytest.mark.parametrize(
    ("values", "reason", "said"),
    [
        ({"event_time": None}, "missing_value", "event_time is empty"),
        ({"event_type": "  "}, "missing_value", "event_type is empty"),
        ({"event_time": "yesterday"}, "unparseable_time", "'yesterday'"),
        ({"event_time": "2026-01-05"}, "unparseable_time", "'2026-01-05'"),
        ({"event_time": "infinity"}, "unparseable_time", "'infinity'"),
        ({"event_time": "2026-02-30T10:00:00Z"}, "unparseable_time", "2026-02-30"),
        ({"event_time": 1767618600}, "unparseable_time", "'1767618600'"),
        ({"price": "free"}, "wrong_type", "price 'free' is not a number"),
        ({"quantity": "two"}, "wrong_type", "quantity 'two' is not a number"),
        ({"quantity": True}, "wrong_type", "quantity 'true' is not a number"),
        ({"price": "1,50"}, "wrong_type", "price '1,50'"),
        ({"price": "NaN"}, "not_finite", "price 'NaN'"),
        ({"price": float("nan")}, "not_finite", "price 'NaN'"),
        ({"quantity": float("inf")}, "not_finite", "quantity 'Infinity'"),
        ({"price": "-inf"}, "not_finite", "price '-inf'"),
        ({"price": "1e999"}, "not_finite", "price '1e999'"),
        ({"event_time": "2999-01-01T00:00:00Z"}, "future_time", "2999"),
        ({"event_time": "2026-01-05T14:05:00Z"}, "future_time", "14:05"),
        ({"event_time": "1970-01-01T00:00:00Z"}, "too_late", "1970"),
        ({"event_time": "20260-01-05T13:10:00Z"}, "future_time", "'20260-"),
        ({"event_time": "9999-12-31T23:59:59-02:00"}, "future_time", "'9999-"),
        ({"event_time": "0044-03-15 (BC) 10:00:00"}, "too_late", "(BC)"),
        ({"event_time": "2026-01-03T12:59:59Z"}, "too_late", "up to 48 h before"),
        ({"user_id": "u" * 10_000}, "id_too_long", "user_id has 10000 characters; allowed: 256"),
        ({"session_id": "s" * 257}, "id_too_long", "session_id has 257 characters"),
    ],
)
def test_a_row_that_cannot_be_used_has_a_reason_and_says_what_was_seen(
    tmp_path: Path, values: dict[str, object], reason: str, said: str
) -> None:
    result = cleaned(tmp_path, event(1), event(2, **values), event(3))
    assert column(result.rows, "event_id") == ["e1", "e3"]
    assert column(result.faults, "landed_row") == [1]
    assert column(result.faults, "reason") == [reason]
    assert said in str(result.faults["detail"][0])
    assert "uuuu" not in str(result.faults["detail"][0])


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-05T13:10:00Z", T0 + timedelta(minutes=10)),
        ("2026-01-05 13:10", T0 + timedelta(minutes=10)),
        ("2026-01-05T15:10:00+02:00", T0 + timedelta(minutes=10)),
        ("2026-01-05T13:10:00.123456Z", T0 + timedelta(minutes=10, microseconds=123456)),
        ("2026-01-05T13:10:00.123Z ", T0 + timedelta(minutes=10, milliseconds=123)),
        ("2026-01-03T13:00:00Z", T0 - timedelta(hours=48)),
    ],
)
def test_times_are_iso_8601_and_utc_where_they_name_no_zone(tmp_path: Path, text: str, moment: datetime) -> None:
    result = cleaned(tmp_path, event(1, event_time=text))
    assert column(result.rows, "event_time") == [moment]
    assert column(result.rows, "hour") == [moment.replace(minute=0, second=0, microsecond=0)]


def test_a_clock_slightly_ahead_counts_in_the_hour_in_which_the_row_landed(tmp_path: Path) -> None:
    result = cleaned(tmp_path, event(1, event_time="2026-01-05T14:04:59Z"))
    assert column(result.rows, "hour") == [WINDOW.start]
    assert column(result.rows, "event_time") == [T0 + timedelta(hours=1, minutes=4, seconds=59)]


def test_values_are_typed_and_blanks_around_them_are_nothing(tmp_path: Path) -> None:
    result = cleaned(
        tmp_path, event(1, event_type=" Purchase", item_id="\ti1 ", quantity=" 3 ", price="2.50", query="")
    )
    (row,) = result.rows.to_pylist()
    assert (row["event_type"], row["item_id"], row["quantity"], row["price"]) == ("purchase", "i1", 3.0, 2.5)
    assert row["query"] is None
    assert row["imputed"] is None
    assert result.rows.schema.names == [*EVENTS.table_schema.names, "landed_row"]


def test_users_and_sessions_are_the_keyed_hash_of_their_id(tmp_path: Path) -> None:
    result = cleaned(
        tmp_path, event(1, user_id=" user-a", session_id="user-a"), event(2, user_id="user-b"), event(3, user_id=None)
    )
    users = column(result.rows, "user_id")
    assert users[0] == column(result.rows, "session_id")[0] == HASH_A
    assert users[1] not in (HASH_A, None)
    assert users[2] is None
    other = clean(EVENTS, read(tmp_path).rows, Mask("another-key-another-key-another-key"), 48)
    assert column(other.rows, "user_id")[0] != HASH_A


@given(st.lists(st.text(min_size=1, max_size=90).filter(lambda text: "\ud800" not in text), min_size=1, max_size=8))
def test_the_hash_of_a_column_is_that_of_each_value_and_is_hmac_sha256(ids: list[str]) -> None:
    key = "k" * 70  # longer than SHA-256's block, so that the key is hashed first
    raw = pa.chunked_array([pa.array([*ids, None], pa.string())])
    expected = [hmac.new(key.encode(), value.encode(), hashlib.sha256).hexdigest()[:32] for value in ids]
    assert Mask(key).column(raw).to_pylist() == [*expected, None]
    assert [Mask(key).value(value) for value in ids] == expected


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        ('{"user_id": "anna", "query": "who is anna"}', '"query": "who is '),
        ('{"event_id": "e1", "user_id": "ann', '{"event_id": "e1", "user_id": "'),
        ('{"customer_number": 17, "quantity": 17}', '"quantity": 17}'),
        ('{"user_id": "anna\\ud83d", "quantity": 1}', '"quantity": 1}'),  # half an emoji
        ("e1,view,known-user,i1", "e1,view,"),
        ("write to known.user@shop.example now", "write to [e-mail] now"),
    ],
)
def test_raw_text_is_kept_without_what_tells_a_person(raw: str, left: str) -> None:
    masked = Mask(KEY).text(raw, {"known-user", "anna"})
    assert left in masked
    for secret in ("anna", "known-user", "known.user@", '"ann"', 'number": 17'):
        assert secret not in masked


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        ('{"user": {"id": "K-7", "name": "Ann"}, "quantity": 2}', '{"user": {"id": "#", "name": "#"}, "quantity": 2}'),
        ('{"user": {"seen": [7, null], "at": {"a": "}\\"]"}}, "b": 7}',
         '{"user": {"seen": [#, null], "at": {"a": "#"}}, "b": 7}'),
        ('{"user_ids": ["K-7", "Ann"], "quantity": 2}', '{"user_ids": ["#", "#"], "quantity": 2}'),
        ('{"payload": "{\\"user_id\\": \\"K-7\\", \\"b\\": 1}"}',
         '{"payload": "{\\"user_id\\": \\"#\\", \\"b\\": 1}"}'),
        ('{"payload": "{\\"user\\": {\\"id\\": \\"K-7\\"}}"}', '{"payload": "{\\"user\\": {\\"id\\": \\"#\\"}}"}'),
        ('{"quantity": 2, "customer": {"id": "K-7", "name": "An', '{"quantity": 2, "customer": {"id": "#", "name": "#'),
    ],
)
def test_of_a_person_who_is_an_object_a_list_or_json_inside_json_nothing_is_kept(raw: str, left: str) -> None:
    assert re.sub("[0-9a-f]{32}", "#", Mask(KEY).text(raw)) == left


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("call +49 (0)30 1234567 or 0151 23456789.", "call [phone] or [phone]."),
        ("my number is (555) 123-4567, or 555-234-5678", "my number is [phone], or [phone]"),
        ("电话13812345678谢谢", "电话[phone]谢谢"),
        ("06 12 34 56 78", "[phone]"),
        ("138-0013-8000 or 138 0013 8000, not 138-0013 8000", "[phone] or [phone], not 138-0013 8000"),
        ("call 1-555-234-5678", "call [phone]"),
        ("06\u00a012\u202f34\u00a056\u00a078 or +49\u201130\u20115557120", "[phone] or [phone]"),  # a page's blanks
        ("１３８００１３８０００, +٩٦٦ ٥٠ ١٢٣ ٤٥٦٧ or ०१५१२३४५६७८", "[phone], [phone] or [phone]"),
        ("call—0151 2345678, size ４０–４２, 1\u00a0299,00", "call—[phone], size ４０–４２, 1\u00a0299,00"),
        ("ann.b＠mail．example, 'o'brien@mail.example'", "[e-mail], '[e-mail]'"),
        ("shop.example/?mail=ann%2Bb%40mail.example&k=1", "shop.example/?mail=[e-mail]&k=1"),
        ("to DE89 3704 0044 0532 0130 00 BITTE", "to [iban] BITTE"),
        ("GB29NWBK60161331926819, nl91-abna-0417-1643-00, not GB29 NWBK 6016 1331 9268 18",
         "[iban], [iban], not GB29 NWBK 6016 1331 9268 18"),
        ("card 4111 1111 1111 1111, 5555-5555-5555-4444 or 378282246310005", "card [card], [card] or [card]"),
        ("４１１１１１１１１１１１１１１１ or 4111 1111 1111 1112", "[card] or 4111 1111 1111 1112"),
        ("article AB12 3456 7890 1234 5678 of pallet 340123450000000018", "article AB12 3456 7890 1234 5678 of pallet "
         "340123450000000018"),
        ("id ab780000000000000000000000000086", "id ab780000000000000000000000000086"),  # as masked; 1 by modulo 97
        ("write to ann.b+shop@mail.example!", "write to [e-mail]!"),
        ("iphone 15 128 gb, 4006381333931, size 10 12 14", "iphone 15 128 gb, 4006381333931, size 10 12 14"),
        ("on 2026-01-05 13:10:00 or 01/02/2026 12", "on 2026-01-05 13:10:00 or 01/02/2026 12"),
        ("order 1234567890 for 12.0345 each", "order 1234567890 for 12.0345 each"),
        ("account: blocked", "account: blocked"),
    ],
)
def test_addresses_and_phone_numbers_are_masked_in_what_customers_write(
    tmp_path: Path, written: str, kept: str
) -> None:
    search = event(1, event_type="search", query=written)
    put(tmp_path, "a.jsonl", json_lines(search, event(2)))
    assert column(clean(EVENTS, read(tmp_path).rows, Mask(KEY), 48).rows, "query") == [kept, None]


def test_a_customers_own_ids_are_masked_in_what_the_customer_writes(tmp_path: Path) -> None:
    said = "I am K-77120, 会员K-77120号, in visit s/9921; not K-771204."
    row = {"message_time": "2026-01-05T13:10:00Z", "text": said, "user_id": "K-77120"}
    put(tmp_path, "a.jsonl", json_lines(row), feed="messages")
    mask = Mask(KEY)
    (text,) = column(clean(MESSAGES, read(tmp_path, MESSAGES).rows, mask, 48).rows, "text")
    hidden = mask.value("K-77120")
    assert text == f"I am {hidden}, 会员{hidden}号, in visit s/9921; not K-771204."


def test_an_id_that_json_escapes_is_masked_as_itself_wherever_it_stands(tmp_path: Path) -> None:
    user, mask = "Kunde-Äther/77120", Mask(KEY)
    line = '{"user_id": "Kunde-\\u00c4ther/77120", "query": "I am Kunde-\\u00c4ther/77120."'
    for known in ({user}, set()):
        assert mask.text(line, known).replace(mask.value(user), "#") == '{"user_id": "#", "query": "I am #."'


def test_a_missing_event_id_is_the_hash_of_the_content_whatever_the_format(tmp_path: Path) -> None:
    one = cleaned(tmp_path, event(1, event_id=None), event(1, event_id=None, price=4), event(1, event_id=None))
    put(tmp_path / "b", "a.parquet", parquet(event(1, event_id=None) | {"event_time": T0 + timedelta(minutes=10)}))
    other = clean(EVENTS, read(tmp_path / "b").rows, Mask(KEY), 48)
    ids = column(one.rows, "event_id")
    assert ids[0] == ids[2] != ids[1]
    assert column(other.rows, "event_id") == ids[:1]
    assert column(one.rows, "imputed") == ["event_id_from_content"] * 3


def test_a_missing_change_id_and_message_id_are_hashes_too(tmp_path: Path) -> None:
    items = cleaned(tmp_path, {"item_id": "i", "change_time": "2026-01-05T13:00Z", "price": "2"}, feed=ITEMS)
    messages = cleaned(tmp_path, {"text": "hello", "message_time": "2026-01-05T13:00Z"}, feed=MESSAGES)
    assert column(items.rows, "imputed") == ["change_id_from_content"]
    assert column(messages.rows, "imputed") == ["message_id_from_content"]
    assert len(str(column(items.rows, "change_id")[0])) == len(str(column(messages.rows, "message_id")[0])) == 32


def test_a_shop_without_quantities_sells_one_at_a_time(tmp_path: Path) -> None:
    rows = [event(1, quantity=None), event(2, quantity=5), event(3, event_type="view", quantity=None)]
    result = cleaned(tmp_path, *rows, absent=frozenset({"events.quantity"}))
    assert column(result.rows, "quantity") == [1.0, 5.0, None]
    assert column(result.rows, "imputed") == ["quantity_one", None, None]


def test_a_quantity_that_the_shop_should_have_sent_is_not_invented(tmp_path: Path) -> None:
    result = cleaned(tmp_path, event(1, quantity=None))
    assert column(result.rows, "quantity") == [None]
    assert column(result.rows, "imputed") == [None]


def test_a_purchase_without_price_has_the_catalogues_price_of_its_time(tmp_path: Path) -> None:
    hours = [-5, -1, 2]
    prices = pa.table(
        {
            "item_id": ["i1"] * 3,
            "change_id": ["a", "b", "c"],
            "price": [1.0, 2.0, 9.0],
            "change_time": pa.array([T0 + timedelta(hours=hour) for hour in hours], TIME),
        }
    )
    rows = [
        event(1, price=None),
        event(2, price=None, event_time="2026-01-05T10:00:00Z"),
        event(3, price=None, item_id="i2"),
        event(4),
        event(5, price=None, event_type="view"),
        event(6, price=None, event_time="2026-01-04T10:00:00Z"),
    ]
    result = cleaned(tmp_path, *rows, prices=prices)
    assert column(result.rows, "price") == [2.0, 1.0, None, 3.5, None, None]
    assert column(result.rows, "imputed") == ["price_from_catalogue"] * 2 + [None] * 4


@pytest.mark.parametrize("name", ["event_time", "event_type"])
def test_time_and_type_are_never_filled_in(tmp_path: Path, name: str) -> None:
    assert len(cleaned(tmp_path, event(1, **{name: None}), event(2)).rows) == 1


def test_an_item_is_never_filled_in(tmp_path: Path) -> None:
    assert column(cleaned(tmp_path, event(1, item_id=None)).rows, "item_id") == [None]


def test_no_row_is_no_fault() -> None:
    from pipeline.landing import land

    result = clean(EVENTS, land(EVENTS, [WINDOW], "/nowhere").rows, Mask(KEY), 48)
    assert len(result.rows) == len(result.faults) == 0
    assert datetime(2026, 1, 5, 13, tzinfo=UTC) == WINDOW.start


@pytest.mark.timeout(20)  # a blink where the patterns are linear, minutes where one is not
@pytest.mark.parametrize("text", [
    "x" * 65536, "user" * 16384, "user:" * 13000, "a@" * 32768, "user " + " " * 65000, "user:{" * 10000,
    "a'" * 32768, "a%2B" * 16000, "AB12 " * 13000, "4111 " * 13000, "٣" * 65000, "138 0013 " * 7000,
    'user:\\"' * 9000, "user:[" + "\\" * 65000, 'user:{"' + '\\"' * 30000, "user:[" * 10000 + "]" * 9000,
])
def test_hostile_text_is_masked_in_linear_time(text: str) -> None:
    assert len(Mask(KEY).text(text)) > 0
