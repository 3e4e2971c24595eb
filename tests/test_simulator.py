"""What the simulated shop promises: same bytes for a window, counted dirt, a truth that shows."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.sources.shop import Shop, ShopSize
from pipeline.sources.simulator import ShopSimulator
from pipeline.window import HOUR, Window

SMALL = {
    "users": 200,
    "items": 120,
    "history_days": 3,
    "hours": 12,
    "history_events": 20_000,
    "events_per_hour": 600,
    "dirt_share": 0.2,
}


@pytest.fixture(scope="module")
def shop() -> ShopSimulator:
    """A small, very dirty shop."""
    return ShopSimulator(seed=7, **SMALL)


def window_at(shop: ShopSimulator, hour: int) -> Window:
    """The shop's window that starts this many hours after its first."""
    return Window(shop.first + HOUR * hour)


def files_of(landing: Path) -> dict[str, bytes]:
    """Every landed file's content by its path."""
    return {
        str(path.relative_to(landing)): path.read_bytes() for path in landing.rglob("*") if path.is_file()
    }


def rows_of(landing: Path, window: Window) -> list[dict[str, object] | None]:
    """The window's event rows out of all formats; None for a line that is not JSON."""
    rows: list[dict[str, object] | None] = []
    for path in sorted((landing / "events" / window.folder).iterdir()):
        if path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    rows.append(None)
        elif path.name.endswith(".csv.gz"):
            with gzip.open(path, "rt") as file:
                rows += [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]
        else:
            rows += [
                {**row, "event_time": row["event_time"].isoformat()}
                for row in pq.read_table(path).to_pylist()
            ]
    return rows


def test_a_window_has_the_same_bytes_whatever_was_landed_before(shop: ShopSimulator, tmp_path: Path) -> None:
    window = window_at(shop, 75)
    shop.land([window_at(shop, hour) for hour in range(60, 75)], tmp_path / "before")
    shop.land([window], tmp_path / "after")
    ShopSimulator(seed=7, **SMALL).land([window], tmp_path / "alone")
    ShopSimulator(seed=7, **{**SMALL, "hours": 40}).land([window], tmp_path / "longer")
    assert files_of(tmp_path / "after") == files_of(tmp_path / "alone") == files_of(tmp_path / "longer")
    ShopSimulator(seed=8, **SMALL).land([window], tmp_path / "other")
    assert files_of(tmp_path / "other") != files_of(tmp_path / "alone")


def test_each_kind_of_dirt_is_in_the_files_as_often_as_told(shop: ShopSimulator, tmp_path: Path) -> None:
    window, before = window_at(shop, 75), [window_at(shop, hour) for hour in range(70, 75)]
    shop.land([*before, window], tmp_path)
    rows = rows_of(tmp_path, window)
    read = [row for row in rows if row is not None]
    landed_before = {row.get("event_id") for early in before for row in rows_of(tmp_path, early) if row}
    later = [row for row in read if row["event_id"] in landed_before]
    ids = Counter(row["event_id"] for row in read if row["event_id"] not in landed_before)
    own = {row["event_id"]: row for row in read if row["event_id"] not in landed_before}.values()
    typed = [row for row in own if row.get("event_time") != "yesterday" and row.get("event_time")]
    moments = [datetime.fromisoformat(str(row["event_time"])) for row in typed]
    known = set(shop.shop.item_id)
    assert shop.dirt(window) == {
        "malformed_line": len(rows) - len(read),
        "wrong_type": sum(
            row.get("event_time") == "yesterday" or row.get("price") == "free" or row.get("quantity") == "two"
            for row in own
        ),
        "late_event": sum(moment < window.start for moment in moments),
        "future_event": sum(moment >= window.end for moment in moments),
        "null_field": sum(row.get("event_time") is None or row.get("event_type") is None for row in own),
        "unknown_item": sum(row.get("item_id") is not None and row["item_id"] not in known for row in own),
        "exact_duplicate": sum(count - 1 for count in ids.values()),
        "later_duplicate": len(later),
    }
    assert min(shop.dirt(window).values()) > 0
    assert min(moments) >= window.start - timedelta(hours=48)


