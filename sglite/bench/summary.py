"""What a run comes to: throughput, percentiles, errors by kind, sums of the server's own accounting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sglite.bench.load import Answer

QUANTILES = (50, 90, 99)


def quantile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least ``percent`` of them do not exceed (nearest rank); None: there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else None


def summary(
    answers: Sequence[Answer], seconds: float, before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, Any]:
    """Times in milliseconds. ``server``: what its counters rose by during the run, other clients included."""
    done = [answer for answer in answers if answer.ok]
    output = _sum(done, "completion_tokens")
    gaps = [gap / tokens for answer in done for gap, tokens in answer.gaps for _ in range(tokens)]
    return {
        "requests": len(answers),
        "completed": len(done),
        "errors": dict(sorted(Counter(answer.status for answer in answers if not answer.ok).items())),
        "first_error": next((answer.error for answer in answers if answer.error), None),
        "seconds": round(seconds, 3),
        "requests_per_s": round(len(done) / seconds, 3),
        "output_tokens_per_s": round(output / seconds, 2),
        "input_tokens_per_s": round(_sum(done, "prompt_tokens") / seconds, 2),
        "prompt_tokens": _sum(done, "prompt_tokens"),
        "cached_tokens": _sum(done, "cached_tokens"),
        "completion_tokens": output,
        "forced_tokens": _sum(done, "forced_tokens"),
        "forward_passes": _sum(done, "forward_passes"),
        "ttft_ms": _spread([answer.first - answer.due for answer in done if answer.first is not None]),
        "itl_ms": _spread(gaps),
        "e2e_ms": _spread([answer.last - answer.due for answer in done if answer.last is not None]),
        "server": {name: round(after[name] - before[name], 3) for name in after if name in before},
    }


def share(part: float, whole: float) -> float | None:
    """``part / whole``, None of nothing."""
    return round(part / whole, 4) if whole else None


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One column a run, one row a figure."""
    rows: dict[str, list[str]] = {}
    for place, result in enumerate(results.values()):
        risen = {name: value for name, value in result.get("server", {}).items() if value}
        for name, value in _flat(
            {**{name: value for name, value in result.items() if name != "server"}, "server": risen}
        ):
            rows.setdefault(name, [""] * len(results))[place] = value
    head = ["", *results]
    body = [[name, *values] for name, values in rows.items() if any(values)]
    widths = [max(len(line[at]) for line in [head, *body]) for at in range(len(head))]
    lines = []
    for line in [head, *body]:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _flat(result: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in result.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name} ")
        elif value is not None:
            found.append(
                (
                    prefix + name,
                    f"{value:,}"
                    if isinstance(value, int)
                    else f"{value:,.4g}"
                    if isinstance(value, float)
                    else str(value),
                )
            )
    return found


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    found = {f"p{percent}": quantile(seconds, percent) for percent in QUANTILES}
    return {name: round(value * 1000, 3) for name, value in found.items() if value is not None}


def _sum(answers: Sequence[Answer], name: str) -> float:
    return sum(answer.counts.get(name, 0) for answer in answers)
