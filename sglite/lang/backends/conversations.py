"""From a program's conversation to the messages of a chat API, and the rules chat APIs impose on programs.

A chat API writes whole turns. A ``gen`` therefore has to open the assistant's turn; text before it in the turn could
only be sent as a finished message. Images stand in the text as marks and become parts of their message here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sglite.lang.backends.base import Conversation
from sglite.lang.errors import BackendError, Unsupported
from sglite.lang.messages import Message

_SENT = ("role", "content", "tool_calls", "tool_call_id", "name")
_SIGNATURES = (("iVBOR", "image/png"), ("/9j/", "image/jpeg"), ("R0lG", "image/gif"), ("UklG", "image/webp"))
"""How base64 text of image files begins."""


def finished_turns(conversation: Conversation | None, images: Mapping[str, str]) -> list[Message]:
    """The finished turns as messages, copies that may be changed; reasoning of earlier turns stays behind."""
    if conversation is None:
        raise BackendError("a chat API is asked with messages; this request came without its conversation")
    return [
        {k: with_images(v, images) if k == "content" else v for k, v in message.items() if k in _SENT}
        for message in conversation.messages
    ]


def must_open_turn(conversation: Conversation | None, what: str) -> None:
    """Unsupported unless the assistant's turn is open and empty."""
    if conversation is None or conversation.role == "assistant":
        if conversation is not None and conversation.open_text.strip():
            raise Unsupported(
                f"chat APIs write whole turns: {what} has to open the assistant's turn, but {conversation.open_text!r} "
                "stands before it. Put that text in the user's turn, give each gen a turn of its own, or let one call "
                "write the whole turn with @function(num_api_spec_tokens=...)"
            )
        return
    where = "outside of any turn" if conversation.role is None else f"in the {conversation.role}'s turn"
    raise Unsupported(
        f"chat APIs write whole turns: {what} stands {where}; write assistant(gen(...)), or use a completion model"
    )


def with_images(content: Any, images: Mapping[str, str]) -> Any:
    """Message content with the marks in it replaced by image parts; as it was where there are none."""
    marks = [mark for mark in images if isinstance(content, str) and mark in content]
    if not marks:
        return content
    pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", content)
    return [_image_part(images[p]) if p in images else {"type": "text", "text": p} for p in pieces if p]


def media_type(data: str) -> str:
    """The MIME type of a base64 image; Unsupported for formats that chat APIs do not take."""
    for start, kind in _SIGNATURES:
        if data.startswith(start):
            return kind
    raise Unsupported(f"an image that starts with {data[:8]!r} (base64) is no PNG, JPEG, GIF or WebP file")


def _image_part(data: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{media_type(data)};base64,{data}"}}


def matching_choice(answer: str, choices: Sequence[str]) -> str:
    """The choice that an answer in free text names; BackendError where it names none, or several equally well."""
    said = answer.strip().strip("\"'`.").casefold()
    plain = {choice: choice.strip().casefold() for choice in choices}
    for fits in (lambda c: said == c, lambda c: bool(c) and said.startswith(c), lambda c: bool(c) and c in said):
        found = sorted((choice for choice in choices if fits(plain[choice])), key=len, reverse=True)
        if found and all(plain[other] in plain[found[0]] for other in found):
            return found[0]
    raise BackendError(f"select: the model's answer {answer[:120]!r} names none of {list(choices)}; ask for it clearly")
