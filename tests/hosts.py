"""Machines of a small network on this one: network namespaces with addresses and names, and the services beside them.

Redis and PostgreSQL are Debian's (`apt-get install redis-server postgresql`), started here with passwords and ended
with the block. All of it needs root, as `ip netns` does. Every address is of this machine or of a namespace made here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SERVER = "10.77.0.1"
_BRIDGE = "evergreen0"
_PASSWORD = "of-this-test-alone"
_PATIENCE_SECONDS = 60.0


@dataclass
class Host:
    """A machine: a network namespace with an address and a name; what runs in it sees the same disk."""

    name: str
    address: str
    _log: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        """Starts a command in the namespace; its output goes to the log."""
        named = ["sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, "unshare", "--uts", *named, *command],
                env=dict(environment), cwd=cwd, stdout=log, stderr=log, start_new_session=True,
            )

    @property
    def said(self) -> str:
        """The end of the log."""
        return self._log.read_text(errors="replace")[-4000:]

    def kill(self) -> int:
        """kill -9 of everything that runs in the namespace; how many processes there were."""
        killed = 0
        while pids := _said("ip", "netns", "pids", self.name).split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
                    killed += 1
            if self._process is not None:
                self._process.poll()
            time.sleep(0.05)
        return killed

    def cut_power(self) -> int:
        """The cable first, so that nobody is told by the dying processes' connections, then `kill`."""
        _said("ip", "link", "set", f"{self.name}-c", "down")
        return self.kill()

    def plug_in(self) -> None:
        """The cable again."""
        _said("ip", "link", "set", f"{self.name}-c", "up")


@contextmanager
def hosts(names: Sequence[str], folder: Path) -> Iterator[list[Host]]:
    """Machines of these names beside this one, whose address is SERVER; all go with the block."""
    made = [Host(name, f"10.77.0.{11 + place}", folder / f"{name}.log") for place, name in enumerate(names)]
    try:
        _said("ip", "link", "add", _BRIDGE, "type", "bridge")
        _said("ip", "address", "add", f"{SERVER}/24", "dev", _BRIDGE)
        _said("ip", "link", "set", _BRIDGE, "up")
        for host in made:
            _plug(host)
        yield made
    finally:
        for host in made:
            with suppress(subprocess.CalledProcessError):
                host.kill()
            for thing in (("link", f"{host.name}-c"), ("netns", host.name)):  # a namespace alone goes when it likes
                with suppress(subprocess.CalledProcessError):
                    _said("ip", thing[0], "delete", thing[1])
            shutil.rmtree(Path("/etc/netns") / host.name, ignore_errors=True)
        with suppress(subprocess.CalledProcessError):
            _said("ip", "link", "delete", _BRIDGE)


def _plug(host: Host) -> None:
    cable, inside = f"{host.name}-c", ["ip", "netns", "exec", host.name, "ip"]
    _said("ip", "netns", "add", host.name)
    _said("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _said("ip", "link", "set", cable, "master", _BRIDGE, "up")
    _said(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
    for link in ("lo", "eth0"):
        _said(*inside, "link", "set", link, "up")
    known = Path("/etc/netns") / host.name / "hosts"  # `ip netns exec` lays it over /etc/hosts
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(f"127.0.0.1 localhost\n{host.address} {host.name}\n")


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The URL of a Redis at SERVER; only Debian's own server, with a password, is started."""
    told = f"bind {SERVER}\nport 6379\nrequirepass {_PASSWORD}\ndir {folder}\nsave \"\"\nappendonly no\n"
    process = subprocess.Popen(["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        assert process.stdin is not None
        process.stdin.write(told.encode())
        process.stdin.close()
        yield f"redis://:{_PASSWORD}@{SERVER}:6379/0"
    finally:
        process.terminate()
        process.wait(_PATIENCE_SECONDS)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """SQLAlchemy's URL of a PostgreSQL server at SERVER, with its default keep-alives."""
    data = folder / "postgres"
    data.mkdir()
    shutil.chown(data, "postgres")
    as_owner = ["runuser", "-u", "postgres", "--"]
    tools = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    password = data.with_name("password")
    password.write_text(_PASSWORD)
    password.chmod(0o644)
    _said(*as_owner, str(tools / "initdb"), "-D", str(data), "-A", "scram-sha-256", f"--pwfile={password}", cwd=data)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 10.77.0.0/24 scram-sha-256\n")
    server = [str(tools / "postgres"), "-D", str(data), "-h", SERVER, "-k", str(data), "-c", "fsync=off"]
    with (folder / "postgres.log").open("ab") as log:
        process = subprocess.Popen([*as_owner, *server], cwd=data, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while subprocess.run([tools / "pg_isready", "-q", "-h", SERVER], check=False).returncode:
            assert time.monotonic() < deadline, (folder / "postgres.log").read_text()
            time.sleep(0.2)
        yield f"postgresql+psycopg2://postgres:{_PASSWORD}@{SERVER}:5432"
    finally:
        _said(*as_owner, str(tools / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop", cwd=data)
        process.wait(_PATIENCE_SECONDS)


def _said(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout
