"""Several nats-servers that are one broker.

Promises: started together; a server is ready when clients are served and, once most of the servers run, it is up to
date in everything that it keeps; a leader is known by what it leads. One server can be stopped, killed and started
while the others go on; its host does that, by its role.

Does not: choose addresses or hosts. The proxies of the routes must be there first: a route that finds nobody is tried
again after a second only, and by then the first election has failed, whose next round comes after 4 to 9 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from harness.environment.concurrency import together
from harness.environment.nats.cluster_view import ClusterView, look_at
from harness.environment.nats.server import START_WITHIN_S, NatsServer
from harness.environment.parts import HostedPart
from harness.environment.probes import probe_nats
from harness.errors import EnvironmentFailedError, UsageError

READY_WITHIN_S = 30.0
"""Servers that come back to what they had stored vote after 4 to 9 s, and once more when the vote was split."""

LEADER_WITHIN_S = 3.0
"""A fault is injected within 5 s; what has no leader for so long has one only after the next election."""

LOOK_EVERY_S = 0.05
LISTENING_EVERY_S = 0.005


class ClusterNode(HostedPart):
    """One server of the cluster, by its role (`nats-2`); implements `parts.Part`."""

    def __init__(self, server: NatsServer, cluster: NatsCluster) -> None:
        """Made by its cluster."""
        super().__init__(name=server.name, host=server.host)
        self._server = server
        self._cluster = cluster

    async def launch(self) -> None:
        """Start it, on the store it left, if any, without waiting for anything."""
        await self._server.launch()

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        await self.launch()
        await self.wait_ready()

    async def wait_listening(self) -> None:
        """Wait until it answers its first client, which is when it takes routes; `wait_ready` says why it does not."""
        deadline_s = asyncio.get_running_loop().time() + START_WITHIN_S
        while self.is_running and asyncio.get_running_loop().time() < deadline_s:
            if await self._why_silent() is None:
                return
            await asyncio.sleep(LISTENING_EVERY_S)

    async def wait_ready(self) -> None:
        """Wait until it serves clients and is up to date, or alone: without most of its peers there is no date."""
        await self.host.wait_ready(self.name, self._why_not_ready, within_s=READY_WITHIN_S)

    async def _why_not_ready(self) -> str | None:
        seen = await self._why_silent()
        if seen is None and self._cluster.has_quorum:
            seen = (await self._cluster.view()).why_behind(self._server.server_name)
        return seen

    async def _why_silent(self) -> str | None:
        return await probe_nats(self._server.address, access=self._server.access)


class NatsCluster:
    """All servers of one cluster; implements `parts.Broker`."""

    def __init__(self, servers: Sequence[NatsServer]) -> None:
        """Start nothing yet. servers: configured with `cluster_config.cluster_block`."""
        self._servers = tuple(servers)
        self._nodes = {server.name: ClusterNode(server, self) for server in servers}
        self._roles = {server.server_name: server.name for server in servers}

    @property
    def nodes(self) -> Mapping[str, ClusterNode]:
        """Its servers by role, in order."""
        return self._nodes

    @property
    def has_quorum(self) -> bool:
        """Whether so many servers run that they could elect a leader."""
        running = sum(node.is_running for node in self._nodes.values())
        return 2 * running > len(self._nodes)

    async def start(self) -> None:
        """Start every server that does not run; a leader is elected and all are up to date on return.

        Each is launched when the one before it listens, some 30 ms later: two servers that dial each other at the same
        moment may both hang up on the other as a duplicate, and meet again after a second, when the first election has
        failed.
        """
        for node in self._nodes.values():
            if not node.is_running:
                await node.launch()
                await node.wait_listening()
        await together(*(node.wait_ready() for node in self._nodes.values()))

    async def view(self) -> ClusterView:
        """What every server says of the cluster at this moment."""
        return await look_at({server.server_name: server.monitoring_address for server in self._servers})

    async def leader_of(self, group: str) -> str:
        """The role of the server that leads a stream (`ORDERS`), a consumer (`ORDERS/payments`), or all (`meta`).

        Waits `LEADER_WITHIN_S` for one. Raises EnvironmentFailedError when there is none, and says who follows whom.
        """
        if not group:
            raise UsageError(
                "leader of what? Name a stream, a consumer or meta: `leader:ORDERS`, `leader:ORDERS/payments`"
            )
        deadline_s = asyncio.get_running_loop().time() + LEADER_WITHIN_S
        while True:
            view = await self.view()
            leader = view.leader_of(group)
            if leader is not None:
                return self._roles[leader]
            if asyncio.get_running_loop().time() >= deadline_s:
                if not view.knows(group):
                    raise EnvironmentFailedError(f"nobody leads {group}: no server that answers keeps such a thing")
                raise EnvironmentFailedError(
                    f"nobody has led {group} for {LEADER_WITHIN_S:g} s: {view.opinions(group)}"
                )
            await asyncio.sleep(LOOK_EVERY_S)
