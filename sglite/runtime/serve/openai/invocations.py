"""``POST /invocations``, to which SageMaker sends every request: the fields tell which route is meant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.serving import Route

Answer = Callable[[Request, dict[str, Any]], Awaitable[Response]]


class Invocations:
    """The route. ``answers``: by the field that only requests of that kind have, in the order in which it is asked."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self._answers = answers

    def routes(self) -> list[Route]:
        """See the module."""
        return [Route("/invocations", ("POST",), self.answer)]

    async def answer(self, request: Request) -> Response:
        """What the route that is meant answers."""
        body = await read_object(request)
        meant = next((answer for field, answer in self._answers.items() if body.get(field) is not None), None)
        if meant is None:
            raise Refused(400, f"the body must have one of {', '.join(self._answers)}; these say what is asked for")
        return await meant(request, body)
