"""What a program costs on an engine, what its requests share, and what keeps them from sharing more.

Three kinds of numbers. *Counted*: a tokenizer turned every text into ids, and the rules of ``explain_model`` say what a
cold engine does with them; such counts equal the run's: its requests, ``sum(prompt_tokens)``, and what it computed,
``sum(computed_prompt_tokens) - sum(replayed_tokens)``. *Measured*: what the back end reported of a run. *Estimated*:
before a run, with no tokenizer at hand.

    forks share a prefix of 1,488 tokens      prompt_tokens   = 3 * 1,532
    and continue it with 44 tokens each       computed_tokens = 1,488 + 3 * 44
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglite.lang.explain_lints import Advice, advice
from sglite.lang.explain_model import Model
from sglite.lang.explain_tokens import Basis, Encoder, Tokens
from sglite.lang.explain_track import Call
from sglite.lang.formats import PLAIN, ChatFormat
from sglite.lang.graph_nodes import is_request, label, total
from sglite.lang.graph_path import critical_path, longest
from sglite.lang.ir import Ask, Fork, Graph, Node, RoleBegin

_SHOWN = 8
_IDLE_PASSES = 2
"""Passes of a gen beyond its tokens: one planned ahead of a stop, one that a forced run takes at its end."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sums over a program. ``requests``: what the engine is asked, each choice and each fork's prefix by itself."""

    requests: int
    prompt_tokens: Tokens
    computed_tokens: Tokens
    """Distinct (prefix, token) positions of the prompts that were not cached; replays are not among them."""
    completion_tokens: Tokens
    forks: int
    critical_path_requests: int
    critical_path_passes: tuple[int, int]
    """Least and most forward passes on the path with most of them."""

    @property
    def cached_tokens(self) -> Tokens:
        """Prompt tokens that somebody else had computed."""
        return Tokens(int(self.prompt_tokens) - int(self.computed_tokens))


@dataclass(frozen=True)
class Share:
    """``tokens`` that node ``source`` brought first were found computed by requests of ``nodes`` (once per request)."""

    tokens: int
    source: int
    nodes: tuple[int, ...]

    @property
    def saved(self) -> int:
        """Tokens that were not computed again."""
        return self.tokens * len(self.nodes)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """See the module. Printed, it is a report. ``basis`` says what kind of numbers ``counts`` are."""

    counts: Counts
    basis: Basis
    predicted: Counts
    measured: Counts | None
    computed_bounds: tuple[int, int]
    """Least and most ``computed_tokens`` over all orders in which independent requests may run."""
    shared: tuple[Share, ...]
    advice: tuple[Advice, ...]
    rewritten_tokens: int
    """Generated tokens that another request may generate as well; so many more replays may be counted by a run."""
    notes: tuple[str, ...]
    """Why the counts may be off; with none of them, and equal bounds, they are exact."""
    history_cost: int | None
    """Tokens that ``history="template"`` computes beyond ``"append"``; None where no template writes turns."""
    graph: Graph

    @property
    def exact(self) -> bool:
        """Whether a cold engine's counters say exactly ``computed_tokens``."""
        low, high = self.computed_bounds
        return self.basis == "counted" and low == high and not self.notes and not self.rewritten_tokens

    @property
    def requests(self) -> int:
        """See ``Counts``; so for the other counts."""
        return self.counts.requests

    @property
    def prompt_tokens(self) -> Tokens:
        """Tokens of all prompts."""
        return self.counts.prompt_tokens

    @property
    def computed_tokens(self) -> Tokens:
        """Distinct positions of the prompts."""
        return self.counts.computed_tokens

    @property
    def cached_tokens(self) -> Tokens:
        """Prompt tokens found computed."""
        return self.counts.cached_tokens

    @property
    def completion_tokens(self) -> Tokens:
        """Generated tokens."""
        return self.counts.completion_tokens

    @property
    def forks(self) -> int:
        """Forks."""
        return self.counts.forks

    @property
    def critical_path_requests(self) -> int:
        """Requests one after the other on the longest chain."""
        return self.counts.critical_path_requests

    @property
    def critical_path_passes(self) -> tuple[int, int]:
        """Bounds of the forward passes on the longest chain."""
        return self.counts.critical_path_passes

    def __str__(self) -> str:
        return "\n".join(_report(self))


