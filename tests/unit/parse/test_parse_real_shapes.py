"""Templates in the shapes of published checkpoints: with instructions that mention their marks, thinking that is opened
or closed by the prompt, and calls that only come when asked for in the right form."""

from __future__ import annotations

from typing import Any

import pytest

from sglite.runtime.parse.base import CallArguments, CallEnd, CallStart, Content, Tool
from sglite.runtime.parse.detect import formats_of
from sglite.runtime.text.chat_template import ChatTemplate

DECLARED = "{% if tools %}<|system|>Tools: {% for t in tools %}{{ t | tojson }}{% endfor %} %HOW%<|end|>{% endif %}"
TURNS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>%THOUGHT%"
    "{% if %CALLING% %}%CALLS%{% else %}{{ m.content }}{% endif %}<|end|>"
    "{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
)
OPENING = "{% if add_generation_prompt %}<|assistant|>%OPENED%{% endif %}"
KEPT = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
CUT = "{% if '</think>' in (m.content or '') %}{{ m.content.split('</think>')[-1] }}{% endif %}"
SWITCH = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
EACH = "{{ m.content or '' }}{% for c in m.tool_calls %}{% set f = c.function %}%s{% endfor %}"


def shape(
    call: str, how: str = "", *, thought: str = "", opened: str = "", calling: str = "m.tool_calls", around: str = "%s"
) -> str:
    """A template that writes a call as ``call``; ``how``: what its system text says of calls."""
    calls = around.replace("%s", EACH.replace("%s", call))
    said = (DECLARED + TURNS + OPENING).replace("%HOW%", how).replace("%THOUGHT%", thought)
    return said.replace("%CALLING%", calling).replace("%CALLS%", calls).replace("%OPENED%", opened)


JSON = "{{ f.arguments | tojson }}"
HERMES = "<tool_call>\n" + '{"name": "{{ f.name }}", "arguments": ' + JSON + "}\n</tool_call>"
HERMES_HOW = 'Write <tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>'
XML = (
    "<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>\n{{ v }}\n"
    "</parameter>\n{% endfor %}</function>\n</tool_call>"
)
XML_HOW = "Write <tool_call>\n<function=name>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
GLM = (
    "<tool_call>{{ f.name }}\n{% for k, v in f.arguments.items() %}<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}"
    "</arg_value>\n{% endfor %}</tool_call>"
)
GLM_HOW = "Write <tool_call>{name}\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
SEP, CLOSE = "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FENCED = "<｜tool▁call▁begin｜>{{ c.type }}" + SEP + "{{ f.name + '\n```json\n' + f.arguments + '\n```' }}" + CLOSE
PLAIN = "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments + '<｜tool▁call▁end｜>' }}"
FRAMED = "<｜tool▁calls▁begin｜>%s<｜tool▁calls▁end｜>"
KIMI = "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>" + JSON + "<|tool_call_end|>"
ONE = "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
IDS = "{% if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
HARMONY = "<|channel|>commentary to=functions.{{ f.name }}<|constrain|>json<|message|>" + JSON + "<|call|>"
PYTHONIC = '{{ f.name }}({% for k in f.arguments %}{{ k }}="{{ f.arguments[k] }}"{% endfor %})'

