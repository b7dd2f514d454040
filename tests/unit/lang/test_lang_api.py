"""The names users call: what they refuse at once, what they send, what importing them costs."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pydantic
import pytest

import sglite as sgl
from sglite.lang.backends.base import GenCall
from sglite.lang.ir import Concat, Gen, Lit, Sampling
from sglite.lang.reasoning import split_reasoning
from sglite.lang.types import dtype_rule

THINK = ("<think>", "</think>")


def test_importing_the_package_is_cheap() -> None:
    heavy = "torch transformers httpx pydantic numpy asyncio rich"
    code = f"import sys, sglite; print([m for m in {heavy.split()!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_every_public_name_of_the_language_resolves() -> None:
    for name in set(sgl.__all__) - {"Engine"}:
        assert getattr(sgl, name) is not None and name in dir(sgl)
    with pytest.raises(AttributeError, match="nonsense"):
        sgl.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: sgl.gen(regex="(a"), re.error, "unterminated"),
        (lambda: sgl.gen(regex="a", dtype=int), ValueError, "dtype and regex exclude"),
        (lambda: sgl.gen(json_schema="{"), ValueError, "not JSON"),
        (lambda: sgl.gen(json_schema=int), ValueError, "has to be a pydantic model"),
        (lambda: sgl.gen(dtype=complex), ValueError, "int, float, bool, str"),
        (lambda: sgl.gen(choices=["a"], regex="a"), ValueError, "cannot be combined with regex"),
        (lambda: sgl.gen(choices=["a"], n=2), ValueError, "cannot be combined with n"),
        (lambda: sgl.select("v"), ValueError, "one string or more"),
        (lambda: sgl.select("v", []), ValueError, "one string or more"),
        (lambda: sgl.select("v", "ab"), ValueError, "list of one string or more"),
        (lambda: sgl.select("v", ["a", ""]), ValueError, "empty string"),
        (lambda: sgl.select("v", ["a", 1]), TypeError, "choice 1 is no string"),
        (lambda: sgl.separate_reasoning(sgl.gen(), "qwen3"), ValueError, "needs a name"),
        (lambda: sgl.separate_reasoning(sgl.gen("a"), "parrot"), ValueError, "unknown; known are"),
        (lambda: sgl.separate_reasoning(sgl.gen("a")), ValueError, "model_type"),
        (lambda: "a" + sgl.gen("x") + None, ValueError, "None cannot be appended"),
        (lambda: sgl.gen("x") + 3, TypeError, r"3 \(int\) cannot be appended"),
        (lambda: sgl.function(lambda state: None), TypeError, "must be named 's'"),
        (lambda: sgl.function(lambda s, a: None).bind(b=1), TypeError, "unexpected keyword"),
    ],
)
def test_mistakes_are_refused_where_they_are_made(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_expressions_are_values() -> None:
    once = sgl.gen("x", stop=["a"])
    assert once == sgl.gen("x", stop=["a"]) and hash(once) == hash(sgl.gen("x", stop=["a"]))
    both = "a" + once + "b" + once
    assert both == Concat((Lit("a"), once, Lit("b"), once))  # type: ignore[arg-type]


def test_every_argument_of_gen_reaches_the_request() -> None:
    given: dict[str, Any] = {
        "min_tokens": 1,
        "n": 2,
        "stop": "a",
        "stop_token_ids": [5],
        "stop_regex": ["b"],
        "temperature": 0.5,
        "top_p": 0.4,
        "top_k": 3,
        "min_p": 0.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "ignore_eos": True,
        "json_schema": {"type": "null"},
    }
    logprobs: dict[str, Any] = {
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 2,
        "return_text_in_logprobs": True,
    }
    expr: Any = sgl.gen("v", 7, **given, **logprobs)
    call = GenCall(name="v", sampling=expr.sampling)
    assert call.logprob_options() == logprobs
    del given["min_tokens"]
    changed = {"max_new_tokens": 7, "min_new_tokens": 1, "stop": ["a"], "json_schema": '{"type": "null"}'}
    assert call.params() == {**given, **changed}


def test_values_of_gen_go_before_those_of_the_run(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "a" + sgl.gen("x", temperature=0.0, max_tokens=5) + sgl.gen("y")

    f.run(backend=echo, max_new_tokens=9, temperature=0.7, stop_token_ids=[1]).sync()
    (_, x), (_, y) = echo.calls
    assert (x.sampling.max_new_tokens, x.sampling.temperature, x.sampling.stop_token_ids) == (5, 0.0, (1,))
    assert (y.sampling.max_new_tokens, y.sampling.temperature, y.sampling.top_p) == (9, 0.7, 1.0)


def test_numbers_stop_at_white_space_and_the_callers_list_stays_as_it_is(echo: Any) -> None:
    stops = ["END"]

    @sgl.function
    def f(s: Any) -> None:
        s += "a" + sgl.gen("n", dtype=int, stop=stops) + sgl.gen_int("m") + sgl.gen("t", stop=stops)

    f.run(backend=echo, stop="R").sync()
    assert [c.sampling.stop for _, c in echo.calls] == [("END", " ", "\n"), ("R", " ", "\n"), ("END",)]
    assert stops == ["END"]


@pytest.mark.parametrize("dtype, good, bad", [(int, "-12 ", "1.5"), (float, ".5", "1e5"), (bool, "True", "true")])
def test_dtypes_describe_their_values(dtype: Any, good: str, bad: str) -> None:
    assert dtype_rule(dtype) == dtype_rule(dtype.__name__)
    assert re.fullmatch(dtype_rule(dtype).regex, good) and not re.fullmatch(dtype_rule(dtype).regex, bad)


def test_choices_make_a_select_and_only_its_arguments_matter() -> None:
    assert sgl.gen("v", choices=["a", "b"], max_tokens=3) == sgl.select("v", ["a", "b"])


@pytest.mark.parametrize(
    "text, split",
    [
        ("<think>why</think>\n\nyes", ("why", "\n\nyes")),
        ("why</think>yes", ("why", "yes")),
        ("<think>cut off", ("cut off", "")),
        ("yes", ("", "yes")),
        ("<think></think>yes", ("", "yes")),
        ("", ("", "")),
    ],
)
def test_reasoning_ends_at_its_closing_tag(text: str, split: tuple[str, str]) -> None:
    assert split_reasoning(text, THINK) == split


def test_bind_keeps_options_and_the_original() -> None:
    @sgl.function(num_api_spec_tokens=32)
    def f(s: Any, a: str, b: str = "x") -> None: ...

    g = f.bind(a="1")
    assert (g.num_api_spec_tokens, g.bound, f.bound) == (32, {"a": "1"}, {})


def test_a_run_needs_a_back_end_and_says_so() -> None:
    f = sgl.function(lambda s: None)
    sgl.set_default_backend(None)
    with pytest.raises(RuntimeError, match="set_default_backend"):
        f.run()
    with pytest.raises(TypeError, match="is no back end"):
        f.run(backend=object())
    assert sgl.flush_cache() is False and sgl.get_server_info() is None


def test_the_mock_answers_by_name_in_order_and_says_what_is_missing() -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "p" + sgl.gen("a") + sgl.gen("a") + sgl.select("c", ["x", "y"])

    mock = sgl.testing.Mock({"a": ["1", "2"], "c": "y"})
    assert f.run(backend=mock).text() == "p12y" and mock.prompts == ["p", "p1", "p12"]
    assert "no answer left for 'a'" in str(f.run(backend=mock).error())
    assert f.run(backend=sgl.testing.Mock(["1", "2", "x"])).text() == "p12x"
    assert "none of ['x', 'y']" in str(f.run(backend=sgl.testing.Mock({"a": "1", "c": "z"})).error())


def test_sampling_shows_only_what_is_set() -> None:
    assert str(Gen("x", Sampling(temperature=0.0, stop=("a",)))) == "gen('x', stop=('a',), temperature=0.0)"
    assert str(Gen(None, Sampling())) == "gen()"


def test_a_pydantic_model_is_its_schema() -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int

    assert sgl.gen(json_schema=Person) == sgl.gen(json_schema=Person.model_json_schema())
