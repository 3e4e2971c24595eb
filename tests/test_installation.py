"""An installation's promises that need no process: secrets made once, settings remembered, a demo destroys nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import psutil
import pytest

from pipeline.demo import Demo, DemoFailed, Stream, check, clear, usual_hours
from pipeline.demo import main as run_demo
from pipeline.installation import Installation
from pipeline.installation import main as run_installation
from pipeline.installation_place import InstallationError, Ports, check_not_taken
from pipeline.serving import read_keys
from pipeline.settings import SettingsError
from pipeline.sources import SourceError
from pipeline.sources.simulator import ShopSimulator


def test_secrets_are_made_once_and_read_by_their_owner_alone(tmp_path: Path) -> None:
    first, second = Installation(tmp_path, {}).secrets, Installation(tmp_path, {}).secrets
    assert first == second
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600
    assert len(first.mask_key) >= 32 and len(first.jwt_secret) >= 64
    assert Installation(tmp_path / "other", {}).secrets != first


def test_a_secret_that_an_older_installation_lacks_is_made_and_the_others_stay(tmp_path: Path) -> None:
    before = Installation(tmp_path, {}).secrets
    held = json.loads((tmp_path / "secrets.json").read_text())
    del held["webhook_key"]
    (tmp_path / "secrets.json").write_text(json.dumps(held))
    after = Installation(tmp_path, {})
    assert {**vars(after.secrets), "webhook_key": ""} == {**vars(before), "webhook_key": ""}
    assert after.environment["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"] == Installation(tmp_path, {}).secrets.webhook_key
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


def test_secret_files_are_their_owners_also_where_others_could_read_them(tmp_path: Path) -> None:
    passwords = tmp_path / "airflow" / "passwords.json"
    passwords.parent.mkdir()
    passwords.write_text("{}")
    passwords.chmod(0o644)
    Installation(tmp_path, {"EVERGREEN_DATABASE": "postgresql+psycopg2://me:hidden@db"})._write_configuration()
    assert stat.S_IMODE(passwords.stat().st_mode) == 0o600


def test_no_secret_is_shown_where_an_object_is_printed(tmp_path: Path) -> None:
    told = {
        "EVERGREEN_MASK_KEY": "hidden-mask-key-of-33-characters-", "EVERGREEN_LOCK_URL": "postgresql://me:hidden@db",
        "EVERGREEN_MLFLOW": "https://me:hidden@mlflow", "EVERGREEN_ALERT_URL": "https://chat/hidden",
        "EVERGREEN_LANDING": "s3://id:hidden@bucket", "EVERGREEN_HOME": str(tmp_path),
    }
    installation = Installation(tmp_path, {**told, "EVERGREEN_ADMIN_PASSWORD": "hidden"})
    shown = repr(installation.settings) + repr(installation.secrets) + repr(read_keys("shop:read:hidden-api-key-of-24"))
    assert "hidden" not in shown and installation.secrets.jwt_secret not in shown


def test_a_secret_of_the_environment_wins(tmp_path: Path) -> None:
    key = "from the environment, of 32 letters"
    assert Installation(tmp_path, {"EVERGREEN_MASK_KEY": key}).settings.mask_key == key


def test_no_secret_stands_in_the_supervisors_configuration(tmp_path: Path) -> None:
    installation = Installation(tmp_path, {"EVERGREEN_DATABASE": "postgresql+psycopg2://me:hidden@db"})
    installation._write_configuration()
    text = (tmp_path / "supervisord.conf").read_text()
    made = installation.secrets
    assert len(vars(made)) == 5 and not any(secret in text for secret in vars(made).values())
    assert "hidden" not in text


@pytest.mark.parametrize("command", ["exec", "alone"])
def test_a_command_that_is_missing_or_cannot_be_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        run_installation([command])
    assert ended.value.code == 2
    assert f"{command} must be followed by a command" in capsys.readouterr().err
    assert run_installation([command, "nosuchcommand", "--x"]) == 1
    assert "received 'nosuchcommand', which is none on the PATH" in capsys.readouterr().err


_TASK = "import os, time; os.setpgid(0, 0); print(os.getpid(), flush=True); time.sleep(600)"
_WORKER = f"""
import os, subprocess, sys, time
print(os.getpid(), flush=True)
subprocess.Popen([sys.executable, "-c", {_TASK!r}])
time.sleep(600)
"""
_SERVER = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {_WORKER!r}]); time.sleep(600)"


def _served_alone(home: Path) -> subprocess.Popen[str]:
    """A program as supervisord starts it: in the home, the leader of a process group."""
    command = [sys.executable, "-m", "pipeline.installation", "alone", sys.executable, "-c", _SERVER]
    return subprocess.Popen(
        command, cwd=home, env={**os.environ, "EVERGREEN_HOME": str(home)}, process_group=0, stdout=subprocess.PIPE,
        text=True,
    )


def _begun_by(served: subprocess.Popen[str]) -> list[psutil.Process]:
    assert served.stdout is not None
    return [psutil.Process(int(served.stdout.readline())) for _ in ("worker", "task")]


def test_what_a_killed_program_left_is_ended_also_where_it_has_a_group_of_its_own(tmp_path: Path) -> None:
    first = _served_alone(tmp_path)
    left = _begun_by(first)
    first.kill()
    first.wait()
    assert all(one.is_running() for one in left)
    second = _served_alone(tmp_path)
    own = _begun_by(second)
    try:
        assert not psutil.wait_procs(left, 10)[1]
        assert all(one.is_running() for one in own)
    finally:
        for one in (*own, second):
            one.kill()


def test_a_program_that_got_the_number_of_its_last_run_begins(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "print('begun')"]
    leader = tmp_path / "leaders" / hashlib.sha256(" ".join(words).encode()).hexdigest()[:12]
    leader.parent.mkdir()
    script = f"""
