"""A part that hangs when nobody harms it is the harness's trouble, and no verdict on the system."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from harness.environment import soundness
from harness.environment.choice import BackendChoice
from harness.environment.soundness import ensure_sound
from harness.environment.tests.backends import run_of
from harness.errors import EnvironmentFailedError

pytestmark = pytest.mark.usefixtures("temporary", "toxiproxy_binary", "nats_binary")


@pytest.mark.parametrize(
    ("role", "seen"),
    [
        ("nats", "waited 1 s for the server's INFO in vain"),
        ("toxiproxy", "did not answer within 1 s to listing the proxies"),
    ],
)
async def test_a_part_that_runs_and_does_not_answer_is_one_sentence(
    role: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed, all is well again."""
    async with run_of(BackendChoice(), tmp_path) as environment:
        await ensure_sound(environment)
        await environment.pause(role)
        monkeypatch.setattr(soundness, "ANSWER_WITHIN_S", 1.0)
        with pytest.raises(EnvironmentFailedError, match=f"^{role} runs and does not answer.*{re.escape(seen)}"):
            await ensure_sound(environment)
        monkeypatch.undo()
        await environment.resume(role)
        await environment.wait_ready(role)
        await ensure_sound(environment)


async def test_a_part_that_died_is_left_to_the_record(tmp_path: Path) -> None:
    """The run can still be judged by what is left of it, and says who died."""
    async with run_of(BackendChoice(), tmp_path) as environment:
        await environment.kill("nats")

        await ensure_sound(environment)


async def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written there looks like a loss of the system's."""
    async with run_of(BackendChoice(), tmp_path) as environment:
        await ensure_sound(environment)
        free = shutil.disk_usage(environment.scratch_directory).free
        monkeypatch.setattr(soundness, "ROOM_MIN_BYTES", 2 * free)

        with pytest.raises(EnvironmentFailedError, match=r"^the disk of .* is full"):
            await ensure_sound(environment)
