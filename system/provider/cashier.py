"""Charging cards and giving money back, at most once each per charge.

Promises, each across restarts, because the memory is the ledger:

-   One charge key has one outcome, however many requests carry it: charged, declined, or voided. The outcome is in the
    ledger before anybody hears of it.
-   A charge is refunded at most once and in full. A charge that was never made is voided instead: asking for it later
    is refused, so that whoever cancelled in time can rely on it. A declined charge stays what it is.
-   A key that comes with a different order, amount or currency is refused and changes nothing.

How charge and refund of one key are kept apart: everything is decided in the event loop's thread, from memory, without
awaiting anything between the look and the entry handed to the ledger; and while an entry of a charge key is on its
way to the disk, whoever else asks about that key waits until it is there (or failed) and looks again. So the refund
that meets a charge on its way finds it charged, and the charge that meets a void on its way finds it voided. Memory
follows the ledger and not the requests: it does not matter whether anybody still waits for an answer.

Memory grows by about half a kilobyte with every charge, since a key has its outcome for ever.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence

import msgspec

from system.provider.ledger import Entry, Kind, Ledger, LedgerError

_RANDOM = random.SystemRandom()


class KeyReusedError(Exception):
    """The idempotency key belongs to something else."""


class VoidedError(Exception):
    """The charge was ruled out before it was made."""


class ChargeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants charged. amount_minor: hundredths of the currency."""

    idempotency_key: str
    order_id: str
    amount_minor: int
    currency: str

    def is_about(self, entry: Entry) -> bool:
        """True if this entry is about the same money."""
        return (
            self.amount_minor == entry.amount_minor
            and self.order_id == entry.order_id
            and self.currency == entry.currency
        )


class RefundRequest(ChargeRequest, frozen=True, kw_only=True):
    """What somebody wants back, or never charged. idempotency_key: of the refund. charge_key: of the charge."""

    charge_key: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request. replayed: it was decided before."""

    entry: Entry
    replayed: bool


class Cashier:
    """Decides and remembers. declines: whether the card network refuses an amount, for good."""

    def __init__(self, ledger: Ledger, *, declines: Callable[[int], bool]) -> None:
        self._ledger = ledger
        self._declines = declines
        self._ids = random.Random(_RANDOM.getrandbits(256))  # noqa: S311 - ids are unique, not secret; urandom costs 1 µs
        self._decided: dict[str, Entry] = {}
        self._refunds: dict[str, Entry] = {}
        self._charge_of_refund: dict[str, str] = {}
        self._deciding: set[str] = set()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        for entry in ledger.entries:
            self._remember(entry)
        ledger.on_settled = self._settled

    async def charge(self, request: ChargeRequest) -> Outcome:
        """The one outcome of this key: a `charge` or a `decline`.

        `VoidedError` if it was ruled out, `KeyReusedError` if the key is another's, `LedgerError` if nothing was
        decided now.
        """
        key = request.idempotency_key
        while key in self._deciding:
            await self._wait_decided(key)
        decided = self._decided.get(key)
        if decided is not None:
            return _replayed(request, decided)
        is_declined = self._declines(request.amount_minor)
        entry = Entry(
            seq=0,
            kind="decline" if is_declined else "charge",
            charge_id="" if is_declined else f"ch_{self._new_id()}",
            order_id=request.order_id,
            idempotency_key=key,
            amount_minor=request.amount_minor,
            currency=request.currency,
            at_ns=time.time_ns(),
        )
        self._deciding.add(key)
        return Outcome(entry=await self._ledger.append(entry), replayed=False)

    async def refund(self, request: RefundRequest) -> Outcome:
        """The one way in which this charge was undone: a `refund`, a `void`, or a `decline`: there was nothing to undo.

        `KeyReusedError` if this is not the charge's money or not this refund's key, `LedgerError` if nothing was
        decided now.
        """
        key = request.charge_key
        while key in self._deciding:
            await self._wait_decided(key)
        other = self._charge_of_refund.get(request.idempotency_key, key)
        if other != key:
            raise KeyReusedError(f"the key {request.idempotency_key!r} belongs to the refund of {other!r}")
        decided = self._decided.get(key)
        if decided is not None and not request.is_about(decided):
            raise KeyReusedError(_belongs(key, decided))
        if decided is None:
            entry = self._undoing(request, "void")
        elif decided.kind != "charge":
            return Outcome(entry=decided, replayed=True)
        elif key in self._refunds:
            return Outcome(entry=self._refunds[key], replayed=True)
        else:
            entry = self._undoing(request, "refund", charge_id=decided.charge_id, refund_id=f"re_{self._new_id()}")
        self._deciding.add(key)
        self._charge_of_refund[request.idempotency_key] = key
        return Outcome(entry=await self._ledger.append(entry), replayed=False)

    def _undoing(self, request: RefundRequest, kind: Kind, *, charge_id: str = "", refund_id: str = "") -> Entry:
        return Entry(
            seq=0,
            kind=kind,
            charge_id=charge_id,
            order_id=request.order_id,
            idempotency_key=request.idempotency_key,
            amount_minor=request.amount_minor,
            currency=request.currency,
            at_ns=time.time_ns(),
            charge_key=request.charge_key,
            refund_id=refund_id,
        )

    def _new_id(self) -> str:
        return f"{self._ids.getrandbits(128):032x}"

    async def _wait_decided(self, key: str) -> None:
        """Return when the entry of this key that is on its way is durable, or failed."""
        decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(decided)
        await decided

    def _settled(self, entries: Sequence[Entry], failure: LedgerError | None) -> None:
        """The ledger has these entries, or does not."""
        for entry in entries:
            if failure is None:
                self._remember(entry)
            elif entry.charge_key:
                del self._charge_of_refund[entry.idempotency_key]
            self._deciding.discard(entry.decides)
        if self._waiting:
            for entry in entries:
                for waiting in self._waiting.pop(entry.decides, ()):
                    if not waiting.done():
                        waiting.set_result(None)

    def _remember(self, entry: Entry) -> None:
        if not entry.charge_key:
            self._decided[entry.idempotency_key] = entry
            return
        self._charge_of_refund[entry.idempotency_key] = entry.charge_key
        if entry.kind == "refund":
            self._refunds[entry.charge_key] = entry
        else:
            self._decided[entry.charge_key] = entry


def _replayed(request: ChargeRequest, decided: Entry) -> Outcome:
    if decided.kind == "void":
        raise VoidedError(f"the charge {request.idempotency_key!r} was voided before it was made")
    if not request.is_about(decided):
        raise KeyReusedError(_belongs(request.idempotency_key, decided))
    return Outcome(entry=decided, replayed=True)


def _belongs(key: str, entry: Entry) -> str:
    return f"the key {key!r} belongs to order {entry.order_id!r} over {entry.amount_minor} {entry.currency}"
