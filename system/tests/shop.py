"""The whole shop for tests: three real processes (or more) with a real broker, and what a customer does with it."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from system.tests.parts import Process, Reply, ask, free_port, wait_until_it

JSON = {"content-type": "application/json"}
FINAL = frozenset({"PAID", "DECLINED", "CANCELLED", "REFUNDED"})
READY_WITHIN_S = 15.0
LOG_TOLD_CHARS = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """What the ledger says of one order, in hundredths. charges, refunds: how many lines."""

    charged: int = 0
    refunded: int = 0
    charges: int = 0
    refunds: int = 0


class Shop:
    """The system as it runs. Names are `orders`, `payments`, `provider`, and `orders-2`, ... for more replicas.

    database: a URL that orders and payments share instead of a file each. environment: variables for all.
    """

    def __init__(
        self,
        directory: Path,
        nats_url: str,
        *,
        payments_nats_url: str = "",
        database: str = "",
        latency_ms: int = 0,
        environment: Mapping[str, str] | None = None,
        replicas: Mapping[str, int] | None = None,
    ) -> None:
        self.directory = directory
        self.spool = directory / "spool"
        self.ledger = directory / "ledger.jsonl"
        self.names = [
            name if number == 1 else f"{name}-{number}"
            for name in ("provider", "payments", "orders")
            for number in range(1, (replicas or {}).get(name, 1) + 1)
        ]
        self.ports = {name: free_port() for name in self.names}
        self.processes: dict[str, Process] = {}
        self._common = {
            "SPAN_SPOOL_DIR": str(self.spool),
            "NATS_RECONNECT_WAIT_S": "0.1",
            "PAYMENTS_ACK_WAIT_S": "2",
            "ORDERS_ACK_WAIT_S": "2",
            "PAYMENTS_BREAKER_OPEN_S": "1",
            "PROVIDER_URL": f"http://127.0.0.1:{self.ports['provider']}",
            "PROVIDER_LEDGER": str(self.ledger),
            "PROVIDER_LATENCY_MS": str(latency_ms),
            **(environment or {}),
        }
        self._nats = {"orders": nats_url, "payments": payments_nats_url or nats_url, "provider": nats_url}
        self._database = database

    def log_of(self, name: str) -> str:
        """Everything this process logged."""
        return (self.directory / f"{name}.log").read_text(encoding="utf-8")

    def start(self, *names: str) -> None:
        """Start these, or all; they may not be ready yet."""
        for name in names or self.names:
            role = name.partition("-")[0]
            log = self.directory / f"{name}.log"
            self.processes[name] = Process(role, {**self._common, **self._own(name, role)}, log=log)

    async def ready(self, *names: str) -> None:
        """Return when these, or all, say that they can work."""
        for name in names or tuple(self.processes):
            await wait_until_it(partial(self.is_ready, name), within_s=READY_WITHIN_S, what=f"{name} ready")

    async def is_ready(self, name: str) -> bool:
        """Whether this process says that it can work; fails if it is gone."""
        code = self.processes[name].exit_code
        assert code is None, f"{name} ended with {code}:\n{self.log_of(name)[-4000:]}"
        try:
            return (await ask(self.ports[name], "GET", "/readyz")).status == 200
        except OSError:
            return False

    async def restart(self, name: str, number: signal.Signals) -> int:
        """End a process with a signal, start it again, and return its exit code once it is ready again."""
        self.processes[name].signal(number)
        code = await self.processes[name].exited()
        self.start(name)
        await self.ready(name)
        return code

    async def place(self, key: str, *, total: float = 12.5, trace: str = "", at: str = "orders") -> Reply:
        """`POST /orders` under this key."""
        body = json.dumps({"customer_id": "c1", "total_amount": total}).encode()
        headers = {**JSON, "idempotency-key": key, **({"traceparent": trace} if trace else {})}
        return await ask(self.ports[at], "POST", "/orders", body=body, headers=headers)

    async def cancel(self, key: str, *, at: str = "orders") -> Reply:
        """`POST /orders/{id}/cancel`."""
        return await ask(self.ports[at], "POST", f"/orders/{key}/cancel", body=b"{}", headers=JSON)

    async def status(self, key: str, *, at: str = "orders") -> str:
        """The status a customer sees."""
        return (await ask(self.ports[at], "GET", f"/orders/{key}")).text("status")

    async def all_in(
        self, statuses: str | frozenset[str], keys: Iterable[str], *, within_s: float = 5.0, at: str = "orders"
    ) -> None:
        """Return when all these orders are in this status, or in one of these."""
        wanted = {statuses} if isinstance(statuses, str) else statuses
        waiting = set(keys)

        async def none_waits() -> bool:
            waiting.difference_update([key for key in waiting if await self.status(key, at=at) in wanted])
            return not waiting

        await wait_until_it(none_waits, within_s=within_s, what=f"every order in {sorted(wanted)}")

    async def habits(self, **habits: object) -> None:
        """Teach the provider habits."""
        reply = await ask(
            self.ports["provider"], "PUT", "/admin/habits", body=json.dumps(habits).encode(), headers=JSON
        )
        assert reply.status == 200, reply.body

    async def metric(self, name: str, of: str) -> float:
        """The sum of a metric's values, over its labels."""
        text = (await ask(self.ports[of], "GET", "/metrics")).body.decode()
        lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def money(self) -> dict[str, Money]:
        """What the ledger says, by order."""
        charged: Counter[str] = Counter()
        refunded: Counter[str] = Counter()
        charges: Counter[str] = Counter()
        refunds: Counter[str] = Counter()
        for line in self.ledger.read_bytes().splitlines():
            entry = json.loads(line)
            if entry["kind"] == "charge":
                charges[entry["order_id"]] += 1
                charged[entry["order_id"]] += entry["amount_minor"]
            elif entry["kind"] == "refund":
                refunds[entry["order_id"]] += 1
                refunded[entry["order_id"]] += entry["amount_minor"]
        return {
            key: Money(charged=charged[key], refunded=refunded[key], charges=charges[key], refunds=refunds[key])
            for key in charges.keys() | refunds.keys()
        }

    async def stop(self) -> dict[str, int]:
        """SIGTERM to all; their exit codes."""
        for process in self.processes.values():
            process.signal(signal.SIGTERM)
        return {name: await process.exited() for name, process in self.processes.items()}

    def kill(self) -> None:
        """Leave nothing running."""
        for process in self.processes.values():
            process.kill()

    def _own(self, name: str, role: str) -> dict[str, str]:
        listen = f"127.0.0.1:{self.ports[name]}"
        return {
            "NATS_URL": self._nats[role],
            f"{role.upper()}_LISTEN": listen,
            f"{role.upper()}_DB": self._database or str(self.directory / f"{name}.db"),
        }


@asynccontextmanager
async def running(shop: Shop) -> AsyncIterator[Shop]:
    """A shop that is open within the block. What its processes logged is printed after it, for a test that fails."""
    shop.start()
    try:
        await shop.ready()
        yield shop
    finally:
        shop.kill()
        for name in shop.processes:
            print(f"--- {name}\n{shop.log_of(name)[-LOG_TOLD_CHARS:]}")  # noqa: T201 - pytest keeps it to itself unless the test fails
