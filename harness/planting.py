"""Planted bugs: small patches on the system under test, made in one process before it starts.

A planted bug is one Python file: a docstring that says what is wrong, `TARGET` (the process), `EXPERIMENT`, `EXPECTED`
(ids of the invariants that must see it) and `plant()`, which changes whatever it likes in that process. The process is
started through `python -m harness.planting FILE MODULE`, so the system has no hook for it and no bug flag.
"""

from __future__ import annotations

import ast
import importlib.util
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.environment.topology import ProcessSpec
    from harness.system_under_test import SystemUnderTest

_PYTHON_MODULE_ARGUMENTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedBug:
    """One planted bug, read from its file without running it.

    name: the file's stem. target: role of the process. expected: ids of the invariants that must be VIOLATED.
    """

    name: str
    path: Path
    says: str
    target: str
    experiment: str
    expected: tuple[str, ...]


def read_bug(path: Path) -> PlantedBug:
    """Read a planted bug's file. Raises UsageError that says what is missing in it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except OSError as error:
        raise UsageError(f"the planted bug {path} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"the planted bug {path} is not Python: {error}") from error
    says = ast.get_docstring(tree)
    if not says:
        raise UsageError(f"the planted bug {path} has no docstring: say in it what is wrong")
    if not any(isinstance(node, ast.FunctionDef) and node.name == "plant" for node in tree.body):
        raise UsageError(f"the planted bug {path} defines no plant() function")
    expected = _literal(tree, "EXPECTED", path)
    if isinstance(expected, str):
        expected = (expected,)
    if (
        not isinstance(expected, (tuple, list, set))
        or not expected
        or not all(isinstance(each, str) for each in expected)
    ):
        raise UsageError(f"the planted bug {path} needs EXPECTED, invariant ids such as ('I2',)")
    return PlantedBug(
        name=path.stem,
        path=path.resolve(),
        says=says,
        target=_text(tree, "TARGET", path),
        experiment=_text(tree, "EXPERIMENT", path),
        expected=tuple(sorted(expected)),
    )


def read_bugs(directory: Path) -> tuple[PlantedBug, ...]:
    """Read every planted bug of a directory, in the order of their names. Raises UsageError when there is none."""
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory of planted bugs")
    bugs = tuple(read_bug(path) for path in sorted(directory.glob("*.py")) if not path.name.startswith("_"))
    if not bugs:
        raise UsageError(f"{directory} holds no planted bug (a .py file with TARGET, EXPERIMENT, EXPECTED and plant())")
    return bugs


def check_bug(bug: PlantedBug, system: SystemUnderTest) -> None:
    """Refuse a bug that names what the system does not have. Raises UsageError, before anything is started."""
    system.experiment(bug.experiment)
    known = {invariant.id for invariant in system.invariants}
    if not set(bug.expected) <= known:
        raise UsageError(
            f"the planted bug {bug.name} expects {sorted(set(bug.expected) - known)}; "
            f"there is: {', '.join(sorted(known))}"
        )
    roles = {spec.name for spec in system.topology.processes}
    if bug.target not in roles:
        raise UsageError(f"the planted bug {bug.name} targets {bug.target!r}; there is: {', '.join(sorted(roles))}")


def start_planted(bug: PlantedBug | None) -> Callable[[ProcessSpec], tuple[str, ...]]:
    """Return how to start each process: its target through the planting wrapper, all others as they are."""

    def argv(spec: ProcessSpec) -> tuple[str, ...]:
        if bug is None or spec.name != bug.target:
            return spec.argv
        if len(spec.argv) < _PYTHON_MODULE_ARGUMENTS or spec.argv[1] != "-m":
            raise UsageError(
                f"process {spec.name!r} is not started as `python -m MODULE`, so no bug can be planted in it"
            )
        python, dash_m, module, *arguments = spec.argv
        return (python, dash_m, "harness.planting", str(bug.path), module, *arguments)

    return argv


def main() -> None:
    """Plant the bug of `FILE` in this process, then run `MODULE` as its main."""
    file, module, *arguments = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("planted_bug", file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{file} cannot be imported as a planted bug")
    planted_bug = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(planted_bug)
    planted_bug.plant()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _literal(tree: ast.Module, name: str, path: Path) -> object:
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                try:
                    return ast.literal_eval(node.value)
                except ValueError as error:
                    raise UsageError(f"the planted bug {path}: {name} must be a plain literal") from error
    raise UsageError(f"the planted bug {path} does not say {name}")


def _text(tree: ast.Module, name: str, path: Path) -> str:
    value = _literal(tree, name, path)
    if not isinstance(value, str):
        raise UsageError(f"the planted bug {path}: {name} must be a string, it is {value!r}")
    return value


if __name__ == "__main__":
    main()
