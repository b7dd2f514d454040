"""Which field of a request it is, when the grammar made of several of them is refused."""

from __future__ import annotations

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.serve.chat.call import ChatCall
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.serving import Serving


def blamed(serving: Serving, call: ChatCall, error: ValueError) -> ValueError | Refused:
    """``error`` in the words of the part at fault: constraint and tools are tried one by one. None: as it is."""
    parts = [] if call.constraint is None else [(call.constraint_field, call.constraint)]
    for index, tool in enumerate(call.tools):
        if tool.parameters is not None:
            schema = ConstraintSpec.json_schema(tool.parameters, strict=tool.strict)
            parts.append((f"tools[{index}]", schema))
    for field, spec in parts:
        try:
            serving.engine.admit({}, None, constraint=spec)
        except ValueError as found:
            return Refused(400, f"{field}: {found}" if field else str(found), param=field or None)
    return error
