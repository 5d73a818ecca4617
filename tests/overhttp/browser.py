"""A browser without a window, driven by chromedriver as https://www.w3.org/TR/webdriver2/ says."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import tempfile
from typing import Any

from rpc.testing.site import eventually

PATIENCE = 30.0
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The member in which a reference to an element is, by the specification."""
ENTER, CONTROL, TAB = "\ue007", "\ue009", "\ue004"
BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome", "chrome"), ("chromedriver",)
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def found(names: tuple[str, ...]) -> str | None:
    """The path of the first of these programs that is here."""
    return next((path for path in map(shutil.which, names) if path), None)


class Browser:
    """One, with a profile of its own, until it is closed."""

    def __init__(self, browser: str, driver: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(
            [driver, f"--port={self._port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._session = ""
        options = {
            "binary": browser,
            "args": [*ARGUMENTS, f"--user-data-dir={self._profile.name}"],
        }
        try:
            eventually(self._is_ready, within=PATIENCE)
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{made['sessionId']}"
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._session:
            self._ask("DELETE", self._session)
        self._driver.terminate()
        self._driver.wait(PATIENCE)
        self._profile.cleanup()

    def open(self, url: str) -> None:
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function of this body returns there."""
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": arguments})

    def one(self, css: str) -> str:
        """The element that a selector finds, once it does."""

        def look() -> Any:
            many = self._ask("POST", f"{self._session}/elements", {"using": "css selector", "value": css})
            return many[0][ELEMENT] if many else None

        return str(eventually(look, within=PATIENCE))

    def text(self, css: str) -> str:
        """What is to be read there."""
        return str(self._ask("GET", f"{self._session}/element/{self.one(css)}/text"))

    def waits_for(self, css: str, says: str) -> str:
        """What is to be read there, once this is a part of it."""
        try:
            return str(
                eventually(lambda: text if says in (text := self.text(css)) else None, within=PATIENCE)
            )
        except AssertionError:
            raise AssertionError(f"{css} does not say {says!r}, but {self.text(css)!r}") from None

    def click(self, css: str) -> None:
        self._ask("POST", f"{self._session}/element/{self.one(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        self._ask("POST", f"{self._session}/element/{self.one(css)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """These keys, down one after the other and then up again, wherever the focus is."""
        down = [{"type": "keyDown", "value": key} for key in keys]
        up = [{"type": "keyUp", "value": key} for key in reversed(keys)]
        actions = [{"type": "key", "id": "keys", "actions": down + up}]
        self._ask("POST", f"{self._session}/actions", {"actions": actions})

    def complaints(self) -> list[str]:
        """What the browser has said of pages since it was asked last, as of scripts that it does not run."""
        return [each["message"] for each in self._ask("POST", f"{self._session}/se/log", {"type": "browser"})]

    def _is_ready(self) -> bool:
        assert self._driver.poll() is None, "the driver has ended"
        try:
            return bool(self._ask("GET", "/status")["ready"])
        except OSError:
            return False

    def _ask(self, method: str, path: str, value: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2 * PATIENCE)
        try:
            connection.request(method, path, None if value is None else json.dumps(value))
            answer = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{path}: {answer['error']}: {answer['message']}")
        return answer
