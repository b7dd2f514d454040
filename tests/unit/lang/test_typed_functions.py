"""Functions as tools: the schema of their arguments, and arguments out of what a model wrote."""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from sglite.lang.typed_functions import call_arguments, description_of, signature_schema

if TYPE_CHECKING:
    from nowhere import Context  # type: ignore[import-not-found]


class Place(BaseModel):
    """A place."""

    city: str
    country: str = "FR"


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


def weather(
    ctx: Context,
    place: Place,
    day: dt.date,
    schema: int = 3,
    *,
    units: Literal["c", "f"] = "c",
    note: Annotated[str | None, Field(description="as annotated")] = None,
    times: Annotated[int, Field(default=4, ge=1)],
) -> str:
    """The weather of a place
    on a day.

    Looks it up.

    Args:
        ctx: Nothing a model gives.
        place: Where it is
            asked for: a town.

        day (date): The day.
        units (str, optional): Celsius or Fahrenheit.
        note: not what the annotation says

    Returns:
        day: no argument
    """
    return f"{place.city} {day} {schema} {units} {note} {times}"


def sphinx(a: int, b: tuple[str, ...] = ()) -> None:
    """Does it.

    :param a: the first
        of two
    :param tuple b: the second
    :returns: nothing
    """


def test_a_schema_has_a_property_an_argument() -> None:
    schema = signature_schema(weather, skip={"ctx"})
    assert list(schema["properties"]) == ["place", "day", "schema", "units", "note", "times"]
    assert schema["required"] == ["place", "day"] and schema["additionalProperties"] is False
    assert schema["type"] == "object" and "title" not in schema and "description" not in schema
    properties = schema["properties"]
    assert properties["place"] == {"$ref": "#/$defs/Place", "description": "Where it is asked for: a town."}
    assert schema["$defs"]["Place"]["additionalProperties"] is False
    assert properties["day"] == {"type": "string", "format": "date", "description": "The day."}
    assert properties["schema"] == {"type": "integer", "default": 3}
    assert properties["units"]["description"] == "Celsius or Fahrenheit."
    assert properties["note"]["description"] == "as annotated"
    json.dumps(schema)


def test_a_schema_is_the_callers_own() -> None:
    signature_schema(sphinx)["properties"].clear()
    described = {name: each["description"] for name, each in signature_schema(sphinx)["properties"].items()}
    assert described == {"a": "the first of two", "b": "the second"}


def test_without_arguments() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    assert signature_schema(lambda: 0) == schema == signature_schema(lambda ctx: 0, skip=["ctx"])
    assert call_arguments(lambda: 0, " ") == {} == call_arguments(lambda: 0, "{}")


def test_the_description_is_the_first_paragraph() -> None:
    assert description_of(weather) == "The weather of a place on a day."
    assert description_of(lambda: 0) == ""


def test_arguments_are_converted_and_can_be_passed() -> None:
    text = '{"place": {"city": "Nice"}, "day": "2024-02-29", "times": "2", "units": "f"}'
    arguments = call_arguments(weather, text, skip={"ctx"})
    assert arguments == {"place": Place(city="Nice"), "day": dt.date(2024, 2, 29), "times": 2, "units": "f"}
    assert weather(None, **arguments) == "Nice 2024-02-29 3 f None 2"
    given = call_arguments(weather, '{"place": {"city": "Nice"}, "day": "2024-02-29"}', skip={"ctx"})
    assert weather(None, **given).endswith("None 4")  # the annotation's default, as the function has none


def test_everything_wrong_is_told_in_one_line() -> None:
    text = '{"place": {"city": 1, "town": 2}, "day": "2024-13-01", "schema": null, "colour": 1}'
    with pytest.raises(ValueError) as caught:
        call_arguments(weather, text, skip={"ctx"})
    message = str(caught.value)
    assert message.startswith("arguments of weather: ") and "\n" not in message
    for place in ("place.city: ", "place.town: ", "day: ", "schema: ", "colour: "):
        assert place in message
    with pytest.raises(ValueError, match=r"ctx: Extra inputs"):
        call_arguments(weather, '{"ctx": 1, "place": {"city": "x"}, "day": "2024-02-29"}', skip={"ctx"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON: .* line 1 column 2; it begins '{'"),
        ("[1]", "is not a JSON object"),
        ('{"a": 1, "a": 2}', "the key 'a' appears twice"),
        ('{"a": NaN}', "NaN is not a JSON value"),
    ],
)
def test_what_is_no_json_object(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^arguments of sphinx: .*{reason}"):
        call_arguments(sphinx, text)


def test_a_model_that_keeps_unknown_fields_gets_them() -> None:
    def keep(loose: Loose) -> None: ...

    keep.__annotations__ = {"loose": Loose}
    assert call_arguments(keep, '{"loose": {"x": 1}}')["loose"].x == 1


class Tools:
    def method(self, x: int) -> None: ...

    def __call__(self, day: dt.date) -> None: ...


def test_methods_partials_and_callable_objects() -> None:
    assert list(signature_schema(Tools().method)["properties"]) == ["x"]
    assert list(signature_schema(Tools())["properties"]) == ["day"]
    assert list(signature_schema(functools.partial(sphinx, 1))["properties"]) == ["b"]

    @functools.wraps(sphinx)
    def wrapped(*args: Any, **kwargs: Any) -> None: ...

    assert list(signature_schema(wrapped)["properties"]) == ["a", "b"]


def bare(x): ...  # type: ignore[no-untyped-def]
def many(*x: int) -> None: ...
def named(**x: int) -> None: ...
def positional(x: int, /) -> None: ...
def unknown(x: Unheard) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def plain(x: Tools) -> None: ...
def function(x: Callable[[int], int]) -> None: ...
def default(x: int = Field(3)) -> None: ...


REFUSED = [
    (bare, "argument 'x' of bare has no annotation"),
    (many, "any number of values"),
    (named, "any number of values"),
    (positional, "cannot be given by name"),
    (unknown, "unknown: name 'Unheard' is not defined"),
    (plain, "arguments of plain: there is no text .*Tools"),
    (function, "arguments of function: there is no text .*Callable"),
    (default, "Field as its default; write Annotated"),
]


@pytest.mark.parametrize(("which", "reason"), REFUSED, ids=[case[0].__name__ for case in REFUSED])
def test_a_function_that_no_model_can_call_is_refused(which: Callable[..., Any], reason: str) -> None:
    with pytest.raises(TypeError, match=reason) as caught:
        signature_schema(which)
    assert "\n" not in str(caught.value)
