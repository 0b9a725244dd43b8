"""A headless Chromium, driven over the DevTools protocol through a pair of pipes: it needs no library and no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-proxy-server",  # the tests' servers are on loopback
    "--remote-debugging-pipe",
)


class BrowserError(Exception):
    """The browser ended, answered with an error, or did not answer in time."""


class Chromium:
    """One browser with one page. Example: `with Chromium(folder) as page: page.open(url); page.value("1 + 1")`."""

    def __init__(self, folder: Path) -> None:
        assert EXECUTABLE is not None
        self._number = 0
        self._received = b""
        self._events: list[Any] = []
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4.
        shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", EXECUTABLE, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session: str | None = None
        [target] = [one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self._session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        self.send("Page.enable")
        self.send("Runtime.enable")
        self.send("Log.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        os.close(self._write)  # the browser ends when nobody can talk to it any more
        os.close(self._read)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def send(self, method: str, seconds: float = 60.0, **params: Any) -> Any:
        """Give one command and wait for its result."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._write, json.dumps(command).encode() + b"\0")
        end = time.monotonic() + seconds
        while True:
            message = self._next(end)
            if message.get("id") != self._number:
                self._events.append(message)
                continue
            if "error" in message:
                raise BrowserError(f"{method}: {message['error']}")
            return message["result"]

    def _next(self, end: float) -> Any:
        while b"\0" not in self._received:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise BrowserError("the browser did not answer in time")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise BrowserError("the browser ended")
            self._received += part
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)

    def open(self, url: str) -> None:
        """Go to a page."""
        answer = self.send("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60.0) -> Any:
        """Wait until an expression is true; returns it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                value = self.value(expression)
            except BrowserError as error:
                if "context" not in str(error) and "null" not in str(error):  # the page is only just being made
                    raise
                value = None
            if value:
                return value
            time.sleep(0.1)
        raise BrowserError(
            f"{expression} did not come true within {seconds:.0f} s; {self.value('document.body.innerText')}"
        )

    def complaints(self) -> list[str]:
        """What the page's console has said so far: errors, refused files, broken policies."""
        self.value("0")  # what was said before has come with it
        said = []
        for event in self._events:
            params = event.get("params", {})
            if event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                said.append(params["entry"]["text"])
            if event.get("method") == "Runtime.exceptionThrown":
                said.append(str(params["exceptionDetails"]))
            if event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                said.append(str(params["args"]))
        return said

    def forget(self) -> None:
        """Begin complaints() anew."""
        self.value("0")
        self._events.clear()

    def size(self, width: int, height: int, dark: bool = False, scale: float = 1.0) -> None:
        """Give the page a window of this size, in light or dark."""
        mobile = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """A picture of the page, all of it or what the window shows."""
        taken = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))
