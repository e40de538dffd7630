"""A topology laid out: one link stays one, or becomes one for each server; a fault's name finds all of them."""

from __future__ import annotations

import pytest

from harness.environment.addresses import assign_addresses, assign_links
from harness.environment.layout import NOWHERE, Layout, layout_of
from harness.environment.nats.access import fresh_access
from harness.environment.ports import PortLease
from harness.environment.tests.small_system import small_process
from harness.environment.topology import Link, Topology
from harness.environment.wiring import RunWiring
from harness.errors import UsageError

TOPOLOGY = Topology(
    processes=(small_process("orders"), small_process("payments")),
    links=(
        Link(client="clients", server="orders"),
        Link(client="payments", server="nats"),
        Link(client="payments", server="postgres"),
    ),
)


def wiring_of(layout: Layout, lease: PortLease, *, database_url: str | None = None) -> RunWiring:
    """Wire a layout, without starting anything."""
    addresses = assign_addresses(layout.roles, fixed={}, lease=lease)
    scratch = lease._directory
    return RunWiring(
        spool_directory=scratch,
        otlp_url="http://127.0.0.1:4318",
        seed=1,
        addresses=addresses,
        links=assign_links(layout, addresses=addresses, lease=lease),
        groups=layout.groups,
        scratch_directory=scratch,
        access=fresh_access([addresses[node] for node in layout.nodes]),
        replicas=len(layout.nodes),
        database_url=database_url,
    )


def test_with_one_server_the_links_are_those_of_the_topology(lease: PortLease) -> None:
    """But those to a database that the run does not have."""
    layout = layout_of(TOPOLOGY)
    wiring = wiring_of(layout, lease)

    assert layout.nodes == ("nats",)
    assert layout.roles == ("orders", "payments", "nats", "nats-monitoring", "toxiproxy")
    assert sorted(wiring.links) == ["clients->orders", "payments->nats"]
    assert wiring.links["payments->nats"].upstream == wiring.listen("nats")
    assert wiring.broker("payments").urls == (f"nats://{wiring.via('payments->nats')}",)
    assert wiring.database("payments") is None


def test_a_database_brings_its_links_with_it(lease: PortLease) -> None:
    """Each client gets a database of its own name, through its proxy, with the server's login."""
    wiring = wiring_of(
        layout_of(TOPOLOGY, has_database=True),
        lease,
        database_url="postgresql://stormproof:s%2Fcret@127.0.0.1:5/postgres",
    )

    assert wiring.links["payments->postgres"].upstream == wiring.listen("postgres")
    through = wiring.via("payments->postgres")
    assert wiring.database("payments") == f"postgresql://stormproof:s%2Fcret@{through}/payments"
    assert "s%2Fcret" not in repr(wiring)
    with pytest.raises(UsageError, match="no link 'orders->postgres'"):
        wiring.database("orders")


def test_in_a_cluster_every_way_has_a_proxy_of_its_own(lease: PortLease) -> None:
    """Clients to each server, and each server to each other, both ways."""
    layout = layout_of(TOPOLOGY, is_cluster=True)
    wiring = wiring_of(layout, lease)

    assert layout.nodes == ("nats-1", "nats-2", "nats-3")
    assert NOWHERE in wiring.addresses
    assert sorted(wiring.links) == [
        "clients->orders",
        *("nats-1->nats-2", "nats-1->nats-3", "nats-2->nats-1", "nats-2->nats-3", "nats-3->nats-1", "nats-3->nats-2"),
        *("payments->nats-1", "payments->nats-2", "payments->nats-3"),
    ]
    assert wiring.links["nats-2->nats-1"].upstream == wiring.listen("nats-1-routes")
    assert wiring.links["payments->nats-2"].upstream == wiring.listen("nats-2")
    assert len({link.listen for link in wiring.links.values()} | set(wiring.addresses.values())) == len(
        wiring.links
    ) + len(wiring.addresses)
    assert len(wiring.broker("payments").urls) == wiring.replicas == 3


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("payments->nats", ("payments->nats-1", "payments->nats-2", "payments->nats-3")),
        ("payments->nats-2", ("payments->nats-2",)),
        ("nats-1<->nats-3", ("nats-1->nats-3", "nats-3->nats-1")),
        ("nats-3->nats-1", ("nats-3->nats-1",)),
    ],
)
def test_a_fault_may_aim_at_one_way_or_at_all(name: str, means: tuple[str, ...], lease: PortLease) -> None:
    """An experiment that cuts `payments->nats` means the same on every backend."""
    wiring = wiring_of(layout_of(TOPOLOGY, is_cluster=True), lease)

    assert tuple(link.name for link in wiring.links_of(name)) == means


def test_one_address_of_three_is_nobodys_to_choose(lease: PortLease) -> None:
    """A process that was told of one server alone would lose the broker with that server."""
    wiring = wiring_of(layout_of(TOPOLOGY, is_cluster=True), lease)

    with pytest.raises(UsageError, match=r"leads to 3 servers: ask for `broker\('payments'\)`"):
        wiring.via("payments->nats")


@pytest.mark.parametrize(
    ("name", "is_cluster"), [("toxiproxy", False), ("nats-monitoring", False), ("nats-2", True), ("nats-nowhere", True)]
)
def test_no_process_may_have_the_name_of_a_part(name: str, is_cluster: bool) -> None:
    """Only of those that the run has: `nats-2` is free where there is one server."""
    topology = Topology(processes=(small_process(name),), links=())

    with pytest.raises(UsageError, match=f"no process may be called '{name}'"):
        layout_of(topology, is_cluster=is_cluster)
