"""Runs the parts of a run in containers: a `ProcessHost` over the Docker engine of this host.

Promises: containers share this host's network and the run's scratch directory, so that addresses, files and links are
those of the embedded backend; whatever happens to one is on record as for a process, its log lies where the command
wants it; when `close` returns none is left. Every wait is bounded, also when Docker is stopped midway.

Does not: restart anything by itself, and does not survive the harness (the guardian removes containers by label). An
engine on another host, in a virtual machine, or of another user's network is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from harness.environment.concurrency import shielded
from harness.environment.containers.contained import Contained, words_of
from harness.environment.containers.docker_socket import DockerError, DockerSocket
from harness.environment.containers.docker_stream import follow_log
from harness.environment.containers.engine import find_engine
from harness.environment.containers.images import find_image
from harness.environment.containers.launch import import_testcontainers, launch_container
from harness.environment.containers.ownership import reap_stale_containers
from harness.environment.probes import Probe
from harness.environment.processes.guardian import CONTAINERS_MARKER, CREATING_PREFIX, OWNER_LABEL
from harness.environment.processes.readiness import wait_until_ready
from harness.environment.processes.supervised import Command, log_tail
from harness.environment.processes.supervisor import KILL_WITHIN_S, UNWIND_GRACE_S, UnexpectedExit
from harness.errors import EnvironmentFailedError
from harness.records import ProcessEvent

CLOSE_WITHIN_S = 10.0
END_TOLD_WITHIN_S = 5.0
"""From the end of a process until its exit code and the last of its log are here: Docker takes 0.1 s."""


class ContainerHost:
    """Owner of all containers of a run; an async context manager."""

    def __init__(
        self,
        *,
        owner_label: str,
        scratch_directory: Path,
        record: Callable[[ProcessEvent], None],
        progress: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """owner_label: by which the guardian finds them. record: called with each event. progress: told of pulls."""
        self._label = owner_label
        self._scratch = scratch_directory
        self._record_event = record
        self._progress = progress
        self._containers: dict[str, Contained] = {}
        self._unexpected_exits: list[UnexpectedExit] = []
        self._docker: DockerSocket | None = None
        self._is_lost = False
        self._preparing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Look at the engine, so that what is wrong with it is said before anything is started."""
        await self.prepare()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End and remove whatever is left; shielded from cancellation."""
        await shielded(self.close())

    @property
    def unexpected_exits(self) -> tuple[UnexpectedExit, ...]:
        """All ends that nobody asked for, in order."""
        return tuple(self._unexpected_exits)

    def is_running(self, name: str) -> bool:
        """Whether this container's process runs now."""
        container = self._containers.get(name)
        return container is not None and container.is_running

    def log_tail(self, name: str) -> str:
        """The last lines of its log since its last start."""
        return log_tail(self._known(name).command.log_path)

    async def prepare(self) -> None:
        """Find the engine, check that it is of this host, and remove what crashed runs left in it; once.

        `start` does it too; called earlier it tells earlier. Raises EnvironmentFailedError.
        """
        async with self._preparing:
            if self._docker is not None:
                return
            docker = await find_engine()
            try:
                await asyncio.to_thread(import_testcontainers)
                removed = await asyncio.to_thread(reap_stale_containers, docker)
                (self._scratch / CONTAINERS_MARKER).write_text(str(docker.path))
            except ImportError as error:
                raise EnvironmentFailedError(
                    f"containers are started with testcontainers, which cannot be imported ({error}); run "
                    "`pip install 'stormproof[containers]'`"
                ) from error
            except (DockerError, OSError) as error:
                raise EnvironmentFailedError(f"cannot prepare for containers: {error}") from error
            if removed:
                self._progress(f"removed what a crashed run left: {removed} containers")
            self._docker = docker

    async def start(self, command: Command) -> int:
        """Start a fresh container of the command's image, on what an earlier one left in the mounted directory.

        Returns the pid that its first process has on this host. Cancelled in between, it is owned all the same.
        """
        before = self._containers.get(command.name)
        if before is not None and before.is_running:
            raise EnvironmentFailedError(f"cannot start {command.name}: it runs already with pid {before.pid}")
        if command.image is None:
            raise EnvironmentFailedError(f"cannot start {command.name} in a container: its command names no image")
        await self.prepare()
        await find_image(self._engine, command.image, self._progress)
        if before is not None:
            await before.wait_told()  # one at a time writes to the log and works on the directory
        boot = 1 if before is None else before.boot + 1
        return await shielded(self._begin(command, boot=boot))

    async def wait_ready(self, name: str, probe: Probe, *, within_s: float) -> None:
        """Wait until the probe returns None. Fails at once, with the log's tail, when the container ends first."""
        container = self._known(name)
        await wait_until_ready(container, probe, within_s=within_s)
        self._record(container, "ready", f"boot {container.boot}")

    async def kill(self, name: str) -> None:
        """SIGKILL everything in the container, and wait for its end."""
        container = self._running(name, "kill")
        container.is_expected_to_end = True
        self._record(container, "killed", "SIGKILL")
        await self._kill(container)

    async def pause(self, name: str) -> None:
        """Freeze everything in the container."""
        container = self._running(name, "pause")
        await self._asked(self._engine.pause, container, "pause")
        container.is_paused = True
        self._record(container, "paused", "docker pause")

    async def resume(self, name: str) -> None:
        """Thaw it."""
        container = self._running(name, "resume")
        await self._asked(self._engine.unpause, container, "resume")
        container.is_paused = False
        self._record(container, "resumed", "docker unpause")

    async def stop(self, name: str, *, grace_s: float | None = None) -> bool:
        """Send its image's stop signal, then SIGKILL when the grace (the command's own by default) is over.

        Returns whether it ended within the grace; True as well when it had ended before. A paused one is thawed.
        """
        container = self._known(name)
        if await container.ended_within(0):
            return True
        grace_s = container.command.stop_grace_s if grace_s is None else grace_s
        container.is_expected_to_end = True
        self._record(container, "stopping", f"{container.stop_signal}, {grace_s:g} s of grace")
        await self._signal(container, container.stop_signal, "stop")
        if container.is_paused:
            container.is_paused = False  # Docker thaws it so that the signal arrives
            self._record(container, "resumed", "docker unpause")
        if await container.ended_within(grace_s):
            return True
        self._record(container, "killed", f"SIGKILL: still running {grace_s:g} s after {container.stop_signal}")
        await self._kill(container)
        return False

    async def close(self, *, grace_s: float = UNWIND_GRACE_S) -> None:
        """End everything that still runs, all at once, and remove all containers of the run.

        Raises EnvironmentFailedError when Docker does not let it; the guardian tries again then.
        """
        running = [name for name in reversed(self._containers) if self.is_running(name) and not self._is_lost]
        # What could not be stopped is removed by force below; only when that fails too it is said.
        await asyncio.gather(*(self.stop(name, grace_s=grace_s) for name in running), return_exceptions=True)
        if self._docker is None:
            return
        try:
            await asyncio.to_thread(self._docker.remove_labelled, OWNER_LABEL, self._label, within_s=CLOSE_WITHIN_S)
        except DockerError as error:
            self._is_lost = True
            for container in self._containers.values():
                if container.process is not None:
                    container.process.kill()
            raise EnvironmentFailedError(
                f"Docker was stopped midway, or hangs ({error}); the processes of its containers were ended without "
                "it, and the next run with containers removes what it keeps of them"
            ) from error
        finally:
            await self._end_lives()
        if not any(self._scratch.glob(f"{CREATING_PREFIX}*")):
            (self._scratch / CONTAINERS_MARKER).unlink(missing_ok=True)  # nothing is left to the guardian

    async def _begin(self, command: Command, *, boot: int) -> int:
        container, log = await launch_container(
            command, boot=boot, owner_label=self._label, scratch=self._scratch, docker=self._engine
        )
        self._containers[command.name] = container
        self._record(container, "started", f"boot {boot} in a container of {command.image}")
        container.life = asyncio.get_running_loop().create_task(self._accompany(container, log))
        return container.pid

    async def _accompany(self, container: Contained, log: IO[bytes]) -> None:
        # From its start until its end is on record: its log is followed all the time, and read to its end before that.
        following = asyncio.get_running_loop().create_task(follow_log(self._engine.path, container.id, log))
        try:
            if container.process is not None:
                await container.process.wait()
            at_ns = time.time_ns()  # Docker needs a tenth of a second more to know of it
            how = await self._how_it_ended(container)
            await asyncio.wait({following}, timeout=END_TOLD_WITHIN_S)
            self._record_exit(container, how, at_ns)
            container.told.set_result(how)
            if not self._is_lost:
                with contextlib.suppress(DockerError):  # `close` tries again
                    await asyncio.to_thread(self._engine.remove, container.id)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            log.close()
            if container.process is not None:
                container.process.forget()
            if not container.told.done():
                container.told.set_result("an end that nobody saw")

    async def _how_it_ended(self, container: Contained) -> str:
        if self._is_lost:
            return "an unknown exit code (Docker does not answer)"
        try:
            return words_of(await asyncio.to_thread(self._engine.wait_end, container.id))
        except DockerError as error:
            return f"an unknown exit code ({error})"

    async def _end_lives(self) -> None:
        lives = [container.life for container in self._containers.values() if container.life is not None]
        if lives:
            _, unfinished = await asyncio.wait(lives, timeout=END_TOLD_WITHIN_S)
            for life in unfinished:
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)

    async def _kill(self, container: Contained) -> None:
        await self._signal(container, "SIGKILL", "kill")
        if not await container.ended_within(KILL_WITHIN_S):
            raise EnvironmentFailedError(
                f"{container.command.name} (pid {container.pid}) still runs {KILL_WITHIN_S:g} s after SIGKILL; "
                "it hangs in the kernel, look at `ps` and `dmesg`"
            )

    async def _signal(self, container: Contained, number: str, wish: str) -> None:
        await self._asked(lambda identity: self._engine.signal(identity, number), container, wish)

    async def _asked(self, call: Callable[[str], None], container: Contained, wish: str) -> None:
        try:
            await asyncio.to_thread(call, container.id)
        except DockerError as error:
            self._is_lost = error.status is None
            raise EnvironmentFailedError(f"cannot {wish} {container.command.name}: {error}") from error

    @property
    def _engine(self) -> DockerSocket:
        docker = self._docker
        if docker is None:
            raise EnvironmentFailedError("no container was started yet, so no Docker engine was looked for")
        return docker

    def _known(self, name: str) -> Contained:
        container = self._containers.get(name)
        if container is None:
            raise EnvironmentFailedError(f"no container {name!r} was started; there are {sorted(self._containers)}")
        return container

    def _running(self, name: str, wish: str) -> Contained:
        container = self._known(name)
        if not container.is_running:
            raise EnvironmentFailedError(f"cannot {wish} {name}: it had ended with {container.how_it_ended}")
        return container

    def _record_exit(self, container: Contained, how: str, at_ns: int) -> None:
        if container.is_expected_to_end:
            self._record(container, "exited", how, at_ns)
            return
        tail = log_tail(container.command.log_path)
        event = self._record(container, "exited", f"unexpected: {how}; its log ends:\n{tail}", at_ns)
        self._unexpected_exits.append(
            UnexpectedExit(process=event.process, pid=event.pid, how=how, at_ns=event.at_ns, log_tail=tail)
        )

    def _record(self, container: Contained, event: str, detail: str, at_ns: int | None = None) -> ProcessEvent:
        row = ProcessEvent(
            process=container.command.name,
            pid=container.pid,
            event=event,
            at_ns=time.time_ns() if at_ns is None else at_ns,
            detail=detail,
        )
        self._record_event(row)
        return row
