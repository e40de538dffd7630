"""What a run is made of beside the system's own processes: broker, proxies, database. The interfaces only.

A backend is a choice of hosts and parts; `assembly` makes it, `running` uses it and knows none of them by class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from harness.environment.host import ProcessHost
from harness.environment.toxiproxy.client import ToxiproxyClient


class Part(Protocol):
    """One real part with a role of its own, that can be started again on what it left."""

    @property
    def name(self) -> str:
        """Its role: `nats-2`, `toxiproxy`, `postgres`."""

    @property
    def host(self) -> ProcessHost:
        """What runs it."""

    @property
    def is_running(self) -> bool:
        """Whether it runs now."""

    async def start(self) -> None:
        """Start it on what it left, if anything, and wait until it is ready."""

    async def wait_ready(self) -> None:
        """Wait until it would serve a client, for example after `resume`."""

    async def stop(self) -> bool:
        """Stop it gracefully; whether it ended within its grace."""

    async def kill(self) -> None:
        """SIGKILL it and wait for its end."""

    async def pause(self) -> None:
        """Stop it in its tracks; its connections stay open and silent."""

    async def resume(self) -> None:
        """Let it go on."""


class HostedPart:
    """A part about which its host knows everything but how it is started: most of a `Part`."""

    def __init__(self, *, name: str, host: ProcessHost) -> None:
        """name: its role, and its name on the host."""
        self.name = name
        self.host = host

    @property
    def is_running(self) -> bool:
        """Whether it runs now."""
        return self.host.is_running(self.name)

    async def stop(self) -> bool:
        """Stop it gracefully; whether it ended within its grace."""
        return await self.host.stop(self.name)

    async def kill(self) -> None:
        """SIGKILL it and wait for its end."""
        await self.host.kill(self.name)

    async def pause(self) -> None:
        """Stop it in its tracks; its connections stay open and silent."""
        await self.host.pause(self.name)

    async def resume(self) -> None:
        """Let it go on."""
        await self.host.resume(self.name)


class Proxies(Part, Protocol):
    """Toxiproxy with a proxy on every link."""

    @property
    def client(self) -> ToxiproxyClient:
        """The client of its API."""


class Database(Part, Protocol):
    """A PostgreSQL server, with a database for every client that the topology links to it."""

    def url(self, database: str = ...) -> str:
        """URL of a database on it, past every proxy; it holds the password."""


class Broker(Protocol):
    """The broker: one server, or several that are one."""

    @property
    def nodes(self) -> Mapping[str, Part]:
        """Its servers by role, `nats` or `nats-1`..`nats-3`."""

    async def start(self) -> None:
        """Start all servers and wait until the broker as a whole would serve a client."""

    async def leader_of(self, group: str) -> str:
        """The role of the server that leads a stream (`ORDERS`), a consumer (`ORDERS/payment-processor`) or `meta` now.

        Raises EnvironmentFailedError when nobody does.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All of them. database: None in a run without PostgreSQL. foreign: roles of those that are somebody's own."""

    broker: Broker
    proxies: Proxies
    database: Database | None = None
    foreign: frozenset[str] = frozenset()

    @property
    def by_role(self) -> dict[str, Part]:
        """Each part by its role; the database and the proxies last, as they are stopped."""
        database = () if self.database is None else (self.database,)
        return {part.name: part for part in (*self.broker.nodes.values(), *database, self.proxies)}


class OneServer:
    """A broker of one server; implements `Broker`."""

    def __init__(self, server: Part) -> None:
        """Use this server."""
        self._server = server

    @property
    def nodes(self) -> Mapping[str, Part]:
        """It alone."""
        return {self._server.name: self._server}

    async def start(self) -> None:
        """Start it."""
        await self._server.start()

    async def leader_of(self, group: str) -> str:  # noqa: ARG002 - whichever it is
        """It leads everything, also what does not exist yet."""
        return self._server.name
