"""A cluster by itself, for tests: three real servers, the real proxies of their routes and of one client, no system."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from harness.environment.addresses import assign_addresses, assign_links
from harness.environment.layout import layout_of, monitoring_of
from harness.environment.nats.access import fresh_access
from harness.environment.nats.cluster import NatsCluster
from harness.environment.nats.cluster_config import cluster_block, fresh_route_password
from harness.environment.nats.server import NatsServer
from harness.environment.ports import PortLease
from harness.environment.processes.supervisor import Supervisor
from harness.environment.topology import Link, Topology
from harness.environment.toxiproxy.server import TOXIPROXY, ToxiproxyServer
from harness.environment.wiring import RunWiring

CLIENTS = Topology(processes=(), links=(Link(client="clients", server="nats"),))


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallCluster:
    """What was built; nothing of it runs before `start`."""

    cluster: NatsCluster
    proxies: ToxiproxyServer
    wiring: RunWiring
    supervisor: Supervisor
    log_directory: Path
    route_password: str

    async def start(self) -> None:
        """As an environment does it: the proxies, then all servers."""
        await self.proxies.start()
        await self.cluster.start()


def build_cluster(
    supervisor: Supervisor, lease: PortLease, directory: Path, *, nats_binary: Path, toxiproxy_binary: Path
) -> SmallCluster:
    """Build a cluster whose files lie in this directory."""
    layout = layout_of(CLIENTS, is_cluster=True, has_database=False)
    addresses = assign_addresses(layout.roles, fixed={}, lease=lease)
    wiring = RunWiring(
        spool_directory=directory,
        otlp_url="http://127.0.0.1:4318",
        seed=7,
        addresses=addresses,
        links=assign_links(layout, addresses=addresses, lease=lease),
        groups=layout.groups,
        scratch_directory=directory,
        access=fresh_access([addresses[node] for node in layout.nodes]),
        replicas=len(layout.nodes),
    )
    password = fresh_route_password()
    servers = [
        NatsServer(
            name=node,
            cluster=cluster_block(node, wiring, nodes=layout.nodes, password=password),
            host=supervisor,
            binary=nats_binary,
            address=wiring.listen(node),
            monitoring_address=wiring.listen(monitoring_of(node)),
            directory=wiring.directory(node),
            log_path=directory / "logs" / f"{node}.log",
            environment={"PATH": os.defpath},
            access=wiring.access,
        )
        for node in layout.nodes
    ]

    async def find_binary() -> Path:
        return toxiproxy_binary

    proxies = ToxiproxyServer(
        host=supervisor,
        find_binary=find_binary,
        address=wiring.listen(TOXIPROXY),
        links=tuple(wiring.links.values()),
        log_path=directory / "logs" / "toxiproxy.log",
        environment={"PATH": os.defpath},
    )
    return SmallCluster(
        cluster=NatsCluster(servers),
        proxies=proxies,
        wiring=wiring,
        supervisor=supervisor,
        log_directory=directory / "logs",
        route_password=password,
    )
