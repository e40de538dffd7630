"""What keeps a process from starting."""

from __future__ import annotations


class StartError(Exception):
    """A process cannot work with what it found; the message is one sentence: what was seen, and what to do."""
