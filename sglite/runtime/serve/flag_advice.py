"""Flags of SGLang and vLLM that are not ours: what to use instead, and which are taken because they ask for nothing.

Facts are from SGLang 0.5.23 (``srt/arg_groups/fields``) and vLLM (``engine/arg_utils.py``,
``entrypoints/openai/cli_args.py``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

ACCEPTED: dict[str, str] = {
    "--enable-auto-tool-choice": "calls of tools are read whenever the model's format is known",
    "--enable-prefix-caching": "prefixes are always cached; --disable-radix-cache turns it off",
    "--enable-chunked-prefill": "prompts are always computed in chunks as they fit; --chunked-prefill-size bounds one",
    "--enable-mixed-chunk": "prompts and answers always share a step",
    "--enable-metrics": "/metrics is always there",
    "--enable-cache-report": "usage always says how many tokens were cached",
    "--enable-prompt-tokens-details": "usage always says how many tokens were cached",
    "--enable-priority-scheduling": "priorities are always honoured",
    "--enable-request-id-headers": "answers always carry a request id",
    "--enable-reasoning": "thinking is told from the answer whenever the model's format is known",
    "--enable-streaming-session": "any session streams that is opened with streaming=true",
    "--async-scheduling": "steps always overlap with their planning; --disable-overlap-schedule turns it off",
    "--skip-server-warmup": "there is no warm-up",
    "--disable-log-requests": "requests are logged with --log-requests only",
    "--disable-log-stats": "nothing is logged at intervals",
}
"""Switches that are taken and change nothing, with the reason, which is printed."""

NOTES: dict[str, str] = {
    "--gpu-memory-utilization": "is --mem-fraction-static here: the share of the memory left after loading that the KV "
    "cache takes",
}
"""Flags of ours by another name whose meaning differs a little; printed when they are used."""

_TLS = "sglite speaks plain HTTP; put a reverse proxy that speaks TLS before it"
_ONE_MACHINE = "sglite runs on one machine and one device so far; leave it out"
_DEVICE = "sglite chooses its kernels by the device; leave it out"
_NO_LORA = "adapters are not supported yet; merge the adapter into the checkpoint"
_NO_DRAFT = "speculative decoding is not supported yet; leave it out"
_NO_MEDIA = "only text is supported yet; leave it out"
_NO_CACHE_SCALES = "the KV cache is not quantised and needs no scales; leave it out"
_NO_MODELOPT = "models are not quantised while they are loaded; give a quantised checkpoint"
_REQUEST = "send it with the request"

_INSTEAD: dict[str, str] = {
    "--guided-decoding-backend": "use --grammar-backend",
    "--structured-outputs-backend": "use --grammar-backend",
    "--structured-outputs-config": "use --grammar-backend",
    "--constrained-json-whitespace-pattern": "whitespace in JSON is always bounded; leave it out",
    "--constrained-json-disable-any-whitespace": "whitespace in JSON is always bounded; leave it out",
    "--constrained-json-max-whitespace-cnt": "whitespace in JSON is always bounded; leave it out",
    "--uvicorn-log-level": "use --log-level",
    "--log-level-http": "use --log-level",
    "--log-requests-format": "use --log-format",
    "--log-requests-level": "requests are logged without their texts; use --log-requests",
    "--log-requests-target": "logs go to standard error; use --log-requests and redirect it",
    "--enable-log-outputs": "texts are never logged; use --log-requests",
    "--max-log-len": "texts are never logged; use --log-requests",
    "--disable-uvicorn-access-log": "there is no access log unless --log-requests asks for one",
    "--watchdog-timeout": "use --heartbeat-timeout-s",
    "--soft-watchdog-timeout": "use --heartbeat-timeout-s",
    "--enable-trace": "use --otlp-traces-endpoint URL",
    "--collect-detailed-traces": "use --otlp-traces-endpoint URL",
    "--radix-eviction-policy": "the least recently used prefixes go first; --pin-budget keeps those of programs",
    "--num-gpu-blocks-override": "use --max-total-tokens (blocks times tokens of a block)",
    "--swap-space": "use --max-total-tokens; nothing is swapped",
    "--kv-cache-memory-bytes": "use --max-total-tokens or --mem-fraction-static",
    "--cpu-offload-gb": "weights stay where they are computed; use a smaller model or dtype",
    "--schedule-conservativeness": "use --max-running-requests or --max-total-tokens",
    "--prefill-max-requests": "use --max-running-requests or --max-prefill-tokens",
    "--max-prefill-batch-size": "use --max-prefill-tokens",
    "--stream-interval": f"it is a sampling parameter; {_REQUEST}",
    "--preferred-sampling-params": _REQUEST,
    "--generation-config": "use --sampling-defaults, where model is vLLM's auto and openai its vllm",
    "--override-generation-config": _REQUEST,
    "--default-chat-template-kwargs": "send chat_template_kwargs with the request",
    "--max-logprobs": "the bound is fixed, see docs/server.md; leave it out",
    "--logits-processors": "requests and flags bring no code; use a constraint, logit_bias or bad words",
    "--enable-custom-logit-processor": "requests bring no code; use a constraint or logit_bias",
    "--tool-parser-plugin": "flags bring no code; use --tool-call-parser",
    "--reasoning-parser-plugin": "flags bring no code; use --reasoning-parser",
    "--middleware": "flags bring no code; put a reverse proxy before it",
    "--tool-server": "sglite runs no tools itself; give them to a program, see docs/tools.md",
    "--hf-chat-template-name": "give the template's file to --chat-template",
    "--completion-template": "send the rendered prompt with the request",
    "--chat-template-content-format": "both forms of content are always taken; leave it out",
    "--response-role": "answers are the assistant's; leave it out",
    "--root-path": "have the reverse proxy strip the prefix",
    "--fastapi-root-path": "have the reverse proxy strip the prefix",
    "--uds": "use --host and --port",
    "--allowed-methods": "use --cors-origins; the methods follow from the routes",
    "--allowed-headers": "use --cors-origins; the headers follow from the routes",
    "--allow-credentials": "use --cors-origins; keys are sent as headers, not as cookies",
    "--disable-fastapi-docs": "with --api-key the docs need the key too",
    "--tokenizer-mode": "tokenizers have one mode; leave it out",
    "--tokenizer-backend": "tokenizers have one mode; leave it out",
    "--tokenizer-revision": "use --tokenizer-path FOLDER",
    "--tokenizer-worker-num": "text is handled in the server's own process; leave it out",
    "--detokenizer-worker-num": "text is handled in the server's own process; leave it out",
    "--api-server-count": "text is handled in the server's own process; leave it out",
    "--code-revision": "sglite runs no code from checkpoints; use --revision",
    "--config-format": "checkpoints have the layout of Hugging Face; leave it out",
    "--model-impl": "models are sglite's own; leave it out",
    "--hf-overrides": "edit config.json in a copy of the model's folder",
    "--json-model-override-args": "edit config.json in a copy of the model's folder",
    "--rope-scaling": "edit config.json in a copy of the model's folder",
    "--model-loader-extra-config": "weights are read from safetensors only; leave it out",
    "--custom-weight-loader": "flags bring no code; weights are read from safetensors only",
    "--ignore-patterns": "weights are read from safetensors only; leave it out",
    "--task": "the checkpoint declares what it is for; use --is-embedding where it declares no pooling",
    "--runner": "the checkpoint declares what it is for; use --is-embedding where it declares no pooling",
    "--convert": "the checkpoint declares what it is for; use --is-embedding where it declares no pooling",
    "--enable-sleep-mode": "stop the server to free its memory",
    "--enable-memory-saver": "stop the server to free its memory",
    "--decode-log-interval": "read /metrics, or /server_info",
    "--show-hidden-metrics-for-version": "read /metrics",
    "--crash-dump-folder": "requests are not written down; use --log-requests",
    "--file-storage-path": "there is no store of files",
    "--export-metrics-to-file": "read /metrics",
    "--allow-auto-truncate": "a prompt that is too long is refused; shorten it in the request",
    "--enable-torch-compile": _DEVICE,
    "--compilation-config": _DEVICE,
    "--disable-cascade-attn": "use --cascade-attention never",
    "-O": _DEVICE,
    "--sampling-backend": _DEVICE,
    "--enable-p2p-check": _ONE_MACHINE,
    "--distributed-executor-backend": _ONE_MACHINE,
    "--nnodes": _ONE_MACHINE,
    "--node-rank": _ONE_MACHINE,
    "--nccl-port": _ONE_MACHINE,
    "--base-gpu-id": _ONE_MACHINE,
    "--load-balance-method": _ONE_MACHINE,
    "--quantization-param-path": _NO_CACHE_SCALES,
    "--calculate-kv-scales": _NO_CACHE_SCALES,
    "--qlora-adapter-name-or-path": _NO_LORA,
    "--num-speculative-tokens": _NO_DRAFT,
    "--enable-multimodal": _NO_MEDIA,
    "--allowed-local-media-path": _NO_MEDIA,
    "--allowed-media-domains": _NO_MEDIA,
    "--language-only": _NO_MEDIA,
    "--interleave-mm-strings": _NO_MEDIA,
    "--disable-chunked-mm-input": _NO_MEDIA,
}  # fmt: skip
_INSTEAD_OF_ANY: dict[str, str] = {
    "--ssl-": _TLS, "--enable-ssl-": _TLS, "--enable-http2": _TLS, "--http2-": _TLS,
    "--speculative-": _NO_DRAFT, "--spec-": _NO_DRAFT, "--ngram-": _NO_DRAFT,
    "--lora-": _NO_LORA, "--enable-lora": _NO_LORA, "--max-lora": _NO_LORA, "--max-cpu-loras": _NO_LORA,
    "--fully-sharded-loras": _NO_LORA, "--max-loaded-loras": _NO_LORA,
    "--mm-": _NO_MEDIA, "--limit-mm-": _NO_MEDIA, "--media-": _NO_MEDIA, "--enable-prefix-mm-": _NO_MEDIA,
    "--skip-mm-": _NO_MEDIA, "--disable-mm-": _NO_MEDIA, "--encoder-": _NO_MEDIA,
    "--disaggregation-": _ONE_MACHINE, "--kv-transfer-": _ONE_MACHINE, "--dist-": _ONE_MACHINE,
    "--data-parallel-": _ONE_MACHINE, "--enable-dp-": _ONE_MACHINE, "--enable-expert-": _ONE_MACHINE,
    "--enable-eplb": _ONE_MACHINE, "--eplb-": _ONE_MACHINE, "--decode-context-": _ONE_MACHINE, "--ray-": _ONE_MACHINE,
    "--attention-": _DEVICE, "--decode-attention-": _DEVICE, "--prefill-attention-": _DEVICE, "--moe-": _DEVICE,
    "--cuda-graph-": _DEVICE, "--torch-compile-": _DEVICE, "--flashinfer-": _DEVICE, "--triton-": _DEVICE,
    "--enable-flashinfer-": _DEVICE, "--mamba-": _DEVICE, "--linear-attn-": _DEVICE, "--disable-custom-all-": _DEVICE,
    "--modelopt-": _NO_MODELOPT, "--hicache-": "the KV cache has one tier so far; use --max-total-tokens",
    "--enable-hierarchical-": "the KV cache has one tier so far; use --max-total-tokens",
    "--enable-hicache": "the KV cache has one tier so far; use --max-total-tokens",
    "--enable-lmcache": "the KV cache has one tier so far; use --max-total-tokens",
    "--grpc-": "sglite speaks HTTP only", "--smg-": "sglite speaks HTTP only",
    "--h11-": "bodies and headers are bounded, see docs/server.md; leave it out",
    "--weight-loader-": "weights are read from safetensors only; leave it out",
    "--bucket-": "the buckets of metrics are fixed; leave it out",
}  # fmt: skip


def instead(flag: str, known: Iterable[str]) -> str:
    """One line on a flag that does not exist: what to use instead, or the nearest of ``known``."""
    if flag in _INSTEAD:
        return f"{flag} is not supported: {_INSTEAD[flag]}"
    for beginning, said in _INSTEAD_OF_ANY.items():
        if flag.startswith(beginning):
            return f"{flag} is not supported: {said}"
    near = difflib.get_close_matches(flag, list(known), 1, 0.7)
    return f"there is no flag {flag}" + (f"; did you mean {near[0]}?" if near else "; --help all lists them")
