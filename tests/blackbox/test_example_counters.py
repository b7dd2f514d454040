"""The twelve examples cost exactly what their closed forms say: in a process with the engine, and through a server.

Every (prefix, token) position of every prompt is computed once, whatever runs beside it: that is the optimum, and the
engine's own count of positions equals it. ``select`` asks for probabilities of positions that are computed already;
those are replays, which are counted apart.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from served import Served, settles, start

import sglite as sgl
from benchmarks.programs.tokens import Tokens, of_engine
from benchmarks.programs.work import Recorder
from sglite.lang.graph_nodes import is_request, metas_of, waves
from sglite.lang.graph_path import longest
from sglite.lang.ir import Fork, Graph, Node, Select

NAMES = [
    "few_shot_mmlu",
    "few_shot_hellaswag",
    "react_agent",
    "generative_agents",
    "tree_of_thought",
    "skeleton_of_thought",
    "llm_judge",
    "json_decoding",
    "multi_turn_chat",
    "rag_pipeline",
    "map_reduce_summarise",
    "tool_agent",
]
SELECTS = {"few_shot_hellaswag", "react_agent", "generative_agents", "rag_pipeline"}
"""Choices that do not run in the same step compute the last position that they share once each."""
SIZES: dict[str, dict[str, int]] = {
    "few_shot_mmlu": {"subjects": 3, "questions": 5, "shots": 2},
    "few_shot_hellaswag": {"n": 6, "shots": 2},
    "react_agent": {"steps": 1, "thought": 4},
    "generative_agents": {"people": 2, "events": 3, "length": 3},
    "tree_of_thought": {"depth": 3, "width": 2, "keep": 2, "length": 3},
    "skeleton_of_thought": {"least": 2, "most": 2, "length": 4},
    "llm_judge": {"essays": 2, "length": 30, "dimensions": 6},
    "json_decoding": {"names": 3},
    "multi_turn_chat": {"users": 2, "turns": 4, "words": 5, "length": 3},
    "rag_pipeline": {"questions": 3, "k": 3, "length": 5},
    "map_reduce_summarise": {"parts": 7, "words": 10, "length": 4},
    "tool_agent": {"questions": 2},
}


README = Path(__file__).parent.parent.parent / "examples" / "README.md"
COLUMNS = ("requests", "prompt_tokens", "computed_tokens", "completion_tokens", "forks", "path_requests")


def example(name: str) -> ModuleType:
    return importlib.import_module(f"examples.{name}")


@pytest.fixture(scope="module")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine(show_progress=False) as made:
        yield made


@pytest.fixture(scope="module")
def tokens(engine: sgl.Engine) -> Tokens:
    return of_engine(engine)


class Run:
    """One run of an example, cold: what it cost, by the engine's totals and by the states' own counts."""

    def __init__(self, engine: sgl.Engine, module: ModuleType, backend: Any, sizes: dict[str, int]) -> None:
        assert settles(lambda: quiet(engine))
        engine.flush_cache()
        before = engine.get_server_info()["totals"]
        self.states: list[Any] = module.run(backend, **sizes)
        for state in self.states:
            state.run.finished.result(60)
            assert state.error() is None
        assert settles(lambda: quiet(engine))
        after = engine.get_server_info()["totals"]
        self.totals = {name: after[name] - before[name] for name in after}
        self.programs = [engine.get_program_info(state.run.graph.program_id) for state in self.states]

    def usage(self, name: str) -> int:
        return sum(getattr(state.usage, name) for state in self.states)

    def of_programs(self, name: str) -> int:
        return sum(info[name] for info in self.programs if info is not None)

    def forks(self) -> int:
        return sum(isinstance(node.op, Fork) for state in self.states for node in state.graph().nodes)

    def counters(self) -> dict[str, int]:
        return {
            "requests": self.usage("requests"),
            "prompt_tokens": self.usage("prompt_tokens"),
            "computed_tokens": self.totals["computed_prompt_tokens"] - self.totals["replayed_tokens"],
            "completion_tokens": self.totals["completion_tokens"],
            "forks": self.forks(),
        }

    def along(self, weight: Any) -> int:
        """The longest chain of requests, in ``weight``."""
        graphs = [state.run.graph for state in self.states]
        return max(int(sum(weight(graph, node) for node in longest(graph, weight))) for graph in graphs)


def quiet(engine: sgl.Engine) -> bool:
    info = engine.get_server_info()
    return not (info["num_running"] or info["num_waiting"] or info["open_sequences"] or info["pins"])


def requests(_: Graph, node: Node) -> float:
    return float(waves(node))


def passes(graph: Graph, node: Node) -> float:
    """Steps that a node's requests took part in; the choices of a select are scored at once."""
    if not is_request(node):
        return 0.0
    spent = sum(meta.get("forward_passes", 0) for meta in metas_of(graph.records[node.id]))
    return float(spent / len(node.op.choices) if isinstance(node.op, Select) else spent)


