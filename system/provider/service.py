"""The provider process: what it is made of, and in which order it starts and stops."""

from __future__ import annotations

import contextlib
import logging

from system import service
from system.metrics import Metrics
from system.provider.api import ProviderApi
from system.provider.cashier import Cashier
from system.provider.habits import Behaviour, Habits, Latency
from system.provider.ledger import Ledger
from system.provider.webhooks import Webhooks
from system.readiness import Probes, Readiness
from system.service import Stopping
from system.settings import ProviderSettings, provider_settings
from system.telemetry import LeanTracer, Telemetry
from system.web import Server

log = logging.getLogger(__name__)


def main() -> int:
    """Run until stopped; returns the exit code."""
    return service.run(provider_settings, serve)


async def serve(settings: ProviderSettings, stopping: Stopping) -> None:
    """Serve until stopped."""
    metrics = Metrics()
    readiness = Readiness()
    behaviour = Behaviour(Habits(latency=Latency(mean_ms=settings.latency_ms)))
    async with (
        Telemetry(settings.telemetry, metrics) as telemetry,
        Ledger(settings.ledger) as ledger,
        _webhooks(settings, behaviour, tracer=telemetry.tracer, metrics=metrics) as webhooks,
    ):
        cashier = Cashier(ledger, declines=behaviour.declines)
        api = ProviderApi(
            cashier,
            behaviour,
            tracer=telemetry.tracer,
            metrics=metrics,
            webhooks=webhooks,
            admin_token=settings.admin_token,
        )
        readiness.require("ledger", lambda: ledger.is_sound)
        async with Server(settings.listen, Probes(readiness, metrics, api)) as server:
            service.started()
            log.info("ready, listening on %s, %d entries in the ledger", settings.listen, len(ledger.entries))
            await stopping.wait()
            readiness.stop()
            behaviour.release()
            await server.drain()


def _webhooks(
    settings: ProviderSettings, behaviour: Behaviour, *, tracer: LeanTracer, metrics: Metrics
) -> contextlib.AbstractAsyncContextManager[Webhooks | None]:
    if settings.webhook_url is None or settings.webhook_secret is None:
        return contextlib.nullcontext()
    return Webhooks(settings.webhook_url, settings.webhook_secret, behaviour, tracer=tracer, metrics=metrics)
