"""What can go wrong with a database, told apart by what it says about the rows."""

from __future__ import annotations

from system.errors import StartError


class DatabaseOpenError(StartError):
    """The database cannot be used."""


class DatabaseError(Exception):
    """The rows are certainly not stored, unless it is a `DatabaseUnknownError`; later it may work."""


class DatabasePartError(DatabaseError):
    """Some of what was written together is in the way, and the rest is not harmed: trying halves tells them apart."""


class DatabaseRowError(DatabasePartError):
    """These rows are refused, and will be however often they are tried; others written with them are not harmed."""


class DatabaseStatementError(DatabasePartError):
    """This statement cannot be carried out now (its table is not there, or rights were taken away); others can."""


class DatabaseConflictError(DatabaseError):
    """The rows got into the way of somebody else's transaction and are not stored; at once they may be."""


class DatabaseUnknownError(DatabaseError):
    """Nobody can tell whether the rows are stored, or will be yet: the answer to their commit was lost."""
