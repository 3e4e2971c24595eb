"""No raw id and no secret is anywhere in an installation that has done everything once, and no pickle was loaded.

A process of its own ingests, retrains, updates, promotes, watches, tells lineage, profiles and serves, its output in
the home's logs. Then every file of the home but the landing zone is searched: tables decoded, archives unpacked.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.lake import open_lake
from pipeline.masking import Mask
from pipeline.settings import Settings, read_settings
from pipeline.sources.simulator import ShopSimulator
from pipeline.tables import text_field
from pipeline.window import HOUR, Window
from tests.landed import csv_lines, json_lines, packed, parquet, put
from tests.small_shop import small_shop

ROOT = Path(__file__).parents[1]
NOW = datetime(2026, 3, 1, tzinfo=UTC)
HISTORY_HOURS = 48

USER, OTHER, SESSION = "Kunde-Äther/77120", "ann.planted@mail.example", "visit~planted~9921"
MAIL, PHONE, SPOKEN = "bob.planted@mail.example", "+49 30 5557120", "0151 25557120"
RAW = (USER, OTHER, SESSION, MAIL, PHONE, SPOKEN)
SECRETS = {
    "EVERGREEN_MASK_KEY": "planted-mask-key-planted-mask-key", "EVERGREEN_API_KEYS": "shop:read:planted-api-key-of-24",
    "EVERGREEN_ALERT_URL": "http://127.0.0.1:9/planted-hook",
}
HIDDEN = ("planted-mask-key", "planted-api-key", "planted-hook")
SHAPE = {"users": 200, "history_days": 2, "history_events": 2_500}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGREEN")}
    told = {"EVERGREEN_HOME": str(home), "EVERGREEN_ENCODER": "tiny", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return {**kept, **told, "PYTHONPATH": str(ROOT), **SECRETS}


def windows() -> tuple[ShopSimulator, list[Window]]:
    shop = small_shop(**SHAPE)
    return shop, [Window(shop.first + HOUR * hour) for hour in range(HISTORY_HOURS + 1)]


def plant(landing: Path, window: Window) -> None:
    """Rows that can be used and rows that cannot, of two persons who say who they are."""
    time = window.start.strftime("%Y-%m-%dT%H:20:00Z")
    bought = [
        {"event_id": f"planted-{time}-{number}", "event_type": "purchase", "event_time": time, "user_id": user,
         "session_id": SESSION, "item_id": f"P00000{number}", "quantity": 1, "price": 3.5}
        for number, user in enumerate((USER, OTHER, USER))
    ]
    searched = {
        "event_type": "search", "event_time": time, "user_id": USER, "session_id": SESSION, "item_id": "P000001",
        "query": f"gift for {MAIL}, {PHONE}, I am {USER}.",
    }
    put(landing, "p.parquet", parquet(*bought), window=window)
    put(landing, "p.jsonl.gz", packed(json_lines(
        {**searched, "event_id": f"planted-{time}-s"}, {**searched, "event_type": "stare", "note": SPOKEN},
        {**searched, "price": USER}, {**searched, "event_time": f"soon, says {USER}"},
        json.dumps(searched)[:-30], f'broken {{"customer": "{OTHER}", "phone": "{PHONE}"',
    ), ".gz"), window=window)
    put(landing, "headless.csv", csv_lines(bought[0], bought[1]).split(b"\n", 1)[1], window=window)
    put(landing, "renamed.csv", csv_lines(*({**row, "event_tme": time} for row in bought)).replace(
        b"event_time,", b"happened,"), window=window)
    said = {"message_time": time, "user_id": USER, "channel": "mail"}
    put(landing, "m.jsonl", json_lines(
        {**said, "text": f"Call {SPOKEN} or write to {MAIL}! {USER}", "message_id": f"planted-{time}"},
        {**said, "text": f"Call {PHONE}", "message_time": "never"},
    ), feed="messages", window=window)


def work(home: Path) -> None:
    """What the DAGs and the commands do, once; writes which classes were unpickled."""
    unpickled: set[str] = set()
    sys.addaudithook(lambda event, given: unpickled.add(str(given[0])) if event == "pickle.find_class" else None)
    from fastapi.testclient import TestClient

    from pipeline import lineage, updating, user_profiles
    from pipeline.ingest import ingest
    from pipeline.serving import create_app
    from pipeline.watch import watch

    settings, (_, hours) = read_settings(), windows()
    print(settings)
    ingest(hours[:-1], settings)
    first = updating.retrain("recommend", settings, NOW, "first")
    print(updating.promote("recommend", first["version"], settings, NOW, who="retrain"))
    ingest(hours[-1:], settings)
    done = updating.update(updating.plan("recommend", settings), settings, NOW)
    print(updating.promote("recommend", done["version"], settings, NOW))
    print(watch(settings, NOW, "planted"))  # weeks after the last hour: alerts are raised
    for asked in (["user", USER], ["version", "recommend", "2"], ["window", "events", str(hours[-1])]):
        assert lineage.main(asked) == 0
    assert user_profiles.main(["update"]) == user_profiles.main(["show", USER]) == 0
    with TestClient(create_app()) as client:
        for key, status in (("planted-api-key-of-24", 200), ("another-planted-api-key", 401)):
            asked_for = {"history": [{"item_id": "P000001"}], "k": 3}
            answer = client.post("/v1/recommend", json=asked_for, headers={"X-API-Key": key})
            assert answer.status_code == status, answer.text
            print(answer.text)
        print(client.get("/metrics").text)
    (home / "logs" / "unpickled.json").write_text(json.dumps(sorted(unpickled)))


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Settings:
    """An installation that has done everything once."""
    home = tmp_path_factory.mktemp("worked")
    shutil.copy(empty_database, home / "mlflow.db")
    shop, hours = windows()
    shop.land(hours, home / "landing")
    for window in hours[-3:]:
        plant(home / "landing", window)
    (home / "logs").mkdir()
    with (home / "logs" / "work.log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "tests.test_nothing_raw", str(home)], cwd=ROOT, env=environment(home), stdout=log,
            stderr=subprocess.STDOUT, check=False,
        )
    assert done.returncode == 0, (home / "logs" / "work.log").read_text()[-3000:]
    return read_settings(environment(home))


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file; of a table also its values, of an archive its content."""
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        name, content = str(path.relative_to(folder)), path.read_bytes()
        yield name, name.encode() + content
        if path.suffix == ".parquet":
            yield f"{name}, decoded", repr(pq.read_table(pa.BufferReader(content)).to_pylist()).encode()
        if path.suffix == ".gz":
            yield f"{name}, unpacked", gzip.decompress(content)


