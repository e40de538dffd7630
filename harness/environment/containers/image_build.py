"""Builds the images of a run from the binaries of this host, for where no registry answers.

Promises: the same tags as upstream's, `FROM scratch`, with the same entry points, of exactly the version that the tag
says, labelled as built here. Nothing but Docker's own API is needed: no `docker` command, no buildx, no network.

Does not: find the binaries (`nats.versions`, `toxiproxy.binary`, `postgres_image`).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import struct
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.environment.containers.docker_socket import DockerError, DockerSocket
from harness.environment.containers.docker_stream import open_stream, told_by
from harness.environment.containers.images import (
    BUILT_LABEL,
    NATS_SERVER_PATH,
    TOXIPROXY_IMAGE,
    TOXIPROXY_SERVER_PATH,
    ImageSeen,
    look_for_image,
    nats_image,
)
from harness.environment.processes.said_version import NoVersionError, ask_version
from harness.environment.toxiproxy.build import VERSION as TOXIPROXY_VERSION
from harness.errors import EnvironmentFailedError

BUILD_WITHIN_S = 300.0
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?(?:-[A-Za-z][\w.]*)?")

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_ELF_64_LITTLE = b"\x7fELF\x02\x01"
_NAMES_AN_INTERPRETER = 3
"""PT_INTERP: a program header that only dynamically linked programs have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """What goes into an image that is built here.

    version: what its program says. files: of this host, by their path in the image. settings: what stands in the
    Dockerfile behind the files.
    """

    tag: str
    version: str
    files: Mapping[str, Path]
    settings: tuple[str, ...]

    @property
    def dockerfile(self) -> str:
        """The Dockerfile."""
        return "\n".join(("FROM scratch", "COPY root/ /", *self.settings, ""))


async def nats_recipe(binary: Path) -> ImageRecipe:
    """An image of this nats-server, tagged with the version that it says. Raises EnvironmentFailedError."""
    version = await version_of(binary, "--version")
    must_be_static(binary)
    return ImageRecipe(
        tag=nats_image(version),
        version=version,
        files={NATS_SERVER_PATH: binary},
        settings=('ENV PATH="/"', "EXPOSE 4222 8222 6222", f'ENTRYPOINT ["{NATS_SERVER_PATH}"]'),
    )


async def toxiproxy_recipe(binary: Path) -> ImageRecipe:
    """An image of this toxiproxy-server, which must be the pinned version. Raises EnvironmentFailedError."""
    version = await version_of(binary, "-version")
    if version != TOXIPROXY_VERSION:
        raise EnvironmentFailedError(
            f"{binary} is Toxiproxy {version}, and the image is {TOXIPROXY_IMAGE}; take it off PATH, and Stormproof "
            f"builds {TOXIPROXY_VERSION}"
        )
    must_be_static(binary)
    return ImageRecipe(
        tag=TOXIPROXY_IMAGE,
        version=version,
        files={TOXIPROXY_SERVER_PATH: binary},
        settings=("EXPOSE 8474", f'ENTRYPOINT ["{TOXIPROXY_SERVER_PATH}"]', 'CMD ["-host=0.0.0.0"]'),
    )


async def build_image(
    docker: DockerSocket, recipe: ImageRecipe, progress: Callable[[str], None] = lambda _line: None
) -> ImageSeen:
    """Build an image; an older one of ours that had its tag goes. Raises EnvironmentFailedError."""
    query = {"t": recipe.tag, "rm": "1", "forcerm": "1", "labels": json.dumps({BUILT_LABEL: recipe.version})}
    made, before = None, await look_for_image(docker, recipe.tag)
    try:
        with tempfile.TemporaryFile() as context:
            await asyncio.to_thread(_write_context, context, recipe)
            async with (
                asyncio.timeout(BUILD_WITHIN_S),
                open_stream(docker.path, "POST", "/build", query, body=context) as reader,
            ):
                async for told in told_by(reader):
                    match told:
                        case {"aux": {"ID": str(image)}}:
                            made = image
    except (DockerError, OSError, TimeoutError) as error:
        why = str(error) or f"it took longer than {BUILD_WITHIN_S:g} s"
        raise EnvironmentFailedError(f"building the image {recipe.tag} failed: {why}") from error
    built = await look_for_image(docker, recipe.tag)
    if built is None or built.id != made:
        raise EnvironmentFailedError(
            f"building the image {recipe.tag} came to no end: {docker.url} broke off; is Docker being stopped?"
        )
    if before is not None and before.id != built.id and before.built_from is not None:
        with contextlib.suppress(DockerError):  # in use: then it stays, without its tag
            await asyncio.to_thread(docker.ask, "DELETE", f"/images/{before.id}")
    progress(f"built {recipe.tag} ({recipe.version}, {built.size_bytes / 1e6:.0f} MB)")
    return built


async def version_of(binary: Path, option: str) -> str:
    """The version that a program says. Raises EnvironmentFailedError."""
    try:
        return (await ask_version(binary, option, _VERSION))[0]
    except NoVersionError as error:
        raise EnvironmentFailedError(f"{binary}: {error}") from error


def must_be_static(binary: Path) -> None:
    """Refuse a program that needs libraries: alone in an image it would only say "no such file or directory"."""
    with binary.open("rb") as file:
        header = file.read(_ELF_HEADER.size)
        if len(header) < _ELF_HEADER.size or not header.startswith(_ELF_64_LITTLE):
            raise EnvironmentFailedError(f"{binary} is not a program that an image can hold: no 64-bit ELF file")
        fields = _ELF_HEADER.unpack(header)
        offset, size, count = fields[5], fields[9], fields[10]
        file.seek(offset)
        kinds = [int.from_bytes(file.read(size)[:4], "little") for _ in range(count)]
    if _NAMES_AN_INTERPRETER in kinds:
        raise EnvironmentFailedError(
            f"{binary} is linked dynamically and would not start in an image of its own: build it with CGO_ENABLED=0, "
            "or take it away and Stormproof finds or builds a static one"
        )


def _write_context(context: IO[bytes], recipe: ImageRecipe) -> None:
    text = recipe.dockerfile.encode()
    with tarfile.open(fileobj=context, mode="w", dereference=True) as archive:
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
        for path, file in sorted(recipe.files.items()):
            archive.add(file, arcname=f"root{path}", recursive=False, filter=_open_to_all)


def _open_to_all(member: tarfile.TarInfo) -> tarfile.TarInfo:
    # Whoever the container runs as reads it, whatever this host's umask was when it was installed.
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member
