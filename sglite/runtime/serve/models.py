"""Which names requests may call the model by."""

from __future__ import annotations

import time

from sglite.runtime.serve.errors import Refused

ANY_MODEL = "default"
"""A name that clients use who do not care, as with SGLang."""


class Models:
    """The names of the one model that is served. ``path``: where it was loaded from, a name where none is given."""

    def __init__(self, path: str, served: tuple[str, ...] = ()) -> None:
        self.names = served or (path,)
        self.path = path
        self.created = int(time.time())

    @property
    def name(self) -> str:
        """What answers call it."""
        return self.names[0]

    def check(self, given: object) -> str:
        """The name that an answer to a request for ``given`` has; no name at all means the model. ``Refused`` (404)."""
        if given is None or given == "":
            return self.name
        if not isinstance(given, str):
            raise Refused(400, f"model must be text, got {type(given).__name__}", param="model")
        if given in self.names or given == ANY_MODEL:
            return given
        known = ", ".join(self.names)
        message = f"The model {given[:200]!r} does not exist; known here: {known}"
        raise Refused(404, message, param="model", code="model_not_found")
