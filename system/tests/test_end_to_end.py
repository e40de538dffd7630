"""The three processes with a real broker: orders are paid, traces hold together, and whatever is broken heals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from system.tests.parts import Broker, Process, Proxy, Reply, ask, free_port, wait_until, wait_until_it
from system.tests.test_telemetry import attributes_of, read_frames, read_open

JSON = {"content-type": "application/json"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


class Shop:
    """The system as it runs, and what a customer does with it."""

    def __init__(self, directory: Path, nats_url: str, payments_nats_url: str, *, latency_ms: int = 0) -> None:
        self.directory = directory
        self.spool = directory / "spool"
        self.ledger = directory / "ledger.jsonl"
        self.ports = {name: free_port() for name in ("orders", "payments", "provider")}
        common = {"SPAN_SPOOL_DIR": str(self.spool), "NATS_RECONNECT_WAIT_S": "0.1"}
        self._environments: Mapping[str, Mapping[str, str]] = {
            "orders": {
                **common,
                "NATS_URL": nats_url,
                "ORDERS_LISTEN": f"127.0.0.1:{self.ports['orders']}",
                "ORDERS_DB": str(directory / "orders.db"),
            },
            "payments": {
                **common,
                "NATS_URL": payments_nats_url,
                "PAYMENTS_LISTEN": f"127.0.0.1:{self.ports['payments']}",
                "PROVIDER_URL": f"http://127.0.0.1:{self.ports['provider']}",
                "PAYMENTS_ACK_WAIT_S": "2",
            },
            "provider": {
                **common,
                "PROVIDER_LISTEN": f"127.0.0.1:{self.ports['provider']}",
                "PROVIDER_LEDGER": str(self.ledger),
                "PROVIDER_LATENCY_MS": str(latency_ms),
            },
        }
        self.processes: dict[str, Process] = {}

    def start(self, *names: str) -> None:
        """Start these; they may not be ready yet."""
        for name in names or ("orders", "payments", "provider"):
            self.processes[name] = Process(name, self._environments[name], log=self.directory / f"{name}.log")

    async def ready(self, *names: str) -> None:
        """Return when these say that they can work."""
        for name in names or tuple(self.processes):
            await wait_until_it(partial(self._is_ready, self.ports[name]), within_s=10, what=f"{name} ready")

    async def place(self, key: str, *, total: float = 12.5, trace: str = "") -> Reply:
        """`POST /orders` under this key."""
        body = json.dumps({"customer_id": "c1", "total_amount": total}).encode()
        headers = {**JSON, "idempotency-key": key, **({"traceparent": trace} if trace else {})}
        return await ask(self.ports["orders"], "POST", "/orders", body=body, headers=headers)

    async def status(self, key: str) -> str:
        """The status a customer sees."""
        return (await ask(self.ports["orders"], "GET", f"/orders/{key}")).text("status")

    async def all_in(self, status: str, keys: Iterable[str], *, within_s: float = 5.0) -> None:
        """Return when all these orders are in this status."""
        waiting = set(keys)

        async def none_waits() -> bool:
            waiting.difference_update([key for key in waiting if await self.status(key) == status])
            return not waiting

        await wait_until_it(none_waits, within_s=within_s, what=f"every order {status}")

    def charges(self) -> list[str]:
        """The orders charged, in the ledger's order."""
        entries = [json.loads(line) for line in self.ledger.read_bytes().splitlines()]
        return [entry["order_id"] for entry in entries if entry["kind"] == "charge"]

    def spans(self) -> list[Span]:
        """All ended spans of all boots."""
        frames = [frame for path in self.spool.glob("*.spans") for frame in read_frames(path)[1:]]
        return [Span.FromString(frame) for frame in frames]

    async def stop(self) -> dict[str, int]:
        """SIGTERM to all; their exit codes."""
        for process in self.processes.values():
            process.signal(signal.SIGTERM)
        return {name: await process.exited() for name, process in self.processes.items()}

    def kill(self) -> None:
        """Leave nothing running."""
        for process in self.processes.values():
            process.kill()

    @staticmethod
    async def _is_ready(port: int) -> bool:
        try:
            return (await ask(port, "GET", "/readyz")).status == 200
        except OSError:
            return False


@asynccontextmanager
async def running(shop: Shop) -> AsyncIterator[Shop]:
    """A shop that is open within the block."""
    shop.start()
    try:
        await shop.ready()
        yield shop
    finally:
        shop.kill()


@pytest_asyncio.fixture
async def shop(broker: Broker, tmp_path: Path) -> AsyncIterator[Shop]:
    """An open shop."""
    async with running(Shop(tmp_path, broker.url, broker.url)) as shop:
        yield shop


async def test_orders_are_paid_and_the_processes_stop_cleanly(shop: Shop) -> None:
    """Forty orders and one that the provider's rule declines: all settled, charged at most once, exit codes 0."""
    keys = [f"o{n}" for n in range(40)]
    replies = await asyncio.gather(*(shop.place(key) for key in keys))
    assert {reply.status for reply in replies} == {202}
    assert (await shop.place("declined", total=1.13)).status == 202

    await shop.all_in("PAID", keys)
    await shop.all_in("DECLINED", ["declined"])

    assert sorted(shop.charges()) == sorted(keys)
    assert await shop.stop() == {"orders": 0, "payments": 0, "provider": 0}


