"""Agents over checkpoints whose templates are each awkward in their own way: a forced call, its result, and on it goes;
and answers that go on from where a message ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tiny_engines import tiny_engine
from tiny_models import make_checkpoint

from sglite import Engine
from sglite.runtime.engine.presenter import Progress
from sglite.runtime.protocol import FinishReason
from sglite.runtime.serve.chat.call import ChatTurn
from sglite.runtime.serve.chat.plan import Plan, plan, render
from sglite.runtime.serve.chat.run import TurnReader, begin
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.openai.chat_ask import read_chat
from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.serving import Serving
from sglite.runtime.text.chat_template import ChatTemplate

TURNS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}{{ m.content or '' }}%CALLS%"
    "{% else %}{{ m.content }}{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>%OPENED%{% endif %}"
)
JSON = "{{ c.function.arguments | tojson }}"


def shape(call: str, before: str = "", after: str = "", opened: str = "") -> str:
    calls = before + "{% for c in m.tool_calls %}" + call + "{% endfor %}" + after
    return TURNS.replace("%CALLS%", calls).replace("%OPENED%", opened)


SHAPES = {
    "text": shape(
        "<｜tool▁call▁begin｜>{{ c.function.name + '<｜tool▁sep｜>' + c.function.arguments }}<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<think>",
    ),
    "short ids": shape(
        "{% if c.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
        "[TOOL_CALLS]{{ c.function.name }}[ARGS]" + JSON
    ),
    "named ids": shape(
        "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>" + JSON + "<|tool_call_end|>",
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
    ),
    "one call": shape(
        '{"name": "{{ c.function.name }}", "parameters": ' + JSON + "}",
        "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}",
    ),
    "thinking": shape(
        '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": ' + JSON + "}\n</tool_call>",
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}",
    ),
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("add", "sub")]
USER = {"role": "user", "content": "Hello"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = make_checkpoint(tmp_path_factory.mktemp("shapes") / "m", max_position_embeddings=2048)
    with tiny_engine(folder) as engine:
        yield engine


def served(engine: Engine, source: str) -> Serving:
    engine.chat_template = ChatTemplate(source)
    return Serving.of(engine, ServeOptions())


def ask(serving: Serving, messages: list[dict[str, Any]], **fields: Any) -> ChatTurn:
    body = {"messages": messages, "tools": TOOLS, "temperature": 0, "max_tokens": 220, **fields}

    async def answer() -> ChatTurn:
        run = await begin(serving, read_chat(serving, body).call)
        try:
            return (await run.turns())[0]
        finally:
            run.end()

    return asyncio.run(answer())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "sub"}}])
def test_forced_calls_come_back_as_history(engine: Engine, name: str, choice: Any) -> None:
    """What the server gave out is what its template takes, and is all there in the next prompt."""
    serving = served(engine, SHAPES[name])
    turn = ask(serving, [USER], tool_choice=choice, parallel_tool_calls=name != "named ids")
    assert turn.calls and turn.finish == "tool_calls" and turn.content == ""
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in turn.calls
    ]
    for call in turn.calls:
        assert call.name == "sub" or choice == "required"
        assert 0 <= json.loads(call.arguments)["n"] <= 9
    back = {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": turn.reasoning or None}
    results = [{"role": "tool", "tool_call_id": call["id"], "content": f"result {i}"} for i, call in enumerate(calls)]
    prompt = render(serving, read_chat(serving, {"messages": [USER, back, *results], "tools": TOOLS}).call)
    for i, call in enumerate(turn.calls):
        assert prompt.index(call.name) >= 0 and f"result {i}" in prompt
        assert str(json.loads(call.arguments)["n"]) in prompt
    after = ask(serving, [USER, back, *results, {"role": "user", "content": "And now?"}], max_tokens=8)
    assert after.finish in ("stop", "length")


@pytest.mark.parametrize("end", ["", "1}}\n</tool_call>"], ids=["broken off", "whole"])
def test_a_call_that_a_stop_string_broke_off_is_none_to_make(engine: Engine, end: str) -> None:
    serving = served(engine, SHAPES["thinking"])

    async def planned() -> Plan:
        return await plan(serving, read_chat(serving, {"messages": [USER], "tools": TOOLS, "stop": ["x"]}).call)

    reader = TurnReader(asyncio.run(planned()), 0)
    text = '<tool_call>\n{"name": "add", "arguments": {"n": ' + end
    delta = reader.read(Progress(text=text, finish_reason=FinishReason(type="stop")))
    assert delta.calls and delta.finish == ("tool_calls" if end else "stop")


LAST = ["It is", "i", "e", "<", "It is  \n", "  It"]
KEPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TRIMMED = KEPT.replace("m.content", "m.content | trim")


@pytest.mark.parametrize("content", LAST)
def test_an_answer_goes_on_where_its_message_ends(engine: Engine, content: str) -> None:
    """Also where the template's own marks hold the same letters."""

    def prompt(source: str) -> str:
        body = {"messages": [USER, {"role": "assistant", "content": content}], "continue_final_message": True}
        serving = served(engine, source)
        return render(serving, read_chat(serving, {**body, "add_generation_prompt": False}).call)

    head = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert prompt(KEPT) == head + content
    assert prompt(TRIMMED) == head + content.strip()


def test_what_cannot_go_on_is_refused(engine: Engine) -> None:
    serving = served(engine, "{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    body = {"messages": [USER, {"role": "assistant", "content": "It is"}], "continue_final_message": True}
    with pytest.raises(Refused, match="changes the last message"):
        render(serving, read_chat(serving, body).call)
    for last in (USER, {"role": "assistant", "content": " "}):
        with pytest.raises(Refused, match="needs a last message of role assistant"):
            render(serving, read_chat(serving, {**body, "messages": [USER, last]}).call)
