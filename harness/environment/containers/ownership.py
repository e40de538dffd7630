"""Whose a container is: the labels it carries, and what to do with those whose harness is dead.

Promises: `reap_stale_containers` removes what crashed runs of this user and this pid namespace left, and only that.

Does not: replace the guardian, which removes a run's containers the moment its harness dies.
"""

from __future__ import annotations

import os

from harness.environment.containers.docker_socket import ContainerSeen, DockerSocket
from harness.environment.processes import guardian
from harness.environment.processes.ownership import Owner, namespace_of

RUN_LABEL = "stormproof.run"
NAMESPACE_LABEL = "stormproof.namespace"
"""Where the pid of the owner label means something: harnesses in containers may share an engine."""

USER_LABEL = "stormproof.user"
"""Number of the user whose harness it was: several users may share an engine."""


def container_labels(owner_label: str) -> dict[str, str]:
    """What a container of this run carries, so that the guardian and later starts know whose it is."""
    owner = Owner.parse(owner_label)
    return {
        guardian.OWNER_LABEL: owner_label,
        RUN_LABEL: "" if owner is None else owner.run_id,
        NAMESPACE_LABEL: namespace_of("self"),
        USER_LABEL: str(os.geteuid()),
    }


def reap_stale_containers(docker: DockerSocket) -> int:
    """Remove what crashed runs of this user left in this engine; returns how many containers. Raises DockerError.

    For a run that asks Docker anyway: one look at the engine's list, a millisecond. Unlike `ownership.reap_stale` it
    also finds those whose scratch directory somebody has removed. What a guardian is still at work on is left to it.
    """
    stale = {_label_of(container) for container in docker.containers(guardian.OWNER_LABEL) if _is_stale(container)}
    if not stale:
        return 0
    guarded = {guardian.labels_of(pid).get(guardian.GUARDIAN_VARIABLE) for pid in guardian.own_processes()}
    return sum(len(docker.remove_labelled(guardian.OWNER_LABEL, label)) for label in stale if label not in guarded)


def _is_stale(container: ContainerSeen) -> bool:
    owner = Owner.parse(_label_of(container))
    return (
        owner is not None
        and not owner.is_alive
        and container.labels.get(NAMESPACE_LABEL) == namespace_of("self")
        and container.labels.get(USER_LABEL) == str(os.geteuid())
    )


def _label_of(container: ContainerSeen) -> str:
    return container.labels.get(guardian.OWNER_LABEL, "")
