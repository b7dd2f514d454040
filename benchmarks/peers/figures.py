"""From samples to a table: medians, spread, ratios round by round, and whether a run was disturbed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

MOST_FOREIGN = 0.05
"""Share of the cores that others may take before a sample counts as disturbed; the same for what the host stole."""
MOST_BANDWIDTH = 0.10
"""Change of the memory's bandwidth from its median that counts as a disturbance."""
OWN = "sglite"
LOAD = "load"


@dataclass(frozen=True, kw_only=True)
class Shot:
    """Means over the shots of one sample."""

    wall: float
    cpu: float
    """Of all the peer's processes."""
    tokens: int
    """New ones, of all outputs."""
    rows: int = 1
    passes: float | None = None
    """Forward passes a row; ``None``: the peer does not count, and takes one a token."""
    mask_ms: float | None = None

    @property
    def steps(self) -> float:
        """Forward passes after which a row has its tokens."""
        return self.tokens / self.rows if self.passes is None else self.passes


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One workload of one peer in one round; of the process itself: ``LOAD``, with ``start`` and ``memory`` alone."""

    peer: str
    round: int
    workload: str
    shots: Mapping[str, Shot] = field(default_factory=dict)
    start: float = 0.0
    """Seconds from starting the process to its first token."""
    memory: int = 0
    """Bytes, the most that were resident."""
    foreign: float = 0.0
    stolen: float = 0.0

    @property
    def disturbed(self) -> bool:
        return self.foreign > MOST_FOREIGN or self.stolen > MOST_FOREIGN


@dataclass(frozen=True)
class Metric:
    """A line of the table."""

    workload: str
    label: str
    value: Callable[[Sample], float]
    less: bool = True
    """Less is better."""
    compared: bool = True
    digits: int = 1


def _step(sample: Sample) -> float:
    """Milliseconds a step of decoding: the whole without what the first token took."""
    whole, first = sample.shots["whole"], sample.shots["first"]
    return 1e3 * (whole.wall - first.wall) / (whole.steps - 1)


def _rate(kind: str) -> Callable[[Sample], float]:
    return lambda sample: sample.shots[kind].tokens / sample.shots[kind].wall


def _pass_ms(shot: Shot) -> float:
    return 1e3 * shot.wall / shot.steps


def _more(sample: Sample) -> float:
    return _pass_ms(sample.shots["whole"]) - _pass_ms(sample.shots["free"])


def _filled(sample: Sample) -> float:
    whole = sample.shots["whole"]
    return float("nan") if whole.mask_ms is None else whole.mask_ms / whole.steps


def _cpu(sample: Sample) -> float:
    return sample.shots["whole"].cpu


def _cpu_step(sample: Sample) -> float:
    whole, first = sample.shots["whole"], sample.shots["first"]
    return 1e3 * (whole.cpu - first.cpu) / (whole.steps - 1)


METRICS = (
    Metric("W1", "ms a token", _step, digits=2),
    Metric("W1", "first token, s", lambda s: s.shots["first"].wall, digits=3),
    Metric("W2", "s", lambda s: s.shots["whole"].wall, digits=3),
    Metric("W3", "tokens/s", _rate("whole"), less=False),
    Metric("W3", "ms a step", _step, digits=2),
    Metric("W3", "first tokens, s", lambda s: s.shots["first"].wall, digits=2),
    Metric("W4", "s", lambda s: s.shots["whole"].wall, digits=3),
    Metric("W4", "first tokens, s", lambda s: s.shots["first"].wall, digits=3),
    Metric("W5", "tokens/s, JSON", _rate("whole"), less=False),
    Metric("W5", "tokens/s, free", _rate("free"), less=False),
    Metric("W5", "passes a token", lambda s: s.shots["whole"].steps * s.shots["whole"].rows / s.shots["whole"].tokens,
           compared=False, digits=2),
    Metric("W5", "ms more a pass, JSON", _more, compared=False, digits=2),
    Metric("W5", "ms of masks a pass", _filled, compared=False, digits=2),
    Metric("W6", "tokens/s", _rate("whole"), less=False),
    *(Metric(name, "CPU seconds", _cpu, digits=2) for name in ("W1", "W2", "W3", "W4", "W5", "W6")),
    *(Metric(name, "CPU ms a step", _cpu_step, digits=2) for name in ("W1", "W3")),
    Metric(LOAD, "to the first token, s", lambda s: s.start, digits=2),
    Metric(LOAD, "peak memory, GB", lambda s: s.memory / 1e9, digits=2),
)  # fmt: skip


@dataclass
class Column:
    """What one peer had for one metric."""

    values: dict[int, float] = field(default_factory=dict)
    """By round."""
    disturbed: bool = False

    def text(self, digits: int) -> str:
        """Median, and the least and the most of several."""
        found = list(self.values.values())
        if not found:
            return "–"
        spread = f" ({min(found):,.{digits}f} to {max(found):,.{digits}f})" if len(found) > 1 else ""
        return f"{statistics.median(found):,.{digits}f}{spread}{'*' if self.disturbed else ''}"


def column(metric: Metric, peer: str, samples: Sequence[Sample]) -> Column:
    """The values of ``peer``; those that are not numbers are left out."""
    found = Column()
    for sample in samples:
        if (sample.peer, sample.workload) == (peer, metric.workload):
            value = metric.value(sample)
            if value == value:
                found.values[sample.round] = value
                found.disturbed |= sample.disturbed
    return found


def ahead(own: Column, other: Column, less: bool) -> float | None:
    """How many times ``own`` is better: the median of the rounds' ratios. ``None`` where no round has both."""
    rounds = own.values.keys() & other.values.keys()
    pairs = [(own.values[r], other.values[r]) for r in sorted(rounds)]
    ratios = [b / a if less else a / b for a, b in pairs if a > 0 and b > 0]
    return statistics.median(ratios) if ratios else None


