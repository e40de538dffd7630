"""A run's own certificate authority and the broker's certificate for this machine's loopback.

Promises: nobody but this run is trusted by what it makes; the authority's key is never written and is gone when this
returns, so nobody can make a second certificate; the server's key is private from its first byte; both certificates end
after some days.

Does not: make certificates for clients, or for any name but the loopback's.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from harness.environment.nats.server import ServerTls
from harness.environment.ports import LOOPBACK
from harness.environment.private_files import write_private
from harness.errors import EnvironmentFailedError, PlanError

if TYPE_CHECKING:
    from cryptography import x509

VALID_DAYS = 2
VALID_DAYS_MAX = 825
"""What public clients accept at most; a run lives for hours."""

CLOCK_SLACK = timedelta(minutes=5)
NAME = "Stormproof run"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCertificates:
    """PEM files of one run. ca_file: what a client has to trust. server: what the broker shows."""

    ca_file: Path
    server: ServerTls


def make_certificates(directory: Path, *, valid_days: int = VALID_DAYS) -> RunCertificates:
    """Make them in a directory of their own. A few milliseconds, after an import of 0.1 s.

    Raises EnvironmentFailedError where `cryptography` is not installed or the files cannot be written.
    """
    if not 1 <= valid_days <= VALID_DAYS_MAX:
        raise PlanError(f"valid_days={valid_days} is outside 1..{VALID_DAYS_MAX}")
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - 0.1 s, and an extra
    except ImportError:
        raise EnvironmentFailedError(
            'certificates for TLS are made with the package cryptography: pip install "stormproof[tls]"'
        ) from None
    authority, certificate, key = _issue(datetime.now(UTC), timedelta(days=valid_days))
    pem = serialization.Encoding.PEM
    made = RunCertificates(
        ca_file=directory / "ca.pem",
        server=ServerTls(certificate_file=directory / "server.pem", key_file=directory / "server.key"),
    )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFailedError(f"cannot make {directory}: {error.strerror}") from error
    write_private(made.ca_file, authority.public_bytes(pem).decode())
    write_private(made.server.certificate_file, certificate.public_bytes(pem).decode())
    write_private(made.server.key_file, key.decode())
    return made


def _issue(now: datetime, lifetime: timedelta) -> tuple[x509.Certificate, x509.Certificate, bytes]:
    # The authority's certificate, the server's, and the server's key as PEM. Elliptic curves: RSA keys take 100 times
    # as long to make.
    from cryptography import x509  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - as above
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: PLC0415 - as above

    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name, server_name = (
        x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, NAME), x509.NameAttribute(NameOID.COMMON_NAME, name)])
        for name in ("authority", "server")
    )

    def certificate_of(name: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .issuer_name(authority_name)
            .subject_name(name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SLACK)
            .not_valid_after(now + lifetime)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )

    authority = (
        certificate_of(authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    here = [x509.IPAddress(ipaddress.ip_address(LOOPBACK)), x509.DNSName("localhost")]
    # Of two servers that speak TLS to each other one is the client.
    roles = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        certificate_of(server_name, server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(roles), critical=False)
        .add_extension(x509.SubjectAlternativeName(here), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    key = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return authority, certificate, key


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509  # noqa: PLC0415 - as above

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
