"""Charging cards, at most once per idempotency key.

Promises: one key has one outcome, however many requests carry it, at once or after a restart; the outcome is in the
ledger before anybody hears of it; a key that comes with a different order or amount is refused. The card network's
thinking time is spent before the money moves, and is the same for every request.

The decline rule of this stand-in: an amount whose hundredths end in 13 is declined. Declines are final.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

from system.provider.ledger import Entry, Ledger

DECLINED_ENDING = 13
_MODULUS = 100


class KeyReusedError(Exception):
    """The idempotency key belongs to a different charge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeRequest:
    """What somebody wants charged. amount_minor: hundredths of the currency."""

    idempotency_key: str
    order_id: str
    amount_minor: int
    currency: str

    def is_same_as(self, entry: Entry) -> bool:
        """True if this entry answers this request."""
        return (self.order_id, self.amount_minor, self.currency) == (entry.order_id, entry.amount_minor, entry.currency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a request. replayed: it was decided before."""

    entry: Entry
    replayed: bool


class Cashier:
    """Decides and remembers."""

    def __init__(self, ledger: Ledger, *, latency_ms: float) -> None:
        self._ledger = ledger
        self._latency_s = latency_ms / 1000
        self._decided: dict[str, Entry] = {entry.idempotency_key: entry for entry in ledger.entries}
        self._deciding: dict[str, asyncio.Lock] = {}

    async def charge(self, request: ChargeRequest) -> Outcome:
        """The one outcome of this key; `KeyReusedError` if it is another's, `LedgerError` if nothing was decided."""
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        key = request.idempotency_key
        decided = self._decided.get(key)
        if decided is None:
            lock = self._deciding.setdefault(key, asyncio.Lock())
            async with lock:
                decided = self._decided.get(key)
                if decided is None:
                    entry = await self._decide(request)
                    self._decided[key] = entry
                    self._deciding.pop(key, None)
                    return Outcome(entry=entry, replayed=False)
        if not request.is_same_as(decided):
            raise KeyReusedError(f"the key {key!r} belongs to order {decided.order_id!r} over {decided.amount_minor}")
        return Outcome(entry=decided, replayed=True)

    async def _decide(self, request: ChargeRequest) -> Entry:
        is_declined = request.amount_minor % _MODULUS == DECLINED_ENDING
        return await self._ledger.append(
            "decline" if is_declined else "charge",
            charge_id="" if is_declined else f"ch_{uuid.uuid4().hex}",
            order_id=request.order_id,
            idempotency_key=request.idempotency_key,
            amount_minor=request.amount_minor,
            currency=request.currency,
        )
