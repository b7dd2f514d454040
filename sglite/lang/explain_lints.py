"""What keeps a program from sharing more, or from running more at once, and what to change: each with its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from sglite.lang.graph_nodes import before, cut, is_request, milliseconds, quoted, reads_of, variable
from sglite.lang.ir import Arg, Ask, Fork, Gen, Graph, Lit, Node, RoleBegin, Tell, VarRef

MIN_TOKENS = 16
"""Fewer tokens are not worth a change."""
_MAX_ALIKE = 3
Count = Callable[[str], int]


@dataclass(frozen=True)
class Advice:
    """One thing to change. ``tokens``: how many could be shared; ``nodes``: where."""

    kind: str
    text: str
    nodes: tuple[int, ...] = ()
    tokens: int = 0

    def __str__(self) -> str:
        return self.text


def advice(graph: Graph, count: Count) -> tuple[Advice, ...]:
    """All there is to say, what matters most first."""
    found = [*_late_argument(graph, count), *_forks(graph, count), *_reads(graph), *_sequences(graph)]
    kept: dict[str, list[Advice]] = {}
    for item in sorted(found, key=lambda item: -item.tokens):
        kept.setdefault(item.kind, []).append(item)
    return tuple(item for alike in kept.values() for item in _some(alike))


def _some(alike: list[Advice]) -> list[Advice]:
    """The first of several that say the same of different places, the last of them saying how many there are."""
    if len(alike) <= _MAX_ALIKE:
        return alike
    last = alike[_MAX_ALIKE - 1]
    return [
        *alike[: _MAX_ALIKE - 1],
        replace(last, text=f"{last.text} (and so at {len(alike) - _MAX_ALIKE:,} more places)"),
    ]


def _late_argument(graph: Graph, count: Count) -> Iterator[Advice]:
    """The first argument in the program's own stream, and the constant text between it and the first request."""
    done, argument, after, nodes = 0, None, 0, []
    for node in graph.nodes:
        if node.stream != 0 or not isinstance(node.op, (Lit, Arg)):
            if node.stream == 0 and (is_request(node) or isinstance(node.op, (Fork, VarRef))):
                break
            continue
        if isinstance(node.op, Arg):
            argument = argument or node.op
            nodes.append(node.id)
        elif argument is None:
            done += count(node.op.text)
        else:
            after += count(node.op.text)
    if argument is not None and after >= MIN_TOKENS:
        text = (
            f"argument {cut(argument.name, 60)!r} appears at token {done:,} of stream 0; {after:,} constant tokens "
            "after it cannot be shared across runs: put it later"
        )
        yield Advice("late argument", text, tuple(nodes), after)


def _forks(graph: Graph, count: Count) -> Iterator[Advice]:
    """Branches that begin with the same text, or with texts that differ only at their beginning."""
    starts = _first_texts(graph)
    for node in graph.nodes:
        if not isinstance(node.op, Fork) or len(node.op.children) < 2:
            continue
        texts = [starts.get(child, "") for child in node.op.children]
        number = len(texts)
        same = _common_start(texts)
        if same and (tokens := count(same)) >= MIN_TOKENS:
            text = (
                f"the {number} branches of fork %{node.id} all begin with {quoted(same, 40)}, {tokens:,} tokens: "
                "append it before the fork, so that every back end sees it as one prefix"
            )
            yield Advice("repeated in every branch", text, (node.id,), tokens)
        rest = [text[len(same) :] for text in texts]
        tail = _common_start([text[::-1] for text in rest])[::-1]
        if all(rest) and (tokens := count(tail) if tail else 0) >= MIN_TOKENS:
            text = (
                f"the texts of the {number} branches of fork %{node.id} differ only before {quoted(tail, 40)}: those "
                f"{tokens:,} tokens are computed {number} times; put what differs behind them, and them before the fork"
            )
            yield Advice("differs at its beginning", text, (node.id,), tokens * (number - 1))


def _common_start(texts: Sequence[str]) -> str:
    least, most = min(texts), max(texts)
    return next((least[:i] for i, char in enumerate(least) if char != most[i]), least)


def _first_texts(graph: Graph) -> dict[int, str]:
    """By stream, the literal text with which it begins."""
    texts: dict[int, list[str]] = {}
    over: set[int] = set()
    for node in graph.nodes:
        if isinstance(node.op, Lit) and node.stream not in over:
            texts.setdefault(node.stream, []).append(node.op.text)
        else:
            over.add(node.stream)
    return {stream: "".join(pieces) for stream, pieces in texts.items()}


def _reads(graph: Graph) -> Iterator[Advice]:
    """Reads that kept later requests waiting which do not need what was read."""
    for read in reads_of(graph):
        later = next((node for node in graph.nodes[read.at :] if is_request(node)), None)
        if later is None or not 0 <= read.source < len(graph.nodes) or _depends(graph, later, read.source):
            continue
        name = variable(graph.nodes[read.source]) or f"%{read.source}"
        waited = f"{milliseconds(read.waited)} " if read.waited else ""
        text = (
            f"the program waited {waited}for s[{cut(name, 60)!r}] before it appended %{later.id}, which does not "
            f"follow it: append s.var({cut(name, 60)!r}) instead of the value, or read it later"
        )
        yield Advice("a read that blocked", text, (read.source, later.id))


def _depends(graph: Graph, node: Node, source: int) -> bool:
    todo, seen = [node.id], {node.id}
    while todo:
        for earlier in before(graph.nodes[todo.pop()]):
            if earlier == source:
                return True
            if earlier > source and earlier not in seen:
                seen.add(earlier)
                todo.append(earlier)
    return False


def _sequences(graph: Graph) -> Iterator[Advice]:
    """Gens that only their place in one stream puts in sequence: only plain text is between them."""
    runs: dict[int, list[int]] = {}
    finished: list[tuple[int, list[int]]] = []
    for node in graph.nodes:
        run = runs.setdefault(node.stream, [])
        if isinstance(node.op, Gen):
            run.append(node.id)
        elif isinstance(node.op, (Fork, VarRef, Ask, Tell, RoleBegin)) or is_request(node):
            finished.append((node.stream, runs.pop(node.stream)))
    for stream, run in [*finished, *runs.items()]:
        if len(run) > 1:
            names = [variable(graph.nodes[i]) or f"%{i}" for i in run]
            text = (
                f"gens {_listed(names)} of stream {stream} follow one another, {len(run)} requests in sequence: if the "
                "later ones need not see what the earlier ones wrote, give each a branch (s.branch(), s.map) and they "
                "run at once"
            )
            yield Advice("in sequence by order only", text, tuple(run))


def _listed(names: Sequence[str]) -> str:
    shown = [repr(cut(name, 30)) for name in names[:4]]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
