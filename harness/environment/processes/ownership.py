"""What one run owns outside its run directory: labelled processes and containers, and a private scratch directory.

Promises: the guardian stands before anything else is made; `release` returns when nothing of the run is left, or says
what is. `reap_stale` removes what runs of this user left whose harness and guardian are both gone, and only that.

Does not: own the run directory (evidence stays). Ports are leased by `ports`; what a killed harness leaves of their
lock files goes with the guardian. Docker is not asked, nor its client imported, unless a run has left word that it had
containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.environment.ports import lock_directory
from harness.environment.processes import guardian
from harness.environment.processes.exit_watch import ExitWatch
from harness.environment.temporary import temporary_directory
from harness.errors import EnvironmentFailedError, UsageError

GUARDIAN_EXIT_WITHIN_S = 2.0
GUARDIAN_EXIT_WITH_CONTAINERS_WITHIN_S = 15.0
"""When Docker did not let the harness itself remove them: its guardian tries once more, and Docker may be slow."""

SCRATCH_PREFIX = "stormproof-"
RUN_ID_IN_NAME_MAX = 40
"""Unix socket paths end at 108 bytes; the scratch directory must leave room for them."""

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The harness process that a run belongs to.

    started: tells it from a later process with the same pid. run_id: the run's id and a token.
    """

    pid: int
    started: str
    run_id: str

    @property
    def label(self) -> str:
        """Give `<pid>:<start time>:<run id>`, the value of the environment variable `STORMPROOF_OWNER`."""
        return f"{self.pid}:{self.started}:{self.run_id}"

    @property
    def is_alive(self) -> bool:
        """Whether that very harness process still runs."""
        return guardian.start_time_of(self.pid) == self.started

    @classmethod
    def parse(cls, label: str) -> Owner | None:
        """The owner behind a label; None when it is not one of ours."""
        pid, _, rest = label.partition(":")
        started, _, run_id = rest.partition(":")
        if not (pid.isdecimal() and started and run_id):
            return None
        return cls(pid=int(pid), started=started, run_id=run_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What an earlier crash had left and is now gone."""

    processes: int
    directories: int
    containers: int = 0


class Ownership:
    """One run's label, scratch directory and guardian, from `take` until `release`."""

    def __init__(self, owner: Owner, scratch: Path, child: subprocess.Popen[bytes], pipe: int) -> None:
        """Use `take`: it makes these in the order that cannot leak."""
        self.owner = owner
        self.scratch_directory = scratch
        self._child = child
        self._pipe = pipe

    @classmethod
    def take(cls, run_id: str, *, temporary: Path | None = None) -> Ownership:
        """Start the guardian, then make the scratch directory it was told about. Costs one fork and no waiting."""
        if not _RUN_ID.fullmatch(run_id):
            raise UsageError(f"run id {run_id!r} is not a plain word: use letters, digits, '.', '_' and '-' only")
        started = guardian.start_time_of(os.getpid())
        if started is None:
            raise EnvironmentFailedError(
                "cannot read the harness's own start time from /proc or psutil; is /proc mounted?"
            )
        # The token: two environments of one process may be given one run id, and must not end each other.
        token = secrets.token_hex(4)
        owner = Owner(pid=os.getpid(), started=started, run_id=f"{run_id}-{token}")
        # The name exists before the directory: a harness killed between the two leaves no directory, one killed after
        # leaves it to a guardian that already knows the name.
        name = f"{SCRATCH_PREFIX}{run_id[:RUN_ID_IN_NAME_MAX]}-{token}"
        scratch = (temporary or temporary_directory()) / name
        child, pipe = _start_guardian(owner, scratch, lock_directory(temporary))
        ownership = cls(owner, scratch, child, pipe)
        try:
            scratch.mkdir(mode=0o700)
            marker = {"owner": owner.label, "namespace": namespace_of("self")}
            (scratch / guardian.MARKER).write_text(json.dumps(marker))
        except OSError as error:
            os.close(pipe)
            child.wait(GUARDIAN_EXIT_WITHIN_S)
            raise EnvironmentFailedError(
                f"cannot make the scratch directory {scratch}: {error.strerror}; free some space or set TMPDIR"
            ) from error
        return ownership

    @property
    def label(self) -> str:
        """What every process of this run carries in `STORMPROOF_OWNER`."""
        return self.owner.label

    @property
    def guardian_pid(self) -> int:
        """The guardian's pid."""
        return self._child.pid

    async def release(self) -> None:
        """Tell the guardian that the run is over and wait until it has swept; sweep here when it cannot.

        Raises EnvironmentFailedError when something of the run would not go away.
        """
        if self._pipe < 0:
            return
        watch = ExitWatch(self._child)
        with contextlib.suppress(OSError):
            os.write(self._pipe, b"end")  # a forked worker of the harness may hold the pipe open too
        os.close(self._pipe)
        self._pipe = -1
        has_containers = (self.scratch_directory / guardian.CONTAINERS_MARKER).exists()
        exit_code = await watch.wait(
            GUARDIAN_EXIT_WITH_CONTAINERS_WITHIN_S if has_containers else GUARDIAN_EXIT_WITHIN_S
        )
        if exit_code == 0:
            return
        try:
            await self._finish()
        finally:
            if exit_code is None:
                # Only now: one that is merely slow would still clean up if the harness were killed meanwhile.
                self._child.kill()
                await watch.wait(GUARDIAN_EXIT_WITHIN_S)

    async def _finish(self) -> None:
        """Do what the guardian has not done, or not yet: both only remove, so they may work side by side."""
        try:
            await asyncio.to_thread(guardian.remove_containers, self.label, self.scratch_directory)
        except OSError as error:
            await asyncio.to_thread(guardian.sweep, self.label, within_s=GUARDIAN_EXIT_WITHIN_S)
            raise EnvironmentFailedError(
                f"Docker was stopped midway, or hangs ({error}); the processes of run {self.owner.run_id} were ended "
                "without it; the next run removes what it keeps of their containers, or you do, when it answers again: "
                f"docker rm -f $(docker ps -aqf label={guardian.OWNER_LABEL}={self.label})"
            ) from error
        is_swept = await asyncio.to_thread(guardian.sweep, self.label, within_s=GUARDIAN_EXIT_WITHIN_S)
        await asyncio.to_thread(guardian.remove_scratch, self.scratch_directory)
        if not is_swept or self.scratch_directory.exists():
            raise EnvironmentFailedError(
                f"run {self.owner.run_id} left something behind: processes with {guardian.OWNER_VARIABLE}={self.label} "
                f"or the directory {self.scratch_directory} would not go away; end them by hand"
            )


def reap_stale(*, temporary: Path | None = None) -> Reaped:
    """End what crashed runs of this user left: processes and scratch directories without harness and guardian.

    One look at the user's processes, a few milliseconds. A guardian that is still at work is left to it. Processes and
    directories of another pid namespace (a container that shares /tmp) are not ours to judge and are left alone. Docker
    is asked only about a run whose scratch directory says that it had containers.
    """
    namespace = namespace_of("self")
    carried, guarded = _labels_in(namespace)

    def is_stale(label: str) -> bool:
        owner = Owner.parse(label)
        return owner is not None and not owner.is_alive and label not in guarded

    containers = directories = 0
    for directory in (temporary or temporary_directory()).glob(f"{SCRATCH_PREFIX}*"):
        marked = _marked_owner(directory, namespace)
        if marked is None or not is_stale(marked):
            continue
        try:
            containers += guardian.remove_containers(marked, directory)
        except OSError:
            # Docker is not to be had now; a later start asks again. The processes go all the same.
            guardian.sweep(marked, within_s=GUARDIAN_EXIT_WITHIN_S)
            guardian.empty_scratch(directory)
            continue
        guardian.remove_scratch(directory)
        directories += not directory.exists()
    stale = {label: count for label, count in carried.items() if is_stale(label)}
    for label in stale:
        guardian.sweep(label, within_s=GUARDIAN_EXIT_WITHIN_S)
    return Reaped(processes=sum(stale.values()), directories=directories, containers=containers)


def _labels_in(namespace: str) -> tuple[dict[str, int], set[str]]:
    # How many of the user's processes carry each owner label, and which labels have a guardian.
    carried: dict[str, int] = {}
    guarded: set[str] = set()
    for pid in guardian.own_processes():
        labels = guardian.labels_of(pid)
        if not labels or namespace_of(str(pid)) != namespace:
            continue
        if guardian.GUARDIAN_VARIABLE in labels:
            guarded.add(labels[guardian.GUARDIAN_VARIABLE])
        if guardian.OWNER_VARIABLE in labels:
            label = labels[guardian.OWNER_VARIABLE]
            carried[label] = carried.get(label, 0) + 1
    return carried, guarded


def namespace_of(process: str) -> str:
    """The pid namespace of a process (`self`, or a pid), in which its pid means something."""
    try:
        return str(Path(f"/proc/{process}/ns/pid").readlink())
    except OSError:
        return "" if not guardian.has_proc() else f"unreadable:{process}"


def _start_guardian(owner: Owner, scratch: Path, locks: Path) -> tuple[subprocess.Popen[bytes], int]:
    read_end, write_end = os.pipe()
    environment = {name: value for name, value in os.environ.items() if name != guardian.OWNER_VARIABLE}
    environment[guardian.GUARDIAN_VARIABLE] = owner.label
    try:
        child = subprocess.Popen(  # noqa: S603 - our own file, no shell
            [sys.executable, "-I", guardian.__file__, owner.label, str(scratch), str(locks), str(owner.pid)],
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        os.close(write_end)
        raise EnvironmentFailedError(f"cannot start the guardian with {sys.executable}: {error.strerror}") from error
    finally:
        os.close(read_end)
    return child, write_end


def _marked_owner(directory: Path, namespace: str) -> str | None:
    try:
        if directory.lstat().st_uid != os.geteuid():
            return None
        marker = json.loads((directory / guardian.MARKER).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(marker, dict) or marker.get("namespace") != namespace:
        return None
    label = marker.get("owner")
    return label if isinstance(label, str) else None
