"""One process of the system under test, as a part of the run like any other.

Promises: started with what its spec says of this run's wiring; ready means that its own health endpoint answers 200.
"""

from __future__ import annotations

from harness.environment.host import ProcessHost
from harness.environment.parts import HostedPart
from harness.environment.probes import probe_http
from harness.environment.processes.supervised import Command
from harness.environment.run_site import Site
from harness.environment.topology import ProcessSpec, Wiring


class SystemProcess(HostedPart):
    """A process of the topology; implements `Part`."""

    def __init__(
        self, spec: ProcessSpec, *, argv: tuple[str, ...], host: ProcessHost, wiring: Wiring, site: Site
    ) -> None:
        """argv: the spec's own, or what starts it with a planted bug."""
        super().__init__(name=spec.name, host=host)
        self.spec = spec
        self._argv = argv
        self._wiring = wiring
        self._site = site

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        await self.host.start(
            Command(
                name=self.name,
                argv=self._argv,
                environment={**self._site.variables, **self.spec.environment(self._wiring)},
                log_path=self._site.log_path(self.name),
                stop_grace_s=self.spec.stop_grace_s,
            )
        )
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Wait until its health endpoint answers 200, asked at its own address."""
        address = self._wiring.listen(self.name)
        await self.host.wait_ready(
            self.name, lambda: probe_http(address, self.spec.ready_path), within_s=self.spec.start_within_s
        )
