"""What the rest of this package does otherwise where gevent has patched the standard library
(`gevent.monkey.patch_all()`): there threads are greenlets, which share one thread of the machine."""

from __future__ import annotations

import asyncio
import select
import selectors
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_Running = tuple[asyncio.AbstractEventLoop | None, Any]
"""The loop that runs in a thread of the machine, and what minds its asynchronous generators."""

_here = threading.local()
"""`outside`: what was running when this greenlet went on last. Of each greenlet, once they are patched in."""


def are_patched_in() -> bool:
    """Whether threads are greenlets here."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("select"))


def new_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop for a thread, which may be a greenlet: it runs in `own_running_loop`. Raises OSError."""
    if not are_patched_in():
        return asyncio.new_event_loop()

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> Any:
            inside = _running()
            _run_as(_here.outside)
            try:
                if timeout is not None and timeout <= 0:
                    time.sleep(0)  # else a loop that always has something to do lets nobody else run
                return super().select(timeout)
            finally:
                _here.outside = _running()
                _run_as(inside)

    return asyncio.SelectorEventLoop(Selector())


@contextmanager
def own_running_loop() -> Iterator[None]:
    """A block in which a loop of `new_event_loop` runs. asyncio remembers which loop runs by the thread of
    the machine: while this one waits, another greenlet may have another, or none, or wait within a step."""
    if not are_patched_in():
        yield
        return
    _here.outside = _running()
    _run_as((None, (None, None)))
    try:
        yield
    finally:
        _run_as(_here.outside)


def wait_readable(descriptors: list[int], seconds: float) -> None:
    """Until one of these can be read from, but no longer than that. Other greenlets run meanwhile."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    waiting.poll(seconds * 1000)


def _running() -> _Running:
    return asyncio._get_running_loop(), sys.get_asyncgen_hooks()


def _run_as(running: _Running) -> None:
    loop, hooks = running
    asyncio._set_running_loop(loop)
    sys.set_asyncgen_hooks(*hooks)
