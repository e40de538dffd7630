"""The real Toxiproxy as a part of the run, and the proxies it must have.

Promises: after `start` (again, too) every link has its proxy and listens; Toxiproxy keeps nothing on disk, so a restart
creates them anew, without toxics.

Does not: choose ports or find the binary.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from harness.environment.concurrency import together
from harness.environment.host import ProcessHost
from harness.environment.links import NetworkLink
from harness.environment.parts import HostedPart
from harness.environment.processes.supervised import Command
from harness.environment.toxiproxy.client import ToxiproxyClient
from harness.errors import EnvironmentFailedError

TOXIPROXY = "toxiproxy"
"""Its role; no process of a topology may have it."""

START_WITHIN_S = 10.0
STOP_GRACE_S = 2.0
READY_CALL_TIMEOUT_S = 0.5


class ToxiproxyServer(HostedPart):
    """One Toxiproxy server of a run, with its client."""

    def __init__(
        self,
        *,
        host: ProcessHost,
        find_binary: Callable[[], Awaitable[Path]],
        address: str,
        links: tuple[NetworkLink, ...],
        log_path: Path,
        environment: Mapping[str, str],
        image: str | None = None,
    ) -> None:
        """find_binary: awaited at each start; the first one ever may build it. links: each of them gets a proxy.

        image: what a container host starts in place of the binary.
        """
        super().__init__(name=TOXIPROXY, host=host)
        self.client = ToxiproxyClient(address)
        self._links = links
        self._address = address
        self._find_binary = find_binary
        self._log_path = log_path
        self._environment = environment
        self._image = image

    async def start(self) -> None:
        """Start it and create every link's proxy."""
        host, _, port = self._address.rpartition(":")
        command = Command(
            name=TOXIPROXY,
            argv=(str(await self._find_binary()), "-host", host, "-port", port, "-proxy-metrics"),
            environment=self._environment,
            log_path=self._log_path,
            stop_grace_s=STOP_GRACE_S,
            image=self._image,
        )
        await self.host.start(command)
        await self.wait_ready()
        await together(*(link.create_on(self.client) for link in self._links))

    async def wait_ready(self) -> None:
        """Wait until its API answers."""
        await self.host.wait_ready(TOXIPROXY, self._why_not_ready, within_s=START_WITHIN_S)

    async def _why_not_ready(self) -> str | None:
        try:
            await ToxiproxyClient(self._address, timeout_s=READY_CALL_TIMEOUT_S).version()
        except EnvironmentFailedError as error:
            return str(error)
        return None
