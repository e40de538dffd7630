"""The tables of `evidence.duckdb`, derived from the record classes.

A table is a class of `harness.records`; its columns are the class's fields in order. There is no second place where a
column is spelled, so rows, DDL and documentation cannot drift apart.
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass, fields

from harness import records
from harness.records import SpanId, TraceId

TABLES: dict[str, type[records.Row]] = {
    "operations": records.Operation,
    "spans": records.Span,
    "span_links": records.SpanLink,
    "span_events": records.SpanEvent,
    "messages": records.Message,
    "consumers": records.Consumer,
    "advisories": records.Advisory,
    "ledger": records.LedgerEntry,
    "states": records.State,
    "faults": records.FaultWindow,
    "processes": records.ProcessEvent,
    "loads": records.LoadSummary,
    "channels": records.Channel,
}

FORMAT = 2
"""Number of the evidence format, kept in the table `format`; a file of another number is refused, not guessed at."""

_SQL_TYPES: dict[object, str] = {
    TraceId: "UUID",
    SpanId: "UBIGINT",
    int: "BIGINT",
    str: "VARCHAR",
    float: "DOUBLE",
    bool: "BOOLEAN",
    records.Outcome: "VARCHAR",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: its name, SQL type, and whether a row may leave it empty."""

    name: str
    sql_type: str
    nullable: bool


def columns_of(record: type[records.Row]) -> tuple[Column, ...]:
    """Return the columns of the table that holds these records."""
    hints = typing.get_type_hints(record)
    return tuple(_column(field.name, hints[field.name]) for field in fields(record))


def table_of(record: type[records.Row]) -> str:
    """Return the table's name for a record class."""
    return next(name for name, each in TABLES.items() if each is record)


def ddl() -> str:
    """Return the statements that create every table, empty."""
    statements = [f"CREATE TABLE format AS SELECT {FORMAT}::INTEGER AS number;"]
    for name, record in TABLES.items():
        columns = ", ".join(
            f"{column.name} {column.sql_type}{'' if column.nullable else ' NOT NULL'}" for column in columns_of(record)
        )
        statements.append(f"CREATE TABLE {name} ({columns});")
    return "\n".join(statements)


def _column(name: str, hint: object) -> Column:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [each for each in typing.get_args(hint) if each is not type(None)]
        return Column(name=name, sql_type=_SQL_TYPES[inner[0]], nullable=True)
    return Column(name=name, sql_type=_SQL_TYPES[hint], nullable=False)
