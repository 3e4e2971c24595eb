"""The registry's promises, on a real MLflow: whole versions or none, one winner, a complete log."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from deltalake import write_deltalake
from deltalake.exceptions import DeltaError

from pipeline import tables
from pipeline.champion import main
from pipeline.decisions import DecisionRow, services
from pipeline.lake import Lake
from pipeline.locking import file_locks
from pipeline.packaging import content_hash
from pipeline.registry import Promotion, Registry
from pipeline.registry_errors import (
    PromotionConflict,
    RegistryError,
    VerificationFailed,
    VersionMissing,
    VersionRetired,
)
from pipeline.retention import tidy
from pipeline.tasks import catalogue
from pipeline.tasks.contract import Package

NOW = datetime(2026, 1, 5, 12, 30, tzinfo=UTC)
HOUR = datetime(2026, 1, 5, 11, tzinfo=UTC)
TASK = "toy"

SERVICE = """
import json
from importlib import import_module
from pathlib import Path
import mlflow

class Toy(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.scale = json.loads(Path(context.artifacts["weights"]).read_text())["scale"]
        self.shared = context.model_config["shared"]["words"]
        self.code = import_module(context.model_config["code_package"] + ".arithmetic")

    def predict(self, context, model_input, params=None):
        words = Path(mlflow.artifacts.download_artifacts(self.shared), "words.txt").read_text().split()
        scores = [self.code.scaled(value, self.scale) for value in model_input["value"]]
        import pandas as pd
        return pd.DataFrame({"words": [words[: (params or {}).get("k", 1)] for _ in scores], "score": scores})

mlflow.models.set_model(Toy())
"""


def package(
    folder: Path, scale: float = 2.0, answers: float | None = None, code: str = "value * scale"
) -> Package:
    """A model that multiplies: real files, no fake."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "toys" / "__pycache__").mkdir(parents=True)
    (folder / "toys" / "__init__.py").write_text("")
    (folder / "toys" / "__pycache__" / "old.pyc").write_text("stale")
    (folder / "toys" / "arithmetic.py").write_text("from .inner import times\n\nscaled = times\n")
    (folder / "toys" / "inner.py").write_text(f"def times(value, scale):\n    return {code}\n")
    (folder / "service.py").write_text(SERVICE)
    (folder / "weights.json").write_text(json.dumps({"scale": scale}))
    (folder / "words").mkdir()
    (folder / "words" / "words.txt").write_text("alpha beta")
    return Package(
        model_code=folder / "service.py", code_folders=(folder / "toys",),
        artifacts={"weights": folder / "weights.json"}, config={"code_package": "toys"},
        requirements=("mlflow", "pandas"),
        input_example=pd.DataFrame({"value": [1.0, 3.0], "note": ["", "x"]}),
        output_example=pd.DataFrame({
            "words": [["alpha"], ["alpha"]], "score": [answers or scale, 3 * (answers or scale)],
        }),
        parameters={"k": 1}, shared={"words": folder / "words"},
    )


def tags(
    decision: str = "promote", parent: int | None = None, reasons: list[str] | None = None
) -> dict[str, str]:
    return {
        "evergreen.task": TASK, "evergreen.kind": "update", "evergreen.parent": str(parent or ""),
        "evergreen.compared_with": str(parent or ""), "evergreen.decision": decision,
        "evergreen.reasons": json.dumps(reasons or ["Shown to be not worse."]),
        "evergreen.ledger": "{}", "evergreen.window": HOUR.isoformat(),
    }


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def opened(home: Path, verifies: bool = False) -> Registry:
    locks = file_locks(home / "locks")
    return Registry(
        f"sqlite:///{home / 'mlflow.db'}", Lake(str(home / "lake"), locks), locks,
        str(home / "mlflow" / "artifacts"), verifies=verifies,
    )


@pytest.fixture
def registry(home: Path) -> Registry:
    return opened(home)


def register(registry: Registry, home: Path, scale: float = 2.0, **given: object) -> int:
    checkpoint = home / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "arrays.safetensors").write_bytes(np.float32(scale).tobytes())
    made = package(home / "package", scale)
    return registry.register(TASK, made, checkpoint, tags(**given), {"a.b_at_20": 0.25})


