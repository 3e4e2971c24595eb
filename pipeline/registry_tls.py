"""TLS for the registry: what passes between it and its clients is read and changed by nobody.

`EVERGREEN_REGISTRY_CERTIFICATE` and `EVERGREEN_REGISTRY_KEY` (PEM files; the certificate names the host of
`EVERGREEN_HOST`) have the installation's MLflow server speak https alone: uvicorn, which serves it, ends TLS, so no
program stands in front. `EVERGREEN_REGISTRY_AUTHORITY` is the certificate of who signed it, where that is not one whom
every machine trusts; it is also set where the registry is another machine's (`EVERGREEN_MLFLOW=https://…`).
"""

from __future__ import annotations

import shlex
import ssl
from collections.abc import Mapping
from pathlib import Path

from pipeline.settings import SettingsError

CERTIFICATE, KEY, AUTHORITY = (f"EVERGREEN_REGISTRY_{name}" for name in ("CERTIFICATE", "KEY", "AUTHORITY"))
TRUST = "MLFLOW_TRACKING_SERVER_CERT_PATH"  # MLflow's clients verify by this file; without it by certifi's


def asked_for(environment: Mapping[str, str]) -> bool:
    """Whether the installation's registry speaks https."""
    return bool(environment.get(CERTIFICATE))


def server_options(environment: Mapping[str, str]) -> str:
    """What `mlflow server` is told, quoted for a command line; empty without TLS.

    Raises:
        SettingsError: certificate or key is missing.
    """
    if not asked_for(environment):
        return ""
    paths = {name: environment.get(name, "") for name in (CERTIFICATE, KEY)}
    if missing := [f"{name}={path}" for name, path in paths.items() if not Path(path).is_file()]:
        raise SettingsError(f"The registry's certificate and its key must be files; received {', '.join(missing)}.")
    told = f"--ssl-certfile {shlex.quote(paths[CERTIFICATE])} --ssl-keyfile {shlex.quote(paths[KEY])}"
    return f"--uvicorn-opts {shlex.quote(told)} "


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What every client of the registry is told by environment."""
    return {TRUST: environment[AUTHORITY]} if environment.get(AUTHORITY) else {}


def trusted(environment: Mapping[str, str]) -> ssl.SSLContext:
    """By whom a client that is not MLflow's verifies the registry."""
    return ssl.create_default_context(cafile=environment.get(AUTHORITY) or None)
