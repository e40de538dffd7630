"""The cache holds finished things only, and whoever waits for another knows for how long and what to do."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from harness.environment import cache
from harness.environment.cache import Recipe, Workshop, cache_directory, make_once
from harness.environment.processes.guardian import OWNER_VARIABLE
from harness.environment.processes.ownership import Owner
from harness.errors import EnvironmentFailedError


@pytest.fixture
def place(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a thing of an empty cache goes."""
    monkeypatch.setenv("STORMPROOF_CACHE", str(tmp_path / "cache"))
    return cache_directory() / "things-1.0" / "thing"


def recipe(made: list[Workshop], *, text: str = "good", within_s: float = 10.0, is_directory: bool = False) -> Recipe:
    """Makes a file, or a directory with one, that is good when its text is."""

    async def make(workshop: Workshop) -> Path:
        made.append(workshop)
        result = workshop.directory / "result"
        if is_directory:
            result.mkdir()
        (result / "file" if is_directory else result).write_text(text)
        return result

    async def why_not(path: Path) -> str | None:
        file = path / "file" if is_directory else path
        seen = file.read_text() if file.is_file() else "not there"
        return None if seen == "good" else f"it is {seen}"

    return Recipe(what="makes a thing", within_s=within_s, make=make, why_not=why_not, otherwise="do without")


@pytest.mark.parametrize("is_directory", [False, True])
async def test_a_thing_is_made_once_and_a_broken_one_anew(place: Path, is_directory: bool) -> None:
    """A file or a directory, in a workshop of its own whose processes carry a label of this harness."""
    made: list[Workshop] = []
    how = recipe(made, is_directory=is_directory)
    for _ in range(2):
        assert await make_once(place, how, print) == place
    assert len(made) == 1
    owner = Owner.parse(made[0].variables[OWNER_VARIABLE])
    assert owner is not None
    assert owner.pid == os.getpid()

    (place / "file" if is_directory else place).write_text("broken")
    await make_once(place, how, print)

    assert len(made) == 2
    assert sorted(path.name for path in place.parent.iterdir()) == ["lock", "thing"]


async def test_what_is_of_no_use_does_not_get_its_name(place: Path) -> None:
    """And nothing of the work stays."""
    with pytest.raises(EnvironmentFailedError, match=r"of no use: it is bad; if that directory .*, or do without"):
        await make_once(place, recipe([], text="bad"), print)

    assert [path.name for path in place.parent.iterdir()] == ["lock"]


async def test_who_waits_in_vain_says_for_what_and_what_to_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With progress meanwhile."""
    monkeypatch.setattr(cache, "PROGRESS_INTERVAL_S", 0.1)
    place.parent.mkdir(parents=True)
    said: list[str] = []
    with (place.parent / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        with pytest.raises(EnvironmentFailedError, match=r"waited 0\.5 s for another process that makes a thing in "):
            await make_once(place, recipe([], within_s=0.5), said.append)

    assert said[0] == "waiting for another process that makes a thing: 0 s"


async def test_a_lock_of_a_dead_process_holds_nobody_up(place: Path) -> None:
    """Its file stays, and means nothing."""
    place.parent.mkdir(parents=True)
    (place.parent / "lock").write_text("")
    (place.parent / "building-1").mkdir()

    await make_once(place, recipe([], within_s=0.5), print)

    assert sorted(path.name for path in place.parent.iterdir()) == ["lock", "thing"]