def light(registry: Registry, decision: str = "promote", parent: int | None = None) -> int:
    """A version without files: enough for what only moves aliases."""
    registry._create_model("evergreen-toy", "")
    return int(registry._client.create_model_version(
        "evergreen-toy", source="file:///none", tags=tags(decision, parent)
    ).version)


def promote(
    registry: Registry, version: int, expected: int | None, minutes: int = 0, **given: object
) -> Promotion:
    return registry.promote(
        TASK, version, expected, **{
            "who": "update", "reasons": ["Shown to be not worse."], "window": HOUR,
            "decided_at": NOW + timedelta(minutes=minutes), **given,
        },
    )


def log(registry: Registry) -> list[tuple[str, int, int | None, int | None]]:
    rows = registry.decisions(TASK).to_pylist()
    return [(row["action"], row["version"], row["champion_before"], row["champion_after"]) for row in rows]


# -- registering ------------------------------------------------------------------------------------------


def test_a_version_has_all_its_tags_its_checkpoint_and_a_page_for_people(
    registry: Registry, home: Path
) -> None:
    version = register(registry, home, scale=3.0, parent=7, reasons=["It is better by 0.0100."])
    assert registry.versions(TASK) == [version] == [1]
    assert registry.tags(TASK, 1)["evergreen.parent"] == "7" and registry.tags(TASK, 1)["evergreen.code"]
    copied = registry.load_checkpoint(TASK, 1, home / "copy")
    assert np.frombuffer((copied / "arrays.safetensors").read_bytes(), np.float32).tolist() == [3.0]
    page = registry._version(TASK, 1).description
    assert "**promote** · update from version 7" in page and "- It is better by 0.0100." in page
    assert "| a.b_at_20 | 0.2500 |" in page
    assert registry.champion(TASK) is None and registry.aliases(TASK) == {"challenger": 1}


def test_files_lie_below_home_without_pickle_and_shared_parts_lie_there_once(
    registry: Registry, home: Path
) -> None:
    register(registry, home, scale=2.0)
    register(registry, home, scale=3.0)
    assert not (home / "mlruns").exists()
    files = [path for path in (home / "mlflow").rglob("*") if path.is_file()]
    assert [path.name for path in files].count("words.txt") == 1
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pyc")]
    descriptions = [path.read_text() for path in files if path.name == "MLmodel"]
    assert len(descriptions) == 2
    for text in descriptions:  # cloudpickle's version is in any pyfunc's; `python_model` in a pickled one's
        assert "loader_module: mlflow.pyfunc.loaders.code_model" in text and "python_model:" not in text


@pytest.mark.slow
def test_a_consumer_loads_by_alias_in_a_fresh_process(registry: Registry, home: Path) -> None:
    promote(registry, register(registry, home, scale=4.0), None, action="first")
    script = textwrap.dedent("""
        import mlflow, pandas as pd, sys
        model = mlflow.pyfunc.load_model("models:/evergreen-toy@champion")
        answer = model.predict(pd.DataFrame({"value": [1.5]}), params={"k": 2})
        print(answer["score"].tolist(), answer["words"].tolist(), model.metadata.signature.params)
        assert not {"pipeline", "airflow", "deltalake"} & set(sys.modules)
    """)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry.tracking_uri}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[6.0] [['alpha', 'beta']]") and "'k'" in done.stdout


def test_two_versions_of_different_code_answer_side_by_side(registry: Registry, home: Path) -> None:
    import mlflow

    for code in ("value * scale", "value + scale"):
        registry.register(TASK, package(home / "package", code=code), home / "package" / "words", tags(), {})
    mlflow.set_tracking_uri(registry.tracking_uri)
    first, second = (mlflow.pyfunc.load_model(f"models:/evergreen-toy/{version}") for version in (1, 2))
    rows = pd.DataFrame({"value": [5.0]})
    assert [second.predict(rows)["score"][0], first.predict(rows)["score"][0]] == [7.0, 10.0]


def test_long_tags_are_kept_whole(registry: Registry, home: Path) -> None:
    reasons = ["because " * 2_000]
    register(registry, home, reasons=reasons)
    assert json.loads(registry.tags(TASK, 1)["evergreen.reasons"]) == reasons


def test_children_are_found_by_their_parent(registry: Registry) -> None:
    for parent in (1, 1, 2, None, 1, 11):
        light(registry, parent=parent)
    children = registry.children(TASK, 1)
    assert [child.number for child in children] == [1, 2, 5]
    assert all(dict(child.tags) == registry.tags(TASK, child.number) for child in children)
    assert [child.number for child in registry.children(TASK, None)] == [4]
    assert registry.children("unknown", 1) == [] and registry.champion("unknown") is None


