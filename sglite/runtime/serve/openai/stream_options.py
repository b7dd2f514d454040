"""``stream`` and ``stream_options``."""

from __future__ import annotations

from sglite.runtime.serve.fields import Fields


def read_stream(fields: Fields) -> tuple[bool, bool, bool]:
    """Whether to stream, with usage at the end, with usage in every chunk, which means also at the end."""
    stream, options = fields.flag("stream"), fields.object("stream_options")
    if options is None:
        return stream, False, False
    if not stream:
        raise fields.wrong("stream_options", "needs stream=true")
    inner = Fields(options, "stream_options.")
    include, always = inner.flag("include_usage"), inner.flag("continuous_usage_stats")
    return stream, include, always and inner.raw("include_usage") is not False


def read_steps(fields: Fields) -> str:
    """``step_usage_chunks``: whether steps that show nothing have a chunk with the usage nevertheless: ``off``,
    ``first_token`` (until something is shown), ``all``."""
    options = fields.object("stream_options") or {}
    return Fields(options, "stream_options.").one_of("step_usage_chunks", ("off", "first_token", "all")) or "off"
