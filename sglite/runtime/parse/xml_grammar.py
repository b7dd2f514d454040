"""What the formats that write arguments in tags say of the texts a model may write: see ``parse.grammar``."""

from __future__ import annotations

from sglite.constrained.json_schema.tagged import STYLES
from sglite.constrained.spec import ConstraintRefused
from sglite.runtime.parse.base import Tool
from sglite.runtime.parse.grammar import Format, only_argument, sequence, text
from sglite.runtime.parse.schemas import argument_schema
from sglite.runtime.parse.xml_machine import is_tool_name


def parameters(tool: Tool, style: str) -> Format:
    """The arguments of a call, each between its tags."""
    if tool.grammar is not None:
        how = STYLES[style]
        inside = {"type": "grammar", "grammar": tool.grammar, "excludes": [how.mark]}
        head = f"{how.head}{only_argument(tool)}{how.string[0]}"
        return sequence(text(head), inside, text(how.tail + how.after[0]))
    return {"type": "json_schema", "json_schema": argument_schema(tool), "style": style}


def tool_name(tool: Tool) -> str:
    """The name, as it stands in a tag. Raises ConstraintRefused for one that cannot."""
    if not is_tool_name(tool.name):
        raise ConstraintRefused(
            f"the tool's name {tool.name!r:.80} cannot be written in this model's format of calls; use letters, "
            "digits, '_', '-' and '.'",
            keyword="name",
        )
    return tool.name
