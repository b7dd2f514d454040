"""What Prometheus reads: the tally of requests, and what the engine last said of itself.

Names and labels are SGLang's where it has the number (with the prefix ``sglang`` its dashboards fit), so ``model_name``
is on every series. Series are bounded: routes are the server's own, statuses and reasons few. Scraping asks the engine
for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from sglite.runtime.observe.observer import Observer
from sglite.runtime.observe.series import (
    COMPILE_TIME,
    ENGINE_COUNTERS,
    ENGINE_GAUGES,
    ENGINE_UP,
    HEARTBEAT,
    HISTOGRAMS,
    HTTP_REQUESTS,
    OWN_GAUGES,
    REFUSED,
    REQUEST_COUNTERS,
    RESTARTS,
    STATISTICS_AGE,
)

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """What the engine last said of itself. ``statistics``: as in ``/server_info``, ``statistics_age_s`` ago."""

    up: bool
    statistics: Mapping[str, Any] = field(default_factory=dict)
    statistics_age_s: float = 0.0
    heartbeat_age_s: float = 0.0
    restarts: int = 0


class Metrics(Collector):
    """See the module.

    Args:
        prefix: before the colon of every name.
        model: the label ``model_name``.
        state: what the engine last said; called at each scrape, and quick.
    """

    def __init__(self, observer: Observer, state: Callable[[], EngineState], *, prefix: str, model: str) -> None:
        self._observer = observer
        self._state = state
        self._prefix = prefix
        self._model = model
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        state = self._state()
        with self._observer.lock:
            found = [*self._requests(), *self._http()]
        yield from found
        yield from self._engine(state)

    def _requests(self) -> Iterator[Metric]:
        tally, now = self._observer.tally, self._observer.clock()
        for name, text in REQUEST_COUNTERS.items():
            yield self._counter(name, text, [((), tally.counts[name])])
        for (name, text), histogram in zip(
            HISTOGRAMS.items(), (tally.first_token, tally.between_tokens, tally.request, tally.queue), strict=True
        ):
            family = HistogramMetricFamily(self._name(name), text, labels=["model_name"])
            family.add_metric([self._model], histogram.buckets(), histogram.sum)
            yield family
        cached, prompt = tally.prompts.sums(now)
        values = {
            "gen_throughput": tally.throughput(now),
            "cache_hit_rate": cached / prompt if prompt else 0.0,
            "http_open_requests": tally.http_open,
        }
        for name, text in OWN_GAUGES.items():
            yield self._gauge(name, text, values[name])

    def _http(self) -> Iterator[Metric]:
        tally = self._observer.tally
        yield self._counter(*HTTP_REQUESTS, list(tally.http.items()), ["route", "status"])
        yield self._counter(*REFUSED, [((reason,), n) for reason, n in tally.refused.items()], ["reason"])

    def _engine(self, state: EngineState) -> Iterator[Metric]:
        for name, (text, read) in ENGINE_COUNTERS.items():
            value = read(state.statistics)
            if value is not None:
                yield self._counter(name, text, [((), value)])
        for name, (text, read) in ENGINE_GAUGES.items():
            value = read(state.statistics)
            if value is not None:
                yield self._gauge(name, text, value)
        compiled = [_number(state.statistics, name) for name in ("compiled", "refused", "timeouts", "seconds")]
        family = SummaryMetricFamily(self._name(COMPILE_TIME[0]), COMPILE_TIME[1], labels=["model_name"])
        family.add_metric([self._model], int(sum(compiled[:3])), compiled[3])
        yield family
        yield self._counter(*RESTARTS, [((), state.restarts)])
        yield self._gauge(*ENGINE_UP, state.up)
        yield self._gauge(*HEARTBEAT, state.heartbeat_age_s)
        yield self._gauge(*STATISTICS_AGE, state.statistics_age_s)

    def _name(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def _counter(
        self, name: str, text: str, values: Sequence[tuple[Sequence[str], float]], labels: Sequence[str] = ()
    ) -> Metric:
        family = CounterMetricFamily(self._name(name), text, labels=["model_name", *labels])
        for given, value in values:
            family.add_metric([self._model, *given], value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(self._name(name), text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family


def _number(statistics: Mapping[str, Any], name: str) -> float:
    """One of the compiler's."""
    return float(statistics.get("grammar", {}).get(name, 0))
