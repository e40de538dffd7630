"""What a fault touched: operations that it held up, found in what the other channels say.

A fault that touched nothing makes a run UNKNOWN, so this must neither miss those that the system got out of by itself,
nor credit a harmless fault with what is always in flight.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.evidence.store import EvidenceWriter
    from harness.records import FaultWindow

_SLOWED_DOWN = 2
"""An operation was held up when it took so many times as long as the slowest one before the storm."""

_RECOVERED_NS = 1_000_000_000
"""One that was final before the heal was held up when it spent so much longer still in the window: no pause of a disk
or of a garbage collector lasts that long."""


def touching(
    writer: EvidenceWriter, window: FaultWindow, storm_began_ns: int, *, healed_before_ns: int = 0
) -> FaultWindow:
    """Count the operations that the fault held up: in flight when it healed, and for longer than is usual.

    Or final before the heal, because the system recovered while the fault was in force, but only after much longer.

    Usual is what the slowest operation took that was final before the first fault began; some are always in flight, and
    a harmless fault must not be credited with them. One that was never accepted, and was over before the window began,
    is none of them.

    healed_before_ns: when the last fault before this one healed, Unix time. What began before that is credited to that
    one: it may still be held up by what that one did, and nobody could tell by which.
    """
    if window.healed_ns is None:
        return window
    ((touched,),) = writer.execute(
        """
        WITH untroubled AS (
            SELECT coalesce(max(s.settled_ns - o.began_ns), 0) AS took_ns FROM operations o JOIN states s USING (key)
            WHERE s.settled_ns < $3
        )
        SELECT count(DISTINCT o.key) FROM operations o LEFT JOIN states s USING (key) CROSS JOIN untroubled u
        WHERE o.outcome <> 'failed' AND o.began_ns < $2 AND o.began_ns >= $6
          AND (s.settled_ns >= $2 AND s.settled_ns - o.began_ns > $4 * u.took_ns
               OR s.settled_ns - greatest(o.began_ns, $1) > $4 * u.took_ns + $5
               OR s.settled_ns IS NULL AND (o.outcome = 'ok' OR o.ended_ns IS NULL OR o.ended_ns >= $1))
        """,
        [window.began_ns, window.healed_ns, storm_began_ns, _SLOWED_DOWN, _RECOVERED_NS, healed_before_ns],
    )
    return replace(window, touched=touched)
