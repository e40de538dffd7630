"""A network link of a run with its two ends: the proxy's address and the server's.

Promises: one proxy per link, so that `payments->nats` can be cut while `orders->nats` works.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.environment.toxiproxy.client import ToxiproxyClient


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLink:
    """One link. listen: where the client connects (the proxy). upstream: where the server really listens.

    proxy: what its proxy is called in Toxiproxy; the link's own name, but on somebody's Toxiproxy, which has others.
    """

    name: str
    client: str
    server: str
    listen: str
    upstream: str
    proxy: str

    async def create_on(self, toxiproxy: ToxiproxyClient) -> None:
        """Create this link's proxy; it listens when this returns."""
        await toxiproxy.create(self.proxy, listen=self.listen, upstream=self.upstream)
