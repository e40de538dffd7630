"""What a process counts, and how /metrics shows it.

Counting is adding to a plain number: the event loop is the only writer, so no lock is needed, and nothing is paid for
on the hot path but the addition. prometheus_client renders the numbers when somebody asks; it is imported then and
not at start, because it costs 40 ms of start time that a process without a scraper never needs to spend.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Kind = Literal["counter", "gauge"]


class Number:
    """One number that goes up, and for a gauge also down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int = 1) -> None:
        """Add `amount`."""
        self.value += amount


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    kind: Kind
    name: str
    help: str
    label: str
    numbers: dict[str, Number]


class Metrics:
    """All numbers of one process, by name and by the value of at most one label."""

    CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def counter(self, name: str, text: str, *, label: str = "", value: str = "") -> Number:
        """Number of things that happened; the same name, label and value give the same number again."""
        return self._number("counter", name, text, label, value)

    def gauge(self, name: str, text: str, *, label: str = "", value: str = "") -> Number:
        """Number of things that are so now."""
        return self._number("gauge", name, text, label, value)

    def rendered(self) -> bytes:
        """Everything in the Prometheus text format."""
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415 - see the module's docstring
        from prometheus_client.registry import CollectorRegistry  # noqa: PLC0415

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Snapshot(self._families.values()))
        return generate_latest(registry)

    def _number(self, kind: Kind, name: str, text: str, label: str, value: str) -> Number:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _Family(kind=kind, name=name, help=text, label=label, numbers={})
        return family.numbers.setdefault(value, Number())


class _Snapshot:
    """A prometheus_client collector over plain numbers."""

    def __init__(self, families: Iterable[_Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

        for family in self._families:
            labels = [family.label] if family.label else []
            make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = make(family.name, family.help, labels=labels)
            for value, number in family.numbers.items():
                metric.add_metric([value] if labels else [], number.value)
            yield metric
