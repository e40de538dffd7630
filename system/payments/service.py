"""The payments process: what it is made of, and in which order it starts and stops."""

from __future__ import annotations

import asyncio
import logging

from system import service, topology
from system.announcing import Announcer
from system.jetstream import Connection, Consumer, Publisher, RequestError
from system.metrics import Metrics
from system.payments.handler import PaymentHandler
from system.payments.provider_client import ProviderClient
from system.processing import TracedHandler
from system.readiness import Probes, Readiness, nothing_else
from system.service import Stopping
from system.settings import PaymentsSettings, payments_settings
from system.telemetry import Telemetry
from system.web import HttpClient, Server

log = logging.getLogger(__name__)

FLUSH_WITHIN_S = 2.0
IN_HAND_MAX = 256
"""Also the number of connections to the provider, so that no charge waits for one."""
FINISH_WITHIN_S = 9.0
"""Enough for a slow charge; the rest of a stop takes less than 5 s."""


def main() -> int:
    """Run until stopped; returns the exit code."""
    return service.run(payments_settings, serve)


async def serve(settings: PaymentsSettings, stopping: Stopping) -> None:
    """Serve until stopped."""
    metrics = Metrics()
    readiness = Readiness()
    connection = Connection(settings.nats, name=settings.telemetry.service_name, metrics=metrics)
    publisher = Publisher(connection, metrics=metrics)
    http = HttpClient(settings.provider, connections_max=IN_HAND_MAX)
    spec = topology.payment_processor(settings.ack_wait_s)

    async def ensure() -> None:
        await topology.ensure(connection, (spec,))

    async with Telemetry(settings.telemetry, metrics) as telemetry, connection:
        tracer = telemetry.tracer
        handler = PaymentHandler(ProviderClient(http, tracer=tracer), Announcer(tracer, publisher), metrics=metrics)
        consumer = Consumer(
            connection,
            spec,
            TracedHandler(handler, tracer=tracer, metrics=metrics),
            restore=ensure,
            metrics=metrics,
            in_hand_max=IN_HAND_MAX,
            finish_within_s=FINISH_WITHIN_S,
        )
        readiness.require("nats", lambda: connection.is_connected)
        readiness.require("payment-processor", lambda: consumer.is_running)
        application = Probes(readiness, metrics, nothing_else)

        async with Server(settings.listen, application) as server, asyncio.TaskGroup() as loops:
            log.info("listening on %s", settings.listen)
            await publisher.start()
            await stopping.unless_stopped(connection.open())
            await stopping.unless_stopped(ensure())
            keeper = loops.create_task(connection.keep(), name="connection")
            pulls = loops.create_task(consumer.run(), name="consumer")
            log.info("ready")

            await stopping.wait()
            readiness.stop()
            await server.drain()
            consumer.stop()
            await asyncio.wait((pulls,))
            try:
                await connection.flush(within_s=FLUSH_WITHIN_S)
            except RequestError as error:
                log.warning("the last acks may be lost, which is safe: %s", error)
            http.close()
            keeper.cancel()
