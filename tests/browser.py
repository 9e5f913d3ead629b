"""A headless Chromium for the tests of pages, driven by its own DevTools protocol over two pipes: no driver, no package, no port.

`start` skips a test where no browser is found. Everything that the page logged, asked for or was refused is in `Browser.events`.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
    "--disable-extensions", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
    # No name leads anywhere: a page that tries to leave fails here, whatever its policy says.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
# The protocol's pipes are file descriptors 3 and 4, which cannot be passed on directly: they may be in use here.
LAUNCH = (
    "import os,sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38,
        "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip
PATIENCE = 60  # seconds for an answer: a bound, never a measure


@contextmanager
def start():
    """A `Browser` with one empty page; skips where none is installed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip(f"no browser found, looked for {', '.join(NAMES)}")
    # Kept on descriptors above 9, so that neither is overwritten before it is moved.
    pipes = [os.pipe(), os.pipe()]
    (ask_read, ask_write), (tell_read, tell_write) = [
        [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipe] for pipe in pipes
    ]
    for end in (end for pipe in pipes for end in pipe):
        os.close(end)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [sys.executable, "-c", LAUNCH, str(ask_read), str(tell_write), found, *FLAGS]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        process = subprocess.Popen([*command, f"--user-data-dir={profile}"], pass_fds=(ask_read, tell_write), **quiet)
        os.close(ask_read)
        os.close(tell_write)
        try:
            yield Browser(ask_write, tell_read)
        finally:
            os.close(ask_write)
            os.close(tell_read)
            # The browser's own children share its group.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Browser:
    """One page of a browser.

    Attributes:
      events: {"method", "params"} of everything the browser told without being asked, oldest first.
    """

    def __init__(self, ask: int, tell: int):
        self.events: list[dict[str, Any]] = []
        self._ask, self._tell, self._rest, self._number, self._session = ask, tell, b"", 0, None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol and its result. Raises: RuntimeError for one that the browser refuses or does not answer."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._ask, data) :]
        while True:
            told = self._read(method)
            if told.get("id") == number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']['message']}")
                return told["result"]

    def wait(self, method: str, since: int = 0, **params: Any) -> dict[str, Any]:
        """The first event of this name, from number `since` on, whose parameters are these. Raises: RuntimeError after `PATIENCE`."""
        while True:
            for event in self.events[since:]:
                if event["method"] == method and params.items() <= event["params"].items():
                    return event["params"]
            self._read(method)

    def open(self, path: Path) -> None:
        """Opens a file and waits until it is loaded."""
        since = len(self.events)
        self.send("Page.navigate", url=path.as_uri())
        self.wait("Page.loadEventFired", since)

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for. Raises: RuntimeError where it throws."""
        told = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{code}: {told['exceptionDetails'].get('exception', {}).get('description')}")
        return told["result"].get("value")

    def key(self, key: str, times: int = 1) -> None:
        """Presses a key."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"windowsVirtualKeyCode": KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)}
        for _ in range(times):
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **code)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def size(self, width: int, height: int) -> None:
        """Sets the window's size in pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self) -> bytes:
        """What is on the screen, as a PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def _read(self, waited: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            if not select.select([self._tell], [], [], max(0, end - time.monotonic()))[0]:
                raise RuntimeError(f"the browser did not answer within {PATIENCE} s: {waited}")
            data = os.read(self._tell, 1 << 20)
            if not data:
                raise RuntimeError(f"the browser ended: {waited}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        told = json.loads(line)
        if "method" in told:
            self.events.append(told)
        return told
