"""A server that speaks SGLang's native protocol (``POST /generate``), sglite's own or SGLang's.

A server that has the program extension (sglite's says so in ``/get_model_info``) keeps a program's sequences, so
nothing is sent or encoded twice; to others requests carry the text so far. One set of kept connections serves all
programs; closing a request aborts it on the server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from sglite.lang.backends.base import Backend, Stream
from sglite.lang.backends.endpoint_format import format_of
from sglite.lang.backends.endpoint_http import RETRIES, Http, checked, message_of
from sglite.lang.backends.endpoint_link import Links
from sglite.lang.backends.endpoint_program import ProgramStream
from sglite.lang.backends.endpoint_text import NOTHING_NEW, TextStream
from sglite.lang.backends.retrying import RetryPolicy
from sglite.lang.errors import BackendError
from sglite.lang.formats import ChatFormat
from sglite.lang.messages import Message, ToolSpec

PROGRAM_VERSION = 1
"""Of the program extension, as it is spoken here."""


class RuntimeEndpoint(Backend):
    """The server at ``base_url``; BackendError if none answers there.

    ``api_key``: sent as bearer token. ``verify``: False or a path of certificates, as for httpx.
    ``chat_template_name``: how turns are spelled, unless the server tells (see ``formats``).
    ``max_connections``: requests at a time; more wait here. ``program``: use the program extension; None: if the server
    has it; True: BackendError if it has not. ``retries``: for a server that is busy or was not reached.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: bool | str = True,
        chat_template_name: str | None = None,
        max_connections: int = 512,
        program: bool | None = None,
        retries: RetryPolicy = RETRIES,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = Http(base_url, headers, verify, max_connections, retries)
        self.base_url = self._http.base_url
        self.model_info: dict[str, Any] = checked(self._http.ask("GET", "/get_model_info")).json()
        self._format = format_of(chat_template_name, self.model_info.get("chat_format"), self.base_url)
        spoken = self.model_info.get("program_version")
        self.closes = spoken is not None  # it is one of ours, which take on_limit
        if program and spoken != PROGRAM_VERSION:
            message = f"speaks version {spoken} of the program extension, not {PROGRAM_VERSION}; leave program=True out"
            raise BackendError(f"{self.base_url}: {message}")
        self._links = Links(self._http) if program is not False and spoken == PROGRAM_VERSION else None

    def get_model_name(self) -> str:
        """The path or name of the model, as the server gives it."""
        return str(self.model_info.get("model_path", ""))

    def chat_format(self) -> ChatFormat:
        """The named format, the server's, or plain turns."""
        return self._format

    def call(self, path: str, body: Any) -> Any:
        """The JSON answer of ``POST path``; BackendError if the server refuses. Blocks."""
        return checked(self._http.ask("POST", path, body, None)).json()

    def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed ``POST path``; BackendError where it fails."""
        return self._http.post_events(path, body)

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str | None:
        """See Backend. Asks the server, if it is one that renders. Blocks."""
        if not self.model_info.get("renders"):
            return None
        body = {"messages": list(messages), "tools": [tool.to_dict() for tool in tools] or None}
        response = self._http.ask("POST", "/render", body)
        if response.status_code == 400:
            raise ValueError(message_of(response.json()))
        return str(checked(response).json()["prompt"])

    def open(self, program_id: str) -> Stream:
        """See Backend."""
        if self._links is None:
            return TextStream(self._http, self.model_info.get("has_image_understanding") is not False)
        return ProgramStream(self._links.open(program_id))

    async def prefill(self, text: str) -> None:
        """See Backend."""
        await self._http.post("/generate", {"text": text, "sampling_params": NOTHING_NEW})

    def flush_cache(self) -> bool:
        """See Backend."""
        return self._http.ask("POST", "/flush_cache").is_success

    def get_server_info(self) -> dict[str, Any]:
        """See Backend."""
        response = self._http.ask("GET", "/server_info")
        if response.status_code == 404:
            response = self._http.ask("GET", "/get_server_info")
        return dict(checked(response).json())
