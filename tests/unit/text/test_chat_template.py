"""Chat templates: rendered as the reference renders, cut into turns that join again, and bounded."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from unit.text import templates, vocabularies

from sglite.runtime.text.chat_template import ChatTemplate, TemplateError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather, with <b> & 'é'.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"city": "Åre", "days": 2}}}
USER, ANSWER = {"role": "user", "content": " Hello <b>é</b> "}, {"role": "assistant", "content": "Hi."}
SYSTEM = {"role": "system", "content": "Be brief."}
THOUGHT = {"role": "assistant", "content": "Yes.", "reasoning_content": "\nhm\n"}
CHATS: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER],
    [USER, ANSWER],
    [SYSTEM, USER, ANSWER, USER],
    [USER, THOUGHT, USER, ANSWER],
    [USER, {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}],
]
TOOL_CHAT = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": '{"sky": "blue"}'},
    ANSWER,
]
ALL = {name: getattr(templates, name) for name in ("CHATML", "LLAMA3", "QWEN3", "GEMMA", "R1", "MARKED")}


def make(source: str) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>")


@pytest.fixture(scope="module")
def reference() -> Any:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(vocabularies.byte_level_folder())
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})

    def render(source: str, messages: Any, **kwargs: Any) -> str:
        text: str = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **kwargs)
        return text

    return render


@pytest.mark.parametrize("name", ALL)
def test_equals_the_reference(name: str, reference: Any) -> None:
    ours = make(ALL[name])
    for chat in CHATS:
        for prompt in (True, False):
            kwargs = {"add_generation_prompt": prompt}
            assert ours.render(chat, **kwargs) == reference(ALL[name], chat, **kwargs)


@pytest.mark.parametrize("name", ["LLAMA3", "QWEN3"])
def test_equals_the_reference_with_tools(name: str, reference: Any) -> None:
    ours = make(ALL[name])
    for chat in [*CHATS, TOOL_CHAT, [SYSTEM, *TOOL_CHAT]]:
        for extra in ({}, {"enable_thinking": False}, {"date_string": "1 Jan 2025"}):
            kwargs = {"tools": TOOLS, "add_generation_prompt": True, **extra}
            assert ours.render(chat, **kwargs) == reference(ALL[name], chat, **kwargs)


def test_equals_the_reference_with_documents(reference: Any) -> None:
    documents = [{"title": "A", "text": "1"}, {"title": "", "text": "2"}]
    chat = [USER, {"role": "skip", "content": ""}, ANSWER, {"role": "stop", "content": ""}, USER]
    expected = reference(templates.MARKED, chat, documents=documents)
    assert "<doc 2 of 2>untitled: 2</doc>" in expected
    assert make(templates.MARKED).render(chat, documents=documents) == expected


def test_tool_arguments_as_text_render_as_objects() -> None:
    ours, chat = make(templates.LLAMA3), json.loads(json.dumps(TOOL_CHAT))
    expected = ours.render(chat)
    chat[1]["tool_calls"][0]["function"]["arguments"] = json.dumps(CALL["function"]["arguments"])
    before = json.dumps(chat)
    assert ours.render(chat) == expected
    assert json.dumps(chat) == before, "the caller's messages were changed"
    chat[1]["tool_calls"][0]["function"]["arguments"] = ""
    assert '"parameters": {}' in ours.render(chat)
    chat[1]["tool_calls"][0]["function"]["arguments"] = '{"city": '
    with pytest.raises(TemplateError, match=r"messages\[1\]\.tool_calls\[0\]\.function\.arguments: not valid JSON"):
        ours.render(chat)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_found_under_each_of_its_names(name: str) -> None:
    text = make(templates.QWEN3).render([USER, {"role": "assistant", "content": "b", name: "a"}])
    assert "<think>\na\n</think>\n\nb" in text


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"content": "x"}], r"messages\[0\]: an object with a role"),
        (["x"], r"messages\[0\]: an object with a role"),
        ([{"role": "user", "content": object()}], r"messages\[0\]\.content: a object cannot be rendered"),
        ([{"role": "user", "content": {1, 2}}], r"messages\[0\]\.content: a set cannot be rendered"),
    ],
)
def test_only_plain_messages_are_rendered(messages: Any, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        make(templates.CHATML).render(messages)


def test_deep_values_are_refused() -> None:
    value: Any = "x"
    for _ in range(100):
        value = [value]
    with pytest.raises(TemplateError, match="nested deeper than 64"):
        make(templates.CHATML).render([{"role": "user", "content": value}])


def test_a_template_refuses_in_its_own_words() -> None:
    with pytest.raises(TemplateError, match="Conversation roles must alternate"):
        make(templates.GEMMA).render([USER, USER])


# --- content parts


def test_text_parts_are_joined_for_templates_that_take_text() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    ours = make(templates.CHATML)
    assert not ours.takes_parts
    assert ours.render([{"role": "user", "content": parts}]) == ours.render([{"role": "user", "content": "one \ntwo"}])
    with pytest.raises(
        TemplateError, match=r"messages\[0\]\.content\[1\]: this model's template takes text only, not 'image'"
    ):
        ours.render([{"role": "user", "content": [parts[0], {"type": "image"}]}])


def test_parts_go_to_templates_that_take_them() -> None:
    ours = make(templates.GEMMA)
    assert ours.takes_parts
    parts = [{"type": "image"}, {"type": "text", "text": "what?"}]
    assert "user\n<start_of_image>what?<end_of_turn>" in ours.render([{"role": "user", "content": parts}])


def test_parts_bring_what_a_template_reads_of_them() -> None:
    languages = (
        "{% for m in messages %}{% for c in m.content %}{% if not c.to %}{{ raise_exception('to where?') }}{% endif %}"
        "{{ c.from }} > {{ c.to }}: {{ c.text }}{% endfor %}{% endfor %}"
    )
    part = {"type": "text", "text": "Hi.", "from": "en", "to": "es"}
    assert make(languages).render([{"role": "user", "content": [part]}]) == "en > es: Hi."
    plain = make(templates.CHATML)
    assert plain.render([{"role": "user", "content": [part]}]) == plain.render([{"role": "user", "content": "Hi."}])


def test_text_becomes_a_part_for_templates_that_take_only_parts() -> None:
    only_parts = "{% for m in messages %}<{{ m.role }}>{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    assert make(only_parts).render([USER, ANSWER]) == "<user> Hello <b>é</b> <assistant>Hi."


# --- turns


@pytest.mark.parametrize("name", ["CHATML", "LLAMA3", "R1"])
def test_turns_join_to_the_rendered_chat(name: str) -> None:
    ours = make(ALL[name])
    user, answer = {**USER, "content": "Hello"}, ANSWER
    for chat in ([user], [user, answer], [user, answer, user], [user, answer, user, answer, user]):
        text = ""
        for index, message in enumerate(chat):
            prefix, suffix = ours.turn(message["role"], first=index == 0)
            text += prefix + message["content"] + suffix
        assert text == ours.render(chat)
    if name != "R1":
        text = "".join(
            ours.turn(m["role"], first=i == 0)[0] + m["content"] + ours.turn(m["role"], first=i == 0)[1]
            for i, m in enumerate([SYSTEM, user, answer])
        )
        assert text == ours.render([SYSTEM, user, answer])


def test_turns_of_chatml() -> None:
    ours = make(templates.CHATML)
    opening = "<|im_start|>system\nBe helpful.<|im_end|>\n"
    assert ours.turn("user", first=False) == ("<|im_start|>user\n", "<|im_end|>\n")
    assert ours.turn("user", first=True) == (opening + "<|im_start|>user\n", "<|im_end|>\n")
    assert ours.turn("system", first=True) == ("<|im_start|>system\n", "<|im_end|>\n")
    assert ours.turn("assistant", first=False) == (ours.generation_prefix, "<|im_end|>\n")
    assert ours.default_system == "Be helpful."


def test_turns_of_a_template_that_rewrites_its_last_answer() -> None:
    ours = make(templates.QWEN3)
    assert ours.turn("assistant", first=False) == ("<|im_start|>assistant\n", "<|im_end|>\n")
    assert ours.turn("assistant", first=False)[0] == ours.generation_prefix
    assert ours.turn("user", first=False) == ("<|im_start|>user\n", "<|im_end|>\n")
    assert ours.turn("tool", first=False) == (
        "<|im_start|>user\n<tool_response>\n",
        "\n</tool_response><|im_end|>\n",
    )
    assert ours.default_system is None


def test_turns_of_the_llama_manner() -> None:
    ours = make(templates.LLAMA3)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert ours.turn("assistant", first=False) == (header.format("assistant"), "<|eot_id|>")
    assert ours.generation_prefix == header.format("assistant")
    assert ours.turn("tool", first=False) == (header.format("ipython"), "<|eot_id|>")
    prefix, suffix = ours.turn("system", first=True)
    assert prefix == "<s>" + header.format("system") + "Today Date: 26 Jul 2024\n\n"
    assert suffix == "<|eot_id|>"
    assert ours.turn("user", first=True)[0] == prefix + suffix + header.format("user")
    assert ours.default_system is None


def test_a_generation_prompt_may_open_more_than_the_turn() -> None:
    ours = make(templates.R1)
    assert ours.turn("assistant", first=False) == ("<|Assistant|>", "</s>")
    assert ours.generation_prefix == "<|Assistant|><think>\n"


def test_turns_that_do_not_exist_say_why() -> None:
    gemma = make(templates.GEMMA)
    assert gemma.turn("user", first=True) == ("<s><start_of_turn>user\n", "<end_of_turn>\n")
    with pytest.raises(TemplateError, match=r"first 'system' turn.*folds the system text into the user's turn"):
        gemma.turn("system", first=True)
    with pytest.raises(TemplateError, match=r"first 'assistant' turn.*roles must alternate"):
        gemma.turn("assistant", first=True)
    with pytest.raises(TemplateError, match=r"later 'system' turn.*rendered 0 times"):
        make("{% for m in messages if m.role != 'system' %}{{ m.content }}|{% endfor %}").turn("system", first=False)
    with pytest.raises(TemplateError, match=r"later 'user' turn.*rendered 2 times"):
        make("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}").turn("user", first=False)
    last = "{% for m in messages %}{{ m.role }}{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}"
    with pytest.raises(TemplateError, match="the turn before it changes when it is added"):
        make(last).turn("user", first=False)


# --- files


def folder(tmp_path: Path, **files: Any) -> Path:
    for name, value in files.items():
        name = name.replace("__", ".")
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return tmp_path


def test_the_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    config = {"chat_template": "config {{ bos_token }}", "bos_token": {"content": "<B>"}}
    path = folder(tmp_path, tokenizer_config__json=config)
    loaded = ChatTemplate.load(path)
    assert loaded is not None and loaded.render([USER]) == "config <B>"
    folder(tmp_path, chat_template__jinja="file {{ bos_token }}")
    loaded = ChatTemplate.load(path)
    assert loaded is not None and loaded.render([USER]) == "file <B>"


def test_named_templates_are_chosen_by_tools(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools {{ tools|length }}"}]
    loaded = ChatTemplate.load(folder(tmp_path, tokenizer_config__json={"chat_template": named}))
    assert loaded is not None
    assert (loaded.render([USER]), loaded.render([USER], tools=TOOLS)) == ("plain", "tools 1")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("extra")
    loaded = ChatTemplate.load(folder(tmp_path, chat_template__jinja="file"))
    assert loaded is not None
    assert (loaded.render([USER]), loaded.render([USER], tools=TOOLS)) == ("file", "extra")
    with pytest.raises(TemplateError, match="no template is named 'default'; the names are a, b"):
        ChatTemplate({"a": "x", "b": "y"}).render([USER])


def test_no_template_is_none_and_a_broken_one_an_error(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    with pytest.raises(TemplateError, match="a list without name and template"):
        ChatTemplate.load(folder(tmp_path, tokenizer_config__json={"chat_template": [{"name": "x"}]}))
    with pytest.raises(TemplateError, match="'default' does not compile at line 2"):
        ChatTemplate.load(folder(tmp_path, chat_template__jinja="ok\n{% if %}"))


# --- bounds

RANGES = "{% for a in range(99999) %}{% for b in range(99999) "
GROW = "{{% set ns = namespace(x={start}) %}}{{% for i in range(64) %}}{step}{{% endfor %}}{end}"
LISTS = ("[1]", "{% set ns.x = [ns.x, ns.x] %}")
HOSTILE = {
    "range": "{{ range(10**9) | list }}",
    "range loop": "{% for i in range(10**30) %}{% endfor %}",
    "times": "{{ 'x' * 10**9 }}",
    "list times": "{{ [1] * 10**9 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "product": "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "concat": GROW.format(start="'a'", step="{% set ns.x = ns.x ~ ns.x %}", end="{{ ns.x }}"),
    "plus": GROW.format(start="'a'", step="{% set ns.x = ns.x + ns.x %}", end="{{ ns.x }}"),
    "capture": GROW.format(start="''", step="{% set ns.x %}{{ ns.x }}{{ ns.x }}aaa{% endset %}", end="{{ ns.x }}"),
    "print tree": GROW.format(start=LISTS[0], step=LISTS[1], end="{{ ns.x }}"),
    "json tree": GROW.format(start=LISTS[0], step=LISTS[1], end="{{ ns.x | tojson }}"),
    "string tree": GROW.format(start=LISTS[0], step=LISTS[1], end="{{ ns.x | string | length }}"),
    "format tree": GROW.format(start=LISTS[0], step=LISTS[1], end="{{ '{}'.format(ns.x) }}"),
    "percent tree": GROW.format(start=LISTS[0], step=LISTS[1], end="{{ '%s' % (ns.x,) }}"),
    "mapped tree": GROW.format(start=LISTS[0], step=LISTS[1], end="{{ [ns.x] | map('string') | list }}"),
    "nested loops": RANGES + "%}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "filtered loops": RANGES + "if false %}{% endfor %}{% endfor %}",
    "filters": "{% for a in range(99999) %}{{ range(99999) | select('odd') | list | length }}{% endfor %}",
    "static text": "{% for a in range(99999) %}" + "y" * 99999 + "{% endfor %}",
    "hidden text": "{% set x %}{% for a in range(99999) %}" + "y" * 99999 + "{% endfor %}{% endset %}",
    "macro text": "{% macro f() %}"
    + "y" * 99999
    + "{% endmacro %}{% for i in range(99999) %}{% set x = f() %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "tree recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "loop recursion": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "block recursion": "{% block a %}x{{ self.a() }}{% endblock %}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "nested width": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "format map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "zfill": "{{ 'x'.zfill(1000000000) }}",
    "expandtabs": "{{ ('\\t' * 9999999).expandtabs(9999) }}",
    "replace": "{{ ('x' * 999999).replace('x', 'y' * 999999) }}",
    "replace empty": "{{ ('x' * 999999).replace('', 'y' * 999999) }}",
    "replace named": "{{ ('x' * 999999).replace('x', new='y' * 999999) }}",
    "replace filter": "{{ ('x' * 999999) | replace('x', 'y' * 999999) }}",
    "replace filter named": "{{ ('x' * 999999) | replace('x', new='y' * 999999) }}",
    "replace filter named 2": "{{ ('x' * 999999) | replace(new='y' * 999999, old='x') }}",
    "join": "{{ ('x' * 999999).join('y' * 999999) }}",
    "join filter": "{{ ('y' * 999999) | join('x' * 999999) }}",
    "join filter named": "{{ ('y' * 999999) | join(d='x' * 999999) }}",
    "join iterator": "{{ ('x' * 999999).join(range(99999) | map('string')) }}",
    "translate": "{{ ('x' * 999999).translate({120: 'y' * 999999}) }}",
    "indent": "{{ ('a\\n' * 999) | indent(1000000000) }}",
    "indent text": "{{ ('a\\n' * 99999) | indent('x' * 9999) }}",
    "json indent": "{{ messages | tojson(indent=1000000000) }}",
    "json indent text": "{{ messages | tojson(indent='x' * 9999999) }}",
    "json separators": "{{ (range(99999) | list) | tojson(separators=('x' * 99999, ':')) }}",
    "batch": "{{ 'x' | batch(1000000000, 'z') | list }}",
    "slice": "{{ 'x' | slice(1000000000) | list }}",
    "sum": "{{ ([[1] * 999] * 99999) | sum(start=[]) | length }}",
    "pad filter": "{{ 'x' | center(1000000000) }}",
    "date": "{{ strftime_now('%999999999Y') }}",
    "deep source": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "deep blocks": "{% for x in [1] %}" * 30 + "{% endfor %}" * 30,
    "class": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__'] }}",
    "format class": "{{ '{0.__class__.__mro__}'.format(messages) | length / 0 }}",
    "mutation": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "bytes": "{{ 'x'.encode().ljust(1000000000) }}",
    "namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "namespace argument": "{% set ns = namespace(__class__=1) %}",
    "huge": "{# " + "x" * (1 << 20) + " #}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_an_error(name: str) -> None:
    began = time.perf_counter()
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(HOSTILE[name]).render([USER])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert time.perf_counter() - began < 15


def test_internals_are_not_reachable_by_name() -> None:
    for name in ("charge work", "count turns", "join texts"):
        with pytest.raises(TemplateError):
            ChatTemplate("{{ 5 | " + name + " }}")
    for name in ("lipsum", "cycler", "self._x", "messages.__len__"):
        assert ChatTemplate("{{ " + name + " }}").render([USER]) == ""


def test_ordinary_large_prompts_fit() -> None:
    ours = make(templates.QWEN3)
    chat = [{"role": "user", "content": "word " * 200_000}] + [USER, ANSWER] * 1500
    began = time.perf_counter()
    assert len(ours.render(chat, tools=TOOLS * 128)) > 1_000_000
    assert time.perf_counter() - began < 5


def test_a_bound_hit_by_one_rendering_does_not_touch_the_next() -> None:
    ours = ChatTemplate(
        "{% for i in range(messages[0].n) %}{% for j in range(messages[0].n) %}{% endfor %}{% endfor %}ok"
    )
    for _ in range(2):
        with pytest.raises(TemplateError, match="units of work"):
            ours.render([{"role": "user", "content": "", "n": 50_000}])
        assert ours.render([{"role": "user", "content": "", "n": 10}]) == "ok"


def test_threads_share_a_template() -> None:
    ours = make(templates.QWEN3)
    chats = CHATS * 20
    expected = [ours.render(chat) for chat in chats]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ours.render, chats)) == expected