def explain(
    graph: Graph,
    *,
    encode: Callable[..., Sequence[int]] | None = None,
    count: Callable[[str], int] | None = None,
    backend: Any = None,
    chat_format: ChatFormat | None = None,
    assume: Mapping[str, int] | None = None,
) -> Explanation:
    """See ``ProgramGraph.explain``. ValueError for ``encode`` and ``count`` together."""
    if encode is not None and count is not None:
        raise ValueError("explain: encode and count exclude each other; encode says more")
    render = overlap = None
    if backend is not None:
        encoding, own_format, render, overlap = _known_to(backend)
        encode = encode or (encoding if count is None else None)
        chat_format = chat_format or own_format
    encoder = Encoder(encode, count)
    turns = PLAIN if chat_format is None else chat_format
    model = Model(graph, encoder, turns, render, assume, overlap=overlap)
    predicted = _predicted(model)
    measured = _measured(graph, predicted) if graph.records else None
    basis = encoder.basis if encoder.basis == "counted" or measured is None else "measured"
    return Explanation(
        counts=measured if basis == "measured" and measured is not None else predicted,
        basis=basis,
        predicted=predicted,
        measured=measured,
        computed_bounds=(model.low, model.high),
        shared=_shared(model),
        advice=advice(graph, lambda text: len(encoder.known(text, first=False))),
        rewritten_tokens=model.rewritten,
        notes=_notes(graph, model, encoder, chat_format),
        history_cost=_history_cost(model, encoder, turns, render, assume),
        graph=graph,
    )


def _known_to(backend: Any) -> tuple[Any, ChatFormat, Any, bool | None]:
    """A back end's encoder, its turns, its chat template, and whether it plans ahead; None: it has no such thing."""
    from sglite.lang.session import SESSION

    chosen = SESSION.backend(backend)
    encode = getattr(getattr(chosen, "tokenizer", None), "encode", None)
    overlap = getattr(getattr(getattr(chosen, "engine", None), "config", None), "overlap", None)
    return encode, chosen.chat_format(), None if chosen.by_messages else chosen.render, overlap


def _predicted(model: Model) -> Counts:
    graph, calls = model.graph, model.calls
    low, high = _passes(calls)
    return Counts(
        requests=len(calls),
        prompt_tokens=_sum(call.prompt for call in calls),
        computed_tokens=_computed(model),
        completion_tokens=_sum(call.completion for call in calls),
        forks=sum(isinstance(node.op, Fork) for node in graph.nodes),
        critical_path_requests=critical_path(graph).requests,
        critical_path_passes=(_along(graph, low), _along(graph, high)),
    )


def _measured(graph: Graph, predicted: Counts) -> Counts:
    spent = total(graph)
    passes = critical_path(graph).forward_passes
    return Counts(
        requests=spent.requests,
        prompt_tokens=Tokens(spent.prompt),
        computed_tokens=Tokens(max(0, spent.computed - spent.replayed)),
        completion_tokens=Tokens(spent.completion),
        forks=predicted.forks,
        critical_path_requests=predicted.critical_path_requests,
        critical_path_passes=(passes, passes),
    )


def _computed(model: Model) -> Tokens:
    """Known tokens, and the texts that are not: each counts where a prompt brings it, not where it is generated."""
    names = [name for at, name in model.gaps.items() if at in model.positions.carriers]
    return Tokens(sum(call.computed for call in model.calls), len(names), names)


def _passes(calls: Sequence[Call]) -> tuple[dict[int, int], dict[int, int]]:
    """By node, the least and most passes of its requests, which run at once or one after the other."""
    low: dict[int, int] = {}
    high: dict[int, int] = {}
    for call in calls:
        tokens = int(call.completion) - call.forced
        low[call.node] = max(low.get(call.node, 0), tokens, 1)
        high[call.node] = high.get(call.node, 0) + max(1, tokens) + (_IDLE_PASSES if call.kind == "gen" else 0)
    return low, high


