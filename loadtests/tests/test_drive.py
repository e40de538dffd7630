"""The harness's drive with Locust, against a tiny server instead of a system."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from harness.collection.history import FILE_NAME, read_history
from harness.collection.load_summary import CANNOT_SAY
from harness.errors import EnvironmentFailedError
from harness.load import drive_with_locust
from harness.stage import Stage
from harness.system_under_test import LoadProfile, SystemUnderTest
from loadtests.tests.answering_server import Manner, answering

LOCUSTFILE = Path(__file__).resolve().parent.parent / "locustfile.py"

KILLS_ITSELF = """
import os, pathlib, signal
from locust import User, task
class Customer(User):
    @task
    def die(self):
        pathlib.Path(os.environ["STORMPROOF_OPERATIONS"]).write_text("{}\\n")
        os.kill(os.getpid(), signal.SIGKILL)
"""
OPTIONS = """
from locust import events
@events.init_command_line_parser.add_listener
def add(parser):
    for name in ("--rate", "--seed", "--duration"):
        parser.add_argument(name)
"""


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """What the drive needs of a stage, its environment, and a system."""

    directory: Path
    url: str
    entrance: str = "clients->orders"
    said: list[str] = field(default_factory=list)

    @property
    def environment(self) -> Surroundings:
        """As `Stage.environment`."""
        return self

    @property
    def wiring(self) -> Surroundings:
        """As `Environment.wiring`."""
        return self

    @property
    def scratch_directory(self) -> Path:
        """As `Environment.scratch_directory`."""
        return self.directory

    def via(self, link: str) -> str:
        """As `Wiring.via`."""
        assert link == self.entrance
        return self.url.removeprefix("http://")

    def labelled(self, variables: dict[str, str]) -> dict[str, str]:
        """As `Environment.labelled`."""
        return {**variables, "STORMPROOF_OWNER": "nobody"}

    def say(self, line: str) -> None:
        """As `Stage.say`."""
        self.said.append(line)


async def drive(around: Surroundings, *, locustfile: Path = LOCUSTFILE, duration_s: float = 1.5) -> int:
    """Drive at 100 orders a second."""
    (around.directory / FILE_NAME).touch()  # the stage has it open
    profile = LoadProfile(
        name="steady", summary="", locustfile=locustfile, rate_per_s=100, duration_s=duration_s, users=40
    )
    return await drive_with_locust(
        cast("Stage", around),
        cast("SystemUnderTest", around),
        profile,
        seed=5,
        rate_per_s=100,
        duration_s=duration_s,
    )


def written(directory: Path, text: str) -> Path:
    """A locustfile of our own."""
    path = directory / "locustfile.py"
    path.write_text(OPTIONS + text)
    return path


async def test_a_drive_returns_how_many_operations_it_began(tmp_path: Path) -> None:
    """The history lies in the run directory; orders that failed are no reason to give up."""
    async with answering(lambda number: Manner.FAIL if number % 10 == 0 else Manner.ACCEPT) as server:
        around = Surroundings(directory=tmp_path, url=server.url)
        begun = await drive(around, duration_s=2.5)

    operations, torn = read_history(tmp_path / FILE_NAME)
    assert (begun, len(operations), torn, len(server.seen)) == (250, 250, 0, 250)
    assert around.said[0] == "Locust asks for 100 orders/s for 2.5 s"
    assert any("of 250 operations recorded after" in line for line in around.said)
    assert any("Locust began 250 operations, 100/s of 100/s asked; 0 slots missed" in line for line in around.said)
    assert "Starting Locust" in (tmp_path / "logs" / "locust.log").read_text()


async def test_a_locust_that_is_killed_cannot_say_how_many_it_began(tmp_path: Path) -> None:
    """What it had recorded is evidence all the same."""
    around = Surroundings(directory=tmp_path, url="http://127.0.0.1:9")

    assert await drive(around, locustfile=written(tmp_path, KILLS_ITSELF)) == CANNOT_SAY
    assert "Locust died by signal SIGKILL" in around.said[-1]


async def test_a_locust_that_breaks_is_an_error_with_the_tail_of_its_log(tmp_path: Path) -> None:
    """Exit code 1 alone would look like failed orders; without a summary it is not."""
    around = Surroundings(directory=tmp_path, url="http://127.0.0.1:9")

    with pytest.raises(EnvironmentFailedError, match=r"(?s)ended with exit code 1 and without a summary.*ZeroDivision"):
        await drive(around, locustfile=written(tmp_path, "1 / 0\n"))


async def test_a_locustfile_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """By name."""
    around = Surroundings(directory=tmp_path, url="http://127.0.0.1:9")

    with pytest.raises(EnvironmentFailedError, match="names a locustfile that is not there"):
        await drive(around, locustfile=tmp_path / "nowhere.py")


async def test_a_cancelled_drive_leaves_no_locust(tmp_path: Path) -> None:
    """And does not wait for answers that will never come."""
    async with answering(lambda _number: Manner.HANG) as server:
        around = Surroundings(directory=tmp_path, url=server.url)
        async with asyncio.TaskGroup() as group:
            driving = group.create_task(drive(around, duration_s=60))
            await server.wait_seen(20)
            began_s = time.monotonic()
            driving.cancel()
        assert driving.cancelled()

    assert time.monotonic() - began_s < 8
    mark = str(tmp_path).encode()
    assert not [entry for entry in Path("/proc").glob("[0-9]*/environ") if _carries(entry, mark)]


def _carries(entry: Path, mark: bytes) -> bool:
    try:
        return b"STORMPROOF_OPERATIONS=" + mark in entry.read_bytes()
    except OSError:
        return False
