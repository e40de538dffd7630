"""Partition: nothing crosses a link, and nobody is told.

A name that stands for several links (`payments->nats` in a cluster) means all of them at once.

Both ends keep their connections and hear nothing; new connections are accepted (a TCP proxy cannot do otherwise) and
hear nothing either. Bytes sent into the partition are gone. The heal closes the connections that lived through it, as a
middlebox that lost its table would, so both ends notice and connect again.

Made of Toxiproxy's `timeout` toxic with time-out 0, one for each direction.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from chaos.faults.fault import Grip
from harness.environment.concurrency import together
from harness.environment.toxiproxy import toxics
from harness.errors import EnvironmentFailedError

if TYPE_CHECKING:
    from harness.environment.backend import Environment
    from harness.environment.links import NetworkLink

_PROBE_WITHIN_S = 5.0
_COUNTED_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.02


class Direction(StrEnum):
    """Which way nothing gets through, seen from the link's client."""

    BOTH = "both"
    UPSTREAM = "upstream"
    DOWNSTREAM = "downstream"


_WAYS = {
    Direction.BOTH: (toxics.Direction.UPSTREAM, toxics.Direction.DOWNSTREAM),
    Direction.UPSTREAM: (toxics.Direction.UPSTREAM,),
    Direction.DOWNSTREAM: (toxics.Direction.DOWNSTREAM,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Cut one link, silently. link: its name (`payments->nats`)."""

    link: str
    direction: Direction = Direction.BOTH

    @property
    def name(self) -> str:
        """`partition`."""
        return "partition"

    @property
    def target(self) -> str:
        """The link."""
        return self.link

    def plan(self) -> dict[str, object]:
        """Return it as a JSON-able object."""
        return {"fault": self.name, **asdict(self)}

    def on(self, environment: Environment) -> PartitionedLink:
        """Bind it to a running environment."""
        environment.ensure_may_harm(self.link, by=self.name)
        return PartitionedLink(
            environment=environment, links=environment.links_of(self.link), ways=_WAYS[self.direction]
        )


@dataclass(slots=True, kw_only=True)
class PartitionedLink:
    """Links that are being cut together, with the byte counts from before."""

    environment: Environment
    links: tuple[NetworkLink, ...]
    ways: tuple[toxics.Direction, ...]
    _swallowed_before: int = field(default=0, init=False)

    async def inject(self) -> None:
        """Add the toxics and see them listed."""
        self._swallowed_before = await self._swallowed()
        await together(*(self._cut(link) for link in self.links))

    async def heal(self) -> None:
        """Remove the toxics, see none listed, and see the links answer again."""
        # Every link is mended, also when another one does not answer: what serves it may be dead of another fault.
        seen = await asyncio.gather(*(self._mend(link) for link in self.links), return_exceptions=True)
        for error in seen:
            if error is not None:
                raise error

    async def grip(self) -> Grip:
        """Count the bytes that went in and never came out.

        Toxiproxy adds a connection's bytes to its counters when the connection ends, which the heal brings about; so
        the count is waited for. A link that nobody used swallows nothing, and the wait ends with 0.
        """
        deadline_s = asyncio.get_running_loop().time() + _COUNTED_WITHIN_S
        while (swallowed := await self._swallowed() - self._swallowed_before) <= 0:
            if asyncio.get_running_loop().time() >= deadline_s:
                return Grip(caught=0, unit="bytes")
            await asyncio.sleep(_LOOK_EVERY_S)
        return Grip(caught=swallowed, unit="bytes")

    async def _cut(self, link: NetworkLink) -> None:
        toxiproxy = self.environment.toxiproxy
        for way in self.ways:
            await toxiproxy.add_toxic(link.proxy, toxics.TimeoutToxic(timeout_ms=0), direction=way, name=_toxic(way))
        missing = {_toxic(way) for way in self.ways} - set(await toxiproxy.toxics(link.proxy))
        if missing:
            raise EnvironmentFailedError(f"Toxiproxy accepted but does not list {sorted(missing)} on {link.name}")

    async def _mend(self, link: NetworkLink) -> None:
        toxiproxy = self.environment.toxiproxy
        ours = {_toxic(way) for way in self.ways}
        for name in ours & set(await toxiproxy.toxics(link.proxy)):
            await toxiproxy.remove_toxic(link.proxy, name)
        left = ours & set(await toxiproxy.toxics(link.proxy))
        if left:
            raise EnvironmentFailedError(f"Toxiproxy still lists {sorted(left)} on {link.name} after their removal")
        seen = await self.environment.probe(link.name, timeout_s=_PROBE_WITHIN_S)
        if seen is not None:
            raise EnvironmentFailedError(f"the link {link.name} does not answer after the heal: {seen}")

    async def _swallowed(self) -> int:
        counters = [
            await self.environment.toxiproxy.bytes_of(link.proxy, way) for link in self.links for way in self.ways
        ]
        return sum(counter.swallowed_bytes for counter in counters)


def _toxic(way: toxics.Direction) -> str:
    return f"partition_{way}"
