"""Receivers in threads and clients, with memory between them, or a broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from threading import Thread
from typing import Any, cast
from uuid import uuid4

from rpc import Request, RpcClient, RpcReceiver, job
from rpc.backends import backend_from_url
from rpc.inspection import DeadLetters

LONG = 30.0
"""Seconds: far longer than anything here takes."""


class Site:
    """Receivers in threads, and clients, on a hub of their own, or at a URL. They end with the test."""

    def __init__(self, stack: ExitStack, url: str = "") -> None:
        self.url, self._stack = url or f"memory://{uuid4().hex}", stack

    def serve(self, jobs: dict[str, Callable[..., Any]], **options: Any) -> None:
        receiver = RpcReceiver(jobs=jobs, backend=self.url, **options)
        thread = Thread(target=receiver.start, daemon=True)
        thread.start()

        def end() -> None:
            receiver.stop()
            thread.join(LONG)
            assert not thread.is_alive()

        self._stack.callback(end)

    def client(self, max_length: int = 0, **options: Any) -> RpcClient:
        limit = {"max_length": max_length} if max_length else {}
        backend = backend_from_url(self.url, **limit)
        self._stack.callback(backend.close)
        return self._stack.enter_context(RpcClient(**{"backend": backend, "timeout": LONG, **options}))

    def letters(self) -> list[Any]:
        return self.shelf().dead_letters("default")

    def shelf(self) -> DeadLetters:
        backend = backend_from_url(self.url)
        self._stack.callback(backend.close)
        return cast("DeadLetters", backend)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Flaky:
    """Fails so many times, then answers with the attempts that it saw."""

    def __init__(self, times: int, error: type[BaseException] = ConnectionError) -> None:
        self.times, self.error = times, error
        self.attempts: list[int] = []
        self.began: list[float] = []

    def __call__(self, request: Request) -> list[int]:
        self.began.append(time.monotonic())
        self.attempts.append(request.attempt)
        if len(self.attempts) <= self.times:
            raise self.error("not now")
        return self.attempts

    def with_options(self, **options: Any) -> Callable[..., Any]:
        @job(**options)
        def flaky(request: Request) -> list[int]:
            return self(request)

        @job(**options)
        async def coroutine(request: Request) -> list[int]:
            return self(request)

        self.coroutine = coroutine
        return flaky
