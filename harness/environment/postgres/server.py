"""The real PostgreSQL of a run, on whatever host runs it.

Promises: loopback only, nobody is let in without the run's own password, own data directory that survives `kill` and
`start` within the run, what is committed is synced (`fsync` stays on: durability is what is tested here), ready means
that recovery is over and the databases are there; nothing of it outlives the run, its children and shared memory
included.

Does not: use a Unix socket (a proxy must be able to stand before it), or keep the password anywhere but in a private
file; in the server it is a SCRAM verifier.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from harness.environment.host import ProcessHost
from harness.environment.parts import HostedPart
from harness.environment.postgres.binary import PostgresInstallation, find_postgres
from harness.environment.postgres.client import MAINTENANCE_DATABASE, PostgresLogin, why_not_serving
from harness.environment.postgres.template import INITDB_OPTIONS, SUPERUSER, copy_template
from harness.environment.private_files import write_private
from harness.environment.processes.family_host import FamilyHost
from harness.environment.processes.servant import hand_over, kept, open_the_way
from harness.environment.processes.supervised import Command
from harness.environment.topology import DATABASE
from harness.errors import EnvironmentFailedError, UsageError

START_WITHIN_S = 30.0
"""Recovery after a kill replays what was not yet checkpointed, a few seconds of it at most."""

STOP_GRACE_S = 10.0

_DATABASE_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,62}")
_STATUS_LINE = 7

# In a container: the data directory ($1) is made by the image's own version, and $2 says that it was made whole.
_INITIALISE_AND_RUN = """set -e
[ -e "$2" ] || { initdb -D "$1" --pwfile="$3" --no-sync $4 && : > "$2"; }
shift 4
exec postgres "$@"
"""


class PostgresServer(HostedPart):
    """The database server of a run. Its name is the database's role, `postgres`."""

    def __init__(
        self,
        *,
        host: ProcessHost,
        address: str,
        password: str,
        directory: Path,
        log_path: Path,
        environment: Mapping[str, str],
        databases: Sequence[str] = (),
        image: str | None = None,
        progress: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """directory: belongs to this server alone. databases: those that `start` makes when they are missing.

        image: what a container host runs it in; None for the PostgreSQL of this machine. Afterwards `pgpass` is a
        private file that psql and others take the password from (PGPASSFILE).
        """
        for name in databases:
            _check_name(name)
        super().__init__(name=DATABASE, host=FamilyHost(host))
        self.address = address
        self.pgpass = directory / "pgpass"
        self._password = password
        self._databases = tuple(databases)
        self._directory = directory
        self._home = directory / "home"
        self._data = self._home / "data"
        self._pid_file = self._data / "postmaster.pid"
        self._log_path = log_path
        self._environment = environment
        self._image = image
        self._progress = progress
        self._installation: PostgresInstallation | None = None
        self._first_password: str | None = None

    def url(self, database: str = MAINTENANCE_DATABASE) -> str:
        """`postgresql://user:password@host:port/database`, past every proxy. It holds the password: never show it."""
        return f"postgresql://{SUPERUSER}:{quote(self._password, safe='')}@{self.address}/{_check_name(database)}"

    @property
    def login(self) -> PostgresLogin:
        """The superuser's way in, past every proxy."""
        return self._login(self._password)

    async def start(self) -> None:
        """Start it, on the data it left, if any, and wait until it serves; makes the databases that are missing."""
        await self.host.start(await self._command())
        await self.wait_ready()
        if self._first_password is not None:
            await self._login(self._first_password).change_password(self._password)
            self._first_password = None
        if self._databases:
            await self.login.create_databases(*self._databases)

    async def wait_ready(self) -> None:
        """Wait until a client would be served: the server is up and done with its recovery."""
        await self.host.wait_ready(self.name, self._why_not_ready, within_s=START_WITHIN_S)

    async def create_database(self, name: str) -> str:
        """Make an empty database unless it is there; returns its URL."""
        url = self.url(name)
        await self.login.create_databases(name)
        return url

    async def drop_database(self, name: str) -> None:
        """Remove a database and end whoever is connected to it; nothing when it is not there."""
        await self.login.drop_databases(_check_name(name))

    async def _prepare(self) -> PostgresInstallation:
        if self._installation is None:
            self._make_home()
            open_the_way(self._directory)
            try:
                found = (await find_postgres(self._progress)).open_to_servant(self._directory)
            except OSError as error:
                raise EnvironmentFailedError(f"cannot prepare {self._directory}: {error.strerror}") from error
            self._first_password = await copy_template(found, self._data, progress=self._progress)
            self._installation = found
        return self._installation

    def _make_home(self) -> None:
        try:
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            hand_over(self._home)
        except OSError as error:
            raise EnvironmentFailedError(f"cannot prepare {self._home}: {error.strerror}") from error
        host, _, port = self.address.rpartition(":")
        write_private(self.pgpass, f"{host}:{port}:*:{SUPERUSER}:{self._password}\n")

    async def _command(self) -> Command:
        if self._image is not None:
            return self._command_in(self._image)
        installation = await self._prepare()
        program = (str(installation.directory / "postgres"), *self._options())
        return self._made_command(kept(program, pid_file=self._pid_file))

    def _command_in(self, image: str) -> Command:
        self._make_home()
        is_made, password = self._home / "initialised", self._home / "password"
        if not is_made.exists():
            shutil.rmtree(self._data, ignore_errors=True)  # whoever was killed over it left half of one
        write_private(password, self._password)
        hand_over(password)
        arguments = (str(self._data), str(is_made), str(password), " ".join(INITDB_OPTIONS), *self._options())
        return self._made_command(("sh", "-c", _INITIALISE_AND_RUN, self.name, *arguments), image=image)

    def _options(self) -> tuple[str, ...]:
        host, _, port = self.address.rpartition(":")
        settings = {
            "listen_addresses": host,
            "port": port,
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # files of its directory, which go with the run, not of /dev/shm
            "log_min_messages": "warning",
        }
        words = (word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        return ("-D", str(self._data), *words)

    def _made_command(self, argv: tuple[str, ...], *, image: str | None = None) -> Command:
        return Command(
            name=self.name,
            argv=argv,
            environment=self._environment,
            log_path=self._log_path,
            stop_grace_s=STOP_GRACE_S,
            directory=self._home,
            image=image,
        )

    async def _why_not_ready(self) -> str | None:
        # The server says in its own file how far it is. Asked over the network it would log a refusal each time, and
        # after seconds of recovery nothing else would stand in the tail of its log.
        try:
            status = self._pid_file.read_text().splitlines()[_STATUS_LINE].strip()
        except (OSError, IndexError):
            status = "not there yet"
        return await why_not_serving(self.address) if status == "ready" else f"PostgreSQL is {status}"

    def _login(self, password: str) -> PostgresLogin:
        return PostgresLogin(address=self.address, user=SUPERUSER, password=password)


def _check_name(name: str) -> str:
    if not _DATABASE_NAME.fullmatch(name):
        raise UsageError(f"database name {name!r} is not a lower-case word ([a-z_][a-z0-9_-]*, at most 63 characters)")
    return name
