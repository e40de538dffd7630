"""Text from outside, made fit to show to a person: on a page, on a terminal, in an error message.

Keys, names and details come from the system under test and from whoever called it. What is shown of them prints, and
has an end; escaping for HTML or for markup is left to whoever writes these.
"""

from __future__ import annotations

TEXT_MAX = 600
"""Longer texts are cut: a body of a megabyte may stand in a detail."""


def printable(text: object, limit: int = TEXT_MAX) -> str:
    r"""Return the text with what does not print spelled out (`\u202e`), cut at the limit.

    Control and direction characters could make an id look like another one, or end the page early.
    """
    whole = str(text)
    kept = whole if len(whole) <= limit else whole[: limit - 1] + "…"
    if kept.isprintable():
        return kept
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in kept)