def found(folder: Path, needles: tuple[str, ...]) -> set[tuple[str, str]]:
    """(file, needle), also where a needle stands with other code units or as JSON escapes it."""
    codes = ("utf-8", "utf-16-le", "utf-32-le")
    spelt = {
        needle: {json.dumps(needle)[1:-1].encode(), *(needle.encode(code) for code in codes)} for needle in needles
    }
    return {
        (name, needle) for name, content in contents(folder) for needle, forms in spelt.items()
        if any(form in content for form in forms)
    }


def outside_the_landing_zone(home: Path) -> list[Path]:
    return [one for one in home.iterdir() if one.is_dir() and one.name != "landing"]


def test_the_search_finds_what_the_shop_landed(worked: Settings) -> None:
    seen = found(Path(worked.landing), RAW)
    assert {needle for _, needle in seen} == set(RAW)
    assert {name.split(", ")[-1] for name, _ in seen} >= {"decoded", "unpacked"}


def test_what_was_planted_came_in_masked(worked: Settings) -> None:
    lake, mask = open_lake(worked), Mask(SECRETS["EVERGREEN_MASK_KEY"])
    events = lake.arrow("events", filter=text_field("user_id") == mask.value(USER)).to_pylist()
    assert len(events) == 3 * 3 and {row["session_id"] for row in events} == {mask.value(SESSION)}
    wanted = f"gift for [e-mail], [phone], I am {mask.value(USER)}."
    assert [row["query"] for row in events if row["query"]] == [wanted] * 3
    texts = lake.arrow("messages")["text"].to_pylist()
    assert texts.count(f"Call [phone] or write to [e-mail]! {mask.value(USER)}") == 3
    assert len(lake.arrow("quarantine")) >= 3 * (5 + 2 + 3 + 1)


def test_no_raw_id_address_or_number_is_in_any_file(worked: Settings) -> None:
    leaks = {leak for folder in outside_the_landing_zone(worked.home) for leak in found(folder, RAW)}
    leaks |= found_in_files_of_home(worked.home, RAW)
    assert not leaks


def test_no_id_of_the_shops_other_customers_is_in_any_file(worked: Settings) -> None:
    customer = re.compile(rb"(?<![A-Za-z0-9])U\d{6}(?!\d)")
    landed = [content for _, content in contents(Path(worked.landing))]
    assert any(customer.search(content) for content in landed)
    seen = {
        (folder.name, name, match[0]) for folder in outside_the_landing_zone(worked.home)
        for name, content in contents(folder) if not name.endswith(".png") for match in customer.finditer(content)
    }
    assert not seen


def test_no_secret_is_in_any_file(worked: Settings) -> None:
    leaks = {leak for folder in worked.home.iterdir() if folder.is_dir() for leak in found(folder, HIDDEN)}
    assert not leaks | found_in_files_of_home(worked.home, HIDDEN)


def found_in_files_of_home(home: Path, needles: tuple[str, ...]) -> set[tuple[str, str]]:
    """The files that lie in the home itself, such as MLflow's database."""
    files = [one for one in home.iterdir() if one.is_file()]
    assert any(one.name == "mlflow.db" for one in files)
    return {(one.name, needle) for one in files for needle in needles if needle.encode() in one.read_bytes()}


def test_no_class_was_unpickled_and_checkpoints_are_arrays_and_json(worked: Settings) -> None:
    unpickled = json.loads((worked.home / "logs" / "unpickled.json").read_text())
    assert not [name for name in unpickled if name.startswith(("evergreen", "models", "pipeline", "tests", "__main__"))]
    files = [one for one in (worked.home / "mlflow").rglob("checkpoint/*") if one.is_file()]
    assert {one.suffix for one in files} == {".safetensors", ".json"}


if __name__ == "__main__":
    work(Path(sys.argv[1]))
