"""Names of models as Ollama's clients give them: with a tag, which is ``latest`` where none is given."""

from __future__ import annotations

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.models import ANY_MODEL, Models

_LATEST = ":latest"


def tagged(name: str) -> str:
    """``name`` as lists show it."""
    return name if ":" in name.rsplit("/", 1)[-1] else name + _LATEST


def read_model(fields: Fields, models: Models) -> str:
    """The ``model`` of a request (older clients: ``name``), as it was given. ``Refused``: none, or another one."""
    given = fields.text("model") or fields.text("name")
    if not given:
        raise Refused(400, "model is required", param="model")
    if given not in (ANY_MODEL, ANY_MODEL + _LATEST) and tagged(given) not in map(tagged, models.names):
        raise Refused(404, f"model {given[:200]!a} not found", param="model", code="model_not_found")
    return given
