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
    return stream, include, include and always
