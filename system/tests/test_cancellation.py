"""The story of one cancellation, and its race with the charge (P13): never charged, or refunded once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace

from system.database import DatabaseError
from system.events import PaymentStatus
from system.jetstream import PublishUnknownError
from system.payments.outbox import REPEAT_WITHIN_S
from system.payments.provider_client import (
    Captured,
    Declined,
    ProviderRefusedError,
    ProviderUnavailableError,
    Refunded,
    RefundOutcome,
    Voided,
)
from system.tests.payments_desk import CANCELLATION, Desk
from system.tests.races import Play

REFUNDED = Refunded(refund_id="re_1", charge_id="ch_1")
AWAY = ProviderUnavailableError("the provider answered 503", reason="server_error")
REFUND = "refund refund:o1 of 1250 EUR"


async def test_a_paid_order_is_refunded_recorded_announced_and_acked_in_this_order() -> None:
    """P9, for undoing."""
    desk = Desk(REFUNDED)
    await desk.record("PAID", announced_s_ago=1.0)

    assert await desk.cancellation() == [f"{REFUND} 1", "record REFUNDED", "announce payment-refunded:o1", "ack"]
    (event,) = desk.speaker.announced
    assert (event.status, event.payment_id, event.refund_id) == (PaymentStatus.REFUNDED, "ch_1", "re_1")
    assert (event.amount_minor, event.reason) == (1250, "changed my mind")
    row = await desk.row()
    assert row is not None
    assert (row.status, row.charge_id, row.refund_id) == ("REFUNDED", "ch_1", "re_1")
    assert (desk.count("refunds", "refunded"), desk.count("payments", "REFUNDED")) == (1, 1)


async def test_an_order_that_was_not_charged_is_ruled_out_and_stays_so() -> None:
    """The provider will refuse the charge; here it is not even asked for."""
    desk = Desk(Voided())

    assert await desk.cancellation() == [f"{REFUND} 1", "record CANCELLED", "announce payment-cancelled:o1", "ack"]
    (event,) = desk.speaker.announced
    assert (event.status, event.payment_id, event.reason) == (PaymentStatus.CANCELLED, "", "changed my mind")
    assert await desk.order() == ["announce payment-cancelled:o1", "ack"]


async def test_a_declined_order_has_nothing_to_undo() -> None:
    """Whether that is recorded here or only the provider knows."""
    desk = Desk()
    await desk.record("DECLINED")
    assert await desk.cancellation() == ["ack"]

    desk = Desk(Declined(reason="the card had been declined"))
    assert await desk.cancellation() == [f"{REFUND} 1", "ack"]
    assert await desk.row() is None


@pytest.mark.parametrize(("status", "word"), [("REFUNDED", "refunded"), ("CANCELLED", "cancelled")])
async def test_what_is_undone_already_is_announced_without_asking_the_provider(status: str, word: str) -> None:
    """And with the reason, which only the cancellation knows; long after, it is only acked."""
    desk = Desk()
    await desk.record(status)
    assert await desk.cancellation() == [f"announce payment-{word}:o1", "ack"]
    assert desk.speaker.announced[0].reason == "changed my mind"

    await desk.record(status, announced_s_ago=REPEAT_WITHIN_S + 5)
    assert await desk.cancellation() == ["ack"]


async def test_a_refund_after_the_charge_was_announced_is_announced_by_itself() -> None:
    """The note of the first announcement is not one of the second."""
    desk = Desk(Captured(charge_id="ch_1", replayed=False), REFUNDED)
    await desk.order()
    await desk.cancellation()

    assert [event.status for event in desk.speaker.announced] == [PaymentStatus.PAID, PaymentStatus.REFUNDED]
    row = await desk.row()
    assert row is not None
    assert row.announced_at_ns is not None


async def test_a_late_note_of_the_charge_is_not_taken_for_one_of_the_refund() -> None:
    """Notes are written together, later; the row may have moved on."""
    desk = Desk()
    await desk.record("PAID")
    paid = await desk.row()
    assert paid is not None
    await desk.store.record(structs.replace(paid, status="REFUNDED", refund_id="re_1"))
    desk.store.note_announced(paid)
    await desk.store.flush(within_s=5.0)

    row = await desk.row()
    assert row is not None
    assert (row.status, row.announced_at_ns) == ("REFUNDED", None)


async def test_a_cancellation_that_does_not_say_how_much_waits_for_the_charge() -> None:
    """As one from an older producer; a dead letter it is never."""
    desk = Desk(REFUNDED)
    silent = replace(CANCELLATION, amount_minor=0, currency="")
    for _ in range(5):
        assert await desk.cancellation(silent) == ["nak for 0 s"]

    await desk.record("PAID")
    assert (await desk.cancellation(silent))[0] == f"{REFUND} 1"


async def test_the_amount_is_that_of_the_charge_if_there_was_one() -> None:
    """Whatever the cancellation says."""
    desk = Desk(REFUNDED)
    await desk.record("PAID")

    assert (await desk.cancellation(replace(CANCELLATION, amount_minor=1)))[0] == f"{REFUND} 1"


async def test_a_provider_that_stays_away_a_database_or_a_broker_that_do_hand_it_back() -> None:
    """P14: an outage is never a reason for a dead letter."""
    desk = Desk(AWAY, AWAY, AWAY, REFUNDED, REFUNDED)
    assert (await desk.cancellation())[-1] == "nak for 0 s"
    desk.database.read_failure = DatabaseError("gone")
    assert await desk.cancellation() == ["nak for 0 s"]
    desk.database.read_failure = None
    desk.database.write_failure = DatabaseError("full")
    assert (await desk.cancellation())[-1] == "nak for 0 s"
    desk.database.write_failure = None
    desk.speaker.failure = PublishUnknownError("no ack")
    assert (await desk.cancellation())[-1] == "nak for 0 s"
    desk.speaker.failure = None
    assert await desk.cancellation() == ["announce payment-refunded:o1", "ack"]


async def test_a_refund_that_the_provider_will_never_make_is_a_dead_letter() -> None:
    """As over another amount than was charged."""
    desk = Desk(ProviderRefusedError("the provider answered 422"))
    story = await desk.cancellation()

    assert story[1] == "bury as poison: order o1: the provider refuses for good: the provider answered 422"


@pytest.mark.parametrize("said", [Voided(), Declined(reason="the card had been declined")])
async def test_a_provider_that_forgot_money_it_took_is_a_matter_for_people(said: RefundOutcome) -> None:
    """P13: the order is paid, and nobody may say that it is undone, nor forget that somebody asked for it."""
    desk = Desk(said, REFUNDED)
    await desk.record("PAID")

    assert (await desk.cancellation())[-1].startswith("nak")
    assert (await desk.row()) is not None
    assert (await desk.cancellation())[-2:] == ["announce payment-refunded:o1", "ack"]


async def test_an_undecodable_cancellation_is_a_dead_letter() -> None:
    """And one whose order has an id that no order of ours has."""
    desk = Desk()
    assert (await desk.deliver(desk.cancellations, "orders.cancelled", b"\xff"))[0].startswith("bury as poison")
    assert (await desk.cancellation(replace(CANCELLATION, order_id="a b")))[0].startswith("bury as poison")


# The race.


async def test_a_cancellation_that_meets_the_charge_on_its_way_to_the_disk_refunds_it() -> None:
    """The provider lets the refund wait until it knows what it is about."""
    play = Play()
    await play.deliver("orders.created")
    await play.go_on("/charges arrives")
    await play.deliver("orders.cancelled")
    await play.go_on("/refunds arrives")
    assert play.stage.waiting == ["the ledger syncs"]
    await play.end_well()

    assert play.kinds() == {"charge": 1, "refund": 1}
    assert play.announced() == ["PAID", "REFUNDED"]
    await play.close()


async def test_a_charge_that_is_recorded_after_its_refund_does_not_bring_the_money_back() -> None:
    """The two commits overtake each other; both are announced, and the row says REFUNDED."""
    play = Play(replicas=2, share_a_table=True)
    await play.deliver("orders.created", to=0)
    for what in ("/charges arrives", "the ledger syncs", "the answer to /charges arrives"):
        await play.go_on(what)
    await play.deliver("orders.cancelled", to=1)
    for what in ("/refunds arrives", "the ledger syncs", "the answer to /refunds arrives"):
        await play.go_on(what)
    assert play.stage.waiting == ["the table commits", "the table commits"]
    await play.stage.go_on(1)
    assert await play.recorded() == {"REFUNDED"}
    await play.end_well()

    assert play.announced() == ["PAID", "REFUNDED"]
    assert await play.recorded() == {"REFUNDED"}
    await play.close()


async def test_a_charge_that_arrives_after_the_cancellation_was_carried_out_is_never_made() -> None:
    """It was sent before, by a process that is dead by now."""
    play = Play()
    await play.deliver("orders.created")
    await play.kill()
    await play.deliver("orders.cancelled")
    await play.go_on("/refunds arrives")
    await play.go_on("the ledger syncs")
    assert play.kinds() == {"void": 1}
    await play.go_on("/charges arrives")
    await play.end_well()

    assert play.kinds() == {"void": 1}
    assert play.announced() == ["CANCELLED"]
    await play.close()


async def test_a_refund_whose_answer_was_lost_with_the_process_is_not_made_twice() -> None:
    """The other replica, with a table of its own that knows nothing, asks again under the same key."""
    play = Play(replicas=2)
    await play.deliver("orders.created", to=0)
    await play.go_on("/charges arrives")
    await play.go_on("the ledger syncs")
    await play.deliver("orders.cancelled", to=1)
    await play.go_on("/refunds arrives")
    await play.go_on("the ledger syncs")
    await play.kill(0)
    await play.kill(1)
    await play.deliver("orders.cancelled", to=0)
    await play.end_well()

    assert play.kinds() == {"charge": 1, "refund": 1}
    assert play.announced() == ["PAID", "REFUNDED"]
    await play.close()


BAD_MAX = 6


@settings(max_examples=400, deadline=None)
@given(
    choices=st.lists(st.integers(0, 2**16), max_size=70),
    is_declined=st.booleans(),
    replicas=st.integers(1, 2),
    share_a_table=st.booleans(),
)
def test_whatever_the_interleaving_and_whoever_dies_money_moves_at_most_once_each_way(
    choices: Sequence[int], is_declined: bool, replicas: int, share_a_table: bool
) -> None:
    """P2, P3, P13: charge and cancellation in every order, with up to six losses, failures and deaths.

    What is announced never runs ahead of the ledger (`races.Stream` sees to that), and in the end it says exactly what
    the ledger says.
    """

    async def run() -> tuple[Counter[str], list[str], set[str]]:
        play = Play(amount_minor=1213 if is_declined else 1250, replicas=replicas, share_a_table=share_a_table)
        bad_left = BAD_MAX
        try:
            for number in choices:
                bad_left -= await play.choose(number, bad_left=bad_left)
                kinds = play.kinds()
                assert max(kinds.values(), default=0) <= 1, kinds
                assert not {"charge", "void"} <= kinds.keys(), kinds
            await play.end_well()
            return play.kinds(), play.announced(), await play.recorded()
        finally:
            await play.close()

    kinds, announced, recorded = asyncio.run(run())
    match announced:
        case ["CANCELLED"]:
            assert (kinds, recorded) == ({"void": 1}, {"CANCELLED"})
        case ["DECLINED"]:
            assert is_declined
            assert (kinds, recorded) == ({"decline": 1}, {"DECLINED"})
        case ["PAID", "REFUNDED"]:
            assert not is_declined
            assert kinds == {"charge": 1, "refund": 1}
            # A replica with a table of its own that heard of the charge alone knows no better, and need not.
            assert recorded - {"PAID"} == {"REFUNDED"}
            assert recorded == {"REFUNDED"} or (replicas > 1 and not share_a_table)
        case _:
            raise AssertionError(f"{announced} is announced, the ledger has {kinds}")
