"""Functions as tools see them: the schema of their arguments, and arguments out of what a model wrote.

Promises: the schema has one property an argument, in the order of the signature, and no others; whatever
``call_arguments`` gives can be passed as ``function(**arguments)``. Unlike ``TypeSpec.parse`` it converts as pydantic
does by default ("3" for an int): the models of most servers write arguments without a constraint.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from sglite.constrained.spec import ConstraintError, parse_json
from sglite.lang.typed_schema import ClosedSchema, Refused, is_open, no_text, one_line

_SECTION = re.compile(r"\s*(?:Args|Arguments|Parameters):\s*")
_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_SPHINX = re.compile(r"\s*:param\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)")
_SHOWN = 60

Function = Callable[..., Any]


def signature_schema(function: Function, skip: Collection[str] = ()) -> dict[str, Any]:
    """JSON Schema of an object with one property an argument, those in ``skip`` left out.

    Types come from the annotations, descriptions from these (``Annotated[int, Field(description=...)]``) or from the
    docstring, in Google's or Sphinx's style; an argument with a default is not required. TypeError with the reason for
    a function whose arguments cannot be given by name, are not annotated or have no schema.
    """
    return copy.deepcopy(_arguments(function, skip).schema)


def call_arguments(function: Function, arguments_json: str, skip: Collection[str] = ()) -> dict[str, Any]:
    """The arguments that JSON text gives, converted to what the annotations say; those it leaves to a default of the
    function are left out. Empty text is an empty object. ValueError names everything that is wrong, in one line."""
    name = _name(function)
    model, schema = _arguments(function, skip)
    text = arguments_json.strip() or "{}"
    try:
        if not isinstance(parse_json(text, "the text"), dict):
            raise ConstraintError("the text is not a JSON object")
        read = model.model_validate_json(text, extra=None if is_open(schema) else "forbid")
    except ValidationError as error:
        raise ValueError(f"arguments of {name}: {one_line(error, limit=None)}") from error
    except ConstraintError as error:
        raise ValueError(f"arguments of {name}: {error}; it begins {arguments_json[:_SHOWN]!r}") from None
    given = inspect.signature(function).parameters
    return {
        str(field.alias): getattr(read, key)
        for key, field in model.model_fields.items()
        if key in read.model_fields_set or given[str(field.alias)].default is inspect.Parameter.empty
    }


def description_of(function: Function) -> str:
    """The first paragraph of the docstring, in one line; empty where there is none."""
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


def _name(function: Function) -> str:
    return str(getattr(function, "__name__", None) or repr(function))


class _Arguments(NamedTuple):
    """A function's arguments as fields of a model."""

    model: type[BaseModel]
    schema: dict[str, Any]


def _arguments(function: Function, skip: Collection[str]) -> _Arguments:
    try:
        hash(function)
    except TypeError:
        return _made(function, frozenset(skip))
    return _remembered(function, frozenset(skip))


@lru_cache(maxsize=256)
def _remembered(function: Function, skip: frozenset[str]) -> _Arguments:
    return _made(function, skip)


def _made(function: Function, skip: frozenset[str]) -> _Arguments:
    try:
        model = _model_of(function, skip)
        schema = model.model_json_schema(schema_generator=ClosedSchema)
    except (PydanticUserError, Refused) as error:
        raise no_text(f"arguments of {_name(function)}", error) from error
    del schema["title"]
    return _Arguments(model, {"type": "object", "properties": {}} | schema)


def _model_of(function: Function, skip: frozenset[str]) -> type[BaseModel]:
    """A model with a field an argument. Fields are numbered: arguments may have names that a model keeps to itself."""
    parameters = [each for each in inspect.signature(function).parameters.values() if each.name not in skip]
    for each in parameters:
        _check(function, each)
    hints, told = _hints(function, parameters), dict(_described(inspect.getdoc(function) or ""))
    fields: dict[str, Any] = {}
    for number, each in enumerate(parameters):
        annotation = hints[each.name]
        description = _own_description(annotation) or told.get(each.name)
        if each.default is inspect.Parameter.empty:  # its annotation may still give one
            fields[f"argument_{number}"] = (annotation, Field(alias=each.name, description=description))
        else:
            fields[f"argument_{number}"] = (annotation, Field(each.default, alias=each.name, description=description))
    return create_model(_name(function), __config__=ConfigDict(extra="forbid"), **fields)


def _check(function: Function, parameter: inspect.Parameter) -> None:
    where = f"argument {parameter.name!r} of {_name(function)}"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise TypeError(f"{where} takes any number of values; give each its own name, or one of them a list or dict")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise TypeError(f"{where} cannot be given by name; take away the '/' behind it")
    if parameter.annotation is parameter.empty:
        raise TypeError(f"{where} has no annotation; write its type, as in {parameter.name}: str")
    if isinstance(parameter.default, FieldInfo):
        raise TypeError(f"{where} has a Field as its default; write Annotated[<type>, Field(...)] and a plain default")


def _hints(function: Function, parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """Annotations with their names resolved; only those of ``parameters``, as others may name what is not imported."""

    class Holder:
        __annotations__ = {each.name: each.annotation for each in parameters}

    inner: Any = inspect.unwrap(getattr(function, "func", function))  # a partial's function
    names = getattr(inner if hasattr(inner, "__globals__") else type(inner).__call__, "__globals__", {})
    try:
        return get_type_hints(Holder, globalns=names, localns={}, include_extras=True)
    except NameError as error:
        raise TypeError(f"{_name(function)}: {error}; its annotations have to name what its module defines") from error


def _own_description(annotation: Any) -> str | None:
    notes = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((note.description for note in notes if isinstance(note, FieldInfo) and note.description), None)


def _described(docstring: str) -> Iterator[tuple[str, str]]:
    """Arguments and what a docstring says of them; lines that go on are joined."""
    lines = docstring.splitlines()
    for number, line in enumerate(lines):
        if _SECTION.fullmatch(line):
            yield from _entries(lines[number + 1 :], _indent(line))
        elif found := _SPHINX.fullmatch(line):
            rest = _continued(lines[number + 1 :], _indent(line))
            yield found[1], " ".join([found[2], *rest]).strip()


def _entries(lines: list[str], outer: int) -> Iterator[tuple[str, str]]:
    """The entries of a section in Google's style, up to a line that is no deeper than its header."""
    level: int | None = None
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        indent = _indent(line)
        if indent <= outer:
            return
        level = indent if level is None else level
        found = _ENTRY.fullmatch(line.strip()) if indent == level else None
        if found:
            yield found[1], " ".join([found[2], *_continued(lines[number + 1 :], level)]).strip()


def _continued(lines: list[str], level: int) -> Iterator[str]:
    for line in lines:
        if not line.strip() or _indent(line) <= level:
            return
        yield line.strip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
