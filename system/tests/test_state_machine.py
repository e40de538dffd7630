"""Whatever customers do and whichever process restarts: the shop ends where a model of orders and money says.

Hypothesis drives the real processes through the public API. The model knows of each order its amount and whether its
customer cancelled it, and nothing of how the shop works; in the end each order must be in a state that the model
allows, and the ledger must hold exactly the money of that state. Proves P1, P2, P3, P6 and P8.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from system.events import OrderCreated, encode_order_created
from system.jetstream import Connection, Publisher
from system.metrics import Metrics
from system.settings import NatsSettings
from system.tests.parts import Broker, NotInTimeError, wait_until_it
from system.tests.shop import FINAL, Money, Shop

EXAMPLES = 6
STEPS = 16
SETTLED_WITHIN_S = 15.0
DECLINED_ENDING = 13
SERVICES = ("orders", "payments", "provider")


@dataclass(slots=True, kw_only=True)
class Expected:
    """What the model knows of an order. minor: its amount in hundredths."""

    minor: int
    is_cancelled: bool = False

    def allows(self, status: str, money: Money) -> bool:
        """True if an order like this may be in this status with this money moved."""
        nothing, once = Money(), Money(charged=self.minor, charges=1)
        undone = Money(charged=self.minor, charges=1, refunded=self.minor, refunds=1)
        match status:
            case "PAID":
                return not self.is_cancelled and money == once and self.minor % 100 != DECLINED_ENDING
            case "DECLINED":
                return money == nothing and self.minor % 100 == DECLINED_ENDING
            case "CANCELLED":
                return self.is_cancelled and money == nothing
            case "REFUNDED":
                return self.is_cancelled and money == undone
        return False


class Customers(RuleBasedStateMachine):
    """Customers, and somebody who restarts things."""

    orders: Bundle[str] = Bundle("orders")

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._scratch = tempfile.TemporaryDirectory(prefix="shop-machine-")
        directory = Path(self._scratch.name)
        self._broker = Broker(directory / "jetstream")
        self._run(self._broker.start())
        self._shop = Shop(directory, self._broker.url, latency_ms=5)
        self._expected: dict[str, Expected] = {}
        self._doubles = 0

    @initialize()
    def open(self) -> None:
        """The shop is open before the first customer comes."""
        self._shop.start()
        self._run(self._shop.ready())

    @rule(target=orders, minor=st.integers(100, 50_000), is_odd=st.booleans())
    def create(self, minor: int, is_odd: bool) -> str:
        """A new order; some have an amount that the card network declines."""
        if is_odd:
            minor = minor - minor % 100 + DECLINED_ENDING
        key = f"o{len(self._expected)}"
        reply = self._run(self._shop.place(key, total=minor / 100))
        assert reply.status == 202
        self._expected[key] = Expected(minor=minor)
        return key

    @rule(key=orders)
    def repeat(self, key: str) -> None:
        """The same request again is the same order."""
        assert self._run(self._shop.place(key, total=self._expected[key].minor / 100)).status == 202

    @rule(key=orders)
    def ask_for_another_under_the_same_key(self, key: str) -> None:
        """A different order under a known key is refused."""
        assert self._run(self._shop.place(key, total=(self._expected[key].minor + 1) / 100)).status == 409

    @rule(key=orders)
    def look(self, key: str) -> None:
        """What was accepted can be read, and is never in a state that it cannot be in."""
        status = self._run(self._shop.status(key))
        assert status == "PENDING" or status in FINAL

    @rule(key=orders)
    def cancel(self, key: str) -> None:
        """The order is undone, unless the card was declined; cancelled twice is cancelled."""
        reply = self._run(self._shop.cancel(key))
        if reply.status == 409:
            assert self._run(self._shop.status(key)) == "DECLINED"
        else:
            assert reply.status in (200, 202)
            self._expected[key].is_cancelled = True

    @rule(name=st.sampled_from(SERVICES), number=st.sampled_from([signal.SIGTERM, signal.SIGKILL]))
    def restart(self, name: str, number: signal.Signals) -> None:
        """A service goes away in the middle of whatever it does, and comes back."""
        code = self._run(self._shop.restart(name, number))
        assert code == (0 if number is signal.SIGTERM else -number)

    @rule()
    def restart_the_broker(self) -> None:
        """The broker is killed and comes back with what it had stored."""
        self._broker.stop()
        self._run(self._broker.start())
        self._run(self._shop.ready())

    @rule(key=orders)
    def deliver_again(self, key: str) -> None:
        """The same event comes once more, as a message of its own: what a producer without memory would send."""
        self._doubles += 1
        self._run(self._publish_again(key, f"double:{self._doubles}"))

    def teardown(self) -> None:
        """Everything settles, and the model agrees."""
        try:
            if self._expected:
                self._run(self._shop.all_in(FINAL, self._expected, within_s=SETTLED_WITHIN_S))
                self._run(self._compare())
        finally:
            self._shop.kill()
            self._broker.stop()
            self._runner.close()
            self._scratch.cleanup()

    async def _compare(self) -> None:
        async def contradictions() -> list[str]:
            money = self._shop.money()
            statuses = {key: await self._shop.status(key) for key in self._expected}
            return [
                f"{key}: {status}, {money.get(key, Money())}, expected {self._expected[key]}"
                for key, status in statuses.items()
                if not self._expected[key].allows(status, money.get(key, Money()))
            ]

        async def agrees() -> bool:
            return not await contradictions()

        # A cancelled order is PAID until its cancellation has been carried out.
        with contextlib.suppress(NotInTimeError):
            await wait_until_it(agrees, within_s=SETTLED_WITHIN_S, what="the model agreeing")
        wrong = await contradictions()
        assert not wrong, "\n".join(wrong)

    async def _publish_again(self, key: str, message_id: str) -> None:
        event = OrderCreated(
            order_id=key, customer_id="c1", amount_minor=self._expected[key].minor, currency="EUR", created_at_ns=1
        )
        metrics = Metrics()
        settings = NatsSettings(url=self._broker.url, reconnect_wait_s=0.1)
        async with Connection(settings, name="double", metrics=metrics) as connection:
            publisher = Publisher(connection, metrics=metrics)
            await publisher.start()
            await connection.open()
            await publisher.publish(
                "orders.created", encode_order_created(event), message_id=message_id, headers={}, deadline_s=5.0
            )

    def _run(self, work: Any) -> Any:  # noqa: ANN401 - whatever is awaited
        return self._runner.run(work)


@pytest.mark.timeout(300)
def test_the_shop_ends_where_the_model_of_orders_and_money_says() -> None:
    """Six stories of up to sixteen steps each."""
    from hypothesis.stateful import run_state_machine_as_test  # noqa: PLC0415 - beside its one use

    run_state_machine_as_test(
        Customers,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
