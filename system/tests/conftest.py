"""Fixtures for the tests of the system."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from system.jetstream import Connection
from system.metrics import Metrics
from system.settings import NatsSettings
from system.tests.parts import Broker
from system.tests.postgres import database, database_location, migrations, postgres_server, postgres_url  # noqa: F401 - fixtures


@pytest.fixture
def metrics() -> Metrics:
    """Fresh numbers."""
    return Metrics()


@pytest_asyncio.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A real broker that listens."""
    async with Broker(tmp_path / "jetstream") as broker:
        yield broker


@pytest_asyncio.fixture
async def connection(broker: Broker, metrics: Metrics) -> AsyncIterator[Connection]:
    """A connection to the broker."""
    settings = NatsSettings(url=broker.url, reconnect_wait_s=0.05)
    async with Connection(settings, name="test", metrics=metrics) as connection:
        await connection.open()
        yield connection
