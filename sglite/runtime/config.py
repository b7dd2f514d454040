"""The engine's configuration: what a caller may say, and what comes of it once the model and the machine are known.

``EngineArgs`` are the caller's words. ``resolve`` turns them, once, into an ``EngineConfig`` in which every value is
final and knows its origin: default, argument, model or hardware. Nothing is changed afterwards.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal

from sglite.runtime.quant.methods import REQUESTS, WHILE_LOADING

Origin = Literal["default", "argument", "model", "hardware"]

DEFAULT_POOL_TOKENS = 65_536
"""Tokens the cache holds unless memory or the caller say otherwise."""
MEMORY_SHARE = 0.5
"""Share of the memory left after loading that the default pool may take, unless ``mem_fraction_static`` says more."""
STATES_PER_REQUEST = 3
"""Recurrent states a running request: its own, and room for as many saved ones twice."""
WINDOWS_PER_REQUEST = 2
"""Windows a running request in the layers that have one: its own, and room to keep as many for others."""
PAGES_PER_FRAME = 16
"""Bounds the pages of a model whose layers all have a window: they cost no memory by themselves."""
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
CPU_KERNELS = ("auto", "torch", "avx2", "avx512", "avx512_bf16", "avx512_amx")
GRAMMAR_BACKENDS = ("auto", "native", "xgrammar", "reference")
ONE_DEVICE = ("tp_size", "dp_size", "pp_size", "ep_size")
"""Degrees of parallelism that SGLang's callers spell out; there is one device so far."""
CPU_STEP_TOKENS = 2048
CACHE_DTYPES = ("auto", "bfloat16", "bf16", "float32", "int8")
POLICIES = ("program", "fcfs", "lpm", "dfs-weight")
"""Names of the scheduling policies, see ``engine/policy.py``."""


class ConfigError(ValueError):
    """An argument that cannot be used: its name, the value, what to give instead."""