import os, sys
from pathlib import Path
from pipeline.leftovers import run_alone
Path(sys.argv[1]).write_text(str(os.getpgrp()))
run_alone(Path(sys.argv[2]), {words!r})
"""
    command = [sys.executable, "-c", script, str(leader), str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, process_group=0, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "begun\n"


def test_a_program_whose_number_could_not_be_written_on_a_full_disk_begins_when_there_is_room(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "print('begun')"]
    script = f"""
import resource, signal, sys
from pathlib import Path
from pipeline.leftovers import run_alone
if "full" in sys.argv:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
run_alone(Path(sys.argv[1]), {words!r})
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    full = subprocess.run([*command, "full"], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert full.returncode
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "begun\n"


def test_what_runs_in_a_folder_that_was_deleted_is_ended(tmp_path: Path) -> None:
    home = tmp_path / "home"

    def prepared() -> Installation:
        installation = Installation(home, {**os.environ, "EVERGREEN_DATABASE": "postgresql://nobody@nowhere"})
        installation._write_configuration()
        return installation

    installation = prepared()
    installation._end_forgotten()  # nothing is
    installation._run([sys.executable, "-m", "supervisor.supervisord", "-c", str(installation._configuration)])
    installation._wait("supervisord", installation._supervised)
    forgotten = psutil.Process(int((home / "supervisord.pid").read_text()))
    shutil.rmtree(home)
    try:
        prepared()._end_forgotten()
        forgotten.wait(10)
    finally:
        if forgotten.is_running():
            forgotten.kill()


def test_a_number_that_another_program_has_by_now_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            (tmp_path / "supervisord.pid").write_text(f"{other.pid}\n")
            Installation(tmp_path, {"PATH": os.environ["PATH"]}).down()
            assert other.poll() is None
        finally:
            other.kill()


def test_a_number_that_is_just_being_written_is_none_yet(tmp_path: Path) -> None:
    (tmp_path / "supervisord.pid").write_text("")
    assert Installation(tmp_path, {"PATH": os.environ["PATH"]}).status() == {}


def test_what_is_remembered_holds_at_the_next_start_and_the_environment_wins(tmp_path: Path) -> None:
    Installation(tmp_path, {}).remember({"EVERGREEN_TASKS": "recommend", "EVERGREEN_SEED": "5"})
    again = Installation(tmp_path, {"EVERGREEN_SEED": "6"})
    assert again.settings.seed == 6
    assert again.environment["EVERGREEN_TASKS"] == "recommend"


def test_airflows_own_variables_win_over_ours(tmp_path: Path) -> None:
    installation = Installation(tmp_path, {"AIRFLOW__CORE__EXECUTOR": "CeleryExecutor"})
    assert installation.environment["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert installation.environment["AIRFLOW__API__HOST"] == "127.0.0.1"


def test_a_worker_makes_no_secret_of_its_own_and_says_what_it_must_be_told(tmp_path: Path) -> None:
    with pytest.raises(InstallationError, match=r"missing: EVERGREEN_MASK_KEY, .*, AIRFLOW__CELERY__BROKER_URL"):
        Installation(tmp_path, {"EVERGREEN_HOST": "10.0.0.1"}).become_worker()
    assert not (tmp_path / "secrets.json").exists()


def test_machines_that_share_a_database_share_its_locks_and_find_the_first_ones_ports(tmp_path: Path) -> None:
    told = {"EVERGREEN_HOST": "10.0.0.1", "EVERGREEN_DATABASE": "postgresql+psycopg2://me:pw@10.0.0.1:5432"}
    one, other = Installation(tmp_path / "one", told), Installation(tmp_path / "other", told)
    assert one.settings.lock_url == "postgresql+psycopg2://me:pw@10.0.0.1:5432/airflow"
    assert other.airflow_url == one.airflow_url == "http://10.0.0.1:8080"
    assert other.environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://10.0.0.1:8080/execution/"
    assert Installation(tmp_path / "own", told | {"EVERGREEN_LOCK_URL": "postgresql://l"}).settings.lock_url.endswith("//l")
    assert Installation(tmp_path / "alone", {}).settings.lock_url is None


def test_ports_stay_the_same_from_start_to_start(tmp_path: Path) -> None:
    assert Installation(tmp_path, {}).ports == Installation(tmp_path, {}).ports
    assert Installation(tmp_path, {"EVERGREEN_AIRFLOW_PORT": "18080"}).ports.airflow == 18080


def test_the_file_of_ports_is_replaced_whole_and_only_where_a_port_is_another(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    Ports.of(tmp_path, {"EVERGREEN_AIRFLOW_PORT": "18080", "EVERGREEN_MLFLOW_PORT": "15000"})
    with path.open() as reader:
        Ports.of(tmp_path, {})
        assert path.stat().st_ino == os.fstat(reader.fileno()).st_ino
        Ports.of(tmp_path, {"EVERGREEN_AIRFLOW_PORT": "18081"})
        assert json.load(reader) == {"airflow": 18080, "mlflow": 15000}  # it was opened before
    assert json.loads(path.read_text()) == {"airflow": 18081, "mlflow": 15000}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("port", ["abc", "-1", "0", "65536", "99999999", "²"])
def test_what_is_no_port_is_refused(tmp_path: Path, port: str) -> None:
    with pytest.raises(InstallationError, match=rf"EVERGREEN_MLFLOW_PORT must be .* 1\.\.65535; received '{port}'"):
        Ports.of(tmp_path, {"EVERGREEN_MLFLOW_PORT": port})


def test_a_port_that_another_program_took_meanwhile_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """Its answer to /health would be taken for our MLflow's, and models be registered there."""
    elsewhere = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(elsewhere, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            port = int(other.stdout.readline().split("port ")[1].split()[0])
            installation = Installation(tmp_path / "home", {"EVERGREEN_MLFLOW_PORT": str(port)})
            refusal = rf"MLflow must have port {port} of 127.0.0.1.*process {other.pid}\).*EVERGREEN_MLFLOW_PORT"
            with pytest.raises(InstallationError, match=refusal):
                installation.up()
            assert installation.status() == {}
            check_not_taken("MLflow", "127.0.0.1", port, tmp_path)  # what a killed run of ours left
        finally:
            other.kill()


def test_a_relative_folder_is_the_same_for_a_shell_and_for_the_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = {"EVERGREEN_LAKE": "lake", "EVERGREEN_REPORTS": "../pages", "EVERGREEN_LANDING": "s3://bucket/landing"}
    made = Installation(tmp_path / "home", told).environment
    assert made["EVERGREEN_LAKE"] == str(tmp_path / "lake")
    assert made["EVERGREEN_REPORTS"] == str(tmp_path.parent / "pages")
    assert made["EVERGREEN_LANDING"] == "s3://bucket/landing" and "EVERGREEN_ARTIFACTS" not in made


def test_an_empty_folder_is_the_default(tmp_path: Path) -> None:
    told = dict.fromkeys(("EVERGREEN_LANDING", "EVERGREEN_LAKE", "EVERGREEN_ARTIFACTS", "EVERGREEN_REPORTS"), "")
    settings = Installation(tmp_path, told).settings
    assert (settings.landing, settings.lake) == (str(tmp_path / "landing"), str(tmp_path / "lake"))
    assert (settings.artifacts, settings.reports) == (str(tmp_path / "mlflow" / "artifacts"), tmp_path / "reports")


def test_a_socket_fits_however_long_the_homes_path_is(tmp_path: Path) -> None:
    home = tmp_path / ("long-" * 30)
    assert len(os.fsencode(Installation(home, {}).runtime / "postgres" / ".s.PGSQL.5432")) < 107


def test_a_home_with_a_space_is_one_word_of_every_command(tmp_path: Path) -> None:
    home = tmp_path / "my shop"
    Installation(home, {"PATH": os.environ["PATH"]})._write_configuration()
    config = ConfigParser(interpolation=None)
    config.read(home / "supervisord.conf")
    assert str(home / "postgres") in shlex.split(config["program:postgres"]["command"])
    assert str(home / "mlflow" / "artifacts") in shlex.split(config["program:mlflow"]["command"])


@pytest.mark.parametrize("name", ["50% off", "shop ;1", "shop #1"])
def test_a_home_that_supervisord_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InstallationError, match=f"EVERGREEN_HOME must hold no %.*{name}"):
        Installation(tmp_path / name, {}).up()


def test_a_demo_refuses_a_folder_that_it_did_not_make(tmp_path: Path) -> None:
    home = tmp_path / "mine"
    home.mkdir()
    (home / "lake").mkdir()
    with pytest.raises(DemoFailed, match="no demo made"):
        clear(home)
    assert (home / "lake").exists()
    clear(tmp_path / "new")
    (tmp_path / "new" / "lake").mkdir()
    clear(tmp_path / "new")
    assert not (tmp_path / "new" / "lake").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--source", "nope"], "received 'nope'"),
        (["--mapping", "missing.toml", "--data", "log.csv"], "missing.toml"),
        (["--source", "online-retail", "--data", "missing.csv"], "'missing.csv' is neither"),
        (["--hours", "-3"], "--hours must be at least 1; received -3"),
        (["--hours", "0"], "--hours must be at least 1; received 0"),
        (["--tasks", "recomend"], "received 'recomend'"),
        (["--tasks", ","], "EVERGREEN_TASKS must name a task that learns; received none"),
    ],
)
def test_a_demo_that_cannot_begin_leaves_what_the_one_before_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    clear(tmp_path)
    (tmp_path / "lake").mkdir()
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    monkeypatch.setattr(Demo, "run", lambda demo: pytest.fail("it began"))
    assert run_demo(words) == 1
    assert said in capsys.readouterr().err
    assert (tmp_path / "lake").exists()


@pytest.mark.parametrize("option", ["--source", "--mapping"])
def test_a_log_shows_the_recommender_alone_however_its_mapping_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    mapping, log = tmp_path / "shop.toml", tmp_path / "log.csv"
    mapping.write_text('columns = { item = "a" }\ntime = { column = "b" }\ntype = { default = "view" }\n')
    log.write_text("a,b\n" + "".join(f"x,2024-01-01 {hour}:00\n" for hour in range(10, 24)))
    begun: list[tuple[str, ...]] = []
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Demo, "run", lambda demo: begun.append(demo._settings.tasks))
    run_demo([option, str(mapping), "--data", str(log), "--keep"])
    assert begun == [("recommend",)]


