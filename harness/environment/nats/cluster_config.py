"""What makes a nats-server one of a cluster whose servers reach each other through proxies only.

Promises: every route is dialled at the proxy of its link (`nats-1->nats-2`) and takes a password of the run's own; what
servers tell each other of further servers leads nowhere; a peer that falls silent is given up after some 3 s; no client
is told of another server.

Does not: encrypt routes. They stay on loopback.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

from harness.environment.layout import NOWHERE, routes_of
from harness.environment.wiring import RunWiring

CLUSTER_NAME = "stormproof"
ROUTE_USER = "stormproof-route"
PASSWORD_BYTES = 24

PING_EVERY_S = 1
PINGS_MAX = 2
"""So many unanswered pings are suffered; the next one that is due ends the route."""


def fresh_route_password() -> str:
    """A password for the routes of one run. It stands in URLs, so it needs no quoting there."""
    return secrets.token_urlsafe(PASSWORD_BYTES)


def cluster_block(node: str, wiring: RunWiring, *, nodes: Sequence[str], password: str) -> str:
    """The `cluster` block of one server's configuration. nodes, password: the same for every server of the run."""
    dialled = [wiring.links[f"{node}->{peer}"].listen for peer in nodes if peer != node]
    settings: dict[str, object] = {
        "name": CLUSTER_NAME,
        "listen": wiring.listen(routes_of(node)),
        # Gossip: a server tells its peers of every new one, and where that one says it listens. They would connect
        # directly, past the proxies, and a partition would then cut nothing. A place where nobody listens is tried
        # once, refused, and forgotten; their own configured routes are what connects them.
        "advertise": wiring.listen(NOWHERE),
        "no_advertise": True,
        # Its own address is not among them. As long as nothing is stored, a server needs as many votes as it has
        # routes; with three, one word that comes late fails the first election, and the next is held after 4 to 9 s.
        "routes": [f"nats-route://{ROUTE_USER}:{password}@{address}" for address in dialled],
        "authorization": {"user": ROUTE_USER, "password": password},
        # One connection for each pair of servers, so that the bytes of a pair are those of one proxy.
        "pool_size": -1,
        "compression": "off",
        "ping_interval": f"{PING_EVERY_S}s",
        "ping_max": PINGS_MAX,
    }
    # JSON is a subset of the configuration language but for the outermost braces.
    return f"cluster {json.dumps(settings, indent=2)}"
