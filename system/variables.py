"""Environment variables, read one by one: text in, a checked value out.

A value that makes no sense raises `ConfigurationError`, whose message names the variable, the value and what it should
be. An empty variable means unset. What is parsed by its own rules brings a parser, which raises `ValueError` with the
rest of a sentence that begins with the variable and its value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_USER_INFO = re.compile(r"//[^/@]*@")


class ConfigurationError(Exception):
    """An environment variable holds something this process cannot work with."""


def variable(environ: Mapping[str, str], name: str, default: str, parse: Callable[[str], T]) -> T:
    """What a variable says, or its default when it is unset. Raises `ConfigurationError`."""
    text = environ.get(name, "") or default
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigurationError(f"{name}={without_secrets(text)!r} {error}") from None


def optional(environ: Mapping[str, str], name: str, parse: Callable[[str], T]) -> T | None:
    """What a variable says, None when it is unset. Raises `ConfigurationError`."""
    return variable(environ, name, "", parse) if environ.get(name) else None


def number_between(low: float, high: float) -> Callable[[str], float]:
    """A parser of numbers, both ends included."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"is not a number from {low:g} to {high:g}") from None
        if not low <= number <= high:  # False for NaN too
            raise ValueError(f"is outside {low:g}..{high:g}")
        return number

    return parse


def whole_number_between(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers, both ends included."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"is not a whole number from {low} to {high}")
        number = int(text)
        if not low <= number <= high:
            raise ValueError(f"is outside {low}..{high}")
        return number

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    """A parser of one of these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"is not one of {', '.join(words)}")
        return text

    return parse


def readable_file(text: str) -> Path:
    """The path of a file that is there and may be read; it is not opened."""
    path = as_path(text)
    if not os.access(path, os.R_OK) or not path.is_file():
        raise ValueError("is not a file that can be read")
    return path


def as_path(text: str) -> Path:
    """A path, whether or not something is there."""
    if "\0" in text:
        raise ValueError("is not a path")
    return Path(text)


def without_secrets(text: str) -> str:
    """A setting as it may be shown: what stands before the @ of a URL is nobody's business."""
    return _USER_INFO.sub("//***@", text)
