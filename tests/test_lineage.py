"""What lineage says is what was truly trained on, both ways: from a version to its rows, and from rows to versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from pipeline import forgetting, lineage, training, updating
from pipeline.lake import open_lake
from pipeline.learnt import FewRows, known_by_versions
from pipeline.lesson import lesson_of_change, lesson_of_everything
from pipeline.lineage import main, of_rows, of_version
from pipeline.lineage_pages import print_answer, write_lineage_page
from pipeline.masking import Mask
from pipeline.registry import open_registry
from pipeline.registry_errors import RegistryError, VersionMissing
from pipeline.schema import EVENTS, ITEMS
from pipeline.settings import Settings
from pipeline.snapshot import Snapshot
from pipeline.tasks.catalogue import task_named
from pipeline.tasks.contract import Examples
from pipeline.window import Window
from tests.conftest import copied
from tests.price_task import PriceTask
from tests.small_shop import hour, publish, publish_hours, publish_purchases, purchases, settings_of, small_shop

pytestmark = pytest.mark.slow  # trains a shop and its updates

NOW = datetime(2026, 3, 1, tzinfo=UTC)


class World:
    """A shop with four versions: a base of a hundred hours, a new hour, a correction with a late row, a month later.

    Attributes:
        settings: of the installation.
        taught: version -> event ids of the examples that were handed to its training as new ones.
        replayed: the same of the replayed ones.
        corrected, gone, late: event ids.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.taught: dict[int, set[str]] = {}
        self.replayed: dict[int, set[str]] = {}

    def learn(self) -> int:
        """The next update, promoted whatever the gate says; what it was trained on is noted."""
        handed: list[Examples] = []
        fine_tune = training.fine_tune

        def noting(learner: Any, restore: Any, train: Examples, *given: Any, **named: Any) -> training.Trained:
            handed.append(train)
            return fine_tune(learner, restore, train, *given, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "fine_tune", noting)
            plan = updating.plan("price", self.settings)
            done = updating.update(plan, self.settings, NOW, report=lambda line: None)
        version, registry = int(done["version"]), open_registry(self.settings)
        ids = handed[0].table["example_id"]
        self.taught[version] = set(ids.filter(pa.array(~handed[0].replayed)).to_pylist())
        self.replayed[version] = set(ids.filter(pa.array(handed[0].replayed)).to_pylist())
        registry.promote(
            "price", version, plan["champion"], who="test", reasons=[], action="force", decided_at=NOW
        )
        return version

    def known(self, kind: str, value: str, feed: str | None = None) -> dict[int, dict[str, Any]]:
        """version -> what the lineage says of rows of `events`."""
        answer = of_rows(kind, value, self.settings, feed)
        [task] = next(one for one in answer["feeds"] if one["feed"] == "events")["tasks"]
        return {one["version"]: one for one in task["versions"]}


def late_row() -> pa.Table:
    """A purchase of hour 99 that lands in hour 101."""
    row = purchases(99, count=1, name="late").to_pylist()[0]
    landed = hour(101)
    row |= {"landed_window": landed.start, "landed_date": landed.start.date()}
    return pa.Table.from_pylist([row], EVENTS.table_schema)


