"""Headless Chromium, driven by its DevTools protocol over a pipe (standard library only)."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
KEYS = {"Tab": 9, "Enter": 13}
# Nothing of its own on the network; a test may run as root and with a small /dev/shm.
ARGUMENTS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"),
    *("--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)


class Browser:
    """One page in Chromium; collects what it requests and what its console says."""

    def __init__(self, folder: Path) -> None:
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip(
                "no Chromium found; install it (Debian and Ubuntu: apt-get install chromium)"
            )
        own_in, self._out = os.pipe()
        self._in, own_out = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4: a NUL ends each message.
        script = f'exec "$@" 3<&{own_in} 4>&{own_out}'
        command = ["bash", "-c", script, "bash", program, *ARGUMENTS, f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(
            command, pass_fds=(own_in, own_out), stderr=subprocess.DEVNULL
        )
        os.close(own_in)
        os.close(own_out)
        self._ids = itertools.count(1)
        self._buffer = b""
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _receive(self) -> dict[str, Any]:
        """The next message; events are noted on the way."""
        while b"\0" not in self._buffer:
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "Chromium ended"
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.complaints.append(json.dumps(params))
            case "Page.loadEventFired":
                self._loaded = True
        return message

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        number = next(self._ids)
        command = {"id": number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def loads(self, action: Callable[[], object]) -> None:
        """Do what loads a page, and wait until that is there."""
        self._loaded = False
        action()
        while not self._loaded:
            self._receive()

    def open(self, path: Path) -> None:
        """Open a file."""
        self.loads(lambda: self.call("Page.navigate", url=path.resolve().as_uri()))

    def __call__(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, of a promise when it is kept."""
        how = {"returnByValue": True, "awaitPromise": True}
        done = self.call("Runtime.evaluate", expression=expression, **how)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, name: str) -> None:
        """Press a key of `KEYS`."""
        fields = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name]}
        text = {"text": "\r"} if name == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **fields, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def look(self, width: int, scheme: str = "light") -> None:
        """Take a width in pixels and a colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._in)
        os.close(self._out)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with its own profile in `folder`."""
    running = Browser(folder)
    try:
        yield running
    finally:
        running.close()
