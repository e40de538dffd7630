"""The three processes with a real broker: orders are paid, traces hold together, and whatever is broken heals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from system.tests.parts import Broker, Process, Proxy, ask, free_port, wait_until, wait_until_it
from system.tests.postgres import PostgresServer
from system.tests.shop import JSON, READY_WITHIN_S, Money, Shop, running
from system.tests.test_telemetry import attributes_of, read_frames, read_open

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


@pytest_asyncio.fixture
async def shop(broker: Broker, tmp_path: Path) -> AsyncIterator[Shop]:
    """An open shop."""
    async with running(Shop(tmp_path, broker.url)) as shop:
        yield shop


def charges_of(shop: Shop) -> list[str]:
    """The orders charged, in the ledger's order."""
    return [key for key, money in shop.money().items() for _ in range(money.charges)]


def spans_of(shop: Shop) -> list[Span]:
    """All ended spans of all boots."""
    frames = [frame for path in shop.spool.glob("*.spans") for frame in read_frames(path)[1:]]
    return [Span.FromString(frame) for frame in frames]


def paths_in(trace: str, spans: list[Span]) -> list[str]:
    """The spans of a trace, each by the names from its root down; the root is a child of the caller's span."""
    by_id = {span.span_id: span for span in spans if span.trace_id.hex() == trace}

    def path(span: Span) -> str:
        parent = by_id.get(span.parent_span_id)
        if parent is None:
            assert span.parent_span_id.hex() == CALLER
        return f"{path(parent)} > {span.name}" if parent is not None else span.name

    return sorted(path(span) for span in by_id.values())


async def test_orders_are_paid_and_the_processes_stop_cleanly(shop: Shop) -> None:
    """P1, P2, P3: forty orders and one that is declined: all settled, charged once or never; exit codes 0."""
    keys = [f"o{n}" for n in range(40)]
    replies = await asyncio.gather(*(shop.place(key) for key in keys))
    assert {reply.status for reply in replies} == {202}
    assert (await shop.place("declined", total=1.13)).status == 202

    await shop.all_in("PAID", keys)
    await shop.all_in("DECLINED", ["declined"])

    assert sorted(charges_of(shop)) == sorted(keys)
    assert await shop.stop() == {"orders": 0, "payments": 0, "provider": 0}


async def test_an_accepted_order_is_visible_at_once_and_the_same_request_is_the_same_order(shop: Shop) -> None:
    """P6, P7: read your writes; the same again is 202 again; another order under the same key is a conflict."""
    for key in (f"o{n}" for n in range(20)):
        assert (await shop.place(key)).status == 202
        assert await shop.status(key) in ("PENDING", "PAID")
    assert (await shop.place("o0")).status == 202
    await shop.all_in("PAID", ["o0"])
    assert (await shop.place("o0")).status == 202
    assert (await shop.place("o0", total=13.0)).status == 409

    assert charges_of(shop).count("o0") == 1


async def test_two_requests_with_one_key_at_once_are_one_order(shop: Shop) -> None:
    """The broker's memory decides, not ours: same order 202 for both, different orders one 202 and one 409."""
    same = await asyncio.gather(*(shop.place("same") for _ in range(8)))
    different = await asyncio.gather(*(shop.place("different", total=10.0 + n) for n in range(8)))

    assert [reply.status for reply in same] == [202] * 8
    assert sorted(reply.status for reply in different) == [202] + [409] * 7
    await shop.all_in("PAID", ["same", "different"])
    assert sorted(charges_of(shop)) == ["different", "same"]


