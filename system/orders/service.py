"""The orders process: what it is made of, and in which order it starts and stops.

Several replicas may run side by side if they share one PostgreSQL database. With a SQLite file each they must not: the
replicas share the two durable consumers, so each file would hold only the events that its own process was given.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

from system import service, topology
from system.announcing import Announcer
from system.database import open_database
from system.deadletters import DeadLetterOffice
from system.jetstream import Connection, Consumer, Handler, Publisher, RequestError
from system.metrics import Metrics
from system.orders import openapi
from system.orders.api import OrdersApi
from system.orders.catching_up import CatchingUp
from system.orders.intake import Intake
from system.orders.projection import OrderProjection, PaymentProjection
from system.orders.recent import RecentOrders
from system.orders.settling import SettleTimes
from system.orders.store import MIGRATIONS, OrderStore
from system.processing import WholeBatch
from system.readiness import Probes, Readiness
from system.service import Stopping
from system.settings import OrdersSettings, orders_settings
from system.telemetry import Telemetry
from system.web import Admission, Limits, OpenApi, Server

log = logging.getLogger(__name__)

FLUSH_WITHIN_S = 2.0


def main() -> int:
    """Run until stopped; returns the exit code."""
    return service.run(orders_settings, serve)


async def serve(settings: OrdersSettings, stopping: Stopping) -> None:
    """Serve until stopped."""
    metrics = Metrics()
    async with Telemetry(settings.telemetry, metrics) as telemetry:
        await _serve(settings, stopping, telemetry, metrics)
    log.info("spans are flushed")


async def _serve(settings: OrdersSettings, stopping: Stopping, telemetry: Telemetry, metrics: Metrics) -> None:
    tracer = telemetry.tracer
    readiness = Readiness()
    connection = Connection(settings.nats, name=settings.telemetry.service_name, metrics=metrics)
    publisher = Publisher(connection, metrics=metrics, outstanding_max=settings.nats.outstanding_max)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(connection)
        store: OrderStore

        async def open_store() -> None:
            nonlocal store
            opening = open_database(
                settings.database, migrations=MIGRATIONS, name="orders", tracer=tracer, metrics=metrics
            )
            store = OrderStore(await stack.enter_async_context(opening))

        await stopping.unless_stopped(open_store())
        recent = RecentOrders()
        settle_times = SettleTimes(metrics)
        announcer = Announcer(tracer, publisher)
        catching_up = CatchingUp()
        intake = Intake(connection, announcer, store, recent, settle_times, catching_up)
        specs = topology.projections(settings.ack_wait_s)

        async def ensure() -> None:
            await topology.ensure(connection, specs, replicas=settings.nats.stream_replicas)

        dead_letters = DeadLetterOffice(connection, announcer, metrics)
        handlers: tuple[Handler, ...] = (
            WholeBatch(
                OrderProjection(store, recent, catching_up), tracer=tracer, dead_letters=dead_letters, metrics=metrics
            ),
            WholeBatch(
                PaymentProjection(store, settle_times, metrics),
                tracer=tracer,
                dead_letters=dead_letters,
                metrics=metrics,
            ),
        )
        consumers = [
            Consumer(connection, spec, handler, restore=ensure, metrics=metrics)
            for spec, handler in zip(specs, handlers, strict=True)
        ]
        readiness.require("nats", lambda: connection.is_connected)
        readiness.require("database", lambda: store.is_up)
        readiness.require("projections", lambda: all(consumer.is_served for consumer in consumers))
        readiness.require("earlier orders", lambda: catching_up.is_known)
        limits = Limits(in_flight_max=settings.in_flight_max, rate_max_per_s=settings.rate_max_per_s)
        api = Admission(limits, OrdersApi(intake, tracer=tracer, metrics=metrics), metrics)
        application = Probes(readiness, metrics, OpenApi(openapi.document(), api))

        server = await stack.enter_async_context(Server(settings.listen, application))
        async with asyncio.TaskGroup() as loops:
            log.info("listening on %s", settings.listen)
            await publisher.start()
            await stopping.unless_stopped(connection.open())
            await stopping.unless_stopped(ensure())
            keepers = (
                loops.create_task(connection.keep(), name="connection"),
                loops.create_task(recent.forget_committed(store.known), name="recent orders"),
                loops.create_task(catching_up.watch(connection, specs[0]), name="catching up"),
            )
            pulls = [loops.create_task(consumer.run(), name="consumer") for consumer in consumers]
            service.started()
            log.info("ready")

            await stopping.wait()
            readiness.stop()
            log.info("not ready any more")
            await server.drain()
            log.info("requests are finished")
            for consumer in consumers:
                consumer.stop()
            await asyncio.wait(pulls)
            log.info("deliveries are finished or given back")
            await _flush(connection)
            for keeper in keepers:
                keeper.cancel()


async def _flush(connection: Connection) -> None:
    """What was sent has arrived, or it is said that nobody knows."""
    try:
        await connection.flush(within_s=FLUSH_WITHIN_S)
    except RequestError as error:
        log.warning("the last acks may be lost, which is safe: %s", error)
    else:
        log.info("acks and publishes are flushed")
