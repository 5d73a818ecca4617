"""What a peer serves that is put to the test: see README.md. Here, the Python one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

from rpc import AsyncRequest, Request, job


def add(a: int, b: int = 0) -> int:
    return a + b


def echo(value: Any) -> Any:
    return value


def given(*args: Any, **kwargs: Any) -> list[Any]:
    return [list(args), kwargs]


def fail(text: str) -> None:
    raise ValueError(text)


def count(to: int) -> Iterator[int]:
    yield from range(to)
    return "done"


def relay(value: Any = None) -> Iterator[Any]:
    while True:
        try:
            value = yield value
        except TypeError as error:
            value = f"thrown: {error}"


def total(request: Request) -> int:
    return sum(request.items)


def half(request: Request) -> str:
    request.progress(0.5, "half")
    return "all"


async def wait(request: AsyncRequest) -> str:
    request.progress(0, "waiting")
    try:
        await asyncio.sleep(request.data["seconds"])
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise
    return "waited"


def secret() -> str:
    return "told"


@job(retries=3, backoff=0.01)
def flaky(request: Request) -> int:
    if request.attempt < request.data["works_at"]:
        raise ValueError(f"attempt {request.attempt}")
    return request.attempt


def whoami() -> int:
    return os.getpid()


MAPPING = {
    each.__name__: each for each in (add, echo, given, fail, count, relay, total, half, wait, whoami, secret)
}
WITH_BROKER = {**MAPPING, "flaky": flaky}
TOKENS = {"secret": ["open sesame", {"token": "once", "rate": 0.001}]}
