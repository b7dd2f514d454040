"""Prompts of tool loops, token for token, against transformers' ``apply_chat_template(messages, tools)``.

The model is made to write given texts, so that every template is walked through three questions with several steps.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from tiny_engines import is_idle, settles, tiny_engine
from tiny_models import make_checkpoint
from unit.text import templates

import sglite as sgl
from sglite import Engine
from sglite.lang.backends.base import GenCall, Output
from sglite.lang.backends.engine import EngineBackend
from sglite.lang.backends.engine_stream import EngineStream
from sglite.lang.tool_events import RetryEvent, StepLimitExceeded, ToolCallEvent
from sglite.lang.tool_formats import Generic, Hermes, Llama3, ToolFormat, detect

HERMES = """\
{%- if tools %}
{{- '<|im_start|>system\\nYou may call functions. <tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\n<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls is defined %}
{{- '<|im_start|>assistant' }}
{%- for call in message.tool_calls %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>tool\\n' }}{%- endif %}
{{- '<tool_response>\\n' + message.content }}
{{- '\\n</tool_response>' if loop.last else '\\n</tool_response>\\n' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>' }}{%- endif %}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
SOURCES = {"qwen3": templates.QWEN3, "hermes": HERMES, "llama3": templates.LLAMA3}
LLAMA_NAMES = {
    "<|endoftext|>": "<|begin_of_text|>",
    "<|im_start|>": "<|start_header_id|>",
    "<|im_end|>": "<|eot_id|>",
    "<think>": "<|end_header_id|>",
    "</think>": "<|python_tag|>",
}


@dataclass(frozen=True)
class Rig:
    """An engine with a template, and the reference on the same folder."""

    family: str
    engine: Engine
    tokenizer: Any

    def expected(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
        """What the reference makes of the messages, with arguments as objects."""
        told = json.loads(json.dumps(messages))
        for message in told:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        text = self.tokenizer.apply_chat_template(told, tools=tools, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def make_rig(family: str, folder: Path) -> Rig:
    import transformers

    make_checkpoint(folder, max_position_embeddings=8192)
    table = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    names = LLAMA_NAMES if family == "llama3" else {}
    vocab = table["model"]["vocab"]
    for token in table["added_tokens"]:
        old = token["content"]
        token["content"] = names.get(old, old)
        vocab[token["content"]] = vocab.pop(old)
        token["special"] = not old.strip("</>").startswith(("think", "tool_call")) or old in names
    config |= {"eos_token": names.get("<|im_end|>", "<|im_end|>"), "pad_token": names.get("<|endoftext|>")}
    config["bos_token"] = names.get("<|endoftext|>")
    (folder / "tokenizer.json").write_text(json.dumps(table))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": SOURCES[family]}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return Rig(family, tiny_engine(folder, max_total_tokens=16384), tokenizer)


@pytest.fixture(scope="module", params=SOURCES)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = make_rig(request.param, tmp_path_factory.mktemp("tools") / request.param)
    with rig.engine:
        yield rig


class Watched(EngineBackend):
    """Notes of every request the ids before it and the ids that it gave."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.seen: list[tuple[list[int], list[int]]] = []

    def open(self, program_id: str) -> EngineStream:
        stream = Watching(self.engine, self.tokenizer, program_id, self.engine.open_sequence(program_id))
        stream.seen = self.seen
        return stream


class Watching(EngineStream):
    seen: list[tuple[list[int], list[int]]]

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        async for outputs in super().generate(call):
            yield outputs
        ids, at = self._sequence.token_ids, outputs[0].meta["prompt_tokens"]
        self.seen.append((ids[:at], ids[at:]))


def scripted(form: ToolFormat, patterns: list[str]) -> ToolFormat:
    """``form``, of a model that writes texts that match the patterns, in order."""
    left = iter(patterns)

    class Scripted(type(form)):  # type: ignore[misc]
        def rules(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return {"regex": next(left)}

    return Scripted(several=form.several, thinks=form.thinks)


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


def note(text: str, loud: bool = False) -> None:
    """Keeps a text. With é."""


TOOLS = [sgl.tool(add), sgl.tool(note)]
SPECS = [tool.spec.to_dict() for tool in TOOLS]


def calls(family: str, *given: tuple[str, dict[str, Any]]) -> str:
    """Calls as the family's template writes them."""
    texts = [json.dumps(arguments, ensure_ascii=False) for _, arguments in given]
    if family == "llama3":
        return f'{{"name": "{given[0][0]}", "parameters": {texts[0]}}}'
    return "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>'
        for (name, _), text in zip(given, texts, strict=True)
    )


def turns(family: str) -> list[str]:
    """Three questions: several calls at once, a call in another spacing, one after some words, answers."""
    one, two = ("add", {"a": 2, "b": 3}), ("note", {"text": "Å <b> & 'x'", "loud": True})
    written = [calls(family, one, two), "5.", calls(family, two), calls(family, one), "Noted: five.", "Goodbye."]
    return [re.escape(text) for text in written]


def ask(rig: Rig, patterns: list[str], history: str, questions: int = 3) -> tuple[Any, Watched]:
    backend = Watched(rig.engine)
    form = scripted(detect(backend.render), patterns)

    @sgl.function
    def program(s: Any) -> list[Any]:
        answers = []
        for number in range(questions):
            s.user(f"Question {number}?")
            answers.append(sgl.tool_loop(s, TOOLS, format=form))
        return answers

    state = program.run(backend=backend, history=history, seed=5)
    assert state.error() is None
    assert "".join(state.text_iter()).count("Question 0?") == 2, "shown again beyond what the first prompt changed"
    return state, backend


def assert_template(rig: Rig, state: Any, backend: Watched) -> None:
    """Every prompt is the reference's."""
    messages = state.messages()
    asked = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(asked) == len(backend.seen)
    for place, (prompt, _) in zip(asked, backend.seen, strict=True):
        assert prompt == rig.expected(messages[:place], SPECS)


@pytest.mark.parametrize("history", ["template", "append"])
def test_prompts_are_the_templates_over_three_questions(rig: Rig, history: str) -> None:
    state, backend = ask(rig, turns(rig.family), history)
    assert state.ret_value == ["5.", "Noted: five.", "Goodbye."]
    if history == "template" or rig.family != "hermes":
        assert_template(rig, state, backend)
    num_results = sum(message["role"] == "tool" for message in state.messages())
    assert num_results == (3 if rig.family == "llama3" else 4)


def test_appending_keeps_every_token(rig: Rig) -> None:
    """What was asked and generated stays as it is; what is added is what the template writes after the reply."""
    _, backend = ask(rig, turns(rig.family), "append")
    for (prompt, output), (following, _) in zip(backend.seen, backend.seen[1:], strict=False):
        known = prompt + output
        assert following[: len(known)] == known
        added = rig.tokenizer.decode(following[len(known) :])
        assert added.startswith(("<|im_end|>", "<|eot_id|>"))
        assert added.endswith(rig.tokenizer.decode(prompt)[-20:])


def test_what_no_tokenizer_would_write_becomes_what_the_template_writes(rig: Rig) -> None:
    """Sampled letters are not the tokens that their text is encoded as: kept, or written anew."""
    words = "[aeht]{60}"
    state, backend = ask(rig, [words, words, words], "template")
    assert_template(rig, state, backend)
    outputs = [output for _, output in backend.seen]
    _, backend = ask(rig, [words, words, words], "append")
    for (prompt, output), (following, _) in zip(backend.seen, backend.seen[1:], strict=False):
        assert following[: len(prompt) + len(output)] == prompt + output
    assert any(rig.tokenizer(rig.tokenizer.decode(ids))["input_ids"] != ids for ids in outputs)


def test_other_tools_are_told_whatever_the_history(rig: Rig) -> None:
    backend = Watched(rig.engine)
    form = scripted(detect(backend.render), ["One\\.", "Two\\."])

    @sgl.function
    def program(s: Any) -> None:
        s.user("First?")
        sgl.tool_loop(s, TOOLS[:1], format=form)
        s.user("Second?")
        sgl.tool_loop(s, TOOLS, format=form)

    state = program.run(backend=backend)
    assert backend.seen[1][0] == rig.expected(state.messages()[:3], SPECS)


def test_a_demanded_call_is_always_valid(rig: Rig) -> None:
    """A random model under its own format: the tool that is named, with arguments that fit."""

    def pick(colour: Literal["red", "green"], count: Literal[1, 2, 3]) -> str:
        return colour * count

    @sgl.function
    def program(s: Any, choice: Any, on_event: Any) -> None:
        s.user("Pick.")
        with contextlib.suppress(StepLimitExceeded):
            sgl.tool_loop(s, [pick], tool_choice=choice, max_tokens=96, parallel=False, on_event=on_event, max_steps=2)

    for seed, choice in enumerate(["required", {"name": "pick"}] * 2):
        seen: list[Any] = []
        backend = EngineBackend(rig.engine)
        state = program.run(choice, seen.append, backend=backend, seed=seed, temperature=1.0)
        called = next(event for event in seen if isinstance(event, ToolCallEvent))
        assert called.arguments["colour"] in ("red", "green") and called.arguments["count"] in (1, 2, 3)
        assert not any(isinstance(event, RetryEvent) and event.step == 1 for event in seen)
        assert state.messages()[2]["content"] == called.arguments["colour"] * called.arguments["count"]


def test_formats_are_found_out(rig: Rig) -> None:
    found = detect(EngineBackend(rig.engine).render)
    assert isinstance(found, Llama3 if rig.family == "llama3" else Hermes)
    assert found.several == (rig.family != "llama3")
    assert found.thinks == ("writes" if rig.family == "qwen3" else "no")


def test_nothing_is_left(rig: Rig) -> None:
    ask(rig, turns(rig.family), "template")
    assert settles(lambda: is_idle(rig.engine))
    assert settles(lambda: rig.engine.get_server_info().get("num_pinned", 0) == 0)


def test_thinking_is_kept_or_dropped_as_the_history_says(tmp_path: Path) -> None:
    """Qwen3 writes old thinking out of the prompt: "template" does so too, "append" keeps the tokens."""
    rig = make_rig("qwen3", tmp_path / "m")
    thought = "<think>\nTwo and three.\n</think>\n\n"
    patterns = [re.escape(thought + calls("qwen3", ("add", {"a": 2, "b": 3}))), re.escape(thought + "5."), "Bye\\."]
    with rig.engine:
        state, backend = ask(rig, patterns, "template", questions=2)
        assert_template(rig, state, backend)
        called, final = state.messages()[1], state.messages()[3]
        assert called["reasoning_content"] == final["reasoning_content"] == "Two and three."
        assert (called["content"], final["content"], state.ret_value) == ("", "5.", ["5.", "Bye."])
        assert thought not in rig.tokenizer.decode(backend.seen[2][0])
        patterns[1] = re.escape(thought) + "[aeht]{60}"
        state, backend = ask(rig, patterns, "append", questions=2)
        prompt, output = backend.seen[1]
        assert prompt == rig.expected(state.messages()[:3], SPECS)
        assert backend.seen[2][0][: len(prompt) + len(output)] == prompt + output, "a generated token was written anew"
        assert rig.tokenizer.decode(backend.seen[2][0]).count(thought) == 2
        assert rig.tokenizer(rig.tokenizer.decode(output))["input_ids"] != output
        assert state.text().count("Question 1?") == 1


class Answering(Generic):
    """Kept to its schema, and to a given answer in the end."""

    def rules(self, tools: Any, choice: str, several: bool, answer: Any) -> dict[str, Any]:
        if choice == "required":
            return super().rules(tools, choice, several, answer)
        return {"regex": re.escape('{"answer": "Five."}')}


@pytest.mark.parametrize("history", ["append", "template"])
def test_models_whose_template_knows_no_tools_are_told_in_the_prompt(tmp_path: Path, history: Any) -> None:
    folder = make_checkpoint(tmp_path / "m", max_position_embeddings=8192)
    with tiny_engine(folder) as engine:
        backend = Watched(engine)
        assert detect(backend.render) == Generic()

        def pick(colour: Literal["red", "green"]) -> str:
            return colour

        @sgl.function
        def program(s: Any) -> Any:
            s.system("Be brief.")
            s.user("Pick.")
            return sgl.tool_loop(s, [pick], format=Answering(), tool_choice="required")

        state = program.run(backend=backend, history=history)
        assert state.ret_value == "Five."
        first, second = (engine.tokenizer.decode(prompt) for prompt, _ in backend.seen)
        assert first.startswith("system\nBe brief.\n\nYou can call these tools:\n") and '"pick"' in first
        assert second.startswith(first) and second.count("You can call") == 1
        colour = json.loads(state.messages()[2]["content"])["arguments"]["colour"]
        assert second.endswith(f"user\nResult of pick: {colour}\nassistant\n")
        assert [message["role"] for message in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
