"""What a storm did to the shop, judged from what was recorded; nothing here starts, asks or waits for anything.

Promises: every must is decided from what the shop told its customers, what it says of each order afterwards, and the
ledger; a must that is violated names the orders; an order of unknown outcome may exist or not, but if it does,
everything is demanded of it that is demanded of an accepted one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

PENDING = "PENDING"
PAID = "PAID"

BACKLOG_S = 1.0
"""An order that takes longer to settle has waited for something: it belongs to the backlog."""

NAMED_MAX = 5

_NS = 1_000_000_000


class Answer(StrEnum):
    """What a customer was told. UNKNOWN: 503 with an order_id. REFUSED: any other answer than 202. LOST: none came."""

    ACCEPTED = "accepted"
    UNKNOWN = "unknown"
    REFUSED = "refused"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the shop says of an order when all is over. Unix times, None where it does not know."""

    status: str
    created_at_ns: int | None
    settled_at_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """How a part got through. killed: the exit codes of the processes that were killed; last: that of the last one."""

    killed: tuple[int, ...] = ()
    last: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything known after a storm, by order id where there are many.

    refusals: how often each status was the answer to a refused order. missed: orders that were due and never sent.
    orders: those the shop knows. charges: the amounts in the ledger. amount_minor: what each order is over. calls,
    deliveries: of each order, requests that payments made to the provider, and deliveries of its message to payments.
    rested: whether in the end nothing was left to do for anybody.
    """

    answers: Mapping[str, Answer]
    refusals: Mapping[str, int]
    missed: int
    orders: Mapping[str, Order]
    charges: Mapping[str, Sequence[int]]
    amount_minor: int
    dead_letters: int
    rested: bool
    calls: Collection[int]
    deliveries: Collection[int]
    breaker_openings: int
    storm_began_ns: int
    storm_ended_ns: int
    lives: Mapping[str, Life]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Something counted for each order."""

    mean: float
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a storm came to. Orders are given by their ids where each is one too many.

    backlog_gone_s: from the storm's end until the last order had settled that waited; None if one never did.
    """

    asked: int
    answers: Mapping[Answer, int]
    refusals: Mapping[str, int]
    missed: int
    storm_s: float
    never_settled: tuple[str, ...]
    unknown_never_settled: tuple[str, ...]
    charged_twice: tuple[str, ...]
    charged_wrongly: tuple[str, ...]
    paid_uncharged: tuple[str, ...]
    charged_unpaid: tuple[str, ...]
    refused_existing: tuple[str, ...]
    dead_letters: int
    unknown_existing: int
    unknown_absent: int
    longest_settle_s: float
    backlog_gone_s: float | None
    rested: bool
    breaker_openings: int
    calls: Spread
    deliveries: Spread
    lives: Mapping[str, Life]

    @property
    def musts(self) -> Mapping[str, tuple[str, ...] | int]:
        """What must be nothing, in words."""
        return {
            "accepted orders that never settled": self.never_settled,
            "orders of unknown outcome that exist and never settled": self.unknown_never_settled,
            "orders charged twice": self.charged_twice,
            "orders charged another amount": self.charged_wrongly,
            "PAID without a charge": self.paid_uncharged,
            "charged and not PAID": self.charged_unpaid,
            "refused orders that exist": self.refused_existing,
            "dead letters": self.dead_letters,
        }

    @property
    def violated(self) -> tuple[str, ...]:
        """Each must that is something, in a sentence."""
        found = []
        for words, seen in self.musts.items():
            if isinstance(seen, int):
                found += [f"{seen} {words}"] if seen else []
            elif seen:
                more = ", ..." if len(seen) > NAMED_MAX else ""
                found.append(f"{len(seen)} {words}: {', '.join(seen[:NAMED_MAX])}{more}")
        return tuple(found)

    @property
    def broken(self) -> tuple[str, ...]:
        """What else is not as it should be, each in a sentence."""
        ends = [
            f"{name} ended with code {life.last} when it was stopped" for name, life in self.lives.items() if life.last
        ]
        if not self.rested:
            ends.append("the shop did not come to rest")
        if not self.answers[Answer.ACCEPTED]:
            ends.append("no order was accepted, so nothing was shown")
        return tuple(ends)

    @property
    def holds(self) -> bool:
        """Whether every must holds, and every part did its work to the end and then had none left."""
        return not self.violated and not self.broken


def judged(seen: Evidence) -> Verdict:
    """Work everything out."""
    answers = Counter(seen.answers.values())
    doubtful = [each for each, answer in seen.answers.items() if answer in (Answer.UNKNOWN, Answer.LOST)]
    existing = [order_id for order_id in doubtful if order_id in seen.orders]
    accepted = _with(seen, Answer.ACCEPTED)
    settled = {order_id: order for order_id, order in seen.orders.items() if order.status != PENDING}
    never_settled = tuple(order_id for order_id in accepted if order_id not in settled)
    unknown_never_settled = tuple(order_id for order_id in existing if order_id not in settled)
    waits_s = {
        order_id: (order.settled_at_ns - order.created_at_ns) / _NS
        for order_id, order in settled.items()
        if order.settled_at_ns is not None and order.created_at_ns is not None
    }
    last_ns = max(
        (settled[each].settled_at_ns or 0 for each, wait_s in waits_s.items() if wait_s > BACKLOG_S), default=0
    )
    is_gone = not never_settled and not unknown_never_settled
    return Verdict(
        asked=len(seen.answers),
        answers={answer: answers[answer] for answer in Answer},
        refusals=seen.refusals,
        missed=seen.missed,
        storm_s=(seen.storm_ended_ns - seen.storm_began_ns) / _NS,
        never_settled=never_settled,
        unknown_never_settled=unknown_never_settled,
        charged_twice=tuple(order_id for order_id, amounts in seen.charges.items() if len(amounts) > 1),
        charged_wrongly=tuple(
            order_id
            for order_id, amounts in seen.charges.items()
            if any(amount_minor != seen.amount_minor for amount_minor in amounts)
        ),
        paid_uncharged=tuple(
            order_id
            for order_id, order in seen.orders.items()
            if order.status == PAID and not seen.charges.get(order_id)
        ),
        # Nobody cancels here, so what was charged can only be PAID; an order that does not exist is not.
        charged_unpaid=tuple(
            order_id for order_id in seen.charges if order_id not in seen.orders or seen.orders[order_id].status != PAID
        ),
        refused_existing=tuple(order_id for order_id in _with(seen, Answer.REFUSED) if order_id in seen.orders),
        dead_letters=seen.dead_letters,
        unknown_existing=len(existing),
        unknown_absent=len(doubtful) - len(existing),
        longest_settle_s=max(waits_s.values(), default=0.0),
        backlog_gone_s=max(0.0, (last_ns - seen.storm_ended_ns) / _NS) if is_gone else None,
        rested=seen.rested,
        breaker_openings=seen.breaker_openings,
        calls=_spread(seen.calls),
        deliveries=_spread(seen.deliveries),
        lives=seen.lives,
    )


def _with(seen: Evidence, wanted: Answer) -> list[str]:
    return [order_id for order_id, answer in seen.answers.items() if answer is wanted]


def _spread(counts: Collection[int]) -> Spread:
    return Spread(mean=sum(counts) / len(counts) if counts else 0.0, max=max(counts, default=0))
