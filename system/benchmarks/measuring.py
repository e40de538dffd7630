"""One measurement: a fresh shop, orders at one rate, and everything that can be read from outside meanwhile and after.

Promises: CPU time is read at both ends of the steady window and nowhere else; nothing touches the shop within it but
the orders; the shop and its files are gone afterwards.

Whose clock: orders and generator both use this machine's wall clock, so `settled_at_ns` minus when an order was due is
a latency. A clock that is set meanwhile spoils it.
"""

from __future__ import annotations

import array
import contextlib
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from system.benchmarks.generator import ANSWERS_WITHIN_S, number_of, read_record
from system.benchmarks.parts import BenchmarkError, Part, Parts
from system.benchmarks.probes import FsyncProbe, MachineProbe
from system.benchmarks.results import ACCEPTED, Measurement, Observed, Plan, measurement_of
from system.benchmarks.shop import Shop, start_shop
from system.benchmarks.sink import read_report

GENERATOR_WITHIN_S = 10.0
SETTLED_WITHIN_S = 30.0
LOOK_EVERY_S = 0.2

_NS = 1_000_000_000
_CHARGE = b'"kind":"charge"'


def measure(plan: Plan, more: Mapping[str, str]) -> Measurement:
    """Measure one rate. more: further variables for the services. Raises BenchmarkError when a part breaks."""
    with Parts(alone="orders" if plan.is_apart else None) as parts:
        shop = start_shop(parts, more)
        file = parts.directory / "record"
        with FsyncProbe(parts.directory) as probe:
            seconds = plan.warm_up_s + plan.seconds
            generator, began_ns = start_generator(
                parts, shop, file, rate_per_s=plan.rate_per_s, seconds=seconds, connections=plan.connections
            )
            since_ns = began_ns + int(plan.warm_up_s * _NS)
            _wait_until(since_ns)
            before, machine, since_ns = _cpu_s(shop, generator), MachineProbe(), time.time_ns()
            _wait_until(since_ns + int(plan.seconds * _NS))
            after, machine_cpu, until_ns = _cpu_s(shop, generator), machine.so_far(), time.time_ns()
            parts.wait(
                generator, lambda: not generator.is_running, what="done", within_s=ANSWERS_WITHIN_S + GENERATOR_WITHIN_S
            )
            parts.check()
            record = read_record(file)
            _wait_settled(shop.orders_database, record.status.count(ACCEPTED))
        parts.check()
        report = read_report(shop.sink_report) if shop.stop(parts) else None
        return measurement_of(
            plan,
            Observed(
                record=record,
                settled_ns=_settled_ns(shop.orders_database, len(record.status)),
                began_ns=began_ns,
                since_ns=since_ns,
                until_ns=until_ns,
                cpu_s={name: after[name] - before[name] for name in before},
                machine=machine_cpu,
                disk=probe.seen(since_ns, until_ns),
                charges=sum(_CHARGE in line for line in shop.ledger.read_bytes().splitlines()),
                spans=None if report is None else report.spans,
                spans_lost=None if report is None else report.spans_lost,
            ),
        )


def start_generator(
    parts: Parts, shop: Shop, file: Path, *, rate_per_s: int, seconds: float, connections: int
) -> tuple[Part, int]:
    """The generator, and when its first order is due. file: what it leaves behind."""
    arguments = (shop.port, rate_per_s, seconds, connections, file)
    generator = parts.start(
        "generator", (sys.executable, "-m", "system.benchmarks.generator", *map(str, arguments)), is_heard=True
    )
    assert generator.process.stdout is not None  # noqa: S101 - it is a pipe, as asked
    began_ns = generator.process.stdout.readline().strip()
    if not began_ns:
        raise generator.failed("did not begin")
    return generator, int(began_ns)


def _cpu_s(shop: Shop, generator: Part) -> dict[str, float]:
    return {**shop.cpu_s(), "generator": generator.cpu_s()}


def _wait_until(at_ns: int) -> None:
    time.sleep(max(0.0, (at_ns - time.time_ns()) / _NS))


def _wait_settled(database: Path, accepted: int) -> None:
    """Return when all that was accepted is settled, or when it took too long; the measurement will say so."""
    deadline_s = time.monotonic() + SETTLED_WITHIN_S
    with contextlib.closing(_opened(database)) as orders:
        while time.monotonic() < deadline_s:
            (settled,) = orders.execute("SELECT count(*) FROM orders WHERE settled_at_ns IS NOT NULL").fetchone()
            if settled >= accepted:
                return
            time.sleep(LOOK_EVERY_S)


def _settled_ns(database: Path, total: int) -> array.array[int]:
    """When each order was settled, by its number."""
    settled_ns = array.array("q", bytes(8 * total))
    with contextlib.closing(_opened(database)) as orders:
        for order_id, at_ns in orders.execute(
            "SELECT order_id, settled_at_ns FROM orders WHERE settled_at_ns IS NOT NULL"
        ):
            settled_ns[number_of(order_id)] = at_ns
    return settled_ns


def _opened(database: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise BenchmarkError(f"the orders table in {database} cannot be read: {error}") from None
