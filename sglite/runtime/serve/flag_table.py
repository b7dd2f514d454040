"""What the command line says about each field of ``EngineArgs`` and ``ServeOptions``: its group, its help, its names.

A field that is not listed is a flag all the same, in the group ``more``.
"""

from __future__ import annotations

GROUPS = {
    "server": "where it listens, how it starts and ends",
    "access": "who may ask, and for what",
    "model": "what is served, and under which name",
    "device": "where it runs",
    "memory": "the KV cache",
    "scheduling": "who is computed when",
    "constraints": "structured output",
    "observability": "logs, metrics, traces",
    "more": "everything else",
}
"""Groups of flags, in the order of ``--help all``."""

COMMON = (
    "host", "port", "api_key", "served_model_name", "tool_call_parser", "reasoning_parser", "chat_template",
    "context_length", "dtype", "max_total_tokens", "max_running_requests", "log_level", "log_requests",
)  # fmt: skip
"""Fields that ``--help`` shows; with ``--config`` and ``--print-config`` no more than 15 flags."""

HELP: dict[str, tuple[str, str]] = {
    "host": ("server", "address to listen on"),
    "port": ("server", "0: any free one, which is printed"),
    "parent": ("server", "end when this process, the parent, has ended"),
    "drain_s": ("server", "seconds that requests under way may take to end once the server is told to stop"),
    "restart_engine": ("server", "start the engine's process again when it dies"),
    "heartbeat_timeout_s": ("server", "seconds of silence after which the engine counts as dead"),
    "keep_alive_s": ("server", "seconds of silence after which a stream gets a comment, so that nobody closes it"),
    "playground": ("server", "serve the playground at /"),
    "api_key": ("access", "asked of every caller; better given as $SGLITE_API_KEY, since flags show in process lists"),
    "admin_key": ("access", "opens the admin routes; better given as $SGLITE_ADMIN_KEY"),
    "cors_origins": ("access", "origins whose pages may call, with commas between or given again; *: any"),
    "trust_request_chat_template": ("access", "requests may bring a chat template, which runs in the sandbox"),
    "model_path": ("model", "the model, where it is not named first; default: the bundled one"),
    "served_model_name": ("model", "what requests may call it, with commas between or given again; default: its path"),
    "tokenizer_path": ("model", "folder of the tokenizer, where it is not the model's"),
    "chat_template": ("model", "file with a chat template, in place of the model's"),
    "tool_call_parser": ("model", "format of tool calls; auto: the model's, none: calls are not read"),
    "reasoning_parser": ("model", "format of thinking; auto: the model's, none: thinking is content"),
    "sampling_defaults": ("model", "of requests that say nothing: model: what it recommends, openai: temperature 1"),
    "revision": ("model", "revision on the hub"),
    "download_dir": ("model", "where downloads are kept"),
    "offline": ("model", "use what is on this machine only"),
    "load_format": ("model", "dummy: random weights, only config.json is needed"),
    "context_length": ("model", "tokens of prompt and answer together, at most"),
    "skip_tokenizer_init": ("model", "not for servers: their routes take and give text"),
    "is_embedding": ("model", "where the checkpoint declares no pooling: vectors are those of last tokens, normalised"),
    "trust_remote_code": ("model", "refused: sglite runs no code from checkpoints"),
    "quantization": ("model", "int8, int4: quantise while loading; fp8, awq ...: what the checkpoint must be"),
    "weight_version": ("model", "what outputs say the weights are called, until others replace them"),
    "device": ("device", "where to compute: cpu, cuda; auto: a GPU where there is one"),
    "dtype": ("device", "of weights and activations: float32, bfloat16, float16"),
    "num_threads": ("device", "threads that compute, in all; default: a core each, or what the control group allows"),
    "tp_size": ("device", "tensor parallelism: 1 so far"),
    "dp_size": ("device", "data parallelism: 1 so far"),
    "pp_size": ("device", "pipeline parallelism: 1 so far"),
    "ep_size": ("device", "expert parallelism: 1 so far"),
    "cpu_kernels": ("device", "what computes on the CPU; torch: without native kernels, several times slower"),
    "attention_backend": ("device", "whose attention kernels a GPU runs: triton, flashinfer; auto: the quicker ones"),
    "cascade_attention": (
        "device",
        "steps in which a GPU reads pages that rows share once: slots that it must save, or never; auto: as measured",
    ),
    "disable_cuda_graph": ("device", "launch every kernel of a GPU's step by itself"),
    "cuda_graph_max_bs": ("device", "rows of the largest decoding step that is captured; default: all that may run"),
    "enable_deterministic_inference": ("device", "attention on a GPU adds up in an order that no batch changes"),
    "max_total_tokens": ("memory", "tokens that the KV cache holds"),
    "mem_fraction_static": ("memory", "share of the memory left after loading that the KV cache takes"),
    "max_mamba_cache_size": ("memory", "recurrent states of hybrid models, of running requests and saved ones"),
    "page_size": ("memory", "tokens of a page of the KV cache"),
    "kv_cache_dtype": ("memory", "of keys and values: bfloat16, float32, int8 (per token and head); auto: the model's"),
    "disable_radix_cache": ("memory", "forget prefixes at once"),
    "pin_budget": ("memory", "share of the KV cache that running programs may keep for their next calls"),
    "max_running_requests": ("scheduling", "requests computed at a time"),
    "max_queued_requests": ("scheduling", "requests that may wait; more are answered with 429"),
    "max_prefill_tokens": ("scheduling", "tokens computed a step, those of running answers included"),
    "chunked_prefill_size": ("scheduling", "tokens of one request a step, at most"),
    "schedule_policy": ("scheduling", "order of requests of one priority: program, fcfs, lpm, dfs-weight"),
    "disable_overlap_schedule": ("scheduling", "plan a step only when the one before has ended"),
    "random_seed": ("scheduling", "of sampling, where a request brings none"),
    "grammar_backend": ("constraints", "what carries constraints out"),
    "grammar_timeout_s": ("constraints", "seconds after which a constraint that is not compiled yet is refused"),
    "jump_forward": ("constraints", "take over the tokens that a constraint forces, without sampling them"),
    "log_level": ("observability", "of this server's own log"),
    "log_format": ("observability", "of log lines"),
    "log_requests": ("observability", "a log line for each request, without its texts"),
    "metrics_prefix": ("observability", "what names of metrics begin with; sglang: as its dashboards want them"),
    "otlp_traces_endpoint": ("observability", "URL that traces are sent to (OTLP over HTTP)"),
    "show_progress": ("observability", "show how far loading is; default: on a terminal"),
}
"""Field -> its group and what it does."""

