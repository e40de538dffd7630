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

_USUAL_NS = 500_000_000
"""What is taken for usual where nothing was final before the storm, so that nobody knows what is."""

_RECOVERED_NS = 1_000_000_000
"""One that was final before the heal was held up when it spent so much longer still in the window: no pause of a disk
or of a garbage collector lasts that long."""


def touching(
    writer: EvidenceWriter, window: FaultWindow, storm_began_ns: int, *, healed_before_ns: int = 0
) -> FaultWindow:
    """Count the operations that the fault held up: in flight when it healed, and for longer than is usual.

    Or final before the heal, because the system recovered while the fault was in force, but only after much longer.

    Usual is what the slowest operation took that was final before the first fault began; some are always in flight, and
    a harmless fault must not be credited with them. Where the system does not say when something became final, the
    answer to its operation has to do. One that was never accepted, and was over before the window began,
    is none of them.

    healed_before_ns: when the last fault before this one healed, Unix time. What began before that is credited to that
    one: it may still be held up by what that one did, and nobody could tell by which.
    """
    if window.healed_ns is None:
        return window
    ((touched,),) = writer.execute(
        """
        WITH followed AS (
            SELECT o.key, o.outcome, o.began_ns, o.ended_ns,
                   coalesce(s.settled_ns, CASE WHEN s.is_final THEN o.ended_ns END) AS over_ns
            FROM operations o LEFT JOIN states s USING (key)
        ), untroubled AS (
            SELECT coalesce(max(over_ns - began_ns), $7) AS took_ns FROM followed WHERE over_ns < $3
        )
        SELECT count(DISTINCT key) FROM followed CROSS JOIN untroubled
        WHERE outcome <> 'failed' AND began_ns < $2 AND began_ns >= $6
          AND (over_ns >= $2 AND over_ns - began_ns > $4 * took_ns
               OR over_ns - greatest(began_ns, $1) > $4 * took_ns + $5
               OR over_ns IS NULL AND (outcome = 'ok' OR ended_ns IS NULL OR ended_ns >= $1))
        """,
        [window.began_ns, window.healed_ns, storm_began_ns, _SLOWED_DOWN, _RECOVERED_NS, healed_before_ns, _USUAL_NS],
    )
    return replace(window, touched=touched)
