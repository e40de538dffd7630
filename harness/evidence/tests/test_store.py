"""Evidence survives the way to disk and back, and damaged evidence is never judged."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import duckdb
import pytest

from harness.errors import EvidenceDamagedError
from harness.evidence.schema import FORMAT, TABLES, columns_of, ddl
from harness.evidence.store import Evidence, EvidenceWriter
from harness.records import Channel, Operation, Outcome, Span, SpanId, TraceId

if TYPE_CHECKING:
    from pathlib import Path

PINNED = (2, "da6204fb6c9e7998")

OPERATION = Operation(
    number=1,
    kind="create",
    key="o1",
    outcome=Outcome.UNKNOWN,
    intended_ns=2**62,
    began_ns=2,
    ended_ns=None,
    trace_id=TraceId("ab" * 16),
    span_id=SpanId(2**64 - 1),
    status=None,
    detail="ä ✓",
    request="{}",
)
SPAN = Span(
    trace_id=TraceId("00" * 15 + "01"),
    span_id=SpanId(2**63),
    parent_span_id=None,
    service="s",
    instance="i",
    seq=None,
    name="n",
    kind="server",
    began_ns=1,
    ended_ns=None,
    status="unset",
    key=None,
    attributes="{}",
)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Largest ids, empty columns and text beyond ASCII included."""
    writer = EvidenceWriter(tmp_path / "evidence.duckdb")
    assert writer.write([OPERATION, SPAN, OPERATION]) == 3

    with writer.finish() as evidence:
        assert evidence.select(Operation) == [OPERATION, OPERATION]
        assert evidence.select(Span) == [SPAN]
        assert evidence.select(Channel) == []


def test_text_that_is_not_valid_unicode_does_not_lose_the_batch(tmp_path: Path) -> None:
    """One hostile string among good rows is written with a replacement character."""
    hostile = Channel(name="\udcff", expected=1, received=1, complete=True, why="")
    writer = EvidenceWriter(tmp_path / "evidence.duckdb")
    writer.write([hostile, Channel(name="good", expected=1, received=1, complete=True, why="")])

    with writer.finish() as evidence:
        assert [channel.name for channel in evidence.select(Channel)] == ["?", "good"]


def test_anyone_can_open_the_file_without_the_harness(tmp_path: Path) -> None:
    """Plain tables with the names of the documentation."""
    EvidenceWriter(tmp_path / "evidence.duckdb").finish().close()

    with duckdb.connect(str(tmp_path / "evidence.duckdb"), read_only=True) as connection:
        tables = {name for (name,) in connection.execute("SELECT table_name FROM information_schema.tables").fetchall()}

    assert tables == set(TABLES) | {"format"}


def test_evidence_that_is_being_read_cannot_be_changed(tmp_path: Path) -> None:
    """Frozen means frozen."""
    with (
        EvidenceWriter(tmp_path / "evidence.duckdb").finish() as evidence,
        pytest.raises(duckdb.Error, match="read-only"),
    ):
        evidence.query("DELETE FROM operations")


def test_evidence_that_was_never_finished_does_not_exist(tmp_path: Path) -> None:
    """A writer that died leaves nothing under the name that is judged."""
    EvidenceWriter(tmp_path / "evidence.duckdb").write([OPERATION])

    with pytest.raises(EvidenceDamagedError, match="does not exist"):
        Evidence.open(tmp_path / "evidence.duckdb")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused_with_one_sentence(tmp_path: Path, share: float) -> None:
    """Wherever it was cut: no traceback, no verdict."""
    path = tmp_path / "evidence.duckdb"
    writer = EvidenceWriter(path)
    writer.write([OPERATION] * 20_000)
    writer.finish().close()
    whole = path.read_bytes()
    path.write_bytes(whole[: round(len(whole) * share)])

    def read_to_the_end() -> None:
        with Evidence.open(path) as evidence:
            evidence.select(Operation)

    with pytest.raises(EvidenceDamagedError) as refused:
        read_to_the_end()

    assert "\n" not in str(refused.value)


def test_evidence_of_another_format_is_refused(tmp_path: Path) -> None:
    """An old file is not guessed at."""
    path = tmp_path / "evidence.duckdb"
    EvidenceWriter(path).finish().close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE format SET number = 99")

    with pytest.raises(EvidenceDamagedError, match="format"):
        Evidence.open(path)


def test_a_column_is_nullable_exactly_where_its_field_may_be_none() -> None:
    """The DDL follows the types."""
    nullable = {column.name for column in columns_of(Operation) if column.nullable}

    assert nullable == {"ended_ns", "trace_id", "span_id", "status"}


def test_a_mistake_in_a_query_is_not_taken_for_a_damaged_file(tmp_path: Path) -> None:
    """Whoever writes an invariant wants to see the mistake."""
    with EvidenceWriter(tmp_path / "evidence.duckdb").finish() as evidence, pytest.raises(duckdb.Error, match="moon"):
        evidence.query("SELECT * FROM moon")


def test_the_format_number_changes_with_the_tables() -> None:
    """An old file must be refused by its number: when this fails, raise FORMAT and pin the new digest."""
    digest = hashlib.sha256(ddl().encode()).hexdigest()[:16]

    assert (FORMAT, digest) == PINNED
