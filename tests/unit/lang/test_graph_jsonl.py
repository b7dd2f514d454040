"""A trace holds a graph: written and read it is the same, and what is no trace is refused with its line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglite.lang.choices import (
    ChoicesDecision,
    ChoicesMethod,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from sglite.lang.graph import ProgramGraph
from sglite.lang.ir import (
    Arg,
    Ask,
    CaptureBegin,
    CaptureEnd,
    Checkpoint,
    Fork,
    Gen,
    Graph,
    Join,
    Lit,
    Media,
    NodeRecord,
    Reasoned,
    Reply,
    Restart,
    RoleBegin,
    RoleEnd,
    Rollback,
    Sampling,
    Select,
    Tell,
    VarRef,
)
from sglite.lang.messages import ToolSpec

words = st.text(max_size=8)
samplings = st.builds(
    Sampling,
    max_new_tokens=st.none() | st.integers(-1, 9),
    temperature=st.none() | st.floats(0, 2),
    stop=st.none() | st.lists(words, max_size=2).map(tuple),
    stop_token_ids=st.none() | st.just((1, 2)),
    ignore_eos=st.none() | st.booleans(),
    json_schema=st.none() | words,
)
gens = st.builds(Gen, st.none() | words, samplings, st.lists(words, max_size=2).map(tuple), retries=st.integers(0, 3))
methods = st.sampled_from([token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
tools = st.builds(ToolSpec, words, words, st.dictionaries(words, json_values, max_size=2))
messages = st.fixed_dictionaries({"role": words, "content": json_values})
ops = st.one_of(
    st.builds(Lit, words),
    gens,
    st.builds(Reasoned, gens, st.just(("<think>", "</think>"))),
    st.builds(Select, st.none() | words, st.lists(words, min_size=1, max_size=3).map(tuple), methods, st.floats(0, 1)),
    st.builds(RoleBegin, words),
    st.builds(RoleEnd, words),
    st.builds(Media, st.sampled_from(["image", "video"]), words, st.none() | st.integers(1, 3)),
    st.builds(Tell, messages),
    st.builds(Ask, st.lists(tools, max_size=2).map(tuple)),
    st.builds(Reply, messages),
    st.builds(CaptureBegin, words),
    st.builds(CaptureEnd, words),
    st.builds(Checkpoint, st.integers(0, 3)),
    st.builds(Rollback, st.integers(0, 3)),
    st.builds(Restart, st.booleans()),
    st.builds(Fork, st.just((1, 2))),
    st.builds(Join, st.sampled_from(["gather_variable", "concate_and_append"])),
)
records = st.builds(
    NodeRecord,
    st.floats(0, 9),
    st.none() | st.floats(0, 9),
    words,
    json_values,
    st.lists(json_values, max_size=2),
    st.integers(0, 9),
    st.integers(1, 3),
    st.none() | words,
)


def built(parts: list[Any], made: list[NodeRecord], name: str) -> Graph:
    graph = Graph(name, "id")
    for _ in range(3):
        graph.new_stream()
    for i, op in enumerate(parts):
        graph.add(i % 3, i - 1 if i else None, op, tuple(range(max(0, i - 2), i)), f"f.py:{i}" if i % 2 else "")
    graph.records = dict(zip(range(len(parts)), made, strict=False))
    return graph


@settings(max_examples=150, deadline=None)
@given(st.lists(ops, max_size=8), st.lists(records, max_size=4), words)
def test_a_graph_comes_back_equal(parts: list[Any], made: list[NodeRecord], name: str) -> None:
    graph = built(parts, made, name)
    lines = ProgramGraph(graph).to_jsonl()
    again = ProgramGraph.from_jsonl(lines)
    assert again.nodes == graph.nodes and again.records == graph.records
    assert (again.name, again.graph.program_id) == (name, "id")
    assert again.to_jsonl() == lines
    assert all(isinstance(json.loads(line), dict) for line in lines.splitlines())
    assert again.graph.new_stream() >= 1 or not parts


def longer(text: str) -> bool:
    return len(text) > 3


class MyRule(ChoicesMethod):
    requires_unconditional_logprobs = True  # type: ignore[assignment]

    def __call__(self, **_: Any) -> ChoicesDecision:
        raise AssertionError


def test_what_json_cannot_hold_is_kept_by_name(tmp_path: Path) -> None:
    graph = Graph("named")
    graph.new_stream()
    graph.add(0, None, Gen("a", Sampling(), check=longer, retries=2))
    graph.add(0, 0, Select("s", ("x", "y"), MyRule()))
    graph.add(0, 1, Arg("topic"))
    graph.add(0, 2, VarRef("a", 0))
    graph.records[0] = NodeRecord(0.0, meta={"score": -math.inf, "odd": longer, 3: (1, 2)})
    lines = ProgramGraph(graph).to_jsonl(tmp_path / "t.jsonl")
    again = ProgramGraph.load(tmp_path / "t.jsonl")
    assert again.to_jsonl() == lines and str(again) == str(ProgramGraph(graph))
    gen, select = again.nodes[0].op, again.nodes[1].op
    assert isinstance(gen, Gen) and gen.check is not None and gen.check.__name__ == "longer"
    assert isinstance(select, Select) and select.method.requires_unconditional_logprobs
    with pytest.raises(TypeError, match="'longer' was loaded from a trace"):
        gen.check("text")
    assert again.records[0].meta["score"] == -math.inf and again.critical_path().requests == 3


HEAD = '{"sglite_trace": 1, "name": "f", "program_id": "", "streams": 1, "nodes": 1}'
NODE = '{"node": 0, "stream": 0, "prev": null, "op": {"is": "Lit", "text": "a"}}'


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "an empty trace"),
        (["{"], "line 1 is no line of a trace"),
        (['{"sglite_trace": 2}'], "line 1.*a trace begins with"),
        ([HEAD], "ends after 0 of 1 nodes"),
        ([HEAD, NODE, NODE], "line 3.*node 0 where node 1 of 1 is expected"),
        ([HEAD, NODE.replace('"prev": null', '"prev": 0')], "line 2.*comes later"),
        ([HEAD, NODE.replace('"prev": null', '"prev": -1')], "line 2.*-1 is no number"),
        ([HEAD, NODE.replace("Lit", "Evil")], "line 2.*'Evil' is no kind of operation"),
        ([HEAD, NODE.replace('"text"', '"file"')], "line 2.*Lit has no field 'file'"),
        ([HEAD, NODE, '{"record": 1, "started": 0}'], "line 3.*a record of node 1"),
        ([HEAD, NODE, '{"what": 1}'], "line 3.*neither a node nor a record"),
        ([HEAD.replace('"nodes": 1', '"nodes": 1e9')], "line 1.*no number"),
        ([HEAD.replace('"nodes": 1', '"nodes": 10000000')], "line 1.*a trace may have"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(lines: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ProgramGraph.from_jsonl("\n".join(lines))
