"""What a message costs: with nats-py's own client and with ours, against the same broker in the same run.

    python -m system.benchmarks.wire [--messages 20000] [--rounds 3] [--rate 8000]

The first table: publishing with the server's ack, and taking a delivery and acknowledging it, as fast as it goes. The
second: what `TICK_S` is worth when messages come one by one at a steady rate. CPU time in µs per message, the
system's share included, of this process and of the broker; the best of some rounds that alternate, because whatever
else runs on the machine only adds. Compare within a run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import uvloop

from system.benchmarks.parts import LOOPBACK, Part, Parts, free_ports
from system.benchmarks.shop import find_nats_server
from system.jetstream import (
    Connection,
    Consumer,
    ConsumerSpec,
    Delivery,
    Publisher,
    StreamSpec,
    ensure_consumer,
    ensure_stream,
    wire,
)
from system.jetstream.client import Client
from system.metrics import Metrics
from system.settings import NatsSettings

AT_ONCE = 64
PAYLOAD = b"x" * 120
HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
SUBJECT = "benchmark.message"
STREAM = StreamSpec(name="BENCHMARK", subject="benchmark.>", dedup_window_s=120)
TICKS_MS = (0, 1, 2, 5)
PACED_S = 2.0
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU µs per message: ours, and the broker's. wait_ms: how long the median message took, where that was seen."""

    own_us: float
    broker_us: float
    wait_ms: float = 0.0


class Bench:
    """A broker, a connection of either client, and a clock for both processes."""

    def __init__(self, broker: Part, connection: Connection, client: Client, messages: int) -> None:
        self.connection = connection
        self.client = client
        self.messages = messages
        self._broker = broker
        self._names = itertools.count()

    def name(self) -> str:
        """One that was not used before."""
        return f"benchmark-{next(self._names)}"

    @contextlib.asynccontextmanager
    async def measured(self, costs: list[Cost], messages: int) -> AsyncIterator[list[float]]:
        """Note what the block costs for each of so many messages. Yields where to put how long each of them took."""
        gc.collect()
        waits_s: list[float] = []
        own_s, broker_s = time.process_time(), self._broker.cpu_s()
        yield waits_s
        own_s, broker_s = time.process_time() - own_s, self._broker.cpu_s() - broker_s
        wait_ms = sorted(waits_s)[len(waits_s) // 2] * 1e3 if waits_s else 0.0
        costs.append(Cost(own_us=own_s / messages * 1e6, broker_us=broker_s / messages * 1e6, wait_ms=wait_ms))

    async def publish(self, costs: list[Cost], send: Callable[[str], Awaitable[object]]) -> None:
        """Publish all messages, some at once."""
        ids = iter([f"{self.name()}:{number:020}" for number in range(self.messages)])

        async def one_after_the_other() -> None:
            for message_id in ids:
                await send(message_id)

        async with self.measured(costs, self.messages):
            await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))


async def publish_with_ours(bench: Bench, costs: list[Cost]) -> None:
    """`Publisher`."""
    publisher = Publisher(bench.connection, metrics=Metrics())
    await publisher.start()
    await bench.publish(
        costs,
        lambda message_id: publisher.publish(
            SUBJECT, PAYLOAD, message_id=message_id, headers=HEADERS, deadline_s=DEADLINE_S
        ),
    )


async def publish_with_nats_py(bench: Bench, costs: list[Cost]) -> None:
    """Its `publish_async`, the cheapest it has that waits for the server's ack."""
    jetstream = bench.client.jetstream()

    async def send(message_id: str) -> None:
        await (await jetstream.publish_async(SUBJECT, PAYLOAD, headers={**HEADERS, "Nats-Msg-Id": message_id}))

    await bench.publish(costs, send)


async def consume_with_ours(bench: Bench, costs: list[Cost]) -> None:
    """`Consumer`; each delivery's headers are looked at."""
    left = bench.messages
    done = asyncio.Event()

    class Reader:
        async def handle(self, deliveries: Sequence[Delivery]) -> None:
            nonlocal left
            for delivery in deliveries:
                _ = delivery.headers["traceparent"]
                await delivery.ack()
            left -= len(deliveries)
            if left <= 0:
                done.set()

    spec = ConsumerSpec(stream=STREAM.name, name=bench.name(), subject=SUBJECT, ack_wait_s=30, ack_pending_max=1024)

    async def ensure() -> None:
        await ensure_consumer(bench.connection, spec)

    await ensure()
    consumer = Consumer(bench.connection, spec, Reader(), restore=ensure, metrics=Metrics())
    async with asyncio.TaskGroup() as tasks:
        async with bench.measured(costs, bench.messages):
            tasks.create_task(consumer.run())
            await done.wait()
        consumer.stop()


