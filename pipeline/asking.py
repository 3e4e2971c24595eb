"""How a command asks the registry while a person waits: it gives up within seconds, and says so in a sentence.

MLflow tries for minutes by itself. That is right for a job, which outlasts a server's restart; a person would see
nothing for as long, and a traceback then.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.registry_errors import RegistryError


def try_briefly() -> None:
    """Has MLflow try a few times alone, in this process; who set its own variable decides."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 5 s where nobody answers, measured


@contextmanager
def a_person_waits(tracking_uri: str) -> Iterator[None]:
    """What is asked of the registry within is tried briefly.

    Raises:
        RegistryError: the registry does not answer, or refuses; an address is shown without its password.
    """
    try_briefly()
    try:
        yield
    except Exception as error:  # MLflow's, whose import takes a second
        if type(error).__module__ != "mlflow.exceptions":
            raise
        shown = without_passwords(tracking_uri)
        if "failed with exception" in str(error):  # mlflow.utils.rest_utils, of a request without an answer
            raise RegistryError(
                f"EVERGREEN_MLFLOW must be the address of a registry that answers; {shown} does not. "
                "Start it (make up), or correct the address."
            ) from error
        raise RegistryError(f"The registry at {shown} refused: {without_passwords(str(error))}") from error


def without_passwords(text: str) -> str:
    """A text, such as an error of MLflow's, without the names and passwords of the addresses in it."""
    return re.sub(r"(?<=://)[^\s/]*@", "", text)
