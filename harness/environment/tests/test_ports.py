"""Port leases: two runs never meet, and what is taken is said clearly."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.environment.ports import FIRST_PORT, LAST_PORT, LOOPBACK, PortLease, ensure_free, split_address
from harness.errors import EnvironmentFailedError, UsageError

HOLDER = """
import sys
from pathlib import Path
from harness.environment.ports import PortLease
lease = PortLease(directory=Path(sys.argv[1]))
print(*lease.take(200), flush=True)
sys.stdin.read()
"""


def test_two_holders_in_different_processes_share_no_port(lease: PortLease, temporary: Path) -> None:
    """Several runs at once on one machine never meet."""
    directory = temporary / "stormproof-ports-test"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        theirs = {int(port) for port in holder.stdout.readline().split()}
        ours = set(lease.take(200))
        holder.communicate()

    assert len(theirs) == len(ours) == 200
    assert not theirs & ours


def test_ports_lie_below_the_range_of_outgoing_connections(lease: PortLease) -> None:
    """A port from the ephemeral range could be taken at any time by anybody's outgoing connection."""
    assert all(FIRST_PORT <= port <= LAST_PORT for port in lease.take(50))


# Another user, or another TMPDIR, has its lock files elsewhere.
@pytest.mark.parametrize("theirs", ["stormproof-ports-test", *(["elsewhere"] if sys.platform == "linux" else [])])
def test_a_held_port_cannot_be_leased_again_until_it_is_released(
    theirs: str, lease: PortLease, temporary: Path
) -> None:
    """The lease, not only the bind, keeps two runs apart while nobody listens yet."""
    (port,) = lease.take(1)
    other = PortLease(directory=temporary / theirs)

    with pytest.raises(EnvironmentFailedError, match="held by another part or run"):
        other.reserve(f"{LOOPBACK}:{port}")
    lease.release()

    assert other.reserve(f"{LOOPBACK}:{port}") == f"{LOOPBACK}:{port}"
    other.release()


def test_the_death_of_a_holder_releases_its_ports(lease: PortLease, temporary: Path) -> None:
    """The kernel lets go of the locks of a killed harness; nothing has to be cleaned by hand."""
    directory = temporary / "stormproof-ports-test"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        port = int(holder.stdout.readline().split()[0])
        holder.kill()
        holder.wait()

    assert lease.reserve(f"{LOOPBACK}:{port}") == f"{LOOPBACK}:{port}"


def test_release_leaves_no_lock_file(lease: PortLease, temporary: Path) -> None:
    """Nothing is left in the temporary directory; what others hold stays."""
    other = PortLease(directory=temporary / "stormproof-ports-test")
    (theirs,) = other.take(1)
    lease.take(5)
    lease.release()

    assert [path.name for path in (temporary / "stormproof-ports-test").iterdir()] == [str(theirs)]
    other.release()
    assert not (temporary / "stormproof-ports-test").exists()


def test_a_port_that_is_taken_is_refused_with_its_number_and_a_remedy() -> None:
    """The user who fixed an address must learn which one is taken and how to find who holds it."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]

        with pytest.raises(
            EnvironmentFailedError, match=rf"cannot listen on {LOOPBACK}:{port}: address already in use"
        ):
            ensure_free(f"{LOOPBACK}:{port}")


@pytest.mark.parametrize("address", ["8080", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", ""])
def test_an_address_that_is_none_is_wrong_use(address: str) -> None:
    """Wrong words of the call are exit 64, not a broken harness."""
    with pytest.raises(UsageError, match="is not host:port"):
        split_address(address)


@pytest.mark.parametrize("address", ["0.0.0.0:8080", "192.168.1.1:8080", "example.org:8080", ":8080"])
def test_an_address_off_loopback_is_refused(address: str) -> None:
    """Everything of a run binds to loopback."""
    with pytest.raises(UsageError, match="not an IPv4 loopback address"):
        split_address(address)


def test_localhost_means_the_loopback_address() -> None:
    """People write localhost."""
    assert split_address("localhost:8080") == (LOOPBACK, 8080)
