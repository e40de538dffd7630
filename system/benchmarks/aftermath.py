"""What is left after a storm: waiting until the shop is at rest, and asking everybody who knows something.

Promises: at rest means that the broker has nothing left to deliver to any of the shop's consumers, nothing in their
hands, and that no request is being answered, at `QUIET_LOOKS` looks in a row; what does not come to rest in time is
asked all the same, and the verdict says what is missing. Orders are asked for over HTTP, as a customer would, so it
does not matter which database they are in.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from system import topology
from system.benchmarks.generator import Record, order_id_of
from system.benchmarks.parts import LOOPBACK, BenchmarkError
from system.benchmarks.results import ACCEPTED
from system.benchmarks.shop import Shop
from system.benchmarks.verdicts import Answer, Order
from system.deadletters.stream import DeadLetterStream
from system.jetstream import Connection, Publisher, RequestError
from system.metrics import Metrics
from system.settings import Address, NatsSettings
from system.web import HttpClient, HttpClientError

REST_WITHIN_S = 240.0
LOOK_EVERY_S = 0.25
QUIET_LOOKS = 4
TELL_EVERY_S = 10.0
ASKED_AT_ONCE = 32
ASK_WITHIN_S = 5.0

_FOUND = 200
_NOT_FOUND = 404
_IN_FLIGHT = re.compile(rb"^requests_in_flight (\S+)$", re.MULTILINE)
_CHARGE = "charge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aftermath:
    """What the shop said. orders: those it knows of those it was asked for. rested: whether it came to rest in time."""

    orders: Mapping[str, Order]
    dead_letters: int
    rested: bool


class _Consumer(msgspec.Struct):
    num_pending: int = 0
    num_ack_pending: int = 0


class _Shown(msgspec.Struct):
    status: str
    created_at_ns: int | None
    settled_at_ns: int | None


class _Line(msgspec.Struct):
    kind: str
    order_id: str
    amount_minor: int


_decode_consumer = msgspec.json.Decoder(_Consumer).decode
_decode_shown = msgspec.json.Decoder(_Shown).decode
_decode_line = msgspec.json.Decoder(_Line).decode


async def look(shop: Shop, order_ids: Collection[str], *, tell: Callable[[str], None]) -> Aftermath:
    """Wait until the shop is at rest, then ask for these orders and for dead letters."""
    settings = NatsSettings(url=f"nats://{LOOPBACK}:{shop.ports['nats-server']}")
    metrics = Metrics()
    http = HttpClient(Address(host=LOOPBACK, port=shop.port), connections_max=ASKED_AT_ONCE)
    try:
        async with Connection(settings, name="storms", metrics=metrics) as connection:
            await connection.open()
            rested = await _wait_at_rest(connection, http, tell)
            letters = DeadLetterStream(connection, Publisher(connection, metrics=metrics))
            return Aftermath(
                orders=await _ask_orders(http, order_ids), dead_letters=await letters.count(), rested=rested
            )
    except (RequestError, HttpClientError) as error:
        raise BenchmarkError(f"the shop could not be asked how it is: {error}") from None
    finally:
        http.close()


def read_charges(ledger: Path) -> dict[str, list[int]]:
    """The amounts that were charged for each order, as the ledger has them."""
    charges: dict[str, list[int]] = defaultdict(list)
    for line in map(_decode_line, ledger.read_bytes().splitlines()):
        if line.kind == _CHARGE:
            charges[line.order_id].append(line.amount_minor)
    return charges


def read_answers(record: Record) -> tuple[dict[str, Answer], dict[str, int]]:
    """What each order that was sent was told, and how many refusals there were of each status."""
    answers: dict[str, Answer] = {}
    refusals: Counter[str] = Counter()
    for number, (sent_ns, _, status, is_unknown) in enumerate(zip(*record.columns, strict=True)):
        if not sent_ns:
            continue
        if status == ACCEPTED:
            answer = Answer.ACCEPTED
        elif is_unknown:
            answer = Answer.UNKNOWN
        elif status:
            answer = Answer.REFUSED
            refusals[str(status)] += 1
        else:
            answer = Answer.LOST
        answers[order_id_of(number)] = answer
    return answers, dict(sorted(refusals.items()))


async def _wait_at_rest(connection: Connection, http: HttpClient, tell: Callable[[str], None]) -> bool:
    began_s = time.monotonic()
    told_s, quiet = began_s, 0
    while (now_s := time.monotonic()) - began_s < REST_WITHIN_S:
        busy = await _busy(connection, http)
        quiet = 0 if any(busy.values()) else quiet + 1
        if quiet == QUIET_LOOKS:
            return True
        if now_s - told_s >= TELL_EVERY_S:
            told_s = now_s
            tell(f"not at rest after {now_s - began_s:.0f} s: {', '.join(f'{n} {name}' for name, n in busy.items())}")
        await asyncio.sleep(LOOK_EVERY_S)
    return False


async def _busy(connection: Connection, http: HttpClient) -> dict[str, int]:
    """What is still to be done, by who has it."""
    busy = {}
    for spec in (*topology.projections(1.0), *topology.payment_processors(1.0, 1)):
        subject = f"$JS.API.CONSUMER.INFO.{spec.stream}.{spec.name}"
        consumer = _decode_consumer(await connection.request(subject, within_s=ASK_WITHIN_S))
        busy[spec.name] = consumer.num_pending + consumer.num_ack_pending
    found = _IN_FLIGHT.search((await http.get("/metrics", within_s=ASK_WITHIN_S)).body)
    if found is None:
        raise BenchmarkError("orders does not say requests_in_flight in its metrics")
    busy["requests"] = int(float(found[1]))
    return busy


async def _ask_orders(http: HttpClient, order_ids: Collection[str]) -> dict[str, Order]:
    orders: dict[str, Order] = {}
    left: Iterator[str] = iter(order_ids)

    async def ask_some() -> None:
        for order_id in left:
            answer = await http.get(f"/orders/{order_id}", within_s=ASK_WITHIN_S)
            if answer.status == _FOUND:
                shown = _decode_shown(answer.body)
                orders[order_id] = Order(
                    status=shown.status, created_at_ns=shown.created_at_ns, settled_at_ns=shown.settled_at_ns
                )
            elif answer.status != _NOT_FOUND:
                raise BenchmarkError(f"GET /orders/{order_id} was answered {answer.status}: {answer.body.decode()}")

    try:
        async with asyncio.TaskGroup() as asking:
            for _ in range(ASKED_AT_ONCE):
                asking.create_task(ask_some())
    except* (BenchmarkError, HttpClientError) as errors:
        raise errors.exceptions[0] from None
    return orders
