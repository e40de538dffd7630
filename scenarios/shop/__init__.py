"""The shipped order and payment system, as the harness sees it: the first user, with no private door.

Everything here a stranger could write for a system of their own: which processes, which links, how to place an order,
where the ledger lies, which invariants and experiments apply.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.experiments.cancel_race import CANCEL_RACE
from chaos.experiments.leader_isolation import LEADER_ISOLATION
from chaos.experiments.orders_partition import ORDERS_PARTITION
from chaos.experiments.payments_kill import PAYMENTS_KILL
from chaos.experiments.payments_partition import PAYMENTS_PARTITION
from chaos.experiments.provider_partition import PROVIDER_PARTITION
from chaos.faults import FAULTS
from harness.environment.topology import BROKER, DATABASE, Link, ProcessSpec, Topology
from harness.system_under_test import LoadProfile, SystemUnderTest
from scenarios.shop.customer import WORKLOADS, customer
from scenarios.shop.invariants import INVARIANTS
from scenarios.shop.invariants.zero_dropped_orders import SETTLE_WITHIN_S
from scenarios.shop.ledger import FILE_NAME as LEDGER_FILE
from scenarios.shop.ledger import read_ledger
from scenarios.shop.messages import key_of_message

if TYPE_CHECKING:
    from harness.environment.topology import Wiring

CARD_NETWORK_LATENCY_MS = 80
"""A real card network takes its time; so orders are in flight whenever a fault strikes."""

_ACK_WAIT_S = 2
_RECONNECT_WAIT_S = 0.1
_LOAD = Path(__file__).resolve().parents[2] / "loadtests" / "locustfile.py"


def _shared(wiring: Wiring, role: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": wiring.otlp_url,
        "SPAN_SPOOL_DIR": str(wiring.spool_directory),
        "OTEL_SERVICE_NAME": role,
        "NATS_RECONNECT_WAIT_S": str(_RECONNECT_WAIT_S),
    }


def _broker(wiring: Wiring, role: str) -> dict[str, str]:
    return {**wiring.broker(role).variables(), "NATS_STREAM_REPLICAS": str(wiring.replicas)}


def _orders(wiring: Wiring) -> dict[str, str]:
    return {
        **_shared(wiring, "orders"),
        "ORDERS_LISTEN": wiring.listen("orders"),
        "ORDERS_ACK_WAIT_S": str(_ACK_WAIT_S),
        "ORDERS_DB": wiring.database("orders") or str(wiring.directory("orders") / "orders.db"),
        **_broker(wiring, "orders"),
    }


def _payments(wiring: Wiring) -> dict[str, str]:
    return {
        **_shared(wiring, "payments"),
        "PAYMENTS_LISTEN": wiring.listen("payments"),
        "PAYMENTS_ACK_WAIT_S": str(_ACK_WAIT_S),
        "PAYMENTS_DB": wiring.database("payments") or str(wiring.directory("payments") / "payments.db"),
        **_broker(wiring, "payments"),
        "PROVIDER_URL": f"http://{wiring.via('payments->provider')}",
    }


def _provider(wiring: Wiring) -> dict[str, str]:
    return {
        **_shared(wiring, "provider"),
        "PROVIDER_LISTEN": wiring.listen("provider"),
        "PROVIDER_ADMIN_TOKEN": wiring.secret("provider-admin"),
        "PROVIDER_LEDGER": str(wiring.directory("provider") / LEDGER_FILE),
        "PROVIDER_LATENCY_MS": str(CARD_NETWORK_LATENCY_MS),
    }


SHOP = SystemUnderTest(
    name="shop",
    topology=Topology(
        processes=(
            ProcessSpec(
                name="orders",
                argv=(sys.executable, "-m", "system.orders"),
                environment=_orders,
                ready_path="/readyz",
            ),
            ProcessSpec(
                name="payments",
                argv=(sys.executable, "-m", "system.payments"),
                environment=_payments,
                ready_path="/readyz",
            ),
            ProcessSpec(
                name="provider",
                argv=(sys.executable, "-m", "system.provider"),
                environment=_provider,
                ready_path="/readyz",
            ),
        ),
        links=(
            Link(client="clients", server="orders"),
            Link(client="orders", server=BROKER),
            Link(client="payments", server=BROKER),
            Link(client="payments", server="provider"),
            Link(client="orders", server=DATABASE),
            Link(client="payments", server=DATABASE),
        ),
    ),
    entrance="clients->orders",
    front="orders",
    streams=("ORDERS", "PAYMENTS", "DEADLETTERS"),
    key_attributes=("order.id",),
    traced=("orders", "payments", "provider"),
    workloads=WORKLOADS,
    client=customer,
    key_of_message=key_of_message,
    read_ledger=read_ledger,
    invariants=INVARIANTS,
    faults=FAULTS,
    experiments=(
        PAYMENTS_PARTITION,
        ORDERS_PARTITION,
        PROVIDER_PARTITION,
        PAYMENTS_KILL,
        CANCEL_RACE,
        LEADER_ISOLATION,
    ),
    load_profiles=(
        LoadProfile(
            name="steady",
            summary="one rate from start to end, open loop",
            locustfile=_LOAD,
            rate_per_s=500,
            duration_s=10,
            users=200,
        ),
    ),
    planted_bugs=Path(__file__).resolve().parents[1] / "planted",
    settle_within_s=SETTLE_WITHIN_S,
)
