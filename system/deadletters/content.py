"""What is in the bytes of a message, for people: the event field by field if it can be parsed, a hex dump if not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from system import topology
from system.events import shop_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

DUMP_MAX_BYTES = 1024
_ROW_BYTES = 16

_EVENTS: Mapping[str, type[Message]] = {
    topology.ORDERS_CREATED: shop_pb2.OrderCreated,
    topology.ORDERS_CANCELLED: shop_pb2.OrderCancelled,
    topology.PAYMENTS_PROCESSED: shop_pb2.PaymentProcessed,
}


def readable(subject: str, payload: bytes) -> Iterator[str]:
    """The lines that show it; fields that this version does not know are there with their numbers."""
    event = _EVENTS.get(subject)
    if event is not None:
        try:
            message = event.FromString(payload)
        except DecodeError:
            yield f"{len(payload)} bytes that are no {event.DESCRIPTOR.name}:"
        else:
            yield f"{event.DESCRIPTOR.name}:"
            yield from (f"  {line}" for line in _fields(message))
            return
    else:
        yield f"{len(payload)} bytes on {subject}:"
    for at in range(0, min(len(payload), DUMP_MAX_BYTES), _ROW_BYTES):
        row = payload[at : at + _ROW_BYTES]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)  # noqa: PLR2004 - what ASCII can print
        yield f"  {at:06x}  {row.hex(' '):47}  {text}"
    if len(payload) > DUMP_MAX_BYTES:
        yield f"  ... {len(payload) - DUMP_MAX_BYTES} more"


def _fields(message: Message) -> list[str]:
    return text_format.MessageToString(message, print_unknown_fields=True, as_utf8=True).splitlines()
