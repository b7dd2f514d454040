"""Earlier calls of tools, in the form that a chat template takes.

Clients send calls in one form; templates were each written for their own. What a template takes is found once, by
letting it write a call of known words: a form is good when name, argument and value of the call are all there. A
template that takes the usual form, objects beside a text, is left alone, and so is one that shows no call whatever it
gets. Nothing of a conversation is dropped to fit it in; what a template refuses in one message stands in several.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from sglite.runtime.text.turns import TemplateError

Message = dict[str, Any]
Render = Callable[[list[Message]], str]

_USER: Message = {"role": "user", "content": "Hello"}
_NAME, _KEY, _VALUE = "qzfindqz", "qzkeyqz", "qzvalueqz"
_LONG_ID, _SHORT_ID = "call_qz0123456789abcdef0123", re.compile(r"[A-Za-z0-9]{9}")
_IDS: tuple[Literal["any", "short"], ...] = ("any", "short")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class CallStyle:
    """What a template wants of a message with calls. The defaults are the usual form.

    ``text``: arguments as JSON text. ``null``: None where there is no content. ``ids``: nine letters and digits
    (``short``), or the function's name in them (``named``). ``single``: one call a message. ``apart``: content in a
    message before the calls. ``joined``: content as part of the thought, where there is one.
    """

    text: bool = False
    null: bool = False
    ids: Literal["any", "short", "named"] = "any"
    single: bool = False
    apart: bool = False
    joined: bool = False


# --- finding the style ------------------------------------------------------------------------------------------


def style_of(render: Render) -> CallStyle:
    """The style of a template that ``render`` renders; it must raise ``TemplateError`` on refusal."""
    probe = _Probe(render)
    for ids, null, text in product(_IDS, (False, True), (False, True)):
        style = CallStyle(text, null, ids)
        shown = probe.shown(style, [_call(1)])
        if shown is not None:
            return _refined(probe, style if f"{_NAME}1" in shown else replace(style, ids="named"))
    return CallStyle()


def _refined(probe: _Probe, style: CallStyle) -> CallStyle:
    """``style`` with what it takes for several calls in a message, and for calls beside text and thoughts."""
    text = {"content": "qztextqz"}
    thought = {"reasoning_content": "qzthoughtqz", "thinking": "qzthoughtqz"}
    style = probe.better(style, replace(style, single=True), [_call(1), _call(2)])
    style = probe.better(style, replace(style, apart=True), [_call(1)], **text)
    return probe.better(style, replace(style, joined=True), [_call(1)], **text, **thought)


class _Probe:
    def __init__(self, render: Render) -> None:
        self._render = render

    def shown(self, style: CallStyle, calls: list[dict[str, Any]], **fields: Any) -> str | None:
        """A turn with ``calls`` as the template writes it in ``style``; None where it refuses or does not show them."""
        turn = {"role": "assistant", "content": "", "tool_calls": calls, **fields}
        try:
            text = self._render(styled([_USER, turn], style))
        except TemplateError as error:
            if error.final:
                raise
            return None
        return text if all(_stands_in(text, call) for call in calls) else None

    def better(self, style: CallStyle, other: CallStyle, calls: list[dict[str, Any]], **fields: Any) -> CallStyle:
        """``other`` where it shows the calls and ``style`` does not."""
        shows = self.shown(style, calls, **fields) is not None
        return style if shows or self.shown(other, calls, **fields) is None else other


def _call(number: int) -> dict[str, Any]:
    function = {"name": f"{_NAME}{number}", "arguments": {f"{_KEY}{number}": f"{_VALUE}{number}"}}
    return {"id": f"{_LONG_ID}{number}", "type": "function", "function": function}


def _stands_in(text: str, call: dict[str, Any]) -> bool:
    """Whether ``text`` shows the call, its arguments neither as Python writes them nor as a text within JSON."""
    [(key, value)] = call["function"]["arguments"].items()
    named = call["function"]["name"] in text or call["id"] in text
    return named and key in text and value in text and f"{{'{key}" not in text and f'\\"{key}' not in text


# --- writing in it ----------------------------------------------------------------------------------------------


def styled(messages: list[Message], style: CallStyle) -> list[Message]:
    """The conversation as ``style`` has it; what needs no change is not copied. Arguments may be JSON text."""
    if style.ids != "any":
        messages = _renamed(messages, style.ids)
    if style.single:
        messages = _one_by_one(messages)
    found: list[Message] = []
    for message in messages:
        found += _styled(message, style) if message.get("tool_calls") else [message]
    return found


def _styled(message: Message, style: CallStyle) -> list[Message]:
    message = {**message, "tool_calls": [_with_arguments(call, style.text) for call in message["tool_calls"]]}
    content, thought = message.get("content"), message.get("reasoning_content")
    ahead: list[Message] = []
    if style.joined and content and isinstance(content, str) and isinstance(thought, str):
        joined = f"{thought}\n\n{content}"
        message |= {"content": "", "reasoning_content": joined, "thinking": joined}
    elif style.apart and content:
        ahead = [{name: value for name, value in message.items() if name != "tool_calls"}]
        message = {"role": message["role"], "content": "", "tool_calls": message["tool_calls"]}
    if style.null and not message.get("content"):
        message["content"] = None
    return [*ahead, message]


def _with_arguments(call: dict[str, Any], as_text: bool) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments")
    if isinstance(arguments, str) and not as_text:
        arguments = json.loads(arguments) if arguments.strip() else {}
    elif as_text and not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    elif as_text:
        arguments = arguments.strip() or "{}"
    else:
        return call
    changed = {**function, "arguments": arguments}
    return {**call, "function": changed} if "function" in call else changed


def _renamed(messages: list[Message], ids: Literal["short", "named"]) -> list[Message]:
    """Ids of calls, and of the results that belong to them, as the template wants them; results without one are taken
    to come in the order of the calls."""
    known: dict[str, str] = {}
    waiting: list[str] = []
    found: list[Message] = []
    count = 0
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                given = str(call.get("id") or f"call_{count}")
                known[given] = _short(given) if ids == "short" else _named(given, call, count)
                calls.append({**call, "id": known[given]})
                count += 1
            waiting = [call["id"] for call in calls]
            message = {**message, "tool_calls": calls}
        elif message.get("role") == "tool":
            given = str(message.get("tool_call_id") or "")
            fitting = known.get(given) or (_short(given) if given and ids == "short" else given)
            fitting = fitting or next(iter(waiting), "")
            waiting = [one for one in waiting if one != fitting]
            message = {**message, "tool_call_id": fitting} if fitting else message
        found.append(message)
    return found


def _short(given: str) -> str:
    if _SHORT_ID.fullmatch(given):
        return given
    number = int.from_bytes(hashlib.sha256(given.encode("utf-8", "replace")).digest()[:8], "big")
    return "".join(_DIGITS[number // 62**place % 62] for place in range(9))


def _named(given: str, call: dict[str, Any], count: int) -> str:
    name = str(call.get("function", call).get("name"))
    return given if re.fullmatch(rf"(functions\.)?{re.escape(name)}:\d+", given) else f"functions.{name}:{count}"


def _one_by_one(messages: list[Message]) -> list[Message]:
    """Each call in a message of its own, its result behind it."""
    found: list[Message] = []
    place = 0
    while place < len(messages):
        message, place = messages[place], place + 1
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            found.append(message)
            continue
        end = place
        while end < len(messages) and messages[end].get("role") == "tool":
            end += 1
        results, place = messages[place:end], end
        for number, call in enumerate(calls):
            rest = {} if number == 0 else {"content": ""}
            told = message if number == 0 else {"role": message["role"]}
            found.append({**told, **rest, "tool_calls": [call]})
            mine = next((one for one in results if _answers(one, call)), None)
            if mine is not None:
                found.append(mine)
                results = [one for one in results if one is not mine]
        found += results
    return found


def _answers(result: Message, call: dict[str, Any]) -> bool:
    """Whether a result is that of a call; one that says nothing of it is the next one's."""
    given = result.get("tool_call_id")
    return not given or given == call.get("id")
