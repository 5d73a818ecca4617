"""The calls of a blocking client that are submitted: they wait in an event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from weakref import WeakSet

from .backends import asynchronous
from .deadlines import within
from .errors import BackendUnavailable, RpcTimeout, client_closed
from .loops import LoopThread, process
from .transport import Backend, Replies

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


class Waits:
    """The replies that threads of a client wait for. Another thread may end that."""

    def __init__(self) -> None:
        self._open: set[Replies] = set()
        self._pid = process.id
        self.ends = 0
        """How often that was so."""

    @contextmanager
    def on(self, replies: Replies, ends: int) -> Iterator[None]:
        """Wait for these, which were asked for when there had been so many ends. Raises Cancelled, in place
        of what comes of that, if there is another one."""
        if self._pid != process.id:  # what a parent waits for is not for its child
            self._open, self._pid = set(), process.id
        self._open.add(replies)
        try:
            if ends != self.ends:
                raise client_closed()
            yield
        except (RpcTimeout, BackendUnavailable):
            if replies not in self._open:
                raise client_closed() from None
            raise
        finally:
            self._open.discard(replies)

    def end(self, seconds: float) -> None:
        """Close them all, each within so many seconds."""
        self.ends += 1
        while self._open and self._pid == process.id:
            with within(seconds), suppress(KeyError):  # the last one may just have come
                self._open.pop().close()


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
