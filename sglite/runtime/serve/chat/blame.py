"""Which field of a request it is, when the grammar made of several of them is refused."""

from __future__ import annotations

import re

from sglite.runtime.serve.chat.call import ChatCall
from sglite.runtime.serve.chat.plan import wanted_tools
from sglite.runtime.serve.errors import Refused

_PLACE = re.compile(r"(/format\S*?)/json_schema:? ?(/[^\s:]*)?: ")
_TAG = re.compile(r"/tags/(\d+)/content$")


def blamed(call: ChatCall, error: ValueError) -> ValueError | Refused:
    """``error`` in the words of the field at fault, where it says a place in the grammar; else as it is."""
    message = str(error)
    place = _PLACE.search(message)
    if place is None:
        alone = call.constraint is not None and message.startswith(call.constraint.kind)
        return Refused(400, message, param=call.constraint_field) if alone and call.constraint_field else error
    tag = _TAG.search(place[1])
    tools = wanted_tools(call)
    if tag is None or int(tag[1]) >= len(tools):
        field = call.constraint_field
    else:
        field = f"tools[{call.tools.index(tools[int(tag[1])])}].{call.parameters_field}"
    if not field:
        return error
    what = "" if tag is None else f"invalid {call.parameters_field.rpartition('.')[2]!r} schema: "
    return Refused(400, f"{field}{place[2] or ''}: {what}{message[place.end() :]}", param=field)
