"""Partition: nothing crosses a link, and nobody is told.

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
from harness.environment import toxics
from harness.errors import EnvironmentFailedError, UsageError

if TYPE_CHECKING:
    from harness.environment.backend import Environment

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
        if self.link not in environment.links:
            known = ", ".join(sorted(environment.links))
            raise UsageError(f"there is no link {self.link!r} to partition; there is: {known}")
        return PartitionedLink(environment=environment, link=self.link, ways=_WAYS[self.direction])


@dataclass(slots=True, kw_only=True)
class PartitionedLink:
    """A link that is being cut, with the byte counts from before."""

    environment: Environment
    link: str
    ways: tuple[toxics.Direction, ...]
    _swallowed_before: int = field(default=0, init=False)

    async def inject(self) -> None:
        """Add the toxics and see them listed."""
        toxiproxy = self.environment.toxiproxy
        self._swallowed_before = await self._swallowed()
        for way in self.ways:
            await toxiproxy.add_toxic(self.link, toxics.TimeoutToxic(timeout_ms=0), direction=way, name=_toxic(way))
        missing = {_toxic(way) for way in self.ways} - set(await toxiproxy.toxics(self.link))
        if missing:
            raise EnvironmentFailedError(f"Toxiproxy accepted but does not list {sorted(missing)} on {self.link}")

    async def heal(self) -> None:
        """Remove the toxics, see none listed, and see the link answer again."""
        toxiproxy = self.environment.toxiproxy
        ours = {_toxic(way) for way in self.ways}
        for name in ours & set(await toxiproxy.toxics(self.link)):
            await toxiproxy.remove_toxic(self.link, name)
        left = ours & set(await toxiproxy.toxics(self.link))
        if left:
            raise EnvironmentFailedError(f"Toxiproxy still lists {sorted(left)} on {self.link} after their removal")
        seen = await self.environment.probe(self.link, timeout_s=_PROBE_WITHIN_S)
        if seen is not None:
            raise EnvironmentFailedError(f"the link {self.link} does not answer after the heal: {seen}")

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

    async def _swallowed(self) -> int:
        counters = [await self.environment.toxiproxy.bytes_of(self.link, way) for way in self.ways]
        return sum(counter.swallowed_bytes for counter in counters)


def _toxic(way: toxics.Direction) -> str:
    return f"partition_{way}"
