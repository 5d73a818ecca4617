"""The calls of a blocking client that are submitted: they wait in an event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar
from weakref import WeakSet

from .backends import asynchronous
from .loops import LoopThread
from .transport import Backend

T = TypeVar("T")


def pipelined(submit: Callable[[Any], Future[T]], items: Iterable[Any], window: int) -> Iterator[T]:
    """What the calls that are submitted with these items come to, in order. At most `window` are under way;
    the first error ends it, and what is under way then is cancelled, as it is if it is closed."""
    under_way: deque[Future[T]] = deque()
    try:
        for item in items:
            under_way.append(submit(item))
            if len(under_way) >= window:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


class Submits:
    """The calls that were submitted: they wait in an event loop, in a thread of its own."""

    def __init__(self, backend: Backend) -> None:
        self.backend = asynchronous(backend)
        self._loop = LoopThread("rpc-client")
        self._open: WeakSet[Future[Any]] = WeakSet()

    def run(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._loop.is_running:  # a parent's futures are not for its child: their locks may be held
            self._open = WeakSet()
        future = self._loop.run(call)
        self._open.add(future)
        return future

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it there; what it returns."""
        return self.run(coroutine).result()

    def close(self) -> None:
        if not self._loop.is_running:
            return
        for future in list(self._open):
            future.cancel()
        self._loop.run(self.backend.close()).result()
        self._loop.close()
