"""From what lies about after a run to frozen evidence.

Each channel is read by its own collector, says itself whether it is complete, and knows nothing of the others. Only the
last step compares channels: how many operations in flight each fault touched.
"""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import TYPE_CHECKING

from harness.collection.broker import BrokerRecords, broker_records
from harness.collection.spans import Origin, span_rows, spans_of
from harness.collection.spool import Boot, read_boots
from harness.evidence.store import FILE_NAME, EvidenceWriter
from harness.evidence.touching import touching
from harness.records import Channel, FaultWindow, Span, SpanEvent, SpanLink
from harness.settling import states_channel

__all__ = ["broker_records", "collect", "collect_spans"]

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.collection.otlp import OtlpReceiver
    from harness.environment.backend import Environment
    from harness.evidence.store import Evidence
    from harness.records import LoadSummary, Operation, ProcessEvent, State
    from harness.system_under_test import SystemUnderTest

SpanRow = Span | SpanLink | SpanEvent


async def collect(
    system: SystemUnderTest,
    environment: Environment,
    broker: BrokerRecords,
    receiver: OtlpReceiver,
    *,
    operations: Sequence[Operation],
    operations_channel: Channel,
    states: Sequence[State],
    windows: Sequence[FaultWindow],
    load: LoadSummary | None,
    directory: Path,
) -> Evidence:
    """Read every channel and freeze the evidence into the run directory. The processes have stopped by now."""
    messages, messages_channel = await broker.messages(system.streams, system.key_of_message)
    consumers, consumers_channel = await broker.consumers(system.streams)
    advisories, advisories_channel = await broker.advisories()
    ledger = system.read_ledger(environment.wiring)
    events = environment.supervisor.events

    def write() -> Evidence:
        spans, spans_channel = collect_spans(receiver, environment.spool_directory, system, events)
        writer = EvidenceWriter(directory / FILE_NAME)
        channels = (
            operations_channel,
            spans_channel,
            messages_channel,
            consumers_channel,
            advisories_channel,
            ledger.channel,
            states_channel(states, operations, messages),
        )
        writer.write(
            chain(operations, spans, messages, consumers, advisories, ledger.entries, states, events, channels)
        )
        storm_began_ns = min((window.began_ns for window in windows), default=0)
        for window in windows:
            healed = [other.healed_ns for other in windows if other.healed_ns is not None]
            before_ns = max((at_ns for at_ns in healed if at_ns <= window.began_ns), default=0)
            writer.write([touching(writer, window, storm_began_ns, healed_before_ns=before_ns)])
        if load is not None:
            writer.write([load])
        return writer.finish()

    return await asyncio.to_thread(write)


def collect_spans(
    receiver: OtlpReceiver, spool: Path, system: SystemUnderTest, events: Sequence[ProcessEvent]
) -> tuple[list[SpanRow], Channel]:
    """Merge what arrived over OTLP with what processes left in their spools, and measure what is missing."""
    boots = list(read_boots(spool))
    rows: list[SpanRow] = []
    seen: set[tuple[bytes, bytes]] = set()
    numbers: dict[Origin, set[int]] = {boot.origin: {span.seq or 0 for span in boot.open} for boot in boots}
    unnumbered: set[str] = set()
    arrived = chain.from_iterable(spans_of(request) for request in receiver.requests())
    left = ((boot.origin, span) for boot in boots for span in boot.ended)
    for origin, span in chain(arrived, left):
        # Most spans arrive twice, over OTLP and in a spool: ids are compared before anything is unpacked.
        identity = (span.trace_id, span.span_id)
        if identity in seen:
            continue
        seen.add(identity)
        row, *details = span_rows(span, origin, system.key_attributes)
        rows += (row, *details)
        if isinstance(row, Span) and row.seq is not None:
            numbers.setdefault(origin, set()).add(row.seq)
        else:
            unnumbered.add(origin.service)
    # A process killed between writing an ended span and freeing its slot has it in both places.
    still_open = [span for boot in boots for span in boot.open if _identity(span) not in seen]
    channel = _spans_channel(receiver, boots, numbers, unnumbered, system, events, len(seen) + len(still_open))
    return [*rows, *still_open], channel


def _identity(span: Span) -> tuple[bytes, bytes]:
    return bytes.fromhex(span.trace_id), span.span_id.to_bytes(8, "big")


def _spans_channel(
    receiver: OtlpReceiver,
    boots: Sequence[Boot],
    numbers: dict[Origin, set[int]],
    unnumbered: set[str],
    system: SystemUnderTest,
    events: Sequence[ProcessEvent],
    received: int,
) -> Channel:
    """Say how many spans there should be: the sum over boots of how many each had begun."""
    started = {boot.origin: boot.started for boot in boots}
    gaps = []
    expected = 0
    for origin, known in sorted(numbers.items(), key=lambda item: (item[0].service, item[0].instance)):
        begun = started.get(origin)
        if begun is None:
            gaps.append(f"{origin.service} boot {origin.instance[:8]} does not say how many spans it began")
        expected += max(begun or 0, len(known))
        if begun is not None and len(known) < begun:
            gaps.append(f"{origin.service} boot {origin.instance[:8]} began {begun} spans, {len(known)} were seen")
    for role in system.traced:
        boots_begun = sum(event.process == role and event.event == "started" for event in events)
        boots_told = sum(origin.service == role for origin in started)
        if boots_told < boots_begun:
            gaps.append(f"{role} was started {boots_begun} time(s), {boots_told} left a span count")
    gaps.extend(
        f"spans of {service} are not numbered, so their loss cannot be measured" for service in sorted(unnumbered)
    )
    if not numbers and not unnumbered and not system.traced:
        gaps.append("no span came, and no process of the system is said to make any")
    if receiver.bodies_refused:
        gaps.append(f"{receiver.bodies_refused} OTLP bodies were refused")
    if receiver.spans_refused:
        gaps.append(f"{receiver.spans_refused} spans with impossible ids were refused")
    return Channel(
        name="spans",
        expected=None if unnumbered else expected,
        received=received,
        complete=not gaps,
        why="; ".join(gaps),
    )
