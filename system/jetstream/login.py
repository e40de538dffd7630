"""How a process is let in: TLS, and one of the ways to say who it is.

Promises: files are read when the process starts, so that one that is no key or certificate is a clear `ConnectError`
then, and again for each login, so that a renewed one is used. No secret appears in a message: neither what a file
holds nor what stands before the `@` of a URL. A connection without TLS is refused, before anything is told to the
server, if a `tls://` URL or a TLS file asks for it.
"""

from __future__ import annotations

import itertools
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from system.jetstream.errors import ConnectError
from system.settings import NatsSettings
from system.variables import without_secrets

_JWT_MARK = "BEGIN NATS USER JWT"
_SEED_MARK = "BEGIN USER NKEY SEED"


class Login:
    """What one connection's settings say about being let in."""

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self.must_be_tls = (
            any(urlsplit(url).scheme == "tls" for url in settings.servers)
            or settings.ca_file is not None
            or settings.cert_file is not None
        )
        self.servers = ", ".join(without_secrets(url) for url in settings.servers)

    def options(self) -> dict[str, Any]:
        """What nats-py's `connect` is given; `ConnectError` if a file does not hold what it should."""
        settings = self._settings
        options: dict[str, Any] = {}
        if self.must_be_tls:
            options["tls"] = self._tls_context()
        if settings.user is not None:
            options |= {"user": settings.user, "password": settings.password}
        if settings.token is not None:
            options["token"] = settings.token
        if settings.nkey_seed_file is not None:
            _check_seed(settings.nkey_seed_file, _text_of(settings.nkey_seed_file).strip())
            options["nkeys_seed"] = str(settings.nkey_seed_file)
        if settings.creds_file is not None:
            _check_credentials(settings.creds_file)
            options["user_credentials"] = str(settings.creds_file)
        return options

    def refusal(self, error: BaseException) -> str | None:
        """Why trying again is in vain until somebody changes something; None if the error says no such thing."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {error.verify_message} (NATS_TLS_CA_FILE says whom to trust)"
        if isinstance(error, ssl.SSLError):
            return f"TLS failed: {error.reason or error}"
        text = str(error).lower()
        if "no tls" in text:
            return "it offers no TLS, and without it nothing is told to it"
        if "authorization violation" in text or ("auth" in text and ("expired" in text or "revoked" in text)):
            return f"it does not let us in ({self._way()}): {str(error).removeprefix('nats: ').strip()}"
        return None

    def _way(self) -> str:
        """By what we log in, in the words of whoever set it."""
        settings = self._settings
        if settings.user is not None:
            return f"as NATS_USER {settings.user!r}"
        if settings.token is not None:
            return "with NATS_TOKEN"
        if settings.nkey_seed_file is not None:
            return f"with the key in NATS_NKEY_SEED_FILE {settings.nkey_seed_file}"
        if settings.creds_file is not None:
            return f"with NATS_CREDS_FILE {settings.creds_file}"
        if any(urlsplit(url).username for url in settings.servers):
            return "with what NATS_URL says"
        return "without any of NATS_USER, NATS_TOKEN, NATS_NKEY_SEED_FILE and NATS_CREDS_FILE"

    def _tls_context(self) -> ssl.SSLContext:
        settings = self._settings
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
        except (ssl.SSLError, OSError) as error:
            raise ConnectError(f"NATS_TLS_CA_FILE {settings.ca_file} holds no certificates: {error}") from None
        if settings.cert_file is not None:
            try:
                # An empty password, so that OpenSSL does not ask a terminal for one.
                context.load_cert_chain(settings.cert_file, settings.key_file, password="")
            except (ssl.SSLError, OSError) as error:
                raise ConnectError(
                    f"NATS_TLS_CERT_FILE {settings.cert_file} and NATS_TLS_KEY_FILE {settings.key_file} are no "
                    f"certificate with its key: {error}"
                ) from None
        return context


def _text_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise ConnectError(f"{path} cannot be read: {error.strerror}") from None


def _check_seed(path: Path, seed: str) -> None:
    import nkeys  # noqa: PLC0415 - costs 20 ms, and most processes log in otherwise

    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except Exception as error:  # noqa: BLE001 - it raises whatever its parts raise, and what it raises may quote the seed
        raise ConnectError(f"{path} holds no NATS seed ({type(error).__name__})") from None


def _check_credentials(path: Path) -> None:
    # nats-py reads on for ever in a file that has no JWT.
    lines = _text_of(path).splitlines()
    found = {
        mark: following
        for line, following in itertools.pairwise(lines)
        for mark in (_JWT_MARK, _SEED_MARK)
        if mark in line
    }
    if found.keys() != {_JWT_MARK, _SEED_MARK}:
        raise ConnectError(f"NATS_CREDS_FILE {path} does not hold a user's JWT and its seed")
    _check_seed(path, found[_SEED_MARK].strip())
