"""A running system under test, whichever parts it stands on.

Promises: implements `backend.Environment`; everything starts as parallel as it can; whatever is done to a role is done
by the host that runs it, and is on record.

Does not: choose parts (`assembly`), own what a run leaves outside (`opening`), or judge how processes ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from harness.environment.concurrency import together
from harness.environment.layout import monitoring_of
from harness.environment.links import NetworkLink
from harness.environment.nats.access import BrokerAccess
from harness.environment.parts import Part, Parts
from harness.environment.probes import PROBE_TIMEOUT_S, probe_http, probe_nats, probe_postgres, probe_route
from harness.environment.processes.supervisor import UNWIND_GRACE_S
from harness.environment.processes.system_process import SystemProcess
from harness.environment.run_site import Site
from harness.environment.topology import DATABASE, ProcessSpec, Topology
from harness.environment.toxiproxy.client import ToxiproxyClient
from harness.errors import UsageError

StartWrapper = Callable[[ProcessSpec], tuple[str, ...]]

LEADER = "leader:"
"""`leader:ORDERS` is the role of whichever server leads that stream."""


class RunningEnvironment:
    """A running topology. Made and ended by `opening.open_environment`."""

    def __init__(self, *, topology: Topology, site: Site, parts: Parts, start_wrapper: StartWrapper) -> None:
        """Start nothing yet."""
        self.topology = topology
        self.supervisor = site.supervisor
        self.wiring = site.wiring
        if parts.database is not None:
            self.wiring = replace(site.wiring, database_url=parts.database.url())
        self._site = site
        self._parts = parts
        self._processes = {
            spec.name: SystemProcess(
                spec, argv=start_wrapper(spec), host=self.supervisor, wiring=self.wiring, site=site
            )
            for spec in topology.processes
        }
        self._by_role: dict[str, Part] = {**self._processes, **parts.by_role}

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self._site.choice.name

    @property
    def nodes(self) -> tuple[str, ...]:
        """The roles of the broker's servers."""
        return tuple(self._parts.broker.nodes)

    @property
    def foreign(self) -> frozenset[str]:
        """The roles that are somebody's own."""
        return self._parts.foreign

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
        return self._parts.proxies.client

    @property
    def toxiproxy_url(self) -> str:
        """Base URL of the proxies' API."""
        return self.toxiproxy.url

    @property
    def broker(self) -> BrokerAccess:
        """The way to the broker, past every proxy."""
        return self.wiring.access

    @property
    def nats_url(self) -> str:
        """The first server's URL, past every proxy and without credentials."""
        return self.broker.urls[0]

    @property
    def nats_monitoring_url(self) -> str | None:
        """The first server's HTTP monitoring; None where the broker is somebody's own."""
        role = monitoring_of(self.nodes[0])
        return f"http://{self.address(role)}" if role in self.wiring.addresses else None

    @property
    def nats_credentials(self) -> Path:
        """A file that only this user can read: the variables by which one gets to the broker and is let in."""
        return self._site.credentials_path

    @property
    def postgres_url(self) -> str | None:
        """The PostgreSQL server, past every proxy and with its password; None in a run without one."""
        return self.wiring.database_url

    def address(self, role: str) -> str:
        """Give `host:port` where a role itself listens."""
        return self.wiring.listen(role)

    def links_of(self, name: str) -> tuple[NetworkLink, ...]:
        """The links that a name stands for: one, or in a cluster one for each server."""
        return self.wiring.links_of(name)

    def ensure_may_harm(self, target: str, *, by: str) -> None:
        """Raise UsageError when no link or role is called so, or when it is somebody's own and not to be harmed."""
        if "->" in target or target in self.wiring.groups:
            harmed = {link.server for link in self.links_of(target)}
        else:
            harmed = set(self.nodes) if target.startswith(LEADER) else {self._part(target).name}
        choice = self._site.choice
        if harmed & self._parts.foreign and by not in choice.allowed_faults:
            raise UsageError(
                f"{by} on {target} would harm what is somebody's own, and nobody allowed it: "
                f"add --allow-fault {by}, or choose another backend than {choice.name}"
            )

    def labelled(self, variables: Mapping[str, str]) -> dict[str, str]:
        """These variables and the owner label: the guardian ends a process that carries it with the run."""
        return {**variables, **self.supervisor.owner_variables}

    async def resolve(self, role: str) -> str:
        """The role itself, or for `leader:ORDERS` the role of the server that leads this stream now."""
        if role.startswith(LEADER):
            return await self._parts.broker.leader_of(role.removeprefix(LEADER))
        return self._part(role).name

    def is_running(self, role: str) -> bool:
        """Whether a role runs now."""
        return self._part(role).is_running

    async def start(self, role: str) -> None:
        """Start a role that does not run and wait until it is ready; Toxiproxy gets its proxies again."""
        await self._part(role).start()

    async def wait_ready(self, role: str) -> None:
        """Wait until a started role is ready, for example after `resume`."""
        await self._part(role).wait_ready()

    async def stop(self, role: str) -> bool:
        """Stop a role gracefully; whether it ended within its grace."""
        return await self._part(role).stop()

    async def kill(self, role: str) -> None:
        """SIGKILL a role and wait for its end."""
        await self._part(role).kill()

    async def pause(self, role: str) -> None:
        """Stop a role in its tracks; its connections stay open and silent."""
        await self._part(role).pause()

    async def resume(self, role: str) -> None:
        """Let a paused role go on."""
        await self._part(role).resume()

    async def restart(self, role: str) -> None:
        """Stop a role gracefully when it runs, start it, and wait until it is ready."""
        await self.stop(role)
        await self.start(role)

    async def stop_processes(self) -> None:
        """Stop the system's processes gracefully, in topology order; broker and proxies stay for the collection."""
        await _stop_those_that_run(self._processes.values())

    async def probe(self, link: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
        """None when the server really answers through this link, through each of them in a cluster; else what was seen.

        Its own bytes cross the proxy and are in its counters.
        """
        for each in self.links_of(link):
            seen = await self._probe(each, timeout_s)
            if seen is not None:
                return seen
        return None

    async def start_everything(self) -> None:
        """Start all parts at once; processes wait for their proxies, and a cluster for those of its routes."""
        parts = self._parts
        self._site.progress(f"starting {self._all_that_starts()}")
        if len(self.nodes) == 1:
            await together(parts.broker.start(), self._start_processes_behind_proxies())
            return
        # Servers look for their peers through the proxies, and replicated streams need all servers.
        await together(parts.proxies.start(), self._start_database())
        await parts.broker.start()
        await self._start_processes()

    async def end_everything(self, *, is_patient: bool) -> None:
        """End all parts: processes, then broker, then proxies; without patience all at once with a short grace."""
        try:
            if is_patient:
                await _stop_those_that_run(
                    part for role, part in self._by_role.items() if role not in self._parts.foreign
                )
        finally:
            hosts = {id(part.host): part.host for part in self._by_role.values()}
            await together(*(host.close(grace_s=UNWIND_GRACE_S) for host in hosts.values()))

    async def _start_processes_behind_proxies(self) -> None:
        await together(self._parts.proxies.start(), self._start_database())
        await self._start_processes()

    async def _start_processes(self) -> None:
        await together(*(process.start() for process in self._processes.values()))

    async def _start_database(self) -> None:
        if self._parts.database is not None:
            await self._parts.database.start()

    async def _probe(self, link: NetworkLink, timeout_s: float) -> str | None:
        if link.client in self.nodes:
            return await probe_route(link.listen, timeout_s)
        if link.server in self.nodes:
            return await probe_nats(link.listen, timeout_s, access=self.broker)
        if link.server == DATABASE:
            return await probe_postgres(link.listen, timeout_s)
        return await probe_http(link.listen, self._processes[link.server].spec.ready_path, timeout_s)

    def _all_that_starts(self) -> str:
        database = [] if self._parts.database is None else ["PostgreSQL"]
        processes = ", ".join([*database, *self._processes])
        proxies = f"Toxiproxy ({len(self.links)} links)"
        if self.foreign:
            return f"{processes} on somebody's nats-server and {proxies}"
        servers = "nats-server" if len(self.nodes) == 1 else f"nats-server ({', '.join(self.nodes)})"
        return f"{servers}, {proxies}, {processes}"

    def _part(self, role: str) -> Part:
        if role not in self._by_role:
            self.address(role)
            raise UsageError(
                f"{role!r} is an address of this environment, and nothing that runs; there is: "
                f"{', '.join(self._by_role)}"
            )
        return self._by_role[role]


async def _stop_those_that_run(parts: Iterable[Part]) -> None:
    for part in parts:
        if part.is_running:
            await part.stop()
