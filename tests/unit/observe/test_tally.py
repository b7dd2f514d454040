"""Histograms count as Prometheus' own do; recent sums are sums of what is recent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference

from sglite.runtime.observe.tally import Histogram, Recent

BOUNDS = (0.001, 0.5, 1, 2.5)


@given(
    st.lists(st.tuples(st.one_of(st.sampled_from([0.0, 0.001, 0.5, 1, 2.5, 9]), st.floats(0, 5)), st.integers(1, 3)))
)
def test_a_histogram_is_prometheus_own(observed: list[tuple[float, int]]) -> None:
    ours, reference = Histogram(BOUNDS), Reference("h", "h", buckets=BOUNDS, registry=CollectorRegistry())
    for value, times in observed:
        ours.observe(value, times)
        for _ in range(times):
            reference.observe(value)
    samples = [s for s in next(iter(reference.collect())).samples if s.name == "h_bucket"]
    assert ours.buckets() == [(s.labels["le"], s.value) for s in samples]


@given(st.lists(st.tuples(st.floats(0, 7), st.integers(0, 9), st.integers(0, 9)), max_size=40), st.floats(0, 7))
def test_recent_sums_are_of_the_last_seconds(steps: list[tuple[float, int, int]], later: float) -> None:
    recent, now, added = Recent(5, kinds=2), 100.0, []
    for wait, one, other in steps:
        now += wait
        recent.add(now, one, other)
        added.append((int(now), one, other))
    now += later
    kept = [(one, other) for when, one, other in added if when > int(now) - 5]
    assert recent.sums(now) == [sum(one for one, _ in kept), sum(other for _, other in kept)]
