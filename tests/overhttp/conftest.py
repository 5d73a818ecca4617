"""A receiver that is reached over HTTP, in this process, and what a stranger sends to it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from rpc import RpcReceiver
from rpc.settings import Settings

PATIENCE = 20.0


class Site:
    """Where a receiver listens."""

    def __init__(self, receiver: RpcReceiver) -> None:
        self.receiver = receiver
        self.host = receiver.backend.bound[0]
        self.url = f"http://{self.host}"

    def send(
        self, method: str, path: str, body: bytes | str = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer."""
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        try:
            sent = body.encode() if isinstance(body, str) else body
            connection.request(method, path, sent, {"content-type": "application/json", **(headers or {})})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return response.status, names, response.read()
        finally:
            connection.close()

    def post(self, path: str, value: Any, **headers: str) -> tuple[int, Any]:
        status, _, body = self.send("POST", path, json.dumps(value), headers)
        return status, json.loads(body) if body else None

    def rpc(self, body: bytes | str) -> Any:
        """What is answered at /rpc; None if it is nothing."""
        status, headers, answer = self.send("POST", "/rpc", body)
        assert status == (200 if answer else 204)
        assert headers["content-type"] == "application/json"
        return json.loads(answer) if answer else None


Serve = Callable[..., Site]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Runs receivers until the end of the test: of these jobs, or one that was made."""
    with ExitStack() as stack:

        def start(receiver: RpcReceiver | None = None, url: str = "http://127.0.0.1:0", **jobs: Any) -> Site:
            made = receiver or RpcReceiver(
                jobs=jobs, backend=url, concurrency=4, settings=Settings(timeout=PATIENCE, grace=1)
            )
            arrived = threading.Event()
            thread = threading.Thread(target=made.run, kwargs={"arrived": arrived.set})
            thread.start()

            def stop() -> None:
                made.stop()
                thread.join(PATIENCE)
                assert not thread.is_alive()

            stack.callback(stop)
            assert arrived.wait(PATIENCE)
            return Site(made)

        yield start
