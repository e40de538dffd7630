"""The provider process: what it is made of, and in which order it starts and stops."""

from __future__ import annotations

import logging

from system import service
from system.metrics import Metrics
from system.provider.api import ProviderApi
from system.provider.cashier import Cashier
from system.provider.ledger import Ledger
from system.readiness import Probes, Readiness
from system.service import Stopping
from system.settings import ProviderSettings, provider_settings
from system.telemetry import Telemetry
from system.web import Server

log = logging.getLogger(__name__)


def main() -> int:
    """Run until stopped; returns the exit code."""
    return service.run(provider_settings, serve)


async def serve(settings: ProviderSettings, stopping: Stopping) -> None:
    """Serve until stopped."""
    metrics = Metrics()
    readiness = Readiness()
    async with Telemetry(settings.telemetry, metrics) as telemetry, Ledger(settings.ledger) as ledger:
        cashier = Cashier(ledger, latency_ms=settings.latency_ms)
        application = Probes(readiness, metrics, ProviderApi(cashier, tracer=telemetry.tracer, metrics=metrics))
        async with Server(settings.listen, application) as server:
            log.info("ready, listening on %s, %d entries in the ledger", settings.listen, len(ledger.entries))
            await stopping.wait()
            readiness.stop()
            await server.drain()
