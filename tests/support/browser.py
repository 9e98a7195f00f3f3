"""A real Chromium driven over its DevTools protocol, with a person's actions: keys, clicks, looking at the page."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-port=0",
)
PATIENCE_S = 30.0
KEYS = {
    "ArrowLeft": ("ArrowLeft", "ArrowLeft", 37),
    "ArrowRight": ("ArrowRight", "ArrowRight", 39),
    "Enter": ("Enter", "Enter", 13),
    "Escape": ("Escape", "Escape", 27),
}


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; events that come meanwhile are kept."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, url: str) -> None:
        """Go to an address."""
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What an expression gives on the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait for an expression to be true."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := self.value(expression):
                return found
            time.sleep(0.02)
        text = self.value("document.body.innerText")
        raise AssertionError(f"never true: {expression}; the page says:\n{text}")

    def text(self, selector: str) -> str:
        """The visible text of an element."""
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key, as a keyboard sends it: a letter, a digit or a name of `KEYS`."""
        name, code, number = KEYS.get(
            key, (key, f"Digit{key}" if key.isdigit() else f"Key{key.upper()}", ord(key[0].upper()))
        )
        event = {"key": name, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 if shift else 0}
        # Without a text the key writes nothing; Enter sends a form by it.
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else None)
        self.send("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.send("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """The middle of an element, scrolled into view."""
        where = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        at = {"x": where[0], "y": where[1], "button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type="mousePressed", **at)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def resize(self, width: int, height: int) -> None:
        """The viewport, in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path) -> None:
        """What is in the viewport, as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the page logged as errors, the browser's own about blocked scripts among them."""
        self.value("0")
        entries = [each["params"]["entry"] for each in self.events if each["method"] == "Log.entryAdded"]
        thrown = [each["params"] for each in self.events if each["method"] == "Runtime.exceptionThrown"]
        return [entry["text"] for entry in entries if entry["level"] == "error"] + [str(each) for each in thrown]


class Browser:
    """A Chromium; each person has a profile of their own."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._control = connect(f"ws://127.0.0.1:{port}{path}", max_size=None)
        self._numbers = itertools.count(1)

    def person(self) -> Page:
        """A tab in a fresh profile: no cookie, no storage of anybody else."""
        context = self._ask("Target.createBrowserContext")["browserContextId"]
        target = self._ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        return Page(connect(f"ws://127.0.0.1:{self._port}/devtools/page/{target}", max_size=None))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._control.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._control.recv(timeout=PATIENCE_S))
            if message.get("id") == number:
                return message["result"]


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """The browser, ended with the test; skips where there is none."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium on this machine (chromium, chromium-browser, google-chrome)")
    command = [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port, path = _address(profile / "DevToolsActivePort", process)
        yield Browser(port, path)
    finally:
        process.kill()
        process.wait()


def _address(file: Path, process: subprocess.Popen) -> tuple[int, str]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        lines = file.read_text().split() if file.exists() else []
        if len(lines) == 2:
            return int(lines[0]), lines[1]
        time.sleep(0.02)
    raise AssertionError("Chromium didn't come up")
