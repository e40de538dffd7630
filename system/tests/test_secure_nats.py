"""TLS and logins against real brokers: who is let in, who is told why not, and that nobody hears a secret."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import secrets
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import nkeys
import pytest
import uvloop

from system.jetstream import ConnectError, Connection, Publisher, StreamSpec, ensure_stream, stored_payload
from system.metrics import Metrics
from system.settings import NatsSettings
from system.tests.parts import Broker, Proxy, free_port, wait_until

STREAM = StreamSpec(name="TESTS", subject="tests.>", dedup_window_s=120)
AT_ONCE_S = 3.0
"""Far below the 30 s that a broker has to appear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """PEM files: who is trusted, the server's and a client's certificate with keys, and somebody else to trust."""

    directory: Path

    @property
    def ca(self) -> Path:
        """Who signed both certificates."""
        return self.directory / "ca.pem"

    @property
    def stranger(self) -> Path:
        """Another CA."""
        return self.directory / "stranger.pem"

    @property
    def client(self) -> Path:
        """A client's certificate."""
        return self.directory / "client.pem"

    @property
    def client_key(self) -> Path:
        """Its key."""
        return self.directory / "client.key"

    def server(self, more: str = "") -> str:
        """The part of a broker's configuration that makes it speak TLS."""
        files = f'cert_file: "{self.directory}/server.pem", key_file: "{self.directory}/server.key"'
        return f'tls {{ {files}, ca_file: "{self.ca}", {more} }}'


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Certificates:
    """Made by openssl, which nothing else here needs."""
    openssl = shutil.which("openssl")
    if openssl is None:
        if request.config.getoption("--require-backends", default=False):
            pytest.fail("--require-backends: openssl is not on PATH")
        pytest.skip("openssl is not on PATH")
    directory = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def run(*arguments: str) -> None:
        subprocess.run((openssl, *arguments), cwd=directory, check=True, capture_output=True)

    for name in ("ca", "stranger"):
        run("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    for name in ("server", "client"):
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        run("x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem")
    return Certificates(directory=directory)


@asynccontextmanager
async def connected(settings: NatsSettings, metrics: Metrics | None = None) -> AsyncIterator[Connection]:
    """A connection that was let in."""
    async with Connection(settings, name="test", metrics=metrics or Metrics()) as connection:
        await connection.open()
        yield connection


async def stored_through(connection: Connection, payload: bytes = b"hello") -> bytes:
    """What the broker holds after this was published."""
    await ensure_stream(connection, STREAM)
    publisher = Publisher(connection, metrics=Metrics())
    await publisher.start()
    ack = await publisher.publish(
        "tests.a", payload, message_id=secrets.token_hex(8), headers={"traceparent": "x"}, deadline_s=10
    )
    return await stored_payload(connection, "TESTS", ack.sequence)


async def refusal(settings: NatsSettings) -> str:
    """What a starting process is told; it must come long before the broker's time to appear is over."""
    began_s = time.monotonic()
    with pytest.raises(ConnectError) as told:
        async with connected(settings):
            pass
    assert time.monotonic() - began_s < AT_ONCE_S
    return str(told.value)


def is_encrypted(connection: Connection) -> bool:
    """Whether the connection is a TLS one."""
    assert connection._client is not None
    writer = connection._client._prompt._io_writer
    assert writer is not None
    return writer.get_extra_info("ssl_object") is not None


@pytest.mark.parametrize("more", ["", "verify: true"])
async def test_publishing_over_tls_works_and_outlives_a_restart(
    tmp_path: Path, certificates: Certificates, more: str
) -> None:
    """With the server's certificate checked, and with ours checked, too; large messages come in many TLS records."""
    async with Broker(tmp_path / "js", config=certificates.server(more)) as broker:
        settings = NatsSettings(
            url=broker.url.replace("nats://", "tls://"),
            reconnect_wait_s=0.05,
            ca_file=certificates.ca,
            cert_file=certificates.client if more else None,
            key_file=certificates.client_key if more else None,
        )
        metrics = Metrics()
        async with connected(settings, metrics) as connection:
            assert is_encrypted(connection)
            assert await stored_through(connection, b"x" * 500_000) == b"x" * 500_000
            broker.stop()
            await wait_until(lambda: not connection.is_connected)
            await broker.start()
            assert await stored_through(connection) == b"hello"
            assert is_encrypted(connection)
    assert metrics.counter("nats_reconnects", "").value == 1


async def test_a_server_that_only_offers_tls_is_spoken_to_in_tls(tmp_path: Path, certificates: Certificates) -> None:
    """nats-py would go on in the clear, because the server does not insist."""
    config = certificates.server() + "\nallow_non_tls: true"
    async with Broker(tmp_path / "js", config=config) as broker:
        async with connected(NatsSettings(url=broker.url, ca_file=certificates.ca)) as connection:
            assert is_encrypted(connection)
            assert await stored_through(connection) == b"hello"
        async with connected(NatsSettings(url=broker.url)) as connection:
            assert not is_encrypted(connection)


async def test_a_server_of_a_stranger_is_not_trusted(tmp_path: Path, certificates: Certificates) -> None:
    """The message says which variable says whom to trust."""
    async with Broker(tmp_path / "js", config=certificates.server()) as broker:
        said = await refusal(NatsSettings(url=broker.url, ca_file=certificates.stranger))
    assert "certificate is not trusted" in said
    assert "NATS_TLS_CA_FILE" in said


async def test_without_a_certificate_that_is_demanded_we_are_told_so(
    tmp_path: Path, certificates: Certificates
) -> None:
    """Servers that verify clients refuse one without a certificate, which TLS 1.3 tells only after the handshake."""
    async with Broker(tmp_path / "js", config=certificates.server("verify: true")) as broker:
        said = await refusal(NatsSettings(url=broker.url, ca_file=certificates.ca))
    assert "TLS failed" in said


async def test_nothing_is_told_to_a_server_that_has_no_tls() -> None:
    """Somebody in the middle who strips TLS gets neither the password nor even a CONNECT."""
    heard = bytearray()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"X","version":"2.10.0","auth_required":true,"max_payload":1048576}\r\n')
        heard.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        said = await refusal(NatsSettings(url=f"tls://shop:open-sesame@127.0.0.1:{port}"))
    assert "offers no TLS" in said
    assert not heard


