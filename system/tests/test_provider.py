"""The stand-in provider's ledger and cashier: lines on disk, and one outcome per charge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from system.provider.cashier import Cashier, ChargeRequest, KeyReusedError, Outcome, RefundRequest, VoidedError
from system.provider.ledger import Entry, Ledger, LedgerError, LedgerOpenError, LedgerUnknownError
from system.tests.parts import Process, accepts, ask, free_port, wait_until


def declines(amount_minor: int) -> bool:
    """The usual rule."""
    return amount_minor % 100 == 13


def request(key: str = "k1", *, order: str = "o1", amount_minor: int = 1250) -> ChargeRequest:
    """A request for a charge."""
    return ChargeRequest(idempotency_key=key, order_id=order, amount_minor=amount_minor, currency="EUR")


def refund(
    charge_key: str = "k1", *, key: str = "refund:k1", order: str = "o1", amount_minor: int = 1250
) -> RefundRequest:
    """A request for a refund."""
    return RefundRequest(
        idempotency_key=key, charge_key=charge_key, order_id=order, amount_minor=amount_minor, currency="EUR"
    )


def entry(key: str) -> Entry:
    """One charge for the ledger."""
    return Entry(
        seq=0,
        kind="charge",
        charge_id=f"ch_{key}",
        order_id=key,
        idempotency_key=key,
        amount_minor=100,
        currency="EUR",
        at_ns=7,
    )


async def append(ledger: Ledger, key: str) -> Entry:
    """One charge in the ledger."""
    return await ledger.append(entry(key))


def lines_of(path: Path) -> list[dict[str, object]]:
    """The ledger as others read it."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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