def _along(graph: Graph, weights: Mapping[int, int]) -> int:
    def weight(_: Graph, node: Node) -> float:
        return float(weights.get(node.id, 0) if is_request(node) else 0)

    return sum(weights.get(node.id, 0) for node in longest(graph, weight) if is_request(node))


def _shared(model: Model) -> tuple[Share, ...]:
    """Prefixes that requests found computed by others, the most valuable first."""
    groups: dict[int, list[int]] = {}
    for call in model.calls:
        if call.cached:
            groups.setdefault(call.found, []).append(call.node)
    shares = []
    for at, nodes in groups.items():
        source = model.calls[model.positions.first_call(at)].node
        shares.append(Share(model.positions.depth(at), source, tuple(nodes)))
    return tuple(sorted(shares, key=lambda share: -share.saved))


def _notes(graph: Graph, model: Model, encoder: Encoder, chat_format: ChatFormat | None) -> tuple[str, ...]:
    notes = list(model.inexact)
    if encoder.basis != "counted":
        notes.append("no tokenizer was given: sharing is estimated from words; pass backend=, encode= or count=")
    elif not encoder.has_ids:
        notes.append("count= tells lengths, not tokens: what texts have in common is estimated from words")
    if chat_format is None and any(isinstance(node.op, (RoleBegin, Ask)) for node in graph.nodes):
        notes.append("turns are counted as plain text; pass backend= or chat_format=")
    return tuple(notes)


def _history_cost(
    model: Model, encoder: Encoder, turns: ChatFormat, render: Any, assume: Mapping[str, int] | None
) -> int | None:
    if render is None or not any(isinstance(node.op, Ask) for node in model.graph.nodes):
        return None
    other = Model(model.graph, encoder, turns, render, assume, history="template")
    return int(_computed(other)) - int(_computed(model))


def _sum(parts: Any) -> Tokens:
    known, unknown, names = 0, 0, {}
    for part in parts:
        known, unknown = known + int(part), unknown + part.unknown
        names.update(dict.fromkeys(part.names))
    return Tokens(known, unknown, tuple(names))


# --- the report ------------------------------------------------------------------------------------------------------


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _report(what: Explanation) -> list[str]:
    counts, nodes = what.counts, what.graph.nodes
    low, high = what.computed_bounds
    spread = (
        f" (between {low:,} and {high:,}, by the order of requests)" if what.basis == "counted" and low < high else ""
    )
    passes = counts.critical_path_passes
    lines = [
        f"{_several(counts.requests, 'request')}, {_several(counts.forks, 'fork')}; {what.basis}",
        f"  prompt tokens      {counts.prompt_tokens}",
        f"    computed         {counts.computed_tokens}{spread}",
        f"    found cached     {counts.cached_tokens}",
        f"  generated tokens   {counts.completion_tokens}",
        f"  critical path      {_several(counts.critical_path_requests, 'request')} in sequence, "
        + (
            f"{passes[0]:,} forward passes"
            if passes[0] == passes[1]
            else f"{passes[0]:,} to {passes[1]:,} forward passes"
        ),
    ]
    if what.basis == "counted" and what.measured is not None:
        lines.append(
            f"  the run reported   prompt {what.measured.prompt_tokens}, computed {what.measured.computed_tokens}, "
            "of its gens and choices"
        )
    if what.shared:
        lines.append("shared:")
        for share in what.shared[:_SHOWN]:
            users = ", ".join(f"%{i}" for i in share.nodes[:6]) + (", ..." if len(share.nodes) > 6 else "")
            first = f"%{share.source} {label(nodes[share.source], 40)}"
            lines.append(f"  {share.tokens:,} tokens, first at {first}, found by {users}: {share.saved:,} saved")
    if what.history_cost is not None:
        lines.append(f'history="template" computes {what.history_cost:,} tokens more than "append"')
    if what.advice:
        lines += ["what to change:", *(f"  - {item}" for item in what.advice)]
    if what.notes:
        lines += ["why this may be off:", *(f"  - {note}" for note in what.notes)]
    return lines
