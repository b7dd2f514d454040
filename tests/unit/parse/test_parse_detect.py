"""Formats found in templates, named by flags, and what of them a tokenizer has to show."""

from __future__ import annotations

from typing import Any, cast

import pytest

from sglite.runtime.config import ConfigError
from sglite.runtime.parse.base import Tool
from sglite.runtime.parse.detect import Formats, formats_of
from sglite.runtime.parse.registry import REASONING_FORMATS, TOOL_FORMATS, names, reasoning_format, tool_format
from sglite.runtime.text.chat_template import ChatTemplate
from sglite.runtime.text.tokenizer import Tokenizer

TURN = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|>' }}
{%- if message.tool_calls -%}{%- for call in message.tool_calls -%}%CALL%{%- endfor -%}
{%- else -%}{{ message.content }}{%- endif -%}{{ '<|eos|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""
NAME, ARGUMENTS = "' + call.function.name + '", "' + (call.function.arguments | tojson) + '"
VALUE = "' + call.function.arguments.city + '"
CALLS = {
    "hermes": '<tool_call>\\n{"name": "NAME", "arguments": ARGUMENTS}\\n</tool_call>',
    "qwen3_coder": "<tool_call>\\n<function=NAME>\\n<parameter=city>\\nVALUE\\n</parameter>\\n</function>"
    "\\n</tool_call>",
    "glm45": "<tool_call>NAME\\n<arg_key>city</arg_key>\\n<arg_value>VALUE</arg_value>\\n</tool_call>",
    "deepseekv3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\\n```json\\nARGUMENTS\\n```"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseekv31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>ARGUMENTS"
    "<|tool_call_end|><|tool_calls_section_end|>",
    "mistral": '[TOOL_CALLS] [{"name": "NAME", "arguments": ARGUMENTS, "id": "\' + call.id + \'"}]',
    "mistral_named": "[TOOL_CALLS]NAME[ARGS]ARGUMENTS",
    "gpt-oss": "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>ARGUMENTS<|call|>",
    "pythonic": '[NAME(city="VALUE")]',
    "llama3": '{"name": "NAME", "parameters": ARGUMENTS}',
}


def template_of(call: str) -> ChatTemplate:
    written = call.replace("NAME", NAME).replace("ARGUMENTS", ARGUMENTS).replace("VALUE", VALUE)
    return ChatTemplate(TURN.replace("%CALL%", f"{{{{ '{written}' }}}}"))


@pytest.mark.parametrize("name", CALLS)
def test_a_template_tells_its_format_of_calls(name: str) -> None:
    assert formats_of(template_of(CALLS[name]), None).tools is tool_format(name)


@pytest.mark.parametrize("name", ["deepseekv3", "deepseekv31", "hermes", "kimi_k2"])
def test_so_does_one_that_takes_no_arguments_as_objects(name: str) -> None:
    call = CALLS[name].replace("ARGUMENTS", "' + call.function.arguments + '").replace("NAME", NAME)
    assert formats_of(ChatTemplate(TURN.replace("%CALL%", f"{{{{ '{call}' }}}}")), None).tools is tool_format(name)


def test_calls_that_no_format_reads_are_of_none() -> None:
    assert formats_of(template_of("<call NAME ARGUMENTS>"), None) == Formats()
    assert formats_of(ChatTemplate("{{ messages[0].content }}"), None) == Formats()
    assert formats_of(None, None) == Formats()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<think>", "deepseek-r1"),
        ("</think>", "deepseek-r1"),
        ("◁think▷", "kimi"),
        ("[THINK]", "mistral"),
        ("<|channel|>analysis", "gpt-oss"),
    ],
)
def test_a_template_tells_its_thinking(text: str, name: str) -> None:
    assert formats_of(ChatTemplate(text), None).reasoning is reasoning_format(name)


def test_flags_come_before_what_the_template_says() -> None:
    template = template_of(CALLS["hermes"] + "<think>")
    assert formats_of(template, None, "none", "none") == Formats()
    assert formats_of(template, None, "llama3", "kimi") == Formats(tool_format("llama3"), reasoning_format("kimi"))
    assert formats_of(None, None, "qwen25", "qwen3") == Formats(tool_format("hermes"), reasoning_format("deepseek-r1"))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^tool_call_parser='hermse' is not known; use one of auto, none, hermes, "):
        formats_of(None, None, "hermse")
    with pytest.raises(ConfigError, match=r"^reasoning_parser='x' is not known; use one of auto, none, gpt-oss, "):
        formats_of(None, None, "auto", "x")


def test_every_name_means_one_format() -> None:
    for formats in (TOOL_FORMATS, REASONING_FORMATS):
        known = [
            name.lower().replace("-", "").replace("_", "") for form in formats for name in {form.name, *form.aliases}
        ]
        assert set(names(formats)) >= {form.name for form in formats}
        mine = [
            {name.lower().replace("-", "").replace("_", "") for name in (form.name, *form.aliases)} for form in formats
        ]
        assert sum(map(len, mine)) == len(set(known))


class Vocabulary:
    """As much of a tokenizer as is asked here."""

    def __init__(self, special: dict[str, int], plain: dict[str, int]) -> None:
        self.special_token_ids = frozenset(special.values())
        self._ids = {**special, **plain}

    def id_of(self, token: str) -> int | None:
        return self._ids.get(token)


def tokenizer(special: dict[str, int], plain: dict[str, int]) -> Tokenizer:
    return cast(Tokenizer, Vocabulary(special, plain))


def test_marks_that_are_special_tokens_have_to_be_shown() -> None:
    words = tokenizer({"[TOOL_CALLS]": 5, "[THINK]": 7, "[INST]": 3}, {"[ARGS]": 6})
    form = formats_of(None, words, "mistral", "mistral")
    assert form.shown_special(words) == (5, 7)
    assert form.tools is tool_format("mistral_named"), "the vocabulary has its mark"
    assert formats_of(None, tokenizer({}, {}), "mistral").tools is tool_format("mistral")


def test_formats_describe_themselves() -> None:
    assert Formats().describe() == "tool calls none, reasoning none"
    form = formats_of(None, None, "hermes", "qwen3")
    assert form.describe() == "tool calls hermes, reasoning deepseek-r1"


def test_a_turn_can_be_described_with_and_without_thinking() -> None:
    tools = [Tool("f")]
    bare, thinking = formats_of(None, None, "hermes", "none"), formats_of(None, None, "hermes", "qwen3")
    hermes = tool_format("hermes")
    answer: dict[str, Any] = {"type": "json_schema", "json_schema": {}}
    assert bare.content(answer, False) == answer
    assert bare.calls(tools, several=True, opened=False) == hermes.calls(tools, several=True)
    assert thinking.reasoning is not None
    assert thinking.free(tools, several=False, opened=True) == thinking.reasoning.tag(
        True, hermes.free(tools, several=False)
    )
    with pytest.raises(ValueError, match="no known format"):
        Formats().calls(tools, several=False, opened=False)