async def test_the_spans_of_an_order_are_one_tree_over_three_processes(shop: Shop) -> None:
    """P10: from the caller's own span down to the final state, each where it belongs, with order.id on every one."""
    await shop.place("o1", trace=f"00-{TRACE}-{CALLER}-01")
    await shop.all_in("PAID", ["o1"])
    await wait_until(lambda: sum(span.trace_id.hex() == TRACE for span in spans_of(shop)) == 8, what="eight spans")
    taken = "POST /orders > publish orders.created > process orders.created"
    assert paths_in(TRACE, spans_of(shop)) == sorted(
        [
            "POST /orders",
            "POST /orders > publish orders.created",
            taken,  # by payments
            taken,  # by the projection
            f"{taken} > POST /charges",
            f"{taken} > POST /charges > POST /charges",
            f"{taken} > publish payments.processed",
            f"{taken} > publish payments.processed > process payments.processed",
        ]
    )
    spans = [span for span in spans_of(shop) if span.trace_id.hex() == TRACE]
    assert {attributes_of(span)["order.id"] for span in spans} == {"o1"}
    for span in spans:
        attributes = attributes_of(span)
        if span.kind == Span.SPAN_KIND_CONSUMER:
            assert [link.span_id for link in span.links] == [span.parent_span_id]
            assert attributes["messaging.nats.delivery_count"] == 1
        if span.kind in (Span.SPAN_KIND_CONSUMER, Span.SPAN_KIND_PRODUCER):
            assert attributes["messaging.system"] == "nats"
            assert str(attributes["messaging.message.id"]).endswith(":o1")


async def test_a_paid_order_that_is_cancelled_is_refunded_once(shop: Shop) -> None:
    """P13: the customer sees what was taken, what was given back and why; asking again changes nothing."""
    await shop.place("o1")
    await shop.all_in("PAID", ["o1"])
    body = json.dumps({"reason": "too small"}).encode()
    port = shop.ports["orders"]
    first = await ask(port, "POST", "/orders/o1/cancel", body=body, headers=JSON)
    await shop.all_in("REFUNDED", ["o1"])
    again = await shop.cancel("o1")

    order = json.loads((await ask(port, "GET", "/orders/o1")).body)
    assert (first.status, first.text("status")) == (202, "PAID")
    assert (again.status, again.text("status")) == (200, "REFUNDED")
    assert order["payment_id"]
    assert order["refund_id"]
    assert order["reason"] == "too small"
    assert (await shop.place("o1")).text("status") == "REFUNDED"
    assert shop.money() == {"o1": Money(charged=1250, refunded=1250, charges=1, refunds=1)}


async def test_a_declined_order_cannot_be_cancelled_and_no_order_cannot_either(shop: Shop) -> None:
    """409 and 404; nothing is stored, no money moves."""
    await shop.place("o1", total=1.13)
    await shop.all_in("DECLINED", ["o1"])

    assert (await shop.cancel("o1")).status == 409
    assert (await shop.cancel("o2")).status == 404
    assert await shop.status("o1") == "DECLINED"
    assert shop.money() == {}


async def test_cancellations_that_race_with_their_charges_leave_no_money_behind(shop: Shop) -> None:
    """P13: before, during or after the charge; each order is cancelled and never charged, or charged and refunded."""
    keys = [f"o{n}" for n in range(60)]

    async def place_and_cancel(key: str) -> None:
        assert (await shop.place(key)).status == 202
        assert (await shop.cancel(key)).status in {200, 202}

    await asyncio.gather(*(place_and_cancel(key) for key in keys))
    await shop.all_in(frozenset({"CANCELLED", "REFUNDED"}), keys, within_s=10.0)

    money = shop.money()
    for key in keys:
        if await shop.status(key) == "CANCELLED":
            assert key not in money
        else:
            assert money[key] == Money(charged=1250, refunded=1250, charges=1, refunds=1)


