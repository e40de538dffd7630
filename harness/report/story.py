"""The story of one key: what every channel knows of it, in the order of time.

`tell_story` is one query over the evidence. The report tells a counterexample with it, `stormproof explain` any key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.evidence.store import Evidence

_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryLine:
    """One row of any channel about one key. at_ms: since the story began. took_ms: of a span that ended."""

    at_ms: float
    channel: str
    who: str
    what: str
    took_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What every channel knows of one key, in the order of time.

    lines: empty when no channel holds a row of the key. left_out: how many more there were than `lines_max`.
    """

    key: str
    lines: tuple[StoryLine, ...]
    left_out: int


def tell_story(evidence: Evidence, key: str, *, lines_max: int) -> Story:
    """Tell the story of a key, in at most `lines_max` lines (1 or more); a key that nobody knows has an empty one.

    Faults and processes appear from the key's first row to its last. When there is too much to tell, spans go first,
    for they are the many and the ledger is the truth.
    """
    rows = evidence.query(_STORY, [key, lines_max])
    rows.sort(key=lambda row: row[0])
    total = rows[0][-1] if rows else 0
    return Story(
        key=key,
        lines=tuple(
            StoryLine(
                at_ms=(at_ns - rows[0][0]) / _NS_PER_MS,
                channel=channel,
                who=who,
                what=what,
                took_ms=None if took_ns is None else took_ns / _NS_PER_MS,
            )
            for at_ns, channel, who, what, took_ns, _ in rows
        ),
        left_out=total - len(rows),
    )


_STORY = """
-- concat leaves NULL out, || makes NULL of it
WITH asked AS (
    SELECT * FROM operations WHERE key = $1
), traces AS (
    SELECT trace_id FROM asked WHERE trace_id IS NOT NULL
), told AS (
    SELECT 0 AS weight, at_ns, 'ledger' AS channel, kind AS who,
        concat(amount_minor, ' ', currency, ' (minor units), ', charge_id,
            ', idempotency key ', coalesce(idempotency_key, 'none')) AS what, NULL::BIGINT AS took_ns
    FROM ledger WHERE key = $1
    UNION ALL
    SELECT 1, began_ns, 'operations', 'client', concat('began: ', kind), NULL FROM asked
    UNION ALL
    SELECT 1, ended_ns, 'operations', 'client',
        concat('ended: ', outcome, ', status ' || status, CASE WHEN detail <> '' THEN ', ' || detail END), NULL
    FROM asked WHERE ended_ns IS NOT NULL
    UNION ALL
    SELECT 2, stored_ns, 'messages', 'broker', concat('stored ', stream, '#', sequence, ' ', subject,
        coalesce(', id ' || message_id, ', without an id')), NULL
    FROM messages WHERE key = $1
    UNION ALL
    SELECT 2, settled_ns, 'states', 'system', concat('settled: ', state), NULL
    FROM states WHERE key = $1 AND settled_ns IS NOT NULL
    UNION ALL
    SELECT 2, read_ns, 'states', 'client', concat('final read: ', state,
        CASE WHEN NOT is_final THEN ', not final' END, ', ' || amount_minor || ' (minor units)'), NULL
    FROM states WHERE key = $1
    UNION ALL
    SELECT 4, began_ns, 'spans', service, concat(name, ' (', kind, ')',
        CASE WHEN status = 'error' THEN ', error' END,
        CASE WHEN ended_ns IS NULL THEN ', never ended' END), ended_ns - began_ns
    FROM spans WHERE key = $1 OR trace_id IN (FROM traces)
), life AS (
    SELECT min(at_ns) AS from_ns, max(at_ns) AS until_ns FROM told
), storm AS (
    SELECT 3 AS weight, began_ns AS at_ns, 'faults' AS channel, 'nemesis' AS who,
        concat(name, ' on ', target, ' began') AS what FROM faults
    UNION ALL
    SELECT 3, healed_ns, 'faults', 'nemesis', concat(name, ' on ', target, ' healed')
    FROM faults WHERE healed_ns IS NOT NULL
    UNION ALL
    SELECT 3, at_ns, 'processes', process, concat(event, ', pid ', pid) FROM processes
), story AS (
    FROM told
    UNION ALL
    SELECT storm.*, NULL FROM storm, life WHERE at_ns BETWEEN from_ns AND until_ns
)
SELECT at_ns, channel, who, what, took_ns, count(*) OVER () FROM story ORDER BY weight, at_ns, what LIMIT $2
"""
