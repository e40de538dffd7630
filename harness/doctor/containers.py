"""Docker on this host: the engine, the images of a run, and whether a container of ours really starts.

Promises: an engine that hangs costs its time-out and no more; a registry is asked whether it has an image, and nothing
is pulled or built; the container that is started is removed again, by its guardian if the doctor dies.
"""

from __future__ import annotations

import os
import shutil
import time
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from harness.doctor.ability import Ability, State, broken, later, unknown, works
from harness.doctor.examining import in_thread
from harness.doctor.packages import install, package
from harness.environment.concurrency import shielded
from harness.environment.containers.docker_socket import HOST_VARIABLE, DockerError, DockerSocket, socket_path
from harness.environment.containers.engine import REMEDY, find_engine
from harness.environment.containers.host import ContainerHost
from harness.environment.containers.images import POSTGRES_IMAGE, TOXIPROXY_IMAGE, look_for_image, nats_image
from harness.environment.nats.server import DISTRIBUTION
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.probes import probe_nats
from harness.environment.processes.ownership import Ownership
from harness.environment.processes.supervised import Command
from harness.environment.temporary import temporary_directory
from harness.environment.wiring import base_variables
from harness.errors import EnvironmentFailedError
from harness.report.printable import printable

ENGINE = "docker"
TESTCONTAINERS = "testcontainers"
TRIAL = "a container"
NATS_IMAGE = "image nats"
TOXIPROXY_IMAGE_NAME = "image toxiproxy"
POSTGRES_IMAGE_NAME = "image postgres"
IMAGES = (NATS_IMAGE, TOXIPROXY_IMAGE_NAME, POSTGRES_IMAGE_NAME)

REGISTRY_WITHIN_S = 8.0
TRIAL_WITHIN_S = 15.0
WORDS_MAX = 120
BUILD = "stormproof images build"

_SYSTEMD = Path("/run/systemd/system")


async def engine() -> Ability:
    """Docker, asked as a run asks it: an engine that answers, of this very host."""
    try:
        docker = await find_engine()
        version = await in_thread(lambda: docker.ask("GET", "/version"))
    except (EnvironmentFailedError, DockerError) as error:
        return broken(ENGINE, str(error).partition(f"; {REMEDY}")[0], _remedy())
    return works(ENGINE, docker.url, version=str(version.get("Version", "")))


async def testcontainers() -> Ability:
    """The library that containers are started with."""
    return await package(TESTCONTAINERS, module="testcontainers.core.container", for_what="containers")


async def image(name: str, docker: Ability) -> Ability:
    """One of `IMAGES`: here, or in a registry that says so."""
    tag = _tag_of(name)
    if tag is None:
        return broken(
            name, f"{DISTRIBUTION} is not installed, whose version says which one is meant", install(DISTRIBUTION)
        )
    if not docker.works:
        return unknown(name, f"{tag}: there is no engine to ask", docker.remedy)
    socket = DockerSocket(socket_path(os.environ), timeout_s=REGISTRY_WITHIN_S)
    seen = await look_for_image(socket, tag)
    if seen is not None:
        origin = "pulled" if seen.built_from is None else "built on this host"
        return works(name, f"{tag}, {seen.size_bytes / 1e6:.0f} MB, {origin}", version=seen.built_from or "")
    try:
        await in_thread(lambda: socket.ask("GET", f"/distribution/{quote(tag)}/json"))
    except DockerError as error:
        return broken(name, f"{tag} is not here, and no registry gives it ({printable(error, WORDS_MAX)})", BUILD)
    return later(name, f"{tag} is not here; its registry has it, and the first run pulls it")


async def trial(docker: Ability, library: Ability, nats: Ability) -> Ability:
    """Start a broker in a container as a run would, ask it something, and remove it."""
    missing = [each for each in (docker, library) if not each.works]
    if missing:
        return unknown(TRIAL, f"not tried without {' and '.join(each.name for each in missing)}", missing[0].remedy)
    tag = _tag_of(NATS_IMAGE)
    if nats.state is not State.WORKS or tag is None:
        return unknown(TRIAL, f"not tried without {nats.name}: the doctor pulls and builds nothing", nats.remedy)
    began_s = time.monotonic()
    ownership = Ownership.take("doctor")
    try:
        with PortLease() as lease:
            await _start_and_ask(tag, ownership, port=lease.take(1)[0])
    except EnvironmentFailedError as error:
        return broken(TRIAL, f"{tag} does not start: {error}", _remedy())
    finally:
        await shielded(ownership.release())
    seconds = time.monotonic() - began_s
    return works(TRIAL, f"{tag} started, answered and was removed in {seconds:.1f} s", seconds=seconds)


async def _start_and_ask(tag: str, ownership: Ownership, *, port: int) -> None:
    scratch = ownership.scratch_directory
    log = scratch / "trial.log"
    address = f"{LOOPBACK}:{port}"
    command = Command(
        name="trial",
        argv=("nats-server", "-a", LOOPBACK, "-p", str(port), "-js", "-sd", str(scratch)),
        environment=base_variables(temporary_directory()),
        log_path=log,
        image=tag,
    )
    host = ContainerHost(owner_label=ownership.label, scratch_directory=scratch, record=lambda _event: None)
    async with host:
        await host.start(command)
        await host.wait_ready("trial", lambda: probe_nats(address), within_s=TRIAL_WITHIN_S)


def _tag_of(name: str) -> str | None:
    if name != NATS_IMAGE:
        return {TOXIPROXY_IMAGE_NAME: TOXIPROXY_IMAGE, POSTGRES_IMAGE_NAME: POSTGRES_IMAGE}[name]
    try:
        return nats_image(metadata.version(DISTRIBUTION))
    except metadata.PackageNotFoundError:
        return None


def _remedy() -> str:
    """The command that brings an engine, as far as this host lets itself be known."""
    try:
        path = socket_path(os.environ)
    except DockerError:
        return f"unset {HOST_VARIABLE}"
    sudo = "" if os.geteuid() == 0 else "sudo "
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return 'sudo usermod -aG docker "$(id -un)" && newgrp docker'
    if HOST_VARIABLE in os.environ and not path.exists():
        return f"unset {HOST_VARIABLE}"
    if shutil.which("dockerd") is None and not path.exists():
        apt = shutil.which("apt-get") is not None
        return (
            f"{sudo}apt-get install -y docker.io"
            if apt
            else "install Docker Engine (https://docs.docker.com/engine/install)"
        )
    if not _SYSTEMD.is_dir():
        return f"{sudo}dockerd &"
    return f"{sudo}systemctl {'restart' if path.exists() else 'start'} docker"
