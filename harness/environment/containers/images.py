"""The images that broker, proxies and database run in: which ones, and where they come from.

Promises: the tags are those that upstream publishes, so that a registry and `stormproof images build` (`image_build`)
may stand in for each other; an image that cannot be had is refused with the remedy.

Does not: run anything (`host`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from harness.environment.containers.docker_socket import NOT_FOUND, DockerError, DockerSocket
from harness.environment.containers.docker_stream import open_stream, told_by
from harness.environment.toxiproxy.build import VERSION as TOXIPROXY_VERSION
from harness.errors import EnvironmentFailedError

POSTGRES_MAJOR = 18
"""Minor releases of PostgreSQL mend only, and share one format on disk: the major version is what is pinned."""

TOXIPROXY_IMAGE = f"ghcr.io/shopify/toxiproxy:{TOXIPROXY_VERSION}"
POSTGRES_IMAGE = f"postgres:{POSTGRES_MAJOR}"

BUILT_LABEL = "stormproof.built"
"""On images that were built here: what their program says its version is."""

REMEDY = "build it from the binaries of this host with `stormproof images build`"
PULL_WITHIN_S = 600.0

NATS_SERVER_PATH = "/nats-server"
TOXIPROXY_SERVER_PATH = "/toxiproxy"

_NO_TAG = "<none>:<none>"

# What stands in an image for a program of this host, by the image's repository; whatever is not here is found on the
# image's own PATH, by the name it has everywhere.
_ENTRY_POINTS = {
    "nats": {"nats-server": NATS_SERVER_PATH},
    "ghcr.io/shopify/toxiproxy": {"toxiproxy-server": TOXIPROXY_SERVER_PATH},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSeen:
    """An image in an engine. built_from: the version its program said when it was built here; None when pulled."""

    id: str
    tag: str
    size_bytes: int
    built_from: str | None


def nats_image(version: str) -> str:
    """The tag of a published nats-server."""
    return f"nats:{version}-scratch"


def entry_point(image: str, program: str) -> str:
    """What this program of this host is called in an image."""
    return _ENTRY_POINTS.get(image.rpartition(":")[0], {}).get(program, program)


async def look_for_image(docker: DockerSocket, tag: str) -> ImageSeen | None:
    """The image, when the engine has it; nothing is pulled. Raises EnvironmentFailedError."""
    try:
        return await asyncio.to_thread(_seen, docker, tag)
    except DockerError as error:
        raise EnvironmentFailedError(f"cannot look for the image {tag}: {error}") from error


async def built_images(docker: DockerSocket) -> tuple[str, ...]:
    """The tags of all images in this engine that were built here. Raises EnvironmentFailedError."""
    query = {"filters": json.dumps({"label": [BUILT_LABEL]})}
    try:
        images = await asyncio.to_thread(docker.ask, "GET", "/images/json", query)
    except DockerError as error:
        raise EnvironmentFailedError(f"cannot list images: {error}") from error
    tags = {tag for image in images for tag in image.get("RepoTags") or ()}
    return tuple(sorted(tags - {_NO_TAG}))


async def find_image(docker: DockerSocket, tag: str, progress: Callable[[str], None] = lambda _line: None) -> ImageSeen:
    """The image: here, or pulled. Raises EnvironmentFailedError with the remedy when it cannot be had."""
    found = await look_for_image(docker, tag)
    if found is not None:
        return found
    progress(f"pulling {tag}")
    try:
        await _pull(docker, tag)
    except (DockerError, TimeoutError) as error:
        why = str(error) or f"it took longer than {PULL_WITHIN_S:g} s"
        raise EnvironmentFailedError(
            f"the image {tag} is not here and cannot be pulled ({why}); {_remedy(tag)}"
        ) from error
    found = await look_for_image(docker, tag)
    if found is None:
        raise EnvironmentFailedError(f"the image {tag} was pulled, and is not in {docker.url}; {_remedy(tag)}")
    return found


def _remedy(tag: str) -> str:
    # Without a version only the pinned one is built.
    version = tag.removeprefix("nats:").removesuffix("-scratch")
    return f"{REMEDY.removesuffix('`')} --nats-version {version}`" if tag == nats_image(version) else REMEDY


def _seen(docker: DockerSocket, tag: str) -> ImageSeen | None:
    try:
        found = docker.ask("GET", f"/images/{quote(tag)}/json")
    except DockerError as error:
        if error.status == NOT_FOUND:
            return None
        raise
    labels = found["Config"].get("Labels") or {}
    return ImageSeen(id=str(found["Id"]), tag=tag, size_bytes=int(found["Size"]), built_from=labels.get(BUILT_LABEL))


async def _pull(docker: DockerSocket, tag: str) -> None:
    repository, _, version = tag.rpartition(":")
    query = {"fromImage": repository, "tag": version}
    async with asyncio.timeout(PULL_WITHIN_S), open_stream(docker.path, "POST", "/images/create", query) as reader:
        async for _told in told_by(reader):
            pass
