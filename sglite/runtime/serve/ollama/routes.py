"""Which of Ollama's routes are answered how."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import ignored_header
from sglite.runtime.serve.ollama.answer import Answer, shaped
from sglite.runtime.serve.ollama.ask import Ask, read_chat, read_generate
from sglite.runtime.serve.ollama.embed import Embed, Embedder
from sglite.runtime.serve.ollama.info import Info
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Route, Serving
from sglite.runtime.serve.streaming import LINES
from sglite.runtime.serve.streaming import stream as streamed

_POST = ("POST",)
_REFUSED = {
    "/api/pull": _POST,
    "/api/push": _POST,
    "/api/create": _POST,
    "/api/copy": _POST,
    "/api/delete": ("DELETE",),
    "/api/blobs/{digest}": ("HEAD", "POST"),
}


class Ollama:
    """The routes. ``embedder``: makes embeddings; ``None``: the model has none."""

    def __init__(self, serving: Serving, embedder: Embedder | None = None) -> None:
        self._serving = serving
        self._info = Info(serving, embeds=embedder is not None)
        self._embed = Embed(serving, embedder)

    def routes(self) -> list[Route]:
        """See the module."""
        return [
            Route("/api/chat", _POST, self.chat),
            Route("/api/generate", _POST, self.generate),
            *self._embed.routes(),
            *self._info.routes(),
            *(Route(path, methods, self.refuse) for path, methods in _REFUSED.items()),
        ]

    async def chat(self, request: Request) -> Response:
        """The next turn of a conversation."""
        return await self._answer(request, read_chat(self._serving, await read_object(request)), chat=True)

    async def generate(self, request: Request) -> Response:
        """The answer to a prompt, or what comes after it."""
        return await self._answer(request, read_generate(self._serving, await read_object(request)), chat=False)

    async def refuse(self, request: Request) -> Response:
        """What would change the models of the server."""
        name = self._serving.models.name
        message = f"{request.url.path[:100]} is not offered: this server serves {name} and changes no models"
        raise Refused(501, message)

    async def _answer(self, request: Request, ask: Ask, chat: bool) -> Response:
        headers = ignored_header(ask.ignored)
        if ask.call is None:
            reason = "unload" if ask.unload else "load"
            response = json_response({**shaped(ask.name, chat), "done": True, "done_reason": reason})
            response.headers.update(headers)
            return response
        run = await ask.begin(self._serving)
        answer = Answer(self._serving, ask.name, chat, run)
        if ask.stream:
            response = streamed(answer.lines(), run.end, LINES)
        else:
            try:
                response = json_response(await unless_gone(request, answer.whole()))
            finally:
                run.end()
        response.headers.update(headers)
        return response
