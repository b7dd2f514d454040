"""Graphs as lines of JSON: traces that can be kept, compared and loaded again.

    {"sglite_trace": 1, "name": "f", "program_id": "...", "streams": 3, "nodes": 7}
    {"node": 0, "stream": 0, "prev": null, "op": {"is": "Lit", "text": "Topic: x"}, "line": "f.py:3"}
    {"record": 3, "started": 0.01, "ended": 0.4, "text": "...", "meta": {...}}

What JSON cannot hold is kept by name: check functions, types and rules of ``select`` that are not our own. Loaded, they
are told apart and written again as they were, but cannot be called. Everything else comes back equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, NoReturn, get_args

from sglite.lang.choices import (
    ChoicesMethod,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from sglite.lang.ir import Graph, Node, NodeRecord, Op, Sampling
from sglite.lang.messages import ToolSpec
from sglite.lang.typed import TypeSpec

VERSION = 1
MAX_NODES = 1_000_000
"""A trace that says it has more is refused."""
_METHODS: Final = {
    "token_length_normalized": token_length_normalized,
    "greedy_token_selection": greedy_token_selection,
    "unconditional_likelihood_normalized": unconditional_likelihood_normalized,
}
_KINDS: Final[dict[str, type]] = {kind.__name__: kind for kind in get_args(Op)}


@dataclass(frozen=True)
class Named:
    """Stands for a function or a type that a trace only has the name of."""

    name: str

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"{self.name!r} was loaded from a trace, which keeps its name only; it cannot be called")


class NamedMethod(ChoicesMethod):
    """Stands for a rule of ``select`` that a trace only has the name of."""

    def __init__(self, name: str, unconditional: bool) -> None:
        self.name = name
        self._unconditional = unconditional

    @property
    def requires_unconditional_logprobs(self) -> bool:
        """As the rule itself said."""
        return self._unconditional

    def __call__(self, **_: Any) -> NoReturn:
        raise TypeError(f"the rule {self.name!r} was loaded from a trace, which keeps its name only")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedMethod) and (self.name, self._unconditional) == (other.name, other._unconditional)

    def __hash__(self) -> int:
        return hash((self.name, self._unconditional))


# --- writing -------------------------------------------------------------------------------------------------------


def to_lines(graph: Graph) -> Iterator[str]:
    """The lines, without their ends."""
    nodes = list(graph.nodes)
    streams = 1 + max((max((node.stream, *getattr(node.op, "children", ()))) for node in nodes), default=-1)
    head = {"sglite_trace": VERSION, "name": graph.name, "program_id": graph.program_id}
    reads = [list(read) for read in graph.reads]
    yield _line({**head, "streams": streams, "nodes": len(nodes), **({"reads": reads} if reads else {})})
    for node in nodes:
        entry: dict[str, Any] = {"node": node.id, "stream": node.stream, "prev": node.prev, "op": _op(node.op)}
        if node.sources:
            entry["sources"] = list(node.sources)
        if node.line:
            entry["line"] = node.line
        yield _line(entry)
    for index, record in sorted(graph.records.items()):
        yield _line({"record": index, **{f.name: _plain(getattr(record, f.name)) for f in fields(record)}})


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=True, allow_nan=False, separators=(", ", ": "))


def _op(op: Any) -> dict[str, Any]:
    kind = next(base for base in type(op).__mro__ if base.__name__ in _KINDS and _KINDS[base.__name__] is base)
    entry: dict[str, Any] = {"is": kind.__name__}
    for f in fields(kind):
        value = getattr(op, f.name)
        if value != f.default:
            entry[f.name] = _field(value)
    return entry


def _field(value: Any) -> Any:
    """A field of an operation; what can only be named becomes ``{"$kind": ...}``."""
    if isinstance(value, Sampling):
        given = ((f.name, getattr(value, f.name)) for f in fields(value))
        return {name: _plain(item) for name, item in given if item is not None}
    if isinstance(value, TypeSpec):
        return {"$type": _name(value.type), "regex": value.regex, "json_schema": value.json_schema}
    if isinstance(value, ChoicesMethod) or (callable(value) and hasattr(value, "requires_unconditional_logprobs")):
        return {"$rule": _rule_name(value), "unconditional": bool(value.requires_unconditional_logprobs)}
    if isinstance(value, tuple) and value and all(isinstance(item, ToolSpec) for item in value):
        return [{"name": t.name, "description": t.description, "parameters": _plain(t.parameters)} for t in value]
    if type(value).__name__ in _KINDS and is_dataclass(value):
        return _op(value)
    if callable(value):
        return {"$function": _name(value)}
    return _plain(value)


def _rule_name(rule: object) -> str:
    if isinstance(rule, NamedMethod):
        return rule.name
    return next((name for name, known in _METHODS.items() if known is rule), type(rule).__name__)


def _name(value: object) -> str:
    return str(getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or value)


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: tuples become lists, keys text, infinities tagged; other objects their names."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return {"$object": _name(value) if callable(value) else repr(value)[:1000]}


# --- reading -------------------------------------------------------------------------------------------------------


def from_lines(lines: Iterable[str]) -> Graph:
    """The graph of a trace. ValueError with the number of the line that is wrong, and why."""
    graph: Graph | None = None
    expected = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if graph is None:
                graph, expected = _head(entry)
            elif "node" in entry:
                graph.nodes.append(_node(entry, graph, expected))
            elif "record" in entry:
                index, record = _record(entry, len(graph.nodes))
                graph.records[index] = record
            else:
                raise ValueError("neither a node nor a record")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"line {number} is no line of a trace: {type(error).__name__}: {error}") from error
    if graph is None:
        raise ValueError("an empty trace: it has not even a header")
    if len(graph.nodes) != expected:
        raise ValueError(f"the trace ends after {len(graph.nodes)} of {expected} nodes; it was cut off")
    return graph


def _head(entry: Any) -> tuple[Graph, int]:
    version = entry.get("sglite_trace") if isinstance(entry, dict) else None
    if version != VERSION:
        raise ValueError(f"a trace begins with {{'sglite_trace': {VERSION}}}, this one with {str(entry)[:80]!r}")
    count, streams = _index(entry["nodes"]), _index(entry["streams"])
    if max(count, streams) > MAX_NODES:
        raise ValueError(f"{max(count, streams)} nodes or streams; a trace may have {MAX_NODES}")
    graph = Graph(_text(entry["name"]), _text(entry["program_id"]))
    for _ in range(streams):
        graph.new_stream()
    if "reads" in entry:
        graph.reads = [(_index(source), _index(at), float(waited)) for source, at, waited in entry["reads"]]
    return graph, count


def _node(entry: dict[str, Any], graph: Graph, expected: int) -> Node:
    number = len(graph.nodes)
    if entry["node"] != number or number >= expected:
        raise ValueError(f"node {entry['node']} where node {number} of {expected} is expected")
    prev = None if entry["prev"] is None else _earlier(entry["prev"], number)
    sources = tuple(_earlier(source, number) for source in entry.get("sources", ()))
    return Node(number, _index(entry["stream"]), prev, _read_op(entry["op"]), sources, _text(entry.get("line", "")))


def _earlier(value: object, number: int) -> int:
    if _index(value) >= number:
        raise ValueError(f"node {number} follows node {value}, which comes later")
    return _index(value)


def _index(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of a node or stream")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _read_op(entry: dict[str, Any]) -> Any:
    kind = _KINDS.get(entry["is"])
    if kind is None:
        raise ValueError(f"{entry['is']!r} is no kind of operation; there are {', '.join(sorted(_KINDS))}")
    known = {f.name for f in fields(kind)}
    unknown = entry.keys() - known - {"is"}
    if unknown:
        raise ValueError(f"{entry['is']} has no field {min(unknown)!r}")
    return kind(**{name: _read_field(name, value) for name, value in entry.items() if name != "is"})


def _read_field(name: str, value: Any) -> Any:
    if name == "sampling":
        return Sampling(**{key: _tuples(item) for key, item in value.items()})
    if name == "gen":
        return _read_op(value)
    if name == "tools":
        return tuple(ToolSpec(**tool) for tool in value)
    if name == "message":
        return _read_plain(value)
    if isinstance(value, dict) and "$type" in value:
        return TypeSpec(Named(value["$type"]), value["regex"], value["json_schema"])
    if isinstance(value, dict) and "$rule" in value:
        return _METHODS.get(value["$rule"]) or NamedMethod(value["$rule"], bool(value["unconditional"]))
    if isinstance(value, dict) and "$function" in value:
        return Named(value["$function"])
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else _read_plain(value)


def _read_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_read_plain(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"$float"}:
            return float(value["$float"])
        return {key: _read_plain(item) for key, item in value.items()}
    return value


def _record(entry: dict[str, Any], nodes: int) -> tuple[int, NodeRecord]:
    index = entry.pop("record")
    if _index(index) >= nodes:
        raise ValueError(f"a record of node {index}, which there is not")
    fields = {name: _read_plain(value) for name, value in entry.items()}
    if fields.get("token_ids") is not None:
        fields["token_ids"] = tuple(fields["token_ids"])
    return index, NodeRecord(**fields)
