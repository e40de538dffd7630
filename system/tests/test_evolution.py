"""Old and new versions of the schema side by side: who can read whom, and which changes are refused.

The other version is compiled here from its own schema, into its own classes, so that it knows nothing of ours.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from system import events
from system.events import OrderCancelled, OrderCreated, PaymentProcessed, PaymentStatus, UndecodableError
from system.events.generate import PACKAGE_DIRECTORY

SCHEMA = (PACKAGE_DIRECTORY / "shop.proto").read_text(encoding="utf-8")

FIRST_SCHEMA = """
    syntax = "proto3";
    package stormproof.shop.v1;
    message OrderCreated {
      string order_id = 1;
      string customer_id = 2;
      double total_amount = 4;
    }
    enum PaymentStatus { PAYMENT_STATUS_UNSPECIFIED = 0; PAYMENT_STATUS_PAID = 1; PAYMENT_STATUS_DECLINED = 2; }
    message PaymentProcessed {
      string order_id = 1;
      PaymentStatus status = 3;
    }
"""

NEXT_SCHEMA = re.sub(
    r"(message \w+ \{)", r"\1 string loyalty_card = 51; repeated int64 lines_minor = 52;", SCHEMA
).replace("PAYMENT_STATUS_CANCELLED = 4;", "PAYMENT_STATUS_CANCELLED = 4; PAYMENT_STATUS_CHARGED_BACK = 5;")

ORDER = OrderCreated(order_id="o1", customer_id="c1", amount_minor=1250, currency="EUR", created_at_ns=7)
CANCELLATION = OrderCancelled(order_id="o1", reason="changed my mind", cancelled_at_ns=9)


def payment(status: PaymentStatus) -> PaymentProcessed:
    """A payment that ended so."""
    return PaymentProcessed(
        order_id="o1",
        status=status,
        payment_id="ch_1",
        amount_minor=1250,
        currency="EUR",
        reason="",
        processed_at_ns=8,
        refund_id="re_1",
    )


class Version:
    """The classes of another version of the schema."""

    def __init__(self, schema: str, directory: Path) -> None:
        protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools compiles the other version")
        (directory / "shop.proto").write_text(schema, encoding="utf-8")
        compiled = directory / "shop.binpb"
        status = protoc.main(["protoc", f"-I{directory}", f"--descriptor_set_out={compiled}", "shop.proto"])
        assert status == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())
        self._pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            self._pool.Add(file)

    def make(self, name: str, **fields: object) -> bytes:
        """What this version sends."""
        return bytes(self._class(name)(**fields).SerializeToString())

    def read(self, name: str, payload: bytes) -> Any:  # noqa: ANN401 - a class that no type checker knows
        """What this version understands."""
        return self._class(name).FromString(payload)

    def _class(self, name: str) -> Any:  # noqa: ANN401 - as above
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"stormproof.shop.v1.{name}"))


@pytest.fixture
def first(tmp_path: Path) -> Version:
    """The oldest version, that knew no minor units, no currency and no cancellation."""
    return Version(FIRST_SCHEMA, tmp_path)


@pytest.fixture
def newer(tmp_path: Path) -> Version:
    """A version to come, with more fields everywhere and one more status."""
    return Version(NEXT_SCHEMA, tmp_path)


def test_an_order_of_the_oldest_producer_is_read(first: Version) -> None:
    """Its double becomes minor units, and the currency the one that there was."""
    payload = first.make("OrderCreated", order_id="o1", customer_id="c1", total_amount=12.5)

    assert events.decode_order_created(payload) == OrderCreated(
        order_id="o1", customer_id="c1", amount_minor=1250, currency="EUR", created_at_ns=0
    )


def test_the_oldest_consumer_reads_our_orders_and_payments(first: Version) -> None:
    """It finds the amount where it looks for it, and the outcome."""
    order = first.read("OrderCreated", events.encode_order_created(ORDER))
    paid = first.read("PaymentProcessed", events.encode_payment_processed(payment(PaymentStatus.PAID)))

    assert (order.order_id, order.customer_id, order.total_amount) == ("o1", "c1", 12.5)
    assert (paid.order_id, paid.status) == ("o1", 1)


@pytest.mark.parametrize("status", [PaymentStatus.REFUNDED, PaymentStatus.CANCELLED])
def test_the_oldest_consumer_does_not_take_what_is_new_for_paid(first: Version, status: PaymentStatus) -> None:
    """It sees a number that it does not know, not one that it knows."""
    seen = first.read("PaymentProcessed", events.encode_payment_processed(payment(status)))

    assert seen.status not in {1, 2}


def test_events_of_a_newer_producer_are_read(newer: Version) -> None:
    """Fields that nobody here has heard of mean nothing, and hide nothing."""
    more = {"loyalty_card": "gold", "lines_minor": [1000, 250]}
    order = newer.make(
        "OrderCreated",
        order_id="o1",
        customer_id="c1",
        total_amount=12.5,
        amount_minor=1250,
        currency="EUR",
        created_at_ns=7,
        **more,
    )
    cancellation = newer.make("OrderCancelled", order_id="o1", reason="changed my mind", cancelled_at_ns=9, **more)

    assert events.decode_order_created(order) == ORDER
    assert events.decode_order_cancelled(cancellation) == CANCELLATION


def test_a_newer_consumer_reads_our_events(newer: Version) -> None:
    """What we do not send has its zero value there."""
    order = newer.read("OrderCreated", events.encode_order_created(ORDER))
    paid = newer.read("PaymentProcessed", events.encode_payment_processed(payment(PaymentStatus.PAID)))

    assert (order.order_id, order.amount_minor, order.loyalty_card) == ("o1", 1250, "")
    assert (paid.status, paid.payment_id, list(paid.lines_minor)) == (1, "ch_1", [])


def test_a_status_of_a_newer_producer_is_undecodable(newer: Version) -> None:
    """Nobody guesses what became of money; it waits among the dead letters for a version that knows."""
    payload = newer.make("PaymentProcessed", order_id="o1", status=5, payment_id="ch_1")

    with pytest.raises(UndecodableError, match="status 5 is unspecified or unknown"):
        events.decode_payment_processed(payload)


# What may be changed.


@pytest.fixture
def buf(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The buf binary, with a cache of its own."""
    beside_python = Path(sys.executable).parent / "buf"
    binary = str(beside_python) if beside_python.exists() else shutil.which("buf")
    if binary is None:
        if request.config.getoption("--require-backends", default=False):
            pytest.fail("--require-backends: buf is neither beside Python nor on PATH: pip install buf-bin")
        pytest.skip("buf is neither beside Python nor on PATH: pip install buf-bin")
    monkeypatch.setenv("BUF_CACHE_DIR", str(tmp_path / "cache"))
    return binary