def test_a_version_is_decided_on_once_something_was_done_with_it(registry: Registry) -> None:
    light(registry)
    light(registry, "hold", parent=1)
    promote(registry, 1, None, action="first")
    registry.record(TASK, "set-aside", 2, who="update", reasons=["Refused thrice."], decided_at=NOW)
    assert registry.decided(TASK, 1) and not registry.decided(TASK, 2)
    registry.record(TASK, "hold", 2, who="update", reasons=["Too little."], decided_at=NOW)
    assert registry.decided(TASK, 2)


def test_an_unknown_version_says_how_to_list_the_known_ones(registry: Registry) -> None:
    light(registry)
    with pytest.raises(VersionMissing, match=r"must have version 9.*champion versions --task toy"):
        registry.tags(TASK, 9)
    with pytest.raises(VersionMissing):
        promote(registry, 9, None)
    assert registry.champion(TASK) is None


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    first = package(tmp_path / "a").code_folders[0]
    other = package(tmp_path / "b").code_folders[0]
    assert content_hash(first) == content_hash(other)
    (other / "inner.py").rename(other / "outer.py")
    assert content_hash(first) != content_hash(other)


# -- promoting --------------------------------------------------------------------------------------------


def test_promotion_moves_previous_and_champion_and_says_so_in_the_log(registry: Registry) -> None:
    light(registry), light(registry)
    promote(registry, 1, None, action="first")
    done = promote(registry, 2, 1, minutes=1)
    assert (done.champion_before, done.champion_after) == (1, 2)
    assert (registry.champion(TASK), registry.previous(TASK)) == (2, 1)
    assert log(registry) == [("first", 1, None, 1), ("promote", 2, 1, 2)]
    row = registry.decisions(TASK).to_pylist()[1]
    assert (row["who"], row["window"]) == ("update", HOUR)
    assert json.loads(row["reasons"]) == ["Shown to be not worse."]


def test_who_was_overtaken_changes_nothing(registry: Registry) -> None:
    light(registry), light(registry), light(registry)
    promote(registry, 1, None, action="first")
    promote(registry, 2, 1, minutes=1)
    with pytest.raises(PromotionConflict, match=r"compared with champion 1; the champion is now 2") as caught:
        promote(registry, 3, 1, minutes=2)
    assert (caught.value.expected, caught.value.found) == (1, 2) and "next update" in caught.value.remedy
    assert registry.champion(TASK) == 2 and len(log(registry)) == 2


def test_a_repeated_promotion_changes_nothing_and_does_not_undo_a_rollback(registry: Registry) -> None:
    light(registry), light(registry)
    promote(registry, 1, None, action="first")
    for minutes in (1, 2):
        assert promote(registry, 2, 1, minutes).champion_after == 2
    assert len(log(registry)) == 2
    registry.rollback(TASK, None, who="ann", why="worse in the shop", decided_at=NOW + timedelta(hours=1))
    assert promote(registry, 2, 1, 61).champion_after == 1
    assert registry.champion(TASK) == 1
    promote(registry, 2, 1, 62, action="force", who="ann")
    assert registry.champion(TASK) == 2
    assert [row[0] for row in log(registry)] == ["first", "promote", "rollback", "force"]


def test_rollback_goes_to_the_version_before_or_to_a_chosen_one_and_once_only(registry: Registry) -> None:
    for version in (1, 2, 3):
        light(registry)
        promote(registry, version, version - 1 or None, version, action="promote" if version > 1 else "first")
    for _ in range(2):  # a retried task must not roll forward again
        done = registry.rollback(TASK, None, who="ann", why="bad", decided_at=NOW + timedelta(hours=1))
        assert (done.champion_before, done.champion_after) == (3, 2)
    assert (registry.champion(TASK), registry.previous(TASK)) == (2, 3)
    registry.rollback(TASK, 1, who="ann", why="still bad", decided_at=NOW + timedelta(hours=2))
    assert (registry.champion(TASK), registry.previous(TASK)) == (1, 2)
    assert log(registry)[3:] == [("rollback", 2, 3, 2), ("rollback", 1, 2, 1)]


