"""What a process counts, and how /metrics shows it.

Counting is adding to a plain number: the event loop is the only writer, so no lock is needed, and nothing is paid for
on the hot path but the addition. prometheus_client renders the numbers when somebody asks; it is imported then and
not at start, because it costs 40 ms of start time that a process without a scraper never needs to spend.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Kind = Literal["counter", "gauge", "histogram"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds for times of this system: finest around what is promised."""


class Number:
    """One number that goes up, and for a gauge also down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int = 1) -> None:
        """Add `amount`."""
        self.value += amount


class Histogram:
    """How often a value was at most each bound, how many there were, and their sum.

    bounds: ascending. counts: how many were above the bound before and at most this one; one more for those above all.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        if not bounds or list(bounds) != sorted(set(bounds)):
            raise ValueError(f"bounds={bounds!r}: there must be some, each above the one before")
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    kind: Kind
    name: str
    help: str
    label: str
    numbers: dict[str, Number]
    histograms: dict[str, Histogram]


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

    def histogram(
        self, name: str, text: str, *, label: str = "", value: str = "", buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        """How some values are spread; the same name, label and value give the same histogram again."""
        family = self._family("histogram", name, text, label)
        histogram = family.histograms.get(value)
        if histogram is None:
            histogram = family.histograms[value] = Histogram(buckets)
        return histogram

    def rendered(self) -> bytes:
        """Everything in the Prometheus text format."""
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415 - see the module's docstring
        from prometheus_client.registry import CollectorRegistry  # noqa: PLC0415 - see the module's docstring

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Snapshot(self._families.values()))
        return generate_latest(registry)

    def _number(self, kind: Kind, name: str, text: str, label: str, value: str) -> Number:
        return self._family(kind, name, text, label).numbers.setdefault(value, Number())

    def _family(self, kind: Kind, name: str, text: str, label: str) -> _Family:
        family = self._families.get(name)
        if family is None:
            family = _Family(kind=kind, name=name, help=text, label=label, numbers={}, histograms={})
            self._families[name] = family
        elif (family.kind, family.label) != (kind, label):
            known = f"a {family.kind} by {family.label or 'no label'}"
            raise ValueError(f"{name} is {known} already: it cannot be a {kind} by {label or 'no label'} too")
        return family


class _Snapshot:
    """A prometheus_client collector over plain numbers."""

    def __init__(self, families: Iterable[_Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import (  # noqa: PLC0415 - see the module's docstring
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        for family in self._families:
            labels = [family.label] if family.label else []
            if family.kind == "histogram":
                spread = HistogramMetricFamily(family.name, family.help, labels=labels)
                for value, histogram in family.histograms.items():
                    spread.add_metric([value] if labels else [], _cumulated(histogram), histogram.sum)
                yield spread
                continue
            make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = make(family.name, family.help, labels=labels)
            for value, number in family.numbers.items():
                metric.add_metric([value] if labels else [], number.value)
            yield metric


def _cumulated(histogram: Histogram) -> list[tuple[str, float]]:
    """Each bound with how many values were at most that, as Prometheus has it."""
    bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
