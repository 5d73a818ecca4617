"""A process that makes many calls of `add` at a time, in coroutines or with futures; and what it has then."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import redis

from rpc import AsyncRpcClient, RpcClient, RpcError

from .processes import PATIENCE


class Tasks:
    """Calls of an AsyncRpcClient, in an event loop that runs while one waits for something."""

    name = "AsyncRpcClient.call_and_wait"

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncRpcClient(backend=url, timeout=PATIENCE)

    def start(self, numbers: Iterable[int]) -> list[Any]:
        return self.start_others("add", ({"a": number, "b": 1} for number in numbers))

    def start_others(self, name: str, several: Iterable[dict[str, Any]]) -> list[Any]:
        call = self._client.call_and_wait
        return [self._loop.create_task(call(name, data)) for data in several]

    def pause(self, seconds: float) -> None:
        self._loop.run_until_complete(asyncio.sleep(seconds))

    def finish(self, calls: list[Any]) -> None:
        self._loop.run_until_complete(asyncio.wait(calls))

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())


class Futures:
    """Submitted calls of an RpcClient."""

    name = "RpcClient.submit"

    def __init__(self, url: str) -> None:
        self._client = RpcClient(backend=url, timeout=PATIENCE)
        self.pause, self.close = time.sleep, self._client.close

    def start(self, numbers: Iterable[int]) -> list[Any]:
        return [self._client.submit("add", {"a": number, "b": 1}) for number in numbers]

    def finish(self, calls: list[Any]) -> None:
        for call in calls:
            with suppress(concurrent.futures.CancelledError, RpcError):
                call.result()


Callers = Tasks | Futures


def wrong(calls: Iterable[tuple[int, Any]]) -> int:
    """How many of these calls, with their numbers, did not end as they should. The first one is shown."""
    found = [(number, call) for number, call in calls if not _is_right(call, number)]
    for number, call in found[:1]:
        print(f"call {number}: {call!r:.300}", file=sys.stderr)
    return len(found)


def _is_right(call: Any, number: int) -> bool:
    return not (call.cancelled() or call.exception()) and call.result().data == {"answer": number + 1}


def alive() -> int:
    """Tasks, futures, and objects of the library."""
    gc.collect()
    futures, kinds = (asyncio.Future, concurrent.futures.Future), map(type, gc.get_objects())
    return sum(issubclass(kind, futures) or str(kind.__module__).startswith("rpc.") for kind in kinds)


def connections(observer: redis.Redis) -> int:
    """Those of this process, which the library names after it."""
    clients: Any = observer.client_list()
    return sum(client["name"].endswith(f":{os.getpid()}") for client in clients)
