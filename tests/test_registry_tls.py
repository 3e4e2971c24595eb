"""The registry behind TLS, by settings alone: clients that know who signed its certificate work, others refuse it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline import registry_tls
from pipeline.installation import Installation
from pipeline.installation_place import free_port
from pipeline.settings import SettingsError

CLIENT = """
import mlflow
from mlflow import MlflowClient
client = MlflowClient()
client.create_registered_model("evergreen-recommend")
with mlflow.start_run() as run:
    mlflow.log_text("a model's file", "model.txt")
print(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/model.txt"), client.search_registered_models()[0].name)
"""


def authority_of(name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key, named = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(
        named, named, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1),
    ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return made.sign(key, hashes.SHA256()), key


def written(path: Path, *parts: x509.Certificate | ec.EllipticCurvePrivateKey) -> str:
    pem = serialization.Encoding.PEM
    path.write_bytes(b"".join(
        part.public_bytes(pem) if isinstance(part, x509.Certificate) else part.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ) for part in parts
    ))
    return str(path)


def signed_for_this_machine(folder: Path) -> dict[str, str]:
    """The three settings: a certificate for 127.0.0.1, its key, and who signed it."""
    (authority, signer), key = authority_of("a shop's authority"), ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = x509.CertificateBuilder(
        authority.subject, x509.Name([]), key.public_key(), 2, now - timedelta(days=1), now + timedelta(days=1),
    ).add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True)
    return {
        registry_tls.CERTIFICATE: written(folder / "registry.pem", certificate.sign(signer, hashes.SHA256())),
        registry_tls.KEY: written(folder / "registry.key", key),
        registry_tls.AUTHORITY: written(folder / "authority.pem", authority),
    }


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation of which the registry alone runs, as supervisord would start it, on a file as database."""
    folder = tmp_path_factory.mktemp("tls")
    told = {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN_", "MLFLOW_"))}
    told |= signed_for_this_machine(folder) | {"EVERGREEN_MLFLOW_PORT": str(free_port(16_000))}
    made = Installation(folder / "home", told)
    stored = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            shlex.split(made.commands["mlflow"]), env=made.environment | stored, cwd=made.home, stdout=log, stderr=log,
            start_new_session=True,
        )
    try:
        deadline, trusted = time.monotonic() + 300, registry_tls.trusted(told)
        while not _healthy(made.mlflow_url, trusted):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.3)
        yield made
    finally:
        os.killpg(process.pid, 9)


def _healthy(url: str, trusted: object) -> bool:
    try:
        return httpx.get(f"{url}/health", verify=trusted).status_code == 200  # type: ignore[arg-type]
    except httpx.HTTPError:
        return False


def client(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    told = {"MLFLOW_TRACKING_URI": environment["EVERGREEN_MLFLOW"], "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    return subprocess.run(
        [sys.executable, "-c", CLIENT], env=environment | told, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_who_knows_the_authority_reads_and_writes_and_nobody_else_does(
    installation: Installation, tmp_path: Path
) -> None:
    assert installation.mlflow_url.startswith("https://127.0.0.1:")
    done = client(installation.environment)
    assert done.stdout.split("\n")[-2] == "a model's file evergreen-recommend", done.stderr[-2000:]

    stranger = written(tmp_path / "other.pem", authority_of("somebody else")[0])
    for trust in ({}, {registry_tls.TRUST: stranger}):
        told = {name: value for name, value in installation.environment.items() if name != registry_tls.TRUST}
        refused = client(told | trust)
        assert refused.returncode != 0 and "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{installation.mlflow_url.replace('https', 'http')}/health")


def test_a_certificate_without_its_key_is_refused_before_anything_starts(tmp_path: Path) -> None:
    told = {registry_tls.CERTIFICATE: written(tmp_path / "registry.pem", authority_of("a shop")[0])}
    with pytest.raises(SettingsError, match="EVERGREEN_REGISTRY_KEY="):
        _ = Installation(tmp_path / "home", told).commands


def test_another_machines_registry_is_not_started_here(tmp_path: Path) -> None:
    elsewhere = Installation(tmp_path, {"EVERGREEN_MLFLOW": "https://models.example"})
    assert elsewhere.environment["EVERGREEN_MLFLOW"] == "https://models.example"
    assert "mlflow" not in elsewhere.programs and "airflow-api" in elsewhere.programs
    assert "mlflow" in Installation(tmp_path, {}).programs
