"""What the server says once it is ready: where it listens, what it serves, and a line to try it with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglite.runtime.serve.options import ServeOptions

if TYPE_CHECKING:
    from sglite.runtime.config import EngineConfig
    from sglite.runtime.parse.detect import Formats

READY_LINE = "sglite is ready at "
"""What the first line begins with; the rest of it is the URL. Programs that start a server wait for it."""


@dataclass(frozen=True)
class EngineFacts:
    """What is said of an engine. ``kv_tokens``: what its cache holds; ``constraints``: what carries them out."""

    model: str
    context: int
    kv_tokens: int
    device: str
    dtype: str
    constraints: str
    kernels: str = ""
    """What computes."""
    embeds: bool = False
    """Makes vectors of texts."""
    generates: bool = True
    quantization: str | None = None
    """How the checkpoint is quantised."""

    @classmethod
    def of(cls, model_path: str, config: EngineConfig, embeds: bool = False) -> EngineFacts:
        """From an engine's ``model_path`` and ``config``."""
        return cls(
            model=model_path,
            context=config.context_length,
            kv_tokens=config.max_total_tokens,
            device=config.device,
            dtype=config.dtype,
            constraints=config.grammar_backend,
            kernels=config.kernels,
            embeds=embeds,
            generates=config.generates,
            quantization=config.quantization,
        )


def banner(
    engine: EngineFacts, options: ServeOptions, url: str, formats: Formats, sampling: Mapping[str, float] | None = None
) -> str:
    """A few lines without a newline at their end; ``READY_LINE`` and ``url`` are the first. Shows no key.

    ``sampling``: parameters of requests that say nothing of them.
    """
    name = options.served_model_name[0] if options.served_model_name else engine.model
    tools = "none" if formats.tools is None else formats.tools.name
    reasoning = "none" if formats.reasoning is None else formats.reasoning.name
    rows = {
        "model": engine.model + ("" if name == engine.model else f", called {', '.join(options.served_model_name)}"),
        "context": f"{engine.context:,} tokens; the KV cache holds {engine.kv_tokens:,}",
        "runs on": f"{engine.device}, {engine.dtype}; constraints: {engine.constraints}",
        **({"kernels": engine.kernels} if engine.kernels else {}),
        **({"weights": f"{engine.quantization}; computed in {engine.dtype}"} if engine.quantization else {}),
        "formats": f"tool calls: {tools}, reasoning: {reasoning}",
        **({"sampling": _sampling(sampling)} if sampling else {}),
        **({"pooling": f"last token{'' if engine.generates else '; no text'}"} if engine.embeds else {}),
        "keys": f"{_key('API key', options.api_key, 'anybody may call')}; "
        f"{_key('admin key', options.admin_key, 'admin routes are closed')}",
        "try": _curl(url, name, options.api_key is not None, engine.generates),
        "see": f"{url}/docs" + (f" and {url}/ (playground)" if options.playground else ""),
    }
    width = max(map(len, rows))
    return "\n".join([f"{READY_LINE}{url}", *(f"  {title:<{width}}  {said}" for title, said in rows.items())])


def _sampling(defaults: Mapping[str, float]) -> str:
    told = ", ".join(f"{name} {value:g}" for name, value in defaults.items())
    return f"{told} unless a request says otherwise"


def _key(what: str, key: str | None, without: str) -> str:
    return f"no {what}, {without}" if key is None else f"{what} set"


def _curl(url: str, model: str, has_key: bool, generates: bool) -> str:
    asked = {"messages": [{"role": "user", "content": "Hello"}]} if generates else {"input": "Hello"}
    quoted = json.dumps({"model": model, **asked}, ensure_ascii=False).replace("'", "'\\''")
    key = ' -H "Authorization: Bearer $SGLITE_API_KEY"' if has_key else ""
    route = "chat/completions" if generates else "embeddings"
    return f"curl {url}/v1/{route}{key} -H 'Content-Type: application/json' -d '{quoted}'"
