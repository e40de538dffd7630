"""Amounts: what converts to hundredths, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from system import money


@given(st.integers(min_value=1, max_value=100_000_000))
def test_every_amount_with_two_decimals_converts_exactly(minor: int) -> None:
    """The double nearest to a price gives back that price."""
    assert money.minor_from_total(money.total_from_minor(minor)) == minor


@given(st.floats())
def test_any_double_is_an_amount_within_bounds_or_refused(total: float) -> None:
    """NaN, infinities, subnormals: never anything else than an amount or an AmountError."""
    try:
        minor = money.minor_from_total(total)
    except money.AmountError:
        return
    assert 1 <= minor <= 100_000_000
    assert abs(total - minor / 100) <= 1e-6


@pytest.mark.parametrize(
    "total", [0.0, -0.0, -1.0, 0.001, 0.005, 1.234, 1_000_000.01, 1e308, float("nan"), float("inf")]
)
def test_these_are_no_amounts(total: float) -> None:
    """Nothing, less than nothing, a third decimal, too much, and what is no number."""
    with pytest.raises(money.AmountError):
        money.minor_from_total(total)


def test_a_sum_that_is_off_in_the_last_place_is_forgiven() -> None:
    """0.1 + 0.2 is 0.30000000000000004 and means 30 cents."""
    assert money.minor_from_total(0.1 + 0.2) == 30
    assert money.minor_from_total(1.1 * 3) == 330


@pytest.mark.parametrize(
    ("code", "is_one"), [("EUR", True), ("eur", False), ("EURO", False), ("", False), ("ÄÖÜ", False)]
)
def test_a_currency_is_three_capital_letters(code: str, is_one: bool) -> None:
    """The form of ISO 4217, no more."""
    assert money.is_currency(code) is is_one
