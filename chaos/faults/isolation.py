"""Isolate: one server of a cluster can hear its peers no more, or its clients, or neither, and nobody is told.

Cut from its peers, a leader goes on serving its clients and can confirm nothing: a majority elects another one, and it
learns of that when the fault heals. Cut from its clients, it leads well, and nobody can ask it. The cut is that of a
partition on every link in question, both directions of each route; it is healed when the links answer again and the
server is up to date with its peers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from chaos.faults.fault import Grip
from chaos.faults.partition import PartitionedLink
from harness.environment.running import LEADER
from harness.environment.toxiproxy import toxics
from harness.errors import PlanError, UsageError

if TYPE_CHECKING:
    from harness.environment.backend import Environment
    from harness.environment.links import NetworkLink


class From(StrEnum):
    """Whom the server cannot hear."""

    PEERS = "peers"
    CLIENTS = "clients"
    BOTH = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolate:
    """Cut one server of the broker off, silently.

    node: its role (`nats-2`), or `leader:ORDERS` for who leads that stream when the fault begins.
    """

    node: str
    from_: From = From.BOTH

    def __post_init__(self) -> None:
        if self.from_ not in tuple(From):
            raise PlanError(f"from_={self.from_!r} is none of {', '.join(From)}: nobody can be isolated from that")

    @property
    def name(self) -> str:
        """`isolate`."""
        return "isolate"

    @property
    def target(self) -> str:
        """The server, as it was named."""
        return self.node

    def plan(self) -> dict[str, object]:
        """Return it as a JSON-able object."""
        return {"fault": self.name, "node": self.node, "from": str(self.from_)}

    def on(self, environment: Environment) -> IsolatedServer:
        """Bind it to a running environment."""
        if len(environment.nodes) == 1:
            raise UsageError(f"a broker of one server has no peers to isolate {self.node} from: add --backend cluster")
        if self.node not in environment.nodes and not self.node.startswith(LEADER):
            known = ", ".join(environment.nodes)
            raise UsageError(f"there is no server {self.node!r} to isolate; there is: {known}, {LEADER}<stream>")
        environment.ensure_may_harm(self.node, by=self.name)
        return IsolatedServer(environment=environment, node=self.node, from_=self.from_)


@dataclass(slots=True, kw_only=True)
class IsolatedServer:
    """A server that is being isolated. node: as the fault names it; `_role` is who that was."""

    environment: Environment
    node: str
    from_: From
    _role: str = field(default="", init=False)
    _cut: PartitionedLink | None = field(default=None, init=False)

    async def inject(self) -> None:
        """Find out who it is, cut every link in question, and see each cut listed."""
        self._role = await self.environment.resolve(self.node)
        links = tuple(link for link in self.environment.links.values() if self._is_meant(link))
        self._cut = PartitionedLink(environment=self.environment, links=links, ways=tuple(toxics.Direction))
        await self._cut.inject()

    async def heal(self) -> None:
        """Mend every link, see each answer, and see the server up to date with the others."""
        if self._cut is None:
            return
        await self._cut.heal()
        if self.environment.is_running(self._role):
            await self.environment.wait_ready(self._role)

    async def grip(self) -> Grip:
        """Count the bytes that were swallowed; and say whose, when only the run could tell."""
        caught = 0 if self._cut is None else (await self._cut.grip()).caught
        return Grip(caught=caught, unit="bytes" if self._role == self.node else f"bytes ({self._role})")

    def _is_meant(self, link: NetworkLink) -> bool:
        is_route = link.client in self.environment.nodes
        ends = (link.client, link.server) if is_route else (link.server,)
        return self._role in ends and self.from_ in (From.BOTH, From.PEERS if is_route else From.CLIENTS)
