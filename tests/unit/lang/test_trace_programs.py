"""Tracing: no requests, symbols that may be appended but not looked at."""

from __future__ import annotations

from typing import Any

import pytest

import sglite as sgl
from sglite.lang.errors import SymbolicValueError
from sglite.lang.ir import Arg, Fork, Gen, Lit, VarRef

LONG = "background " * 10


def test_a_trace_has_the_nodes_a_run_would_have_with_symbols_for_what_is_open(echo: Any) -> None:
    @sgl.function
    def f(s: Any, q: str) -> None:
        s += "Q: " + q
        s += sgl.gen("a")
        group = s.fork(2)
        group += lambda i: f"{i}" + sgl.gen("v")
        s += group[1]["v"] + sgl.gen("end")

    trace = f.trace()
    kinds = [type(node.op) for node in trace.nodes]
    assert kinds == [Lit, Arg, Gen, Fork, Lit, Gen, Lit, Gen, VarRef, Gen]
    assert {"a", "end"} <= set(trace.variables) and "v" not in trace.variables
    assert trace.nodes[8].op.source == 7  # type: ignore[union-attr]
    assert f.trace(q="given").nodes[0].op == f.bind(q="given").trace().nodes[0].op == Lit("Q: given")


@pytest.mark.parametrize(
    "look",
    [
        lambda q: f"{q}",
        lambda q: q == "x",
        lambda q: bool(q),
        lambda q: len(q),
        lambda q: str(q),
    ],
)
def test_looking_at_a_symbol_is_an_error_that_names_it(look: Any) -> None:
    @sgl.function
    def f(s: Any, q: str) -> None:
        look(q)

    with pytest.raises(SymbolicValueError, match="argument 'q' is not known"):
        f.trace()


def test_a_program_called_inside_a_trace_is_traced() -> None:
    inner_trace = []

    @sgl.function
    def inner(s: Any, x: str) -> None:
        s += x + sgl.gen("deep")

    @sgl.function
    def outer(s: Any, q: str) -> None:
        inner_trace.append(inner(q))
        s += sgl.gen("v")

    outer.trace()
    assert set(inner_trace[0].variables) == {"deep"}


def test_the_graph_prints_what_a_node_follows_from(capsys: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "Q" + sgl.gen("a")
        s += s["a"]

    last = f.trace().last_node
    assert last is not None
    last.print_graph_dfs()
    assert capsys.readouterr().out.splitlines() == [
        "%0 (stream 0) = Lit(text='Q')",
        "%1 (stream 0) = %0 + gen('a')",
        "%2 (stream 0) = %1 + variable 'a'",
    ]


def test_cache_computes_the_text_every_run_starts_with(echo: Any) -> None:
    @sgl.function
    def f(s: Any, q: str) -> None:
        s += sgl.system(LONG)
        s += sgl.user("Q: " + q) + sgl.gen("a")

    f.cache(backend=echo)
    f.bind(q="why").cache(backend=echo)
    assert echo.prefilled == [f"SYSTEM: {LONG}\nUSER: Q: ", f"SYSTEM: {LONG}\nUSER: Q: why\n"]
    assert echo.calls == []


def test_cache_goes_as_far_as_a_body_can_without_its_arguments(echo: Any) -> None:
    @sgl.function
    def f(s: Any, q: str) -> None:
        s += LONG
        s += f"{q}"

    f.cache(backend=echo)
    assert echo.prefilled == [LONG]
