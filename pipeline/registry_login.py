"""Log-in for the registry: who may read models, and who may promote them.

With `EVERGREEN_REGISTRY_LOGIN=1` the installation's MLflow server asks for a name and a password (MLflow's own
`basic-auth`, https://mlflow.org/docs/latest/self-hosting/security/basic-http-auth/, its accounts in PostgreSQL). The
pipeline's own processes log in as the administrator, by MLflow's variables. Whoever else has an account may read and
load any model; a champion moves only by an account that may edit that model. Passwords come from the environment and
are in no file and no process's arguments.

Started in the installation's environment: `python -m pipeline.installation exec python -m pipeline.registry_login`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from pathlib import Path

from pipeline.registry_errors import PREFIX

ADMINISTRATOR = "admin"
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_PASSWORD = "EVERGREEN_ACCOUNT_PASSWORD"
_FEWEST_LETTERS = 12  # MLflow's own least length of a password
# Each request of a hundred of an update would hash its password anew, 0.1 s of a core each.
_REMEMBERED_SECONDS = 60


class LoginError(RuntimeError):
    """An account cannot be made or changed; the message says why and what to do."""


def asked_for(environment: Mapping[str, str]) -> bool:
    """Whether the registry asks for a log-in."""
    return environment.get("EVERGREEN_REGISTRY_LOGIN", "") not in ("", "0", "false", "no")


def variables(password: str, secret: str, configuration: Path) -> dict[str, str]:
    """What the server and everybody who logs in as the administrator is told by environment.

    Args:
        password: the administrator's.
        secret: what the server signs its forms with.
        configuration: path of what `write_configuration` writes.
    """
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(configuration), "MLFLOW_FLASK_SERVER_SECRET_KEY": secret,
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMINISTRATOR, "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        **dict(zip(CREDENTIALS, (ADMINISTRATOR, password), strict=True)),
    }


def write_configuration(path: Path, database: str) -> None:
    """Writes the server's rules: every account may read, nothing more; readable by the owner alone.

    Args:
        path: of the file.
        database: SQLAlchemy's URL of the accounts' database.
    """
    config = ConfigParser(interpolation=None)
    config["mlflow"] = {
        "default_permission": "READ", "database_uri": database,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "grant_default_workspace_access": "false", "auth_cache_ttl_seconds": str(_REMEMBERED_SECONDS),
    }
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        config.write(file)
    unfinished.replace(path)


def add(url: str, name: str, password: str) -> None:
    """Makes an account that may read every model.

    Raises:
        LoginError: the name is taken, the password is refused, or this process may not make accounts.
    """
    if len(password) < _FEWEST_LETTERS:
        raise LoginError(
            f"A password has at least {_FEWEST_LETTERS} characters; received {len(password)}. "
            f"Set {_PASSWORD} to a longer one."
        )
    _accounts(url, "create_user", name, password)


def allow(url: str, name: str, task: str) -> None:
    """Lets an account register, promote and roll back versions of a task's model.

    Raises:
        LoginError: there is no such account, or this process may not say so.
    """
    _accounts(url, "grant_user_permission", name, "registered_model", PREFIX + task, "EDIT")


def remove(url: str, name: str) -> None:
    """Deletes an account.

    Raises:
        LoginError: there is no such account, or this process may not delete it.
    """
    _accounts(url, "delete_user", name)


def _accounts(url: str, call: str, *arguments: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.client import AuthServiceClient
    from requests.exceptions import RequestException

    try:
        getattr(AuthServiceClient(url), call)(*arguments)
    except (MlflowException, RequestException) as error:
        raise LoginError(
            f"The registry at {url} refused {call.replace('_', ' ')} {arguments[0]!r}: {error}. Is "
            "EVERGREEN_REGISTRY_LOGIN=1 set for the server, and does this run as its administrator?"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.registry_login",
        description="Accounts of the registry, where EVERGREEN_REGISTRY_LOGIN=1 has it ask for a log-in.",
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="command")
    for name, said in (
        ("add", f"make an account that may read all models; its password is in {_PASSWORD}"),
        ("allow", "let an account promote the versions of a task's model"),
        ("remove", "delete an account"),
    ):
        command = commands.add_parser(name, help=said)
        command.add_argument("name", help="of the account")
        if name == "allow":
            command.add_argument("task", help="such as recommend")
    chosen = parser.parse_args(arguments)
    url = os.environ.get("EVERGREEN_MLFLOW", "")
    try:
        if not url.startswith("http"):
            raise LoginError(f"EVERGREEN_MLFLOW must be the registry's http address; received {url!r}.")
        if chosen.command == "add":
            add(url, chosen.name, os.environ.get(_PASSWORD, ""))
        elif chosen.command == "allow":
            allow(url, chosen.name, chosen.task)
        else:
            remove(url, chosen.name)
    except LoginError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{chosen.command}: {chosen.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
