"""Loopback ports for one run: leased below the ephemeral range, so that runs at once never meet.

Promises: two leases that are held at the same time, in any process of this user, share no port; on Linux in any process
that shares our loopback, whoever's it is and wherever it keeps its temporary files. A leased port was free when it was
leased. The kernel releases a lease when its holder dies.

A lease is a lock on a file, which leaves a trace to look for, and on Linux also a name in the abstract namespace of
Unix sockets, which reaches exactly as far as a port does.

Does not: keep a stranger's program from taking a leased port between the lease and its use; the process that wants to
listen then dies at start and its log says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import random
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.environment.processes import guardian
from harness.environment.temporary import temporary_directory
from harness.errors import EnvironmentFailedError, UsageError

LOOPBACK = "127.0.0.1"
FIRST_PORT = 15_000
LAST_PORT = 31_999
PORT_MAX = 65_535
ATTEMPTS_PER_PORT = 8
ATTEMPTS_SPARE = 100
OPEN_ATTEMPTS = 100
_HAS_NAMES = sys.platform == "linux"
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class PortLease:
    """Ports held by one run until `release`; a context manager.

    directory: where the lock files lie; the default is one private directory per user under the temporary directory.
    """

    def __init__(self, *, directory: Path | None = None) -> None:
        """Hold nothing yet."""
        self._directory = directory or lock_directory()
        self._held: dict[int, tuple[int, socket.socket | None]] = {}

    def __enter__(self) -> Self:
        """Nothing to set up."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release every port."""
        self.release()

    @property
    def ports(self) -> tuple[int, ...]:
        """All ports held, in the order they were leased."""
        return tuple(self._held)

    def take(self, count: int) -> tuple[int, ...]:
        """Lease so many ports more. Raises EnvironmentFailedError when there are not that many."""
        self._make_directory()
        last = _last_port()
        # Not the run's seed on purpose: two runs with one seed at once would try the same ports in the same order.
        candidates = random.sample(range(FIRST_PORT, last + 1), ATTEMPTS_PER_PORT * count + ATTEMPTS_SPARE)
        taken: list[int] = []
        for port in candidates:
            if len(taken) == count:
                break
            if port not in self._held and self._lock(port):
                taken.append(port)
        if len(taken) < count:
            for port in taken:
                self._unlock(port)
            raise EnvironmentFailedError(
                f"only {len(taken)} of {count} loopback ports could be had between {FIRST_PORT} and {last} "
                f"in {len(candidates)} attempts; end other runs"
            )
        return tuple(taken)

    def reserve(self, address: str) -> str:
        """Lease one port that the user named, wherever it lies; returns it as `host:port`.

        Raises UsageError for what is no loopback address, EnvironmentFailedError when it is taken.
        """
        self._make_directory()
        address = ensure_free(address)
        port = split_address(address)[1]
        if port in self._held or not self._lock(port):
            raise EnvironmentFailedError(f"{address} is held by another part or run of Stormproof; choose another port")
        return address

    def release(self) -> None:
        """Give every port back; may be called twice."""
        for port in tuple(self._held):
            self._unlock(port)
        guardian.remove_unheld_locks(self._directory)

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            state = self._directory.lstat()
        except OSError as error:
            raise EnvironmentFailedError(
                f"cannot make the port lock directory {self._directory}: {error.strerror}; "
                "set TMPDIR to a directory that can be written"
            ) from error
        if state.st_uid != os.geteuid():
            raise EnvironmentFailedError(
                f"the port lock directory {self._directory} belongs to someone else; set TMPDIR"
            )

    def _lock(self, port: int) -> bool:
        path = self._directory / str(port)
        descriptor = self._open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A holder unlinks its file before it lets go; a lock on a file that has no name any more guards nothing.
            is_current = path.stat().st_ino == os.fstat(descriptor).st_ino
        except OSError:
            is_current = False
        if not is_current:
            os.close(descriptor)
            return False
        name = _take_name(port)
        self._held[port] = descriptor, name
        if (name is None and _HAS_NAMES) or why_taken(LOOPBACK, port) is not None:
            self._unlock(port)
            return False
        return True

    def _open(self, path: Path) -> int:
        for _ in range(OPEN_ATTEMPTS):
            try:
                return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            except FileNotFoundError:
                self._make_directory()  # the last of another run's ports was released, and the directory with it
            except OSError as error:
                raise EnvironmentFailedError(f"cannot open the port lock {path}: {error.strerror}") from error
        raise EnvironmentFailedError(f"the port lock directory {self._directory} vanishes as soon as it is made")

    def _unlock(self, port: int) -> None:
        descriptor, name = self._held.pop(port)
        with contextlib.suppress(OSError):
            (self._directory / str(port)).unlink()
        os.close(descriptor)
        if name is not None:
            name.close()


def lock_directory(temporary: Path | None = None) -> Path:
    """Where the lock files of all runs of this user lie: a private directory under the temporary directory."""
    return (temporary or temporary_directory()) / f"stormproof-ports-{os.geteuid()}"


def why_taken(host: str, port: int) -> str | None:
    """None when one could listen there now, else the system's words."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        # As servers do it; without it a connection in TIME_WAIT from the run before would count as taken.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, port))
            candidate.listen(1)
        except OSError as error:
            return os.strerror(error.errno or errno.EADDRINUSE)
    return None


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8080` or `localhost:8080`. Raises UsageError for anything but loopback."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or not 0 < int(port) <= PORT_MAX:
        raise UsageError(f"address {address!r} is not host:port; write it as {LOOPBACK}:8080")
    host = LOOPBACK if host == "localhost" else host
    try:
        is_loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise UsageError(
            f"address {address!r} is not an IPv4 loopback address; everything of a run listens on {LOOPBACK}"
        )
    return host, int(port)


def ensure_free(address: str) -> str:
    """The address as `host:port` when one can listen there. Raises EnvironmentFailedError when it is taken."""
    host, port = split_address(address)
    why = why_taken(host, port)
    if why is not None:
        raise EnvironmentFailedError(
            f"cannot listen on {host}:{port}: {why.lower()}; "
            f"end what holds it (`ss -ltnp | grep :{port}`) or choose another port"
        )
    return f"{host}:{port}"


def _take_name(port: int) -> socket.socket | None:
    # None when somebody has it, or where there are no such names.
    if not _HAS_NAMES:
        return None
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0stormproof-port-{port}")
    except OSError:
        holder.close()
        return None
    return holder


def _last_port() -> int:
    # Below the range from which the kernel gives ports to outgoing connections, which would be taken at random.
    try:
        lowest_ephemeral = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return LAST_PORT
    return min(LAST_PORT, lowest_ephemeral - 1) if lowest_ephemeral > FIRST_PORT + 1000 else LAST_PORT
