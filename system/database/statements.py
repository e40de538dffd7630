"""What is said to a database: statements, rows, and the steps that a schema is made by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

Value = str | int | float | bytes | None
Row = Sequence[Value]
"""The parameters of one execution: as many as the statement has placeholders."""

# Quoted text and comments are stepped over.
_PLACEHOLDER = re.compile(r"""'[^']*'|"[^"]*"|--[^\n]*|\$(\d+)""")


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """One SQL statement with placeholders `$1`, `$2`, ...; the same text on SQLite and on PostgreSQL.

    key: the number of the placeholder that says which row of the table it is about. Writes about one key are carried
    out in the order they were asked for, whatever their statements, and writes about different keys may overtake each
    other. None: nothing overtakes it, and it overtakes nothing. PostgreSQL wants the key: without one, every change of
    statement is a transaction of its own, and several processes that write the same rows get into each other's way.

    Of a statement that reads, the key is its only placeholder and the first column of what it finds. Reads by key that
    wait at the same time share a round trip to PostgreSQL.

    Statements are told apart by identity: make each once, as a constant. sqlite: the text as SQLite needs it.
    """

    sql: str
    key: int | None = None
    sqlite: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        count = max((int(number) for number in _PLACEHOLDER.findall(self.sql) if number), default=0)
        if self.key is not None and not 1 <= self.key <= count:
            raise ValueError(f"key={self.key} is none of the {count} placeholders of {self.sql.strip()!r}")
        # To SQLite `$1` is a name, numbered as it first appears; `?1` is a number.
        text = _PLACEHOLDER.sub(lambda found: f"?{found[1]}" if found[1] else found[0], self.sql)
        object.__setattr__(self, "sqlite", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step of a schema, as SQL for each kind of database; it is carried out whole or not at all.

    Its number is its place in the sequence that `open_database` is given, from 1. A step that was released never
    changes. SQL: statements that each end with a semicolon, without BEGIN and COMMIT.
    """

    sqlite: str
    postgres: str