@pytest.mark.parametrize("line", [b"{}\n", b"no json\n", b"\xff\n", b"\n", b'{"seq":1,"kind":"tip"}\n'])
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
        cashier = Cashier(ledger, declines=declines)
        monkeypatch.setattr(os, "write", lambda fd, content: write(fd, content[: len(content) // 2]))
        with pytest.raises(LedgerError):
            await cashier.charge(request())
        monkeypatch.undo()

        outcome = await cashier.charge(request())

    assert (outcome.entry.seq, outcome.replayed) == (1, False)
    assert path.read_bytes().count(b"\n") == 1


async def test_a_line_that_is_taken_back_is_taken_back_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut could bring back a charge that was said not to be made; and what the start found is synced."""
    calls: list[str] = []

    def noting(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object) -> object:
            calls.append(name)
            if calls == ["fsync", "fsync", "write", "fdatasync"]:
                raise OSError(5, "Input/output error")
            return real(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("write", "fdatasync", "fsync", "ftruncate"):
        noting(name)
    async with Ledger(tmp_path / "ledger") as ledger:
        with pytest.raises(LedgerError, match="Input/output error"):
            await append(ledger, "k1")

    # The file and its directory at the start; then the line, and its way back.
    assert calls == ["fsync", "fsync", "write", "fdatasync", "ftruncate", "fsync"]


async def test_requests_with_one_key_at_once_charge_once(tmp_path: Path) -> None:
    """Fifty requests, one captured, forty-nine replayed, one line."""
    async with Ledger(tmp_path / "ledger") as ledger:
        cashier = Cashier(ledger, declines=declines)
        outcomes = await asyncio.gather(*(cashier.charge(request()) for _ in range(50)))

    assert len({outcome.entry.charge_id for outcome in outcomes}) == 1
    assert sum(not outcome.replayed for outcome in outcomes) == 1
    assert (tmp_path / "ledger").read_bytes().count(b"\n") == 1


async def test_a_key_is_remembered_across_restarts(tmp_path: Path) -> None:
    """The memory is the ledger."""
    async with Ledger(tmp_path / "ledger") as ledger:
        first = await Cashier(ledger, declines=declines).charge(request())
    async with Ledger(tmp_path / "ledger") as ledger:
        again = await Cashier(ledger, declines=declines).charge(request())

    assert (again.entry, again.replayed) == (first.entry, True)


@pytest.mark.parametrize("other", [request(order="o2"), request(amount_minor=1251)])
async def test_a_key_that_belongs_to_another_charge_is_refused(tmp_path: Path, other: ChargeRequest) -> None:
    """Another order or another amount under the same key charges nothing."""
    async with Ledger(tmp_path / "ledger") as ledger:
        cashier = Cashier(ledger, declines=declines)
        await cashier.charge(request())
        with pytest.raises(KeyReusedError):
            await cashier.charge(other)

    assert (tmp_path / "ledger").read_bytes().count(b"\n") == 1


async def test_a_decline_is_final_and_moves_no_money(tmp_path: Path) -> None:
    """Amounts that end in 13 are declined, before and after a restart, and never have a charge id."""
    async with Ledger(tmp_path / "ledger") as ledger:
        first = await Cashier(ledger, declines=declines).charge(request(amount_minor=113))
    async with Ledger(tmp_path / "ledger") as ledger:
        again = await Cashier(ledger, declines=declines).charge(request(amount_minor=113))

    assert first.entry.kind == "decline"
    assert first.entry.charge_id == ""
    assert (again.entry, again.replayed) == (first.entry, True)


def test_every_line_begins_with_the_members_that_stay() -> None:
    """Readers outside know these; the others joined later."""
    assert Entry.__struct_fields__[:8] == (
        "seq",
        "kind",
        "charge_id",
        "order_id",
        "idempotency_key",
        "amount_minor",
        "currency",
        "at_ns",
    )


async def test_a_refund_gives_back_once_what_was_charged(tmp_path: Path) -> None:
    """Asked again under its own key or another, at once or after a restart, it is the same refund."""
    path = tmp_path / "ledger"
    async with Ledger(path) as ledger:
        cashier = Cashier(ledger, declines=declines)
        charged = await cashier.charge(request())
        first, *others = await asyncio.gather(*(cashier.refund(refund(key=f"r{n % 3}")) for n in range(30)))
    async with Ledger(path) as ledger:
        cashier = Cashier(ledger, declines=declines)
        again = await cashier.refund(refund(key="r9"))
        charged_again = await cashier.charge(request())

    assert (first.replayed, {other.replayed for other in others}, again.replayed) == (False, {True}, True)
    assert {outcome.entry.refund_id for outcome in (first, *others, again)} == {first.entry.refund_id}
    assert (charged_again.entry, charged_again.replayed) == (charged.entry, True)
    charge, back = lines_of(path)
    assert back == {
        "seq": 2,
        "kind": "refund",
        "charge_id": charge["charge_id"],
        "order_id": "o1",
        "idempotency_key": "r0",
        "amount_minor": 1250,
        "currency": "EUR",
        "at_ns": back["at_ns"],
        "charge_key": "k1",
        "refund_id": first.entry.refund_id,
    }


async def test_a_charge_undone_before_it_was_made_is_never_made(tmp_path: Path) -> None:
    """The void is a line of the ledger, so that it holds after a restart, too."""
    path = tmp_path / "ledger"
    async with Ledger(path) as ledger:
        voided = await Cashier(ledger, declines=declines).refund(refund())
    async with Ledger(path) as ledger:
        cashier = Cashier(ledger, declines=declines)
        for late in (request(), request(amount_minor=99), request(order="o2")):
            with pytest.raises(VoidedError, match="'k1' was voided"):
                await cashier.charge(late)
        again = await cashier.refund(refund(key="another"))

    assert (voided.entry.kind, voided.replayed, again.entry.kind, again.replayed) == ("void", False, "void", True)
    assert [line["kind"] for line in lines_of(path)] == ["void"]


async def test_a_declined_charge_has_nothing_to_give_back(tmp_path: Path) -> None:
    """It stays declined, and the ledger says nothing more about it."""
    async with Ledger(tmp_path / "ledger") as ledger:
        cashier = Cashier(ledger, declines=declines)
        await cashier.charge(request(amount_minor=113))
        outcome = await cashier.refund(refund(amount_minor=113))
        again = await cashier.charge(request(amount_minor=113))

    assert (outcome.entry.kind, outcome.replayed, again.entry.kind) == ("decline", True, "decline")
    assert [line["kind"] for line in lines_of(tmp_path / "ledger")] == ["decline"]


@pytest.mark.parametrize("was", ["charged", "refunded", "voided", "declined"])
@pytest.mark.parametrize("wrong", ["order", "amount"])
async def test_a_refund_of_other_money_than_was_charged_is_refused(tmp_path: Path, was: str, wrong: str) -> None:
    """Another amount or another order changes nothing, whatever became of the charge."""
    amount_minor = 113 if was == "declined" else 1250
    async with Ledger(tmp_path / "ledger") as ledger:
        cashier = Cashier(ledger, declines=declines)
        if was != "voided":
            await cashier.charge(request(amount_minor=amount_minor))
        if was in {"refunded", "voided"}:
            await cashier.refund(refund(amount_minor=amount_minor))
        before = (tmp_path / "ledger").read_bytes()
        asked = refund(order="o2", amount_minor=amount_minor) if wrong == "order" else refund(amount_minor=1)
        with pytest.raises(KeyReusedError, match="belongs to order 'o1'"):
            await cashier.refund(asked)

    assert (tmp_path / "ledger").read_bytes() == before


async def test_a_refund_key_belongs_to_one_charge(tmp_path: Path) -> None:
    """At once and after a restart: the second charge is not refunded under the key of the first."""
    async with Ledger(tmp_path / "ledger") as ledger:
        cashier = Cashier(ledger, declines=declines)
        await cashier.charge(request("k1"))
        await cashier.charge(request("k2"))
        both = await asyncio.gather(
            cashier.refund(refund("k1", key="r")), cashier.refund(refund("k2", key="r")), return_exceptions=True
        )
    async with Ledger(tmp_path / "ledger") as ledger:
        with pytest.raises(KeyReusedError, match="'r' belongs to the refund of 'k1'"):
            await Cashier(ledger, declines=declines).refund(refund("k2", key="r"))

    assert [type(outcome) for outcome in both] == [Outcome, KeyReusedError]


async def test_a_charge_that_nobody_waits_for_any_more_is_remembered(tmp_path: Path) -> None:
    """Whoever asked was cancelled while the line was on its way to the disk: the money moved all the same, once."""
    async with Ledger(tmp_path / "ledger") as ledger:
        cashier = Cashier(ledger, declines=declines)
        asking = asyncio.create_task(cashier.charge(request()))
        await asyncio.sleep(0)
        asking.cancel()
        again = await cashier.charge(request())

    assert again.replayed
    assert len(lines_of(tmp_path / "ledger")) == 1


async def test_when_nobody_can_tell_what_is_in_the_file_nothing_more_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes half a line and does not give it back: unknown until the next start has looked."""
    path = tmp_path / "ledger"

    def fail(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    async with Ledger(path) as ledger:
        cashier = Cashier(ledger, declines=declines)
        await cashier.charge(request("k0"))
        monkeypatch.setattr(os, "fdatasync", fail)
        monkeypatch.setattr(os, "ftruncate", fail)
        with pytest.raises(LedgerUnknownError, match="nor cut back"):
            await cashier.charge(request("k1"))
        monkeypatch.undo()
        with pytest.raises(LedgerUnknownError):
            await cashier.charge(request("k2"))
        assert not ledger.is_sound
        assert (await cashier.charge(request("k0"))).replayed
    async with Ledger(path) as ledger:
        found = [each.idempotency_key for each in ledger.entries]

    assert found == ["k0", "k1"]


# Charges and refunds of one key, in every order, with the disk and the process failing in between.


class SteppedLedger(Ledger):
    """A ledger whose writes happen when the test says so."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = list(entries)
        self._open: list[tuple[Entry, asyncio.Future[Entry]]] = []

    def append(self, entry: Entry) -> asyncio.Future[Entry]:
        """It waits for `settle`."""
        durable: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._open.append((entry, durable))
        return durable

    def settle(self, failure: LedgerError | None) -> None:
        """What waits is on disk, or is not."""
        group, self._open = self._open, []
        for number, (entry, _) in enumerate(group, start=len(self.entries) + 1):
            entry.seq = number
        if failure is None:
            self.entries += [entry for entry, _ in group]
        self.on_settled([entry for entry, _ in group], failure)
        for entry, durable in group:
            if durable.done():
                continue
            if failure is None:
                durable.set_result(entry)
            else:
                durable.set_exception(failure)

    def crash(self, written: int) -> list[Entry]:
        """What the next start finds: some of what waited reached the disk, in order."""
        return self.entries + [entry for entry, _ in self._open][:written]


KEYS = st.sampled_from(["k1", "k2"])
AMOUNTS = st.sampled_from([1250, 1250, 1250, 113, 99])
STEPS = st.lists(
    st.one_of(
        st.builds(lambda key, amount: request(key, amount_minor=amount), KEYS, AMOUNTS),
        st.builds(
            lambda key, own, amount: refund(key, key=own, amount_minor=amount), KEYS, st.sampled_from("rs"), AMOUNTS
        ),
        st.sampled_from(["settle", "settle", "fail"]),
        st.integers(min_value=0, max_value=3),
    ),
    max_size=25,
)


class Shopping:
    """Requests that are carried out step by step, and what was told to whom."""

    def __init__(self) -> None:
        self.told: list[tuple[ChargeRequest, Outcome | Exception]] = []
        self._asking: list[asyncio.Task[None]] = []
        self._begin([])

    def _begin(self, entries: Sequence[Entry]) -> None:
        self.ledger = SteppedLedger(entries)
        self._cashier = Cashier(self.ledger, declines=declines)

    async def carry_out(self, steps: Sequence[ChargeRequest | str | int]) -> None:
        """A number is a crash that so many of the waiting lines were ahead of."""
        for step in [*steps, "settle"]:
            match step:
                case ChargeRequest():
                    self._asking.append(asyncio.create_task(self._ask(step)))
                case int():
                    await self._crash(step)
                case _:
                    self.ledger.settle(LedgerError("the disk is full") if step == "fail" else None)
            await self._until_nothing_moves()
        while not all(task.done() for task in self._asking):
            self.ledger.settle(None)  # each round decides at least one of those who wait for each other
            await self._until_nothing_moves()

    async def _ask(self, asked: ChargeRequest) -> None:
        answer: Outcome | Exception
        try:
            if isinstance(asked, RefundRequest):
                answer = await self._cashier.refund(asked)
            else:
                answer = await self._cashier.charge(asked)
        except (KeyReusedError, VoidedError, LedgerError) as error:
            answer = error
        self.told.append((asked, answer))

    async def _crash(self, written: int) -> None:
        found = self.ledger.crash(written)
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        self._asking = []
        self._begin(found)

    async def _until_nothing_moves(self) -> None:
        for _ in range(2 * len(self._asking) + 5):
            await asyncio.sleep(0)


async def test_those_who_waited_for_a_write_that_failed_do_it_once() -> None:
    """The disk refused the first line: of those who waited for it one is next, and the others wait for that one."""
    ledger = SteppedLedger([])
    cashier = Cashier(ledger, declines=declines)
    asking = [asyncio.create_task(cashier.charge(request())) for _ in range(4)]
    await asyncio.sleep(0)
    ledger.settle(LedgerError("the disk is full"))
    for _ in range(3):
        await asyncio.sleep(0)
    ledger.settle(None)
    failed, *others = await asyncio.gather(*asking, return_exceptions=True)

    assert isinstance(failed, LedgerError)
    assert [type(other) for other in others] == [Outcome] * 3
    assert len(ledger.entries) == 1


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_no_interleaving_of_charges_and_refunds_does_a_thing_twice_or_tells_what_is_not_so(
    steps: list[ChargeRequest | str | int],
) -> None:
    """Whatever meets whatever on its way to the disk: each charge has one story, and every answer agrees with it."""
    shopping = Shopping()
    asyncio.run(shopping.carry_out(steps))

    entries = shopping.ledger.entries
    stories: dict[str, list[Entry]] = {}
    for each in entries:
        stories.setdefault(each.decides, []).append(each)
    for story in stories.values():
        assert [each.kind for each in story] in (["charge"], ["charge", "refund"], ["decline"], ["void"])
        assert len({(each.amount_minor, each.order_id) for each in story}) == 1
    own_keys = [each.idempotency_key for each in entries if each.charge_key]
    assert all(len({e.charge_key for e in entries if e.idempotency_key == own}) <= 1 for own in own_keys)
    assert len({each.charge_id for each in entries if each.kind == "charge"}) == sum(
        each.kind == "charge" for each in entries
    )
    for asked, answer in shopping.told:
        story = stories.get(asked.charge_key if isinstance(asked, RefundRequest) else asked.idempotency_key, [])
        match answer:
            case Outcome():
                assert answer.entry in story
                assert answer.entry.amount_minor == asked.amount_minor
            case VoidedError():
                assert [each.kind for each in story] == ["void"]


class Regretful:
    """Customers who ask for a charge and for its refund at once, of a provider that may die."""

    def __init__(self, port: int) -> None:
        self.told: list[tuple[str, Mapping[str, object]]] = []
        self._port = port

    async def charge_and_cancel(self, order: str) -> None:
        """Both requests; a broken connection tells nothing."""
        money = {"order_id": order, "amount_minor": 1250, "currency": "EUR"}
        await asyncio.gather(
            self._post("/charges", order, money),
            self._post("/refunds", f"refund:{order}", {**money, "charge_key": order}),
        )

    async def _post(self, path: str, key: str, body: Mapping[str, object]) -> None:
        with contextlib.suppress(OSError):
            reply = await ask(
                self._port, "POST", path, body=json.dumps(body).encode(), headers={"idempotency-key": key}
            )
            self.told.append((str(body["order_id"]), json.loads(reply.body)))


def fact_in(order: str, answer: Mapping[str, object]) -> tuple[object, ...]:
    """What must be in the ledger if this answer is true."""
    match answer.get("status"):
        case "captured":
            return (order, "charge", answer["charge_id"], "")
        case "refunded":
            return (order, "refund", answer["charge_id"], answer["refund_id"])
        case "voided" | 409:
            return (order, "void", "", "")
        case _:
            pytest.fail(f"{order} was told {answer}")


async def test_what_a_killed_provider_told_is_so_after_its_restart(tmp_path: Path) -> None:
    """SIGKILL among charges and refunds of the same orders: no money moves twice, no answer turns out wrong."""
    path, port = tmp_path / "ledger", free_port()
    environment = {"PROVIDER_LISTEN": f"127.0.0.1:{port}", "PROVIDER_LEDGER": str(path)}
    customers = Regretful(port)
    for is_last in (False, True):
        provider = Process("provider", environment, log=tmp_path / "log")
        try:
            await wait_until(lambda: accepts(port), what="the provider listening")
            async with asyncio.TaskGroup() as tasks:
                for n in range(60):
                    tasks.create_task(customers.charge_and_cancel(f"o{n}"))
                if not is_last:
                    await wait_until(lambda: path.stat().st_size > 0, what="the first line")
                    provider.signal(signal.SIGKILL)
        finally:
            provider.kill()

    lines = lines_of(path)
    stories: dict[object, list[object]] = {}
    for line in lines:
        stories.setdefault(line["order_id"], []).append(line["kind"])
    facts = {(line["order_id"], line["kind"], line["charge_id"], line.get("refund_id", "")) for line in lines}
    assert len(stories) == 60
    assert all(story in (["charge"], ["charge", "refund"], ["void"]) for story in stories.values())
    assert all(fact_in(order, answer) in facts for order, answer in customers.told)
