"""Write `shop_pb2.py` and `shop_pb2.pyi` from `shop.proto`, or check that they are what it says.

`python -m system.events.generate` regenerates in place; `--check` changes nothing and exits 1 when the committed code
differs. The version line of the generator is not compared: a newer grpcio-tools writes the same code under a new
number. It needs grpcio-tools, which only developers have; the running system does not.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

PACKAGE_DIRECTORY = Path(__file__).parent
SOURCE = "system/events/shop.proto"
GENERATED = ("shop_pb2.py", "shop_pb2.pyi")

_GENERATOR_VERSION = re.compile(r"^# Protobuf Python Version:.*$|^    \d+,$", re.MULTILINE)


def generate(destination: Path) -> None:
    """Run protoc over the source and leave both generated files below `destination`."""
    from grpc_tools import protoc  # noqa: PLC0415 - only developers have it

    root = PACKAGE_DIRECTORY.parent.parent
    status = protoc.main(["protoc", f"-I{root}", f"--python_out={destination}", f"--pyi_out={destination}", SOURCE])
    if status != 0:
        raise SystemExit(f"protoc refused {SOURCE}: it ended with {status}, see its message above")


def stale_files() -> list[str]:
    """The committed files that differ from what the source generates."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        return [
            name
            for name in GENERATED
            if _comparable(PACKAGE_DIRECTORY / name) != _comparable(Path(scratch) / Path(SOURCE).parent / name)
        ]


def main(arguments: list[str]) -> int:
    """Regenerate, or with `--check` compare."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m system.events.generate [--check]\n")
        return 64
    if not arguments:
        generate(PACKAGE_DIRECTORY.parent.parent)
        return 0
    stale = stale_files()
    for name in stale:
        sys.stderr.write(f"{name} is not what {SOURCE} says: run python -m system.events.generate\n")
    return 1 if stale else 0


def _comparable(path: Path) -> str:
    return _GENERATOR_VERSION.sub("", path.read_text(encoding="utf-8")) if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
