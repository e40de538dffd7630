"""The embedded backend: every part is a local process on loopback; needs nothing but Python and, once, Go.

Promises: on entry everything answers, started as parallel as it can be; on exit, however it comes, everything is
stopped, the scratch directory is gone and the guardian has confirmed it. SIGKILL of the harness leaves nothing either.

Does not: judge how processes ended; that is on record in the supervisor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from harness.environment.addresses import MONITORING, assign_addresses, assign_links
from harness.environment.concurrency import shielded, together
from harness.environment.links import NetworkLink
from harness.environment.nats_server import NatsServer, find_nats_server
from harness.environment.ownership import Ownership, reap_stale
from harness.environment.ports import PortLease
from harness.environment.probes import PROBE_TIMEOUT_S, probe_http, probe_nats
from harness.environment.supervised import Command
from harness.environment.supervisor import UNWIND_GRACE_S, Supervisor
from harness.environment.topology import BROKER, ProcessSpec, Topology
from harness.environment.toxiproxy import ToxiproxyClient
from harness.environment.toxiproxy_binary import find_or_build_toxiproxy
from harness.environment.toxiproxy_server import TOXIPROXY, ToxiproxyServer
from harness.environment.wiring import RunWiring, base_variables
from harness.errors import UsageError
from harness.records import ProcessEvent

Progress = Callable[[str], None]
StartWrapper = Callable[[ProcessSpec], tuple[str, ...]]


@asynccontextmanager
async def embedded(
    topology: Topology,
    *,
    run_id: str,
    run_directory: Path,
    seed: int,
    otlp_url: str,
    progress: Progress = lambda _line: None,
    listen: Mapping[str, str] | None = None,
    start_wrapper: StartWrapper = lambda spec: spec.argv,
    on_event: Callable[[ProcessEvent], None] = lambda _event: None,
) -> AsyncIterator[EmbeddedEnvironment]:
    """Start a topology, yield it, and end it.

    run_directory: gets `logs/` and `spool/`; what else is made lies in a scratch directory that goes with the run.
    listen: fixed addresses by role (`{"orders": "127.0.0.1:8080"}`); all others are leased.
    start_wrapper: gives the argv of a process in place of its own; this is how bugs are planted.
    on_event: called with each process event as it is recorded.
    """
    began_s = time.monotonic()
    reaped = await asyncio.to_thread(reap_stale)
    if reaped.processes or reaped.directories:
        progress(f"removed what a crashed run left: {reaped.processes} processes, {reaped.directories} directories")
    ownership = Ownership.take(run_id)
    try:
        with PortLease() as lease:
            addresses = assign_addresses(topology, fixed=listen or {}, lease=lease)
            wiring = RunWiring(
                spool_directory=_made(run_directory / "spool"),
                otlp_url=otlp_url,
                seed=seed,
                addresses=addresses,
                links=assign_links(topology, addresses=addresses, lease=lease),
                scratch_directory=ownership.scratch_directory,
            )
            environment = EmbeddedEnvironment(
                topology=topology,
                wiring=wiring,
                log_directory=_made(run_directory / "logs"),
                supervisor=Supervisor(owner_label=ownership.label, on_event=on_event),
                progress=progress,
                start_wrapper=start_wrapper,
            )
            is_finished = False
            try:
                await environment.start_everything()
                progress(f"environment ready in {time.monotonic() - began_s:.2f} s")
                yield environment
                is_finished = True
            finally:
                await shielded(environment.end_everything(is_patient=is_finished))
    finally:
        await shielded(ownership.release())


class EmbeddedEnvironment:
    """A running topology; implements `backend.Environment`. Made and ended by `embedded`."""

    def __init__(
        self,
        *,
        topology: Topology,
        wiring: RunWiring,
        log_directory: Path,
        supervisor: Supervisor,
        progress: Progress,
        start_wrapper: StartWrapper,
    ) -> None:
        """Start nothing yet."""
        self.topology = topology
        self.wiring = wiring
        self.supervisor = supervisor
        self._log_directory = log_directory
        self._progress = progress
        self._start_wrapper = start_wrapper
        self._specs = {spec.name: spec for spec in topology.processes}
        self._variables = base_variables(_made(wiring.scratch_directory / ".tmp"))
        self._broker = NatsServer(
            supervisor=self.supervisor,
            binary=find_nats_server(),
            address=wiring.listen(BROKER),
            monitoring_address=wiring.listen(MONITORING),
            directory=wiring.directory(BROKER),
            log_path=self._log_path(BROKER),
            environment=self._variables,
        )
        self._toxiproxy = ToxiproxyServer(
            supervisor=self.supervisor,
            find_binary=lambda: find_or_build_toxiproxy(progress),
            address=wiring.listen(TOXIPROXY),
            links=tuple(wiring.links.values()),
            log_path=self._log_path(TOXIPROXY),
            environment=self._variables,
        )

    @property
    def links(self) -> Mapping[str, NetworkLink]:
        """The links by name."""
        return self.wiring.links

    @property
    def spool_directory(self) -> Path:
        """`<run>/spool`."""
        return self.wiring.spool_directory

    @property
    def scratch_directory(self) -> Path:
        """Stores, databases and sockets; gone after the run."""
        return self.wiring.scratch_directory

    @property
    def toxiproxy(self) -> ToxiproxyClient:
        """The client of the proxies' API."""
        return self._toxiproxy.client

    @property
    def toxiproxy_url(self) -> str:
        """Base URL of the proxies' API."""
        return self.toxiproxy.url

    @property
    def nats_url(self) -> str:
        """The broker, past every proxy."""
        return self._broker.url

    @property
    def nats_monitoring_url(self) -> str:
        """The broker's HTTP monitoring."""
        return f"http://{self.address(MONITORING)}"

    def address(self, role: str) -> str:
        """Give `host:port` where a role itself listens."""
        return self.wiring.listen(role)

    def labelled(self, variables: Mapping[str, str]) -> dict[str, str]:
        """These variables and the owner label: the guardian ends a process that carries it with the run."""
        return {**variables, **self.supervisor.owner_variables}

    async def start(self, role: str) -> None:
        """Start a role that does not run and wait until it is ready; Toxiproxy gets its proxies again."""
        if role == BROKER:
            await self._broker.start()
        elif role == TOXIPROXY:
            await self._toxiproxy.start()
        else:
            spec = self._spec(role)
            command = Command(
                name=role,
                argv=self._start_wrapper(spec),
                environment={**self._variables, **spec.environment(self.wiring)},
                log_path=self._log_path(role),
                stop_grace_s=spec.stop_grace_s,
            )
            await self.supervisor.start(command)
            await self.wait_ready(role)

    async def wait_ready(self, role: str) -> None:
        """Wait until a started role is ready, for example after `supervisor.resume`."""
        if role == BROKER:
            await self._broker.wait_ready()
        elif role == TOXIPROXY:
            await self._toxiproxy.wait_ready()
        else:
            spec = self._spec(role)
            address = self.address(role)
            await self.supervisor.wait_ready(
                role, lambda: probe_http(address, spec.ready_path), within_s=spec.start_within_s
            )

    async def stop(self, role: str) -> bool:
        """Stop a role gracefully; whether it ended within its grace."""
        return await self.supervisor.stop(self._started_by_us(role))

    async def kill(self, role: str) -> None:
        """SIGKILL a role and wait for its end."""
        await self.supervisor.kill(self._started_by_us(role))

    async def restart(self, role: str) -> None:
        """Stop a role gracefully when it runs, start it, and wait until it is ready."""
        await self.stop(role)
        await self.start(role)

    async def stop_processes(self) -> None:
        """Stop the system's processes gracefully, in topology order; broker and proxies stay for the collection."""
        for spec in self.topology.processes:
            if self.supervisor.is_running(spec.name):
                await self.supervisor.stop(spec.name)

    async def probe(self, link: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
        """None when the server really answers through this link, else what was seen.

        Its own bytes cross the proxy and are in its counters.
        """
        through = self.wiring.via(link)
        server = self.links[link].server
        if server == BROKER:
            return await probe_nats(through, timeout_s)
        return await probe_http(through, self._spec(server).ready_path, timeout_s)

    async def start_everything(self) -> None:
        """Start all parts at once; only the processes wait for the proxies, which they find in place."""
        names = [spec.name for spec in self.topology.processes]
        self._progress(f"starting nats-server, Toxiproxy ({len(self.links)} links), {', '.join(names)}")
        await together(self._broker.start(), self._start_processes_behind_proxies())

    async def end_everything(self, *, is_patient: bool) -> None:
        """End all parts: processes, then broker, then proxies; without patience all at once with a short grace."""
        try:
            if is_patient:
                await self.stop_processes()
                for role in (BROKER, TOXIPROXY):
                    if self.supervisor.is_running(role):
                        await self.supervisor.stop(role)
        finally:
            await self.supervisor.close(grace_s=UNWIND_GRACE_S)

    async def _start_processes_behind_proxies(self) -> None:
        await self._toxiproxy.start()
        await together(*(self.start(spec.name) for spec in self.topology.processes))

    def _spec(self, role: str) -> ProcessSpec:
        self.address(role)
        if role not in self._specs:
            raise UsageError(f"{role!r} is an address of this environment, not a process of the topology")
        return self._specs[role]

    def _started_by_us(self, role: str) -> str:
        return role if role in (BROKER, TOXIPROXY) else self._spec(role).name

    def _log_path(self, role: str) -> Path:
        return self._log_directory / f"{role}.log"


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
