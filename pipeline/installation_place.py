"""Where an installation lies, at which addresses it answers, and what each of its processes is told.

Secrets are made once, kept in a file that its owner alone can read, and reach the processes by environment. Any other
PostgreSQL takes the embedded one's place by `EVERGREEN_DATABASE`, any other registry MLflow's by `EVERGREEN_MLFLOW`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil

from pipeline import registry_login, registry_tls
from pipeline.installation_secrets import Secrets
from pipeline.settings import REPOSITORY, Settings, read_settings

PROGRAMS = ("mlflow", "airflow-api", "airflow-scheduler", "airflow-dags", "airflow-triggerer")
ADMIN = "admin"
HIGHEST_PORT = 65535  # 16 bits of TCP's header

_REMEMBERED = "environment.json"
_FOLDERS = ("EVERGREEN_LANDING", "EVERGREEN_LAKE", "EVERGREEN_ARTIFACTS", "EVERGREEN_REPORTS")


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
            name: told_port(f"EVERGREEN_{name.upper()}_PORT", environment) or held.get(name) or choose(first)
            for name, first in (("airflow", 8080), ("mlflow", 5000))
        }
        if chosen != held:
            home.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # others read it meanwhile
            unfinished.write_text(json.dumps(chosen))
            os.replace(unfinished, path)
        return cls(**chosen)


class Place:
    """What is known of one `EVERGREEN_HOME` before anything runs."""

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
                self.secrets.admin_password, self.secrets.jwt_secret, self.accounts_configuration
            )
        own |= registry_tls.variables(self._environment)
        # the scheduler runs in the home, a shell anywhere: a relative path would be another folder in each
        told = {name: self._environment.get(name, "") for name in _FOLDERS}
        own |= {name: str(Path(path).resolve()) for name, path in told.items() if path and "://" not in path}
        return {**self._environment, **self._airflow_environment(), **own}

    @property
    def accounts_configuration(self) -> Path:
        """Where MLflow's log-in is configured."""
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


def _remembered(home: Path) -> dict[str, str]:
    path = home / _REMEMBERED
    return dict(json.loads(path.read_text())) if path.exists() else {}


def told_port(name: str, environment: Mapping[str, str]) -> int | None:
    """The port that a variable tells; None where it is empty or not set.

    Raises:
        InstallationError: it is no port.
    """
    text = environment.get(name)
    if not text:
        return None
    port = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= port <= HIGHEST_PORT:
        raise InstallationError(
            f"{name} must be a whole number in 1..{HIGHEST_PORT}; received {text!r}. Correct it, or leave it out: a "
            "free port is then chosen."
        )
    return port


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


def check_not_taken(program: str, host: str, port: int, home: Path) -> None:
    """Refuses a port that a program of somewhere else listens on: what it answers would be taken for ours.

    Programs of an installation are started in its home, by which they are known.

    Raises:
        InstallationError: the port is taken.
    """
    with socket.socket() as probe, contextlib.suppress(OSError):  # an address that is not here: its program says so
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            listeners = _listeners(port) if error.errno == errno.EADDRINUSE else []
            if any(_started_in(home, listener) for listener in listeners):
                return
            if error.errno == errno.EADDRINUSE:
                named = ", ".join(f"{one.name()}, process {one.pid}" for one in listeners) or "not one of this user's"
                raise InstallationError(
                    f"{program} must have port {port} of {host}, on which another program listens ({named}). Stop "
                    f"that, or choose another port by EVERGREEN_{program.upper()}_PORT."
                ) from error


def _listeners(port: int) -> list[psutil.Process]:
    """The processes that listen on a port, of those that this user may look at."""
    found = []
    with contextlib.suppress(psutil.Error):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid is not None:
                with contextlib.suppress(psutil.Error):
                    found.append(psutil.Process(one.pid))
    return found


def _started_in(home: Path, process: psutil.Process) -> bool:
    try:
        return process.cwd() == str(home)
    except psutil.Error:
        return False