async def consume_with_nats_py(bench: Bench, costs: list[Cost]) -> None:
    """Its `fetch`."""
    spec = ConsumerSpec(stream=STREAM.name, name=bench.name(), subject=SUBJECT, ack_wait_s=30, ack_pending_max=1024)
    await ensure_consumer(bench.connection, spec)
    subscription = await bench.client.jetstream().pull_subscribe_bind(consumer=spec.name, stream=spec.stream)
    left = bench.messages
    async with bench.measured(costs, bench.messages):
        while left > 0:
            for message in await subscription.fetch(256, timeout=5):
                _ = (message.headers or {})["traceparent"]
                await message.ack()
                left -= 1
    await subscription.unsubscribe()


async def publish_paced(bench: Bench, costs: list[Cost], *, tick_ms: int, rate: int) -> None:
    """Publish at a steady rate, each message at its own time, with another tick than ours."""
    publisher = Publisher(bench.connection, metrics=Metrics(), outstanding_max=4096)
    await publisher.start()
    name, messages = bench.name(), round(rate * PACED_S)
    loop = asyncio.get_running_loop()

    async def one(number: int, waits_s: list[float]) -> None:
        began_s = time.perf_counter()
        await publisher.publish(SUBJECT, PAYLOAD, message_id=f"{name}:{number}", headers=HEADERS, deadline_s=DEADLINE_S)
        waits_s.append(time.perf_counter() - began_s)

    with patch.object(wire, "TICK_S", tick_ms / 1e3):
        async with bench.measured(costs, messages) as waits_s, asyncio.TaskGroup() as tasks:
            began_s = loop.time()
            for number in range(messages):
                early_s = began_s + number / rate - loop.time()
                if early_s > 0:
                    await asyncio.sleep(early_s)
                tasks.create_task(one(number, waits_s))


async def run(broker: Part, port: int, options: argparse.Namespace) -> None:
    """Measure and print."""
    settings = NatsSettings(url=f"nats://{LOOPBACK}:{port}")
    client = Client()
    async with Connection(settings, name="benchmark", metrics=Metrics()) as connection:
        await connection.open()
        await client.connect(settings.servers, flusher_queue_size=4096)
        await ensure_stream(connection, STREAM)
        bench = Bench(broker, connection, client, options.messages)
        rows = (
            ("publish, with the server's ack", publish_with_nats_py, publish_with_ours),
            ("deliver and acknowledge", consume_with_nats_py, consume_with_ours),
        )
        print(f"{'CPU µs per message':32}{'nats-py':>16}{'ours':>16}   (broker)      ratio")
        for text, theirs, ours in rows:
            costs: tuple[list[Cost], list[Cost]] = ([], [])
            for _ in range(options.rounds):
                await theirs(bench, costs[0])
                await ours(bench, costs[1])
            best = [min(each, key=lambda cost: cost.own_us) for each in costs]
            told = "".join(f"{cost.own_us:9.1f} ({cost.broker_us:4.1f})" for cost in best)
            print(f"{text:32}{told}        {best[0].own_us / best[1].own_us:13.1f}")
        print(f"\n{options.rate} publishes a second{'ours':>12}{'broker':>10}{'median wait':>14}")
        for tick_ms in TICKS_MS:
            paced: list[Cost] = []
            for _ in range(options.rounds):
                await publish_paced(bench, paced, tick_ms=tick_ms, rate=options.rate)
            cost = min(paced, key=lambda cost: cost.own_us + cost.broker_us)
            print(f"tick of {tick_ms} ms{cost.own_us:24.1f}{cost.broker_us:10.1f}{cost.wait_ms:11.1f} ms")
        await client.close()


def main() -> None:
    """Start a broker, measure, and leave nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=int, default=8_000)
    options = parser.parse_args()
    with Parts() as parts:
        (port,) = free_ports(1)
        command = (find_nats_server(), "-js", "-sd", str(parts.directory), "-a", LOOPBACK, "-p", str(port))
        broker = parts.start("nats-server", command, environment={"GOMAXPROCS": "1"})
        parts.wait(broker, lambda: _accepts(port), what="listening")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(broker, port, options))


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


if __name__ == "__main__":
    main()
