"""Numbers, and what a scraper sees of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from system.metrics import SECONDS, Histogram, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scraper reads, by name and labels."""
    families = text_string_to_metric_families(metrics.rendered().decode())
    return {(s.name, tuple(s.labels.items())): s.value for family in families for s in family.samples}


def test_counters_and_gauges_are_shown_with_their_label() -> None:
    """The same name, label and value are the same number."""
    metrics = Metrics()
    metrics.counter("orders", "Orders", label="status", value="202").add()
    metrics.counter("orders", "Orders", label="status", value="202").add(2)
    metrics.counter("orders", "Orders", label="status", value="503").add()
    metrics.gauge("in_hand", "In hand").add(3)
    metrics.gauge("in_hand", "In hand").add(-1)

    assert samples(metrics) == {
        ("orders_total", (("status", "202"),)): 3,
        ("orders_total", (("status", "503"),)): 1,
        ("in_hand", ()): 2,
    }


def test_a_histogram_counts_what_was_at_most_each_bound() -> None:
    """A value on a bound belongs to it; one above all shows only in the count."""
    metrics = Metrics()
    times = metrics.histogram("wait_seconds", "Waits", buckets=(0.1, 1, 10))
    for value in (0.05, 0.1, 0.5, 1.0, 99.0):
        times.observe(value)

    assert samples(metrics) == {
        ("wait_seconds_bucket", (("le", "0.1"),)): 2,
        ("wait_seconds_bucket", (("le", "1.0"),)): 4,
        ("wait_seconds_bucket", (("le", "10.0"),)): 4,
        ("wait_seconds_bucket", (("le", "+Inf"),)): 5,
        ("wait_seconds_count", ()): 5,
        ("wait_seconds_sum", ()): pytest.approx(100.65),
    }


def test_a_histogram_may_have_a_label() -> None:
    """Each value of it has its own spread."""
    metrics = Metrics()
    metrics.histogram("wait_seconds", "Waits", label="consumer", value="a", buckets=(1,)).observe(0.5)
    metrics.histogram("wait_seconds", "Waits", label="consumer", value="b", buckets=(1,)).observe(2)
    assert metrics.histogram("wait_seconds", "Waits", label="consumer", value="a").counts == [1, 0]

    seen = samples(metrics)
    assert seen["wait_seconds_bucket", (("consumer", "a"), ("le", "1.0"))] == 1
    assert seen["wait_seconds_bucket", (("consumer", "b"), ("le", "1.0"))] == 0
    assert seen["wait_seconds_count", (("consumer", "b"),)] == 1


def test_a_histogram_without_values_is_shown_all_the_same() -> None:
    """Zero is something to see."""
    metrics = Metrics()
    metrics.histogram("wait_seconds", "Waits")

    assert samples(metrics)["wait_seconds_count", ()] == 0
    assert len(samples(metrics)) == len(SECONDS) + 3


@given(st.lists(st.floats(0, 100)))
def test_every_value_is_counted_once(values: list[float]) -> None:
    """In the first bucket it fits in."""
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.observe(value)

    for index, bound in enumerate(SECONDS):
        assert sum(histogram.counts[: index + 1]) == sum(value <= bound for value in values)
    assert sum(histogram.counts) == len(values)
    assert histogram.sum == pytest.approx(sum(values))


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0)])
def test_bounds_that_do_not_ascend_are_refused(bounds: tuple[float, ...]) -> None:
    """Their counts would mean nothing."""
    with pytest.raises(ValueError, match="each above the one before"):
        Histogram(bounds)


def test_one_name_is_one_kind_of_number_by_one_label() -> None:
    """A scraper would see one of the two, and not which."""
    metrics = Metrics()
    metrics.counter("orders", "Orders", label="status", value="202")
    with pytest.raises(ValueError, match="orders is a counter by status already: it cannot be a histogram by status"):
        metrics.histogram("orders", "Orders", label="status", value="202")
    with pytest.raises(ValueError, match="it cannot be a counter by no label"):
        metrics.counter("orders", "Orders")
