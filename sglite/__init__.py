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
    from sglite.lang.api import flush_cache as flush_cache
    from sglite.lang.api import function as function
    from sglite.lang.api import get_server_info as get_server_info
    from sglite.lang.api import program as program
    from sglite.lang.api import set_default_backend as set_default_backend
    from sglite.lang.backends.anthropic import Anthropic as Anthropic
    from sglite.lang.backends.api import ApiError as ApiError
    from sglite.lang.backends.endpoint import RuntimeEndpoint as RuntimeEndpoint
    from sglite.lang.backends.litellm import LiteLLM as LiteLLM
    from sglite.lang.backends.openai import OpenAI as OpenAI
    from sglite.lang.backends.retrying import RetryPolicy as RetryPolicy
    from sglite.lang.backends.vertexai import VertexAI as VertexAI
    from sglite.lang.choices import greedy_token_selection as greedy_token_selection
    from sglite.lang.choices import token_length_normalized as token_length_normalized
    from sglite.lang.choices import unconditional_likelihood_normalized as unconditional_likelihood_normalized
    from sglite.lang.errors import BackendError as BackendError
    from sglite.lang.errors import BlockingReadError as BlockingReadError
    from sglite.lang.errors import BudgetExceeded as BudgetExceeded
    from sglite.lang.errors import CheckFailed as CheckFailed
    from sglite.lang.errors import DeadlineExceeded as DeadlineExceeded
    from sglite.lang.errors import Incomplete as Incomplete
    from sglite.lang.errors import ProgramError as ProgramError
    from sglite.lang.errors import Unsupported as Unsupported
    from sglite.lang.errors import VariableError as VariableError
    from sglite.lang.expressions import assistant as assistant
    from sglite.lang.expressions import assistant_begin as assistant_begin
    from sglite.lang.expressions import assistant_end as assistant_end
    from sglite.lang.expressions import gen as gen
    from sglite.lang.expressions import gen_int as gen_int
    from sglite.lang.expressions import gen_string as gen_string
    from sglite.lang.expressions import image as image
    from sglite.lang.expressions import repeat as repeat
    from sglite.lang.expressions import select as select
    from sglite.lang.expressions import separate_reasoning as separate_reasoning
    from sglite.lang.expressions import system as system
    from sglite.lang.expressions import system_begin as system_begin
    from sglite.lang.expressions import system_end as system_end
    from sglite.lang.expressions import user as user
    from sglite.lang.expressions import user_begin as user_begin
    from sglite.lang.expressions import user_end as user_end
    from sglite.lang.expressions import video as video
    from sglite.lang.graph import ProgramGraph as ProgramGraph
    from sglite.lang.mcp_tools import mcp_tools as mcp_tools
    from sglite.lang.program import State as State
    from sglite.lang.runtime_server import Runtime as Runtime
    from sglite.lang.tool_events import RetryLimitExceeded as RetryLimitExceeded
    from sglite.lang.tool_events import StepLimitExceeded as StepLimitExceeded
    from sglite.lang.tool_events import TokenLimitExceeded as TokenLimitExceeded
    from sglite.lang.tool_events import ToolError as ToolError
    from sglite.lang.tool_loop import tool_events as tool_events
    from sglite.lang.tool_loop import tool_loop as tool_loop
    from sglite.lang.tools import ToolContext as ToolContext
    from sglite.lang.tools import tool as tool
    from sglite.lang.usage import Usage as Usage
    from sglite.lang.values import Value as Value
    from sglite.lang.values import join as join
    from sglite.runtime.engine.engine import Engine as Engine

_API = "sglite.lang.api"
_CHOICES = "sglite.lang.choices"
_ERRORS = "sglite.lang.errors"
_EXPRESSIONS = "sglite.lang.expressions"
_HOMES = {
    "tool_events": "sglite.lang.tool_loop",
    "ToolContext": "sglite.lang.tools",
    "mcp_tools": "sglite.lang.mcp_tools",
    "StepLimitExceeded": "sglite.lang.tool_events",
    "TokenLimitExceeded": "sglite.lang.tool_events",
    "RetryLimitExceeded": "sglite.lang.tool_events",
    "ToolError": "sglite.lang.tool_events",
    "RetryPolicy": "sglite.lang.backends.retrying",
    "ApiError": "sglite.lang.backends.api",
    "ProgramGraph": "sglite.lang.graph",
    "Anthropic": "sglite.lang.backends.anthropic",
    "BackendError": _ERRORS,
    "BlockingReadError": _ERRORS,
    "BudgetExceeded": _ERRORS,
    "CheckFailed": _ERRORS,
    "DeadlineExceeded": _ERRORS,
    "Engine": "sglite.runtime.engine.engine",
    "Incomplete": _ERRORS,
    "LiteLLM": "sglite.lang.backends.litellm",
    "OpenAI": "sglite.lang.backends.openai",
    "ProgramError": _ERRORS,
    "Runtime": "sglite.lang.runtime_server",
    "RuntimeEndpoint": "sglite.lang.backends.endpoint",
    "State": "sglite.lang.program",
    "Unsupported": _ERRORS,
    "Usage": "sglite.lang.usage",
    "Value": "sglite.lang.values",
    "VariableError": _ERRORS,
    "VertexAI": "sglite.lang.backends.vertexai",
    "assistant": _EXPRESSIONS,
    "assistant_begin": _EXPRESSIONS,
    "assistant_end": _EXPRESSIONS,
    "explain": "sglite.constrained.explain",
    "flush_cache": _API,
    "function": _API,
    "gen": _EXPRESSIONS,
    "gen_int": _EXPRESSIONS,
    "gen_string": _EXPRESSIONS,
    "get_server_info": _API,
    "greedy_token_selection": _CHOICES,
    "image": _EXPRESSIONS,
    "join": "sglite.lang.values",
    "program": _API,
    "repeat": _EXPRESSIONS,
    "select": _EXPRESSIONS,
    "separate_reasoning": _EXPRESSIONS,
    "set_default_backend": _API,
    "system": _EXPRESSIONS,
    "system_begin": _EXPRESSIONS,
    "system_end": _EXPRESSIONS,
    "token_length_normalized": _CHOICES,
    "tool": "sglite.lang.tools",
    "tool_loop": "sglite.lang.tool_loop",
    "unconditional_likelihood_normalized": _CHOICES,
    "user": _EXPRESSIONS,
    "user_begin": _EXPRESSIONS,
    "user_end": _EXPRESSIONS,
    "video": _EXPRESSIONS,
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
