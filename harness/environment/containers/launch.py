"""How a container of a run comes to be: what it is made of, its creation, and the proof that it is of this host.

Promises: nothing is left of a container that could not be started; while nobody can tell, a mark in the scratch
directory says so to the guardian.

Does not: watch or end it (`host`).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import shlex
from pathlib import Path
from typing import IO

from harness.environment.containers.contained import Contained, ContainerSpec, HostProcess
from harness.environment.containers.docker_socket import ContainerState, DockerError, DockerSocket
from harness.environment.containers.images import entry_point
from harness.environment.containers.ownership import container_labels
from harness.environment.processes.guardian import CREATING_PREFIX, OWNER_VARIABLE
from harness.environment.processes.supervised import Command, open_log
from harness.errors import EnvironmentFailedError

# Of what a process of this host is told, what means nothing in a container: it has its own programs and no home.
_OF_THIS_HOST = frozenset(
    {"PATH", "HOME", "LANG", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH"}
)
_OF_THIS_HOST_PREFIX = "LC_"
END_KNOWN_WITHIN_S = 2.0
_ACCOUNTS_PREFIX = "passwd-"


def import_testcontainers() -> None:
    """Import it, which takes 0.2 s. Raises ImportError: it comes with an extra."""
    importlib.import_module("harness.environment.containers.owned_container")


async def launch_container(
    command: Command, *, boot: int, owner_label: str, scratch: Path, docker: DockerSocket
) -> tuple[Contained, IO[bytes]]:
    """Start a container; returns it and its log, to which nothing is written yet but what was started.

    Must not be cancelled. Raises EnvironmentFailedError.
    """
    spec = container_spec(command, boot=boot, owner_label=owner_label, scratch=scratch)
    creating = scratch / f"{CREATING_PREFIX}{spec.name}"
    words = f"in {spec.image}: {shlex.join((spec.program, *spec.arguments))}"
    try:
        log = open_log(command, boot=boot, words=words)
    except OSError as error:
        raise EnvironmentFailedError(f"cannot write {command.log_path}: {error.strerror}") from error
    try:
        _write_accounts(spec)
        creating.touch()
        identity = await asyncio.to_thread(_run, spec, docker.url)
        creating.unlink()
        state = await asyncio.to_thread(docker.state, identity)
        process = await _process_of(identity, state, owner_label=owner_label, docker=docker)
    except (DockerError, OSError) as error:
        log.close()
        await _discard(spec.name, creating, error, docker)
        raise EnvironmentFailedError(f"cannot start {command.name} in a container of {spec.image}: {error}") from error
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    container = Contained(
        command=command,
        boot=boot,
        id=identity,
        pid=state.pid,
        process=process,
        stop_signal=state.stop_signal,
        told=told,
    )
    return container, log


def container_spec(command: Command, *, boot: int, owner_label: str, scratch: Path) -> ContainerSpec:
    """What the container of a command is made of. Raises EnvironmentFailedError.

    It runs as whoever the command's directory belongs to: PostgreSQL refuses to be root, and works in a directory of
    another user's. Since the scratch directory is ours alone, that user's container is given that one directory.
    """
    if command.image is None:
        raise EnvironmentFailedError(f"cannot start {command.name} in a container: its command names no image")
    us = f"{os.geteuid()}:{os.getegid()}"
    user = us if command.directory is None else _owner_of(command.directory)
    variables = {
        name: value
        for name, value in command.environment.items()
        if name not in _OF_THIS_HOST and not name.startswith(_OF_THIS_HOST_PREFIX)
    }
    return ContainerSpec(
        name=f"stormproof-{owner_label.rpartition('-')[2]}-{command.name}-{boot}",
        image=command.image,
        program=entry_point(command.image, Path(command.argv[0]).name),
        arguments=command.argv[1:],
        environment={**variables, OWNER_VARIABLE: owner_label},
        labels=container_labels(owner_label),
        user=user,
        directory=scratch if user == us or command.directory is None else command.directory,
        accounts=scratch / f"{_ACCOUNTS_PREFIX}{user.replace(':', '-')}",
        working_directory=command.directory,
    )


def _write_accounts(spec: ContainerSpec) -> None:
    spec.accounts.write_text(f"root:x:0:0::/:/bin/sh\npart:x:{spec.user}::/tmp:/bin/sh\n")
    spec.accounts.chmod(0o644)


def _run(spec: ContainerSpec, engine_url: str) -> str:
    from harness.environment.containers.owned_container import run_container  # noqa: PLC0415 - see import_testcontainers

    return run_container(spec, engine_url=engine_url)


async def _process_of(
    identity: str, state: ContainerState, *, owner_label: str, docker: DockerSocket
) -> HostProcess | None:
    # None when it has ended. Otherwise it must be a process of this host that carries our label: with an engine
    # elsewhere a container would run too, with somebody else's network and directories.
    if not state.is_running:
        return None
    try:
        process = HostProcess(state.pid)
        if await process.carries(owner_label) or process.has_ended:
            return process
        process.forget()
    except ProcessLookupError:
        # It has just ended, and Docker will know in a moment; or it never was here, and Docker will not.
        with contextlib.suppress(DockerError):
            await asyncio.to_thread(DockerSocket(docker.path, timeout_s=END_KNOWN_WITHIN_S).wait_end, identity)
            return None
    raise DockerError(
        f"its process {state.pid} is none of this host's; either {docker.url} is an engine elsewhere, or this is a "
        "container itself: choose --backend embedded"
    )


async def _discard(name: str, creating: Path, error: Exception, docker: DockerSocket) -> None:
    # The mark stays when Docker gave no answer and may still be at it.
    def discard() -> None:
        docker.remove(name)
        if isinstance(error, DockerError) and error.status is not None:
            creating.unlink(missing_ok=True)

    with contextlib.suppress(DockerError):
        await asyncio.to_thread(discard)


def _owner_of(directory: Path) -> str:
    try:
        state = directory.stat()
    except OSError as error:
        raise EnvironmentFailedError(f"the directory {directory} cannot be used: {error.strerror}") from error
    return f"{state.st_uid}:{state.st_gid}"