def test_rollback_without_a_version_before_says_what_to_do(registry: Registry) -> None:
    light(registry)
    promote(registry, 1, None, action="first")
    with pytest.raises(RegistryError, match=r"no version that served before 1. Choose one with --to"):
        registry.rollback(TASK, None, who="ann", why="bad", decided_at=NOW)


def test_holds_and_rejections_are_logged_once(registry: Registry) -> None:
    light(registry), light(registry, "hold", 1)
    promote(registry, 1, None, action="first")
    for reason in ("few users", "few users", "another hour"):
        registry.record(TASK, "hold", 2, who="update", reasons=[reason], decided_at=NOW + timedelta(hours=1))
    assert log(registry)[1:] == [("hold", 2, 1, 1)] * 2
    with pytest.raises(RegistryError, match=r"one of .*'hold'.*received 'promote'"):
        registry.record(TASK, "promote", 2, who="x", reasons=[], decided_at=NOW)
    with pytest.raises(RegistryError, match=r"received 'hold'"):
        promote(registry, 2, 1, action="hold")


# -- verifying --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_that_answers_differently_does_not_serve(home: Path) -> None:
    registry = opened(home, verifies=True)
    for version, answers in ((1, None), (2, 2.5)):
        registry.register(
            TASK, package(home / "package", answers=answers), home / "package" / "words", tags(), {}
        )
        assert registry.versions(TASK)[-1] == version
    promote(registry, 1, None, action="first")
    with pytest.raises(VerificationFailed, match=r"Version 2 of evergreen-toy must load in a fresh process"):
        promote(registry, 2, 1, minutes=1)
    assert registry.champion(TASK) == 1 and log(registry) == [("first", 1, None, 1)]


# -- killed and in company --------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for `kill -9`: nothing in the code under test catches or cleans up after it."""


def killing(step: int) -> Callable[..., None]:
    """Ends the call of an MLflow client or of the lake before its `step`-th write."""
    left = [step]

    def before_write() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return before_write


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Registry, int], None]]:
    def arm(registry: Registry, step: int) -> None:
        before_write = killing(step)
        for target, names in (
            (registry._client, ("set_model_version_tag", "set_registered_model_alias", "create_model_version",
                                "create_run", "log_artifacts", "set_terminated", "log_batch")),
            (registry._log, ("append",)),
        ):
            for name in names:
                write = getattr(target, name)

                def killable(*given: object, _write: Callable = write, **named: object) -> object:
                    before_write()
                    return _write(*given, **named)

                monkeypatch.setattr(target, name, killable)

    yield arm


@pytest.mark.parametrize("step", range(4))
def test_a_promotion_killed_before_any_of_its_writes_ends_the_same_when_run_again(
    home: Path, killer: Callable[[Registry, int], None], step: int
) -> None:
    registry = opened(home)
    light(registry), light(registry)
    promote(registry, 1, None, action="first")
    killer(registry, step)
    with pytest.raises(Killed):
        promote(registry, 2, 1, minutes=1)
    after = opened(home)
    assert promote(after, 2, 1, minutes=5).champion_after == 2
    assert (after.champion(TASK), after.previous(TASK)) == (2, 1)
    assert log(after) == [("first", 1, None, 1), ("promote", 2, 1, 2)]


def test_a_killed_promotion_is_completed_by_whoever_comes_next(
    home: Path, killer: Callable[[Registry, int], None]
) -> None:
    registry = opened(home)
    for _ in range(3):
        light(registry)
    promote(registry, 1, None, action="first")
    killer(registry, 3)  # before the row is appended
    with pytest.raises(Killed):
        promote(registry, 2, 1, minutes=1)
    after = opened(home)
    promote(after, 3, 2, minutes=2)
    assert log(after) == [("first", 1, None, 1), ("promote", 2, 1, 2), ("promote", 3, 2, 3)]


@pytest.mark.parametrize("step", range(9))
def test_a_registration_killed_before_any_of_its_writes_leaves_no_half_version(
    home: Path, killer: Callable[[Registry, int], None], step: int
) -> None:
    killer(registry := opened(home), step)
    try:
        register(registry, home)
        finished = True
    except Killed:
        finished = False
    after = opened(home)
    assert len(after.versions(TASK)) in ((1,) if finished else (0, 1))
    version = register(after, home, scale=5.0)
    for held in after.versions(TASK):
        assert after.tags(TASK, held)["evergreen.decision"] == "promote"
        assert after.load_checkpoint(TASK, held, home / f"copy-{held}")
    assert after.aliases(TASK) == {"challenger": version}