THINK, NONE = "deepseek-r1", "none"
SHAPES: dict[str, tuple[str, str, str]] = {
    "qwen2.5": (shape(HERMES, HERMES_HOW), "hermes", NONE),
    "qwen3": (shape(HERMES, HERMES_HOW, thought=KEPT, opened=SWITCH), "hermes", THINK),
    "qwen3 thinking": (shape(HERMES, HERMES_HOW, thought=KEPT, opened="<think>\n"), "hermes", THINK),
    "qwen3 coder": (shape(XML, XML_HOW), "qwen3_coder", NONE),
    "qwen3.5": (shape(XML, XML_HOW, thought=KEPT, opened="<think>\n"), "qwen3_coder", THINK),
    "glm 4.5": (shape(GLM, GLM_HOW, thought=KEPT, opened="{{ '\n<think></think>' if nothink }}"), "glm45", THINK),
    "deepseek v3": (shape(FENCED, calling="m.content is none", around=FRAMED), "deepseekv3", NONE),
    "deepseek r1": (shape(FENCED, thought=CUT, opened="<think>\n", around=FRAMED), "deepseekv3", THINK),
    "deepseek v3.1": (
        shape(
            PLAIN,
            "Write <｜tool▁calls▁begin｜>name",
            opened="{{ '<think>' if thinking else '</think>' }}",
            around=FRAMED,
        ),
        "deepseekv31",
        THINK,
    ),
    "kimi k2": (
        shape(KIMI, around="<|tool_calls_section_begin|>%s<|tool_calls_section_end|>"),
        "kimi_k2",
        NONE,
    ),
    "llama 3": (shape('{"name": "{{ f.name }}", "parameters": ' + JSON + "}", around=ONE + "%s"), "llama3", NONE),
    "llama 4": (shape(PYTHONIC, "Write [f(a=1)]", around="[%s]"), "pythonic", NONE),
    "mistral": (
        shape(
            IDS + '{"name": "{{ f.name }}", "arguments": ' + JSON + ', "id": "{{ c.id }}"}', around="[TOOL_CALLS][%s]"
        ),
        "mistral",
        NONE,
    ),
    "mistral 3.2": (shape(IDS + "[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]" + JSON), "mistral_named", NONE),
    "gpt-oss": (
        shape(HARMONY, "Channels: analysis, commentary, final", around=ONE + "%s"),
        "gpt-oss",
        "gpt-oss",
    ),
    "no tools": ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", NONE, NONE),
    "calls of its own": (shape('<calls>[{"name": "{{ f.name }}", "args": ' + JSON + "}]</calls>"), NONE, NONE),
    "calls of its own, marks of others": (
        shape(']<[<tool_call>]<[<invoke name="{{ f.name }}">{{ f.arguments.city }}]<[</tool_call>', XML_HOW),
        NONE,
        NONE,
    ),
}
TOOLS = (Tool("lookup", {"type": "object", "properties": {"city": {"type": "string"}}}),)
DICTS = [
    {"type": "function", "function": {"name": tool.name, "description": "Looks up.", "parameters": tool.parameters}}
    for tool in TOOLS
]


def make(name: str) -> ChatTemplate:
    return ChatTemplate(SHAPES[name][0], "<s>", "</s>")


def chat(content: str = "", **more: Any) -> list[dict[str, Any]]:
    function = {"name": "lookup", "arguments": '{"city": "Åre"}'}
    calls = [{"id": "call_0123456789abcdef", "type": "function", "function": function}]
    turn = {"role": "assistant", "content": content, "tool_calls": calls, **more}
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}, turn]


@pytest.mark.parametrize("name", SHAPES)
def test_formats_are_found(name: str) -> None:
    found = formats_of(make(name), None)
    _, tools, reasoning = SHAPES[name]
    assert ("none" if found.tools is None else found.tools.name) == tools
    assert ("none" if found.reasoning is None else found.reasoning.name) == reasoning


@pytest.mark.parametrize("name", [name for name, (_, tools, _) in SHAPES.items() if tools != NONE])
def test_the_format_reads_what_the_template_writes_of_a_call(name: str) -> None:
    """So that calls of history and calls of the model look the same to the model."""
    template = make(name)
    form = formats_of(template, None).tools
    assert form is not None
    turn = template.render(chat(), tools=DICTS).rpartition("<|assistant|>")[2]
    parser = form.parser(TOOLS)
    events = [*parser.feed(turn), *parser.finish()]
    assert [event.name for event in events if isinstance(event, CallStart)] == ["lookup"]
    assert "".join(event.text for event in events if isinstance(event, CallArguments)) == '{"city": "Åre"}'
    assert sum(isinstance(event, CallEnd) for event in events) == 1
    assert "".join(event.text for event in events if isinstance(event, Content)).strip() in ("", "<|end|>")


@pytest.mark.parametrize(
    ("name", "variables", "opened"),
    [
        ("qwen3", {}, False),
        ("qwen3", {"enable_thinking": False}, False),
        ("qwen3 thinking", {}, True),
        ("glm 4.5", {}, False),
        ("glm 4.5", {"nothink": True}, False),
        ("deepseek r1", {}, True),
        ("deepseek v3.1", {"thinking": True}, True),
        ("deepseek v3.1", {"thinking": False}, False),
        ("gpt-oss", {}, False),
    ],
)
def test_the_prompt_says_whether_thinking_has_begun(name: str, variables: dict[str, Any], opened: bool) -> None:
    template = make(name)
    reasoning = formats_of(template, None).reasoning
    assert reasoning is not None
    prompt = template.render([{"role": "user", "content": "<think>"}], add_generation_prompt=True, **variables)
    assert reasoning.opened_by(prompt) is opened