def check(run: Run, expected: dict[str, int]) -> None:
    counters = run.counters()
    assert counters == {name: expected[name] for name in counters}
    assert run.usage("completion_tokens") == expected["completion_tokens"]
    assert run.usage("prompt_tokens") == run.usage("cached_tokens") + run.usage("computed_prompt_tokens")


def readme_row(name: str, expected: dict[str, int]) -> str:
    """What the README says of an example."""
    return f"| `{name}` | " + " | ".join(f"{expected[column]:,}" for column in COLUMNS) + " |"


def check_path(run: Run, expected: dict[str, int]) -> None:
    assert run.along(requests) == expected["path_requests"]
    assert run.along(passes) == expected.get("path_passes", run.along(passes))


def test_choices_share_the_probabilities_after_what_they_share(engine: sgl.Engine) -> None:
    run = Run(engine, example("few_shot_hellaswag"), engine, {"n": 1})
    assert run.totals["replayed_tokens"] == 0


def test_rows_that_part_inside_a_token_cost_what_they_have(engine: sgl.Engine, tokens: Tokens) -> None:
    @sgl.function
    def ask(s: Any, word: str) -> None:
        s += "A prefix that is long enough to be computed before the rows that begin with it: " + word
        s += sgl.gen("x", max_tokens=1)

    assert settles(lambda: quiet(engine))
    engine.flush_cache()
    before = engine.get_server_info()["totals"]["computed_prompt_tokens"]
    states = ask.run_batch([("weather",), ("water",)], backend=engine, temperature=0)
    assert all(state.error() is None for state in states) and settles(lambda: quiet(engine))
    computed = engine.get_server_info()["totals"]["computed_prompt_tokens"] - before
    assert computed == tokens.tree(state.text().removesuffix(state["x"]) for state in states)


@pytest.mark.parametrize("name", ["map_reduce_summarise", "tree_of_thought", "rag_pipeline"])
def test_the_benchmark_sends_what_the_program_asks_for(engine: sgl.Engine, tokens: Tokens, name: str) -> None:
    recorder = Recorder(engine)
    run = Run(engine, example(name), recorder, {})
    expected = example(name).expected(tokens, run.states)
    assert len(recorder.requests) == expected["requests"]
    last = recorder.requests[-1].bodies[0]["text"]
    assert name == "tree_of_thought" or run.states[-1].text().startswith(last[: last.rindex("\n")])
    assert 1 + max(request.wave for request in recorder.requests) >= expected["path_requests"]


@pytest.mark.parametrize("name", NAMES)
def test_counters_equal_the_closed_forms(engine: sgl.Engine, tokens: Tokens, name: str) -> None:
    module = example(name)
    run = Run(engine, module, engine, {})
    expected = module.expected(tokens, run.states)
    check(run, expected)
    assert run.of_programs("completion_tokens") == expected["completion_tokens"]
    assert readme_row(name, expected) in README.read_text(encoding="utf-8").splitlines()
    if name not in SELECTS:
        assert run.totals["replayed_tokens"] == 0
    check_path(run, expected)


@pytest.mark.parametrize("name", NAMES)
def test_closed_forms_hold_for_other_sizes(engine: sgl.Engine, tokens: Tokens, name: str) -> None:
    module, sizes = example(name), SIZES[name]
    run = Run(engine, module, engine, sizes)
    check(run, module.expected(tokens, run.states, **sizes))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"few_shot_mmlu", "few_shot_hellaswag", "multi_turn_chat"}))
def test_the_engine_charges_all_of_it_to_the_programs(engine: sgl.Engine, tokens: Tokens, name: str) -> None:
    module = example(name)
    run = Run(engine, module, engine, {})
    computed = run.of_programs("computed_prompt_tokens") - run.of_programs("replayed_tokens")
    assert computed == module.expected(tokens, run.states)["computed_tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_run_as_scripts(
    engine: sgl.Engine, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [name])
    monkeypatch.setattr(sgl, "Engine", lambda *_: contextlib.nullcontext(engine))
    example(name).main()
    assert capsys.readouterr().out.strip()


@pytest.fixture(scope="module")
def server(engine: sgl.Engine) -> Iterator[Served]:
    import httpx

    running, url, thread = start(engine)
    with httpx.Client(base_url=url, timeout=60) as http:
        yield Served(url, engine, http)
    running.should_exit = True
    thread.join(20)


@pytest.mark.parametrize("name", NAMES)
def test_counters_equal_the_closed_forms_on_a_server(server: Served, tokens: Tokens, name: str) -> None:
    module = example(name)
    run = Run(server.engine, module, sgl.RuntimeEndpoint(server.url), {})
    check(run, module.expected(tokens, run.states))
