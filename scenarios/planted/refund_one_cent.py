"""The provider gives one cent back, whatever was charged.

Everybody says REFUNDED, and there is a refund for every order that does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from system.provider.cashier import Cashier, RefundRequest
    from system.provider.ledger import Entry, Kind

TARGET = "provider"
EXPERIMENT = "cancel-race"
EXPECTED = ("I15",)


def plant() -> None:
    """Book another amount."""
    from system.provider.cashier import Cashier as Planted

    as_asked = Planted._undoing

    def undoing(self: Cashier, request: RefundRequest, kind: Kind, **more: str) -> Entry:
        entry = as_asked(self, request, kind, **more)
        return msgspec.structs.replace(entry, amount_minor=1) if kind == "refund" else entry

    Planted._undoing = undoing  # type: ignore[method-assign]  # planting is what this file is for
