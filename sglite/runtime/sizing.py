"""How much of everything there is room for: context, pages, frames, recurrent states, rows of a captured step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sglite.runtime.config import ConfigError, EngineArgs, Facts, Origin

STATES_PER_REQUEST = 3
"""Recurrent states a running request: its own, and room for as many saved ones twice."""
WINDOWS_PER_REQUEST = 2
"""Windows a running request in the layers that have one: its own, and room to keep as many for others."""
PAGES_PER_FRAME = 16
"""Bounds the pages of a model whose layers all have a window: they cost no memory by themselves."""


@dataclass(frozen=True)
class Device:
    """What is usual on a kind of device."""

    running: int
    """Requests at a time."""
    step_tokens: int
    pool_share: float
    """Of the memory left after loading, unless ``mem_fraction_static`` says otherwise."""
    pool_tokens: int | None
    """The cache holds no more than that, or twice the context, unless it is asked to; ``None``: whatever fits."""


CPU = Device(running=64, step_tokens=2048, pool_share=0.5, pool_tokens=65_536)
GPU = Device(running=256, step_tokens=8192, pool_share=0.9, pool_tokens=None)


def usual(facts: Facts) -> Device:
    """For the device that a model runs on."""
    return CPU if facts.device == "cpu" else GPU


def running_of(args: EngineArgs, facts: Facts) -> int:
    """Requests that run at a time."""
    return usual(facts).running if args.max_running_requests is None else args.max_running_requests


def step_tokens_of(args: EngineArgs, facts: Facts) -> int:
    """Tokens that a step computes."""
    return usual(facts).step_tokens if args.max_prefill_tokens is None else args.max_prefill_tokens


def graphs_of(args: EngineArgs, facts: Facts) -> tuple[int, ...]:
    """Rows of the decoding steps that are captured: 1, 2, 4, then every eighth, every sixteenth from 128 on.

    Padding costs less than an eighth of a step then: of a step of many rows the weights, which it reads once, are most.
    """
    if facts.device == "cpu" or args.disable_cuda_graph:
        return ()
    most = running_of(args, facts) if args.cuda_graph_max_bs is None else args.cuda_graph_max_bs
    sizes = [1, 2, 4, *range(8, 128, 8), *range(128, most + 16, 16)]
    return (*(size for size in sizes if size < most), most)


def context_of(args: EngineArgs, facts: Facts) -> tuple[int, Origin]:
    """Positions of a sequence, and where that comes from. Raises ConfigError for more than the model has."""
    if args.context_length is None:
        return facts.max_context, "model"
    if args.context_length > facts.max_context:
        raise ConfigError(
            f"context_length={args.context_length} exceeds the {facts.max_context} positions of the model; "
            f"give context_length<={facts.max_context}"
        )
    return args.context_length, "argument"


def states_of(args: EngineArgs, facts: Facts) -> tuple[int, Origin]:
    """Recurrent states: as asked, else three a running request, in at most half of the cache's share of memory."""
    if not facts.bytes_per_state:
        if args.max_mamba_cache_size is not None:
            raise ConfigError(
                f"max_mamba_cache_size={args.max_mamba_cache_size}: this model has no recurrent layers; leave it out"
            )
        return 0, "model"
    share = usual(facts).pool_share if args.mem_fraction_static is None else args.mem_fraction_static
    free = facts.free_memory
    if args.max_mamba_cache_size is not None:
        if free is not None and args.max_mamba_cache_size * facts.bytes_per_state > free:
            raise ConfigError(
                f"max_mamba_cache_size={args.max_mamba_cache_size} needs "
                f"{args.max_mamba_cache_size * facts.bytes_per_state:,} bytes and {free:,} are free; "
                f"give max_mamba_cache_size<={free // facts.bytes_per_state}"
            )
        return args.max_mamba_cache_size, "argument"
    wanted = STATES_PER_REQUEST * running_of(args, facts)
    affordable = wanted if free is None else int(free * share / 2) // facts.bytes_per_state
    if affordable < 1:
        raise ConfigError(f"{free:,} bytes are free, too few for one recurrent state; free some memory")
    return (affordable, "hardware") if affordable < wanted else (wanted, "default")


def room_of(args: EngineArgs, facts: Facts, context: int) -> tuple[int, Origin, int]:
    """Pages, and frames for layers with a window: enough for all that may run, where that is less than the pages."""
    if facts.window is not None:
        per_request = -(-facts.window // args.page_size) + 2
        frames = WINDOWS_PER_REQUEST * running_of(args, facts) * per_request
        frames += -(-step_tokens_of(args, facts) // args.page_size)
        free = facts.free_memory
        left = None if free is None else free - frames * args.page_size * facts.window_bytes_per_token
        if left is None or free is None or left >= free // 2:
            others = facts.bytes_per_token - facts.window_bytes_per_token
            pages, origin = _pages(args, replace(facts, bytes_per_token=others, free_memory=left), context)
            if others == 0 and args.max_total_tokens is None:
                pages = min(pages, max(PAGES_PER_FRAME * frames, -(-2 * context // args.page_size)))
            if frames < pages:
                return pages, origin, frames
    return (*_pages(args, facts, context), 0)


def _pages(args: EngineArgs, facts: Facts, context: int) -> tuple[int, Origin]:
    """Pages of the pool: as asked, else enough for many requests, within the memory there is."""
    affordable = None
    share = usual(facts).pool_share if args.mem_fraction_static is None else args.mem_fraction_static
    if facts.free_memory is not None:
        affordable = int(facts.free_memory * share) // max(1, facts.bytes_per_token)
    if args.mem_fraction_static is not None and affordable is not None and affordable >= args.page_size:
        return affordable // args.page_size, "argument"
    if args.max_total_tokens is not None:
        hard = None if facts.free_memory is None else facts.free_memory // max(1, facts.bytes_per_token)
        if hard is not None and args.max_total_tokens > hard:
            raise ConfigError(
                f"max_total_tokens={args.max_total_tokens} needs {args.max_total_tokens * facts.bytes_per_token:,} "
                f"bytes and {facts.free_memory:,} are free; give max_total_tokens<={hard}"
            )
        return -(-args.max_total_tokens // args.page_size), "argument"
    most = usual(facts).pool_tokens
    if most is None and affordable is None:
        raise ConfigError("max_total_tokens: the device does not say how much memory it has; give a number")
    wanted = affordable if most is None and affordable is not None else max(most or 0, 2 * context)
    if affordable is not None and (affordable < wanted or most is None):
        if affordable < args.page_size:
            raise ConfigError(f"{facts.free_memory:,} bytes are free, too few for any KV cache; free some memory")
        return affordable // args.page_size, "hardware"
    return -(-wanted // args.page_size), "default"
