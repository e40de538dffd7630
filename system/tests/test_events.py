"""Events on the wire: what is read, what is refused; and the code that is generated for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from system import events
from system.events import OrderCancelled, OrderCreated, PaymentProcessed, PaymentStatus, UndecodableError, shop_pb2
from system.events.generate import GENERATED, PACKAGE_DIRECTORY, stale_files

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
CANCELLATION = OrderCancelled(order_id="o1", reason="changed my mind", cancelled_at_ns=9)


def test_events_come_back_as_they_were() -> None:
    """Encoding loses nothing."""
    assert events.decode_order_created(events.encode_order_created(ORDER)) == ORDER
    assert events.decode_payment_processed(events.encode_payment_processed(PAYMENT)) == PAYMENT
    assert events.decode_order_cancelled(events.encode_order_cancelled(CANCELLATION)) == CANCELLATION


@pytest.mark.parametrize("status", PaymentStatus)
def test_every_status_comes_back_as_it_was(status: PaymentStatus) -> None:
    """None is taken for another."""
    payment = PaymentProcessed(
        order_id="o1",
        status=status,
        payment_id="ch_1",
        amount_minor=1250,
        currency="EUR",
        reason="because",
        processed_at_ns=8,
        refund_id="re_1",
    )

    assert events.decode_payment_processed(events.encode_payment_processed(payment)) == payment


def test_the_first_fields_have_the_numbers_they_keep_for_ever() -> None:
    """Field numbers and wire types, byte by byte: 1 and 2 strings, 4 a double; 1 a string, 3 an enum."""
    oldest_order = b"\x0a\x02o1" + b"\x12\x02c1" + b"\x21\x00\x00\x00\x00\x00\x00\x29\x40"
    oldest_payment = b"\x0a\x02o1" + b"\x18\x01"

    order = events.decode_order_created(oldest_order)
    payment = events.decode_payment_processed(oldest_payment)

    assert (order.order_id, order.customer_id, order.amount_minor, order.currency) == ("o1", "c1", 1250, "EUR")
    assert (payment.order_id, payment.status) == ("o1", PaymentStatus.PAID)


@pytest.mark.parametrize("status", [0, 5, 77])
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


def test_a_cancellation_of_nothing_is_undecodable() -> None:
    """Parsed, but of which order?"""
    with pytest.raises(UndecodableError, match="without an order_id"):
        events.decode_order_cancelled(shop_pb2.OrderCancelled(reason="why not").SerializeToString())


@given(st.binary(max_size=64))
def test_any_bytes_are_an_event_or_undecodable(payload: bytes) -> None:
    """Nothing else is ever raised, so nothing else reaches a handler."""
    for decode in (events.decode_order_created, events.decode_payment_processed, events.decode_order_cancelled):
        try:
            decode(payload)
        except UndecodableError:
            continue


def test_the_committed_code_is_what_the_source_generates() -> None:
    """Whoever changes shop.proto regenerates."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools generates the code")

    assert stale_files() == []


@pytest.mark.parametrize("damage", ["stale", "broken", "gone"])
def test_the_code_is_generated_anew_whatever_state_it_is_in(tmp_path: Path, damage: str) -> None:
    """It lacks a name that the codec needs, or a merge left its marks in it: one command mends it."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools generates the code")
    package = tmp_path / "system"
    package.mkdir()
    shutil.copy(PACKAGE_DIRECTORY.parent / "__init__.py", package)
    shutil.copytree(PACKAGE_DIRECTORY, package / "events", ignore=shutil.ignore_patterns("__pycache__"))
    generated = package / "events" / GENERATED[0]
    match damage:
        case "stale":
            generated.write_text(generated.read_text(encoding="utf-8").replace("REFUNDED", "REFOUNDED"))
        case "broken":
            generated.write_text("<<<<<<< ours\n" + generated.read_text(encoding="utf-8"))
        case "gone":
            generated.unlink()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "system.events.generate", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    before, mending, after = run("--check"), run(), run("--check")

    assert (before.returncode, mending.returncode, after.returncode) == (1, 0, 0), before.stderr + mending.stderr
    assert "run python -m system.events.generate" in before.stderr


def test_what_is_not_in_the_package_is_said_to_be_missing() -> None:
    """The codec is imported on demand, a typing error is still an AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'decode_everything'"):
        getattr(events, "decode_everything")  # noqa: B009 - mypy knows that it is not there
