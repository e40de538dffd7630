"""Somebody's running broker and Toxiproxy, looked at from outside.

Promises: they are asked whether they serve us, and nothing of theirs is changed.
"""

from __future__ import annotations

from harness.doctor.ability import Ability, broken, unknown, works
from harness.environment.choice import EXTERNAL, BackendChoice
from harness.environment.external import external_access, external_addresses
from harness.environment.probes import probe_nats
from harness.environment.topology import BROKER
from harness.environment.toxiproxy.client import ToxiproxyClient
from harness.environment.toxiproxy.server import TOXIPROXY
from harness.errors import EnvironmentFailedError

YOUR_BROKER = "your broker"
YOUR_TOXIPROXY = "your toxiproxy"

WITHIN_S = 5.0
NAME_THEM = "stormproof doctor --nats-url nats://127.0.0.1:4222 --toxiproxy-url http://127.0.0.1:8474"


def choice_of(nats_url: str | None, toxiproxy_url: str | None) -> BackendChoice | None:
    """What was named; None when nothing was. Raises UsageError when it is not enough, or no URL."""
    if nats_url is None and toxiproxy_url is None:
        return None
    return BackendChoice(name=EXTERNAL, nats_url=nats_url, toxiproxy_url=toxiproxy_url)


async def broker(choice: BackendChoice | None) -> Ability:
    """Whether it speaks JetStream and lets us in."""
    if choice is None:
        return unknown(YOUR_BROKER, "nobody named one", NAME_THEM)
    address = external_addresses(choice)[BROKER]
    seen = await probe_nats(address, WITHIN_S, access=external_access(choice))
    if seen is None:
        return works(YOUR_BROKER, f"{address} lets us in and has JetStream")
    return broken(YOUR_BROKER, seen, "start it with JetStream (nats-server -js), or mend URL and credentials")


async def toxiproxy(choice: BackendChoice | None) -> Ability:
    """Whether its API answers."""
    if choice is None:
        return unknown(YOUR_TOXIPROXY, "nobody named one", NAME_THEM)
    address = external_addresses(choice)[TOXIPROXY]
    try:
        version = await ToxiproxyClient(address, timeout_s=WITHIN_S).version()
    except EnvironmentFailedError as error:
        return broken(YOUR_TOXIPROXY, str(error).partition("; ")[0], "start it: toxiproxy-server -proxy-metrics")
    return works(YOUR_TOXIPROXY, f"its API answers at {address}", version=version)
