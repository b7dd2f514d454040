"""Writes ``docs/reference.md``: every public name with its signature and docstring.

    make reference

What the page has is decided here, in ``SECTIONS``; what it says is said in the docstrings. The same code always gives
the same page: order is that of the source, defaults that are objects stand under their names.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import sglite

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
_HEAD = """# Reference

Made from the docstrings by `make reference`; change those, not this page. The guide is [the language](language.md).

Names without a module are `sglite`'s own: `import sglite as sgl`, `sgl.gen`. Methods that a class only implements as
its base says are left out. A class without a signature is not made by programs.

"""
_EVENTS = "sglite.lang.tool_events"
_BASE = "sglite.lang.backends.base"
SECTIONS: dict[str, list[str]] = {
    "Programs": [
        "function", "program", "sglite.lang.function.Function", "sglite.lang.program_function.Program",
        "sglite.lang.saved_rows.SavedRow", "set_default_backend", "flush_cache", "get_server_info",
    ],
    "States and values": [
        "State", "sglite.lang.writer.ForkGroup", "Value", "join", "sglite.lang.spelling.Blocks", "Usage",
    ],
    "What is appended": [
        "gen", "gen_int", "gen_string", "repeat", "select", "system", "user", "assistant", "system_begin",
        "system_end", "user_begin", "user_end", "assistant_begin", "assistant_end", "separate_reasoning", "image",
        "video",
    ],
    "Rules of select": [
        "token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized",
        "sglite.lang.choices.ChoicesMethod", "sglite.lang.choices.ChoicesDecision",
    ],
    "Tools": [
        "tool", "sglite.lang.tools.Tool", "ToolContext", "tool_loop", "tool_events",
        *(f"{_EVENTS}.{name}" for name in (
            "TextDelta", "ToolCallEvent", "ToolResultEvent", "RetryEvent", "FinalAnswer", "ToolLoopError",
        )), "StepLimitExceeded", "TokenLimitExceeded", "RetryLimitExceeded", "ToolError", "mcp_tools",
        "sglite.lang.mcp_tools.McpError",
    ],
    "Graphs": [
        "ProgramGraph", "sglite.lang.ir.Node", "sglite.lang.ir.NodeRecord",
        "sglite.lang.graph_path.CriticalPath", "sglite.lang.graph_path.PathStep", "sglite.lang.explain.Explanation",
        "sglite.lang.explain.Counts", "sglite.lang.explain.Share", "sglite.lang.explain_lints.Advice",
    ],
    "Testing": [f"testing.{name}" for name in (
        "Mock", "MockRequest", "Call", "Say", "Invalid", "Fail", "Recorder", "Replay", "no_network", "MockError",
        "ReplayError", "NetworkBlocked",
    )],
    "Errors": [
        "ProgramError", "VariableError", "Incomplete", "CheckFailed", "BackendError", "ApiError", "Unsupported",
        "DeadlineExceeded", "BudgetExceeded", "BlockingReadError", "sglite.lang.errors.SymbolicValueError",
    ],
    "Back ends": [
        "Engine", "Runtime", "RuntimeEndpoint", "OpenAI", "Anthropic", "LiteLLM", "VertexAI",
        "sglite.lang.backends.api.ApiBackend", "sglite.lang.backends.api.TokenUsage",
        "RetryPolicy",
    ],
    "A back end of one's own": [
        *(f"{_BASE}.{name}" for name in ("Backend", "Stream", "GenCall", "Hints", "Output", "Conversation")),
        "sglite.lang.choices.ChoiceScores", "sglite.lang.ir.Sampling", "sglite.lang.messages.ToolSpec",
        "sglite.lang.messages.ToolCall", "sglite.lang.backends.api_params.Asked",
    ],
    "Constraints": ["explain"],
}  # fmt: skip
_LINE = 100
_AS_MODULE = "See the module."
_MADE_BY_OTHERS = frozenset({"Function", "Program", "State", "Value", "ForkGroup", "Blocks", "SavedRow", "Tool"})
_MEMBERS: dict[str, tuple[str, ...]] = {
    "ApiBackend": ("token_usage", "get_model_name"),
    "Engine": (
        "generate", "async_generate", "flush_cache", "get_server_info", "get_program_info", "open_sequence", "shutdown",
    ),
    "Runtime": ("pid", "shutdown", "generate", "async_generate"),
    "RuntimeEndpoint": ("get_model_name", "flush_cache", "get_server_info"),
    "TokenUsage": ("reset",),
    "Usage": ("total_tokens",),
    **dict.fromkeys(("OpenAI", "Anthropic", "LiteLLM", "VertexAI", "RetryPolicy", "ChoiceScores", "Sampling"), ()),
}  # fmt: skip
"""Of classes that have more members than programs use: those that are shown."""
_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_LEFT_OUT = frozenset({"start"})


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    parts += [f"* [{title}](#{_anchor(title)})\n" for title in SECTIONS]
    for title, names in SECTIONS.items():
        parts.append(f"\n## {title}\n")
        parts += [_entry(name) for name in names]
    return "".join(parts)


def resolve(name: str) -> Any:
    """What a name of ``SECTIONS`` stands for."""
    module, _, last = (name if name.startswith("sglite.") else f"sglite.{name}").rpartition(".")
    owner = importlib.import_module("sglite.lang.testing" if module == "sglite.testing" else module)
    return getattr(owner, last)


def _entry(name: str) -> str:
    value = resolve(name)
    short = name.rpartition(".")[2]
    head = f"\n### {short}\n" + (f"\n`{name}`\n" if "." in name else "")
    if inspect.isclass(value):
        shown = "" if short in _MADE_BY_OTHERS else _signature(short, value)
        return head + shown + _text(value) + "".join(_members(short, value))
    if inspect.isfunction(value):
        return head + _signature(short, value) + _text(value)
    if _is_ours(type(value)):
        return head + _text(type(value))
    module = importlib.import_module(name.rpartition(".")[0] or sglite._HOMES[name])
    return f"{head}\n{_plain(_attribute_docs(inspect.getsource(module))[short])}\n"


def _members(name: str, kind: type) -> Iterator[str]:
    """Attributes, properties and methods that say something of their own; of a base on the page only their names."""
    short: list[str] = []
    long: list[str] = []
    rest: list[str] = []
    seen = set(_LEFT_OUT)
    for owner in filter(_is_ours, kind.__mro__):
        if owner is not kind and owner in _on_page():
            rest.append(f"\nAnd what [{owner.__name__}](#{owner.__name__.lower()}) has.\n")
            break
        short += [f"* `{key}`: {_plain(doc)}" for key, doc in _attribute_docs(_source(owner)).items() if key[0] != "_"]
        found = [member for member in vars(owner) if not member.startswith("_") and member not in seen]
        seen.update(found)
        for member in found:
            value = vars(owner)[member]
            function = _documented(value) if member in _MEMBERS.get(name, found) else None
            if function is None:
                continue
            if isinstance(value, property):
                short.append(f"* `{member}`: {_plain(' '.join((inspect.getdoc(function) or '').split()))}")
            else:
                shown = _signature(member, function, bound=not isinstance(value, staticmethod))
                long.append(f"\n#### {name}.{member}\n{shown}{_text(function)}")
    yield from (["\n", "\n".join(short), "\n"] if short else [])
    yield from long
    yield from rest


def _documented(value: object) -> Any:
    """The function behind a member that says something of its own; None for others."""
    function = _function_of(value)
    doc = None if function is None else inspect.getdoc(function)
    return None if not doc or doc.startswith("See ") else function


@lru_cache(maxsize=1)
def _on_page() -> frozenset[type]:
    return frozenset(value for names in SECTIONS.values() for value in map(resolve, names) if inspect.isclass(value))


def _source(kind: type) -> str:
    return textwrap.dedent(inspect.getsource(kind))


def _attribute_docs(source: str) -> dict[str, str]:
    """By name, the strings that stand behind assignments of a module or a class."""
    body = ast.parse(source).body
    if len(body) == 1 and isinstance(body[0], ast.ClassDef):
        body = body[0].body
    found = {}
    for before, after in pairwise(body):
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            continue
        target: ast.expr | None = before.target if isinstance(before, ast.AnnAssign) else None
        if isinstance(before, ast.Assign):
            target = before.targets[0]
        if isinstance(target, ast.Name):
            found[target.id] = " ".join(str(after.value.value).split())
    return found


def _function_of(value: object) -> Any:
    if isinstance(value, property):
        return value.fget
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    return inspect.unwrap(value) if inspect.isfunction(value) else None


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("sglite.")


# --- signatures ---


def _signature(name: str, value: Any, *, bound: bool = False) -> str:
    """A code block; nothing for classes that are made by others."""
    if inspect.isclass(value) and (issubclass(value, Exception) or getattr(value, "_is_protocol", False)):
        return ""
    function = value.__init__ if inspect.isclass(value) else value
    if not inspect.isfunction(function):
        return ""
    parameters = list(inspect.signature(function).parameters.values())
    if bound or inspect.isclass(value):
        parameters = parameters[1:]
    written = list(_parameters(parameters, function.__globals__))
    returns = function.__annotations__.get("return")
    arrow = "" if returns is None or inspect.isclass(value) else f" -> {_annotation(returns)}"
    start = "async def " if inspect.iscoroutinefunction(function) else ""
    line = f"{start}{name}({', '.join(written)}){arrow}"
    if len(line) > _LINE:
        line = f"{start}{name}(\n" + "".join(f"    {one},\n" for one in written) + f"){arrow}"
    return f"\n```py\n{line}\n```\n"


def _parameters(parameters: list[inspect.Parameter], names: dict[str, Any]) -> Iterator[str]:
    kinds = inspect.Parameter
    starred = False
    for index, one in enumerate(parameters):
        if one.kind is kinds.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        starred |= one.kind is kinds.VAR_POSITIONAL
        text = "*" * (1 + (one.kind is kinds.VAR_KEYWORD)) * (one.kind in _STARRED) + one.name
        if one.annotation is not kinds.empty:
            text += f": {_annotation(one.annotation)}"
        if one.default is not kinds.empty:
            equals = " = " if one.annotation is not kinds.empty else "="
            text += equals + _default(one.default, names)
        yield text
        after = parameters[index + 1] if index + 1 < len(parameters) else None
        if one.kind is kinds.POSITIONAL_ONLY and (after is None or after.kind is not kinds.POSITIONAL_ONLY):
            yield "/"


def _annotation(annotation: object) -> str:
    written = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", repr(annotation))
    return written.replace("'", '"')


def _default(value: object, names: dict[str, Any]) -> str:
    """Literals as they are; other objects by the name they have where the function is."""
    if value is None or isinstance(value, (str, int, float, bytes, tuple)):
        return repr(value) if '"' in repr(value) else repr(value).replace("'", '"')
    named = next((name for name, known in names.items() if known is value), None)
    if named is not None:
        return named
    return repr(value) if " at 0x" not in repr(value) else "..."


# --- docstrings ---


def _text(value: Any) -> str:
    """A docstring as Markdown; nothing where it is what Python made up."""
    doc = inspect.getdoc(value) or ""
    own = vars(value).get("__doc__") if inspect.isclass(value) else doc
    if not doc or not own or (inspect.isclass(value) and doc.startswith(f"{value.__name__}(")):
        return ""
    if doc.startswith(_AS_MODULE):
        about = inspect.getdoc(sys.modules[value.__module__]) or ""
        doc = f"{about}\n\n{doc.removeprefix(_AS_MODULE).lstrip()}"
    return f"\n{_plain(doc).rstrip()}\n"


def _plain(doc: str) -> str:
    """A docstring's text: its code spans are Markdown's, and what Markdown would take for HTML is escaped."""
    parts = re.split(r"(``[^`]*``|^    .*$)", doc, flags=re.MULTILINE)
    text = "".join(part if index % 2 else part.replace("<", "\\<") for index, part in enumerate(parts))
    return text.replace("``", "`")


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
