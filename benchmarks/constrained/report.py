"""The table that ``run`` prints: one row a measure, one column an engine, from the summaries of the harness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

COLUMNS = ("sglite", "sglite, schema order", "llguidance", "xgrammar")
Summary = Mapping[str, Any]


def markdown(found: Mapping[str, Any]) -> str:
    """The numbers as Markdown; what was not measured is left out, what failed says so."""
    harness = found.get("harness", {})
    columns = [name for name in COLUMNS if any(key.startswith(f"{name}/") for key in harness)] or ["sglite"]
    lines = ["| measure | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for title, key, cell in ROWS:
        row = [_cell(_find(harness, column, key), cell) for column in columns]
        if any(row):
            lines.append(f"| {title} | " + " | ".join(value or "-" for value in row) + " |")
    for title, value in (*_everyday(found), *_passes(found)):
        lines.append(f"| {title} | " + " | ".join([value, *["-"] * (len(columns) - 1)]) + " |")
    lines += _mask(found, columns)
    part = f", the first {found['limit']} items of every set" if found.get("limit") else ""
    host = found.get("host", {})
    lines += ["", f"{host.get('machine')}, Python {host.get('python')}{part}. Times are CPU time of one thread."]
    return "\n".join(lines)


def _find(harness: Mapping[str, Summary], column: str, key: str) -> Summary | None:
    """A run by column and key; with default spelling sglite's spacing is fixed and its peers' is flexible."""
    if key == ("dev/fixed" if column.startswith("sglite") else "dev/flexible"):
        key = "dev"
    return harness.get(f"{column}/{key}")


def _cell(summary: Summary | None, cell: Callable[[Summary], str]) -> str:
    if summary is None:
        return ""
    return f"failed: {summary['failed']}"[:80] if "failed" in summary else cell(summary)


def _share(part: str) -> Callable[[Summary], str]:
    return lambda s: f"{100 * s[part] / s['items']:.1f} %"


def _of(part: str, whole: str) -> Callable[[Summary], str]:
    return lambda s: f"{s[part]} of {s[whole]}"


def _right_and_loose(s: Summary) -> str:
    return f"{s['items_all_right']} of {s['items']} / {s['items_under_constrained']}"


def _wrong(s: Summary) -> str:
    return f"{s['items_all_right']} of {s['items']} / {s['items_over_constrained'] + s['items_under_constrained']}"


def _compile(s: Summary) -> str:
    times = s["compile_plus_first_mask_us"]
    late = f", {s['timed_out']} timed out" if s["timed_out"] else ""
    return " / ".join(_milliseconds(times[name]) for name in ("p50", "p99", "max")) + late


def _milliseconds(microseconds: float | None) -> str:
    return "-" if microseconds is None else f"{microseconds / 1000:.1f}"


def _masks(s: Summary) -> str:
    return " / ".join(f"{s['mask_us'][name] or 0:.0f}" for name in ("p50", "p99", "p99.9", "max"))


def _forced(s: Summary) -> str:
    if "forced_native_ff_pct" not in s:
        return ""
    share = s["forced_native_ff_pct"]
    return f"{share} % / {s['ff_diverge']}" if share or s["ff_diverge"] else "none"


ROWS: tuple[tuple[str, str, Callable[[Summary], str]], ...] = (
    ("maskbench sample: compiled", "dev", _share("compiled")),
    ("every instance right", "dev", _share("items_all_right")),
    ("valid instances rejected", "dev", _of("valid_rejected", "valid_tested")),
    ("invalid instances accepted", "dev", _of("invalid_accepted", "invalid_tested")),
    ("JSON-Schema-Test-Suite groups: right / accepting an invalid instance", "jsts", _right_and_loose),
    ("feature probes: right / ignored", "features", _right_and_loose),
    ("regex corpus: right / wrong", "regex", _wrong),
    ("compile + first mask, ms: p50 / p99 / max", "dev", _compile),
    ("mask, us: p50 / p99 / p99.9 / max", "dev", _masks),
    ("forced tokens / runs that are not the tokenizer's own: fixed spacing", "dev/fixed", _forced),
    ("the same, compact", "dev/compact", _forced),
    ("the same, flexible spacing", "dev/flexible", _forced),
)  # fmt: skip


def _everyday(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {"pydantic": "what pydantic emits", "openai": "OpenAI's strict subset", "tools": "tool schemas"}
    rows = []
    for name, outcome in found.get("everyday", {}).items():
        verdicts = outcome["accepted"] + outcome["rejected"]
        right = f"{verdicts} verdicts right, {len(outcome['problems'])} problems"
        rows.append((f"everyday: {names[name]}", f"{outcome['compiled']} of {outcome['schemas']}; {right}"))
    return rows


def _passes(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    titles = {"bfcl": "gold tool calls", "maskbench": "maskbench instances"}
    rows: dict[str, list[str]] = {}
    for key, sums in found.get("passes", {}).items():
        name, spacing, mode = key.split("/")
        ratio = sums["passes_per_token"]
        value = "-" if ratio is None else f"{mode} {ratio:.3f} ({sums['answers']} answers, {sums['left_out']} left out)"
        rows.setdefault(f"forward passes a token, {titles[name]}, {spacing}", []).append(value)
    return [(title, "; ".join(values)) for title, values in rows.items()]


def _mask(found: Mapping[str, Any], columns: list[str]) -> list[str]:
    """The backend against xgrammar's kernel."""
    lines = []
    for allowed, times in found.get("mask", {}).items():
        cells = {"sglite": times["backend"], "xgrammar": times["xgrammar kernel"]}
        row = [f"{cells[c]:.0f}" if cells.get(c) is not None else "-" for c in columns]
        lines.append(f"| applying a mask on CPU, us a row, {allowed} ids allowed | " + " | ".join(row) + " |")
    return lines
