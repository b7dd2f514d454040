"""A headless Chromium, spoken to in its own protocol over two pipes: enough to click, type and read a page.

Found by ``SGLITE_CHROMIUM`` or on the path; nothing is installed for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

VARIABLE = "SGLITE_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
    "--remote-debugging-pipe", "--window-size=1280,900",
)  # fmt: skip
# Chromium reads commands from 3 and writes answers to 4.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def chromium() -> str | None:
    """Where a Chromium is, if there is one."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A running Chromium. ``page`` opens a tab of its own profile."""

    def __init__(self, binary: str, profile: str) -> None:
        reads, child_writes = _pipe()
        child_reads, writes = _pipe()
        command = [sys.executable, "-c", LAUNCH, str(child_reads), str(child_writes), binary, *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(child_reads, child_writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_reads)
        os.close(child_writes)
        self._reads, self._writes = reads, writes
        self._rest = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        """What happened, of the kinds that pages have switched on."""

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command's result; ``RuntimeError`` for a refused one."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(time.monotonic() + 30)
            if answer.get("id") != self._number:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            else:
                return dict(answer["result"])

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._reads], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError("Chromium does not answer")
            piece = os.read(self._reads, 1 << 16)
            if not piece:
                raise RuntimeError("Chromium has ended")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def page(self, url: str, *, dark: bool = False, width: int = 1280, height: int = 900) -> Page:
        """A tab with ``url``, in a profile that no other tab shares."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.call("Emulation.setEmulatedMedia", features=theme)
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        page.call("Page.navigate", url=url)
        page.until("document.readyState === 'complete'")
        return page

    def close(self) -> None:
        """Ends it."""
        os.close(self._writes)
        os.close(self._reads)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command to this tab."""
        return self._browser.call(method, self._session, **params)

    def js(self, expression: str) -> Any:
        """The value of ``expression``, which may be a promise."""
        how = {"returnByValue": True, "awaitPromise": True, "allowUnsafeEvalBlockedByCSP": False}
        found = self.call("Runtime.evaluate", expression=expression, **how)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description", expression))
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 20.0) -> None:
        """Waits until ``expression`` is true."""
        end = time.monotonic() + seconds
        while not self.js(f"Boolean({expression})"):
            if time.monotonic() > end:
                raise AssertionError(f"{expression} is still not so; the page says: {self.text('body')[-1500:]}")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """What an element shows; nothing where there is none."""
        return str(self.js(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def texts(self, selector: str) -> list[str]:
        """What each of some elements shows."""
        return list(self.js(f"[...document.querySelectorAll({selector!r})].map((one) => one.innerText)"))

    def count(self, selector: str) -> int:
        """How many elements there are."""
        return int(self.js(f"document.querySelectorAll({selector!r}).length"))

    def type(self, selector: str, text: str) -> None:
        """Puts ``text`` in place of what a field has, as typing does."""
        self.js(f"(() => {{ const f = document.querySelector({selector!r}); f.focus(); f.select?.(); }})()")
        self.call("Input.insertText", text=text)
        self.js(f"document.querySelector({selector!r}).dispatchEvent(new Event('change', {{bubbles: true}}))")

    def choose(self, selector: str, value: str) -> None:
        """Chooses an option."""
        script = f"f.value = {value!r}; f.dispatchEvent(new Event('change', {{bubbles: true}}))"
        self.js(f"(() => {{ const f = document.querySelector({selector!r}); {script} }})()")

    def press(self, key: str) -> None:
        """A key, where the focus is."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9}
        text = {"text": "\r"} if key == "Enter" else {}
        told = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **told, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def click(self, selector: str) -> None:
        """A click."""
        self.js(f"document.querySelector({selector!r}).click()")

    def happened(self, method: str) -> list[dict[str, Any]]:
        """The events of one kind so far in this tab."""
        self.js("0")
        events = self._browser.events
        return [e["params"] for e in events if e.get("method") == method and e.get("sessionId") == self._session]

    def screenshot(self) -> str:
        """A picture of what is seen: PNG in base64."""
        return str(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def running(binary: str) -> Iterator[Browser]:
    """A Chromium with a profile of its own that is gone afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(binary, profile)
        try:
            yield browser
        finally:
            browser.close()


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not the numbers that Chromium wants."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends[0], ends[1]
