"""The bundled model's tokenizer and chat template, end to end."""

from __future__ import annotations

from pathlib import Path

import sglite
from sglite.runtime.text.chat_template import ChatTemplate
from sglite.runtime.text.detokenizer import IncrementalDetokenizer
from sglite.runtime.text.tokenizer import load_tokenizer

FOLDER = Path(sglite.__file__).parent / "bundled" / "sglite-demo"


def test_the_assistant_turn_is_what_a_generation_prompt_opens() -> None:
    template = ChatTemplate.load(FOLDER)
    assert template is not None
    assert template.turn("assistant", first=False)[0] == template.generation_prefix
    chat = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    text = ""
    for index, message in enumerate(chat):
        prefix, suffix = template.turn(message["role"], first=index == 0)
        text += prefix + message["content"] + suffix
    assert text + template.generation_prefix == template.render(chat, add_generation_prompt=True)


def test_a_turn_ends_with_a_token_that_stops_generation() -> None:
    template, tokenizer = ChatTemplate.load(FOLDER), load_tokenizer(FOLDER)
    assert template is not None
    closing = tokenizer.encode(template.turn("assistant", first=False)[1])
    assert closing[0] in tokenizer.eos_token_ids


def test_prompts_stream_back_as_they_were() -> None:
    template, tokenizer = ChatTemplate.load(FOLDER), load_tokenizer(FOLDER)
    assert template is not None
    text = template.render([{"role": "user", "content": "Grüße, 世界 😀"}], add_generation_prompt=True)
    stream = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
    assert "".join(stream.push([i]) for i in tokenizer.encode(text)) + stream.finish() == text
