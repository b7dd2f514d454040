"""What a call becomes: the prompt of the template, and a grammar for the whole turn."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_engines import tiny_engine
from tiny_models import make_checkpoint

from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.vocab import Vocabulary
from sglite.runtime.serve.chat.blame import blamed
from sglite.runtime.serve.chat.plan import Plan, plan
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.openai.chat_ask import read_chat
from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.serving import Serving

TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
USER = [{"role": "user", "content": "hi"}]


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [tool("add", a={"type": "integer"}, b={"type": "integer"}), tool("now")]
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
SWAPPED = '<tool_call>\n{"name": "add", "arguments": {"b": 2, "a": 1}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
WRONG = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
STRANGE = '<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>'
FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = make_checkpoint(tmp_path_factory.mktemp("chat") / "m", max_position_embeddings=2048)
    (Path(folder) / "chat_template.jinja").write_text(TEMPLATE)
    with tiny_engine(folder) as engine:
        yield Serving.of(engine, ServeOptions())


@pytest.fixture(scope="module")
def compiler() -> Iterator[ConstraintCompiler]:
    vocab = Vocabulary([*(bytes([i]) for i in range(256)), None], [256], lambda text: list(text.encode()))
    compiler = ConstraintCompiler(vocab, engine="native" if shutil.which("g++") else "reference")
    yield compiler
    compiler.close()


def planned(serving: Serving, **body: Any) -> Plan:
    return asyncio.run(plan(serving, read_chat(serving, {"messages": USER, **body}).call))


def accepts(compiler: ConstraintCompiler, found: Plan, text: str) -> bool:
    matcher = compiler.compile(found.row.options["constraint"]).matcher()
    data = list(text.encode())
    return matcher.accept_run(data) == len(data) and matcher.accepting


CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"tools": TOOLS}, ["hi", ADD, "well\n" + NOW, ADD + "\n" + NOW, SWAPPED, "<think>hm</think>" + ADD],
     [WRONG, STRANGE, "x " + STRANGE]),
    ({"tools": TOOLS, "parallel_tool_calls": False}, ["hi", ADD], [ADD + "\n" + NOW]),
    ({"tools": TOOLS, "tool_choice": "required"}, [ADD, ADD + "\n" + NOW, "<think>\nhm\n</think>\n\n" + NOW],
     ["hi", "", WRONG, STRANGE, "<think>hm</think>hi"]),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "now"}}}, [NOW],
     [ADD, NOW + "\n" + NOW, "hi"]),
    ({"tools": TOOLS, "response_format": FORM}, ["12", ADD, "<think>x</think>12"], ["hi", "12" + ADD, WRONG]),
    ({"response_format": FORM}, ["12", "<think>x</think>\n12"], ["hi", "<think>12", ADD]),
    ({"tools": TOOLS, "tool_choice": "none", "response_format": FORM}, ["7"], [ADD]),
]  # fmt: skip


@pytest.mark.parametrize(("body", "good", "bad"), CASES)
def test_a_turn_is_what_was_asked_for(
    serving: Serving, compiler: ConstraintCompiler, body: Any, good: list[str], bad: list[str]
) -> None:
    found = planned(serving, **body)
    assert [text for text in good if not accepts(compiler, found, text)] == []
    assert [text for text in bad if accepts(compiler, found, text)] == []


def test_what_needs_no_grammar_has_none(serving: Serving) -> None:
    for body in ({}, {"tools": TOOLS, "tool_choice": "none"}, {"response_format": {"type": "text"}}):
        assert planned(serving, **body).row.options["constraint"] is None


def test_thinking_that_is_turned_off_is_not_in_the_grammar(serving: Serving, compiler: ConstraintCompiler) -> None:
    found = planned(serving, response_format=FORM, chat_template_kwargs={"enable_thinking": False})
    assert accepts(compiler, found, "12") and not accepts(compiler, found, "<think>x</think>12")
    assert (
        planned(serving, reasoning_effort="none").row.input_ids
        == planned(serving, chat_template_kwargs={"enable_thinking": False}).row.input_ids
    )


def test_only_what_was_asked_for_is_closed_at_the_limit(serving: Serving) -> None:
    """A call that the model began by itself is not made up, and thinking is not cut short for free text."""
    closes = [
        planned(serving, **body).row.sampling.get("on_limit")
        for body in ({"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "required"}, {"response_format": FORM})
    ]
    assert closes == [None, "try_close", "try_close"]
    assert planned(serving, response_format=FORM, on_limit="stop").row.sampling["on_limit"] == "stop"


def test_the_prompt_has_the_tools_it_may_call(serving: Serving) -> None:
    def prompt(**body: Any) -> str:
        tokenizer = serving.engine.tokenizer
        assert tokenizer is not None
        return tokenizer.decode(planned(serving, **body).row.input_ids, skip_special_tokens=False)

    assert '"add"' in prompt(tools=TOOLS) and "<tools>" not in prompt(tools=TOOLS, tool_choice="none")
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    history = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "3"}]
    assert ADD in prompt(messages=history)
    developer = [{"role": "developer", "content": "be brief"}, *USER]
    assert "<|im_start|>system\nbe brief" in prompt(messages=developer)


def test_marks_that_are_special_tokens_are_shown_to_the_machine(serving: Serving) -> None:
    tokenizer = serving.engine.tokenizer
    assert tokenizer is not None
    shown = {tokenizer.token_text(i) for i in planned(serving, tools=TOOLS).row.options["shown_special"]}
    assert {"<tool_call>", "</tool_call>", "<think>", "</think>"} <= shown
    assert "<tool_call>" not in {tokenizer.token_text(i) for i in planned(serving).row.options["shown_special"]}


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"tools": TOOLS}, "x: /format/elements/0/tags/1/content/json_schema: /properties/a: no",
         "tools[1].function.parameters"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "now"}}},
         "x: /format/tags/0/content/json_schema: no", "tools[1].function.parameters"),
        ({"response_format": FORM}, "x: /format/elements/1/json_schema: /type: no", "response_format"),
        ({"response_format": FORM}, "json_schema '{}': /type: no", "response_format"),
    ],
)  # fmt: skip
def test_refusals_of_the_grammar_name_the_field(serving: Serving, body: Any, message: str, param: str) -> None:
    call = read_chat(serving, {"messages": USER, **body}).call
    found = blamed(call, ValueError(message))
    assert isinstance(found, Refused) and found.param == param and str(found).endswith("no")
    assert str(blamed(call, ValueError("something else"))) == "something else"


def test_tools_without_a_known_format_are_refused(serving: Serving) -> None:
    plain = Serving.of(serving.engine, ServeOptions(tool_call_parser="none"))
    with pytest.raises(Refused, match="--tool-call-parser"):
        planned(plain, tools=TOOLS)
    assert planned(plain, tools=TOOLS, tool_choice="none").tools == ()
    named = Serving.of(serving.engine, ServeOptions(tool_call_parser="llama3", reasoning_parser="none"))
    assert json.loads(planned(named, tools=TOOLS).row.options["constraint"].value)["type"] == "structural_tag"
