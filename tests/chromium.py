"""A real Chromium without a window, told what to do by its DevTools protocol through a pair of pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# No name has an address, and nothing outside is asked for updates; a page that needs the network shows it.
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost", "--force-color-profile=srgb",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--remote-debugging-pipe", "about:blank",
)  # fmt: skip  # a set of words
WAIT = 180.0  # seconds; longer than anything takes on a machine that does other things too


def program() -> str:
    """The browser's path; without one the test is skipped, and fails in CI, where `.ci/run` installs it."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        reason = "no Chromium; Debian's package is chromium"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return found


class Chromium:
    """One tab. `events` are all that the browser told: (method, parameters)."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return what the browser answers; raises AssertionError for its errors."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(WAIT)
            assert answer is not None, f"{method}: no answer"
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self, seconds: float) -> dict[str, Any] | None:
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], seconds)[0]:
                return None
            content = os.read(self._read, 1 << 20)
            assert content, "the browser ended"
            self._rest += content
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message

    def open(self, url: str) -> None:
        """Open a page and wait until its script runs."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page, or of its promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = WAIT) -> Any:
        """Return the value of an expression once it is true; fail with what the page shows if it does not get so."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if value := self.run(script):
                    return value
            except AssertionError as error:  # the page changes just now
                if "context" not in str(error) and "navigat" not in str(error):
                    raise
            time.sleep(0.05)
        raise AssertionError(f"{script} is not so after {seconds:g} s; the page: {self.run('document.body.innerText')}")

    def drop(self, files: Sequence[Path], x: int = 200, y: int = 200) -> None:
        """Drop files on the page, as a hand does."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, key: str, code: int) -> None:
        """Press a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def point(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Click in the middle of an element."""
        found = f"const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}})"
        middle = "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]"
        place = self.run(f"(() => {{ {found}; {middle}; }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def screen(self, width: int, height: int, mobile: bool = False, dark: bool = False) -> None:
        """Set the screen that the page is shown on."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self) -> bytes:
        """Return what is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def chromium(folder: Path, on_end: Callable[[Chromium], object] = lambda browser: None) -> Iterator[Chromium]:
    """Run a browser whose profile lies in `folder`."""
    to_read, from_browser = os.pipe()
    from_us, to_write = os.pipe()
    # the browser reads its orders from 3 and answers on 4
    command = f"exec {shlex.join([program(), f'--user-data-dir={folder}', *OPTIONS])} 3<&{from_us} 4>&{from_browser}"
    process = subprocess.Popen(
        ["/bin/bash", "-c", command],
        pass_fds=(from_us, from_browser),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    os.close(from_us)
    os.close(from_browser)
    try:
        browser = Chromium(to_read, to_write)
        yield browser
        on_end(browser)
    finally:
        os.close(to_write)  # at which it ends
        os.close(to_read)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