@pytest.fixture(scope="module")
def world(first_price_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = copied(first_price_shop, tmp_path_factory.mktemp("lineage"))
    settings = Settings(**{**settings.__dict__, "tasks": ("price",)})
    world, lake = World(settings), open_lake(settings)
    publish_purchases(lake, 100, count=40)
    assert world.learn() == 2
    rows, learnt = purchases(50), did(world, 1, "taught")
    world.corrected, world.gone = [one for one in rows["event_id"].to_pylist() if one in learnt][:2]
    prices = rows["price"].to_pylist()
    prices[rows["event_id"].to_pylist().index(world.corrected)] += 0.5
    rows = rows.set_column(rows.schema.get_field_index("price"), "price", pa.array(prices, pa.float64()))
    publish(lake, EVENTS, [hour(50)], rows.filter(pc.not_equal(rows["event_id"], world.gone)))
    late = late_row()
    world.late = late["event_id"][0].as_py()
    publish(lake, EVENTS, [hour(101)], pa.concat_tables([late, purchases(101)]))
    assert world.learn() == 3
    publish_purchases(lake, 900)  # a month on: what was held out joins
    assert world.learn() == 4
    yield world


def did(world: World, version: int, *what: str) -> set[str]:
    """Event ids with which a version's own learning did this."""
    lake, registry = open_lake(world.settings), open_registry(world.settings)
    versions = lineage._ancestors(registry, "price", version)
    task = PriceTask(lake, "")
    rows = lineage.own_rows(task, lake, versions[version], versions.get(versions[version].ledger.parent or 0))
    return {row["key"] for row in rows.to_pylist() if row["did"] in what}


def test_a_version_has_learnt_exactly_the_rows_that_were_handed_to_its_training(world: World) -> None:
    assert len(world.taught[2]) > 20 and len(world.taught[4]) > 200
    for version in (2, 3, 4):
        assert did(world, version, "taught", "joined") == world.taught[version]
    assert world.corrected in world.taught[3] and world.gone not in world.taught[3]


def test_replay_brings_nothing_that_the_lineage_does_not_know(world: World) -> None:
    learnt = did(world, 1, "taught")
    for version in (2, 3, 4):
        assert world.replayed[version] and world.replayed[version] <= learnt
        learnt |= world.taught[version]


def test_every_row_of_the_table_is_known_to_have_been_learnt_or_not(world: World) -> None:
    """Each way back, row by row, says what the sum of all training says."""
    handed = {1: did(world, 1, "taught")}
    for version in (2, 3, 4):
        handed[version] = handed[version - 1] | world.taught[version]
    for window in (hour(50), hour(100), hour(101), hour(99)):
        rows = open_lake(world.settings).arrow("events")
        mine = {row["event_id"] for row in rows.to_pylist() if row["landed_window"] == window.start}
        known = world.known("window", str(window), "events")
        for version in (1, 2, 3, 4):
            learnt = known.get(version, {"rows": {}})["rows"].get("learnt", 0)
            gone = {world.gone} if window == hour(50) else set()
            assert learnt == len(handed[version] & (mine | gone)), (window, version)


def test_the_counts_by_window_are_the_ledgers(world: World) -> None:
    for version in (1, 2, 3, 4):
        answer = of_version("price", version, world.settings)
        assert answer["differences"] == []
        assert [step["version"] for step in answer["lineage"]] == list(range(1, version + 1))
        counted = {name: sum(one["did"].get(name, 0) for one in answer["windows"]) for name in ("taught", "joined")}
        assert counted == {"taught": answer["rows"]["taught"], "joined": answer["rows"]["joined"]}
    by = {one["window"]: one["learnt_by"] for one in answer["windows"]}
    assert by[str(hour(900))] == [4] and by[str(hour(100))] == [2, 4] and 3 in by[str(hour(101))]


def test_a_ledger_that_lies_is_found_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = open_registry(world.settings).tags("price", 2)
    ledger = json.loads(tags["evergreen.ledger"])
    ledger["own_rows"]["taught"] += 5
    whole = {2: {**tags, "evergreen.ledger": json.dumps(ledger)}}
    real = lineage.Registry.tags
    monkeypatch.setattr(lineage.Registry, "tags", lambda self, task, at: whole.get(at) or real(self, task, at))
    [said] = of_version("price", 2, world.settings, whole=False)["differences"]
    assert said.startswith("Version 2: taught: the ledger counted") and "the lake has" in said


def test_a_version_tells_its_code_its_settings_its_tables_and_when_it_served(world: World) -> None:
    answer = of_version("price", 3, world.settings)
    assert answer["code"] and answer["settings"]["seed"] == 7
    assert answer["settings"]["schedule"]["replay_ratio"] == 1.0
    assert answer["settings"]["schedule"]["methods"]["replay"] == "random"
    [table] = answer["tables"]
    assert (table["table"], table["after"], table["to"]) == ("events", 2, 4)
    [served] = answer["served"]
    assert (served["action"], served["who"], served["follows"]) == ("force", "test", 2) and served["until"]
    assert (answer["parent"], answer["base"], answer["aliases"]) == ("2", 1, ["previous"])
    with pytest.raises(VersionMissing):
        of_version("price", 99, world.settings)


def test_a_held_out_row_is_compared_only_until_it_joins(world: World) -> None:
    held = sorted(did(world, 2, "held out"))[0]
    known = world.known("row", held, "events")
    assert [known.get(version, {}).get("verdict") for version in (1, 2, 3, 4)] == [
        None, "compared", "compared", "learnt"
    ]
    assert known[4]["own"] == {"joined": 1} and known[3]["own"] == {}


def test_a_corrected_row_is_learnt_again_and_a_deleted_one_stays_learnt(world: World) -> None:
    known = world.known("row", world.corrected, "events")
    assert [known[version]["own"] for version in (1, 2, 3, 4)] == [{"taught": 1}, {}, {"taught": 1}, {}]
    answer = of_rows("row", world.corrected, world.settings, "events")
    past = answer["feeds"][0]["images"]
    assert [(one["table_version"], one["change"]) for one in past] == [(1, "came"), (3, "changed")]
    gone = world.known("row", world.gone, "events")
    assert gone[3]["own"] == {"deleted": 1}
    assert [gone[version]["verdict"] for version in (1, 2, 3, 4)] == ["learnt"] * 4


def test_a_late_row_is_found_by_the_window_in_which_it_landed(world: World) -> None:
    known = world.known("row", world.late, "events")
    assert set(known) == {3, 4} and known[3]["verdict"] in ("learnt", "compared")
    late = of_rows("row", world.late, world.settings, "events")["feeds"][0]["images"][0]
    assert late["landed_window"] == str(hour(101)) and late["happened"].startswith("2026-01-09T03")


def test_views_are_context(world: World) -> None:
    rows = purchases(100, count=40).to_pylist()
    view = next(row["event_id"] for row in rows if row["event_type"] == "view")
    known = world.known("row", view, "events")
    assert {one["verdict"] for one in known.values()} == {"context"} and set(known) == {2, 3, 4}


def test_a_user_and_an_item_are_found_in_every_version_that_learnt_them(world: World) -> None:
    table = open_lake(world.settings).arrow("events").to_pylist()
    row = next(row for row in table if row["event_id"] in world.taught[2])
    user = world.known("user", row["user_id"])
    assert user[2]["verdict"] == "learnt" and user[2]["own"]
    everything = did(world, 1, "taught") | world.taught[2]
    mine = {one["event_id"] for one in table if one["user_id"] == row["user_id"]}
    assert user[2]["rows"]["learnt"] == len(mine & everything)
    assert world.known("item", row["item_id"])[2]["verdict"] == "learnt"


def test_what_the_lake_never_had_was_learnt_by_nobody(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.known("row", "nonsense", "events") == {}
    assert world.known("window", str(hour(5000)), "events") == {}


def test_rows_of_a_refused_window_that_its_correction_left_as_they_were_are_learnt_with_it(
    price_shop: Settings
) -> None:
    lake, registry = open_lake(price_shop), open_registry(price_shop)
    publish_purchases(lake, 100, count=40)  # table version 2, which is refused for good
    rows = purchases(100, count=40)
    prices = [price + 1.0 if place < 10 else price for place, price in enumerate(rows["price"].to_pylist())]
    rows = rows.set_column(rows.schema.get_field_index("price"), "price", pa.array(prices, pa.float64()))
    publish(lake, EVENTS, [hour(100)], rows)
    task, parent = PriceTask(lake, ""), lineage.Version(1, registry.tags("price", 1))
    lesson = lesson_of_change(task, Snapshot(lake, {"events": 3}), 1, parent.ledger, 2, seed=7)
    own = lesson.ledger.own_rows
    assert lesson.ledger.set_aside == {} and own.balanced
    assert own.taught + own.held_out + own.context == 48  # the ten corrected ones and the others
    version = lineage.Version(2, {"evergreen.ledger": json.dumps(lesson.ledger.as_json())})
    told = lineage.own_rows(task, lake, version, parent).to_pylist()
    assert {row["key"] for row in told if row["did"] == "taught"} == set(lesson.new.table["example_id"].to_pylist())
    assert {row["did"] for row in told} == {"taught", "held out", "context"} and len(told) == 48


def test_what_is_set_aside_is_told_and_comes_back_with_its_correction(price_shop: Settings) -> None:
    lake, registry = open_lake(price_shop), open_registry(price_shop)
    publish_purchases(lake, 100, count=40)
    publish_purchases(lake, 101)
    task, first = PriceTask(lake, ""), lineage.Version(1, registry.tags("price", 1))
    lesson = lesson_of_change(task, Snapshot(lake, {"events": 3}), 1, first.ledger, 2, seed=7)
    second = lineage.Version(2, {"evergreen.ledger": json.dumps(lesson.ledger.as_json())})
    publish(lake, EVENTS, [hour(100)], purchases(100, count=40).slice(1))  # one row goes, the others are as they were
    lesson = lesson_of_change(task, Snapshot(lake, {"events": 4}), 2, second.ledger, 3, seed=7)
    third = lineage.Version(3, {"evergreen.ledger": json.dumps(lesson.ledger.as_json())})
    few = FewRows.of(lake, EVENTS, "landed_window", hour(100).start)
    known = known_by_versions(task, lake, [first, second, third], few)
    assert [one.rows for one in known[:2]] == [{}, {"set aside": 48}] and known[1].own == {"set aside": 48}
    assert known[2].own["deleted"] == 1 and sum(known[2].rows.values()) == 47 and "set aside" not in known[2].rows
    assert known[2].rows["learnt"] == len(lesson.new)


def test_a_retrain_on_few_days_may_have_old_rows_replayed_by_its_updates(
    world: World, first_price_shop: Path, tmp_path: Path
) -> None:
    settings = Settings(**{**copied(first_price_shop, tmp_path).__dict__, "tasks": ("price",)})
    short = World(settings)
    done = updating.retrain("price", settings, NOW, "weekly", days=2, report=lambda line: None)
    open_registry(settings).promote("price", 2, 1, who="test", reasons=[], action="force", decided_at=NOW)
    assert done["version"] == 2
    publish_purchases(open_lake(settings), 100)
    assert short.learn() == 3
    known = short.known("window", str(hour(3)), "events")
    assert (known[2]["verdict"], known[2]["rows"]["context"]) == ("context", 12)
    assert known[3]["verdict"] == "may be learnt" and known[3]["own"] == {}
    assert short.replayed[3] & {row["event_id"] for row in purchases(3).to_pylist()} <= set(
        open_lake(settings).arrow("events")["event_id"].to_pylist()
    )
    assert of_version("price", 3, settings)["differences"] == []


# -- the commands -----------------------------------------------------------------------------------------


@pytest.fixture
def installation(world: World, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for module in (lineage, forgetting):
        monkeypatch.setattr(module, "read_settings", lambda: world.settings)
    monkeypatch.setenv("COLUMNS", "200")
    return world.settings


def test_each_question_prints_a_table_and_writes_a_page(
    installation: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["version", "price", "4"]) == 0
    said = capsys.readouterr().out
    for part in ("evergreen-price, version 4 (challenger, champion)", "Lineage, oldest first", "Code and settings",
                 "Windows of the whole lineage", "2026-02-11 12:00", "learning_rate"):
        assert part in said, part
    page = installation.reports / "lineage" / "price-4.html"
    assert "Windows of the whole lineage" in page.read_text() and "What the words mean" in page.read_text()
    assert main(["window", "events", str(hour(100)), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["feeds"][0]["tasks"][0]["by_verdict"]["learnt"] == [2, 3, 4]
    assert main(["row", "events", "nonsense"]) == 0
    assert "has never had a row of it" in capsys.readouterr().out
    assert main(["version", "price", "77"]) == 1
    assert "must have version 77" in capsys.readouterr().err
    assert main(["window", "events", "yesterday"]) == 1
    assert "ISO 8601" in capsys.readouterr().err


def test_a_raw_user_id_is_masked_before_it_is_asked_for_printed_or_written(
    installation: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["user", "anne@example.org", "--json"]) == 0
    said = capsys.readouterr().out
    known = Mask(installation.mask_key).value("anne@example.org")
    assert json.loads(said)["id"] == known and "anne" not in said
    assert [path.name for path in (installation.reports / "lineage").glob("user-*")] == [f"user-{known}.html"]


def test_what_an_answer_holds_is_text_on_the_page(installation: Settings) -> None:
    assert main(["item", "<script>alert(1)</script>/../../x"]) == 0
    [page] = (installation.reports / "lineage").glob("item-*")
    assert "<script" not in page.read_text() and "&lt;script&gt;" in page.read_text()


def test_promotion_writes_the_versions_page_and_notes_it_in_the_registry(price_shop_an_hour_later: Settings) -> None:
    settings = price_shop_an_hour_later
    updating.promote("price", 2, settings, NOW)
    page = settings.reports / "lineage" / "price-2.html"
    assert "Windows of its own learning" in page.read_text()
    assert ", champion)" in page.read_text() and f"As of {NOW:%Y-%m-%d %H:%M} UTC" in page.read_text()  # true for then
    assert open_registry(settings).tags("price", 2)["evergreen.lineage"] == "lineage/price-2.html"


def test_forgetting_a_user_answers_with_the_versions_concerned(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(**{**copied(world.settings.home, tmp_path).__dict__, "tasks": ("price",)})
    monkeypatch.setattr(forgetting, "read_settings", lambda: settings)
    [late] = late_row().to_pylist()
    verdicts = World(settings).known("user", late["user_id"])
    registry = mlflow.MlflowClient(settings.tracking_uri)
    source = registry.get_model_version("evergreen-price", "1").source
    by_hand = registry.create_model_version("evergreen-price", source)  # which has no ledger
    with pytest.raises(RegistryError, match="registered by hand"):
        of_version("price", int(by_hand.version), settings)
    for _ in range(2):  # the second time the rows are gone from the table, and their past is not
        assert forgetting.main(["user", late["user_id"]]) == 0
        said = capsys.readouterr().out
        learnt = [version for version, one in verdicts.items() if one["verdict"] == "learnt"]
        assert learnt and f"{learnt[0]}" in said and "have learnt from it" in said and "retrain_price" in said
    assert World(settings).known("user", late["user_id"])[4]["verdict"] == verdicts[4]["verdict"]


def test_a_month_between_two_versions_is_nothing_to_a_window_that_neither_learnt(world: World) -> None:
    assert Window(hour(100).start + timedelta(hours=1)) == hour(101)
    assert world.known("window", str(hour(500)), "events") == {}


def test_nothing_imports_tensorflow_to_answer() -> None:
    import subprocess
    import sys

    script = "import sys, pipeline.lineage; assert not {'mlflow', 'tensorflow'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_of_the_recommender_rows_counts_and_catalogue_are_told_as_they_were_read(tmp_path: Path) -> None:
    """Views, searches and a catalogue: what the lessons count is what the lineage finds, without training anything."""
    settings, shop = settings_of(tmp_path), small_shop(users=100, history_days=2, history_events=1_500)
    lake = open_lake(settings)
    publish_hours(settings, shop, 0, 48)
    task = task_named("recommend", settings, lake)
    tables = Snapshot(lake, {name: lake.version(name) for name in ("events", "items")})
    base = lesson_of_everything(task, tables, None, None)
    publish_hours(settings, shop, 48, 2)
    tables = Snapshot(lake, {name: lake.version(name) for name in ("events", "items")})
    update = lesson_of_change(task, tables, 1, base.ledger, base.ledger.versions["events"], seed=7)
    first, second = (
        lineage.Version(number, {"evergreen.ledger": json.dumps(lesson.ledger.as_json())})
        for number, lesson in ((1, base), (2, update))
    )
    for version, parent in ((first, None), (second, first)):
        rows = lineage.own_rows(task, lake, version, parent)
        assert lineage._differences(version, rows) == [] and len(rows) > 100
    launched = lake.changes("items", first.ledger.versions["items"], second.ledger.versions["items"])
    few = FewRows.of(lake, ITEMS, "item_id", launched["item_id"][0].as_py())
    known = known_by_versions(task, lake, [first, second], few)
    assert [one.verdict for one in known] == ["not seen", "context"] and known[1].own == {"context": 1}


def test_settings_and_versions_are_shown_as_a_command_takes_them(
    installation: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = of_version("price", 4, installation)
    answer |= {"base": 1001, "settings": {"seed": 20260101, "copies": True, "replayed": 0}}
    answer["lineage"][0]["version"] = 1001
    page = write_lineage_page(answer, installation.reports, NOW).read_text()
    for cells in ("<td>seed</td><td>20260101</td>", "<td>copies</td><td>True</td>", "<td>replayed</td><td>0</td>",
                  '<td class="num">1001</td>', "<td>first model of its lineage</td><td>1001</td>"):
        assert cells in page, cells
    print_answer(answer, Console())
    assert "1,001" not in capsys.readouterr().out
