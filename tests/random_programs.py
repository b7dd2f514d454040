"""Random programs as data, and what runs them in every style that programs can be written in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

import sglite as sgl
from sglite.lang.ir import Dynamic


@dataclass(frozen=True)
class Say:
    """A literal."""

    text: str


@dataclass(frozen=True)
class Ask:
    """A gen of ``name``."""

    name: str
    tokens: int


@dataclass(frozen=True)
class Choose:
    """A select of ``name``."""

    name: str


@dataclass(frozen=True)
class Turn:
    """A user turn, then the assistant's."""

    text: str
    name: str
    tokens: int


@dataclass(frozen=True)
class Branches:
    """A fork, and what becomes of its branches: ``gather``, ``append``, ``refer`` (to a variable each) or ``drop``."""

    bodies: tuple[tuple[Any, ...], ...]
    end: str


@dataclass(frozen=True)
class Back:
    """Something that is taken back, and what follows instead."""

    tried: tuple[Any, ...]


_TEXTS = st.sampled_from(["a", "bc ", "hello\n", "x y z", "Q: ", "1, 2, 3; ", "é中"])
_NAMES = st.sampled_from(["u", "v", "w"])
_LEAVES = st.one_of(
    st.builds(Say, _TEXTS),
    st.builds(Ask, _NAMES, st.integers(1, 4)),
    st.builds(Choose, _NAMES),
    st.builds(Turn, _TEXTS, _NAMES, st.integers(1, 3)),
)


def bodies(depth: int = 3, width: int = 4, length: int = 5) -> st.SearchStrategy[tuple[Any, ...]]:
    """Bodies whose forks nest ``depth`` deep, ``width`` wide."""
    step: st.SearchStrategy[Any] = _LEAVES
    body = st.lists(step, max_size=length).map(tuple)
    for _ in range(depth):
        ends = st.sampled_from(["gather", "append", "refer", "drop"])
        fork = st.builds(Branches, st.lists(body, min_size=1, max_size=width).map(tuple), ends)
        body = st.lists(st.one_of(_LEAVES, fork, st.builds(Back, body)), max_size=length).map(tuple)
    return st.tuples(_TEXTS).flatmap(lambda t: body.map(lambda b: (Say(t[0]), *b)))


def write(s: Any, body: tuple[Any, ...], out: list[Any]) -> None:
    """Appends a body to a state without reading anything; ``out`` gets every state, outermost first."""
    out.append(s)
    for step in body:
        if isinstance(step, Say):
            s += step.text
        elif isinstance(step, Ask):
            s += sgl.gen(step.name, max_tokens=step.tokens)
        elif isinstance(step, Choose):
            s += sgl.select(step.name, ["yes", "no", "never"])
        elif isinstance(step, Turn):
            s.user(step.text)
            s.assistant(sgl.gen(step.name, max_tokens=step.tokens))
        elif isinstance(step, Back):
            place = s.checkpoint()
            write(s, tuple(x for x in step.tried if not isinstance(x, Branches)), [])
            s.rollback(place)
        else:
            _fork(s, step, out)


def _fork(s: Any, step: Branches, out: list[Any]) -> None:
    group = s.fork(len(step.bodies))
    for branch, body in zip(group, step.bodies, strict=True):
        write(branch, body, out)
    if step.end == "gather":
        group.join()
    elif step.end == "append":
        group.join("concate_and_append")
    elif step.end == "refer":
        for branch, body in zip(group, step.bodies, strict=True):
            for name in [x.name for x in body if isinstance(x, (Ask, Choose, Turn))]:
                s += "<" + branch.var(name) + ">"


def outcome(states: list[Any]) -> list[Any]:
    """Text, variables (without the lists that joins make) and messages of every stream, by their numbers."""
    found = []
    for s in sorted(states, key=lambda state: state._stream):
        values = {name: s[name] for name in s.variable_names()}
        found.append((s.text(), {n: v for n, v in values.items() if isinstance(v, str)}, s.messages()))
    return found


def styles(body: tuple[Any, ...], **options: Any) -> dict[str, list[Any]]:
    """The outcome of a body in every style."""

    @sgl.function
    def plain(s: Any) -> Any:
        out: list[Any] = []
        write(s, body, out)
        return out

    @sgl.function
    async def waiting(s: Any) -> Any:
        out: list[Any] = []
        write(s, body, out)
        await asyncio.sleep(0)
        for state in out:
            await state.finished()
        return out

    async def several() -> list[Any]:
        states = await asyncio.gather(waiting.arun(**options), plain.arun(**options))
        return [outcome(state.ret_value) for state in states]

    def compiled() -> list[Any]:
        graph = plain.compile()
        streams = graph.run(**options).ret_value
        assert not any(isinstance(node.op, Dynamic) for node in graph.nodes)
        return [streams[number] for number in sorted(streams)]

    one, other = asyncio.run(several())
    batch = plain.run_batch([{}, {}], **options)
    return {
        "one by one": outcome(plain.run(use_thread=False, **options).ret_value),
        "concurrent": outcome(plain.run(**options).ret_value),
        "streamed": _streamed(plain, options),
        "coroutine": one,
        "in a thread": other,
        "batch": outcome(batch[1].ret_value),
        "compiled": outcome(compiled()),
    }


def _streamed(program: Any, options: dict[str, Any]) -> list[Any]:
    state = program.run(stream=True, **options)
    state.run.body_over.result(60)
    return outcome(state.ret_value)