async def test_the_spans_of_a_cancellation_are_one_tree_over_three_processes(shop: Shop) -> None:
    """P10: undoing is told like doing, in the trace of whoever asked for it."""
    await shop.place("o1")
    await shop.all_in("PAID", ["o1"])
    headers = {**JSON, "traceparent": f"00-{TRACE}-{CALLER}-01"}
    await ask(shop.ports["orders"], "POST", "/orders/o1/cancel", headers=headers)
    await shop.all_in("REFUNDED", ["o1"])
    await wait_until(lambda: sum(span.trace_id.hex() == TRACE for span in spans_of(shop)) == 7, what="seven spans")

    taken = "POST /orders/{id}/cancel > publish orders.cancelled > process orders.cancelled"
    assert paths_in(TRACE, spans_of(shop)) == sorted(
        [
            "POST /orders/{id}/cancel",
            "POST /orders/{id}/cancel > publish orders.cancelled",
            taken,
            f"{taken} > POST /refunds",
            f"{taken} > POST /refunds > POST /refunds",
            f"{taken} > publish payments.processed",
            f"{taken} > publish payments.processed > process payments.processed",
        ]
    )


async def test_bad_requests_leave_no_message_behind(shop: Shop) -> None:
    """P4: whatever is wrong with a request, the next good order is the first in the stream and in the ledger."""
    port = shop.ports["orders"]
    bad = [
        await ask(port, "POST", "/orders", body=b'{"customer_id":"c","total_amount":-1}', headers=JSON),
        await ask(port, "POST", "/orders", body=b'{"customer_id":"c","total_amount":NaN}', headers=JSON),
        await ask(port, "POST", "/orders", body=b"x" * 10_000_000, headers=JSON),
        await ask(port, "POST", "/orders", body=b'{"customer_id":"c","total_amount":1}'),
    ]
    await shop.place("good")
    await shop.all_in("PAID", ["good"])

    assert [reply.status for reply in bad] == [422, 400, 413, 415]
    assert {reply.headers["content-type"] for reply in bad} == {"application/problem+json"}
    assert charges_of(shop) == ["good"]
    names = [span.name for span in spans_of(shop)]
    assert names.count("publish orders.created") == 1


async def test_more_than_is_taken_in_a_second_is_refused_at_once_and_leaves_nothing(
    broker: Broker, tmp_path: Path
) -> None:
    """P16: 429, when to come again, and no order; whoever only reads is not counted."""
    async with running(Shop(tmp_path, broker.url, environment={"ORDERS_RATE_MAX": "5"})) as shop:
        replies = await asyncio.gather(*(shop.place(f"o{n}") for n in range(40)))
        looks = await asyncio.gather(*(ask(shop.ports["orders"], "GET", f"/orders/o{n}") for n in range(40)))
        accepted = [f"o{n}" for n, reply in enumerate(replies) if reply.status == 202]
        await shop.all_in("PAID", accepted)

    refused = [reply for reply in replies if reply.status != 202]
    assert len(accepted) >= 5
    assert {reply.status for reply in refused} == {429}
    assert {(reply.headers["retry-after"], reply.text("order_id")) for reply in refused} == {("1", "None")}
    assert sum(look.status == 200 for look in looks) == len(accepted)
    assert sorted(charges_of(shop)) == sorted(accepted)


async def test_more_than_can_be_under_way_is_refused_at_once_and_leaves_nothing(broker: Broker, tmp_path: Path) -> None:
    """P16: a broker that does not answer fills the room; who comes then does not wait, and has no order."""
    async with Proxy(broker.port) as proxy:
        nats_url = f"nats://127.0.0.1:{proxy.port}"
        environment = {"ORDERS_IN_FLIGHT_MAX": "5"}
        shop = Shop(tmp_path, nats_url, payments_nats_url=broker.url, environment=environment)
        async with running(shop), asyncio.TaskGroup() as tasks:
            proxy.cut()
            first = [tasks.create_task(shop.place(f"first-{n}")) for n in range(5)]
            await wait_until_it(partial(is_full, shop), what="five orders under way")
            began_s = time.monotonic()
            late = await asyncio.gather(*(shop.place(f"late-{n}") for n in range(10)))
            took_s = time.monotonic() - began_s
            proxy.heal()

    assert {reply.status for reply in late} == {503}
    assert {(reply.headers["retry-after"], reply.text("order_id")) for reply in late} == {("1", "None")}
    assert took_s < 1.0
    assert {task.result().status for task in first} <= {202, 503}
    assert not any(key.startswith("late") for key in charges_of(shop))


