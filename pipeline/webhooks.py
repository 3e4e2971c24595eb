"""From a shell: who is called when an alias of the registry moves, so that a consumer need not ask.

`python -m pipeline.webhooks --help`. The calls are made by MLflow's server (Standard Webhooks' way of signing): a POST
for each alias that is set, with the model's name, the alias and the version. It tries a few times, from memory: a call
can be lost with the server, and a new address is known to all of its workers within a minute. So a call is a wake-up;
what serves is what the alias says.

MLflow calls https and public addresses alone, unless its server is started with
MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true. Secrets lie encrypted in its
database, under the installation's own key.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pipeline.asking import try_briefly
from pipeline.settings import SettingsError, read_settings

if TYPE_CHECKING:
    from mlflow.entities.webhook import Webhook
    from mlflow.tracking import MlflowClient

EVENT: Final = "model_version_alias.created"  # MLflow's name for an alias that is set, moved ones included
LEAST_SECRET = 24  # characters: 18 random bytes in base64, beyond what can be tried


class WebhookRefused(RuntimeError):
    """A webhook cannot be kept or called; the message says why and what to do."""


def add(client: MlflowClient, url: str, secret: str | None) -> Webhook:
    """Has an address called whenever an alias is set; again: signed with this secret from now on.

    Raises:
        WebhookRefused: the address is called already, and no secret is given for it.
    """
    held = _of(client, url)
    if held is None:
        name = "evergreen-" + hashlib.sha256(url.encode()).hexdigest()[:12]
        return client.create_webhook(name, url, [EVENT], description="Evergreen: an alias was set", secret=secret)
    if secret is None:
        raise WebhookRefused(
            f"{_shown(url)} must not be called already to be added without a secret; it is. Name its secret with "
            "--secret-env, or remove it first."
        )
    return client.update_webhook(held.webhook_id, secret=secret)


def listed(client: MlflowClient) -> list[Webhook]:
    """All webhooks of the registry, also those that others have made."""
    found: list[Webhook] = []
    token: str | None = None
    while True:
        page = client.list_webhooks(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def named(client: MlflowClient, which: str) -> Webhook:
    """The webhook of an address or an id.

    Raises:
        WebhookRefused: there is none.
    """
    held = _of(client, which)
    if held is None:
        raise WebhookRefused(
            f"A webhook must be named by its URL or id; there is none of {_shown(which)!r}. "
            "List them with: python -m pipeline.webhooks list"
        )
    return held


def _of(client: MlflowClient, which: str) -> Webhook | None:
    return next((one for one in listed(client) if which in (one.url, one.webhook_id)), None)


def secret_of(name: str | None, environment: Mapping[str, str]) -> str | None:
    """The secret in the environment variable `name`; None without a name.

    Raises:
        SettingsError: it is not set, or short.
    """
    if name is None:
        return None
    secret = environment.get(name, "")
    if len(secret) < LEAST_SECRET:
        raise SettingsError(
            f"{name} must hold a secret of at least {LEAST_SECRET} characters; it has {len(secret)}. Make one: "
            f"export {name}=$(openssl rand -hex 24), and give it to the receiver."
        )
    return secret


def _client(tracking_uri: str) -> MlflowClient:
    """The registry's server.

    Raises:
        WebhookRefused: the registry is a database that nobody serves.
    """
    if not tracking_uri.startswith(("http://", "https://")):
        raise WebhookRefused(
            "Webhooks are sent by an MLflow server, so EVERGREEN_MLFLOW must be its http(s) address; it is a "
            "database's. Start with: python -m pipeline.installation exec python -m pipeline.webhooks …"
        )
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try_briefly()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri, tracking_uri)


def _shown(url: str) -> str:
    """An address without what may be a password or a token."""
    parts = urlsplit(url)
    if not parts.scheme:
        return url
    place = f"{parts.scheme}://{parts.hostname or ''}" + (f":{parts.port}" if parts.port else "") + parts.path
    return place + ("?…" if parts.query else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit status."""
    from rich.console import Console

    chosen = _parser().parse_args(arguments)
    try:
        client = _client(read_settings().tracking_uri)
        return int(chosen.run(client, chosen, Console(markup=False)))
    except (WebhookRefused, SettingsError) as error:
        said = str(error)
    except Exception as error:  # MLflow's: its message alone is for people
        if type(error).__module__ != "mlflow.exceptions":
            raise
        said = f"MLflow refused: {error} (which addresses it calls: see python -m pipeline.webhooks --help)"
    Console(stderr=True, soft_wrap=True).print(said, style="red", highlight=False, markup=False)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.webhooks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    new = commands.add_parser("add", help="have an address called whenever an alias is set; again: change its secret")
    new.add_argument("url", help="the receiver, https://…")
    new.add_argument("--secret-env", metavar="NAME", help="the environment variable with the secret that signs calls")
    new.set_defaults(run=_add)
    commands.add_parser("list", help="print all webhooks").set_defaults(run=_list)
    for name, run, text in (
        ("remove", _remove, "call an address no more"), ("test", _test, "send an example now and print the answer"),
    ):
        one = commands.add_parser(name, help=text)
        one.add_argument("which", metavar="url", help="the receiver's URL, or the webhook's id")
        one.set_defaults(run=run)
    return parser


def _add(client: MlflowClient, chosen: argparse.Namespace, console: Any) -> int:
    made = add(client, chosen.url, secret_of(chosen.secret_env, os.environ))
    how = "signed" if chosen.secret_env else "unsigned: whoever knows the address can call it (see --secret-env)"
    console.print(f"{_shown(made.url)} is called whenever an alias is set, {how}.", highlight=False, soft_wrap=True)
    return 0


def _list(client: MlflowClient, chosen: argparse.Namespace, console: Any) -> int:
    from rich.table import Table

    table = Table("url", "events", "status", "id")
    for one in listed(client):
        table.add_row(_shown(one.url), " ".join(map(str, one.events)), str(one.status), one.webhook_id)
    console.print(table)
    return 0


def _remove(client: MlflowClient, chosen: argparse.Namespace, console: Any) -> int:
    held = named(client, chosen.which)
    client.delete_webhook(held.webhook_id)
    console.print(f"{_shown(held.url)} is called no more (within a minute).", highlight=False, soft_wrap=True)
    return 0


def _test(client: MlflowClient, chosen: argparse.Namespace, console: Any) -> int:
    held = named(client, chosen.which)
    seen = client.test_webhook(held.webhook_id)
    said = seen.error_message or f"answered {seen.response_status}: {(seen.response_body or '')[:200]}"
    console.print(f"{_shown(held.url)} {said}", highlight=False, markup=False, soft_wrap=True)
    return 0 if seen.success else 1


if __name__ == "__main__":
    sys.exit(main())
