"""Gives every role of a run its address, and every link its proxy's.

Promises: an address for each process, the broker, its monitoring and Toxiproxy, all on loopback, all leased for this
run; an address that the user fixed is theirs or refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.environment.links import NetworkLink
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.topology import BROKER, Topology
from harness.environment.toxiproxy_server import TOXIPROXY
from harness.errors import UsageError

MONITORING = "nats-monitoring"
"""The broker's HTTP monitoring: an address without a process of its own."""


def roles_of(topology: Topology) -> tuple[str, ...]:
    """Everything that listens in a run. Raises UsageError when a process has the name of a part."""
    names = tuple(spec.name for spec in topology.processes)
    for reserved in (TOXIPROXY, MONITORING):
        if reserved in names:
            raise UsageError(f"no process may be called {reserved!r}: the environment has a part of that name")
    return (*names, BROKER, MONITORING, TOXIPROXY)


def assign_addresses(topology: Topology, *, fixed: Mapping[str, str], lease: PortLease) -> dict[str, str]:
    """An address for each role: the fixed one where the user named one, else a leased port.

    Raises UsageError for a role that does not exist, EnvironmentFailedError for an address that is taken.
    """
    roles = roles_of(topology)
    for role in fixed:
        if role not in roles:
            raise UsageError(f"cannot fix the address of {role!r}: it is none of {', '.join(roles)}")
    reserved = {role: lease.reserve(address) for role, address in fixed.items()}
    leased = iter(lease.take(len(roles) - len(reserved)))
    return {role: reserved[role] if role in reserved else f"{LOOPBACK}:{next(leased)}" for role in roles}


def assign_links(topology: Topology, *, addresses: Mapping[str, str], lease: PortLease) -> dict[str, NetworkLink]:
    """A proxy address for each link of the topology, by link name."""
    ports = lease.take(len(topology.links))
    return {
        link.name: NetworkLink(
            name=link.name,
            client=link.client,
            server=link.server,
            listen=f"{LOOPBACK}:{port}",
            upstream=addresses[link.server],
        )
        for link, port in zip(topology.links, ports, strict=True)
    }