async def is_full(shop: Shop) -> bool:
    """Whether orders has five requests in its hands."""
    return await shop.metric("requests_in_flight", "orders") == 5


async def test_a_partition_of_payments_heals_within_two_seconds(broker: Broker, tmp_path: Path) -> None:
    """Orders go on; for 3 s payments hears nothing; 2 s after the heal every order is paid, once."""
    async with Proxy(broker.port) as proxy:
        shop = Shop(tmp_path, broker.url, payments_nats_url=f"nats://127.0.0.1:{proxy.port}", latency_ms=50)
        async with running(shop):
            keys = [f"o{n}" for n in range(150)]
            cut_s = time.monotonic() + 0.3
            for key in keys:  # about 3.5 s of them, most within the partition
                assert (await shop.place(key)).status == 202
                if time.monotonic() > cut_s:
                    proxy.cut()
                    cut_s += 3600
                await asyncio.sleep(0.02)
            proxy.heal()
            await shop.all_in("PAID", keys, within_s=2.0)
            assert sorted(charges_of(shop)) == sorted(keys)


@pytest.mark.parametrize("victim", ["orders", "payments", "provider"])
async def test_a_killed_process_costs_nothing_but_time(broker: Broker, tmp_path: Path, victim: str) -> None:
    """SIGKILL in the middle of work, and a new start: every accepted order is paid, once, and every span known."""
    # Calls fail while the provider is away: the circuit breaker opens, here for less than its usual 15 s.
    shop = Shop(tmp_path, broker.url, latency_ms=100, environment={"PAYMENTS_BREAKER_OPEN_S": "0.5"})
    async with running(shop):
        keys = [f"o{n}" for n in range(30)]
        await asyncio.gather(*(shop.place(key) for key in keys))
        shop.processes[victim].kill()
        shop.start(victim)
        await shop.ready(victim)
        await shop.all_in("PAID", keys, within_s=10.0)
        assert sorted(charges_of(shop)) == sorted(keys)
        await shop.stop()

    for path in shop.spool.glob("*.open"):
        started, ended, still_open = read_open(path)
        frames = read_frames(path.with_suffix(".spans"))[1:]
        numbers = {attributes_of(Span.FromString(frame))["telemetry.seq"] for frame in frames}
        assert len(numbers) == ended
        assert numbers | set(still_open) == set(range(1, started + 1))


async def test_a_broker_that_is_killed_costs_nothing_but_time(broker: Broker, shop: Shop) -> None:
    """Orders accepted before are paid; orders placed while it is away wait, and are paid once it is back."""
    before = [f"a{n}" for n in range(20)]
    during = [f"b{n}" for n in range(20)]
    await asyncio.gather(*(shop.place(key) for key in before))
    broker.stop()
    async with asyncio.TaskGroup() as tasks:
        placing = [tasks.create_task(shop.place(key)) for key in during]
        await broker.start()

    assert {task.result().status for task in placing} == {202}
    await shop.all_in("PAID", before + during, within_s=10.0)
    assert sorted(charges_of(shop)) == sorted(before + during)


async def test_without_a_broker_nothing_is_ready_and_an_order_is_a_503_that_left_nothing(tmp_path: Path) -> None:
    """P5, P12: alive, not ready, honest; and a stop before the start is complete is still a clean stop."""
    shop = Shop(tmp_path, f"nats://127.0.0.1:{free_port()}")
    shop.start("orders")
    try:
        await wait_until(lambda: "listening" in shop.log_of("orders"))
        assert (await ask(shop.ports["orders"], "GET", "/healthz")).status == 200
        ready = await ask(shop.ports["orders"], "GET", "/readyz")
        assert (ready.status, ready.text("missing")) == (503, "['nats', 'projections', 'earlier orders']")
        reply = await shop.place("o1")
        assert (reply.status, reply.text("order_id")) == (503, "None")
        assert await shop.stop() == {"orders": 0}
    finally:
        shop.kill()


