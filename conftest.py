"""This repository's own tests; fixtures that others can use too are in `harness.plugin` and `scenarios.plugin`."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

pytest_plugins = ["pytester"]

# A shell starts what runs in its background with SIGINT ignored, and whatever a test starts inherits that; but what
# Ctrl-C does is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests of several processes run beside each other, and one that is marked `alone` beside none. Locks on two files that
# are there anyway: whoever holds the room for itself has first waited at the door, where nobody passes it.
_DOOR, _ROOM = Path(__file__), Path(__file__).with_name("pyproject.toml")
_IN_A_TEST = "STORMPROOF_IN_A_TEST"
_IS_WITHIN_A_TEST = _IN_A_TEST in os.environ  # a pytest that a test has started: its turn is that test's


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for the test's turn."""
    if _IS_WITHIN_A_TEST:
        return (yield)
    os.environ[_IN_A_TEST] = item.nodeid
    with _ROOM.open("rb") as room:
        with _DOOR.open("rb") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        return (yield)
