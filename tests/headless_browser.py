"""Opens pages in a browser without a window, where one is installed, and says what it met there.

It is spoken to over a pair of pipes by the DevTools protocol: JSON objects, each ended by a zero.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSERS = (
    *("chromium-headless-shell", "chrome-headless-shell", "chromium", "chromium-browser"),
    *("google-chrome", "google-chrome-stable"),
)
# Of a start under load; every answer comes in milliseconds.
PATIENCE_SECONDS = 60


def require_browser() -> str:
    """The program of a browser; skips the test where there is none."""
    for name in BROWSERS:
        if (found := shutil.which(name)) is not None:
            return found
    pytest.skip(f"needs a browser on PATH to look at a page: one of {', '.join(BROWSERS)}")


class Browser:
    """A browser with one page. faults: errors and warnings of its console; requests: addresses."""

    def __init__(self, profile: Path) -> None:
        taken, self._write = os.pipe()
        self._read, given = os.pipe()
        flags = (
            *("--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"),
            *("--hide-scrollbars", "--no-first-run", f"--user-data-dir={profile}"),
        )
        # Above those that the protocol has for itself.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (taken, given)]
        self._process = subprocess.Popen(
            [require_browser(), *flags],
            # Python's own descriptors are not inherited anyway.
            close_fds=False,
            preexec_fn=lambda: [os.dup2(end, number) for end, number in zip(ends, (3, 4))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (taken, given, *ends):
            os.close(end)
        self._rest = b""
        self._count = 0
        self._session: str | None = None
        self.faults: list[str] = []
        self.requests: list[str] = []
        self._loads = 0
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **given: Any) -> dict[str, Any]:
        """Returns the answer to a command; AssertionError for a refused one."""
        self._count += 1
        number = self._count
        message: dict[str, Any] = {"id": number, "method": method, "params": given}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == number:
                assert "error" not in found, found
                return dict(found["result"])
            self._hear(found)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], PATIENCE_SECONDS)
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def _hear(self, event: dict[str, Any]) -> None:
        method, given = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(given["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.faults.append(json.dumps(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.faults.append(given["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loads += 1

    def open(self, page: Path, width: int = 1280, height: int = 900, theme: str = "light") -> None:
        """Opens a file as a reader with this window and this theme would."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        loads = self._loads
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while self._loads == loads:
            self._hear(self._next())

    def value(self, expression: str) -> Any:
        """Returns what an expression of JavaScript is, as JSON can hold it."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, clicks: int = 1) -> None:
        """Moves, presses or releases the mouse: kind is mouseMoved, mousePressed, mouseReleased."""
        button = "none" if kind == "mouseMoved" else "left"
        self.ask(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button=button,
            buttons=int(kind != "mouseReleased" and clicks > 0),
            clickCount=clicks,
        )

    def press(self, key: str) -> None:
        """Presses a key and lets it go."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def picture(self, output: Path) -> None:
        """Writes the whole page as a PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        output.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """Ends the browser."""
        self._process.terminate()
        self._process.wait(PATIENCE_SECONDS)
        os.close(self._write)
        os.close(self._read)
