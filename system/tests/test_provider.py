"""The stand-in provider: its ledger on disk, and one outcome per key."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from system.provider.cashier import Cashier, ChargeRequest, KeyReusedError
from system.provider.ledger import Entry, Ledger, LedgerError, LedgerOpenError


def request(key: str = "k1", *, order: str = "o1", amount_minor: int = 1250) -> ChargeRequest:
    """A request for a charge."""
    return ChargeRequest(idempotency_key=key, order_id=order, amount_minor=amount_minor, currency="EUR")


async def append(ledger: Ledger, key: str) -> Entry:
    """One charge in the ledger."""
    return await ledger.append(
        "charge", charge_id=f"ch_{key}", order_id=key, idempotency_key=key, amount_minor=100, currency="EUR"
    )


async def test_entries_are_numbered_lines_that_survive(tmp_path: Path) -> None:
    """A hundred entries at once: numbers 1 to 100 without a gap, and the next start finds them."""
    async with Ledger(tmp_path / "ledger") as ledger:
        await asyncio.gather(*(append(ledger, f"k{n}") for n in range(100)))
    async with Ledger(tmp_path / "ledger") as ledger:
        await append(ledger, "later")

    async with Ledger(tmp_path / "ledger") as ledger:
        assert [entry.seq for entry in ledger.entries] == list(range(1, 102))
        assert ledger.entries[-1].idempotency_key == "later"


async def test_a_last_line_cut_short_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody was told of it, so it never was; the next entry takes its number."""
    path = tmp_path / "ledger"
    async with Ledger(path) as ledger:
        await append(ledger, "k1")
    with path.open("ab") as file:
        file.write(b'{"seq":2,"kind":"cha')

    async with Ledger(path) as ledger:
        entry = await append(ledger, "k2")

    assert entry.seq == 2
    assert path.read_bytes().count(b"\n") == 2
    assert "cut short" in caplog.text


@pytest.mark.parametrize("line", [b"{}\n", b"no json\n", b"\xff\n"])
def test_a_damaged_line_stops_the_start(tmp_path: Path, line: bytes) -> None:
    """Money is not guessed."""
    path = tmp_path / "ledger"
    path.write_bytes(line)

    with pytest.raises(LedgerOpenError, match="line 1 of the ledger"):
        Ledger(path)


async def test_a_ledger_belongs_to_one_process(tmp_path: Path) -> None:
    """A second one is told so."""
    async with Ledger(tmp_path / "ledger"):
        with pytest.raises(LedgerOpenError, match="in use by another process"):
            Ledger(tmp_path / "ledger")


async def test_an_entry_that_cannot_be_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes half a line leaves no half line, no gap, and an order that can be charged later."""
    path = tmp_path / "ledger"
    write = os.write
    async with Ledger(path) as ledger:
        cashier = Cashier(ledger, latency_ms=0)
        monkeypatch.setattr(os, "write", lambda fd, content: write(fd, content[: len(content) // 2]))
        with pytest.raises(LedgerError):
            await cashier.charge(request())
        monkeypatch.undo()

        outcome = await cashier.charge(request())

    assert (outcome.entry.seq, outcome.replayed) == (1, False)
    assert path.read_bytes().count(b"\n") == 1


async def test_requests_with_one_key_at_once_charge_once(tmp_path: Path) -> None:
    """Fifty requests, one captured, forty-nine replayed, one line."""
    async with Ledger(tmp_path / "ledger") as ledger:
        cashier = Cashier(ledger, latency_ms=1)
        outcomes = await asyncio.gather(*(cashier.charge(request()) for _ in range(50)))

    assert len({outcome.entry.charge_id for outcome in outcomes}) == 1
    assert sum(not outcome.replayed for outcome in outcomes) == 1
    assert (tmp_path / "ledger").read_bytes().count(b"\n") == 1


async def test_a_key_is_remembered_across_restarts(tmp_path: Path) -> None:
    """The memory is the ledger."""
    async with Ledger(tmp_path / "ledger") as ledger:
        first = await Cashier(ledger, latency_ms=0).charge(request())
    async with Ledger(tmp_path / "ledger") as ledger:
        again = await Cashier(ledger, latency_ms=0).charge(request())

    assert (again.entry, again.replayed) == (first.entry, True)


@pytest.mark.parametrize("other", [request(order="o2"), request(amount_minor=1251)])
async def test_a_key_that_belongs_to_another_charge_is_refused(tmp_path: Path, other: ChargeRequest) -> None:
    """Another order or another amount under the same key charges nothing."""
    async with Ledger(tmp_path / "ledger") as ledger:
        cashier = Cashier(ledger, latency_ms=0)
        await cashier.charge(request())
        with pytest.raises(KeyReusedError):
            await cashier.charge(other)

    assert (tmp_path / "ledger").read_bytes().count(b"\n") == 1


async def test_a_decline_is_final_and_moves_no_money(tmp_path: Path) -> None:
    """Amounts that end in 13 are declined, before and after a restart, and never have a charge id."""
    async with Ledger(tmp_path / "ledger") as ledger:
        first = await Cashier(ledger, latency_ms=0).charge(request(amount_minor=113))
    async with Ledger(tmp_path / "ledger") as ledger:
        again = await Cashier(ledger, latency_ms=0).charge(request(amount_minor=113))

    assert first.entry.kind == "decline"
    assert first.entry.charge_id == ""
    assert (again.entry, again.replayed) == (first.entry, True)
