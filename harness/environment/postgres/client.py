"""The little that the harness itself asks of PostgreSQL: is it ready, whose password is it, which databases are there.

Promises: everything is bounded; what the server refuses becomes an EnvironmentFailedError that names the server and
never a password.

Does not: import asyncpg before a statement is asked for; asking whether the server is ready needs eight bytes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import secrets
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.errors import EnvironmentFailedError

if TYPE_CHECKING:
    import asyncpg

MAINTENANCE_DATABASE = "postgres"
"""The database that is always there."""

READY_TIMEOUT_S = 1.0
STATEMENT_WITHIN_S = 20.0
ANSWER_BYTES_MAX = 64 * 1024

_PROTOCOL = 3 << 16
_SCRAM_ITERATIONS = 4096
_SCRAM_SALT_BYTES = 16


async def why_not_serving(address: str, timeout_s: float = READY_TIMEOUT_S) -> str | None:
    """None when a PostgreSQL server asks a client to log in, which it does once it is done with its recovery.

    An answer to SSLRequest would say less: the server gives it while it still recovers.
    """
    host, _, port = address.rpartition(":")
    parameters = f"user\0nobody\0database\0{MAINTENANCE_DATABASE}\0\0".encode()
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, int(port), limit=ANSWER_BYTES_MAX)
            try:
                writer.write(struct.pack("!II", 8 + len(parameters), _PROTOCOL) + parameters)
                await writer.drain()
                kind = await reader.readexactly(1)
                if kind != b"E":
                    return None if kind == b"R" else f"PostgreSQL at {address}: answered {kind!r} to a login"
                (length,) = struct.unpack("!I", await reader.readexactly(4))
                fields = (await reader.readexactly(min(length - 4, ANSWER_BYTES_MAX))).split(b"\0")
            finally:
                writer.transport.abort()
    except TimeoutError:
        return f"PostgreSQL at {address}: no answer within {timeout_s:g} s"
    except asyncio.IncompleteReadError:
        return f"PostgreSQL at {address}: the connection was closed without an answer"
    except OSError as error:
        why = os.strerror(error.errno).lower() if error.errno else str(error)
        return f"PostgreSQL at {address}: {why}"
    words = next((each[1:] for each in fields if each.startswith(b"M")), b"an error without words")
    return f"PostgreSQL at {address}: {words.decode('utf-8', 'replace')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresLogin:
    """A user's way into one server."""

    address: str
    user: str
    password: str = field(repr=False)

    async def change_password(self, password: str) -> None:
        """Give the user another one. What crosses the wire is its verifier, so that no log can hold the password."""
        async with self.connection() as connection:
            await connection.execute(f"ALTER ROLE {self.user} PASSWORD '{_scram_verifier(password)}'")

    async def create_databases(self, *names: str) -> None:
        """Make those that are missing, empty."""
        async with self.connection() as connection:
            rows = await connection.fetch("SELECT datname FROM pg_database")
            for name in sorted(set(names) - {row[0] for row in rows}):
                await connection.execute(f'CREATE DATABASE "{name}"')

    async def drop_databases(self, *names: str) -> None:
        """Remove those that are there, and end whoever is connected to them."""
        async with self.connection() as connection:
            for name in names:
                await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection to the maintenance database, for the scope.

        Raises EnvironmentFailedError, without what was sent, when the server does not do as asked within
        `STATEMENT_WITHIN_S` seconds or lets nobody in, and when asyncpg is not installed.
        """
        try:
            import asyncpg  # noqa: PLC0415 - 70 ms, and an extra
        except ImportError:
            raise EnvironmentFailedError(
                'PostgreSQL is spoken to through asyncpg: pip install "stormproof[postgres]"'
            ) from None
        host, _, port = self.address.rpartition(":")
        try:
            async with asyncio.timeout(STATEMENT_WITHIN_S):
                connection = await asyncpg.connect(
                    host=host,
                    port=int(port),
                    user=self.user,
                    password=self.password,
                    database=MAINTENANCE_DATABASE,
                    ssl=False,
                )
                try:
                    yield connection
                    await connection.close()
                finally:
                    connection.terminate()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            # The context is cut: asyncpg's own words may quote the statement.
            words = str(error) or type(error).__name__
            raise EnvironmentFailedError(f"PostgreSQL at {self.address} would not do as asked: {words}") from None


def _scram_verifier(password: str) -> str:
    # As `\password` of psql makes it (RFC 5803).
    salt = secrets.token_bytes(_SCRAM_SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{salt64}${stored64}:{server64}"
