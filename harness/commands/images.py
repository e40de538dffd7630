"""`stormproof images`: the images that `--backend container` runs; `build` makes them where no registry answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.markup import escape

from harness.commands.conducting import print_json, progress
from harness.environment.containers.engine import find_engine
from harness.environment.containers.image_build import build_image, nats_recipe, toxiproxy_recipe, version_of
from harness.environment.containers.images import (
    POSTGRES_IMAGE,
    TOXIPROXY_IMAGE,
    built_images,
    look_for_image,
    nats_image,
)
from harness.environment.containers.postgres_image import postgres_recipe
from harness.environment.nats.server import find_nats_server
from harness.environment.nats.versions import find_nats_server_version
from harness.environment.toxiproxy.binary import find_or_build_toxiproxy
from harness.errors import StormproofError
from harness.report.tables import console_for, table_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine, Mapping

    from harness.environment.containers.docker_socket import DockerSocket
    from harness.environment.containers.image_build import ImageRecipe
    from harness.environment.containers.images import ImageSeen

SCHEMA = "stormproof.images/1"
EXIT_BROKEN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    tag: str
    seen: ImageSeen | None
    why: str

    @property
    def source(self) -> str:
        if self.seen is None:
            return "missing"
        return "pulled" if self.seen.built_from is None else "built here"

    @property
    def document(self) -> dict[str, object]:
        return {
            "tag": self.tag,
            "source": self.source,
            "version": None if self.seen is None else self.seen.built_from,
            "size_bytes": None if self.seen is None else self.seen.size_bytes,
            "why": self.why,
        }


async def execute(options: argparse.Namespace) -> int:
    """Build or list; ends with 3 when an image could not be built, all others being built all the same."""
    docker = await find_engine()
    rows = await (_build(docker, options.nats_version) if options.action == "build" else _list(docker))
    if options.json:
        print_json({"schema": SCHEMA, "images": [row.document for row in rows]})
    else:
        table = table_of("image", "source", ">MB", "")
        for row in rows:
            size = "" if row.seen is None else f"{row.seen.size_bytes / 1e6:.0f}"
            table.add_row(row.tag, row.source, size, escape(row.why))
        console_for(sys.stdout).print(table)
    return EXIT_BROKEN if options.action == "build" and any(row.seen is None for row in rows) else 0


async def _build(docker: DockerSocket, nats_versions: list[str]) -> list[_Row]:
    say = progress()

    async def pinned_nats() -> ImageRecipe:
        return await nats_recipe(find_nats_server())

    async def toxiproxy() -> ImageRecipe:
        return await toxiproxy_recipe(await find_or_build_toxiproxy(say))

    def nats_of(version: str) -> Callable[[], Coroutine[None, None, ImageRecipe]]:
        async def recipe() -> ImageRecipe:
            return await nats_recipe(await find_nats_server_version(version, say))

        return recipe

    recipes: Mapping[str, Callable[[], Coroutine[None, None, ImageRecipe]]] = {
        "nats (pinned)": pinned_nats,
        **{nats_image(version): nats_of(version) for version in nats_versions},
        TOXIPROXY_IMAGE: toxiproxy,
        POSTGRES_IMAGE: postgres_recipe,
    }
    rows: list[_Row] = []
    for tag, recipe in recipes.items():
        if any(row.tag == tag for row in rows):
            continue  # the pinned version, asked for by its number
        try:
            seen = await build_image(docker, await recipe(), say)
            rows.append(_Row(tag=seen.tag, seen=seen, why=f"version {seen.built_from}"))
        except StormproofError as error:
            rows.append(_Row(tag=tag, seen=None, why=str(error)))
    return rows


async def _list(docker: DockerSocket) -> list[_Row]:
    pinned = nats_image(await version_of(find_nats_server(), "--version"))
    others = [tag for tag in await built_images(docker) if tag not in (pinned, TOXIPROXY_IMAGE, POSTGRES_IMAGE)]
    rows = []
    for tag in (pinned, TOXIPROXY_IMAGE, POSTGRES_IMAGE, *others):
        seen = await look_for_image(docker, tag)
        why = "it will be pulled; where no registry answers run `stormproof images build`"
        rows.append(_Row(tag=tag, seen=seen, why=why if seen is None else f"version {seen.built_from or 'of the tag'}"))
    return rows