def breaking(buf: str, schema: Path, *, against: Path = PACKAGE_DIRECTORY / "baseline") -> list[str]:
    """What `buf breaking` has against a schema; it can reach no network for it."""
    result = subprocess.run(
        [buf, "breaking", str(schema), "--against", str(against)],
        env={**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    assert (result.returncode == 0) == (result.stdout == "")
    return result.stdout.splitlines()


def changed(directory: Path, before: str, after: str) -> Path:
    """A copy of the schema with one change."""
    assert before in SCHEMA
    shutil.copy(PACKAGE_DIRECTORY / "buf.yaml", directory)
    (directory / "shop.proto").write_text(SCHEMA.replace(before, after), encoding="utf-8")
    return directory


def test_the_schema_breaks_nobody_who_knows_the_last_release(buf: str) -> None:
    """What `tox -e lint` runs."""
    assert breaking(buf, PACKAGE_DIRECTORY) == []


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        pytest.param("int64 amount_minor = 5;", "int32 amount_minor = 5;", "changed type", id="another type"),
        pytest.param("string currency = 6;", "", "was deleted", id="a field less"),
        pytest.param("string reason = 7;", "string reason = 17;", "was deleted", id="another number"),
        pytest.param("string payment_id = 4;", "string charge = 4;", "changed name", id="a number reused"),
        pytest.param("reserved 3;", "", "reserved", id="a reserved number freed"),
        pytest.param(
            "PAYMENT_STATUS_DECLINED = 2;", "PAYMENT_STATUS_REFUSED = 2;", "changed name", id="a status reused"
        ),
        pytest.param("message OrderCancelled {", "message OrderRevoked {", "was deleted", id="an event renamed"),
        pytest.param("string customer_id = 2;", "repeated string customer_id = 2;", "cardinality", id="many for one"),
        pytest.param("package stormproof.shop.v1;", "package stormproof.shop.v2;", "package", id="another package"),
    ],
)
def test_a_change_that_would_break_somebody_is_refused(
    buf: str, tmp_path: Path, before: str, after: str, complaint: str
) -> None:
    """And it is said what."""
    assert any(complaint in line for line in breaking(buf, changed(tmp_path, before, after)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("string currency = 6;", "string currency = 6; string note = 51;", id="a field more"),
        pytest.param(
            "PAYMENT_STATUS_CANCELLED = 4;",
            "PAYMENT_STATUS_CANCELLED = 4; PAYMENT_STATUS_CHARGED_BACK = 5;",
            id="a status more",
        ),
        pytest.param("package stormproof.shop.v1;", "package stormproof.shop.v1; message New {}", id="an event more"),
    ],
)
def test_what_only_adds_is_no_breaking_change(buf: str, tmp_path: Path, before: str, after: str) -> None:
    """New fields may join."""
    assert breaking(buf, changed(tmp_path, before, after)) == []
