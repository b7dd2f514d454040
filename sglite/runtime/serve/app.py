"""The application: which route is answered by whom, who may call, and one way for everything that goes wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from sglite.runtime.engine.engine import Engine
from sglite.runtime.engine.remote import RemoteClient
from sglite.runtime.serve.admin import Admin
from sglite.runtime.serve.anthropic.routes import Messages
from sglite.runtime.serve.auth import Keys
from sglite.runtime.serve.direct import Direct
from sglite.runtime.serve.errors import Refused, refusal
from sglite.runtime.serve.health import HealthRoutes
from sglite.runtime.serve.info import Info
from sglite.runtime.serve.native import Native
from sglite.runtime.serve.observe_routes import ObserveRoutes
from sglite.runtime.serve.observed import Observed
from sglite.runtime.serve.ollama.embed import embedder_of
from sglite.runtime.serve.ollama.routes import Ollama
from sglite.runtime.serve.openai.chat import Chat
from sglite.runtime.serve.openai.chat_batch import ChatBatch
from sglite.runtime.serve.openai.classify import Classify
from sglite.runtime.serve.openai.completions import Completions
from sglite.runtime.serve.openai.embeddings import Embeddings
from sglite.runtime.serve.openai.invocations import Invocations
from sglite.runtime.serve.openai.model_routes import ModelRoutes
from sglite.runtime.serve.openai.rerank import Rerank
from sglite.runtime.serve.openai.score import Score
from sglite.runtime.serve.openai.token_completions import TokenCompletions
from sglite.runtime.serve.openapi import add_routes
from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.parse_routes import ParseRoutes
from sglite.runtime.serve.playground import Playground
from sglite.runtime.serve.program_route import ProgramRoute
from sglite.runtime.serve.programs import Programs
from sglite.runtime.serve.relevance import Relevance
from sglite.runtime.serve.responses import json_response
from sglite.runtime.serve.responses_api.routes import Responses
from sglite.runtime.serve.security import Guard, with_cors
from sglite.runtime.serve.serving import Route, Serving
from sglite.runtime.serve.sessions import Sessions
from sglite.runtime.serve.tokens import Tokens
from sglite.version import __version__

logger = logging.getLogger(__name__)


def create_app(engine: Engine, options: ServeOptions | None = None) -> ASGIApp:
    """The server over ``engine``, which stays the caller's to shut down."""
    serving = Serving.of(engine, options or ServeOptions())
    programs, responses = Programs(engine, serving.in_flight), Responses(serving)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with _read_here(engine):
            yield
        programs.close()
        responses.close()
        await asyncio.to_thread(serving.observer.close)

    app = FastAPI(title="sglite", version=__version__, lifespan=lifespan, redoc_url=None)
    routes = all_routes(serving, programs, responses)
    add_routes(app, routes)
    app.add_exception_handler(HTTPException, _refuse_route)
    for kind in (Refused, ValueError, RuntimeError):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(Exception, _answer)
    keyed = Keys(Direct(app, routes, _answer), serving.options.api_key, serving.options.admin_key, routes)
    guarded = Guard(with_cors(keyed, serving.options.cors_origins), serving.options)
    return Observed(guarded, serving.observer, [route.path for route in routes], serving.in_flight.calls)


def all_routes(serving: Serving, programs: Programs, responses: Responses) -> list[Route]:
    """Every route of the server, whatever the options."""
    sessions, relevance = Sessions(), Relevance(serving)
    chat, completions = Chat(serving), Completions(serving)
    embeddings, classify = Embeddings(serving), Classify(serving)
    rerank, score = Rerank(serving, relevance), Score(serving, relevance)
    of_texts = classify.answer if serving.engine.config.labels else embeddings.answer
    writes = isinstance(serving.engine.pooling, str) and not serving.engine.config.labels
    answers = {
        "messages": chat.answer if writes else of_texts,
        "prompt": completions.answer,
        "input": of_texts,
        **dict.fromkeys(("text_1", "queries", "data_1", "label_token_ids"), score.answer),
        "documents": rerank.answer,
    }
    return [
        *chat.routes(),
        *ChatBatch(serving).routes(),
        *completions.routes(),
        *TokenCompletions(serving).routes(),
        *ModelRoutes(serving).routes(),
        *embeddings.routes(),
        *classify.routes(),
        *rerank.routes(),
        *score.routes(),
        *Invocations(answers).routes(),
        *Ollama(serving, embedder_of(serving)).routes(),
        *Messages(serving).routes(),
        *responses.routes(),
        *Playground(serving.options).routes(),
        *sessions.routes(),
        *Native(serving, sessions).routes(),
        *Tokens(serving).routes(),
        *ProgramRoute(programs).routes(),
        *ParseRoutes(serving).routes(),
        *Admin(serving).routes(),
        *Info(serving, programs, sessions).routes(),
        *HealthRoutes(serving).routes(),
        *ObserveRoutes(serving).routes(),
    ]


@contextmanager
def _read_here(engine: Engine) -> Iterator[None]:
    """What an engine in another process says is heard on the event loop, where it is wanted."""
    client = engine.client
    if not isinstance(client, RemoteClient):
        yield
        return
    client.read_on(asyncio.get_running_loop())
    try:
        yield
    finally:
        client.read_on(None)


async def _answer(request: Request, error: Exception) -> Response:
    found = refusal(error)
    if found.status == 500 and not isinstance(error, Refused):  # what is refused on purpose is no failure
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    response = json_response(found.body(request.url.path), found.status)
    response.headers.update(found.headers())
    return response


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {
        404: f"there is no route {request.url.path[:200]}",
        405: f"{request.url.path[:200]} does not take {request.method}",
    }
    return await _answer(request, Refused(error.status_code, said.get(error.status_code, error.detail)))