def test_a_demo_does_not_begin_with_a_landing_zone_that_is_no_folder() -> None:
    with pytest.raises(SourceError, match="EVERGREEN_LANDING is an address"):
        check("recommend", 1, {"EVERGREEN_LANDING": "s3://bucket/landing"})


@pytest.mark.parametrize(("argument", "variable"), [("recommend", "demnad"), ("demnad", "recommend")])
def test_a_demo_checks_its_tasks_and_those_of_the_environment_which_win(argument: str, variable: str) -> None:
    with pytest.raises(SettingsError, match=r"must name some of .*; received 'demnad'"):
        check(argument, 1, {"EVERGREEN_TASKS": variable})
    check("recommend", 1, {"EVERGREEN_MASK_KEY": ""})  # it is made


def test_the_last_hours_with_data_arrive_and_all_before_is_history() -> None:
    source = ShopSimulator(seed=1, users=10, items=50, history_days=1, history_events=10, hours=3)
    stream = Stream.of(source, 2)
    assert len(stream.arriving) == 2 and len(stream.history) == 25
    assert stream.history[-1].end == stream.arriving[0].start
    with pytest.raises(SourceError, match="fewer than the 27 hours"):
        Stream.of(source, 27)


def test_several_tasks_are_shown_on_fewer_hours_however_they_are_written() -> None:
    assert usual_hours("recommend,demand") == usual_hours("recommend demand") < usual_hours("recommend,")
