"""Random programs on an engine whose model is a function of the prompt: every style, chained or not, nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_programs import bodies, outcome, styles, write
from sequence_engines import scripted_engine, text_folder

import sglite as sgl
from sglite.lang.backends.engine_stream import EngineStream


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "overlap"])
def engine(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = text_folder(tmp_path_factory.mktemp("words"))
    made = scripted_engine(folder, disable_overlap_schedule=not request.param, max_total_tokens=200_000)
    yield made
    made.shutdown()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=bodies(), seed=st.integers(0, 3))
def test_values_are_the_same_in_every_style_and_nothing_is_left(engine: Any, body: tuple[Any, ...], seed: int) -> None:
    found = styles(body, backend=engine, seed=seed)
    first = found["one by one"]
    for style, states in found.items():
        assert states == first, style
    rest = engine.rest()
    assert rest["open_sequences"] == 0 and rest["pins"] == 0 and rest["pinned_pages"] == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=bodies())
def test_what_is_begun_ahead_changes_nothing_but_when(engine: Any, body: tuple[Any, ...]) -> None:
    @sgl.function
    def program(s: Any) -> Any:
        out: list[Any] = []
        write(s, body, out)
        return out

    def run() -> tuple[Any, Any]:
        engine.rest()
        state = program.run(backend=engine)
        values = outcome(state.ret_value)
        state.run.finished.result(30)
        engine.rest()
        return values, engine.get_program_info(state.run.graph.program_id)

    ahead, cost = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineStream, "prepare", lambda self, text, call: None)
        alone, cost_alone = run()
    assert ahead == alone
    if cost is not None:
        for name in ("prompt_tokens", "completion_tokens"):
            assert cost[name] == cost_alone[name], name
