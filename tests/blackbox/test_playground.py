"""The playground in a real browser, on the server over the bundled model.

Needs a Chromium (``SGLITE_CHROMIUM`` or the path); ``make test-browser``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from browser import VARIABLE, Browser, Page, chromium, running
from playground_page import ERROR, EVIL, answered, say
from served import start

import sglite as sgl

FOUND = chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOUND is None, reason=f"no Chromium: put one on the path or name it in {VARIABLE}"),
]
KEY = "a key"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert FOUND is not None
    with running(FOUND) as browser:
        yield browser


@pytest.fixture(scope="module")
def urls() -> Iterator[tuple[str, str]]:
    """Of a server without a key, and of one with."""
    with sgl.Engine(dtype="float32", show_progress=False, num_threads=1, max_total_tokens=16_384) as engine:
        started = [start(engine), start(engine, api_key=KEY)]
        yield started[0][1], started[1][1]
        for server, _, thread in started:
            server.should_exit = True
            thread.join(10)


@pytest.fixture
def page(browser: Browser, urls: tuple[str, str]) -> Iterator[Page]:
    """The page of the server without a key; nothing may leave it, and nothing in it may break its policy."""
    page = browser.page(urls[0])
    page.until("document.querySelector('#model').value")
    page.type("#max-tokens", "60")
    page.type("#temperature", "0")
    yield page
    asked = [event["request"]["url"] for event in page.happened("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith(urls[0])] == []
    entries = [event["entry"] for event in page.happened("Log.entryAdded")]
    assert [entry["text"] for entry in entries if entry["source"] != "network"] == []
    assert page.happened("Runtime.exceptionThrown") == []


def figures(page: Page) -> dict[str, float]:
    names, values = page.texts("#figures dt"), page.texts("#figures dd")
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def sent(page: Page) -> dict[str, Any]:
    return dict(json.loads(page.js("document.querySelector('#sent').textContent")))


def test_a_conversation_streams_and_shows_what_it_cost(page: Page) -> None:
    page.type("#system", "Be kind.")
    say(page, "Tell me about ships.")
    answered(page)
    first = figures(page)
    assert page.text(".assistant .text") and first["prompt tokens"] == first["cached"] + first["computed"]
    assert first["forward passes"] > 0 and 0 < first["first token, ms (here)"] <= first["whole answer, ms (here)"]
    say(page, "And boats?")
    answered(page, 2)
    body = sent(page)
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][2]["content"] == page.texts(".assistant .text")[0]
    assert figures(page)["cached"] >= first["prompt tokens"]
    assert "cached" in page.text("#figures figcaption") and page.text("#status") == ""


def test_the_schema_box_gives_json_of_the_schema(page: Page) -> None:
    page.click("[data-example=schema]")
    say(page, "Somebody, please.")
    answered(page)
    value = json.loads(page.text(".assistant .text"))
    assert set(value) == {"name", "age"} and 0 <= value["age"] <= 120 and len(value["name"]) <= 40
    assert page.text(".foot").startswith("valid JSON") and figures(page)["forced"] > 0


def test_the_tool_box_shows_a_call_and_goes_on_with_its_result(page: Page) -> None:
    page.click("[data-example=tools]")
    assert page.text("#tools-note") == "get_weather" and "get_weather" in page.texts("#choice option")
    page.choose("#choice", "function:get_weather")
    page.type("#max-tokens", "200")
    say(page, "How is the weather in Oslo?")
    page.until(f"document.querySelector('.results') || {ERROR}")
    assert page.text(".error") == "" and page.text(".call code") == "get_weather"
    arguments = json.loads(page.text(".call pre"))
    assert set(arguments) == {"city", "unit"} and arguments["unit"] in ("celsius", "fahrenheit")
    page.choose("#choice", "none")
    page.type(".results textarea", "rain")
    page.click(".results button")
    answered(page, 2)
    call, result = sent(page)["messages"][-2:]
    assert result == {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "rain"}
    assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == arguments


def test_text_that_looks_like_markup_stays_text(page: Page) -> None:
    page.type("#schema", json.dumps({"const": EVIL}))
    page.type("#max-tokens", "200")
    say(page, EVIL)
    answered(page)
    assert json.loads(page.text(".assistant .text")) == EVIL and page.text(".user .text") == EVIL
    assert page.count("#log img, #log script") == 0 and page.js("typeof window.hacked") == "undefined"


def test_what_the_server_refuses_is_shown_in_its_words_and_the_message_comes_back(page: Page) -> None:
    page.type("#max-tokens", "-5")
    say(page, "Hello")
    page.until(ERROR)
    assert "max_tokens" in page.text(".error") and "HTTP 400" in page.text(".error")
    assert page.js("document.querySelector('#prompt').value") == "Hello" and page.count(".turn") == 0
    page.type("#max-tokens", "5")
    page.js("document.querySelector('#prompt').focus()")
    page.press("Enter")
    answered(page)
    assert [m["content"] for m in sent(page)["messages"]] == ["Hello"]


@pytest.mark.parametrize(("field", "text"), [("schema", "{"), ("tools", '[{"x": 1}]'), ("schema", "3")])
def test_a_setting_that_cannot_be_sent_is_not_sent(page: Page, field: str, text: str) -> None:
    page.type(f"#{field}", text)
    assert page.js(f"document.querySelector('#{field}').ariaInvalid") == "true" and page.text(f"#{field}-note")
    say(page, "Hello")
    assert page.text("#status") and page.js("document.activeElement.id") == field
    assert page.js("document.querySelector('#prompt').value") == "Hello" and page.count(".turn") == 0


def test_a_key_is_asked_for_used_and_kept_for_the_tab_only(browser: Browser, urls: tuple[str, str]) -> None:
    page = browser.page(urls[1])
    page.until("document.querySelector('#status').textContent")
    assert "API key" in page.text("#status") and page.js("document.activeElement.id") == "key"
    page.type("#key", "wrong")
    say(page, "Hello")
    page.until(ERROR)
    assert "HTTP 401" in page.text(".error")
    page.type("#key", KEY)
    page.until("document.querySelector('#model').value !== 'default'")
    page.type("#max-tokens", "5")
    say(page, "Hello")
    answered(page)
    assert page.js("Object.values({...sessionStorage}).join()") == KEY
    assert page.js("localStorage.length + document.cookie.length") == 0
    asked = [event["request"]["url"] for event in page.happened("Network.requestWillBeSent")]
    assert not any("key" in url for url in asked)
