"""The `cluster` block of each server: every route at a proxy, nothing true said in gossip."""

from __future__ import annotations

import json
from pathlib import Path

from harness.environment.addresses import assign_addresses, assign_links
from harness.environment.layout import NOWHERE, layout_of, routes_of
from harness.environment.nats.access import fresh_access
from harness.environment.nats.cluster_config import ROUTE_USER, cluster_block, fresh_route_password
from harness.environment.ports import PortLease
from harness.environment.tests.small_cluster import CLIENTS
from harness.environment.wiring import RunWiring


def test_a_server_dials_the_proxies_of_its_routes_and_tells_its_peers_to_go_nowhere(
    lease: PortLease, tmp_path: Path
) -> None:
    """No other server's own address is in it."""
    layout = layout_of(CLIENTS, is_cluster=True, has_database=False)
    addresses = assign_addresses(layout.roles, fixed={}, lease=lease)
    wiring = RunWiring(
        spool_directory=tmp_path,
        otlp_url="http://127.0.0.1:4318",
        seed=7,
        addresses=addresses,
        links=assign_links(layout, addresses=addresses, lease=lease),
        groups=layout.groups,
        scratch_directory=tmp_path,
        access=fresh_access([addresses[node] for node in layout.nodes]),
    )

    block = cluster_block("nats-2", wiring, nodes=layout.nodes, password="p4ss")  # noqa: S106 - nobody's

    settings = json.loads(block.removeprefix("cluster "))
    assert settings["routes"] == [
        f"nats-route://{ROUTE_USER}:p4ss@{address}"
        for address in (
            wiring.links["nats-2->nats-1"].listen,
            wiring.links["nats-2->nats-3"].listen,
        )
    ]
    assert settings["listen"] == wiring.listen(routes_of("nats-2"))
    assert settings["advertise"] == wiring.listen(NOWHERE)
    assert settings["no_advertise"] is True
    assert not {wiring.listen(routes_of("nats-1")), wiring.listen(routes_of("nats-3"))} & set(block.split('"'))


def test_every_run_has_a_password_of_its_own_that_needs_no_quoting_in_a_url() -> None:
    """It stands in `nats-route://user:password@host`."""
    first, second = fresh_route_password(), fresh_route_password()

    assert first != second
    assert len(first) >= 32
    assert set(first) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
