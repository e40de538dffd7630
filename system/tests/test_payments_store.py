"""The payments table, on SQLite and on PostgreSQL: one row per order, and the first outcome stays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from system.database import Database, DatabaseError, Migration
from system.payments.store import MIGRATIONS, NOTES_MAX, Payment, PaymentStore
from system.tests.parts import wait_until_it
from system.tests.payments_desk import InMemory

PAID = Payment("o1", "PAID", "ch_1", "", 1250, "EUR", "", 5)
DECLINED = Payment("o1", "DECLINED", "", "", 1250, "EUR", "no money", 6)
CANCELLED = Payment("o1", "CANCELLED", "", "", 1250, "EUR", "changed my mind", 7)
REFUNDED = Payment("o1", "REFUNDED", "ch_1", "re_1", 1250, "EUR", "changed my mind", 8)


@pytest.fixture
def migrations() -> Sequence[Migration]:
    """The schema of payments."""
    return MIGRATIONS


@pytest.fixture
def store(database: Database) -> PaymentStore:
    """The table in a database of either kind."""
    return PaymentStore(database)


@pytest.mark.parametrize("payment", [PAID, DECLINED, CANCELLED, REFUNDED], ids=lambda payment: payment.status)
async def test_what_is_recorded_is_found_as_it_was(store: PaymentStore, payment: Payment) -> None:
    """Every column."""
    assert await store.find("o1") is None
    await store.record(payment)
    assert await store.find("o1") == payment


async def test_one_order_has_one_row_and_the_first_outcome_stays(store: PaymentStore) -> None:
    """P8: a webhook, an answer, another replica: whoever comes second changes nothing."""
    await store.record(PAID)
    for other in (structs.replace(PAID, charge_id="ch_2", decided_at_ns=9), DECLINED, CANCELLED):
        await store.record(other)
    assert await store.find("o1") == PAID


async def test_paid_becomes_refunded_and_nothing_becomes_paid_again(store: PaymentStore) -> None:
    """P8; and the refund is to be announced though the charge was."""
    await store.record(PAID)
    store.note_announced(PAID)
    await store.flush(within_s=5.0)
    await store.record(REFUNDED)
    assert await store.find("o1") == REFUNDED

    await store.record(PAID)
    assert await store.find("o1") == REFUNDED


@pytest.mark.parametrize("final", [DECLINED, CANCELLED], ids=lambda payment: payment.status)
async def test_what_was_never_paid_is_never_refunded(store: PaymentStore, final: Payment) -> None:
    """The provider would not say so either."""
    await store.record(final)
    await store.record(REFUNDED)
    assert await store.find("o1") == final


async def test_many_who_record_the_same_order_at_once_make_one_row(store: PaymentStore) -> None:
    """The constraint decides, not luck."""
    await asyncio.gather(*(store.record(structs.replace(PAID, charge_id=f"ch_{number}")) for number in range(50)))
    row = await store.find("o1")
    assert row is not None
    assert row.charge_id == "ch_0"


async def test_many_who_ask_at_once_are_each_told_of_their_own_order(store: PaymentStore) -> None:
    """They are asked for together; some are there, some are not, and one is asked for twice."""
    for number in range(0, 150, 2):
        await store.record(structs.replace(PAID, order_id=f"o{number}"))
    ids = [f"o{number}" for number in range(150)] + ["o8", "o9"]

    found = await asyncio.gather(*(store.find(order_id) for order_id in ids))

    assert [row and row.order_id for row in found] == [None if int(each[1:]) % 2 else each for each in ids]


async def test_whoever_asks_in_vain_is_told_why_and_whoever_goes_away_hinders_nobody() -> None:
    """A failure is everybody's who asked with it, and nobody's who asks later."""
    database = InMemory()
    store = PaymentStore(database)
    database.read_failure = DatabaseError("gone")
    asking = [asyncio.create_task(store.find(f"o{number}")) for number in range(3)]
    await asyncio.sleep(0)
    asking[1].cancel()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers] == [DatabaseError, asyncio.CancelledError, DatabaseError]

    database.read_failure = None
    assert await store.find("o1") is None
    database.close()


async def test_a_status_that_is_none_is_refused_by_the_table(store: PaymentStore) -> None:
    """Nothing unknown can be stored as an outcome."""
    with pytest.raises(DatabaseError):
        await store.record(structs.replace(PAID, status="MAYBE"))
    assert await store.find("o1") is None


async def test_an_announcement_is_noted_soon_by_itself(store: PaymentStore) -> None:
    """Nobody waits for it."""
    await store.record(PAID)
    store.note_announced(PAID)

    async def is_noted() -> bool:
        row = await store.find("o1")
        return row is not None and row.announced_at_ns is not None

    await wait_until_it(is_noted, what="the note")


async def test_many_notes_are_written_at_once(store: PaymentStore) -> None:
    """Bounded: beyond `NOTES_MAX` they do not wait for the timer."""
    await store.record(PAID)
    for _ in range(NOTES_MAX + 1):
        store.note_announced(PAID)
    await store.flush(within_s=5.0)
    row = await store.find("o1")
    assert row is not None
    assert row.announced_at_ns is not None


async def test_a_note_that_fails_is_logged_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """The row stays; the next start announces again."""
    database = InMemory()
    store = PaymentStore(database)
    await store.record(PAID)
    database.write_failure = DatabaseError("the disk is full")
    store.note_announced(PAID)
    await store.flush(within_s=5.0)

    assert "could not be noted" in caplog.text
    assert await store.find("o1") == PAID
    database.close()


@settings(deadline=None)
@given(payments=st.lists(st.sampled_from([PAID, DECLINED, CANCELLED, REFUNDED]), min_size=1, max_size=8))
def test_a_row_only_ever_goes_forward(payments: Sequence[Payment]) -> None:
    """P8, whatever comes in whatever order: from nothing to one outcome, and from PAID to REFUNDED."""

    async def run() -> None:
        database = InMemory()
        store, expected = PaymentStore(database), payments[0]
        for payment in payments:
            await store.record(payment)
            if (expected.status, payment.status) == ("PAID", "REFUNDED"):
                expected = payment
            assert await store.find("o1") == expected
        database.close()

    asyncio.run(run())
