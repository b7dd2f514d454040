"""The names of all metrics, what each says, and where those of the engine come from.

Names are without the prefix; counters get ``_total`` behind. ``docs/operators.md`` says what moves each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Read = Callable[[Mapping[str, Any]], float | None]
"""Finds a number among the engine's statistics; ``None``: it does not say."""

REQUEST_COUNTERS = {
    "prompt_tokens": "Prompt tokens of requests, cached ones included; n outputs count their prompt n times.",
    "cached_tokens": "Prompt tokens that came from the cache.",
    "computed_tokens": "Prompt tokens that were computed.",
    "generation_tokens": "Output tokens.",
    "forced_tokens": "Output tokens that a constraint dictated, which took no sampling.",
    "forward_passes": "Steps that requests took part in, summed over requests.",
    "replayed_tokens": "Positions computed again on purpose.",
    "resampled_tokens": "Output tokens taken back and sampled anew because a value could not end right.",
    "masks_filled": "Bitmasks made for constraints.",
    "num_requests": "Requests that have ended, however; n outputs are n requests.",
    "num_aborted_requests": "Requests that were aborted: by the client, its going away, or a time limit.",
    "num_failed_requests": "Requests that failed inside the engine.",
    "num_refused_requests": "Requests that the engine refused: they could not be run as asked.",
    "num_so_requests": "Requests whose output was constrained.",
    "num_so_incomplete": "Constrained requests that ended before their value was complete.",
}
HISTOGRAMS = {
    "time_to_first_token_seconds": "From the end of the HTTP request to the first token.",
    "inter_token_latency_seconds": "Between tokens of one request; several at once share the time.",
    "e2e_request_latency_seconds": "From the end of the HTTP request to the end of an answered request.",
    "queue_time_seconds": "From the engine's taking a request in to its first step.",
}
OWN_GAUGES = {
    "gen_throughput": "Output tokens per second, over the last ten seconds.",
    "cache_hit_rate": "Share of prompt tokens that came from the cache, over the last minute.",
    "http_open_requests": "HTTP requests whose answers are not over.",
}
HTTP_REQUESTS = ("http_requests", "Answered HTTP requests by route and status; 499: the client was gone.")
REFUSED = ("http_refused", "HTTP requests answered with an error, by reason.")
RESTARTS = ("engine_restarts", "Times that the engine's process was started again.")
ENGINE_UP = ("engine_up", "1 while the engine runs, 0 while it starts or is dead.")
HEARTBEAT = ("engine_heartbeat_age_seconds", "Since the engine's step loop was last heard of; 0 while it rests.")
STATISTICS_AGE = ("engine_statistics_age_seconds", "Since the engine's own numbers, among these, were right.")
COMPILE_TIME = ("grammar_compilation_time_seconds", "Compiling constraints: how often and how long.")


def _at(*path: str) -> Read:
    def read(statistics: Mapping[str, Any]) -> float | None:
        found: Any = statistics
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, int | float) else None

    return read


def _available(statistics: Mapping[str, Any]) -> float | None:
    """Pages that are free or could be."""
    return _at("available_pages")(statistics)


def _tokens(read: Read) -> Read:
    """Pages as tokens."""

    def tokens(statistics: Mapping[str, Any]) -> float | None:
        pages, size = read(statistics), statistics.get("page_size")
        return None if pages is None or size is None else pages * size

    return tokens


def _used(statistics: Mapping[str, Any]) -> float | None:
    total, available = _at("pages", "total")(statistics), _available(statistics)
    return None if total is None or available is None else total - available


def _usage(statistics: Mapping[str, Any]) -> float | None:
    total, used = _at("pages", "total")(statistics), _used(statistics)
    return used / total if total and used is not None else None


def _evictable(statistics: Mapping[str, Any]) -> float | None:
    free, available = _at("pages", "free")(statistics), _available(statistics)
    return None if free is None or available is None else available - free


ENGINE_COUNTERS: dict[str, tuple[str, Read]] = {
    "steps": ("Steps of the engine.", _at("num_steps")),
    "step_tokens": ("Tokens that steps computed.", _at("step_tokens")),
    "late_steps": ("Steps that a constraint held up for more than 100 ms.", _at("late_steps")),
    "failed_steps": ("Steps that failed.", _at("failed_steps")),
    "num_retracted_requests": ("Requests sent back to the queue for want of memory.", _at("preemptions")),
    "evicted_pages": ("Cached pages given up for others.", _at("evicted_pages")),
    "pins_dropped": ("Pinned prefixes given up for want of memory.", _at("pins_dropped")),
    "page_mismatches": ("Pages taken out of use because their owners disagreed; must stay 0.", _at("page_mismatches")),
    "states_saved": ("Recurrent states kept to begin with.", _at("states", "saved")),
    "states_restored": ("Requests that began with a kept recurrent state.", _at("states", "restored")),
    "states_dropped": ("Kept recurrent states given up.", _at("states", "dropped")),
    "frames_taken_away": ("Pages that layers with a window gave up for others.", _at("frames", "taken_away")),
    "num_grammar": ("Constraints asked for.", _at("grammar", "submitted")),
    "num_grammar_cache_hit": ("Constraints that had been compiled before.", _at("grammar", "cache_hits")),
    "num_grammar_compiled": ("Constraints compiled.", _at("grammar", "compiled")),
    "num_grammar_refused": ("Constraints that compiling refused.", _at("grammar", "refused")),
    "num_grammar_timeout": ("Constraints whose compiling took too long.", _at("grammar", "timeouts")),
    "num_grammar_restarts": ("Compile processes that were killed or died.", _at("grammar", "restarts")),
}
ENGINE_GAUGES: dict[str, tuple[str, Read]] = {
    "num_running_reqs": ("Requests that the engine works on.", _at("num_running")),
    "num_queue_reqs": ("Requests that wait in the engine.", _at("num_waiting")),
    "num_grammar_queue_reqs": ("Of those, the ones whose constraint is being compiled.", _at("num_compiling")),
    "num_retracted_reqs": ("Requests sent back to the queue so far, under SGLang's name.", _at("preemptions")),
    "token_usage": ("Share of the cache that requests and pins need.", _usage),
    "num_used_tokens": ("Tokens' worth of cache that requests and pins need.", _tokens(_used)),
    "kv_used_tokens": ("The same, under SGLang's newer name.", _tokens(_used)),
    "kv_available_tokens": ("Tokens' worth of cache that nobody owns.", _tokens(_at("pages", "free"))),
    "kv_evictable_tokens": ("Tokens' worth of cache that is kept and could be given up.", _tokens(_evictable)),
    "max_total_num_tokens": ("Tokens that the cache holds.", _at("max_total_num_tokens")),
    "states_free": ("Recurrent states that nobody owns; hybrid models only.", _at("states", "free")),
    "states_held": ("Recurrent states of running requests.", _at("states", "held")),
    "states_cached": ("Recurrent states kept to begin with.", _at("states", "cached")),
    "frames_free": ("Pages' worth of memory of layers with a window that nobody owns.", _at("frames", "free")),
    "frames_used": ("The same, in the windows of running requests.", _at("frames", "used")),
    "frames_idle": ("The same, kept to begin with.", _at("frames", "idle")),
    "page_size": ("Tokens of a page of the cache.", _at("page_size")),
    "context_len": ("Longest sequence, in tokens.", _at("context_length")),
    "pins": ("Pinned prefixes.", _at("pins")),
    "pinned_pages": ("Pages that only pins keep.", _at("pinned_pages")),
}