def test_choices_follow_the_stated_probabilities(shop: ShopSimulator) -> None:
    import numpy as np

    hour, user, draws = 80, 11, 200_000
    chosen = shop.shop.choose(np.full(draws, user), hour, np.random.default_rng(1).random((draws, 3)))
    stated = np.array(list(shop.purchase_probabilities("U000011", window_at(shop, hour)).values()))
    seen = np.bincount(chosen, minlength=len(stated)) / draws
    assert stated.sum() == pytest.approx(1)
    assert np.abs(seen - stated).max() < 0.005  # four standard errors of a share of one half: 0.0045


def test_customers_buy_their_staples_again_and_again(shop: ShopSimulator) -> None:
    window = window_at(shop, 80)
    shares = []
    for user in range(50):
        chances = shop.purchase_probabilities(f"U{user:06d}", window)
        shares.append(sum(chances[item] for item in set(shop.staples_of(f"U{user:06d}", window))))
    assert 0.58 < sum(shares) / len(shares) < 0.75


def test_a_new_collection_takes_a_visible_share_of_the_purchases(shop: ShopSimulator) -> None:
    window = window_at(shop, 83)
    fresh = [item for hour in range(72, 84) for item in shop.launched(window_at(shop, hour))]
    assert len(fresh) == 36
    chances = [shop.purchase_probabilities(f"U{user:06d}", window) for user in range(50)]
    assert sum(chance[item] for chance in chances for item in fresh) / 50 > 0.1


def test_dearer_items_are_chosen_less_by_their_elasticity(shop: ShopSimulator) -> None:
    import numpy as np

    factor, _ = shop.shop._hour_choices(80)
    ratio = shop.shop.prices(80)[: len(factor)] / shop.shop.base_price[: len(factor)]
    cheap = next(i for i in np.flatnonzero(factor) if ratio[i] < 0.85)
    assert factor[cheap] == pytest.approx(ratio[cheap] ** -shop.price_elasticity(shop.shop.item_id[cheap]))
    assert factor[cheap] > 1


class DearerShop(Shop):
    """The same shop, one item one per cent dearer."""

    dearer = 0

    def prices(self, hour: int) -> np.ndarray:
        prices = super().prices(hour)
        prices[self.dearer] *= 1.01
        return prices


@pytest.mark.parametrize("item", [0, 5, 40])
def test_the_own_elasticity_is_what_choices_lose_when_one_price_rises(shop: ShopSimulator, item: int) -> None:
    dearer, users, hour = DearerShop(7, ShopSize(**SMALL)), np.arange(200), 80
    dearer.dearer = item
    before, after = (
        np.mean([one.probabilities(user, hour)[item] for user in users]) for one in (shop.shop, dearer)
    )
    lost = -np.log(after / before) / np.log(1.01)
    assert shop.shop.own_elasticity(hour, users)[item] == pytest.approx(lost, abs=0.06)
    assert lost < shop.shop.elasticity[item]


def test_items_differ_within_a_category_only_where_that_is_asked_for(shop: ShopSimulator) -> None:
    spread = Shop(7, ShopSize(**SMALL, elasticity_spread=0.35))
    ratio = np.log(spread.elasticity / shop.shop.elasticity)
    assert ratio.std() == pytest.approx(0.35, abs=0.05)
    assert len(set(shop.shop.elasticity)) <= 16


def test_a_promotion_is_chosen_more_than_its_price_explains(shop: ShopSimulator) -> None:
    lifted = Shop(7, ShopSize(**SMALL, promotion_lift=0.5))
    (plain, _), (shown, _) = shop.shop._hour_choices(80), lifted._hour_choices(80)
    ratio = shop.shop.prices(80)[: len(plain)] / shop.shop.base_price[: len(plain)]
    sold = plain > 0
    np.testing.assert_allclose(shown[sold] / plain[sold], np.where(ratio[sold] < 0.85, 1.5, 1.0))


