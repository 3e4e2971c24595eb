"""The DAG files: light to parse, wiring only, and what an operator and a scheduler expect of them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.settings import REPOSITORY, SettingsError, read_settings

DAGS = REPOSITORY / "dags"
HEAVY = ("tensorflow", "keras", "pandas", "mlflow", "great_expectations", "deltalake", "duckdb", "pyarrow", "numpy")

_PARSE = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import airflow.sdk
there = set(sys.modules)
found = {}
for name in sys.argv[2:]:
    started = time.perf_counter()
    module = __import__(name)
    found[name] = time.perf_counter() - started
heavy = sorted({one.split(".")[0] for one in set(sys.modules) - there})
import airflow.sdk
from airflow.sdk import DAG
dags = {}
for name in sys.argv[2:]:
    for value in vars(sys.modules[name]).values():
        pass
print(json.dumps({"seconds": found, "modules": heavy}))
"""

_LIST = """
import json, sys
sys.path.insert(0, sys.argv[1])  # as Airflow does with a bundle's root
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1], load_op_links=False)
print("FOUND" + json.dumps({"errors": bag.import_errors, "dags": {
    dag.dag_id: {
        "tags": sorted(dag.tags), "doc": dag.doc_md, "description": dag.description, "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs, "params": sorted(dag.params),
        "cron": getattr(dag.timetable, "expression", None),
        "told_of_failure": [type(one).__name__ for one in dag.on_failure_callback or []],
        "tasks": {task.task_id: {
            "retries": task.retries, "timeout": task.execution_timeout and task.execution_timeout.total_seconds(),
            "told_of_failure": [type(one).__name__ for one in task.on_failure_callback or []],
            "told_of_success": [type(one).__name__ for one in task.on_success_callback or []],
            "owner": task.owner, "pool": task.pool, "depends_on_past": task.depends_on_past,
        } for task in dag.tasks},
    } for dag in bag.dags.values()}}))
import os
from types import SimpleNamespace
from unittest import mock
import pendulum
from airflow.serialization.serialized_objects import DagSerialization
ingest = bag.dags["ingest"]
stored = DagSerialization.from_dict(DagSerialization.to_dict(ingest))
first, last, now = map(pendulum.parse, sys.argv[2:])
intervals = [one.data_interval for one in stored.iter_dagrun_infos_between(first, last)]
by_hand = stored.timetable.infer_manual_data_interval(run_after=now)
taken_in = []
publish = ingest.get_task("publish_windows").python_callable
with (mock.patch("pipeline.ingest.ingest", lambda windows, settings: taken_in.extend(map(str, windows)) or ()),
      mock.patch("pipeline.latecomers.take_in_late")):
    runs = [
        ("manual", now, by_hand.start, None), *(("backfill", one.start, one.start, None) for one in intervals),
        # as Airflow leaves one that was started by hand with a date, once a backfill of "All runs" took it over
        ("backfill", first.replace(minute=7), first.subtract(minutes=53), "2011-11-14T09:00Z"),
    ]
    for kind, name, interval_start, window in runs:
        run = SimpleNamespace(run_type=kind, logical_date=name, data_interval_start=interval_start, run_after=now)
        context = {"params": {"window": window, "until": None}, "dag_run": run, "ti": mock.Mock()}
        with mock.patch.dict(publish.__globals__, get_current_context=lambda context=context: context):
            publish()
print("WINDOWS" + json.dumps(taken_in))
from pipeline.registry_errors import VersionMissing
registry = mock.Mock()
registry.rollback.side_effect = registry.promote.side_effect = VersionMissing("recommend", 99)
registry.tags.return_value = {}
told = []
with mock.patch("pipeline.registry.open_registry", return_value=registry):
    for dag, task, params in [
        ("ingest", "publish_windows", {"window": "2026-02-01T09:30Z", "until": None}),
        ("rollback", "roll_back", {"task": "recommend", "version": 99, "why": "odd"}),
        ("promote", "promote_by_force", {"task": "recommend", "version": 99, "why": "odd"}),
    ]:
        run = SimpleNamespace(run_type="manual", logical_date=None, run_after=now, start_date=now,
                              triggering_user_name="ann")
        act = bag.dags[dag].get_task(task).python_callable
        context = {"params": params, "dag_run": run, "ti": mock.Mock()}
        with mock.patch.dict(act.__globals__, get_current_context=lambda context=context: context):
            try:
                act()
            except Exception as error:
                told.append([type(error).__name__, str(error)])
print("REFUSED" + json.dumps(told))
os.environ["EVERGREEN_TASKS"] = "recommend"
bag = DagBag(sys.argv[1] + "/profiles.py", load_op_links=False)
print("WITHOUT" + json.dumps([bag.import_errors, sorted(bag.dags)]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("airflow")
    return {
        **os.environ, "AIRFLOW_HOME": str(home), "EVERGREEN_HOME": str(home), "EVERGREEN_MASK_KEY": "k" * 32,
        "EVERGREEN_TASKS": "recommend,profiles", "EVERGREEN_INGEST_MINUTE": "7",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AIRFLOW__CORE__PLUGINS_FOLDER": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
    }


@pytest.fixture(scope="module")
def listed(environment: dict[str, str]) -> dict:
    backfilled = re.findall(r'"(?:from|to)_date": "([^"]+)"', (REPOSITORY / "README.md").read_text())
    list_them = [sys.executable, "-c", _LIST, str(DAGS), *backfilled, "2026-02-03T06:02:00Z"]
    for command in ([sys.executable, "-m", "airflow", "db", "migrate"], list_them):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    said = {mark: json.loads(line.removeprefix(mark)) for line in done.stdout.splitlines()
            for mark in ("FOUND", "WITHOUT", "WINDOWS", "REFUSED") if line.startswith(mark)}
    assert said["FOUND"]["errors"] == {}
    further = {"without profiles": said["WITHOUT"], "windows": said["WINDOWS"], "refused": said["REFUSED"]}
    return said["FOUND"]["dags"] | further


@pytest.fixture(scope="module")
def dags(listed: dict) -> dict:
    return {name: dag for name, dag in listed.items() if name not in ("without profiles", "windows", "refused")}


def test_the_dag_files_parse_in_under_a_second_and_import_nothing_heavy(environment: dict[str, str]) -> None:
    names = [path.stem for path in sorted(DAGS.glob("*.py"))]
    done = subprocess.run(
        [sys.executable, "-c", _PARSE, str(DAGS), *names], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not set(HEAVY) & set(found["modules"])
    assert max(found["seconds"].values()) < 1.0


def test_all_dags_of_the_design_are_there(dags: dict) -> None:
    assert set(dags) == {
        "ingest", "update_recommend", "retrain_recommend", "watch", "rollback", "promote", "retention", "profiles"
    }


def test_profiles_have_a_dag_where_they_are_enabled_and_no_learning_ones(listed: dict, dags: dict) -> None:
    assert list(dags["profiles"]["tasks"]) == ["make"] and dags["profiles"]["max_active_runs"] == 1
    assert dags["profiles"]["params"] == ["whole"]
    assert listed["without profiles"] == [{}, []]


def test_each_dag_tells_an_operator_what_it_does(dags: dict) -> None:
    for name, dag in dags.items():
        assert dag["doc"] and "### What it does" in dag["doc"], name
        assert dag["description"], name
        assert "evergreen" in dag["tags"], name


def test_the_ingest_page_says_how_to_backfill(dags: dict) -> None:
    assert "Backfill" in dags["ingest"]["doc"]


def test_an_hour_is_taken_in_as_many_minutes_after_its_end_as_the_exporter_needs(dags: dict) -> None:
    assert dags["ingest"]["cron"] == "7 * * * *"
    with pytest.raises(SettingsError, match=r"EVERGREEN_INGEST_MINUTE must lie in 0\.\.29; received 30"):
        read_settings({"EVERGREEN_MASK_KEY": "k" * 32, "EVERGREEN_INGEST_MINUTE": "30"})


def test_minutes_after_the_hour_change_neither_a_run_by_hand_nor_the_hours_of_the_readmes_backfill(
    listed: dict
) -> None:
    by_hand, *backfilled, _ = listed["windows"]
    assert by_hand == "2026-02-03T05:00Z"  # the last full hour at 06:02, though scheduled runs are at 06:07
    assert backfilled == [f"2026-02-01T{hour:02d}:00Z" for hour in range(24)]


def test_a_backfill_that_takes_over_a_run_by_hand_takes_in_the_hour_of_its_name(listed: dict) -> None:
    assert listed["windows"][-1] == "2026-02-01T00:00Z"


def test_what_a_person_asked_for_and_no_retry_can_do_fails_at_once_and_says_what_to_do(listed: dict) -> None:
    assert [kind for kind, _ in listed["refused"]] == ["AirflowFailException"] * 3  # the one that is not retried
    no_hour, *no_version = [said for _, said in listed["refused"]]
    assert "'2026-02-01T09:30Z', which lies in 2026-02-01T09:00Z: name that" in no_hour
    assert all("List its versions with" in said for said in no_version)


def test_each_task_has_an_owner_retries_and_a_timeout(dags: dict) -> None:
    for name, dag in dags.items():
        for task, settings in dag["tasks"].items():
            assert settings["owner"] == "evergreen", (name, task)
            assert 1 <= settings["retries"] <= 3, (name, task)
            assert settings["timeout"], (name, task)


def test_a_failure_of_any_task_or_run_is_one_alert_that_the_last_working_task_settles(dags: dict) -> None:
    settling = {"ingest": "publish_windows", "update_recommend": "promote", "retrain_recommend": "promote",
                "watch": "look", "rollback": "roll_back", "promote": "promote_by_force", "retention": "retain",
                "profiles": "make"}
    for name, dag in dags.items():
        assert dag["told_of_failure"] == ["Notice"], name
        assert all(task["told_of_failure"] == ["Notice"] for task in dag["tasks"].values()), name
        told = [task for task, settings in dag["tasks"].items() if settings["told_of_success"] == ["Recovered"]]
        assert told == [settling[name]], name


def test_the_ui_can_backfill_since_no_task_depends_on_the_past(dags: dict) -> None:
    assert not any(task["depends_on_past"] for dag in dags.values() for task in dag["tasks"].values())


def test_one_update_a_task_runs_at_a_time_and_one_training_job_a_machine(dags: dict) -> None:
    assert dags["update_recommend"]["max_active_runs"] == 1
    pools = {dags[name]["tasks"]["learn"]["pool"] for name in ("update_recommend", "retrain_recommend")}
    assert pools == {"evergreen_learning"}


def test_missed_hours_are_not_caught_up_behind_the_operators_back(dags: dict) -> None:
    assert not any(dag["catchup"] for dag in dags.values())


def test_retrain_rollback_and_promotion_by_force_have_forms(dags: dict) -> None:
    assert dags["retrain_recommend"]["params"] == ["days", "reason"]
    assert dags["rollback"]["params"] == dags["promote"]["params"] == ["task", "version", "why"]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def test_imports_run_one_way_from_dags_to_pipeline_to_models() -> None:
    for path in REPOSITORY.glob("models/**/*.py"):
        assert not _imports(path) & {"pipeline", "dags", "airflow", "evergreen"}, path
    for path in REPOSITORY.glob("pipeline/**/*.py"):
        assert not _imports(path) & {"dags", "airflow", "evergreen"}, path


def test_great_expectations_is_imported_by_its_judges_and_mlflow_by_registry_and_consumers() -> None:
    def users(library: str) -> set[str]:
        return {
            path.relative_to(REPOSITORY).as_posix()
            for folder in ("pipeline", "models", "dags") for path in (REPOSITORY / folder).glob("**/*.py")
            if library in _imports(path)
        }

    assert users("great_expectations") == {"pipeline/judging.py", "pipeline/judging_on_spark.py"}
    consumers = {path for path in users("mlflow") if path.startswith("models/") or "serv" in path}
    consumers |= {"pipeline/batch_scoring.py", "pipeline/webhooks.py"}  # the commands that consumers run
    registry = {
        f"pipeline/{name}.py"
        for name in ("mlflow_models", "versions", "shared_parts", "version_files", "registry_login")
    }
    assert users("mlflow") - consumers == registry


def test_the_packages_called_models_and_pipeline_are_ours() -> None:
    import models
    import pipeline

    for package in (models, pipeline):
        assert Path(package.__file__).is_relative_to(REPOSITORY)
