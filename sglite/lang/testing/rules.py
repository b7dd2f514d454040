"""Whether a request could have got an answer, and the text in which it would have.

``written`` spells a value as a gen of its type would and refuses what breaks the gen's rules: its type, ``regex``,
``json_schema`` and ``stop``. ``check_calls`` does the same for calls of tools. Refusals are ``MockError``s that name
the variable, the answer and the rule.

Schemas are checked with the package ``jsonschema``. Where it is not installed, a text only has to be JSON, and a call's
arguments only have to be those that the schema names; a typed gen is read as its type either way. What ``ebnf`` and
``structural_tag`` allow, and token limits, are not checked.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

import pydantic
import pydantic_core

from sglite.lang.messages import ToolCall, ToolSpec
from sglite.lang.testing.answers import Call, MockError, MockRequest

_SHOWN = 200
"""Characters of an answer or a rule that a message shows."""


def written(request: MockRequest, answer: Any, *, checked: bool, complete: bool = True) -> str:
    """The text of ``answer``. ``complete``: False for a text that was cut off, which satisfies no rule yet.

    Raises MockError if it is checked and breaks a rule, or if no text stands for it.
    """
    problems = []
    for text in _spellings(request, answer):
        problem = _problem(request, answer, text, complete) if checked else None
        if problem is None:
            return text
        problems.append(problem)
    raise refusal(request, answer, problems[0])


def refusal(request: MockRequest, answer: Any, reason: str) -> MockError:
    """Says that ``answer`` cannot be the answer to ``request``, and why."""
    return MockError(f"the Mock's answer {shown(answer)} for {request.label} {reason}")


def shown(value: Any) -> str:
    """``repr`` of bounded length."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _spellings(request: MockRequest, answer: Any) -> Iterator[str]:
    """Texts that may stand for ``answer``, the plainest first: a text for itself, a value bare or as JSON."""
    plain = isinstance(answer, str) and not isinstance(answer, Enum)
    if plain:
        yield answer
        if request.spec is None:
            return
    if answer is None and request.spec is None:
        raise refusal(request, answer, "is no answer; write it as a str")
    try:
        as_json = pydantic_core.to_json(answer, by_alias=True).decode()
    except pydantic_core.PydanticSerializationError as error:
        raise refusal(request, answer, f"has no text: {one_line(error)}; write it as a str") from None
    bare = json.loads(as_json)
    if not plain and isinstance(bare, str):
        yield bare
    yield as_json
    if isinstance(answer, Enum):
        yield answer.name
    if isinstance(answer, bool):
        yield str(answer)


def _problem(request: MockRequest, answer: Any, text: str, complete: bool) -> str | None:
    """Why ``request`` cannot have been answered with ``text``; None if it can."""
    sampling = request.sampling
    for stop in sampling.stop or ():
        if stop and stop in text:
            return f"has the stop string {stop!r} in it, before which the model would have stopped"
    if not complete:
        return None
    return (
        _type_problem(request, answer, text)
        or _regex_problem(sampling.regex, text)
        or _schema_problem(sampling.json_schema, text)
    )


def _type_problem(request: MockRequest, answer: Any, text: str) -> str | None:
    if request.spec is None:
        return None
    kind = getattr(request.type, "__name__", None) or str(request.type)
    try:
        value = request.spec.parse(text)
    except ValueError as error:
        return f"is no {kind}: {one_line(error).removeprefix(f'{kind}: ')}"
    structured = is_dataclass(answer) or isinstance(answer, (pydantic.BaseModel, Enum))
    if structured and not isinstance(value, type(answer)):
        return f"is no {kind} but a {type(answer).__name__}"
    if type(value) is type(answer) and value != answer and not isinstance(answer, str):
        return f"is no {kind}: its text {shown(text)} reads as {shown(value)}"
    return None


def _regex_problem(regex: str | None, text: str) -> str | None:
    if regex is None:
        return None
    try:
        matches = re.fullmatch(regex, text)
    except re.error as error:
        return (
            f"cannot be checked: Python's re does not know the pattern {shown(regex)} ({error}); wrap it in Invalid()"
        )
    return None if matches else f"does not match the regex {shown(regex)}"


def _schema_problem(schema: str | None, text: str) -> str | None:
    if schema is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"is no JSON, which its json_schema asks for: {error}"
    problem = schema_violation(json.loads(schema), value)
    return None if problem is None else f"violates its json_schema: {problem}"


def schema_violation(schema: Any, value: Any) -> str | None:
    """What in ``schema`` forbids ``value``; None if nothing does, or if ``jsonschema`` is not installed."""
    if importlib.util.find_spec("jsonschema") is None:
        return None
    from jsonschema.exceptions import SchemaError, UnknownType, best_match
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    validator = validator_for(schema, default=Draft202012Validator)
    try:
        # An empty registry: what a schema refers to elsewhere is not fetched.
        error = best_match(validator(schema, registry=Registry()).iter_errors(value))
    except (SchemaError, UnknownType, Unresolvable, re.error) as cause:
        reason = f"the schema {shown(schema)} cannot be checked here: {one_line(cause)}"
        raise MockError(f"{reason}; wrap the answer in Invalid()") from None
    return None if error is None else f"{one_line(error.message)} at {error.json_path}"


def one_line(message: object) -> str:
    """A message without line breaks, of bounded length."""
    text = " ".join(str(message).split())
    return text if len(text) <= 2 * _SHOWN else text[: 2 * _SHOWN] + "..."


def check_calls(request: MockRequest, calls: list[Call]) -> None:
    """MockError if the request offers no such tool, or a tool does not take such arguments."""
    tools = {tool.name: tool for tool in request.tools}
    for call in calls:
        if not tools:
            raise refusal(request, call, "calls a tool, but the request offers none")
        if request.tool_choice == "none" or request.tool_choice in tools.keys() - {call.name}:
            raise refusal(request, call, f"is not what tool_choice={request.tool_choice!r} asks for")
        if call.name not in tools:
            raise refusal(request, call, f"calls an unknown tool; the request offers {', '.join(tools)}")
        if (problem := _argument_problem(tools[call.name], call.arguments)) is not None:
            raise refusal(request, call, f"has arguments that the tool {call.name!r} does not take: {problem}")


def check_silence(request: MockRequest, answer: Any) -> None:
    """MockError for an answer without calls where the request demands one."""
    if request.tool_choice == "required" or request.tool_choice in {tool.name for tool in request.tools}:
        raise refusal(request, answer, f"calls no tool, which tool_choice={request.tool_choice!r} demands")


def _argument_problem(tool: ToolSpec, arguments: dict[str, Any]) -> str | None:
    known = tool.parameters.get("properties") or {}
    if not tool.parameters.get("additionalProperties"):
        unknown = [name for name in arguments if name not in known]
        if unknown:
            return f"no argument is called {unknown[0]!r}; there are {', '.join(known) or 'none'}"
    missing = [name for name in tool.parameters.get("required") or () if name not in arguments]
    if missing:
        return f"{missing[0]!r} is missing"
    return schema_violation(tool.parameters, json.loads(arguments_text(arguments)))


def arguments_text(arguments: dict[str, Any]) -> str:
    """Arguments as a model writes them."""
    return pydantic_core.to_json(arguments, by_alias=True).decode()


def tool_call(call: Call | ToolCall, number: int) -> ToolCall:
    """``call`` with an id of its own in its sequence."""
    return call if isinstance(call, ToolCall) else ToolCall(f"call_{number}", call.name, arguments_text(call.arguments))
