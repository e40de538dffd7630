"""The provider's ledger is whole when it is numbered without gaps to an untorn end, and says so when it is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from scenarios.shop.ledger import FILE_NAME, read_ledger_file

if TYPE_CHECKING:
    from pathlib import Path


def line(seq: int, *, order_id: str = "o1") -> str:
    """Write a charge as the provider does, with what is not ASCII as it is."""
    charge = {
        "seq": seq,
        "kind": "charge",
        "order_id": order_id,
        "charge_id": f"ch-{seq}",
        "idempotency_key": order_id,
        "amount_minor": 1250,
        "currency": "EUR",
        "at_ns": seq,
    }
    return json.dumps(charge, ensure_ascii=False) + "\n"


def written(directory: Path, text: str) -> Path:
    """Write a ledger file."""
    path = directory / FILE_NAME
    path.write_bytes(text.encode())
    return path


def test_a_ledger_numbered_without_gaps_is_complete(tmp_path: Path) -> None:
    """Every entry is there, in the order of the file."""
    reading = read_ledger_file(written(tmp_path, line(1) + line(2) + line(3)))

    assert [entry.seq for entry in reading.entries] == [1, 2, 3]
    assert (reading.channel.complete, reading.channel.expected, reading.channel.received) == (True, 3, 3)
    assert reading.channel.why == ""


def test_an_empty_ledger_is_complete(tmp_path: Path) -> None:
    """Nobody was charged."""
    reading = read_ledger_file(written(tmp_path, ""))

    assert (reading.entries, reading.channel.complete, reading.channel.expected) == ((), True, 0)


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, odd: str) -> None:
    """JSON may hold these as they are; an id with one is not two torn lines."""
    reading = read_ledger_file(written(tmp_path, line(1, order_id=f"o{odd}1") + line(2)))

    assert [entry.key for entry in reading.entries] == [f"o{odd}1", "o1"]
    assert reading.channel.complete, reading.channel.why


def test_a_gap_in_the_numbers_is_told(tmp_path: Path) -> None:
    """A charge that is not there may be the second one of an order."""
    reading = read_ledger_file(written(tmp_path, line(1) + line(3)))

    assert (reading.channel.complete, reading.channel.expected, reading.channel.received) == (False, 3, 2)
    assert reading.channel.why == "line 2 has number 3 where 2 was due"


def test_a_torn_last_line_is_told(tmp_path: Path) -> None:
    """The provider died while it wrote."""
    reading = read_ledger_file(written(tmp_path, line(1) + line(2)[:20]))

    assert [entry.seq for entry in reading.entries] == [1]
    assert not reading.channel.complete
    assert reading.channel.why == "line 2 is torn or not a ledger entry"


def test_a_missing_ledger_is_not_an_empty_one(tmp_path: Path) -> None:
    """Nothing is known of what was charged."""
    reading = read_ledger_file(tmp_path / FILE_NAME)

    assert (reading.entries, reading.channel.complete, reading.channel.expected) == ((), False, None)
    assert reading.channel.why == "there is no ledger at ledger.jsonl"


def test_money_that_moves_in_a_way_nobody_knows_makes_the_ledger_incomplete(tmp_path: Path) -> None:
    """No invariant would look at a fee; that it was overlooked must be said."""
    fee = line(2).replace('"charge"', '"fee"')

    reading = read_ledger_file(written(tmp_path, line(1) + fee))

    assert not reading.channel.complete
    assert "line 2 is torn or not a ledger entry" in reading.channel.why
