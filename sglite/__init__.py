"""sglite: a language for writing programs around language models, and the runtime that executes them.

    import sglite as sgl

    @sgl.function
    def ask(s, question):
        s += sgl.user(question) + sgl.assistant(sgl.gen("answer", max_tokens=64))

Names are bound when first used: importing the package imports neither torch nor an HTTP client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sglite.version import __version__

if TYPE_CHECKING:
    import sglite.lang.testing as testing
    from sglite.constrained.explain import explain as explain
    from sglite.lang.api import assistant as assistant
    from sglite.lang.api import assistant_begin as assistant_begin
    from sglite.lang.api import assistant_end as assistant_end
    from sglite.lang.api import flush_cache as flush_cache
    from sglite.lang.api import function as function
    from sglite.lang.api import gen as gen
    from sglite.lang.api import gen_int as gen_int
    from sglite.lang.api import gen_string as gen_string
    from sglite.lang.api import get_server_info as get_server_info
    from sglite.lang.api import image as image
    from sglite.lang.api import select as select
    from sglite.lang.api import separate_reasoning as separate_reasoning
    from sglite.lang.api import set_default_backend as set_default_backend
    from sglite.lang.api import system as system
    from sglite.lang.api import system_begin as system_begin
    from sglite.lang.api import system_end as system_end
    from sglite.lang.api import user as user
    from sglite.lang.api import user_begin as user_begin
    from sglite.lang.api import user_end as user_end
    from sglite.lang.api import video as video
    from sglite.lang.backends.endpoint import RuntimeEndpoint as RuntimeEndpoint
    from sglite.lang.choices import greedy_token_selection as greedy_token_selection
    from sglite.lang.choices import token_length_normalized as token_length_normalized
    from sglite.lang.choices import unconditional_likelihood_normalized as unconditional_likelihood_normalized
    from sglite.lang.errors import BackendError as BackendError
    from sglite.lang.errors import ProgramError as ProgramError
    from sglite.lang.errors import VariableError as VariableError
    from sglite.runtime.engine.engine import Engine as Engine

_API = "sglite.lang.api"
_CHOICES = "sglite.lang.choices"
_ERRORS = "sglite.lang.errors"
_HOMES = {
    "BackendError": _ERRORS,
    "Engine": "sglite.runtime.engine.engine",
    "ProgramError": _ERRORS,
    "RuntimeEndpoint": "sglite.lang.backends.endpoint",
    "VariableError": _ERRORS,
    "assistant": _API,
    "assistant_begin": _API,
    "assistant_end": _API,
    "explain": "sglite.constrained.explain",
    "flush_cache": _API,
    "function": _API,
    "gen": _API,
    "gen_int": _API,
    "gen_string": _API,
    "get_server_info": _API,
    "greedy_token_selection": _CHOICES,
    "image": _API,
    "select": _API,
    "separate_reasoning": _API,
    "set_default_backend": _API,
    "system": _API,
    "system_begin": _API,
    "system_end": _API,
    "token_length_normalized": _CHOICES,
    "unconditional_likelihood_normalized": _CHOICES,
    "user": _API,
    "user_begin": _API,
    "user_end": _API,
    "video": _API,
}

__all__ = ["__version__", "testing", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module("sglite.lang.testing")
    if name not in _HOMES:
        raise AttributeError(f"module 'sglite' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sglite"):
            raise
        raise ImportError(
            f"sglite.{name} needs the package {error.name!r}, which is not installed; pip install 'sglite[runtime]'"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
