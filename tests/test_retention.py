"""Retention's promises: what an alias, a rollback, the gate, a decision or a look-up needs stays; the rest goes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pytest

from pipeline import retention, updating
from pipeline.checkpoint import load
from pipeline.lake import open_lake
from pipeline.lineage import of_rows, of_version
from pipeline.registry import Registry, open_registry
from pipeline.registry_errors import VersionRetired
from pipeline.retention import Candidate, kept, kept_after_a_year, retain
from pipeline.schema import TEXT_VECTORS_SCHEMA
from pipeline.settings import Settings
from tests.conftest import copied
from tests.small_shop import hour, publish_purchases

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)  # a Sunday


def aged(number: int, days: float, *, served: bool = True, undecided: bool = False, base: int = 0) -> Candidate:
    return Candidate(number, NOW - timedelta(days=days), served, undecided, base or number)


def test_aliases_and_open_decisions_stay_however_old() -> None:
    old = [aged(1, 900), aged(2, 800, served=False), aged(3, 700, served=False, undecided=True), aged(4, 600)]
    assert set(kept(old, {2}, [], NOW)) == {2, 3}


def test_the_last_ten_champions_stay_however_often_two_of_them_took_turns() -> None:
    old = [aged(number, 900 - number) for number in range(1, 15)]
    turns = [*range(1, 15), 13, 14, 13, 14]
    assert set(kept(old, (), turns, NOW)) == set(range(5, 15))


def test_with_a_version_the_first_of_its_lineage_stays() -> None:
    old = [aged(1, 900), aged(2, 890, base=1), aged(3, 880, base=1)]
    assert kept(old, {3}, [], NOW) == {1: "the gate compares updates of 3 with it", 3: "an alias names it"}


def test_all_of_three_days_stay_then_one_a_day_then_one_a_week_of_those_that_served() -> None:
    # hourly for two years, newest number youngest; every other one was held
    hours = 2 * 365 * 24
    every = [aged(hours - age, age / 24, served=age % 2 == 0) for age in range(hours)]
    stay = set(kept(every, (), [], NOW))
    ages = sorted(hours - number for number in stay)
    assert [age for age in ages if age < 72] == list(range(72))
    assert [age for age in ages if 72 <= age < 720] == [14 + 24 * day for day in range(3, 30)]  # 22:00 of each day
    assert [age for age in ages if age >= 720] == [158 + 168 * week for week in range(4, 53)]  # Sundays, 22:00


def test_a_year_of_hourly_promotions_keeps_a_fiftieth_of_the_versions() -> None:
    assert 150 <= kept_after_a_year(NOW) <= 200


# -- on a registry ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_versions(second_price_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 2 was rolled back to 1, from which 3 was trained, the champion."""
    settings = settings_for(copied(second_price_shop, tmp_path_factory.mktemp("retention")))
    registry = open_registry(settings)
    registry.rollback("price", 1, who="ann", why="odd prices", decided_at=NOW)
    publish_purchases(open_lake(settings), 101)
    done = updating.update(updating.plan("price", settings), settings, NOW, report=lambda line: None)
    registry.promote("price", done["version"], 1, who="test", reasons=[], decided_at=NOW + timedelta(hours=1))
    return settings.home


def settings_for(settings: Settings) -> Settings:
    return Settings(**{**settings.__dict__, "tasks": ("price",)})


