"""Which field of a request it is, when the grammar made of several of them is refused."""

from __future__ import annotations

import re

from sglite.runtime.serve.chat.call import ChatCall
from sglite.runtime.serve.chat.plan import wanted_tools
from sglite.runtime.serve.errors import Refused

_PLACE = re.compile(r"(/format\S*?)/(json_schema|grammar):? ?(/[^\s:]*)?: ")
_TAG = re.compile(r"/tags/(\d+)/content(?:/elements/\d+)*$")


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
        of_text = "format.definition" if call.parameters_field == "parameters" else "custom.format.grammar.definition"
        inside = call.parameters_field if place[2] == "json_schema" else of_text
        field = f"tools[{call.tools.index(tools[int(tag[1])])}].{inside}"
    if not field:
        return error
    of_schema = tag is not None and place[2] == "json_schema"
    what = f"invalid {call.parameters_field.rpartition('.')[2]!r} schema: " if of_schema else ""
    return Refused(400, f"{field}{place[3] or ''}: {what}{message[place.end() :]}", param=field)
