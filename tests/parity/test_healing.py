"""gen(heal=True): what the model would have written there, on the bundled model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.backends.healing import border


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    with sgl.Engine(random_seed=0) as engine:
        yield engine


@sgl.function
def go_on(s: Any, text: str, heal: bool, regex: str | None = None, n: int = 6) -> None:
    s += text + sgl.gen("x", max_tokens=n, heal=heal, regex=regex, ignore_eos=True)
    s += "." + sgl.gen("y", max_tokens=2, ignore_eos=True)


CUTS = ["The colour of the sk", "Please gree", '{"name": "send_em', "hello wor", "a"]


@pytest.mark.parametrize("text", CUTS)
@pytest.mark.parametrize("stream", [False, True])
def test_the_text_stays_and_the_output_goes_on_from_it(engine: Any, text: str, stream: bool) -> None:
    state = go_on.run(text, True, backend=engine, temperature=0, stream=stream)
    assert state.text() == text + state["x"] + "." + state["y"]
    if stream:
        assert "".join(state.text_iter("x")) == state["x"]


@pytest.mark.parametrize("text", CUTS)
def test_the_tokens_are_those_of_a_model_held_to_the_text(engine: Any, text: str) -> None:
    """Reference: from the kept tokens on, generation under the pattern of the tail, asked of the engine directly."""
    ids = engine.tokenizer.encode(text, add_bos=True)
    count, tail = border(
        text, ids, lambda t: engine.tokenizer.encode(t, add_bos=True), least=1, limit=len(text), stops=()
    )
    healed = go_on.run(text, True, backend=engine, temperature=0)["x"]
    if not count:
        return
    params = {"temperature": 0, "max_new_tokens": 6 + count, "regex": re.escape(tail) + r"[\s\S]*", "ignore_eos": True}
    plain = engine.generate(input_ids=ids[: len(ids) - count], sampling_params=params)
    assert plain["text"] == tail + healed


def test_a_pattern_holds_for_the_output_alone(engine: Any) -> None:
    state = go_on.run("Number: 12", True, regex="[0-9]{3}", backend=engine, temperature=0)
    assert re.fullmatch("[0-9]{3}", state["x"]) and state.text().startswith("Number: 12" + state["x"])


def test_nothing_before_the_open_turn_is_touched(engine: Any) -> None:
    @sgl.function
    def chat(s: Any, heal: bool) -> None:
        s.user("hi")
        s.assistant(sgl.gen("x", max_tokens=4, heal=heal))

    plain, healed = (chat.run(heal, backend=engine, temperature=0) for heal in (False, True))
    assert plain.text() == healed.text()


def test_retries_heal_each_time(engine: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "Please gree" + sgl.gen(
            "x", max_tokens=3, heal=True, retries=3, check=lambda v: len(seen.append(v) or seen) > 2
        )

    seen: list[str] = []
    state = f.run(backend=engine, seed=1)
    assert state.text() == "Please gree" + state["x"] and len(seen) >= 3


def test_what_cannot_heal_refuses(engine: Any) -> None:
    with pytest.raises(ValueError, match="heal=True"):
        sgl.gen("x", json_schema={}, heal=True)
    state = go_on.run("a", True, backend=sgl.testing.Mock({"x": "b", "y": "c"}, strict=False))
    assert isinstance(state.error().__cause__, sgl.Unsupported)