async def test_an_accepted_order_is_visible_at_once_and_the_same_request_is_the_same_order(shop: Shop) -> None:
    """Read your writes; the same again is 202 again; another order under the same key is a conflict."""
    for key in (f"o{n}" for n in range(20)):
        assert (await shop.place(key)).status == 202
        assert await shop.status(key) in ("PENDING", "PAID")
    assert (await shop.place("o0")).status == 202
    await shop.all_in("PAID", ["o0"])
    assert (await shop.place("o0")).status == 202
    assert (await shop.place("o0", total=13.0)).status == 409

    assert shop.charges().count("o0") == 1


async def test_two_requests_with_one_key_at_once_are_one_order(shop: Shop) -> None:
    """The broker's memory decides, not ours: same order 202 for both, different orders one 202 and one 409."""
    same = await asyncio.gather(*(shop.place("same") for _ in range(8)))
    different = await asyncio.gather(*(shop.place("different", total=10.0 + n) for n in range(8)))

    assert [reply.status for reply in same] == [202] * 8
    assert sorted(reply.status for reply in different) == [202] + [409] * 7
    await shop.all_in("PAID", ["same", "different"])
    assert sorted(shop.charges()) == ["different", "same"]


async def test_the_spans_of_an_order_are_one_tree_over_three_processes(shop: Shop) -> None:
    """From the caller's own span down to the final state, each where it belongs, with order.id on every one."""
    await shop.place("o1", trace=f"00-{TRACE}-{CALLER}-01")
    await shop.all_in("PAID", ["o1"])
    await wait_until(lambda: sum(span.trace_id.hex() == TRACE for span in shop.spans()) == 8, what="eight spans")
    spans = [span for span in shop.spans() if span.trace_id.hex() == TRACE]
    by_id = {span.span_id: span for span in spans}

    def path(span: Span) -> str:
        parent = by_id.get(span.parent_span_id)
        if parent is None:
            assert span.parent_span_id.hex() == CALLER
        return f"{path(parent)} > {span.name}" if parent is not None else span.name

    taken = "POST /orders > publish orders.created > process orders.created"
    assert sorted(path(span) for span in spans) == sorted(
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
    assert {attributes_of(span)["order.id"] for span in spans} == {"o1"}
    for span in spans:
        attributes = attributes_of(span)
        if span.kind == Span.SPAN_KIND_CONSUMER:
            assert [link.span_id for link in span.links] == [span.parent_span_id]
            assert attributes["messaging.nats.delivery_count"] == 1
        if span.kind in (Span.SPAN_KIND_CONSUMER, Span.SPAN_KIND_PRODUCER):
            assert attributes["messaging.system"] == "nats"
            assert str(attributes["messaging.message.id"]).endswith(":o1")


async def test_bad_requests_leave_no_message_behind(shop: Shop) -> None:
    """Whatever is wrong with a request, the next good order is the first in the stream and in the ledger."""
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
    assert shop.charges() == ["good"]
    names = [span.name for span in shop.spans()]
    assert names.count("publish orders.created") == 1


async def test_a_partition_of_payments_heals_within_two_seconds(broker: Broker, tmp_path: Path) -> None:
    """Orders go on; for 3 s payments hears nothing; 2 s after the heal every order is paid, once."""
    async with Proxy(broker.port) as proxy:
        shop = Shop(tmp_path, broker.url, f"nats://127.0.0.1:{proxy.port}", latency_ms=50)
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
            assert sorted(shop.charges()) == sorted(keys)


@pytest.mark.parametrize("victim", ["orders", "payments", "provider"])
async def test_a_killed_process_costs_nothing_but_time(broker: Broker, tmp_path: Path, victim: str) -> None:
    """SIGKILL in the middle of work, and a new start: every accepted order is paid, once, and every span known."""
    shop = Shop(tmp_path, broker.url, broker.url, latency_ms=100)
    async with running(shop):
        keys = [f"o{n}" for n in range(30)]
        await asyncio.gather(*(shop.place(key) for key in keys))
        shop.processes[victim].kill()
        shop.start(victim)
        await shop.ready(victim)
        await shop.all_in("PAID", keys, within_s=10.0)
        assert sorted(shop.charges()) == sorted(keys)
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
    assert sorted(shop.charges()) == sorted(before + during)


async def test_without_a_broker_nothing_is_ready_and_an_order_is_a_503_that_names_it(tmp_path: Path) -> None:
    """Alive, not ready, honest; and a stop before the start is complete is still a clean stop."""
    shop = Shop(tmp_path, f"nats://127.0.0.1:{free_port()}", "nats://127.0.0.1:1")
    shop.start("orders")
    try:
        await wait_until(lambda: "listening" in shop.processes["orders"].log.read_text())
        assert (await ask(shop.ports["orders"], "GET", "/healthz")).status == 200
        ready = await ask(shop.ports["orders"], "GET", "/readyz")
        assert (ready.status, ready.text("missing")) == (503, "['nats', 'projections']")
        reply = await shop.place("o1")
        assert (reply.status, reply.text("order_id")) == (503, "o1")
        assert await shop.stop() == {"orders": 0}
    finally:
        shop.kill()


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
    shop = Shop(tmp_path, broker.url, broker.url, latency_ms=60_000)
    async with running(shop):
        await shop.place("o1")
        payments = shop.processes["payments"]
        await wait_until(lambda: any(read_open(path)[2] for path in shop.spool.glob("payments-*.open")))
        payments.signal(signal.SIGTERM)
        await wait_until(lambda: "stopping" in payments.log.read_text())
        assert payments.exit_code is None
        payments.signal(signal.SIGTERM)

        assert await payments.exited(within_s=1.0) == 128 + signal.SIGTERM
