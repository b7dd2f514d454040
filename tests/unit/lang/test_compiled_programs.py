"""compile() shows what a program will do and does nothing of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.compile import compile_program
from sglite.lang.ir import Dynamic, Fork, Gen, Graph, Lit, RoleBegin, Select, Symbol

HAPPENED: list[str] = []


def effect(x: Any) -> Any:
    HAPPENED.append(str(x))
    return x


def decorate(x: Any) -> str:
    HAPPENED.append("decorate")
    return f"<{x}>"


class Client:
    def __getattr__(self, name: str) -> Any:
        HAPPENED.append(name)
        return effect

    @property
    def total(self) -> int:
        HAPPENED.append("total")
        return 1


CLIENT = Client()


@pytest.fixture(autouse=True)
def nothing_happens() -> Any:
    HAPPENED.clear()
    yield
    assert HAPPENED == []


def graph_of(program: Any, **arguments: Any) -> Graph:
    return compile_program(program.func, {**program.bound, **arguments}, program.__name__)


def text_of(graph: Graph) -> str:
    return "".join(
        n.op.text if isinstance(n.op, Lit) else f"[{n.op!r}]" if isinstance(n.op, Symbol) else f"{{{n.op}}}"
        for n in graph.nodes
    )


def test_what_is_pure_is_known_and_what_could_have_an_effect_does_not_happen(capsys: Any) -> None:
    @sgl.function
    def f(s: Any, topic: str, n: int = 2) -> None:
        print("hello")
        HAPPENED.append("append")
        HAPPENED[:] = ["x"]
        counts = {"a": 1}
        counts["b"] = len(topic) + n
        counts.update(c=3)
        found = CLIENT.search(topic)
        s += decorate(topic) + json.dumps(counts) + "; ".join(str(i) for i in range(n))
        s += found
        _ = CLIENT.total
        import this  # noqa: F401

    graph = graph_of(f, topic="tea")
    assert text_of(graph).startswith('<tea>{"a": 1, "b": 5, "c": 3}0; 1[`') and "CLIENT.search" in text_of(graph)
    assert capsys.readouterr().out == ""


def test_unknown_arguments_stay_symbols_inside_any_text() -> None:
    @sgl.function
    def f(s: Any, q: str, k: str) -> None:
        s += f"Q: {q}!" + "{} and {k}".format(q, k="x") + ", ".join([q, "b", k])
        s += sgl.user(decorate(q)) + q.upper()

    wanted = "Q: [argument 'q']![argument 'q'] and x[argument 'q'], b, [argument 'k']{user_begin()}<[argument 'q']>"
    assert text_of(graph_of(f)).startswith(wanted)


def test_a_loop_or_branch_that_only_a_run_can_decide_ends_the_preview_with_its_line() -> None:
    @sgl.function
    def f(s: Any, items: Any) -> None:
        s += "a" + sgl.gen("x")
        note = "none"
        if s["x"] == "b":
            note = "one"
        for item in items:
            note = item
        s += "c" + note
        if len(s["x"]) > 3:
            s += "never shown"
        s += "nor this"

    graph = graph_of(f)
    last = graph.nodes[-1]
    assert isinstance(last.op, Dynamic) and last.op.source == "if len(s['x']) > 3"
    assert last.line.startswith("test_compiled_programs.py:")
    assert int(last.line.split(":")[1]) - int(graph.nodes[0].line.split(":")[1]) == 7
    assert "c[`for item in items`]" in text_of(graph) and "nor this" not in text_of(graph)


def test_forks_maps_and_async_bodies_are_followed() -> None:
    @sgl.program
    async def f(s: sgl.State, chunks: list[str]) -> str:
        s.system("R")
        parts = s.map(chunks, lambda b, c: b.user(c).gen(str))
        s.user("Merge:\n", sgl.join(parts, "\n"))
        verdict = await s.gen(int)
        for _ in range(verdict):
            s.user("again")
        return "x"

    graph = graph_of(f, chunks=["a", "b", "c"])
    kinds = [type(n.op) for n in graph.nodes]
    assert kinds.count(Fork) == 1 and kinds.count(Gen) == 4 and kinds[-1] is Dynamic
    references = [n for n in graph.nodes if n.sources]
    assert [isinstance(graph.nodes[n.sources[0]].op, Gen) for n in references] == [True] * 3
    assert len({n.stream for n in graph.nodes}) == 4
    dynamic = graph_of(f).nodes[-1].op
    assert isinstance(dynamic, Dynamic) and dynamic.source.startswith("s.map(chunks")


def test_the_preview_has_the_nodes_of_the_run(echo: Any) -> None:
    def helper(s: Any, i: int) -> None:
        with s.user():
            s += f"question {i}"
        s += sgl.assistant(sgl.gen(f"a{i}", max_tokens=3))

    @sgl.function
    def f(s: Any, n: int) -> None:
        s.system("be brief")
        for i in range(n):
            helper(s, i)
        with s.var_scope("both"):
            s += "x" + sgl.select("c", ["a", "b"])
        left, right = s.fork(2)
        for b, t in zip((left, right), "lr", strict=True):
            b += t + sgl.gen("v")
        s.fork(2).join()
        s += "".join(["y", "z"])

    compiled = graph_of(f, n=2)
    run = f.run(2, backend=echo).run.graph
    assert [(n.stream, n.prev, str(n.op), n.line) for n in compiled.nodes] == [
        (n.stream, n.prev, str(n.op), n.line) for n in run.nodes
    ]
    assert sum(isinstance(n.op, (Select, RoleBegin)) for n in compiled.nodes) == 6


def test_previews_are_bounded() -> None:
    @sgl.function
    def endless(s: Any) -> None:
        while True:
            s += "x"

    @sgl.function
    def deep(s: Any) -> None:
        def again(n: int) -> Any:
            return again(n + 1)

        s += "a"
        again(0)
        s += "b" * 10**9

    graph = graph_of(endless)
    assert isinstance(graph.nodes[-1].op, Dynamic)
    assert text_of(graph_of(deep)).startswith("a[`")


def test_arguments_that_do_not_fit_and_sources_that_cannot_be_read_are_refused() -> None:
    @sgl.function
    def f(s: Any, q: str) -> None:
        s += q

    with pytest.raises(TypeError, match="nope"):
        graph_of(f, nope=1)
    namespace: dict[str, Any] = {}
    exec("def g(s):\n    s += 'x'\n", namespace)
    with pytest.raises(ValueError, match="source of 'g' cannot be read"):
        compile_program(namespace["g"], {}, "g")
