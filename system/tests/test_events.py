"""Events on the wire: what is read, what is refused, and who may be older or newer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from system import events
from system.events import OrderCreated, PaymentProcessed, PaymentStatus, UndecodableError, shop_pb2
from system.events.generate import stale_files

ORDER = OrderCreated(order_id="o1", customer_id="c1", amount_minor=1250, currency="EUR", created_at_ns=7)
PAYMENT = PaymentProcessed(
    order_id="o1",
    status=PaymentStatus.PAID,
    payment_id="ch_1",
    amount_minor=1250,
    currency="EUR",
    reason="",
    processed_at_ns=8,
)


def test_events_come_back_as_they_were() -> None:
    """Encoding loses nothing."""
    assert events.decode_order_created(events.encode_order_created(ORDER)) == ORDER
    assert events.decode_payment_processed(events.encode_payment_processed(PAYMENT)) == PAYMENT


def test_the_first_fields_have_the_numbers_they_keep_for_ever() -> None:
    """Field numbers and wire types, byte by byte: 1 and 2 strings, 4 a double; 1 a string, 3 an enum."""
    oldest_order = b"\x0a\x02o1" + b"\x12\x02c1" + b"\x21\x00\x00\x00\x00\x00\x00\x29\x40"
    oldest_payment = b"\x0a\x02o1" + b"\x18\x01"

    order = events.decode_order_created(oldest_order)
    payment = events.decode_payment_processed(oldest_payment)

    assert (order.order_id, order.customer_id, order.amount_minor, order.currency) == ("o1", "c1", 1250, "EUR")
    assert (payment.order_id, payment.status) == ("o1", PaymentStatus.PAID)


def test_fields_of_a_newer_producer_are_no_obstacle() -> None:
    """Field 99 means nothing here."""
    newer = events.encode_order_created(ORDER) + b"\x9a\x06\x03new"

    assert events.decode_order_created(newer) == ORDER


@pytest.mark.parametrize("status", [0, 3, 77])
def test_an_unspecified_or_unknown_status_is_never_paid(status: int) -> None:
    """It is refused, whatever else the event says."""
    payload = shop_pb2.PaymentProcessed(order_id="o1", payment_id="ch_1").SerializeToString()

    with pytest.raises(UndecodableError, match="unspecified or unknown"):
        events.decode_payment_processed(payload + bytes((0x18, status)))


@pytest.mark.parametrize(
    "message",
    [
        shop_pb2.OrderCreated(customer_id="c1", amount_minor=1),
        shop_pb2.OrderCreated(order_id="o1"),
        shop_pb2.OrderCreated(order_id="o1", amount_minor=-5),
        shop_pb2.OrderCreated(order_id="o1", total_amount=float("nan")),
    ],
)
def test_an_order_without_id_or_amount_is_undecodable(message: shop_pb2.OrderCreated) -> None:
    """Parsed, but no order."""
    with pytest.raises(UndecodableError):
        events.decode_order_created(message.SerializeToString())


@given(st.binary(max_size=64))
def test_any_bytes_are_an_event_or_undecodable(payload: bytes) -> None:
    """Nothing else is ever raised, so nothing else reaches a handler."""
    for decode in (events.decode_order_created, events.decode_payment_processed):
        try:
            decode(payload)
        except UndecodableError:
            continue


def test_the_committed_code_is_what_the_source_generates() -> None:
    """Whoever changes shop.proto regenerates."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools generates the code")

    assert stale_files() == []
