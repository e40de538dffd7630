"""Money: an amount is a whole number of hundredths of its currency, and a double only where it enters.

Promises that an amount accepted here converts to a double and back without changing. Every currency is taken to have
two decimals; currencies with none or three are not told apart.
"""

from __future__ import annotations

import math

AMOUNT_MAX = 1_000_000.0
"""The largest order, in units of the currency."""

MINOR_PER_UNIT = 100
DEFAULT_CURRENCY = "EUR"

# A double holds 1,000,000.00 to about 1e-10; sums of a few prices are off by a few units in the last place. One part in
# 10**12 forgives those and nothing that a person would call a third decimal.
_RELATIVE_TOLERANCE = 1e-12
_CODE_LETTERS = 3


class AmountError(ValueError):
    """This is no amount an order can have; the message says why."""


def minor_from_total(total_amount: float) -> int:
    """Hundredths in a finite positive double with at most two decimals; `AmountError` otherwise."""
    if not math.isfinite(total_amount):
        raise AmountError("total_amount is not a finite number")
    if total_amount <= 0:
        raise AmountError("total_amount must be above 0")
    if total_amount > AMOUNT_MAX:
        raise AmountError(f"total_amount must be at most {AMOUNT_MAX:.0f}")
    minor = round(total_amount * MINOR_PER_UNIT)
    if minor < 1 or not math.isclose(total_from_minor(minor), total_amount, rel_tol=_RELATIVE_TOLERANCE):
        raise AmountError("total_amount must have at most 2 decimals")
    return minor


def total_from_minor(amount_minor: int) -> float:
    """The double nearest to this many hundredths."""
    return amount_minor / MINOR_PER_UNIT


def is_currency(code: str) -> bool:
    """True for three capital letters, the form of an ISO 4217 code; whether such a currency exists is not checked."""
    return len(code) == _CODE_LETTERS and code.isascii() and code.isalpha() and code.isupper()
