"""A container made with testcontainers that one run owns. The only module that imports testcontainers.

Promises: it shares this host's network and nothing else: its own processes, its own read-only files, none of root's
capabilities, and of this host's directories those alone that it is given, under the paths they have here.

Does not: clean up (the run's guardian does, by label) or wait until it is ready. Ryuk, with which testcontainers cleans
up, is left out: it is an image more to pull, and it would know nothing of the run's other belongings.
"""

from __future__ import annotations

from typing import Self

from docker.errors import APIError, DockerException
from testcontainers.core.container import DockerContainer

from harness.environment.containers.contained import ContainerSpec
from harness.environment.containers.docker_socket import CALL_WITHIN_S, HOST_VARIABLE, DockerError


class OwnedContainer(DockerContainer):
    """One such container, from creation to start."""

    def __init__(self, spec: ContainerSpec, *, engine_url: str) -> None:
        """engine_url: `unix://...`, as `DOCKER_HOST` has it."""
        super().__init__(
            spec.image,
            docker_client_kw={"timeout": CALL_WITHIN_S, "environment": {HOST_VARIABLE: engine_url}},
            name=spec.name,
            env=dict(spec.environment),
            entrypoint=[spec.program],
            labels=dict(spec.labels),
            user=spec.user,
            working_dir=None if spec.working_directory is None else str(spec.working_directory),
            userns_mode="host",  # where the engine maps users otherwise, the numbers would not be this host's
            # Not volumes, which Docker would make where there is nothing: they must be this host's.
            mounts=[
                {"Type": "bind", "Source": str(spec.directory), "Target": str(spec.directory), "ReadOnly": False},
                {"Type": "bind", "Source": str(spec.accounts), "Target": "/etc/passwd", "ReadOnly": True},
            ],
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", "label=disable"],
            log_config={"type": "json-file", "config": {}},  # whatever the engine's own default is: we follow it
        )
        self.with_tmpfs_mount("/tmp", "size=64m,mode=1777")  # noqa: S108 - the container's own
        self.with_command(list(spec.arguments))

    def start(self) -> Self:
        """Create and start it, as testcontainers does, but without Ryuk."""
        client = self.get_docker_client()
        self._container = client.create(
            self.image,
            command=self._command,
            environment=self.env,
            name=self._name,
            tmpfs=self.tmpfs,
            network="host",
            **self._kwargs,
        )
        client.start(self._container)
        return self


def run_container(spec: ContainerSpec, *, engine_url: str) -> str:
    """Create and start a container; returns its id. Blocks, each of its few calls within its time-out.

    Raises DockerError, with a status where the engine refused; without one nobody can tell whether it was created.
    """
    try:
        container = OwnedContainer(spec, engine_url=engine_url)
        try:
            return container.start().get_container_id()
        finally:
            container.get_docker_client().client.close()
    except APIError as error:
        raise DockerError(str(error.explanation or error), status=error.status_code) from error
    except (DockerException, OSError) as error:
        raise DockerError(f"{engine_url} broke off: {error}") from error