async def test_orders_are_not_ready_before_they_know_what_they_would_refuse(tmp_path: Path) -> None:
    """P12: while nobody tells what is old in the stream (here: by permission), an order under a key is refused (P6)."""
    denied = '"$JS.API.STREAM.MSG.GET.ORDERS"'
    user = f'{{ user: "shop", password: "open", permissions: {{ publish: {{ deny: {denied} }} }} }}'
    async with Broker(tmp_path / "jetstream", config=f"authorization {{ users: [ {user} ] }}") as broker:
        shop = Shop(tmp_path, broker.url, environment={"NATS_USER": "shop", "NATS_PASSWORD": "open"})
        shop.start("orders")
        try:
            await wait_until(lambda: "cannot be asked now" in shop.log_of("orders"), within_s=READY_WITHIN_S)
            ready = await ask(shop.ports["orders"], "GET", "/readyz")
            refused = await shop.place("o1")
        finally:
            shop.kill()

    assert (ready.status, ready.text("missing")) == (503, "['earlier orders']")
    assert (refused.status, "orders from before the start" in refused.text("detail")) == (503, True)


async def test_orders_wait_at_start_for_a_database_that_is_not_there_yet(
    broker: Broker, postgres_server: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    """P11, P12: a stop in the meantime is a clean stop; and once the server is there, so are orders."""
    shop = Shop(tmp_path, broker.url, database=postgres_url)
    postgres_server.stop()
    try:
        shop.start("orders")
        await wait_until(lambda: "is away" in shop.log_of("orders"), what="orders waiting")
        assert await shop.stop() == {"orders": 0}
        shop.start("orders")
        await wait_until(
            lambda: "is away" in shop.log_of("orders").partition("stopped")[2], what="orders waiting again"
        )
        postgres_server.start()
        await shop.ready("orders")
        assert (await shop.place("o1")).status == 202
    finally:
        shop.kill()
        if postgres_server.process is None:
            postgres_server.start()


async def test_orders_in_a_partition_say_that_the_outcome_is_unknown_and_it_is_one_order(
    broker: Broker, tmp_path: Path
) -> None:
    """P5: the request left and no answer came: 503 with the id, and repeating under that id is the same order."""
    async with Proxy(broker.port) as proxy:
        shop = Shop(tmp_path, f"nats://127.0.0.1:{proxy.port}", payments_nats_url=broker.url)
        async with running(shop):
            proxy.cut()
            unknown = await asyncio.gather(*(shop.place(f"o{n}") for n in range(20)))
            proxy.heal()
            await shop.ready("orders")
            again = await asyncio.gather(*(shop.place(f"o{n}") for n in range(20)))
            # What was in hand when the link was cut comes again after AckWait, which is 10 s.
            await shop.all_in("PAID", [f"o{n}" for n in range(20)], within_s=20.0)

    assert {reply.status for reply in unknown} == {503}
    assert [reply.text("order_id") for reply in unknown] == [f"o{n}" for n in range(20)]
    assert {reply.status for reply in again} == {202}
    assert {money.charges for money in shop.money().values()} == {1}


async def test_orders_that_lose_their_database_refuse_and_come_back_by_themselves(
    broker: Broker, postgres_server: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    """P9, P12: not ready, 503 that left nothing; what was accepted before is projected once the server is back."""
    async with running(Shop(tmp_path, broker.url, database=postgres_url)) as shop:
        before = [f"o{n}" for n in range(20)]
        await asyncio.gather(*(shop.place(key) for key in before))
        postgres_server.stop()
        try:
            refused = await shop.place("while-away")
            unread = await ask(shop.ports["orders"], "GET", "/orders/o0")
            ready = await ask(shop.ports["orders"], "GET", "/readyz")
        finally:
            postgres_server.start()
        await shop.ready("orders", "payments")
        await shop.all_in("PAID", before, within_s=15.0)
        assert (await shop.place("afterwards")).status == 202
        await shop.all_in("PAID", ["afterwards"], within_s=5.0)
        assert (await ask(shop.ports["orders"], "GET", "/orders/while-away")).status == 404

    assert (refused.status, refused.text("order_id")) == (503, "None")
    assert unread.status == 503
    assert "database" in ready.text("missing")
    assert sorted(charges_of(shop)) == sorted([*before, "afterwards"])


@pytest.mark.parametrize(
    ("environment", "code", "sentence"),
    [
        ({"ORDERS_LISTEN": "nowhere"}, 64, "ORDERS_LISTEN='nowhere' is not host:port"),
        ({"NATS_URL": "http://x:1"}, 64, "NATS_URL='http://x:1' is not a nats://host:port URL"),
        ({"ORDERS_LISTEN": "TAKEN"}, 1, "address already in use"),
        ({"ORDERS_DB": "/nonexistent/orders.db"}, 1, "set ORDERS_DB"),
        ({"SPAN_SPOOL_DIR": "/dev/null/spool"}, 1, "set SPAN_SPOOL_DIR"),
    ],
)
async def test_what_keeps_a_process_from_starting_is_one_sentence(
    tmp_path: Path, environment: dict[str, str], code: int, sentence: str
) -> None:
    """64 for a bad setting, 1 for a bad world; never a traceback."""
    log = tmp_path / "log"
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    taken = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    values = {name: taken if value == "TAKEN" else value for name, value in environment.items()}
    process = Process("orders", {"ORDERS_DB": os.devnull + "x", **values}, log=log)
    try:
        assert await process.exited() == code
    finally:
        process.kill()
        server.close()

    text = log.read_text()
    assert sentence in text
    assert "Traceback" not in text


async def test_a_second_signal_ends_a_process_at_once(broker: Broker, tmp_path: Path) -> None:
    """A stop that waits for a slow provider is cut short by whoever asks twice."""
    shop = Shop(tmp_path, broker.url, latency_ms=60_000)
    async with running(shop):
        await shop.place("o1")
        payments = shop.processes["payments"]
        await wait_until(lambda: any(read_open(path)[2] for path in shop.spool.glob("payments-*.open")))
        payments.signal(signal.SIGTERM)
        await wait_until(lambda: "stopping" in payments.log.read_text())
        assert payments.exit_code is None
        payments.signal(signal.SIGTERM)

        assert await payments.exited(within_s=1.0) == 128 + signal.SIGTERM


async def test_two_replicas_of_orders_on_one_database_are_one_service(
    broker: Broker, postgres_url: str, tmp_path: Path
) -> None:
    """P6, P12: either takes orders, knows what the other took, and cancels it; both project their share."""
    shop = Shop(tmp_path, broker.url, database=postgres_url, replicas={"orders": 2})
    both = ("orders", "orders-2")
    async with running(shop):
        keys = {at: [f"{at}-{n}" for n in range(100)] for at in both}
        replies = await asyncio.gather(*(shop.place(key, at=at) for at in both for key in keys[at]))
        assert {reply.status for reply in replies} == {202}
        same = await asyncio.gather(*(shop.place("same", at=at, total=10.0) for at in both for _ in range(5)))
        other = await asyncio.gather(*(shop.place("other", at=at, total=10.0 + n) for n, at in enumerate(both * 3)))
        assert [reply.status for reply in same] == [202] * 10
        assert sorted(reply.status for reply in other) == [202, *([409] * 5)]

        everything = [*keys["orders"], *keys["orders-2"], "same", "other"]
        for at in both:
            await shop.all_in("PAID", everything, within_s=10.0, at=at)
        assert (await shop.cancel("orders-0", at="orders-2")).status == 202
        for at in both:
            await shop.all_in("REFUNDED", ["orders-0"], at=at)
        assert min([await shop.metric("deliveries_total", at) for at in both]) > 0

        shop.processes["orders"].kill()  # in the middle of nothing or of something: the other carries on
        assert (await shop.place("alone", at="orders-2")).status == 202
        await shop.all_in("PAID", ["alone"], within_s=10.0, at="orders-2")
    assert {money.charges for money in shop.money().values()} == {1}
