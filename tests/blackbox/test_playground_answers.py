"""The playground in a real browser, with answers that the tests have written: stops, failures, widths, themes.

Needs a Chromium (``SGLITE_CHROMIUM`` or the path); ``make test-browser``.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import pytest
from browser import VARIABLE, Browser, chromium, running
from playground_page import CALL, ERROR, EVIL, Script, answered, say, serving
from served import settles

FOUND = chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOUND is None, reason=f"no Chromium: put one on the path or name it in {VARIABLE}"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert FOUND is not None
    with running(FOUND) as browser:
        yield browser


@pytest.fixture(scope="module")
def _script() -> Iterator[Script]:
    with serving(Script()) as script:
        yield script


@pytest.fixture
def script(_script: Script) -> Script:
    _script.bodies.clear()
    _script.gone = 0
    return _script


def test_thoughts_are_folded(browser: Browser, script: Script) -> None:
    script.says(
        {"reasoning_content": "Let me "}, {"reasoning_content": "see."}, {"content": "Yes."}, {"finish": "stop"}
    )
    page = browser.page(script.url)
    say(page, "Well?")
    answered(page)
    assert page.text(".assistant > .text") == "Yes." and page.text(".thought summary") == "Thoughts"
    assert page.js("document.querySelector('.thought').open") is False
    page.click(".thought summary")
    assert page.text(".thought p") == "Let me see."
    say(page, "Sure?")
    answered(page, 2)
    assert script.bodies[1]["messages"][1] == {"role": "assistant", "content": "Yes."}


def test_markup_stays_text_wherever_it_comes(browser: Browser, script: Script) -> None:
    call = {"index": 0, "id": EVIL, "function": {"name": EVIL, "arguments": EVIL}}
    script.says({"reasoning": EVIL}, {"content": EVIL}, {"tool_calls": [call]}, {"finish": "tool_calls"})
    page = browser.page(script.url)
    page.until("document.querySelector('#model').value")
    page.type("#tools", json.dumps([{"name": EVIL}]))
    say(page, EVIL)
    page.until("document.querySelector('.results')")
    script.says(b"data: %s\n\n" % json.dumps({"error": {"message": EVIL}}).encode())
    page.click(".results button")
    page.until(ERROR)
    assert page.text(".call code") == page.text(".call pre") == page.text(".error") == EVIL
    assert page.texts("#model option") == [EVIL] and page.text("#tools-note") == EVIL
    assert page.count("body img, body script") == 0 and page.js("typeof window.hacked") == "undefined"


def test_the_browser_itself_refuses_to_make_markup_of_text(browser: Browser, script: Script) -> None:
    page = browser.page(script.url)
    for what in ("document.body.innerHTML = 'x'", "document.body.setAttribute('onclick', 'x')", "eval('1')"):
        assert page.js(f"try {{ {what}; 'done' }} catch (error) {{ error.name }}") in ("TypeError", "EvalError"), what


@pytest.mark.parametrize("how", ["button", "key"])
def test_an_answer_can_be_stopped_and_the_server_learns_of_it(browser: Browser, script: Script, how: str) -> None:
    script.says({"content": "One two"}, asyncio.Event())
    page = browser.page(script.url)
    say(page, "Count.")
    page.until("document.querySelector('.assistant .text')?.innerText.startsWith('One two')")
    assert page.text("#status") == "answering" and page.count("#send:not([hidden])") == 0
    if how == "button":
        page.click("#stop")
    else:
        page.press("Escape")
    answered(page)
    assert settles(lambda: script.gone == 1) and page.text(".foot").startswith("stopped")
    script.says({"content": "Three."}, {"finish": "stop"})
    say(page, "Go on.")
    answered(page, 2)
    assert [m["content"] for m in script.bodies[1]["messages"]] == ["Count.", "One two", "Go on."]


def test_a_new_chat_ends_the_old_one(browser: Browser, script: Script) -> None:
    script.says({"content": "One"}, asyncio.Event())
    page = browser.page(script.url)
    say(page, "Count.")
    page.until("document.querySelector('.assistant')")
    page.click("#fresh")
    assert settles(lambda: script.gone == 1) and page.count(".turn") == 0
    script.says({"content": "Hi."}, {"finish": "stop"})
    say(page, "Hello")
    answered(page)
    assert [m["content"] for m in script.bodies[1]["messages"]] == ["Hello"]


def test_arguments_are_shown_while_they_come(browser: Browser, script: Script) -> None:
    script.says(
        {"tool_calls": [CALL]}, {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1'}}]}, asyncio.Event()
    )
    page = browser.page(script.url)
    say(page, "Add.")
    page.until("document.querySelector('.call pre')?.innerText === '{\"a\": 1'")
    assert page.text(".call code") == "add" and page.count(".results") == 0
    page.click("#stop")
    answered(page)
    script.says({"content": "Fine."}, {"finish": "stop"})
    say(page, "Then not.")
    answered(page, 2)
    assert "tool_calls" not in script.bodies[1]["messages"][1]


def test_several_calls_have_a_result_each(browser: Browser, script: Script) -> None:
    second = {"index": 1, "id": "c2", "function": {"name": "sub", "arguments": "{}"}}
    script.says({"tool_calls": [CALL]}, {"tool_calls": [second]}, {"finish": "tool_calls"})
    page = browser.page(script.url)
    say(page, "Add.")
    page.until("document.querySelector('.results')")
    assert page.js("document.querySelector('#send').disabled") is True
    page.js("document.querySelectorAll('.results textarea').forEach((field, index) => { field.value = `r${index}`; })")
    script.says({"content": "Done."}, {"finish": "stop"})
    page.click(".results button")
    answered(page, 2)
    results = [(m["tool_call_id"], m["content"]) for m in script.bodies[1]["messages"] if m["role"] == "tool"]
    assert results == [("c1", "r0"), ("c2", "r1")] and page.js("document.querySelector('#send').disabled") is False


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ([b'data: {"error": {"message": "the engine died"}}\n\n'], "the engine died"),
        ([], "closed before the answer's end"),
        ([b"data: {broken\n\n"], "JSON"),
    ],
)
def test_an_answer_that_breaks_off_says_so(browser: Browser, script: Script, chunks: list[bytes], said: str) -> None:
    script.says({"content": "Once upon"}, *chunks, done=False)
    page = browser.page(script.url)
    say(page, "Tell.")
    page.until(ERROR)
    assert said in page.text(".error") and page.text(".foot") == "broken off"
    assert (
        page.text(".assistant .text") == "Once upon" and page.js("document.querySelector('#prompt').value") == "Tell."
    )


def test_events_are_read_the_same_however_they_are_cut(browser: Browser, script: Script) -> None:
    page = browser.page(script.url)
    stream = ': idle\n\ndata: {"a": "ü😀"}\r\n\r\nevent: x\ndata:1\r\ndata: 2\r\rdata: [DONE]\n\n'
    found = page.js(
        """(async () => {
          const { EventReader, eventsOf } = await import("/playground/events.js");
          const text = TEXT;
          const whole = new EventReader().feed(text);
          const wrong = [];
          for (let i = 0; i <= text.length; i++) for (let j = i; j <= text.length; j++) {
            const reader = new EventReader();
            const got = [text.slice(0, i), text.slice(i, j), text.slice(j)].flatMap((piece) => reader.feed(piece));
            if (JSON.stringify(got) !== JSON.stringify(whole)) wrong.push([i, j]);
          }
          const bytes = new TextEncoder().encode(text);
          const single = new ReadableStream({
            start(to) { bytes.forEach((byte) => to.enqueue(new Uint8Array([byte]))); to.close(); },
          });
          const bytewise = [];
          for await (const data of eventsOf(single)) bytewise.push(data);
          return { whole, wrong, bytewise };
        })()""".replace("TEXT", json.dumps(stream))
    )
    assert found["whole"] == found["bytewise"] == ['{"a": "ü😀"}', "1\n2", "[DONE]"] and found["wrong"] == []


# --- for everybody ----------------------------------------------------------------------------------------------


def test_everything_is_reached_by_keyboard_and_has_a_name(browser: Browser, script: Script) -> None:
    script.says({"tool_calls": [CALL]}, {"finish": "tool_calls"})
    page = browser.page(script.url)
    say(page, "Hello")
    page.until("document.querySelector('.results')")
    page.js("document.activeElement.blur()")
    reached = []
    for _ in range(60):
        page.press("Tab")
        reached.append(page.js("document.activeElement.id || document.activeElement.textContent.trim()"))
        if reached.count(reached[0]) > 1:
            break
    wanted = {
        "model",
        "fresh",
        "key",
        "system",
        "temperature",
        "schema",
        "tools",
        "choice",
        "parallel",
        "log",
        "prompt",
    }
    assert wanted | {"Settings", "Request", "Send result"} <= set(reached)
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "combobox", "checkbox", "spinbutton", "DisclosureTriangle", "log", "article"}
    named = [
        (n["role"]["value"], n.get("name", {}).get("value")) for n in nodes if n.get("role", {}).get("value") in roles
    ]
    assert len(named) > 12 and [one for one in named if not one[1]] == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_both_themes(browser: Browser, script: Script, dark: bool) -> None:
    page = browser.page(script.url, dark=dark)
    names = ["page", "panel", "sunk", "text", "faint", "accent", "on-accent", "mine", "wrong", "wrong-page"]
    colours = page.js(
        "(() => { const style = getComputedStyle(document.documentElement);"
        f"return Object.fromEntries({names!r}.map((n) => [n, style.getPropertyValue('--' + n).trim()])); }})()"
    )
    pairs = [("text", p) for p in ("page", "panel", "sunk", "mine")] + [("faint", p) for p in ("page", "panel")]
    pairs += [("accent", "panel"), ("on-accent", "accent"), ("wrong", "wrong-page"), ("wrong", "panel")]
    assert {pair: r for pair in pairs if (r := contrast(colours[pair[0]], colours[pair[1]])) < 4.5} == {}
    assert (luminance(colours["page"]) < 0.1) is dark


def luminance(colour: str) -> float:
    parts = [int(part, 16) / 255 for part in re.findall("[0-9a-f]{2}", colour)]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [360, 800, 1000, 1600])
def test_it_fits_every_width(browser: Browser, script: Script, width: int) -> None:
    script.says({"content": "long" * 300}, {"tool_calls": [CALL]}, {"finish": "tool_calls"})
    page = browser.page(script.url, width=width)
    say(page, "word" * 100)
    page.until("document.querySelector('.results')")
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.js("document.querySelector('#settings').open") is (width >= 960)
    assert page.js("document.querySelector('#prompt').getBoundingClientRect().width") > 150
