"""An installation's secrets: made once, kept in a file that its owner alone can read; the environment's win."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Secrets:
    """What must stay the same from start to start, and secret."""

    mask_key: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    fernet_key: str = field(repr=False)
    admin_password: str = field(repr=False)
    webhook_key: str = field(repr=False)

    # what must be the same on every machine; the others are of the one with the UIs
    SHARED = ("EVERGREEN_MASK_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__CORE__FERNET_KEY")

    @classmethod
    def of(cls, home: Path, environment: Mapping[str, str]) -> Secrets:
        """The secrets below `home`, made where there are none; those in the environment win."""
        path = home / "secrets.json"
        held = json.loads(path.read_text()) if path.exists() else {}
        made = {
            "mask_key": secrets.token_hex(32), "jwt_secret": secrets.token_hex(32), "fernet_key": _fernet_key(),
            "admin_password": secrets.token_urlsafe(9), "webhook_key": _fernet_key(),
        }
        if set(made) - set(held):
            home.mkdir(parents=True, exist_ok=True)
            unfinished = home / f".secrets.{os.getpid()}"
            held = {**made, **held}
            write_secretly(unfinished, json.dumps(held, indent=2))
            unfinished.replace(path)
        names = {
            "mask_key": "EVERGREEN_MASK_KEY", "jwt_secret": "AIRFLOW__API_AUTH__JWT_SECRET",
            "fernet_key": "AIRFLOW__CORE__FERNET_KEY", "admin_password": "EVERGREEN_ADMIN_PASSWORD",
            "webhook_key": "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
        }
        return cls(**{name: environment.get(variable) or held[name] for name, variable in names.items()})


def write_secretly(path: Path, text: str) -> None:
    """Writes a file that its owner alone can read, also where one stands that others could."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