def table(peers: Sequence[str], samples: Sequence[Sample]) -> list[str]:
    """Lines of markdown; behind another peer's figure how many times sglite is ahead, at the end the least of them."""
    others = [peer for peer in peers if peer != OWN]
    named = [OWN, *others] if OWN in peers else others
    lines = [f"| | {' | '.join(named)} | ahead of the best |", "|---" * (len(named) + 2) + "|"]
    for metric in METRICS:
        columns = {peer: column(metric, peer, samples) for peer in named}
        if not any(one.values for one in columns.values()):
            continue
        own = columns.get(OWN, Column())
        factors = {peer: ahead(own, columns[peer], metric.less) if metric.compared else None for peer in others}
        cells = [columns[peer].text(metric.digits) + _factor(factors.get(peer)) for peer in named]
        known = [factor for factor in factors.values() if factor is not None]
        best = f"{min(known):.2f}x" if known else ""
        lines.append(f"| {metric.workload} {metric.label} | {' | '.join(cells)} | {best} |")
    return lines


def _factor(factor: float | None) -> str:
    return "" if factor is None else f" {factor:.2f}x"


def disturbances(samples: Sequence[Sample], bandwidths: Sequence[float]) -> list[str]:
    """What spoilt the run, a line each; nothing: it was quiet."""
    found = []
    bad = [sample for sample in samples if sample.disturbed]
    if bad:
        foreign, stolen = max(s.foreign for s in bad), max(s.stolen for s in bad)
        found.append(
            f"disturbed: in {len(bad)} of {len(samples)} samples (*) other processes took up to {foreign:.0%} of the "
            f"cores, the host up to {stolen:.0%}; do not compare wall times, CPU seconds bear it better"
        )
    if bandwidths:
        usual = statistics.median(bandwidths)
        off = max(abs(value - usual) / usual for value in bandwidths)
        if off > MOST_BANDWIDTH:
            found.append(f"disturbed: the memory's bandwidth differed by {off:.0%} between rounds")
    return found
