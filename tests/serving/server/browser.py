"""Drives Debian's Chromium, without a window, by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tornado.websocket import websocket_connect

CHROMIUM = shutil.which("chromium")
PATIENCE = 30.0  # seconds


class Browser:
    """One page.

    Attributes:
      faults: errors that its console had, refusals of the page's policy among them.
    """

    def __init__(self, width: int = 1280, height: int = 1000) -> None:
        assert CHROMIUM is not None
        self.faults: list[str] = []
        self._directory = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # As root, as in containers, there is no sandbox.
        self._process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-port=0"),
                *(f"--user-data-dir={self._directory.name}", "about:blank"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        found = None
        for line in self._process.stderr:
            if found := re.search(r"ws://127.0.0.1:\d+/\S+", line):
                break
        if found is None:
            self._process.kill()
            raise AssertionError("chromium did not start")
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self._session: str | None = None
        self._socket: Any = self._wait(
            lambda: websocket_connect(found[0], max_message_size=1 << 27)
        )
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.size(width, height)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        self._loop.close()
        self._directory.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What a method of the protocol gives."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            asked["sessionId"] = self._session
        self._wait(lambda: self._socket.write_message(json.dumps(asked)))
        while True:
            said = json.loads(self._wait(self._socket.read_message))
            self._note(said)
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def js(self, script: str) -> Any:
        """The value of an expression, promises awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Waits until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.js(script)):
            assert time.monotonic() < end, f"{script}: not within {PATIENCE} s; {self.faults}"
            time.sleep(0.02)
        return value

    def press(self, key: str, code: int) -> None:
        """A key, as from a keyboard."""
        for kind in ("rawKeyDown", "keyUp"):
            key_of = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, **key_of)

    def screenshot(self, path: Path) -> Path:
        """The whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _note(self, said: dict[str, Any]) -> None:
        parameters = said.get("params", {})
        if said.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.faults.append(
                f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}"
            )
        if said.get("method") == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(parameters["exceptionDetails"])[:2000])

    def _wait(self, work: Callable[[], Any]) -> Any:
        async def done() -> Any:
            return await work()

        return self._loop.run_until_complete(asyncio.wait_for(done(), PATIENCE))
