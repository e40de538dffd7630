"""Orders tells every tenth customer that the order is refused, after it has published it.

The order is charged and PAID, and the customer places it somewhere else.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from system.orders.intake import Intake, NewOrder

TARGET = "orders"
EXPERIMENT = "payments-partition"
EXPECTED = ("I4",)

_EVERY = 10


def plant() -> None:
    """Refuse what was accepted."""
    from system.orders.intake import ConflictError
    from system.orders.intake import Intake as Planted

    accept_honestly = Planted.accept
    numbers = itertools.count(1)

    async def accept(self: Intake, new: NewOrder) -> str:
        status = await accept_honestly(self, new)
        if next(numbers) % _EVERY == 0:
            raise ConflictError
        return status

    Planted.accept = accept  # type: ignore[method-assign]  # planting is what this file is for