@pytest.mark.slow
def test_of_two_processes_with_the_same_champion_exactly_one_promotes(registry: Registry, home: Path) -> None:
    for _ in range(3):
        light(registry)
    promote(registry, 1, None, action="first")
    script = textwrap.dedent("""
        import sys
        from datetime import UTC, datetime
        from pathlib import Path
        from pipeline.lake import Lake
        from pipeline.locking import file_locks
        from pipeline.registry import Registry
        from pipeline.registry_errors import PromotionConflict
        home, version = Path(sys.argv[1]), int(sys.argv[2])
        locks = file_locks(home / "locks")
        lake = Lake(str(home / "lake"), locks)
        registry = Registry(f"sqlite:///{home / 'mlflow.db'}", lake, locks, verifies=False)
        registry.champion("toy")
        Path(home, f"ready-{version}").touch()
        while not all(Path(home, f"ready-{one}").exists() for one in (2, 3)):
            pass
        try:
            registry.promote("toy", version, 1, who=f"p{version}", reasons=[], decided_at=datetime.now(UTC))
            print("won")
        except PromotionConflict:
            print("lost")
    """)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(home), str(version)], stdout=subprocess.PIPE, text=True
        )
        for version in (2, 3)
    ]
    ended = [racer.communicate(timeout=120)[0].strip() for racer in racers]
    assert sorted(ended) == ["lost", "won"]
    winner = 2 + ended.index("won")
    assert (registry.champion(TASK), registry.previous(TASK)) == (winner, 1)
    assert log(registry)[1:] == [("promote", winner, 1, winner)]


