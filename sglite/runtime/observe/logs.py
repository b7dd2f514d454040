"""What the server logs, as text or as one JSON object a line, and one line for every request that began generations.

    2030-01-02 03:04:05,678 INFO sglite.requests: request id=9f... route=/generate status=200 prompt_tokens=10 ...
    {"time": "2030-01-02T03:04:05.678Z", "level": "INFO", "logger": "sglite.requests", "message": "request", "id": ...}

Values that are not plain words are quoted, so that no name that a client chose can pretend to be a line or a field.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime, timezone
from typing import Any

from sglite.runtime.observe.exchange import Exchange

REQUESTS = "sglite.requests"
"""The logger of the lines about requests."""
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_PLAIN = re.compile(r"[A-Za-z0-9._:/@+-]+")
_SUMS = (
    "prompt_tokens", "cached_tokens", "computed_prompt_tokens", "forced_tokens", "forward_passes", "preemptions",
)  # fmt: skip
_MAX_IDS = 8


def set_up_logging(log_format: str, log_requests: bool, level: int = logging.WARNING) -> None:
    """Logs to standard error in ``log_format`` (``text`` or ``json``), unless the root logger has handlers already.

    ``log_requests`` shows the lines about requests whatever ``level`` is.
    """
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(formatter(log_format))
        root.addHandler(handler)
        root.setLevel(level)
    if log_requests:
        logging.getLogger(REQUESTS).setLevel(logging.INFO)


def formatter(log_format: str) -> logging.Formatter:
    """For a handler. ValueError for an unknown format."""
    if log_format == "json":
        return JsonLines()
    if log_format == "text":
        return TextLines(_TEXT)
    raise ValueError(f"log_format={log_format!r}: give 'text' or 'json'")


class TextLines(logging.Formatter):
    """The usual line, with the record's ``fields`` behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        shown = "".join(f" {name}={_word(value)}" for name, value in fields.items() if value is not None)
        return super().format(record) + shown


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the record's ``fields``, and the error's trace."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class RequestLog:
    """A follower of the observer: logs each complete exchange that began generations or was refused."""

    def __init__(self) -> None:
        self._logger = logging.getLogger(REQUESTS)

    def complete(self, exchange: Exchange) -> None:
        """See ``Follower``."""
        if exchange.tracked or (exchange.status or 0) >= 400:
            self._logger.info("request", extra={"fields": fields_of(exchange)})

    def close(self) -> None:
        """See ``Follower``."""


def fields_of(exchange: Exchange) -> dict[str, Any]:
    """What a log says of a request: names, numbers and times; sums over its generations."""
    tracked = exchange.tracked
    found: dict[str, Any] = {
        "id": exchange.id,
        "route": exchange.route,
        "status": exchange.status,
        "rids": list(dict.fromkeys(one.rid for one in tracked[:_MAX_IDS])),
        "generations": exchange.num_tracked,
        "finish": sorted({one.finish for one in tracked if one.finish}),
        "completion_tokens": sum(one.num_tokens for one in tracked),
        **{name: sum(getattr(one.accounting, name) for one in tracked) for name in _SUMS},
        "queue_ms": round(max((one.accounting.queue_ms for one in tracked), default=0.0), 3),
        "first_token_ms": _first_token_ms(exchange),
        "total_ms": _milliseconds(exchange, max((one.ended_at or 0.0 for one in tracked), default=0.0)),
    }
    return found


def _first_token_ms(exchange: Exchange) -> float | None:
    times = [one.first_at for one in exchange.tracked if one.first_at is not None]
    return round(1000 * (min(times) - exchange.began_at), 3) if times else None


def _milliseconds(exchange: Exchange, ended_at: float) -> float:
    return round(1000 * (max(ended_at, exchange.answered_at or 0.0) - exchange.began_at), 3)


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_word, value)) or "-"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
