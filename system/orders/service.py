"""The orders process: what it is made of, and in which order it starts and stops."""

from __future__ import annotations

import asyncio
import logging

from system import service, topology
from system.announcing import Announcer
from system.jetstream import Connection, Consumer, Handler, Publisher, RequestError
from system.metrics import Metrics
from system.orders.api import OrdersApi
from system.orders.intake import Intake
from system.orders.projection import OrderProjection, PaymentProjection
from system.orders.recent import RecentOrders
from system.orders.store import OrderStore
from system.processing import TracedHandler
from system.readiness import Probes, Readiness
from system.service import Stopping
from system.settings import OrdersSettings, orders_settings
from system.telemetry import Telemetry
from system.web import Server

log = logging.getLogger(__name__)

FLUSH_WITHIN_S = 2.0


def main() -> int:
    """Run until stopped; returns the exit code."""
    return service.run(orders_settings, serve)


async def serve(settings: OrdersSettings, stopping: Stopping) -> None:
    """Serve until stopped."""
    metrics = Metrics()
    readiness = Readiness()
    recent = RecentOrders()
    connection = Connection(settings.nats, name=settings.telemetry.service_name, metrics=metrics)
    publisher = Publisher(connection, metrics=metrics)

    specs = topology.projections(settings.ack_wait_s)

    async def ensure() -> None:
        await topology.ensure(connection, specs)

    async with Telemetry(settings.telemetry, metrics) as telemetry, connection, OrderStore(settings.database) as store:
        tracer = telemetry.tracer
        intake = Intake(connection, Announcer(tracer, publisher), store, recent)
        handlers: tuple[Handler, ...] = (OrderProjection(store, recent), PaymentProjection(store, metrics))
        consumers = [
            Consumer(
                connection,
                spec,
                TracedHandler(handler, tracer=tracer, metrics=metrics),
                restore=ensure,
                metrics=metrics,
            )
            for spec, handler in zip(specs, handlers, strict=True)
        ]
        readiness.require("nats", lambda: connection.is_connected)
        readiness.require("projections", lambda: all(consumer.is_running for consumer in consumers))
        application = Probes(readiness, metrics, OrdersApi(intake, tracer=tracer, metrics=metrics))

        async with Server(settings.listen, application) as server, asyncio.TaskGroup() as loops:
            log.info("listening on %s", settings.listen)
            await publisher.start()
            await stopping.unless_stopped(connection.open())
            await stopping.unless_stopped(ensure())
            keeper = loops.create_task(connection.keep(), name="connection")
            pulls = [loops.create_task(consumer.run(), name="consumer") for consumer in consumers]
            log.info("ready")

            await stopping.wait()
            readiness.stop()
            await server.drain()
            for consumer in consumers:
                consumer.stop()
            await asyncio.wait(pulls)
            try:
                await connection.flush(within_s=FLUSH_WITHIN_S)
            except RequestError as error:
                log.warning("the last acks may be lost, which is safe: %s", error)
            keeper.cancel()
