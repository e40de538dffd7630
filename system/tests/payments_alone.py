"""Payments and a provider as processes, with a real broker, and nobody else: the test is the orders service."""

from __future__ import annotations

import base64
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from system import events, topology
from system.events import OrderCancelled, OrderCreated, PaymentProcessed
from system.jetstream import Connection, Publisher
from system.metrics import Metrics
from system.settings import NatsSettings
from system.tests.parts import Process, Reply, ask, free_port, wait_until_it

READY_WITHIN_S = 15.0
ACK_WAIT_S = 1.0
SECRET = "as the test wants it"  # noqa: S105 - no secret at all


class Alone:
    """The two processes and what goes in and comes out. environment: variables of both."""

    def __init__(
        self, directory: Path, nats_url: str, connection: Connection, environment: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.ports = {"provider": free_port()}
        self.processes: dict[str, Process] = {}
        self._connection = connection
        self._publisher = Publisher(connection, metrics=Metrics())
        self._placed: Counter[str] = Counter()  # by subject: the sequence of the last message
        self._common = {
            "NATS_URL": nats_url,
            "NATS_RECONNECT_WAIT_S": "0.1",
            "PAYMENTS_ACK_WAIT_S": str(ACK_WAIT_S),
            "PROVIDER_URL": f"http://127.0.0.1:{self.ports['provider']}",
            "PROVIDER_LEDGER": str(directory / "ledger.jsonl"),
            "PROVIDER_WEBHOOK_SECRET": SECRET,
            **(environment or {}),
        }

    async def open(self) -> None:
        """The streams are there, and may be published to."""
        await topology.ensure(self._connection, ())
        await self._publisher.start()

    def start(self, name: str, module: str = "", **environment: str) -> None:
        """Start `provider`, or a replica of payments by any other name; it may not be ready yet."""
        module = module or name.partition("-")[0]
        port = self.ports.setdefault(name, free_port())
        role = "PROVIDER" if name == "provider" else "PAYMENTS"
        own = {f"{role}_LISTEN": f"127.0.0.1:{port}", f"{role}_DB": str(self.directory / f"{name}.db")}
        log = self.directory / f"{name}.log"
        self.processes[name] = Process(module, {**self._common, **own, **environment}, log=log)

    async def ready(self, *names: str) -> None:
        """Return when these say that they can work."""
        for name in names:

            async def is_ready(name: str = name) -> bool:
                assert self.processes[name].exit_code is None, self.log_of(name)[-3000:]
                try:
                    return (await ask(self.ports[name], "GET", "/readyz")).status == 200
                except OSError:
                    return False

            await wait_until_it(is_ready, within_s=READY_WITHIN_S, what=f"{name} ready")

    async def begin(self, *names: str, **environment: str) -> None:
        """Start these, and return when they can work."""
        for name in names:
            self.start(name, **environment)
        await self.ready(*names)

    def kill(self, *names: str) -> None:
        """End these, or all, at once."""
        for name in names or tuple(self.processes):
            self.processes.pop(name).kill()

    async def stop(self, name: str) -> int:
        """The exit code after SIGTERM."""
        process = self.processes.pop(name)
        process.signal(signal.SIGTERM)
        return await process.exited()

    def log_of(self, name: str) -> str:
        """Everything this process logged."""
        return (self.directory / f"{name}.log").read_text(encoding="utf-8")

    async def place(self, *order_ids: str, amount_minor: int = 1250, message_id: str = "") -> None:
        """What orders publishes when it accepts these."""
        for order_id in order_ids:
            order = OrderCreated(
                order_id=order_id, customer_id="c1", amount_minor=amount_minor, currency="EUR", created_at_ns=1
            )
            ack = await self._publisher.publish(
                topology.ORDERS_CREATED,
                events.encode_order_created(order),
                message_id=message_id or topology.order_created_id(order_id),
                headers={},
                deadline_s=5.0,
            )
            self._placed[topology.ORDERS_CREATED] = ack.sequence

    async def cancel(self, order_id: str, *, amount_minor: int = 1250) -> None:
        """What orders publishes when it accepts a cancellation."""
        event = OrderCancelled(
            order_id=order_id, reason="", cancelled_at_ns=1, amount_minor=amount_minor, currency="EUR"
        )
        ack = await self._publisher.publish(
            topology.ORDERS_CANCELLED,
            events.encode_order_cancelled(event),
            message_id=topology.order_cancelled_id(order_id),
            headers={},
            deadline_s=5.0,
        )
        self._placed[topology.ORDERS_CANCELLED] = ack.sequence

    async def announced(self) -> list[PaymentProcessed]:
        """Everything in the stream PAYMENTS."""
        found: list[PaymentProcessed] = []
        for sequence in range(1, await self._stored(topology.PAYMENTS.name) + 1):
            answer = await self._connection.request(
                f"$JS.API.STREAM.MSG.GET.{topology.PAYMENTS.name}", b'{"seq":%d}' % sequence, within_s=5.0
            )
            content = base64.b64decode(msgspec.json.decode(answer)["message"]["data"])
            found.append(events.decode_payment_processed(content))
        return found

    async def statuses(self) -> Counter[str]:
        """How often each status is in the stream PAYMENTS."""
        return Counter(event.status.value for event in await self.announced())

    async def all_announced(self, count: int, *, within_s: float = 10.0) -> None:
        """Return when the stream PAYMENTS holds so many messages."""

        async def are_announced() -> bool:
            return await self._stored(topology.PAYMENTS.name) >= count

        await wait_until_it(are_announced, within_s=within_s, what=f"{count} announcements")

    async def pulls_waiting(self) -> int:
        """How many pull requests the broker has of payments."""
        return sum(info["num_waiting"] for info in await self._consumers())

    async def all_acked(self, *, within_s: float = 10.0) -> None:
        """Return when the broker has nothing left to deliver to payments."""

        def is_done(info: dict[str, Any]) -> bool:
            # The broker acknowledges a publish before it counts it as pending for a consumer.
            has_come = int(info["delivered"]["stream_seq"]) >= self._placed[info["config"]["filter_subject"]]
            return has_come and not info["num_pending"] and not info["num_ack_pending"]

        async def are_acked() -> bool:
            return all(map(is_done, await self._consumers()))

        await wait_until_it(are_acked, within_s=within_s, what="every message acknowledged")

    def ledger(self) -> Counter[str]:
        """How many lines of each kind there are, by kind and order."""
        path = self.directory / "ledger.jsonl"
        entries = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        return Counter(f"{entry['kind']} {entry['order_id']}" for entry in entries)

    async def habits(self, **habits: object) -> None:
        """Teach the provider habits; none at all takes them back."""
        method, body = ("PUT", json.dumps(habits).encode()) if habits else ("DELETE", b"")
        reply = await ask(self.ports["provider"], method, "/admin/habits", body=body)
        assert reply.status == 200, reply.body

    async def metric(self, name: str, of: str = "payments", label: str = "") -> float:
        """The sum of a metric's values, over those of its labels that contain `label`."""
        text = (await ask(self.ports[of], "GET", "/metrics")).body.decode()
        lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines if label in line)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """The answer of payments."""
        return await ask(self.ports["payments"], "POST", path, body=body, headers=headers)

    async def _consumers(self) -> list[dict[str, Any]]:
        return [
            msgspec.json.decode(
                await self._connection.request(f"$JS.API.CONSUMER.INFO.{topology.ORDERS.name}.{name}", within_s=5.0)
            )
            for name in ("payment-processor", "cancellation-processor")
        ]

    async def _stored(self, stream: str) -> int:
        info = msgspec.json.decode(await self._connection.request(f"$JS.API.STREAM.INFO.{stream}", within_s=5.0))
        return int(info["state"]["messages"])


@asynccontextmanager
async def alone(directory: Path, nats_url: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Alone]:
    """Nobody is started yet; whoever is started is gone at the end."""
    settings = NatsSettings(url=nats_url, reconnect_wait_s=0.05)
    async with Connection(settings, name="test", metrics=Metrics()) as connection:
        await connection.open()
        world = Alone(directory, nats_url, connection, environment)
        await world.open()
        try:
            yield world
        finally:
            world.kill()