@pytest.mark.slow
def test_over_many_rounds_exactly_one_of_two_processes_wins_and_the_log_has_no_gap(
    registry: Registry, home: Path
) -> None:
    rounds = 40
    for _ in range(1 + 2 * rounds):
        light(registry)
    promote(registry, 1, None, action="first")
    script = textwrap.dedent("""
        import sys
        from datetime import UTC, datetime
        from pathlib import Path
        from pipeline.lake import Lake
        from pipeline.locking import file_locks
        from pipeline.registry import Registry
        from pipeline.registry_errors import PromotionConflict
        home, mine = Path(sys.argv[1]), int(sys.argv[2])
        locks = file_locks(home / "locks")
        registry = Registry(f"sqlite:///{home / 'mlflow.db'}", Lake(str(home / "lake"), locks), locks, verifies=False)
        registry.champion("toy")
        print("ready", flush=True)
        for line in sys.stdin:  # a round: the champion that both challengers were compared with
            expected, first = map(int, line.split())
            try:
                registry.promote(
                    "toy", first + mine, expected, who=f"p{mine}", reasons=[], decided_at=datetime.now(UTC)
                )
                print("won", flush=True)
            except PromotionConflict:
                print("lost", flush=True)
    """)
    racers = [
        subprocess.Popen([sys.executable, "-c", script, str(home), str(mine)], text=True, bufsize=1,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for mine in (0, 1)
    ]
    try:
        assert [racer.stdout.readline().strip() for racer in racers] == ["ready", "ready"]
        champion, wanted, wins = 1, [("first", 1, None, 1)], [0, 0]
        for number in range(rounds):
            for racer in racers if number % 2 else reversed(racers):  # neither always hears of it first
                racer.stdin.write(f"{champion} {2 + 2 * number}\n")
            ended = [racer.stdout.readline().strip() for racer in racers]
            assert sorted(ended) == ["lost", "won"], number
            won = ended.index("won")
            wins[won] += 1
            wanted.append(("promote", 2 + 2 * number + won, champion, 2 + 2 * number + won))
            champion = wanted[-1][1]
            assert registry.champion(TASK) == champion
    finally:
        for racer in racers:
            racer.stdin.close()
            racer.wait(timeout=60)
    assert log(registry) == wanted and min(wins) > 0, wins
    served = registry.services(TASK)
    assert not any(one.gap for one in served) and [one.version for one in served] == [row[1] for row in wanted]


# -- who served when ----------------------------------------------------------------------------------------


def move(minutes: int, before: int | None, after: int, action: str = "promote") -> DecisionRow:
    return DecisionRow(TASK, NOW + timedelta(minutes=minutes), action, after, before, after, HOUR, "ann", ("why",))


def test_the_history_says_who_served_from_when_until_when() -> None:
    held = DecisionRow(TASK, NOW + timedelta(minutes=2), "hold", 3, 2, 2, HOUR, "update", ("few",))
    served = services([move(5, 2, 1, "rollback"), move(0, None, 1, "first"), move(1, 1, 2), held])
    assert [(one.version, one.action, one.follows, one.gap) for one in served] == [
        (1, "first", None, False), (2, "promote", 1, False), (1, "rollback", 2, False)
    ]
    minutes = [(one.since - NOW, one.until and one.until - NOW) for one in served]
    assert minutes == [
        (timedelta(0), timedelta(minutes=1)), (timedelta(minutes=1), timedelta(minutes=5)), (timedelta(minutes=5), None)
    ]


def test_a_move_decided_before_another_and_made_after_it_stands_after_it() -> None:
    served = services([move(0, None, 1), move(9, 1, 2), move(5, 2, 1, "rollback")])  # a long update, a quick rollback
    assert [one.version for one in served] == [1, 2, 1] and not any(one.gap for one in served)
    assert served[1].since == served[2].since == NOW + timedelta(minutes=9)


def test_a_move_that_is_missing_is_said() -> None:
    served = services([move(0, None, 1), move(2, 2, 3)])
    assert [(one.version, one.gap) for one in served] == [(1, False), (3, True)]


def test_delta_refuses_to_change_or_delete_a_decision_and_tidying_keeps_every_row(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    light(registry), light(registry)
    promote(registry, 1, None, action="first")
    promote(registry, 2, 1, minutes=1)
    lake, before = registry._log._lake, registry.decisions(TASK)
    table = lake._open("decisions")
    for write in (
        lambda: table.delete("version = 1"), lambda: table.update({"who": "'nobody'"}, predicate="version = 1"),
        lambda: write_deltalake(table, before.slice(0, 1), mode="overwrite"),
    ):
        with pytest.raises(DeltaError, match="append-only"):
            write()
    monkeypatch.setattr(tables, "LOGS_KEPT", timedelta(0))  # files that no version needs any more go at once
    tidy(lake, NOW, timedelta(0))
    assert len(lake.files("decisions", lake.version("decisions"))) == 1
    assert registry.decisions(TASK).equals(before)
    assert {one["operation"] for one in table.history()} <= {"CREATE TABLE", "WRITE", "OPTIMIZE", "VACUUM START",
                                                             "VACUUM END"}


def test_the_history_outlives_the_versions(installation: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        light(installation)
    promote(installation, 1, None, action="first", reasons=["the first"])
    promote(installation, 2, 1, minutes=1, who="bob", reasons=["better by a lot"])
    promote(installation, 3, 2, minutes=2)
    for version in ("1", "2"):
        installation._client.delete_model_version("evergreen-toy", version)
    assert installation.versions(TASK) == [3]
    assert [one.version for one in installation.services(TASK)] == [1, 2, 3]
    assert main(["history", "--task", TASK]) == 0
    shown = capsys.readouterr().out
    assert "the first" in shown and "better by a lot" in shown and "bob" in shown and "now" in shown
    with pytest.raises(VersionMissing):  # and what is gone cannot be rolled back to
        installation.rollback(TASK, 1, who="ann", why="bad", decided_at=NOW)


# -- retirement ---------------------------------------------------------------------------------------------


def test_a_retired_version_keeps_its_tags_and_can_neither_serve_nor_be_trained_on(
    registry: Registry, home: Path
) -> None:
    reasons = ["because " * 2_000]  # too long for a tag: kept as a file, which stays
    register(registry, home, reasons=reasons)
    register(registry, home)
    promote(registry, 2, None, action="first")
    assert registry.bytes_of(TASK, 1) > 500
    with pytest.raises(RegistryError, match="must be retired before"):
        registry.remove_files(TASK, 1)
    assert registry.retire(TASK, lambda: {1: "old"}) == [1]
    for ask in (
        lambda: promote(registry, 1, 2), lambda: registry.load_checkpoint(TASK, 1, home / "copy"),
        lambda: registry.rollback(TASK, 1, who="ann", why="bad", decided_at=NOW),
        lambda: promote(registry, 1, 2, action="force", who="ann"),
    ):
        with pytest.raises(VersionRetired, match=r"Version 1 of evergreen-toy must have its files.*old"):
            ask()
    for _ in range(2):
        registry.remove_files(TASK, 1)
    assert registry.bytes_of(TASK, 1) == 0 and registry.bytes_of(TASK, 2) > 500
    assert registry.retire(TASK, dict) == []
    assert json.loads(registry.tags(TASK, 1)["evergreen.reasons"]) == reasons
    assert [entry.retired for entry in registry.entries(TASK)] == ["old", None]
    assert registry.load_checkpoint(TASK, 2, home / "copy-2").exists()


# -- the command line -------------------------------------------------------------------------------------


@pytest.fixture
def installation(home: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("EVERGREEN_HOME", str(home))
    monkeypatch.setenv("EVERGREEN_MASK_KEY", "k" * 32)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(catalogue.TASKS, TASK, catalogue.Entry("tests.price_task", "PriceTask", "events"))
    for name in ("EVERGREEN_MLFLOW", "EVERGREEN_LAKE", "EVERGREEN_LOCK_URL"):
        monkeypatch.delenv(name, raising=False)
    return opened(home)


def test_the_command_line_shows_versions_and_log_and_moves_the_champion(
    installation: Registry, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(installation, home)
    light(installation, "hold", 1)
    assert main(["show", "--task", TASK]) == 1
    assert "has no champion yet: run the DAG retrain_toy first" in capsys.readouterr().err
    promote(installation, 1, None, action="first")
    assert main(["promote", "2", "--task", TASK]) == 1
    assert "it decided 'hold'" in capsys.readouterr().err
    assert main(["promote", "2", "--task", TASK, "--force"]) == 1
    assert 'add --why "..."' in capsys.readouterr().err
    promote(installation, 2, 1, minutes=1, action="force", who="ann", reasons=["the fair"])
    assert main(["rollback", "--task", TASK, "--who", "bob", "--why", "no sales"]) == 0
    assert "Version 1 of evergreen-toy serves; before: 2." in capsys.readouterr().out
    assert main(["show", "--task", TASK]) == main(["versions", "--task", TASK]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1\n") and "challenger champion" in shown and "hold" in shown
    assert main(["log", "--task", TASK]) == 0
    shown = capsys.readouterr().out
    assert "2 → 1" in shown and "no sales" in shown and "bob" in shown


def test_a_promotion_that_was_rolled_back_is_not_said_to_be_done_again(
    installation: Registry, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(installation, home)
    light(installation, "promote", 1)
    promote(installation, 1, None, action="first")
    promote(installation, 2, 1, minutes=1)
    assert main(["rollback", "--task", TASK, "--why", "no sales"]) == 0
    capsys.readouterr()
    assert main(["promote", "2", "--task", TASK]) == 1
    told = capsys.readouterr()
    assert not told.out and "1 still serves" in told.err and "add --force" in told.err


def test_a_reason_with_brackets_is_shown_as_it_was_written(
    installation: Registry, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    register(installation, home)
    promote(installation, 1, None, action="force", who="ann", reasons=["[red] bad feed [/wiki/9]"])
    for command in ("log", "history"):
        assert main([command, "--task", TASK]) == 0
        assert "[red] bad feed [/wiki/9]" in capsys.readouterr().out


def test_a_missing_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EVERGREEN_MASK_KEY", raising=False)
    assert main(["show"]) == 1
    assert "EVERGREEN_MASK_KEY" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "words", "said"),
    [
        ("recommend", ["--task", "recomend"], "recommend, sentiment, support, toy; received 'recomend'"),
        ("recommend", ["--task", ""], "support, toy; received ''"),
        ("recomend", [], "received 'recomend'"),
        ("", [], "evergreen-recommend has no champion yet"),
        (",", [], "EVERGREEN_TASKS must name a task that learns; received none"),
    ],
)
def test_a_task_that_is_not_there_is_told_and_an_empty_setting_is_the_default(
    installation: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tasks: str, words: list[str], said: str,
) -> None:
    monkeypatch.setenv("EVERGREEN_TASKS", tasks)
    assert main(["show", *words]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_importing_the_registry_imports_no_mlflow() -> None:
    script = "import sys, pipeline.champion; assert not {'mlflow', 'tensorflow'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
