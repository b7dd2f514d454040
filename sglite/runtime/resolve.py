"""From a caller's words and the facts to final values, each with its origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace

from sglite.runtime.config import EngineArgs, EngineConfig, Facts, Origin
from sglite.runtime.quant.methods import WHILE_LOADING
from sglite.runtime.sizing import context_of, graphs_of, room_of, running_of, states_of, step_tokens_of

_ARGUMENTS = {
    "page_size": "page_size",
    "max_step_tokens": "max_prefill_tokens",
    "max_running": "max_running_requests",
    "chunk_size": "chunked_prefill_size",
    "overlap": "disable_overlap_schedule",
    "grammar_backend": "grammar_backend",
    "jump_forward": "jump_forward",
    "pin_budget": "pin_budget",
}
"""Values that are the default or an argument."""


def resolve(args: EngineArgs, facts: Facts) -> EngineConfig:
    """Settle everything. Raises ``ConfigError`` where the caller's words and the facts exclude each other."""
    context, context_origin = context_of(args, facts)
    states, states_origin = states_of(args, facts)
    if facts.free_memory is not None:
        facts = replace(facts, free_memory=facts.free_memory - states * facts.bytes_per_state)
    pages, pages_origin, frames = room_of(args, facts, context)
    return EngineConfig(
        args=args,
        context_length=context,
        num_pages=pages,
        page_size=args.page_size,
        max_step_tokens=step_tokens_of(args, facts),
        max_running=running_of(args, facts),
        chunk_size=args.chunked_prefill_size,
        overlap=not args.disable_overlap_schedule,
        grammar_backend=args.grammar_backend,
        jump_forward=args.jump_forward,
        pin_budget=args.pin_budget,
        dtype=facts.dtype,
        device=facts.device,
        vocab_size=facts.vocab_size,
        kernels=facts.kernels,
        hidden_size=facts.hidden_size,
        labels=facts.labels,
        generates=facts.generates,
        quantization=facts.quantization,
        cache_dtype=facts.cache_dtype or facts.dtype,
        num_states=states,
        state_groups=facts.state_groups,
        window=facts.window,
        num_frames=frames,
        graph_sizes=graphs_of(args, facts),
        origins={
            **_origins(args),
            "context_length": context_origin,
            "num_pages": pages_origin,
            "num_states": states_origin,
            "num_frames": "default" if frames else "model",
        },
    )


def _origins(args: EngineArgs) -> Mapping[str, Origin]:
    """Of all values but the sizes of caches."""
    defaults = {item.name: item.default for item in fields(EngineArgs) if item.default is not MISSING}
    given = {name for name, default in defaults.items() if getattr(args, name) != default}
    found: dict[str, Origin] = {value: "argument" if name in given else "default" for value, name in _ARGUMENTS.items()}
    for value in ("vocab_size", "hidden_size", "labels", "generates", "state_groups", "window"):
        found[value] = "model"
    found["dtype"] = "argument" if "dtype" in given else "model"
    found["device"] = "argument" if "device" in given else "hardware"
    found["kernels"] = "argument" if given & {"cpu_kernels", "attention_backend", "cascade_attention"} else "hardware"
    found["quantization"] = "argument" if args.quantization in WHILE_LOADING else "model"
    found["cache_dtype"] = "argument" if "kv_cache_dtype" in given else "model"
    found["graph_sizes"] = "argument" if given & {"disable_cuda_graph", "cuda_graph_max_bs"} else "hardware"
    return found
