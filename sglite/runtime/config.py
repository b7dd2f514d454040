"""The engine's configuration: what a caller may say, and what comes of it once the model and the machine are known.

``EngineArgs`` are the caller's words. ``resolve.resolve`` turns them, once, into an ``EngineConfig`` in which every
value is final and knows its origin: default, argument, model or hardware. Nothing is changed afterwards.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sglite.runtime.quant.methods import REQUESTS, WHILE_LOADING

Origin = Literal["default", "argument", "model", "hardware"]

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
CPU_KERNELS = ("auto", "torch", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx")
ATTENTION_BACKENDS = ("auto", "triton", "flashinfer")
DEVICES = ("auto", "cpu", "cuda")
GRAMMAR_BACKENDS = ("auto", "native", "xgrammar", "reference")
ONE_DEVICE = ("tp_size", "dp_size", "pp_size", "ep_size")
"""Degrees of parallelism that SGLang's callers spell out; there is one device so far."""
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
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: a GPU where there is one."""
    num_threads: int | None = None
    cpu_kernels: Literal["auto", "torch", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx"] = "auto"
    """What computes: native kernels for an instruction set, or plain ``torch``; ``auto``: the fastest here."""
    attention_backend: Literal["auto", "triton", "flashinfer"] = "auto"
    """Whose attention kernels a GPU runs: sglite's own in ``triton``, or ``flashinfer``'s; ``auto``: the quicker ones,
    by a measurement at the start, where FlashInfer is installed and serves the model."""
    cascade_attention: str = "auto"
    """Steps in which a GPU reads pages that rows share once for all of them: those that save so many slots of a layer's
    cache, such as ``"8192"``; ``never``: none; ``auto``: those that it makes quicker, by a measurement at the start."""
    disable_cuda_graph: bool = False
    """Launch every kernel of a step by itself."""
    cuda_graph_max_bs: int | None = None
    """Rows of the largest decoding step that is captured; ``None``: all that may run."""
    enable_deterministic_inference: bool = False
    """On a GPU, a request's numbers do not depend on what else is computed; somewhat slower."""
    context_length: int | None = None
    max_total_tokens: int | None = None
    """Tokens the KV cache holds."""
    mem_fraction_static: float | None = None
    """Share of the memory left after loading that the KV cache takes; ``None``: on the CPU a fixed size, at most half
    of it, on a GPU nine tenths."""
    max_mamba_cache_size: int | None = None
    """Recurrent states of hybrid models, of running requests and saved ones; ``None``: as many as memory allows, at
    most three a running request."""
    page_size: int = 16
    max_running_requests: int | None = None
    """``None``: 64 on the CPU, 256 on a GPU."""
    max_queued_requests: int = 100_000
    max_prefill_tokens: int | None = None
    """Tokens computed a step, decoding rows included; ``None``: 2,048 on the CPU, 8,192 on a GPU."""
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
    weight_version: str = "default"
    """What the weights are called until others replace them."""
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
        for name in ("page_size", "max_queued_requests"):
            self._positive(name)
        for name in (
            "max_running_requests",
            "max_prefill_tokens",
            "cuda_graph_max_bs",
            "context_length",
            "max_total_tokens",
            "chunked_prefill_size",
            "num_threads",
            "max_mamba_cache_size",
        ):
            if getattr(self, name) is not None:
                self._positive(name)
        self._check_device()
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
        if not isinstance(self.weight_version, str) or not 0 < len(self.weight_version) <= 256:
            raise ConfigError(f"weight_version must be text of 1 to 256 characters, got {self.weight_version!r:.80}")
        if self.cpu_kernels not in CPU_KERNELS:
            raise ConfigError(f"cpu_kernels must be one of {', '.join(CPU_KERNELS)}, got {self.cpu_kernels!r}")
        if self.grammar_backend not in GRAMMAR_BACKENDS:
            names = ", ".join(GRAMMAR_BACKENDS)
            raise ConfigError(f"grammar_backend must be one of {names}, got {self.grammar_backend!r}")
        if not isinstance(self.jump_forward, bool):
            raise ConfigError(f"jump_forward must be True or False, got {self.jump_forward!r}")
        if self.grammar_timeout_s <= 0:
            raise ConfigError(f"grammar_timeout_s must be positive, got {self.grammar_timeout_s}")

    def _check_device(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError(f"device={self.device!r} is not available; use device='cpu', or cuda for an NVIDIA GPU")
        if self.attention_backend not in ATTENTION_BACKENDS:
            names = ", ".join(ATTENTION_BACKENDS)
            raise ConfigError(f"attention_backend must be one of {names}, got {self.attention_backend!r}")
        cascade = self.cascade_attention
        if not isinstance(cascade, str) or not (
            cascade in ("auto", "never") or re.fullmatch("[1-9][0-9]{0,8}", cascade)
        ):
            raise ConfigError(f"cascade_attention must be auto, never or a number of slots as text, got {cascade!r}")
        for name in ("disable_cuda_graph", "enable_deterministic_inference"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r}")

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
    """Bytes for caches; ``None``: nobody knows."""
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
    graph_sizes: tuple[int, ...] = ()
    """Rows of the decoding steps that are launched as one graph each."""
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
