"""Gives every role of a run its address, and every link its proxy's.

Promises: an address for each process and part, all on loopback, all leased for this run; an address that the user fixed
is theirs or refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.environment.layout import Layout
from harness.environment.links import NetworkLink
from harness.environment.ports import LOOPBACK, PortLease
from harness.errors import UsageError


def assign_addresses(roles: Sequence[str], *, fixed: Mapping[str, str], lease: PortLease) -> dict[str, str]:
    """An address for each role: the fixed one where the user named one, else a leased port.

    Raises UsageError for a role that does not exist, EnvironmentFailedError for an address that is taken.
    """
    for role in fixed:
        if role not in roles:
            raise UsageError(f"cannot fix the address of {role!r}: it is none of {', '.join(roles)}")
    reserved = {role: lease.reserve(address) for role, address in fixed.items()}
    leased = iter(lease.take(len(roles) - len(reserved)))
    return {role: reserved[role] if role in reserved else f"{LOOPBACK}:{next(leased)}" for role in roles}


def assign_links(
    layout: Layout, *, addresses: Mapping[str, str], lease: PortLease, prefix: str = ""
) -> dict[str, NetworkLink]:
    """A proxy address for each link, by link name. prefix: what the proxies' names begin with."""
    ports = lease.take(len(layout.links))
    return {
        link.name: NetworkLink(
            name=link.name,
            client=link.client,
            server=link.server,
            listen=f"{LOOPBACK}:{port}",
            upstream=addresses[layout.upstreams[link.name]],
            proxy=f"{prefix}{link.name}",
        )
        for link, port in zip(layout.links, ports, strict=True)
    }
