"""The rules of ARCHITECTURE.md that a reader can rely on, checked on the source itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("system", "harness", "chaos", "scenarios", "loadtests")

ALLOWED = {
    "system": {"system"},
    "harness": {"harness"},
    "chaos": {"chaos", "harness"},
    "scenarios": set(FOLDERS),
    "loadtests": set(FOLDERS),
}
"""Which of our folders each folder may import."""

TESTS_MAY_ALSO = {"chaos": {"scenarios"}, "harness": {"scenarios", "system", "chaos"}}
"""Tests of a folder may look at the shipped system, which is the first user of everything."""

LAYERS = ("records", "collection", "evidence", "invariants", "report")
"""Inside the harness, each may import only itself and those before it."""


def sources(folder: str) -> list[Path]:
    """Return the Python files of a folder, generated ones left out."""
    return [path for path in (ROOT / folder).rglob("*.py") if not path.stem.endswith("_pb2")]


def imports(path: Path) -> set[str]:
    """Return the absolute module names that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names.add(node.module)
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    """System and harness stand alone; chaos knows the harness only; nothing imports scenarios or loadtests."""
    for path in sources(folder):
        allowed = ALLOWED[folder] | (TESTS_MAY_ALSO.get(folder, set()) if "tests" in path.parts else set())
        ours = {name.split(".")[0] for name in imports(path)} & set(FOLDERS)
        assert ours <= allowed, f"{path.relative_to(ROOT)} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize("layer", LAYERS)
def test_inside_the_harness_imports_go_one_way(layer: str) -> None:
    """records, collection, evidence, invariants, report: each leans only on those before it."""
    later = {f"harness.{name}" for name in LAYERS[LAYERS.index(layer) + 1 :]}
    place = ROOT / "harness" / layer
    for path in [place.with_suffix(".py")] if layer == "records" else sources(f"harness/{layer}"):
        if "tests" in path.parts:
            continue
        found = {name for name in imports(path) for each in later if name == each or name.startswith(each + ".")}
        assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


@pytest.mark.parametrize(("package", "folders"), [("gevent", {"loadtests"}), ("locust", {"loadtests"})])
def test_packages_that_change_the_process_stay_in_their_folder(package: str, folders: set[str]) -> None:
    """Importing gevent or Locust patches the interpreter it is imported into."""
    for folder in set(FOLDERS) - folders:
        for path in sources(folder):
            assert package not in {name.split(".")[0] for name in imports(path)}, path.relative_to(ROOT)


GIVES_IT_TO_TESTS = {Path("harness/fixtures/jetstream.py")}
"""A fixture hands the client itself to somebody's test, who has to be able to use what he knows."""


@pytest.mark.parametrize("package", ["nats", "testcontainers"])
def test_a_client_library_is_imported_in_one_module_for_each_folder(package: str) -> None:
    """What we know of its traps is then known in one place."""
    for folder in FOLDERS:
        users = {
            path.relative_to(ROOT)
            for path in sources(folder)
            if "tests" not in path.parts and package in {name.split(".")[0] for name in imports(path)}
        }
        packages = {path.parent for path in users}
        is_in_one_place = len(users - GIVES_IT_TO_TESTS) <= 1
        assert is_in_one_place or (folder == "system" and packages == {Path("system/jetstream")}), sorted(
            map(str, users)
        )
