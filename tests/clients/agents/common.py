"""What every agent has: two tools, one of which fails the first time, and a note of what happened. No packages."""

from __future__ import annotations

import json
import sys
from typing import Any

QUESTION = "How warm is it in Atlantis and in Oslo, in Fahrenheit?"
EXTRACT = "Extract the person: ada is 36."
URL = sys.argv[1] if len(sys.argv) > 1 else ""
MODEL = "sglite-demo"
KEY = "none"

SCHEMAS: dict[str, dict[str, Any]] = {
    "temperature": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Its name"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "convert": {
        "type": "object",
        "properties": {"celsius": {"type": "number"}, "unit": {"type": "string", "enum": ["fahrenheit", "kelvin"]}},
        "required": ["celsius", "unit"],
        "additionalProperties": False,
    },
}
ABOUT = {"temperature": "Degrees Celsius in a city", "convert": "Degrees Celsius in another unit"}
CHAT_TOOLS = [
    {"type": "function", "function": {"name": name, "description": ABOUT[name], "parameters": schema}}
    for name, schema in SCHEMAS.items()
]


class NoSuchCity(Exception):
    """The error that is forced."""


class Note:
    """Calls with what came of them, pieces of the streamed answer, and whatever else is worth telling."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], Any]] = []
        self.pieces: list[str] = []
        self.more: dict[str, Any] = {}

    def temperature(self, city: str) -> float:
        """Degrees Celsius in a city."""
        if city != "Oslo":
            self.calls.append(("temperature", {"city": city}, "error"))
            raise NoSuchCity(f"there is no city called {city}")
        self.calls.append(("temperature", {"city": city}, 12.5))
        return 12.5

    def convert(self, celsius: float, unit: str) -> float:
        """Degrees Celsius in another unit."""
        found = celsius * 9 / 5 + 32 if unit == "fahrenheit" else celsius + 273.15
        self.calls.append(("convert", {"celsius": celsius, "unit": unit}, found))
        return found

    def call(self, name: str, arguments: str | dict[str, Any]) -> tuple[str, bool]:
        """The result as text, and whether it is one; for clients that leave the calling to their users."""
        given = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
        try:
            return str(getattr(self, name)(**given)), True
        except NoSuchCity as error:
            return f"Error: {error}", False

    def tell(self, text: str) -> None:
        """The report: one line of JSON."""
        print(json.dumps({"calls": self.calls, "text": text, "pieces": self.pieces, **self.more}))