def test_text_tells_style_and_category(shop: ShopSimulator) -> None:
    words = {"rustic": "Rustic", "nordic": "Nordic", "vintage": "Vintage", "floral": "Floral", "zen": "Zen"}
    for number in range(100):
        text, style = shop.shop.item_text(number), shop.style_of(f"P{number:06d}")
        assert text["title"].startswith(words.get(style, text["title"].split()[0]))
        same = [n for n in range(100) if shop.shop.item_text(n)["category"] == text["category"]]
        assert {shop.shop.item_text(n)["title"].split()[2] for n in same} & {text["title"].split()[2]}


def test_stock_and_price_changes_reach_the_items_feed(shop: ShopSimulator, tmp_path: Path) -> None:
    windows = [window_at(shop, hour) for hour in range(40)]
    shop.land(windows, tmp_path)
    latest = {
        row["item_id"]: row
        for row in pq.read_table(next((tmp_path / "items" / windows[0].folder).iterdir())).to_pylist()
    }
    assert len(latest) == 120
    for window in windows[1:]:
        for path in (tmp_path / "items" / window.folder).glob("*.jsonl"):
            latest |= {row["item_id"]: row for row in map(json.loads, path.read_text().splitlines())}
    prices, stock = shop.shop.prices(39), shop.shop.stock(39)
    assert len(latest) == shop.shop.known_items(39)
    for item_id, row in latest.items():
        number = int(item_id[1:])
        assert (row["price"], row["stock"] > 0) == (pytest.approx(prices[number]), stock[number] > 0)


def test_messages_land_with_what_clerks_have_noted_of_their_intent_and_sentiment(
    shop: ShopSimulator, tmp_path: Path
) -> None:
    windows = [window_at(shop, hour) for hour in (70, 75, 80)]
    shop.land(windows, tmp_path)
    landed = [
        json.loads(line) for window in windows
        for line in (tmp_path / "messages" / window.folder / "inbox.jsonl").read_text().splitlines()
    ]
    truth = {row["message_id"]: row for window in windows for row in shop.messages(window).to_pylist()}
    assert len(landed) == len(truth) > 10
    for row in landed:
        known = truth[row["message_id"]]
        assert row.get("sentiment") in (None, known["true_sentiment"])
        assert known["true_sentiment"] in ("positive", "neutral", "negative")
        assert "intent" not in row
    labelled = [row for row in landed if row.get("label")]
    wrong = [row for row in labelled if row["label"] != truth[row["message_id"]]["intent"]]
    assert len(wrong) < 0.2 * len(labelled), "clerks err now and then"
    noted = [sum(bool(row.get(name)) for row in landed) for name in ("label", "sentiment", "answer")]
    assert all(0 < count < len(landed) for count in noted)


def test_a_new_topic_begins_with_the_streamed_hours(shop: ShopSimulator) -> None:
    written = {
        hour: shop.messages(window_at(shop, hour))["intent"].to_pylist()
        for hour in range(shop.shop.history_hours - 6, shop.shop.history_hours + 6)
    }
    later = [hour for hour, intents in written.items() if "gift_card" in intents]
    assert later and min(later) >= shop.shop.history_hours


def test_a_file_is_whole_or_not_there(
    shop: ShopSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space left"):
        shop.land([window_at(shop, 80)], tmp_path)
    assert files_of(tmp_path) == {}


def test_hours_outside_the_shop_and_impossible_sizes_are_refused(shop: ShopSimulator, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lands 2026-01-05T00:00Z up to 2026-01-08T12:00Z; received"):
        shop.land([Window(shop.last)], tmp_path)
    with pytest.raises(ValueError, match="`items` must be at least 50; received 3"):
        ShopSimulator(items=3)


def test_a_small_shop_lands_hours_without_any_event(tmp_path: Path) -> None:
    quiet = ShopSimulator(seed=2, users=20, items=50, history_days=1, hours=2, history_events=24, events_per_hour=0)
    landed = [len(quiet._events(quiet._hour_of(window))) for window in quiet.windows]
    assert landed[-2:] == [0, 0] and sum(landed) > 0
    quiet.land(quiet.windows[-2:], tmp_path)
    assert not any("events" in path for path in files_of(tmp_path))
