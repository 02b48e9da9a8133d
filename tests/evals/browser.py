"""A headless Chromium, spoken to over a pair of pipes (the DevTools protocol).

No driver, no library, no port: messages are JSON that ends with a zero byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# No first-run pages, no updates, no sync: nothing of it may use the network.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--mute-audio",
    "--remote-debugging-pipe",
)
ANSWER_SECONDS = 60


def find() -> str | None:
    """The path of the browser (CLAP_JAX_TEST_BROWSER, or by name); None without one."""
    asked = os.environ.get("CLAP_JAX_TEST_BROWSER")
    return asked or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in a browser with an empty profile.

    events: all that the browser said by itself: (method, parameters).
    """

    def __init__(self, program: str, profile: Path, size=(1280, 900)):
        command = [program, *FLAGS, f"--user-data-dir={profile}"]
        command += [f"--window-size={size[0]},{size[1]}", "about:blank"]
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        self._log = (profile.parent / f"{profile.name}.log").open("w+b")
        # The browser reads from 3 and writes to 4. (In sh, only ten files have numbers.)
        connect = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", connect, "-", *command],
            pass_fds=(to_browser, from_browser),
            stdout=self._log,
            stderr=self._log,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.events: list[tuple[str, dict]] = []
        self._buffer, self._count, self._session = b"", 0, None

    def __enter__(self):
        try:
            attach = {"targetId": self._page(), "flatten": True}
            self._session = self.send("Target.attachToTarget", **attach)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(ANSWER_SECONDS)
        self._log.close()

    def _page(self) -> str:
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            for target in self.send("Target.getTargets")["targetInfos"]:
                if target["type"] == "page":
                    return target["targetId"]
            time.sleep(0.05)
        raise TimeoutError("the browser opened no page")

    def send(self, method: str, **parameters) -> dict:
        """Ask for something and wait for the answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(f"an answer to {method}")
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def wait_for(self, method: str) -> None:
        """Until the browser says this by itself."""
        while all(name != method for name, _ in self.events):
            self._receive(method)

    def open(self, path: Path) -> None:
        """Load a file, and wait until everything in it is loaded."""
        self.events.clear()
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def run(self, code: str):
        """The value of a JavaScript expression, awaited where it is a promise."""
        found = self.send(
            "Runtime.evaluate",
            expression=code,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def emulate(self, width: int, height: int, scheme: str = "light", media="") -> None:
        """Another window, a light or dark scheme, "print" for what would be printed."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self, path: Path) -> None:
        """The whole page, beyond the window too, as PNG."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def _receive(self, what: str) -> dict:
        """The next message; one that the browser sends by itself is kept in `events`."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], ANSWER_SECONDS)
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                self._log.seek(0)
                said = self._log.read().decode(errors="replace")[-2000:]
                raise TimeoutError(f"no {what} from the browser, which said: {said}")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found = json.loads(message)
        if "method" in found:
            self.events.append((found["method"], found["params"]))
        return found