async def test_a_silent_partition_under_tls_is_survived(tmp_path: Path, certificates: Certificates) -> None:
    """TLS says goodbye before it closes; to a peer that hears nothing, that must not take time."""
    async with (
        Broker(tmp_path / "js", config=certificates.server()) as broker,
        Proxy(broker.port) as proxy,
    ):
        settings = NatsSettings(
            url=f"tls://127.0.0.1:{proxy.port}", ca_file=certificates.ca, ping_every_s=0.1, reconnect_wait_s=0.1
        )
        async with connected(settings) as connection:
            proxy.cut()
            await wait_until(lambda: not connection.is_connected, within_s=2.0, what="the partition noticed")
            proxy.heal()
            await wait_until(lambda: connection.is_connected, within_s=5.0, what="the connection back")
            assert await stored_through(connection) == b"hello"


def test_tls_is_the_same_on_the_loop_that_services_run_on(tmp_path: Path, certificates: Certificates) -> None:
    """The other loop, uvloop, has a TLS of its own, whose transports say other things when they are closed."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for number, story in enumerate(
            (
                test_publishing_over_tls_works_and_outlives_a_restart(tmp_path / "0", certificates, ""),
                test_a_server_of_a_stranger_is_not_trusted(tmp_path / "1", certificates),
                test_without_a_certificate_that_is_demanded_we_are_told_so(tmp_path / "2", certificates),
                test_a_silent_partition_under_tls_is_survived(tmp_path / "3", certificates),
            )
        ):
            (tmp_path / str(number)).mkdir()
            runner.run(story)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to log in: what the broker is told, and the settings that fit and that do not. secrets: told to nobody."""

    config: str
    right: dict[str, object]
    wrong: dict[str, object]
    secrets: tuple[str, ...]


def _password(directory: Path) -> Way:
    del directory
    return Way(
        config='authorization { user: "shop", password: "open-sesame" }',
        right={"user": "shop", "password": "open-sesame"},
        wrong={"user": "shop", "password": "shut-sesame"},
        secrets=("open-sesame", "shut-sesame"),
    )