@pytest.fixture
def shop(
    three_versions: Path, first_price_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """A copy; artifacts lie where the first home was made, for all of its copies, so they are put back after."""
    shutil.copytree(first_price_shop / "mlflow", tmp_path / "saved")
    monkeypatch.setattr(retention, "CHAMPIONS", 1)
    yield settings_for(copied(three_versions, tmp_path))
    shutil.copytree(tmp_path / "saved", first_price_shop / "mlflow", dirs_exist_ok=True)


def later(days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def files_of(settings: Settings) -> dict[int, int]:
    registry = open_registry(settings)
    return {version: registry.bytes_of("price", version) for version in registry.versions("price")}


def test_what_nobody_needs_loses_its_files_and_nothing_else(shop: Settings) -> None:
    before = files_of(shop)
    assert min(before.values()) > 0
    assert retain(shop, later(1))["tasks"]["price"]["removed"] == {}
    done = retain(shop, later(400))["tasks"]["price"]
    assert (set(done["kept"]), set(done["removed"])) == ({1, 3}, {2})
    assert done["bytes_removed"] == before[2] and done["bytes_kept"] == sum(before.values()) - before[2]
    assert files_of(shop) == {**before, 2: 0}
    assert retain(shop, later(400))["tasks"]["price"]["removed"] == {}
    registry = open_registry(shop)
    assert registry.versions("price") == [1, 2, 3]  # their entries stay
    assert len(registry.decisions("price")) == 4


def test_a_package_that_was_deleted_in_mlflow_by_hand_holds_up_nothing(shop: Settings) -> None:
    before, client = files_of(shop), mlflow.MlflowClient(shop.tracking_uri)
    for version in (1, 2):  # one stays, one goes
        held = client.get_model_version("evergreen-price", str(version))
        client.delete_logged_model(str(held.source).removeprefix("models:/"))
    assert open_registry(shop).package_bytes("price", 1) == 0
    done = retain(shop, later(400))
    assert (set(done["tasks"]["price"]["kept"]), set(done["tasks"]["price"]["removed"])) == ({1, 3}, {2})
    assert done["files_deleted"] and 0 < files_of(shop)[1] < before[1] and files_of(shop)[2] == 0


def test_lineage_answers_for_what_lost_its_files(shop: Settings) -> None:
    before = of_version("price", 2, shop)
    retain(shop, later(400))
    after = of_version("price", 2, shop)
    assert after.pop("retired") and before.pop("retired") is None
    assert after == before and before["differences"] == []
    [task] = of_rows("window", str(hour(100)), shop, "events")["feeds"][0]["tasks"]
    assert 2 in [one["version"] for one in task["versions"]]


def test_an_update_goes_on_from_the_kept_champion_bit_for_bit(shop: Settings, tmp_path: Path) -> None:
    publish_purchases(open_lake(shop), 102)
    plan = updating.plan("price", shop)
    assert plan["champion"] == 3

    def learnt(name: str) -> tuple[dict[str, np.ndarray], str]:
        done = updating.update(plan, shop, NOW, report=lambda line: None)
        registry = open_registry(shop)
        held = load(registry.load_checkpoint("price", done["version"], tmp_path / name))
        return dict(held.state.arrays), json.dumps(held.state.meta)

    retain(shop, later(400))
    arrays, meta = learnt("after")
    registry = open_registry(shop)
    registry._client.set_model_version_tag("evergreen-price", "4", "evergreen.parent", "0")  # as if never made
    again, meta_again = learnt("again")
    assert meta == meta_again and all((arrays[name] == again[name]).all() for name in arrays)


def test_what_a_killed_run_marked_is_removed_by_the_next(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        """Nothing may catch it."""

    def killed(*given: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Registry, "remove_files", killed)
        retain(shop, later(400))
    registry = open_registry(shop)
    assert files_of(shop)[2] > 0
    with pytest.raises(VersionRetired):  # half gone already: nobody may serve it
        registry.promote("price", 2, 3, who="ann", reasons=["x"], action="force", decided_at=NOW)
    done = retain(shop, later(400))["tasks"]["price"]
    assert set(done["removed"]) == {2} and files_of(shop)[2] == 0


def test_a_rollback_meanwhile_is_respected(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    retire = Registry.retire

    def rolled_back_first(self: Registry, *given: object) -> list[int]:
        self.rollback("price", 2, who="ann", why="it was better", decided_at=NOW)
        return retire(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "retire", rolled_back_first)
        patched.setattr(Registry, "verify", lambda *given: None)  # its own tests start a process for that
        assert retain(shop, later(400))["tasks"]["price"]["removed"] == {}
    assert open_registry(shop).champion("price") == 2 and files_of(shop)[2] > 0


def test_the_command_says_what_would_go_and_what_a_year_costs(
    shop: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retention, "read_settings", lambda: shop)
    monkeypatch.setattr(retention, "ALL_HOURS", 0)
    monkeypatch.setenv("COLUMNS", "200")
    before = files_of(shop)
    assert retention.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would go" in said and "A year of hourly promotions" in said and "without the rule" in said
    assert files_of(shop) == before
    assert retention.main(["--json"]) == 0
    done = json.loads(capsys.readouterr().out)["tasks"]["price"]
    assert list(done["removed"]) == ["2"] and done["bytes_after_a_year"] == (
        done["versions_after_a_year"] * done["bytes_of_a_version"]
    )


def test_tidying_the_lake_leaves_every_version_that_a_ledger_names_readable(shop: Settings) -> None:
    lake = open_lake(shop)
    before = {version: lake.arrow("events", version).num_rows for version in range(lake.version("events") + 1)}
    changes = lake.changes("events", 1, 3).num_rows
    retain(shop, later(0.1))
    assert {version: lake.arrow("events", version).num_rows for version in before} == before
    assert lake.changes("events", 1, 3).num_rows == changes


def test_vectors_of_a_taught_encoder_stay_while_an_alias_leads_to_it(shop: Settings) -> None:
    registry, lake = open_registry(shop), open_lake(shop)
    names = {"1": "taught:one", "2": "taught:two", "3": "taught:three"}
    for version, name in names.items():
        registry._client.set_model_version_tag("evergreen-price", version, "evergreen.vectors", name)
    lake.append("text_vectors", pa.table({
        "encoder": [*names.values(), "pretrained"], "content_hash": ["a"] * 4, "vector": [b"\0"] * 4,
    }, TEXT_VECTORS_SCHEMA))
    assert set(registry.aliases("price").values()) == {1, 3}
    assert retain(shop, later(1), dry_run=True)["text_vectors_removed"] == 1
    assert retain(shop, later(1))["text_vectors_removed"] == 1
    left = lake.arrow("text_vectors")["encoder"].cast(pa.string()).to_pylist()
    assert sorted(left) == ["pretrained", "taught:one", "taught:three"]
