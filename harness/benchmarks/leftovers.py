"""What is left of one harness process when it is gone: counted, by kind, and blamed on nobody else.

Promises: everything that can outlive a harness is looked at: processes (by label, and by descent for those that threw
their label away), containers, Docker networks, listening ports, shared memory, and whatever lies in its temporary
directory: scratch directories, port locks, other files. What another run on this machine owns is not counted.

Does not: remove anything. Linux alone, as it reads /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from harness.environment.containers.docker_socket import DockerError, DockerSocket, socket_path
from harness.environment.processes.guardian import OWNER_LABEL, labels_of, own_processes, start_time_of

LOCKS_PREFIX = "stormproof-ports-"
SCRATCH_PREFIX = "stormproof-"
_LISTENING = "0A"
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_SHARED_MEMORY = Path("/proc/sysvipc/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left, in words, by kind."""

    processes: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    shared_memory: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return {kind: len(getattr(self, kind)) for kind in KINDS}

    @property
    def total(self) -> int:
        """How many in all."""
        return sum(self.counts().values())

    def words(self) -> list[str]:
        """Each of them: `processes: 4711 nats-server --config ...`."""
        return [f"{kind}: {what}" for kind in KINDS for what in getattr(self, kind)]


KINDS = tuple(field.name for field in fields(Left))


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A harness process, and what it had when it was last looked at.

    label: how the owner labels of all its runs begin. temporary: its temporary directory, which is its alone.
    family: its descendants, each with its start time. ports: those it had leased, or listened at.
    """

    label: str
    temporary: Path
    family: frozenset[tuple[int, str]]
    ports: frozenset[int]


def suspect(pid: int, label: str, temporary: Path) -> Suspect:
    """Look at a harness while it lives; one that has ended has no family any more."""
    family = frozenset(_descendants(pid))
    leased = {int(lock.name) for lock in _locks(temporary) if lock.name.isdecimal()}
    sockets = {inode for member in (pid, *(each for each, _ in family)) for inode in _sockets_of(member)}
    listening = {port for port, inode in _listening() if inode in sockets}
    return Suspect(label=label, temporary=temporary, family=family, ports=frozenset(leased | listening))


def left_of(suspect: Suspect, *, orphans_come_to: int | None = None) -> Left:
    """Count what is left of it. orphans_come_to: a subreaper's pid, all of whose descendants are of this harness."""
    pids = {pid for pid in own_processes() if _carries(pid, suspect.label)}
    pids |= {pid for pid, started in suspect.family if start_time_of(pid) == started}
    if orphans_come_to is not None:
        pids |= {pid for pid, _started in _descendants(orphans_come_to)}
    containers, networks = _of_docker(suspect.label)
    directories, locks, files = _of_directory(suspect.temporary)
    return Left(
        processes=tuple(filter(None, map(_words_of, sorted(pids)))),
        containers=containers,
        networks=networks,
        ports=tuple(_held_ports(suspect)),
        shared_memory=tuple(_shared_memory({pid for pid, _ in suspect.family} | pids)),
        directories=directories,
        locks=locks,
        files=files,
    )


def _carries(pid: int, label: str) -> bool:
    return any(value.startswith(label) for value in labels_of(pid).values())


def _descendants(pid: int) -> Iterator[tuple[int, str]]:
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            started = start_time_of(child.pid)
            if started is not None:
                yield child.pid, started


def _words_of(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return f"{pid} {' '.join(process.cmdline())[:160]}"
    return ""


def _of_docker(label: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    with contextlib.suppress(DockerError):  # no engine: nothing of ours is in it
        docker = DockerSocket(socket_path(os.environ))
        containers = tuple(
            each.name for each in docker.containers(OWNER_LABEL) if each.labels.get(OWNER_LABEL, "").startswith(label)
        )
        ours = {"filters": json.dumps({"label": [OWNER_LABEL]})}
        networks = tuple(
            str(each["Name"])
            for each in docker.ask("GET", "/networks", ours)
            if str(each["Labels"].get(OWNER_LABEL, "")).startswith(label)
        )
        return containers, networks
    return (), ()


def _held_ports(suspect: Suspect) -> Iterator[str]:
    listening = [(port, inode) for port, inode in _listening() if port in suspect.ports]
    if not listening:
        return
    holders = {inode: pid for pid in psutil.pids() for inode in _sockets_of(pid)}
    for port, inode in listening:
        pid = holders.get(inode)
        # Whoever leased the same port after the kill is not ours to blame on it.
        is_anothers = pid is not None and labels_of(pid) and not _carries(pid, suspect.label)
        if not is_anothers:
            yield f"{port} ({'nobody to be seen' if pid is None else _words_of(pid)})"


def _listening() -> Iterator[tuple[int, str]]:
    for table in _TABLES:
        with contextlib.suppress(OSError):
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                row = line.split()
                if row[3] == _LISTENING:
                    yield int(row[1].rpartition(":")[2], 16), row[9]


def _sockets_of(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    yield target.removeprefix("socket:[").removesuffix("]")


def _shared_memory(pids: set[int]) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for line in _SHARED_MEMORY.read_text(encoding="ascii").splitlines()[1:]:
            row = line.split()
            if int(row[4]) in pids:
                yield f"segment {row[1]} of {row[3]} bytes, made by {row[4]}"


def _of_directory(temporary: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    directories, files = [], []
    for entry in _entries(temporary):
        if entry.name.startswith(LOCKS_PREFIX):
            continue
        if entry.name.startswith(SCRATCH_PREFIX) and entry.is_dir():
            directories.append(entry.name)
        else:
            files.append(entry.name)
    return tuple(directories), tuple(lock.name for lock in _locks(temporary)), tuple(files)


def _locks(temporary: Path) -> list[Path]:
    return [lock for entry in _entries(temporary) if entry.name.startswith(LOCKS_PREFIX) for lock in _entries(entry)]


def _entries(directory: Path) -> Iterable[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return ()
