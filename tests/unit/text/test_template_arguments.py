"""Earlier calls reach every kind of template in the form that it takes, whatever form the client sends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from unit.text import vocabularies

from sglite.runtime.text.calls import CallStyle, style_of, styled
from sglite.runtime.text.chat_template import ChatTemplate, TemplateError, TemplateTooCostly

HEAD = "{% for m in messages %}{{ '<' + m.role + '>' }}"
TAIL = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
OTHERWISE = "{{ m.content }}{% if m.tool_call_id %}(for {{ m.tool_call_id }}){% endif %}</{{ m.role }}>"
EACH = "{{ m.content }}{% for c in m.tool_calls %}%CALL%{% endfor %}</assistant>"


def template_of(turn: str, condition: str = "m.tool_calls") -> str:
    return f"{HEAD}{{% if {condition} %}}{turn}{{% else %}}{OTHERWISE}{{% endif %}}{TAIL}"


def each(call: str) -> str:
    return template_of(EACH.replace("%CALL%", call))


ONE = "{{ '<call>' + c.function.name + ' ' + (c.function.arguments | tojson) + '</call>' }}"
TEXT = "{{ '<call>' + c.function.name + ' ' + c.function.arguments + '</call>' }}"
NAMED = "{{ '<call>' + c.id + ' ' + (c.function.arguments | tojson) + '</call>' }}"
FIELDS = "<call>{{ c.function.name }}{% for k, v in c.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}</call>"
PYTHON = "<call>{{ c.function.name }} {{ c.function.arguments }}</call>"
SHORT = "{% if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}[{{ c.id }}]" + ONE
SHOWN = "</assistant>{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
FIRST = "{% set c = m.tool_calls[0] %}" + ONE
CLASH = "{% if m.content and m.thinking %}{{ raise_exception('one of both') }}{% endif %}{{ m.thinking }}"

SHAPES: dict[str, tuple[str, CallStyle]] = {
    "objects": (each(ONE), CallStyle()),
    "fields": (each(FIELDS), CallStyle()),
    "both": (each("{% if c.function.arguments is string %}" + TEXT + "{% else %}" + ONE + "{% endif %}"), CallStyle()),
    "text": (each(TEXT), CallStyle(text=True)),
    "python": (each(PYTHON), CallStyle(text=True)),
    "null": (
        template_of("{% for c in m.tool_calls %}" + TEXT + "{% endfor %}</assistant>", "m.content is none"),
        CallStyle(text=True, null=True, apart=True),
    ),
    "short": (each(SHORT), CallStyle(ids="short")),
    "named": (each(NAMED), CallStyle(ids="named")),
    "refusing": (template_of("{{ m.content }}" + FIRST + SHOWN), CallStyle(single=True)),
    "first": (template_of("{{ m.content }}" + FIRST + "</assistant>"), CallStyle(single=True)),
    "clashing": (template_of(CLASH + EACH.replace("%CALL%", ONE)), CallStyle(joined=True)),
    "blind": (template_of("{{ m.content }}"), CallStyle()),
}


def make(name: str) -> ChatTemplate:
    return ChatTemplate(SHAPES[name][0], "<s>", "</s>")


def call(ident: str, name: str, arguments: Any, as_text: bool) -> dict[str, Any]:
    written = json.dumps(arguments, ensure_ascii=False) if as_text else arguments
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": written}}


def chat(as_text: bool = True, content: str = "Let me see.", thought: str | None = "hm") -> list[dict[str, Any]]:
    calls = [
        call("call_0123456789abcdef", "weather", {"city": "Åre"}, as_text),
        call("call_fedcba9876543210", "clock", {"zone": "CET"}, as_text),
    ]
    turn = {"role": "assistant", "content": content, "tool_calls": calls}
    return [
        {"role": "user", "content": "Hello"},
        {**turn, "reasoning_content": thought} if thought else turn,
        {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "snow"},
        {"role": "tool", "tool_call_id": "call_fedcba9876543210", "content": "noon"},
        {"role": "assistant", "content": "It snows."},
        {"role": "user", "content": "Thanks."},
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_the_style_of_a_template_is_found(name: str) -> None:
    template = make(name)
    assert template.call_style(False) == template.call_style(True) == SHAPES[name][1]


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "blind"])
@pytest.mark.parametrize("content", ["", "Let me see."])
def test_nothing_of_a_conversation_is_lost(name: str, content: str) -> None:
    """Calls, arguments, results and texts stand in the prompt in their order, however the client writes arguments."""
    found = make(name).render(chat(True, content), add_generation_prompt=True)
    words = ["Hello", content, "weather", "city", "Åre", "clock", "zone", "CET", "noon", "It snows.", "Thanks."]
    places = [found.index(word) for word in words if word]
    assert places == sorted(places)
    assert found.count("<tool>snow") == found.count("<tool>noon") == 1 and "\\" not in found and "{'" not in found
    assert found == make(name).render(chat(False, content), add_generation_prompt=True)


def test_arguments_as_text_stay_as_the_client_wrote_them() -> None:
    """What the model wrote comes back token by token, so that its cache can be used."""
    spaced = '{"b":1,\n "a": "\\u00c5"}'
    turn = {"role": "assistant", "content": "", "tool_calls": [call("x", "f", None, False)]}
    turn["tool_calls"][0]["function"]["arguments"] = spaced
    assert f"<call>f {spaced}</call>" in make("text").render([turn])
    assert '<call>f {"b": 1, "a": "Å"}</call>' in make("objects").render([turn])
    for empty in ("", None, " "):
        turn["tool_calls"][0]["function"]["arguments"] = empty
        assert "<call>f {}</call>" in make("text").render([turn])


@pytest.mark.parametrize("name", ["objects", "text", "both", "fields"])
def test_prompts_equal_the_reference(name: str) -> None:
    """Of a user who gives the reference what the template wants."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(vocabularies.byte_level_folder())
    wanted = chat(as_text=SHAPES[name][1].text)
    for as_text in (True, False):
        assert make(name).render(chat(as_text)) == tokenizer.apply_chat_template(
            wanted, chat_template=SHAPES[name][0], tokenize=False
        )


