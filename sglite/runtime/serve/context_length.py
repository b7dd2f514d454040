"""Prompts that do not fit, refused before anything begins, with the numbers that a client needs to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.serving import Serving

CODE = "context_length_exceeded"
MAX_MADE_TOKENS = 2**22
"""Of all prompts that one request has made from texts that they share: a short body can ask for very many."""


def check_characters(serving: Serving, texts: Sequence[str], prompt: str) -> None:
    """``Refused`` if one of ``texts`` cannot fit however it is encoded; encoding takes time, and memory many times its
    size. ``prompt``: what the client calls them.
    """
    assert serving.engine.tokenizer is not None
    most = serving.capacity * serving.engine.tokenizer.longest
    longest = max(map(len, texts), default=0)
    if longest > most:
        message = (
            f"{prompt} has {longest} characters, which is longer than the model's context length of {serving.capacity} "
            f"tokens, {most} characters at the very most; shorten it"
        )
        raise Refused(400, message, param=prompt, code=CODE)


def check_length(
    serving: Serving, num_prompt: int, max_tokens: int | None, prompt: str, limits: Sequence[str] = ("max_tokens",)
) -> None:
    """``Refused`` if a prompt of so many tokens, or that and ``max_tokens`` more, exceed the context.

    ``prompt`` and ``limits``: what the client calls the two; a limit may have several names. Without ``max_tokens`` one
    token has to fit.
    """
    most = serving.capacity
    if num_prompt > most or (num_prompt == most and max_tokens != 0):
        message = (
            f"{prompt} has {num_prompt} tokens, which is longer than the model's context length of {most}, output "
            "included; shorten it"
        )
        raise Refused(400, message, param=prompt, code=CODE)
    if max_tokens is not None and num_prompt + max_tokens > most:
        limit = " or ".join(limits)
        message = (
            f"{limit} is too large: {max_tokens} and the {num_prompt} tokens of {prompt} exceed the context length of "
            f"{most}; give {limit}<={most - num_prompt} or leave it out"
        )
        raise Refused(400, message, param=limits[0], code=CODE)


def made_prompts(serving: Serving, prompts: Iterable[list[int]], where: str) -> list[list[int]]:
    """Prompts that are made as they are asked for, with room for one token each. ``Refused`` at the first that does
    not fit, or when all together have more than ``MAX_MADE_TOKENS`` tokens; those after it are never made.

    ``where``: what the client calls them.
    """
    found: list[list[int]] = []
    total = 0
    for prompt in prompts:
        check_length(serving, len(prompt), 1, where)
        total += len(prompt)
        if total > MAX_MADE_TOKENS:
            message = f"{where} make prompts of more than {MAX_MADE_TOKENS} tokens together; send fewer at a time"
            raise Refused(400, message, param=where)
        found.append(prompt)
    return found