ALIASES: dict[str, tuple[str, ...]] = {
    "model_path": ("--model",),
    "parent": ("--parent-pid",),
    "admin_key": ("--admin-api-key",),
    "cors_origins": ("--allowed-origins",),
    "drain_s": ("--drain", "--shutdown-timeout"),
    "tokenizer_path": ("--tokenizer",),
    "context_length": ("--max-model-len",),
    "num_threads": ("--threads",),
    "max_running_requests": ("--max-num-seqs",),
    "max_prefill_tokens": ("--max-num-batched-tokens",),
    "mem_fraction_static": ("--mem-fraction", "--gpu-memory-utilization"),
    "page_size": ("--block-size",),
    "schedule_policy": ("--scheduling-policy",),
    "random_seed": ("--seed",),
    "quantization": ("-q",),
    "tp_size": ("--tp", "-tp", "--tensor-parallel-size"),
    "dp_size": ("--dp", "-dp", "--data-parallel-size"),
    "pp_size": ("--pp", "-pp", "--pipeline-parallel-size"),
    "ep_size": ("--ep", "--expert-parallel-size"),
    "log_requests": ("--enable-log-requests",),
}
"""Field -> other spellings: SGLang's, vLLM's, llama.cpp's, short ones. The main one is the field's name."""

OFF: dict[str, str] = {
    "--no-enable-prefix-caching": "disable_radix_cache",
    "--no-async-scheduling": "disable_overlap_schedule",
    "--enforce-eager": "disable_cuda_graph",
}
"""vLLM's switches that turn off what a switch of ours disables: flag -> the field they set."""

AT_LOAD: dict[str, str] = {
    "context_length": "model",
    "dtype": "model",
    "chat_template": "model",
    "tokenizer_path": "model",
    "tool_call_parser": "model",
    "reasoning_parser": "model",
    "device": "hardware",
    "num_threads": "hardware",
    "max_total_tokens": "hardware",
    "grammar_backend": "hardware",
    "cpu_kernels": "hardware",
    "attention_backend": "hardware",
    "cascade_attention": "hardware",
    "cuda_graph_max_bs": "hardware",
    "max_running_requests": "hardware",
    "max_prefill_tokens": "hardware",
}
"""Fields whose default leaves the value to what is found when the model is loaded."""

SECRET = ("api_key", "admin_key")
"""Fields that are never shown."""

VARIABLES = {"api_key": "SGLITE_API_KEY", "admin_key": "SGLITE_ADMIN_KEY"}
"""Environment variables that are read where no flag says more."""
