"""What the handlers of payments have in common: the row of an order, its announcement, and whose fault a failure is."""

from __future__ import annotations

import re
from collections.abc import Awaitable

from system.database import DatabaseError, DatabaseRowError
from system.jetstream import PubAck
from system.payments.calls import ProviderCalls
from system.payments.outbox import Outbox
from system.payments.provider_client import ProviderClient
from system.payments.store import Payment, PaymentStore
from system.processing import GiveUpError, TryLaterError

ID_MAX_LENGTH = 240
"""The provider takes keys of up to 255 characters, and the key of a refund has a prefix."""

_ID = re.compile(rf"[\x21-\x7e]{{1,{ID_MAX_LENGTH}}}")


class PaymentWork:
    """Base of those who handle deliveries; errors are those of `system.processing`."""

    def __init__(self, provider: ProviderClient, calls: ProviderCalls, store: PaymentStore, outbox: Outbox) -> None:
        self._provider = provider
        self._calls = calls
        self._store = store
        self._outbox = outbox

    async def recorded(self, order_id: str) -> Payment | None:
        """The row of an order, if there is one."""
        try:
            return await self._store.find(order_id)
        except DatabaseError as error:
            raise _unstored(order_id, error) from None

    async def record(self, payment: Payment) -> None:
        """Write the row; durable when this returns."""
        try:
            await self._store.record(payment)
        except DatabaseError as error:
            raise _unstored(payment.order_id, error) from None

    def announce(self, payment: Payment) -> Awaitable[PubAck]:
        """Publish PaymentProcessed; done with the server's ack."""
        return self._outbox.announce(payment)


def is_order_id(order_id: str) -> bool:
    """True for what an order of ours may be called: it becomes a header of requests and of messages."""
    return _ID.fullmatch(order_id) is not None


def check_id(order_id: str) -> None:
    """Raise `GiveUpError` for an id that no order of ours has."""
    if not is_order_id(order_id):
        raise GiveUpError(
            f"order {order_id[:ID_MAX_LENGTH]!r}: an id must be 1 to {ID_MAX_LENGTH} visible ASCII characters"
        )


def _unstored(order_id: str, error: DatabaseError) -> GiveUpError | TryLaterError:
    """Whose fault it is that the table could not be used: the message's, or the database's."""
    if isinstance(error, DatabaseRowError):
        return GiveUpError(f"order {order_id} cannot be recorded: {error}")
    return TryLaterError(f"order {order_id} is not recorded yet: {error}")
