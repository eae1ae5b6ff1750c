"""Chromium without a window, led through its DevTools protocol over a pair of pipes.

It sees a page as a reader's browser does: what is asked of the network, what
the console says, how wide the page is, what a screen reader is told.
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

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60.0  # seconds without a word, after which something is broken


class Chromium:
    """One browser with one page."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        # The protocol is spoken on the descriptors 3 and 4; from 10 on, none of ours is in the way.
        high = [fcntl.fcntl(handle, fcntl.F_DUPFD, 10) for handle in (theirs_in, theirs_out)]
        arguments = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-gpu"]
        arguments += ["--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"]
        arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
        command = f'exec "$0" "$@" 3<&{high[0]} 4>&{high[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, PROGRAM, *arguments],
            pass_fds=high,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for handle in (theirs_in, theirs_out, *high):
            os.close(handle)
        self._pending = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._in], [], [], PATIENCE)
            more = os.read(self._in, 1 << 20) if ready else b""
            assert more, "Chromium has ended, or says nothing"
            self._pending += more
        message, _, self._pending = self._pending.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page, and forget the events of the one before."""
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.send("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        # What the browser has still to tell of the page comes within a moment.
        self.send("Runtime.evaluate", expression="new Promise(done => setTimeout(done, 100))", awaitPromise=True)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; the page's own security policy does not bind it."""
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def settle(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        check = f"new Promise(done => {{ const wait = () => ({expression}) ? done() : setTimeout(wait, 20); wait() }})"
        self.send("Runtime.evaluate", expression=check, awaitPromise=True)

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the page was opened, but for pictures within it."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        refused = {e["params"]["requestId"] for e in self.events if e["params"].get("blockedReason") == "csp"}
        urls = [request["request"]["url"] for request in sent if request["requestId"] not in refused]
        return [url for url in urls if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Return what the console has shown since the page was opened."""
        texts = [event["params"]["entry"]["text"] for event in self.events if event["method"] == "Log.entryAdded"]
        calls = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return texts + [str(event["params"]) for event in self.events if event["method"] in calls]

    def spoken(self) -> list[tuple[str, str]]:
        """Return (role, name) of all that a screen reader is told, headings and lists before what they hold."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        told = [node for node in nodes if not node["ignored"]]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in told]

    def press(self, key: str) -> None:
        """Press and release a key."""
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Save a PNG of the page."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
