"""The payments process: what it is made of, and in which order it starts and stops.

Several replicas may run side by side, whether they share one PostgreSQL database or have a SQLite file each: they share
the two durable consumers, and an order that one of them charged and another is given again is known to the provider.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

from system import service, topology
from system.announcing import Announcer
from system.database import open_database
from system.deadletters import DeadLetterOffice
from system.jetstream import Connection, Consumer, Publisher, RequestError
from system.metrics import Metrics
from system.payments.breaker import CircuitBreaker
from system.payments.calls import ProviderCalls, watch_breaker
from system.payments.cancellation import CancellationHandler
from system.payments.handler import PaymentHandler
from system.payments.outbox import Outbox
from system.payments.provider_client import ProviderClient
from system.payments.store import MIGRATIONS, PaymentStore
from system.payments.webhook import Webhook
from system.processing import DeliveryHandler, EachDelivery
from system.readiness import Probes, Readiness
from system.service import Stopping
from system.settings import PaymentsSettings, payments_settings
from system.telemetry import Telemetry
from system.web import HttpClient, Server

log = logging.getLogger(__name__)

FLUSH_WITHIN_S = 2.0
FINISH_WITHIN_S = 7.0
"""Enough for a slow charge; the rest of a stop takes less than 7 s."""


def main() -> int:
    """Run until stopped; returns the exit code."""
    return service.run(payments_settings, serve)


async def serve(settings: PaymentsSettings, stopping: Stopping) -> None:
    """Serve until stopped."""
    metrics = Metrics()
    async with Telemetry(settings.telemetry, metrics) as telemetry:
        await _serve(settings, stopping, telemetry, metrics)
    log.info("spans are flushed")


async def _serve(settings: PaymentsSettings, stopping: Stopping, telemetry: Telemetry, metrics: Metrics) -> None:
    readiness = Readiness()
    connection = Connection(settings.nats, name=settings.telemetry.service_name, metrics=metrics)
    publisher = Publisher(connection, metrics=metrics, outstanding_max=settings.nats.outstanding_max)
    specs = topology.payment_processors(settings.ack_wait_s, settings.in_hand_max)
    # Twice, so that neither a charge nor a refund waits for a connection.
    http = HttpClient(settings.provider, connections_max=2 * settings.in_hand_max)

    async def ensure() -> None:
        await topology.ensure(connection, specs, replicas=settings.nats.stream_replicas)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(connection)
        stack.callback(http.close)
        store: PaymentStore

        async def open_store() -> None:
            nonlocal store
            opening = open_database(
                settings.database, migrations=MIGRATIONS, name="payments", tracer=telemetry.tracer, metrics=metrics
            )
            store = PaymentStore(await stack.enter_async_context(opening))

        await stopping.unless_stopped(open_store())
        consumers: list[Consumer] = []
        breaker = CircuitBreaker(
            failures_max=settings.breaker_failures_max,
            open_s=settings.breaker_open_s,
            probes_max=settings.breaker_probes_max,
            on_change=watch_breaker(metrics, on_room=lambda: _wake(consumers)),
        )
        announcer = Announcer(telemetry.tracer, publisher)
        handlers = _handlers(
            ProviderClient(http, tracer=telemetry.tracer, within_s=settings.provider_within_s),
            breaker,
            store,
            announcer,
            metrics,
        )
        dead_letters = DeadLetterOffice(connection, announcer, metrics)

        def room() -> int:
            """How many deliveries are worth having in hand: as many as the breaker would let through."""
            admitted = breaker.admits
            return settings.in_hand_max if admitted is None else admitted

        for spec, handler in zip(specs, handlers, strict=True):
            each = EachDelivery(
                handler,
                tracer=telemetry.tracer,
                dead_letters=dead_letters,
                metrics=metrics,
                deliveries_max=settings.deliveries_max,
            )
            consumers.append(
                Consumer(
                    connection,
                    spec,
                    each,
                    restore=ensure,
                    metrics=metrics,
                    in_hand_max=settings.in_hand_max,
                    finish_within_s=FINISH_WITHIN_S,
                    admission=room,
                )
            )
        # The provider is none of the conditions: while the breaker is open, doing nothing is the work.
        readiness.require("nats", lambda: connection.is_connected)
        readiness.require("database", lambda: store.is_up)
        readiness.require("processors", lambda: all(consumer.is_served for consumer in consumers))
        webhook = Webhook(store, settings.webhook_secret, tracer=telemetry.tracer, metrics=metrics)

        server = await stack.enter_async_context(Server(settings.listen, Probes(readiness, metrics, webhook)))
        async with asyncio.TaskGroup() as loops:
            log.info("listening on %s, payments are recorded in %s", settings.listen, settings.database)
            await publisher.start()
            await stopping.unless_stopped(connection.open())
            await stopping.unless_stopped(ensure())
            keeper = loops.create_task(connection.keep(), name="connection")
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
            await _flush(store, connection)
            keeper.cancel()


def _handlers(
    provider: ProviderClient, breaker: CircuitBreaker, store: PaymentStore, announcer: Announcer, metrics: Metrics
) -> tuple[DeliveryHandler, DeliveryHandler]:
    """What is done with orders, and with cancellations."""
    calls = ProviderCalls(breaker, metrics=metrics)
    outbox = Outbox(announcer, store, metrics=metrics)
    return (
        PaymentHandler(provider, calls, store, outbox),
        CancellationHandler(provider, calls, store, outbox, metrics=metrics),
    )


def _wake(consumers: list[Consumer]) -> None:
    for consumer in consumers:
        consumer.wake()


async def _flush(store: PaymentStore, connection: Connection) -> None:
    """What was noted is written and what was sent has arrived, or it is said that nobody knows."""
    await store.flush(within_s=FLUSH_WITHIN_S)
    try:
        await connection.flush(within_s=FLUSH_WITHIN_S)
    except RequestError as error:
        log.warning("the last acks may be lost, which is safe: %s", error)
    else:
        log.info("acks and publishes are flushed")
