"""Handlers that give and take streams, each as a plain and as an async generator, and processes of them:
`python -m tests.streams.handlers URL LOG IDLE CONCURRENCY`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rpc import RpcReceiver
from rpc.settings import Settings

PATIENCE = 30.0
"""Seconds: far longer than anything here takes."""
LEAST = 0.02
"""Seconds between two looks whether something has happened."""
log_path = Path(os.devnull)
of_this_stream: ContextVar[str] = ContextVar("of_this_stream", default="nobody's")
most_threads = 0


def note(line: str) -> None:
    with log_path.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def noted(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


def until(check: Callable[[], Any], what: str = "it never happened", seconds: float = PATIENCE) -> Any:
    """What `check` returns, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (result := check()):
        assert time.monotonic() < end, what
        time.sleep(LEAST)
    return result


@contextmanager
def told(name: str) -> Iterator[None]:
    """Notes when a body begins, and how often, and where, its `finally` runs."""
    of_this_stream.set(name)
    note(f"{name} begins")
    try:
        yield
    finally:
        note(f"{name} ends in {of_this_stream.get()}")


MESSAGE = "Don't forget to clean up when 'close()' is called."


def echo(value: Any = None, name: str = "echo") -> Generator[Any, Any, None]:
    """That of NetCall's README: JSON has no exceptions, so it yields what they say."""
    with told(name):
        try:
            while True:
                try:
                    value = yield value
                except Exception as error:
                    value = repr(error)
        finally:
            note(f"{name}: {MESSAGE}")


async def aecho(value: Any = None, name: str = "echo") -> AsyncGenerator[Any, Any]:
    with told(name):
        try:
            while True:
                try:
                    value = yield value
                except Exception as error:
                    value = repr(error)
        finally:
            await asyncio.sleep(0)
            note(f"{name}: {MESSAGE}")


def count(most: int = 2**62, name: str = "count", log: bool = False) -> Generator[int, Any, int]:
    with told(name):
        for number in range(most):
            if log:
                note(f"{name} makes {number}")
            yield number
        return most


async def acount(most: int = 2**62, name: str = "count", log: bool = False) -> AsyncGenerator[int, Any]:
    with told(name):
        for number in range(most):
            if log:
                note(f"{name} makes {number}")
            yield number


async def never(name: str) -> AsyncGenerator[int, Any]:
    """Its first item does not come."""
    with told(name):
        await asyncio.Event().wait()
        yield 0


def items(what: list[Any]) -> Generator[Any, Any, None]:
    yield from what


async def aitems(what: list[Any]) -> AsyncGenerator[Any, Any]:
    for each in what:
        await asyncio.sleep(0)
        yield each


def large(number: int, size: int) -> Generator[str, Any, None]:
    for each in range(number):
        yield f"{each:08d}".ljust(size, ".")


async def alarge(number: int, size: int) -> AsyncGenerator[str, Any]:
    for each in range(number):
        yield f"{each:08d}".ljust(size, ".")


def fail_after(number: int, name: str = "fail") -> Generator[int, Any, None]:
    with told(name):
        yield from range(number)
        raise ValueError("after that")


async def afail_after(number: int, name: str = "fail") -> AsyncGenerator[int, Any]:
    with told(name):
        for each in range(number):
            yield each
        raise ValueError("after that")


def unencodable(name: str = "unencodable") -> Generator[Any, Any, None]:
    with told(name):
        yield 1
        yield object()
        note(f"{name} goes on")


async def aunencodable(name: str = "unencodable") -> AsyncGenerator[Any, Any]:
    with told(name):
        yield 1
        yield object()
        note(f"{name} goes on")


def stubborn(name: str = "stubborn") -> Generator[int, Any, None]:
    """Ignores its end, once."""
    with told(name):
        try:
            yield 0
            yield 1
        except GeneratorExit:
            note(f"{name} ignores it")
        yield 2


async def astubborn(name: str = "stubborn") -> AsyncGenerator[int, Any]:
    with told(name):
        try:
            yield 0
            yield 1
        except (GeneratorExit, asyncio.CancelledError):
            note(f"{name} ignores it")
        yield 2


def lingers(name: str = "lingers") -> Generator[int, Any, None]:
    try:
        yield from range(10**9)
    finally:
        time.sleep(0.1)
        note(f"{name} has slept")


async def alingers(name: str = "lingers") -> AsyncGenerator[int, Any]:
    try:
        for number in range(10**9):
            yield number
    finally:
        await asyncio.sleep(0.1)
        note(f"{name} has slept")


def killer(request: Any) -> Generator[int, Any, None]:
    """Counts on from where another one was lost, and kills its worker before the items of `deadly`."""
    note(f"killer begins at {request.resume_from} in {os.getpid()}")
    for number in range(request.resume_from, request.data["most"]):
        if number in request.data["deadly"]:
            mark = log_path.with_name(f"died at {number}")
            if request.data.get("always") or not mark.exists():
                mark.touch()
                time.sleep(0.2)  # what was yielded before it leaves
                os.kill(os.getpid(), 9)
        yield number


async def akiller(request: Any) -> AsyncGenerator[int, Any]:
    note(f"killer begins at {request.resume_from} in {os.getpid()}")
    for number in range(request.resume_from, request.data["most"]):
        if number in request.data["deadly"]:
            mark = log_path.with_name(f"died at {number}")
            if request.data.get("always") or not mark.exists():
                mark.touch()
                await asyncio.sleep(0.2)
                os.kill(os.getpid(), 9)
        yield number


def total(request: Any) -> dict[str, int]:
    """Takes what is uploaded."""
    number = size = 0
    for item in request.items:
        number += 1
        size += len(item)
    return {"number": number, "size": size}


async def atotal(request: Any) -> dict[str, int]:
    number = size = 0
    async for item in request.items:
        number += 1
        size += len(item)
    return {"number": number, "size": size}


def noting(request: Any) -> None:
    for name, number in request.items:
        note(f"{name} {number} came")


async def anoting(request: Any) -> None:
    async for name, number in request.items:
        note(f"{name} {number} came")


def first_only(request: Any) -> Any:
    return next(request.items)


async def afirst_only(request: Any) -> Any:
    return await anext(request.items)


def doubled(request: Any) -> Generator[int, Any, str]:
    """Both ways."""
    with told("doubled"):
        for item in request.items:
            yield 2 * item
        return "all"


async def adoubled(request: Any) -> AsyncGenerator[int, Any]:
    with told("doubled"):
        async for item in request.items:
            yield 2 * item


def threads() -> int:
    return threading.active_count()


PLAIN: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        *(echo, count, items, large, fail_after, unencodable, stubborn, lingers, killer),
        *(total, noting, first_only, doubled),
    )
}
ASYNC: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        *(aecho, acount, aitems, alarge, afail_after, aunencodable, astubborn, alingers, akiller),
        *(atotal, anoting, afirst_only, adoubled),
    )
}
JOBS = {**PLAIN, **ASYNC, "threads": threads}


def main(url: str, log: str, idle: str, concurrency: str) -> None:
    global log_path
    log_path = Path(log)
    logging.basicConfig(level=logging.WARNING)
    receiver = RpcReceiver(
        jobs=JOBS,
        backend=url,
        concurrency=int(concurrency),
        coroutines=2000,
        grace=5,
        settings=Settings(stream_idle=float(idle)),
    )
    receiver.hook("on_connect")(lambda: note(f"ready {os.getpid()}"))
    receiver.run()
    note(f"stopped {os.getpid()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