@dataclass(frozen=True, kw_only=True)
class EngineArgs:
    """What ``Engine(...)`` takes; names as in SGLang's server arguments."""

    model_path: str | None = None
    """Folder or hub name; ``None``: the bundled model."""
    tokenizer_path: str | None = None
    chat_template: str | None = None
    """A file with the chat template, in place of the checkpoint's."""
    revision: str | None = None
    download_dir: str | None = None
    offline: bool = False
    load_format: Literal["auto", "dummy"] = "auto"
    dtype: str = "auto"
    device: str = "auto"
    num_threads: int | None = None
    cpu_kernels: Literal["auto", "torch", "avx2", "avx512", "avx512_bf16", "avx512_amx"] = "auto"
    """What computes: native kernels for an instruction set, or plain ``torch``; ``auto``: the fastest here."""
    context_length: int | None = None
    max_total_tokens: int | None = None
    """Tokens the KV cache holds."""
    mem_fraction_static: float | None = None
    """Share of the memory left after loading that the KV cache takes; ``None``: a fixed size, at most half of it."""
    max_mamba_cache_size: int | None = None
    """Recurrent states of hybrid models, of running requests and saved ones; ``None``: as many as memory allows, at
    most three a running request."""
    page_size: int = 16
    max_running_requests: int = 64
    max_queued_requests: int = 100_000
    max_prefill_tokens: int = CPU_STEP_TOKENS
    """Tokens computed a step, decoding rows included."""
    chunked_prefill_size: int | None = None
    """Tokens of one request a step; ``None``: whatever the step leaves."""
    schedule_policy: str = "program"
    """Order of requests of one priority; ``program``: least attained service of their programs, then arrival."""
    pin_budget: float = 0.5
    """Share of the KV cache that prefixes may lock which programs are going to continue, 0 to 1."""
    disable_radix_cache: bool = False
    disable_overlap_schedule: bool = False
    skip_tokenizer_init: bool = False
    random_seed: int = 0
    grammar_backend: Literal["auto", "native", "xgrammar", "reference"] = "auto"
    """What carries constraints out."""
    grammar_timeout_s: float = 10.0
    """A constraint that takes longer to compile is refused."""
    jump_forward: bool = True
    """Take over the tokens that a constraint forces; without, they are sampled one by one, with the same output."""
    is_embedding: bool = False
    """Where the checkpoint declares no pooling, its vectors are the normalised hidden states of last tokens."""
    trust_remote_code: bool = False
    kv_cache_dtype: str = "auto"
    """``auto``: the model's; ``bfloat16`` (or ``bf16``), ``float32``; ``int8``: quantised per token and KV head."""
    quantization: str | None = None
    """``int8``, ``int4``: what an unquantised model becomes while it is loaded; else, if anything, the checkpoint's."""
    tp_size: int = 1
    dp_size: int = 1
    pp_size: int = 1
    ep_size: int = 1
    log_level: str | None = None
    """Of the logger ``sglite``; ``None`` leaves it as it is."""
    show_progress: bool | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> EngineArgs:
        """From keyword arguments; an unknown one is refused with the nearest name."""
        known = [item.name for item in fields(cls)]
        for name, value in given.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise ConfigError(f"Engine has no argument {name} (given {value!r}); {hint}")
        return cls(**given)

    def __post_init__(self) -> None:
        for name in ("page_size", "max_running_requests", "max_prefill_tokens", "max_queued_requests"):
            self._positive(name)
        for name in (
            "context_length",
            "max_total_tokens",
            "chunked_prefill_size",
            "num_threads",
            "max_mamba_cache_size",
        ):
            if getattr(self, name) is not None:
                self._positive(name)
        if self.device not in ("auto", "cpu"):
            raise ConfigError(f"device={self.device!r} is not available; use device='cpu'")
        for name in ONE_DEVICE:
            if getattr(self, name) != 1:
                raise ConfigError(f"{name}={getattr(self, name)!r}: sglite runs on one device so far; leave it out")
        self._check_quantization()
        if self.log_level is not None and self.log_level not in LOG_LEVELS:
            raise ConfigError(f"log_level must be one of {', '.join(LOG_LEVELS)}, got {self.log_level!r}")
        budget = self.pin_budget
        if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 <= budget <= 1:
            raise ConfigError(f"pin_budget must be between 0 and 1, got {budget!r}")
        share = self.mem_fraction_static
        if share is not None and not (isinstance(share, float) and 0 < share < 1):
            raise ConfigError(f"mem_fraction_static must be between 0 and 1, got {share!r}")
        if share is not None and self.max_total_tokens is not None:
            raise ConfigError(f"mem_fraction_static={share} and max_total_tokens both set the cache's size; give one")
        if self.schedule_policy not in POLICIES:
            raise ConfigError(f"schedule_policy must be one of {', '.join(POLICIES)}, got {self.schedule_policy!r}")
        if not isinstance(self.is_embedding, bool):
            raise ConfigError(f"is_embedding must be True or False, got {self.is_embedding!r}")
        if self.trust_remote_code:
            raise ConfigError("trust_remote_code=True: sglite runs no code from checkpoints; leave it out")
        if self.cpu_kernels not in CPU_KERNELS:
            raise ConfigError(f"cpu_kernels must be one of {', '.join(CPU_KERNELS)}, got {self.cpu_kernels!r}")
        if self.grammar_backend not in GRAMMAR_BACKENDS:
            names = ", ".join(GRAMMAR_BACKENDS)
            raise ConfigError(f"grammar_backend must be one of {names}, got {self.grammar_backend!r}")
        if not isinstance(self.jump_forward, bool):
            raise ConfigError(f"jump_forward must be True or False, got {self.jump_forward!r}")
        if self.grammar_timeout_s <= 0:
            raise ConfigError(f"grammar_timeout_s must be positive, got {self.grammar_timeout_s}")

    def _check_quantization(self) -> None:
        if self.kv_cache_dtype not in CACHE_DTYPES:
            raise ConfigError(
                f"kv_cache_dtype={self.kv_cache_dtype!r}: there is no cache of that type; use {', '.join(CACHE_DTYPES)}"
            )
        if self.quantization not in (None, "auto", *WHILE_LOADING, *REQUESTS):
            raise ConfigError(
                f"quantization={self.quantization!r} is unknown; {' or '.join(WHILE_LOADING)} quantise a model while "
                f"it is loaded; else leave it out, or name what the checkpoint has: {', '.join(REQUESTS)}"
            )

    def _positive(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be a positive integer, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known once the model is loaded."""

    max_context: int
    vocab_size: int
    bytes_per_token: int
    free_memory: int | None
    dtype: str
    device: str
    kernels: str = ""
    bytes_per_state: int = 0
    """Of one sequence's recurrent state; 0: the model has none."""
    state_groups: tuple[str, ...] = ()
    """Names of the cache groups of recurrent layers."""
    window: int | None = None
    """Positions that layers with a sliding window see; ``None``: there are none."""
    window_bytes_per_token: int = 0
    """Of ``bytes_per_token``: what those layers take."""
    hidden_size: int = 0
    """Length of the vectors that pooling gives."""
    labels: tuple[str, ...] = ()
    """Of a classifier."""
    generates: bool = True
    """The model has an output head."""
    quantization: str | None = None
    """How the weights are quantised, for people."""
    cache_dtype: str | None = None
    """Of keys and values; ``None``: the model's."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Final values."""

    args: EngineArgs
    context_length: int
    num_pages: int
    page_size: int
    max_step_tokens: int
    max_running: int
    chunk_size: int | None
    overlap: bool
    grammar_backend: str
    jump_forward: bool
    pin_budget: float
    dtype: str
    device: str
    vocab_size: int
    kernels: str = ""
    """What computes, for people."""
    hidden_size: int = 0
    """Length of the vectors that pooling gives."""
    labels: tuple[str, ...] = ()
    """Of a classifier: what the numbers of those vectors are scores of."""
    generates: bool = True
    """The model has an output head; without, it makes vectors only."""
    quantization: str | None = None
    """How the weights are quantised, such as ``gptq, 4 bits``; what is not quantised is computed in ``dtype``."""
    cache_dtype: str = "auto"
    """Of keys and values."""
    num_states: int = 0
    """Recurrent states that fit, of running requests and saved ones."""
    state_groups: tuple[str, ...] = ()
    window: int | None = None
    """Positions that layers with a sliding window see."""
    num_frames: int = 0
    """Pages that fit in those layers; 0: all, they are kept like the others."""
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """Where each value comes from, by field name."""

    @property
    def max_total_tokens(self) -> int:
        """Tokens the KV cache holds."""
        return self.num_pages * self.page_size

    def describe(self) -> dict[str, Any]:
        """Values with their origins, for a report."""
        names = [item.name for item in fields(self) if item.name not in ("args", "origins")]
        return {name: {"value": getattr(self, name), "origin": self.origins[name]} for name in names}


def resolve(args: EngineArgs, facts: Facts) -> EngineConfig:
    """Settle everything. Raises ``ConfigError`` where the caller's words and the facts exclude each other."""
    defaults = {item.name: item.default for item in fields(EngineArgs) if item.default is not MISSING}

    def origin(name: str) -> Origin:
        return "default" if getattr(args, name) == defaults[name] else "argument"

    context, context_origin = _context(args, facts)
    states, states_origin = _states(args, facts)
    if facts.free_memory is not None:
        facts = replace(facts, free_memory=facts.free_memory - states * facts.bytes_per_state)
    pages, pages_origin, frames = _room(args, facts, context)
    return EngineConfig(
        args=args,
        context_length=context,
        num_pages=pages,
        page_size=args.page_size,
        max_step_tokens=args.max_prefill_tokens,
        max_running=args.max_running_requests,
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
        origins={
            "context_length": context_origin,
            "num_pages": pages_origin,
            "page_size": origin("page_size"),
            "max_step_tokens": origin("max_prefill_tokens"),
            "max_running": origin("max_running_requests"),
            "chunk_size": origin("chunked_prefill_size"),
            "overlap": origin("disable_overlap_schedule"),
            "grammar_backend": origin("grammar_backend"),
            "jump_forward": origin("jump_forward"),
            "pin_budget": origin("pin_budget"),
            "dtype": "model" if args.dtype == "auto" else "argument",
            "device": "hardware" if args.device == "auto" else "argument",
            "vocab_size": "model",
            "kernels": "hardware" if args.cpu_kernels == "auto" else "argument",
            "hidden_size": "model",
            "labels": "model",
            "generates": "model",
            "quantization": "argument" if args.quantization in WHILE_LOADING else "model",
            "cache_dtype": "model" if args.kv_cache_dtype == "auto" else "argument",
            "num_states": states_origin,
            "state_groups": "model",
            "window": "model",
            "num_frames": "default" if frames else "model",
        },
    )


def _context(args: EngineArgs, facts: Facts) -> tuple[int, Origin]:
    if args.context_length is None:
        return facts.max_context, "model"
    if args.context_length > facts.max_context:
        raise ConfigError(
            f"context_length={args.context_length} exceeds the {facts.max_context} positions of the model; "
            f"give context_length<={facts.max_context}"
        )
    return args.context_length, "argument"


def _states(args: EngineArgs, facts: Facts) -> tuple[int, Origin]:
    """Recurrent states: as asked, else three a running request, in at most half of the cache's share of memory."""
    if not facts.bytes_per_state:
        if args.max_mamba_cache_size is not None:
            raise ConfigError(
                f"max_mamba_cache_size={args.max_mamba_cache_size}: this model has no recurrent layers; leave it out"
            )
        return 0, "model"
    share = MEMORY_SHARE if args.mem_fraction_static is None else args.mem_fraction_static
    free = facts.free_memory
    if args.max_mamba_cache_size is not None:
        if free is not None and args.max_mamba_cache_size * facts.bytes_per_state > free:
            raise ConfigError(
                f"max_mamba_cache_size={args.max_mamba_cache_size} needs "
                f"{args.max_mamba_cache_size * facts.bytes_per_state:,} bytes and {free:,} are free; "
                f"give max_mamba_cache_size<={free // facts.bytes_per_state}"
            )
        return args.max_mamba_cache_size, "argument"
    wanted = STATES_PER_REQUEST * args.max_running_requests
    affordable = wanted if free is None else int(free * share / 2) // facts.bytes_per_state
    if affordable < 1:
        raise ConfigError(f"{free:,} bytes are free, too few for one recurrent state; free some memory")
    return (affordable, "hardware") if affordable < wanted else (wanted, "default")


def _room(args: EngineArgs, facts: Facts, context: int) -> tuple[int, Origin, int]:
    """Pages, and frames for layers with a window: enough for all that may run, where that is less than the pages."""
    if facts.window is not None:
        per_request = -(-facts.window // args.page_size) + 2
        frames = WINDOWS_PER_REQUEST * args.max_running_requests * per_request
        frames += -(-args.max_prefill_tokens // args.page_size)
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
    share = MEMORY_SHARE if args.mem_fraction_static is None else args.mem_fraction_static
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
    wanted = max(DEFAULT_POOL_TOKENS, 2 * context)
    if affordable is not None and affordable < wanted:
        if affordable < args.page_size:
            raise ConfigError(f"{facts.free_memory:,} bytes are free, too few for any KV cache; free some memory")
        return affordable // args.page_size, "hardware"
    return -(-wanted // args.page_size), "default"
