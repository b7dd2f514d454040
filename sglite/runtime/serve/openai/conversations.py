"""Texts for models that write none: given as ``input``, or as the ``messages`` of a conversation, one text."""

from __future__ import annotations

import asyncio
from typing import Any

from sglite.runtime.serve.chat.plan import render
from sglite.runtime.serve.context_length import check_characters
from sglite.runtime.serve.embed import MAX_INPUTS, Text
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.openai.chat_ask import read_chat
from sglite.runtime.serve.serving import Serving

_OF_TEMPLATE = ("add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs")


async def read_texts(serving: Serving, fields: Fields) -> tuple[list[Text], str]:
    """The texts, and which field has them. ``Refused`` names what is wrong."""
    messages = fields.raw("messages")
    if messages is None:
        if not fields.flag("add_special_tokens", True):
            raise fields.wrong("add_special_tokens", "must be true for texts; send token ids to choose them yourself")
        return read_inputs(fields, "input"), "input"
    if fields.raw("input") is not None:
        raise Refused(400, "give either input or messages, and not both", param="input")
    tokenizer = serving.engine.tokenizer
    if tokenizer is None:
        raise Refused(400, "this server has no tokenizer; send token ids as input", param="messages")
    asked = {name: value for name in _OF_TEMPLATE if (value := fields.raw(name)) is not None}
    call = read_chat(serving, {"messages": messages, "add_generation_prompt": False, **asked}).call
    text = await asyncio.to_thread(render, serving, call)
    check_characters(serving, [text], "messages")
    # A template writes the special tokens itself, so by default none is added.
    add_bos = fields.flag("add_special_tokens")
    return [await asyncio.to_thread(tokenizer.encode, text, add_bos=add_bos)], "messages"


def read_inputs(fields: Fields, where: str) -> list[Text]:
    """Text, ids, or a list of either; ``Refused`` for anything else, and for more than ``MAX_INPUTS``."""
    value: Any = fields.raw(where)
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(one) is int for one in value)):
        value = [value]
    rule = f"must be text, token ids, or a list of 1 to {MAX_INPUTS} of either"
    if not isinstance(value, list) or not value:
        raise fields.wrong(where, rule)
    if len(value) > MAX_INPUTS:
        raise Refused(400, f"{where} has {len(value)} entries; send at most {MAX_INPUTS}", param=where)
    texts = all(isinstance(one, str) for one in value)
    ids = all(isinstance(one, list) and all(type(token) is int for token in one) for one in value)
    if not texts and not ids:
        raise fields.wrong(where, f"{rule}, and not a mixture")
    return value


def read_keep(fields: Fields, most: int) -> int | None:
    """``truncate_prompt_tokens``: how much is kept of longer texts; -1: as much as fits."""
    keep = fields.integer("truncate_prompt_tokens", -1, most)
    if keep == 0:
        raise fields.wrong("truncate_prompt_tokens", f"must be -1 or in [1, {most}]")
    return most if keep == -1 else keep