def test_ids_of_nine_letters_belong_together() -> None:
    found = make("short").render(chat())
    first, second = (found[at + 1 : at + 10] for at, sign in enumerate(found) if sign == "[")
    assert first != second and first.isalnum() and second.isalnum()
    assert f"snow(for {first})" in found and f"noon(for {second})" in found
    kept = [{"role": "assistant", "content": "", "tool_calls": [call("abcDEF123", "f", {}, True)]}]
    assert "[abcDEF123]" in make("short").render(kept)


def test_ids_with_names_count_the_calls_of_the_conversation() -> None:
    messages = [*chat(), *chat()]
    found = make("named").render(messages)
    for number, name in enumerate(("weather", "clock", "weather", "clock")):
        assert found.count(f"functions.{name}:{number}") == 2, "once with the call, once with its result"
    own = [{"role": "assistant", "content": "", "tool_calls": [call("functions.f:7", "f", {}, True)]}]
    assert "<call>functions.f:7 {}" in make("named").render(own)


@pytest.mark.parametrize("name", ["short", "named"])
def test_results_without_an_id_are_those_of_the_calls_in_order(name: str) -> None:
    bare = [{key: value for key, value in message.items() if key != "tool_call_id"} for message in chat()]
    assert make(name).render(bare) == make(name).render(chat())


def test_calls_that_come_one_by_one_have_their_results_behind_them() -> None:
    messages = chat(thought=None)
    messages[2], messages[3] = messages[3], messages[2]
    found = make("refusing").render(messages)
    assert found.index("weather") < found.index("snow") < found.index("clock") < found.index("noon")
    assert found.count("Let me see.") == 1


def test_what_a_template_takes_is_handed_on_unchanged() -> None:
    messages = chat(as_text=False)
    assert styled(messages, CallStyle()) == messages
    given = chat()
    make("short").render(given)
    assert given == chat(), "the client's messages are not written to"


def test_a_template_that_refuses_calls_says_so_in_its_own_words() -> None:
    template = ChatTemplate(template_of("{{ raise_exception('no calls here') }}"))
    with pytest.raises(TemplateError, match="no calls here"):
        template.render(chat())


def test_a_template_that_costs_too_much_is_not_tried_again() -> None:
    asked = 0

    def render(messages: list[dict[str, Any]]) -> str:
        nonlocal asked
        asked += 1
        raise TemplateTooCostly("enough")

    with pytest.raises(TemplateTooCostly):
        style_of(render)
    assert asked == 1


def test_styles_are_found_once() -> None:
    template = make("text")
    rendered = template._render_plain
    count = 0

    def counted(*arguments: Any, **variables: Any) -> str:
        nonlocal count
        count += 1
        return rendered(*arguments, **variables)

    template._render_plain = counted  # type: ignore[method-assign]
    template.render(chat())
    first = count
    template.render(chat())
    assert count == first + 1 <= 12


def test_turns_of_tools_are_found_whatever_form_calls_take() -> None:
    for name in ("objects", "text", "named"):
        assert make(name).turn("tool", first=False)[0].endswith("<tool>")