def _token(directory: Path) -> Way:
    del directory
    return Way(
        config='authorization { token: "open-sesame" }',
        right={"token": "open-sesame"},
        wrong={"token": "shut-sesame"},
        secrets=("open-sesame", "shut-sesame"),
    )


def _nkey(directory: Path) -> Way:
    seeds = [new_seed(nkeys.PREFIX_BYTE_USER) for _ in range(2)]
    for name, seed in zip(("right", "wrong"), seeds, strict=True):
        (directory / f"{name}.nk").write_text(f"{seed}\n")
    return Way(
        config=f"authorization {{ users: [ {{ nkey: {public_key(seeds[0])} }} ] }}",
        right={"nkey_seed_file": directory / "right.nk"},
        wrong={"nkey_seed_file": directory / "wrong.nk"},
        secrets=tuple(seeds),
    )


def _creds(directory: Path) -> Way:
    operator, system, account, stranger = (
        new_seed(prefix)
        for prefix in (
            nkeys.PREFIX_BYTE_OPERATOR,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_ACCOUNT,
        )
    )
    unlimited = {"limits": {"subs": -1, "data": -1, "payload": -1, "conn": -1, "imports": -1, "exports": -1}}
    preloaded = "\n".join(
        f"{public_key(seed)}: {jwt(operator, public_key(seed), 'account', unlimited)}" for seed in (system, account)
    )
    users = [new_seed(nkeys.PREFIX_BYTE_USER) for _ in range(2)]
    for name, user, issuer in zip(("right", "wrong"), users, (account, stranger), strict=True):
        claims: dict[str, object] = {"subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
        (directory / f"{name}.creds").write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt(issuer, public_key(user), 'user', claims)}\n"
            "------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user}\n------END USER NKEY SEED------\n"
        )
    return Way(
        config=(
            f"operator: {jwt(operator, public_key(operator), 'operator', {})}\n"
            f"system_account: {public_key(system)}\nresolver: MEMORY\nresolver_preload {{\n{preloaded}\n}}"
        ),
        right={"creds_file": directory / "right.creds"},
        wrong={"creds_file": directory / "wrong.creds"},
        secrets=tuple(users),
    )


WAYS: dict[str, Callable[[Path], Way]] = {"password": _password, "token": _token, "nkey": _nkey, "creds": _creds}


def new_seed(prefix: int) -> str:
    """A fresh secret of this kind."""
    return bytes(nkeys.encode_seed(secrets.token_bytes(32), prefix)).decode()


def public_key(seed: str) -> str:
    """What everybody may know of it."""
    return bytes(nkeys.from_seed(bytearray(seed.encode())).public_key).decode()


def jwt(issuer_seed: str, subject: str, kind: str, claims: Mapping[str, object]) -> str:
    """A NATS JWT, as nsc makes them."""

    def encoded(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).decode().rstrip("=")

    payload: dict[str, object] = {
        "iat": int(time.time()),
        "iss": public_key(issuer_seed),
        "name": kind,
        "sub": subject,
        "nats": {**claims, "type": kind, "version": 2},
    }
    payload["jti"] = base64.b32encode(hashlib.sha256(msgspec.json.encode(payload)).digest()).decode().rstrip("=")
    header = msgspec.json.encode({"typ": "JWT", "alg": "ed25519-nkey"})
    signed = f"{encoded(header)}.{encoded(msgspec.json.encode(payload))}"
    signature = nkeys.from_seed(bytearray(issuer_seed.encode())).sign(signed.encode())
    return f"{signed}.{encoded(signature)}"


@pytest.mark.parametrize("name", WAYS)
async def test_who_has_the_secret_is_let_in(name: str, tmp_path: Path) -> None:
    """By each of the ways, and again after the broker was restarted."""
    way = WAYS[name](tmp_path)
    async with Broker(tmp_path / "js", config=way.config) as broker:
        settings = NatsSettings(url=broker.url, reconnect_wait_s=0.05, **way.right)  # type: ignore[arg-type]
        async with connected(settings) as connection:
            await connection.flush(within_s=5)
            broker.stop()
            await wait_until(lambda: not connection.is_connected)
            await broker.start()
            await wait_until(lambda: connection.is_connected)
            await connection.flush(within_s=5)


