"""What the shop's findings have in common: each is about one order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AboutOrder:
    """A finding about one order; `stormproof explain RUN KEY` tells that order's story."""

    order: str

    @property
    def key(self) -> str:
        """The order."""
        return self.order
