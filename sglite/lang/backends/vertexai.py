"""Models on Google's Vertex AI, through its OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from typing import Any

from sglite.lang.backends.api import client_package
from sglite.lang.backends.openai import OpenAI

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_UNTIL_KNOWN = "renewed before each request"


class VertexAI(OpenAI):
    """A model on Vertex AI. Needs ``pip install 'sglite[vertexai]'`` (openai, google-auth); the constructor reaches no
    network.

    ``model_name``: "google/gemini-2.5-flash", say; a name without a publisher is Google's. ``project``, ``location``:
    default to the environment's GCP_PROJECT_ID or GOOGLE_CLOUD_PROJECT, and GCP_LOCATION or "us-central1".
    ``endpoint``: the number of one's own deployment, instead of the shared "openapi". ``safety_settings``: Gemini's.
    ``credentials``: of google-auth; by default what the environment has (Application Default Credentials), looked up
    with the first request and renewed when they expire. The rest, and what degrades: see ``OpenAI``; besides,
    what the model behind the endpoint does not take is ignored or refused by Vertex, as its documentation says.
    """

    provider = "Vertex AI"

    def __init__(
        self,
        model_name: str,
        project: str | None = None,
        location: str | None = None,
        *,
        endpoint: str = "openapi",
        safety_settings: list[dict[str, Any]] | None = None,
        credentials: Any = None,
        extra_body: Mapping[str, Any] | None = None,
        base_url: str | None = None,
        **options: Any,
    ) -> None:
        self._auth = client_package("google.auth", "vertexai", "google-auth")
        self._transport = client_package("google.auth.transport.requests", "vertexai", "google-auth[requests]")
        self._credentials = credentials
        self._renewing = threading.Lock()
        named = model_name if "/" in model_name or endpoint != "openapi" else f"google/{model_name}"
        body = dict(extra_body or {})
        if safety_settings is not None:
            body["extra_body"] = {"google": {"safety_settings": safety_settings}}
        super().__init__(
            named,
            is_chat_model=True,
            extra_body=body,
            base_url=base_url or _url(project, location, endpoint),
            api_key=_UNTIL_KNOWN,
            **options,
        )

    async def _refresh(self, client: Any) -> None:
        if self._credentials is None or not self._credentials.valid:
            await asyncio.to_thread(self._renew)
        client.api_key = self._credentials.token

    def _renew(self) -> None:
        with self._renewing:
            if self._credentials is None:
                self._credentials, _ = self._auth.default(scopes=[_SCOPE])
            if not self._credentials.valid:
                self._credentials.refresh(self._transport.Request())


def _url(project: str | None, location: str | None, endpoint: str) -> str:
    project = project or os.environ.get("GCP_PROJECT_ID") or os.environ.get("GOOGLE_CLOUD_PROJECT")
    if not project:
        raise ValueError("VertexAI: no project; pass project=... or set GCP_PROJECT_ID")
    location = location or os.environ.get("GCP_LOCATION") or "us-central1"
    host = "aiplatform.googleapis.com" if location == "global" else f"{location}-aiplatform.googleapis.com"
    return f"https://{host}/v1/projects/{project}/locations/{location}/endpoints/{endpoint}"