@pytest.mark.parametrize("name", WAYS)
async def test_who_has_it_not_is_told_at_once_and_no_secret_is_told(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong secret and none at all: one clear sentence, and nothing secret in it or in any log."""
    caplog.set_level(logging.DEBUG)
    way = WAYS[name](tmp_path)
    async with Broker(tmp_path / "js", config=way.config) as broker:
        wrong = await refusal(NatsSettings(url=broker.url, **way.wrong))  # type: ignore[arg-type]
        none = await refusal(NatsSettings(url=broker.url))
    assert "does not let us in" in wrong
    assert "NATS_" in wrong
    assert "without any of NATS_USER" in none
    for secret in way.secrets:
        assert secret not in wrong
        assert secret not in caplog.text
        assert secret not in repr(NatsSettings(url=broker.url, **way.wrong))  # type: ignore[arg-type]


async def test_a_login_in_the_url_works_and_stays_out_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Connecting, being refused, not reaching anybody: wherever the URL is named, it is named without its secret."""
    caplog.set_level(logging.DEBUG)
    async with Broker(tmp_path / "js", config=_password(tmp_path).config) as broker:
        right = broker.url.replace("nats://", "nats://shop:open-sesame@")
        async with connected(NatsSettings(url=right)) as connection:
            assert await stored_through(connection) == b"hello"
        said = await refusal(NatsSettings(url=right.replace("open", "shut")))
    nobody = NatsSettings(url=f"nats://shop:open-sesame@127.0.0.1:{free_port()}", connect_within_s=0.3)
    with pytest.raises(ConnectError) as told:
        async with connected(nobody):
            pass
    assert "127.0.0.1" in said
    assert "127.0.0.1" in str(told.value)
    assert "sesame" not in said + str(told.value) + caplog.text


async def test_a_broker_that_does_not_let_us_in_any_more_is_asked_again(tmp_path: Path) -> None:
    """It did once: whoever changed its users may change them back, and no process needs to be restarted for it."""
    way = _password(tmp_path)
    async with Broker(tmp_path / "js", config=way.config) as broker:
        settings = NatsSettings(url=broker.url, reconnect_wait_s=0.05, **way.right)  # type: ignore[arg-type]
        async with connected(settings) as connection, asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(connection.keep())
            broker.stop()
            broker.config = way.config.replace("open", "shut")
            await broker.start()
            await wait_until(lambda: isinstance(connection._last_error, Exception), what="the refusal")
            await wait_until(lambda: "Authorization" in str(connection._last_error), what="the refusal")
            broker.stop()
            broker.config = way.config
            await broker.start()
            await wait_until(lambda: connection.is_connected, what="being let in again")
            keeper.cancel()


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("nkey_seed_file", "holds no NATS seed"),
        ("creds_file", "does not hold a user's JWT and its seed"),
        ("ca_file", "holds no certificates"),
        ("cert_file", "are no certificate with its key"),
    ],
)
async def test_a_file_that_is_not_what_it_should_be_is_told_at_once(tmp_path: Path, field: str, said: str) -> None:
    """Nobody is asked; and what the file holds is not told, for it may be a secret in the wrong place."""
    file = tmp_path / "file"
    file.write_text("SUAMYSECRETTHATISNONE\n")
    files = {field: file} | ({"key_file": file} if field == "cert_file" else {})
    told = await refusal(NatsSettings(url=f"nats://127.0.0.1:{free_port()}", **files))  # type: ignore[arg-type]
    assert said in told
    assert "SUAMYSECRET" not in told


async def test_of_several_servers_one_that_is_there_is_found(tmp_path: Path) -> None:
    """At start, and when the one we are at goes away."""
    async with Broker(tmp_path / "a") as first, Broker(tmp_path / "b") as second:
        nobody = f"nats://127.0.0.1:{free_port()}"
        settings = NatsSettings(url=f"{nobody}, {first.url},{second.url}", reconnect_wait_s=0.02)
        async with connected(settings) as connection:
            assert connection._client is not None
            here = connection._client.connected_url
            assert here is not None
            (first if here.port == first.port else second).stop()

            def is_at_the_other() -> bool:
                # Not "lost, then back": that may be over between two looks.
                url = connection._client.connected_url if connection._client is not None else None
                return connection.is_connected and url is not None and url.port != here.port

            await wait_until(is_at_the_other, what="a connection to the other server")
            assert await stored_through(connection) == b"hello"
