"""Whether orders from before the start may be known to nobody but the stream.

An order is found again by the table, which the projection fills, or by the broker's memory of message ids, which lasts
for the dedup window. After an outage longer than that, of this service or of its database, what is not in the table yet
is remembered by nothing that is asked, and the same key could become another order (P6). Until the projection is
through with that, it is not safe to take an order under a key that a customer chose.

Promises: never in the way after a short outage, because the broker remembers what the table does not have yet. And a
projection that cannot commit is noticed before the broker forgets what it did not commit.
"""

from __future__ import annotations

import asyncio
import logging
import time

from system import topology
from system.jetstream import Connection, ConsumerSpec, RequestError, acknowledged, last_stored, stored_since

log = logging.getLogger(__name__)

REMEMBERED_S = topology.DEDUP_WINDOW_S / 2
"""What is younger is in the broker's memory, and in the table before it leaves that."""
LOOK_EVERY_S = 0.1


class CatchingUp:
    """Watches whether the projection of created orders is through with what nobody else remembers.

    is_over: it is; only then may an order be taken under a customer's key. is_known: whether there is anything to wait
    for is known. Before that a service that says it is ready would refuse the next order.
    """

    def __init__(self, *, is_over: bool = False) -> None:
        self.is_over = is_over
        self.is_known = is_over
        self._failing_since_s: float | None = None
        self._is_behind = asyncio.Event()

    def committed(self) -> None:
        """The projection has committed something."""
        self._failing_since_s = None

    def not_committed(self) -> None:
        """It could not; told again with every try."""
        now_s = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        elif self.is_over and now_s - self._failing_since_s > REMEMBERED_S:
            log.warning("the table is more than %g s behind: no order is taken under a key", REMEMBERED_S)
            self.is_over = False
            self._is_behind.set()

    async def watch(self, connection: Connection, projection: ConsumerSpec) -> None:
        """Watch until cancelled. A broker that does not answer is asked again."""
        while True:
            await self._wait_until_through(connection, projection)
            self._is_behind.clear()
            await self._is_behind.wait()

    async def _wait_until_through(self, connection: Connection, projection: ConsumerSpec) -> None:
        last: int | None = None
        while True:
            try:
                if last is None:
                    last = await last_stored(connection, projection.stream, projection.subject)
                self.is_over = await _is_through(connection, projection, last)
                self.is_known = True
            except RequestError as error:
                log.info("how far orders are known again cannot be asked now: %s", error)
            if self.is_over:
                return
            await asyncio.sleep(LOOK_EVERY_S)


async def _is_through(connection: Connection, projection: ConsumerSpec, last: int) -> bool:
    done = await acknowledged(connection, projection)
    if done >= last:
        return True
    oldest = await stored_since(connection, projection.stream, projection.subject, done + 1)
    # By our clock; the broker's may differ by less than the half window that is left.
    return oldest is None or time.time() - oldest.timestamp() < REMEMBERED_S
