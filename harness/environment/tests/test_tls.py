"""A run's own certificates: a real broker takes them, its clients trust them, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats
import pytest

from harness.environment.links import NetworkLink
from harness.environment.nats.access import fresh_access
from harness.environment.nats.server import NatsServer
from harness.environment.ports import LOOPBACK, PortLease
from harness.environment.processes.supervisor import Supervisor
from harness.environment.tests.conftest import absent
from harness.environment.tls import CLOCK_SLACK, RunCertificates, make_certificates
from harness.environment.toxiproxy.server import ToxiproxyServer
from harness.errors import EnvironmentFailedError, PlanError

CONNECT_WITHIN_S = 5.0


@pytest.fixture
def certificates(tmp_path: Path, request: pytest.FixtureRequest) -> RunCertificates:
    """Those of this run."""
    try:
        return make_certificates(tmp_path / "tls")
    except EnvironmentFailedError as error:
        absent(request, str(error))
        raise


@pytest.fixture
async def broker(
    supervisor: Supervisor, nats_binary: Path, lease: PortLease, tmp_path: Path, certificates: RunCertificates
) -> NatsServer:
    """A broker that takes TLS alone."""
    client, monitoring = lease.take(2)
    started = NatsServer(
        host=supervisor,
        binary=nats_binary,
        address=f"{LOOPBACK}:{client}",
        monitoring_address=f"{LOOPBACK}:{monitoring}",
        directory=tmp_path / "nats",
        log_path=tmp_path / "nats.log",
        environment={"PATH": os.defpath},
        access=fresh_access([f"{LOOPBACK}:{client}"], ca_file=certificates.ca_file),
        tls=certificates.server,
    )
    await started.start()
    return started


async def echo_through(broker: NatsServer, address: str, trust: ssl.SSLContext, *, host_name: str | None = None) -> str:
    """What comes back over a connection to this address."""

    async def give_up(error: Exception) -> None:
        """Be quiet: the error is raised by `connect` as well."""

    async with asyncio.timeout(CONNECT_WITHIN_S):
        connection = await nats.connect(
            f"tls://{address}",
            user=broker.access.user,
            password=broker.access.password,
            tls=trust,
            tls_hostname=host_name,
            allow_reconnect=False,
            error_cb=give_up,
        )
        try:
            subscription = await connection.subscribe("echo")
            await connection.publish("echo", b"over TLS")
            return (await subscription.next_msg()).data.decode()
        finally:
            await connection.close()


def trust_of(certificates: RunCertificates) -> ssl.SSLContext:
    """What a client of this run trusts: its authority, and nothing of this machine's."""
    return ssl.create_default_context(cafile=str(certificates.ca_file))


async def test_a_client_that_trusts_the_runs_authority_is_served(
    broker: NatsServer, certificates: RunCertificates
) -> None:
    """Also under the other name of the loopback; the broker was ready over TLS before."""
    assert await echo_through(broker, broker.address, trust_of(certificates)) == "over TLS"
    port = broker.address.rpartition(":")[2]
    assert await echo_through(broker, f"localhost:{port}", trust_of(certificates)) == "over TLS"


async def test_it_works_through_toxiproxy(
    broker: NatsServer,
    certificates: RunCertificates,
    supervisor: Supervisor,
    toxiproxy_binary: Path,
    lease: PortLease,
    tmp_path: Path,
) -> None:
    """A proxy on the loopback has the loopback's name, so that the certificate stands through it."""
    api, listen = (f"{LOOPBACK}:{port}" for port in lease.take(2))

    async def find_binary() -> Path:
        return toxiproxy_binary

    link = NetworkLink(
        name="payments->nats",
        client="payments",
        server="nats",
        listen=listen,
        upstream=broker.address,
        proxy="payments->nats",
    )
    proxies = ToxiproxyServer(
        host=supervisor,
        find_binary=find_binary,
        address=api,
        links=(link,),
        log_path=tmp_path / "toxiproxy.log",
        environment={"PATH": os.defpath},
    )
    await proxies.start()

    assert await echo_through(broker, listen, trust_of(certificates)) == "over TLS"


async def test_a_client_without_the_authority_refuses_the_broker(broker: NatsServer, tmp_path: Path) -> None:
    """Not the machine's own authorities, nor those of another run, vouch for this one."""
    others = make_certificates(tmp_path / "another run")

    for trust in (ssl.create_default_context(), trust_of(others)):
        with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self.signed|signature"):
            await echo_through(broker, broker.address, trust)


async def test_the_certificate_is_for_the_loopback_alone(broker: NatsServer, certificates: RunCertificates) -> None:
    """Whoever took it away could play no other host with it."""
    with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname mismatch"):
        await echo_through(broker, broker.address, trust_of(certificates), host_name="broker.example")


def test_keys_are_private_and_the_authoritys_is_nowhere(certificates: RunCertificates) -> None:
    """One key on disk, the server's, which only this user can read."""
    directory = certificates.ca_file.parent
    keys = [path for path in directory.iterdir() if "PRIVATE KEY" in path.read_text()]

    assert keys == [certificates.server.key_file]
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_both_certificates_end_after_the_days_asked_for(tmp_path: Path) -> None:
    """A file that was left somewhere is worth nothing next week."""
    from cryptography import x509  # noqa: PLC0415 - an extra

    before = datetime.now(UTC).replace(microsecond=0)
    made = make_certificates(tmp_path, valid_days=7)

    for file in (made.ca_file, made.server.certificate_file):
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        assert certificate.not_valid_before_utc <= before
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        assert life == timedelta(days=7) + CLOCK_SLACK


@pytest.mark.parametrize("days", [0, -1, 826])
def test_days_that_make_no_sense_are_refused(tmp_path: Path, days: int) -> None:
    """A certificate that has ended already would be a mystery at the first connection."""
    with pytest.raises(PlanError, match=f"valid_days={days} is outside"):
        make_certificates(tmp_path, valid_days=days)


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain installation has no need of it."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)

    with pytest.raises(EnvironmentFailedError, match=r'pip install "stormproof\[tls\]"'):
        make_certificates(tmp_path / "tls")
    assert not (tmp_path / "tls").exists()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """With the system's words."""
    (tmp_path / "file").write_text("")

    with pytest.raises(EnvironmentFailedError, match=r"cannot make .*file/tls: Not a directory"):
        make_certificates(tmp_path / "file" / "tls")
