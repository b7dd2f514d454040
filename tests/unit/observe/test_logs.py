"""Log lines: one for each request, in both formats, that no name can forge."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from sglite.runtime.observe.exchange import Exchange
from sglite.runtime.observe.logs import RequestLog, fields_of, formatter
from sglite.runtime.observe.observer import Observer
from sglite.runtime.protocol import Accounting, FinishReason, RequestOutput


def exchange_of(rid: str, observer: Observer) -> Exchange:
    exchange = observer.received("/generate", "POST", {"x-request-id": "h1"})
    saw = observer.begin(rid, [rid], exchange=exchange)
    numbers = Accounting(prompt_tokens=10, computed_prompt_tokens=10, forward_passes=3, queue_ms=2.0)
    saw(
        RequestOutput(request_id=rid, new_token_ids=[1, 2], finish_reason=FinishReason(type="stop"), accounting=numbers)
    )
    observer.answered(exchange, 200)
    return exchange


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("sglite.requests", logging.INFO, "", 0, "request", None, None)
    made.fields = fields
    return made


def test_a_line_has_the_numbers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sglite.requests")
    observer = Observer([RequestLog()])
    exchange_of("r1", observer)
    (line,) = [formatter("json").format(record) for record in caplog.records]
    found = json.loads(line)
    names = {"id": "h1", "route": "/generate", "status": 200, "rids": ["r1"], "finish": ["stop"], "level": "INFO"}
    numbers = {"prompt_tokens": 10, "completion_tokens": 2, "queue_ms": 2.0}
    assert {**names, **numbers, "message": "request"}.items() <= found.items()
    assert 0 <= found["first_token_ms"] <= found["total_ms"]
    text = formatter("text").format(caplog.records[0])
    assert "id=h1 route=/generate status=200 rids=r1" in text and "completion_tokens=2" in text


@pytest.mark.parametrize("name", ["a b=c", "x\ny", 'quote"', "rids=forged", "\u2028", "", "\x1b[31m"])
def test_no_name_forges_a_line_or_a_field(name: str) -> None:
    observer = Observer()
    fields = fields_of(exchange_of(name, observer))
    text = formatter("text").format(record(**fields))
    assert len(text.splitlines()) == 1 and "\x1b" not in text
    assert text.count(" rids=") == 1 and " rids=forged" not in text
    line = formatter("json").format(record(**fields))
    assert len(line.splitlines()) == 1 and json.loads(line)["rids"] == [name]


def test_a_request_without_generations_is_logged_only_if_it_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sglite.requests")
    observer = Observer([RequestLog()])
    for status in (200, 429):
        observer.answered(observer.received("/health", "GET", {}), status)
    assert [record.fields["status"] for record in caplog.records] == [429]


def test_errors_keep_their_trace_and_unknown_formats_are_refused() -> None:
    try:
        raise KeyError("why")
    except KeyError:
        made = logging.LogRecord("x", logging.ERROR, "", 0, "failed %s", ("it",), sys.exc_info())
    found = json.loads(formatter("json").format(made))
    assert found["message"] == "failed it" and "KeyError: 'why'" in found["error"]
    assert found["time"].endswith("Z")
    with pytest.raises(ValueError, match="log_format='xml'"):
        formatter("xml")
