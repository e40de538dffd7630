"""Every promise of `system/__init__.py` is named by a test that proves it, and no test names one there is not."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import system

_PROMISE = re.compile(r"^(P\d+)\.", re.MULTILINE)
_NAMED = re.compile(r"\bP\d+\b")

PROMISES = _PROMISE.findall(system.__doc__ or "")


def found_by_promise() -> dict[str, list[str]]:
    """Which tests name each promise, in their own docstring or in that of their module."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.name == Path(__file__).name:
            continue
        module = ast.parse(path.read_text(encoding="utf-8"))
        for promise in _NAMED.findall(ast.get_docstring(module) or ""):
            found[promise].append(path.stem)
        for test in _tests(module):
            for promise in _NAMED.findall(ast.get_docstring(test) or ""):
                found[promise].append(f"{path.stem}::{test.name}")
    return found


def _tests(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


def test_the_promises_are_numbered_without_a_gap() -> None:
    """Nobody quotes a promise that was taken back."""
    assert [f"P{number}" for number in range(1, len(PROMISES) + 1)] == PROMISES


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_is_named_by_a_test(promise: str) -> None:
    """A promise nobody tests is a hope."""
    assert found_by_promise()[promise], f"no test in {Path(__file__).parent.name}/ names {promise}"


def test_no_test_names_a_promise_that_there_is_not() -> None:
    """Left behind when a promise was renumbered."""
    assert set(found_by_promise()) <= set(PROMISES)
