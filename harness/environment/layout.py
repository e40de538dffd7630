"""Everything that listens in a run, and every link between: the topology as a backend carries it out.

Promises: pure; in a cluster a link to `nats` becomes one for each server (`payments->nats-1`), and the servers' routes
are links too (`nats-1->nats-2`, both ways of a pair are `nats-1<->nats-2`), so that each of them can be cut; without a
PostgreSQL server its links are left out.

Does not: choose addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, permutations

from harness.environment.topology import BROKER, DATABASE, Link, Topology
from harness.environment.toxiproxy.server import TOXIPROXY
from harness.errors import UsageError

CLUSTER_NODES = ("nats-1", "nats-2", "nats-3")

NOWHERE = "nats-nowhere"
"""A role whose port is leased and where nobody listens: what the servers of a cluster tell their peers of each other by
gossip leads there, and not around the proxies."""


def monitoring_of(node: str) -> str:
    """The role of a server's HTTP monitoring: an address without a process of its own."""
    return f"{node}-monitoring"


def routes_of(node: str) -> str:
    """The role of the port where a server of a cluster takes routes from its peers."""
    return f"{node}-routes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a run consists of.

    nodes: the broker's servers. roles: everything that listens. upstreams: the role behind each link. groups: the links
    behind each name that a fault may aim at; `payments->nats` means all three in a cluster.
    """

    nodes: tuple[str, ...]
    roles: tuple[str, ...]
    links: tuple[Link, ...]
    upstreams: Mapping[str, str]
    groups: Mapping[str, tuple[str, ...]]


def layout_of(
    topology: Topology, *, is_cluster: bool = False, has_database: bool = False, has_monitoring: bool = True
) -> Layout:
    """Lay a topology out. Raises UsageError when one of its processes has the name of a part.

    has_monitoring: False where the broker is somebody's own, and nobody told us of its monitoring.
    """
    nodes = CLUSTER_NODES if is_cluster else (BROKER,)
    # Both ways, so that a server that comes back dials its peers at once instead of waiting a second for theirs. Of two
    # ways between two servers one is closed as a duplicate, whichever: whoever separates two servers cuts both.
    routes = tuple(Link(client=client, server=server) for client, server in permutations(nodes, 2))
    parts = (
        *nodes,
        *(monitoring_of(node) for node in nodes if has_monitoring),
        *((*map(routes_of, nodes), NOWHERE) if is_cluster else ()),
        TOXIPROXY,
        *([DATABASE] if has_database else []),
    )
    names = tuple(spec.name for spec in topology.processes)
    for name in names:
        if name in parts:
            raise UsageError(f"no process may be called {name!r}: the environment has a part of that name")
    groups: dict[str, tuple[Link, ...]] = {}
    for link in topology.links:
        if link.server == BROKER:
            groups[link.name] = tuple(Link(client=link.client, server=node) for node in nodes)
        elif link.server != DATABASE or has_database:
            groups[link.name] = (link,)
    for route in routes:
        groups[route.name] = (route,)
    links = tuple(link for members in groups.values() for link in members)
    return Layout(
        nodes=nodes,
        roles=(*names, *parts),
        links=links,
        upstreams={link.name: routes_of(link.server) if link in routes else link.server for link in links},
        groups={
            **{link.name: (link.name,) for link in links},
            **{name: tuple(link.name for link in members) for name, members in groups.items()},
            **{f"{one}<->{other}": (f"{one}->{other}", f"{other}->{one}") for one, other in combinations(nodes, 2)},
        },
    )
