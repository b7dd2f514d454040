"""What every view of a graph needs to know of its nodes: edges, labels, requests, and what a run made of them.

Texts are the user's and the model's: labels are cut to a length and hold no control characters, and whoever puts them
into a format escapes them for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sglite.lang.ir import (
    Arg,
    CaptureBegin,
    CaptureEnd,
    Fork,
    Gen,
    Graph,
    Lit,
    Node,
    NodeRecord,
    Reasoned,
    RoleEnd,
    Select,
    Symbol,
    VarRef,
)

LABEL_CHARS = 60
"""Longest label; longer ones are cut."""


def cut(text: str, limit: int = LABEL_CHARS) -> str:
    """``text`` with its middle left out where it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    head = (limit - 3) * 2 // 3
    return f"{text[:head]}...{text[len(text) - (limit - 3 - head) :]}"


def quoted(text: str, limit: int = LABEL_CHARS) -> str:
    """``text`` as a literal, cut: nothing in it can move a cursor, change a direction or end a line."""
    return repr(cut(text, limit))


def plain(text: str, limit: int = LABEL_CHARS) -> str:
    """``text`` on one line, cut, without characters that do not print."""
    return cut("".join(char if char.isprintable() else " " for char in text[: 4 * limit]), limit)


def label(node: Node, limit: int = LABEL_CHARS) -> str:
    """What a node does, in a few words."""
    op = node.op
    if isinstance(op, Lit):
        return quoted(op.text, limit)
    if isinstance(op, (Arg, VarRef)):
        kind = "argument" if isinstance(op, Arg) else "value of"
        return plain(f"{kind} {op.name!r}", limit)
    if isinstance(op, Symbol):
        return plain(repr(op), limit)
    if isinstance(op, RoleEnd):
        return plain(f"{op.role}_end()", limit)
    if isinstance(op, (CaptureBegin, CaptureEnd)):
        return plain(f"{'end of ' if isinstance(op, CaptureEnd) else ''}var_scope({op.name!r})", limit)
    if isinstance(op, Select):
        choices = [cut(choice, 24) for choice in op.choices[:5]] + (["..."] if len(op.choices) > 5 else [])
        return plain(f"select({op.name!r}, {choices})", limit)
    text = str(op)
    return plain(text if len(text) < 4 * limit and "object at 0x" not in text else type(op).__name__.lower(), limit)


def is_request(node: Node) -> bool:
    """Whether the model is asked for something."""
    return isinstance(node.op, (Gen, Select, Reasoned))


def variable(node: Node) -> str | None:
    """The variable that a node gives a value, if it has a name."""
    op = node.op
    if isinstance(op, Reasoned):
        return op.gen.name
    return op.name if isinstance(op, (Gen, Select, CaptureEnd)) else None


def is_shown(node: Node) -> bool:
    """Whether a node says something to a reader; ends of turns and beginnings of scopes do not."""
    return not isinstance(node.op, (RoleEnd, CaptureBegin)) and not (isinstance(node.op, Lit) and not node.op.text)


def waves(node: Node) -> int:
    """How many requests a node sends one after the other."""
    if isinstance(node.op, Select):
        return 2 if node.op.method.requires_unconditional_logprobs else 1
    return 1 if is_request(node) else 0


def before(node: Node) -> Iterator[int]:
    """The nodes that a node follows by text (first) and by data."""
    if node.prev is not None:
        yield node.prev
    yield from node.sources
    if isinstance(node.op, VarRef) and 0 <= node.op.source < node.id and node.op.source not in node.sources:
        yield node.op.source


@dataclass(frozen=True)
class Read:
    """The body looked at the value of node ``source`` when the graph had ``at`` nodes: all later ones waited for it.

    ``waited``: seconds it took to arrive.
    """

    source: int
    at: int
    waited: float = 0.0


def reads_of(graph: Graph) -> tuple[Read, ...]:
    """The reads that a graph knows of, in order; traces have none."""
    return tuple(sorted((Read(*read) for read in graph.reads), key=lambda read: read.at))


@dataclass(frozen=True)
class Cost:
    """What the requests of a node, or of many, cost. Tokens; ``seconds`` from the first request to the last answer."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    computed: int = 0
    """Prompt tokens that were not in the cache, replays included."""
    replayed: int = 0
    """Positions computed once more on purpose: a request whose whole prompt is cached needs the last one's logits."""
    completion: int = 0
    forced: int = 0
    passes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in Cost.__dataclass_fields__))


_COUNTERS = {
    "prompt": "prompt_tokens",
    "cached": "cached_tokens",
    "computed": "computed_prompt_tokens",
    "replayed": "replayed_tokens",
    "completion": "completion_tokens",
    "forced": "forced_tokens",
    "passes": "forward_passes",
}


def metas_of(record: NodeRecord) -> list[Mapping[str, Any]]:
    """What the back end said of each request of a node, those of earlier attempts first."""
    found = list(record.metas) or [record.meta]
    flat = [item for entry in found for item in (entry if isinstance(entry, list) else [entry])]
    return [item for item in flat if isinstance(item, Mapping)]


def cost(record: NodeRecord | None) -> Cost:
    """What a node's requests cost; counters that a back end does not report are 0."""
    if record is None:
        return Cost()
    metas = metas_of(record)
    sums = {name: sum(_count(meta.get(key)) for meta in metas) for name, key in _COUNTERS.items()}
    if not sums["computed"] and metas and all("computed_prompt_tokens" not in meta for meta in metas):
        sums["computed"] = max(0, sums["prompt"] - sums["cached"])
    seconds = max(0.0, record.ended - record.started) if record.ended is not None else 0.0
    return Cost(requests=max(1, len(metas)), seconds=seconds, **sums)


def total(graph: Graph) -> Cost:
    """What the requests of a run cost together; ``seconds``: from the run's first start to its last end."""
    asked = [graph.records[node.id] for node in graph.nodes if is_request(node) and node.id in graph.records]
    whole = sum((cost(record) for record in asked), Cost())
    ends = [record.ended for record in asked if record.ended is not None]
    span = max(ends, default=0.0) - min((record.started for record in asked), default=0.0)
    return Cost(**{**whole.__dict__, "seconds": max(0.0, span)})


def streams_of(nodes: Iterable[Node]) -> list[int]:
    """The streams that occur, in order of their numbers; those of a fork count even while they are empty."""
    found: set[int] = set()
    for node in nodes:
        found.add(node.stream)
        if isinstance(node.op, Fork):
            found.update(node.op.children)
    return sorted(found)


def counters(record: NodeRecord | None) -> str:
    """``prompt 1,532 (cached 1,488) out 64  12 ms``, with attempts and errors where there are any."""
    if record is None:
        return ""
    spent = cost(record)
    parts = []
    if spent.prompt or spent.completion:
        parts.append(f"prompt {spent.prompt:,} (cached {spent.cached:,}) out {spent.completion:,}")
    if record.attempts > 1:
        parts.append(f"{record.attempts} attempts")
    if record.ended is not None:
        parts.append(milliseconds(spent.seconds))
    if record.error is not None:
        parts.append(f"FAILED: {plain(record.error, 80)}")
    return "  ".join(parts)


def milliseconds(seconds: float) -> str:
    """``12 ms``, ``3.4 s``."""
    return f"{seconds:.1f} s" if seconds >= 10 else f"{1000 * seconds:,.0f} ms" if seconds >= 0.001 else "<1 ms"


def _count(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) and value == value else 0
